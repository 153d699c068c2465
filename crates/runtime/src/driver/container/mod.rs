//! The driver over an OCI runtime (`runc`, `crun`, `youki`, …): containers in user namespaces.
//!
//! ```text
//! {run_dir}/oci/                       the runtime's own state
//! {run_dir}/machines/{machine}/        the bundle: config.json; pid; runtime.log; process.json once it exists
//! ```
//!
//! Everything lies in memory, so that after a reboot nothing of it is left, like the processes. A machine is created
//! and started by one run of the runtime each; whether it lives is told by its process's descriptor, without asking
//! the runtime.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;
use warren_model::{InstallationId, MachineId};

pub(crate) mod bundle;
pub(crate) mod cgroup;
mod process;
pub(crate) mod seccomp;
#[cfg(test)]
mod tests;

pub use cgroup::CgroupParent;
use process::{Process, ProcessRecord};

use super::{Created, Driver, DriverError, DriverState, MachineSpec};
use crate::disk::roots::machines_in;
use crate::disk::user_namespace;
use crate::files::{self, blocking};
use crate::helper::{Helper, SEARCH_PATH, find_program};

/// A run of the runtime takes milliseconds; one that takes this long hangs.
const RUNTIME_LIMIT: Duration = Duration::from_secs(60);
/// How long the kernel may take to end a machine that was killed.
const KILL_LIMIT: Duration = Duration::from_secs(20);
/// How much of the runtime's log an error repeats.
const LOG_SPACE: u64 = 4096;

/// How the driver is set up.
#[derive(Debug, Clone)]
pub struct ContainerConfig {
    pub installation: InstallationId,
    /// The name of the OCI runtime, or its path.
    pub runtime: String,
    /// `/run/warren-{installation}`; in memory.
    pub run_dir: PathBuf,
    /// As detected at the first start.
    pub cgroup_parent: CgroupParent,
}

/// Runs machines as containers.
#[derive(Clone)]
pub struct ContainerDriver {
    inner: Arc<Inner>,
}

struct Inner {
    config: ContainerConfig,
    processes: Mutex<HashMap<MachineId, Arc<Process>>>,
    listeners: Mutex<Vec<mpsc::UnboundedSender<MachineId>>>,
}

impl ContainerDriver {
    /// Takes over the machines that are there. Needs a tokio runtime.
    pub fn new(mut config: ContainerConfig) -> Result<Self, DriverError> {
        let mount = Path::new("/sys/fs/cgroup");
        if !config.cgroup_parent.exists() {
            config.cgroup_parent =
                CgroupParent::detect().map_err(DriverError::io("cannot read the cgroups in", mount))?;
        }
        config.cgroup_parent.prepare().map_err(DriverError::io("cannot prepare cgroups in", mount))?;
        for directory in [config.run_dir.join("oci"), config.run_dir.join("machines")] {
            files::make_directories(&directory, 0o711).map_err(DriverError::io("cannot make", &directory))?;
        }
        let inner = Arc::new(Inner { config, processes: Mutex::default(), listeners: Mutex::default() });
        for (machine, directory) in inner.known_directories()? {
            match read_process(&directory).and_then(Process::reopen) {
                Ok(process) => inner.adopt(machine, Arc::new(process)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(%machine, %error, "the process of a machine cannot be taken over"),
            }
        }
        Ok(Self { inner })
    }

    /// Where machines' cgroups are; for the caller to remember.
    pub fn cgroup_parent(&self) -> &CgroupParent {
        &self.inner.config.cgroup_parent
    }

    /// The directories of a machine's cgroups, for whoever reads its use of resources.
    pub fn cgroups(&self, machine: MachineId) -> Vec<PathBuf> {
        self.inner.config.cgroup_parent.directories_of(&self.inner.container_id(machine))
    }
}

impl Inner {
    /// The name of a machine's container and cgroup.
    fn container_id(&self, machine: MachineId) -> String {
        format!("{}{}", self.prefix(), machine.bare())
    }

    fn prefix(&self) -> String {
        format!("warren-{}-", self.config.installation)
    }

    fn bundle(&self, machine: MachineId) -> PathBuf {
        self.config.run_dir.join("machines").join(machine.bare())
    }

    fn runtime_state(&self, machine: MachineId) -> PathBuf {
        self.config.run_dir.join("oci").join(self.container_id(machine))
    }

    fn known_directories(&self) -> Result<Vec<(MachineId, PathBuf)>, DriverError> {
        let directory = self.config.run_dir.join("machines");
        machines_in(&directory).map_err(DriverError::io("cannot list", &directory))
    }

    fn process(&self, machine: MachineId) -> Option<Arc<Process>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner).get(&machine).cloned()
    }

    /// Keeps a process and tells the listeners when it ends.
    fn adopt(self: &Arc<Self>, machine: MachineId, process: Arc<Process>) {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner).insert(machine, process.clone());
        let inner = Arc::downgrade(self);
        tokio::spawn(async move {
            process.ended().await;
            if let Some(inner) = inner.upgrade() {
                let mut listeners = inner.listeners.lock().unwrap_or_else(PoisonError::into_inner);
                listeners.retain(|listener| listener.send(machine).is_ok());
            }
        });
    }

    fn program(&self) -> Result<PathBuf, DriverError> {
        let runtime = &self.config.runtime;
        find_program(runtime).ok_or_else(|| DriverError::RuntimeMissing { runtime: runtime.clone() })
    }

    fn log(&self, machine: MachineId) -> PathBuf {
        self.bundle(machine).join("runtime.log")
    }

    /// Runs the runtime. Its standard streams are what the machine's first process gets, so they lead nowhere, and what
    /// it has to say goes to a log.
    async fn runtime(&self, machine: MachineId, action: &'static str, arguments: &[&str]) -> Result<(), DriverError> {
        let log = self.log(machine);
        let mut command = tokio::process::Command::new(self.program()?);
        command
            .arg("--root")
            .arg(self.config.run_dir.join("oci"))
            .arg("--log")
            .arg(&log)
            .args(arguments)
            .arg(self.container_id(machine))
            .env_clear()
            .env("PATH", SEARCH_PATH)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let entrances =
            self.config.cgroup_parent.entrances().map_err(DriverError::io("cannot read cgroups of", &log))?;
        let entrances = entrances.iter().map(|path| open_for_writing(path)).collect::<io::Result<Vec<_>>>();
        let entrances = entrances.map_err(DriverError::io("cannot enter the remembered cgroups of", &log))?;
        // SAFETY: between fork and exec this writes to open descriptors and sets limits, by system calls alone.
        unsafe {
            command.pre_exec(move || {
                entrances.iter().try_for_each(enter)?;
                Ok(bundle::limit_processes()?)
            })
        };
        let failed = |detail: String| DriverError::Runtime { machine, action, detail };
        let mut child = command.spawn().map_err(|error| failed(format!("the runtime cannot be run: {error}")))?;
        match tokio::time::timeout(RUNTIME_LIMIT, child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(failed(format!("{status}: {}", last_words(&log)))),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => {
                let _ = child.kill().await;
                Err(failed(format!("the runtime was still not done after {} s", RUNTIME_LIMIT.as_secs())))
            }
        }
    }

    async fn create(self: &Arc<Self>, spec: &MachineSpec) -> Result<Created, DriverError> {
        let machine = spec.id;
        if self.leftovers(machine) {
            self.remove(machine).await?;
        }
        let bundle = self.bundle(machine);
        let uid_base = spec.uid_base;
        let users = blocking(move || user_namespace(uid_base)).await;
        let users = users.map_err(DriverError::io("cannot make the user namespace of", &bundle))?;
        let users_path = format!("/proc/{}/fd/{}", std::process::id(), users.as_raw_fd());
        let write = |users: Option<&str>| {
            let config = bundle::config(spec, &self.container_id(machine), &self.config.cgroup_parent, users);
            std::fs::write(bundle.join("config.json"), config.to_string())
        };
        let prepared = files::make_directories(&bundle, 0o700).and_then(|()| write(Some(&users_path)));
        prepared.map_err(DriverError::io("cannot write the bundle", &bundle))?;
        let made = self.create_prepared(machine, &bundle).await;
        // The path is good for this once: what stays can be run again by hand.
        let made = made.and_then(|created| {
            write(None).map_err(DriverError::io("cannot write the bundle", &bundle))?;
            Ok(created)
        });
        if made.is_err() {
            // Its own failure says more than that of the clean-up.
            if let Err(error) = self.remove(machine).await {
                tracing::warn!(%machine, %error, "a machine that could not be created left something behind");
            }
        }
        made
    }

    async fn create_prepared(self: &Arc<Self>, machine: MachineId, bundle: &Path) -> Result<Created, DriverError> {
        let pid_file = bundle.join("pid");
        let (bundle_text, pid_text) = (bundle.display().to_string(), pid_file.display().to_string());
        self.runtime(machine, "created", &["create", "--bundle", &bundle_text, "--pid-file", &pid_text]).await?;
        let failed = |context| DriverError::io(context, bundle);
        let text = std::fs::read_to_string(&pid_file).map_err(failed("the runtime wrote no pid in"))?;
        let pid = text
            .trim()
            .parse()
            .map_err(|_| failed("the runtime wrote no pid in")(io::ErrorKind::InvalidData.into()))?;
        let process = Process::open(pid).map_err(|_| DriverError::Ended { machine })?;
        let netns = process.network_namespace().map_err(|_| DriverError::Ended { machine })?;
        write_process(bundle, process.record).map_err(failed("cannot write the record in"))?;
        self.adopt(machine, Arc::new(process));
        Ok(Created { pid, netns })
    }

    async fn start(&self, machine: MachineId) -> Result<(), DriverError> {
        let process = self.process(machine).ok_or(DriverError::NoSuchMachine { machine })?;
        if process.has_ended() {
            return Err(DriverError::Ended { machine });
        }
        if process.is_running() {
            return Ok(());
        }
        self.runtime(machine, "started", &["start"]).await?;
        process.mark_running();
        Ok(())
    }

    async fn stop(&self, machine: MachineId, grace: Duration) -> Result<(), DriverError> {
        if let Some(process) = self.process(machine)
            && process.is_running()
            && !process.has_ended()
            && process.signal(libc::SIGTERM).is_ok()
        {
            process.ended_within(grace).await;
        }
        self.remove(machine).await
    }

    /// Whether anything of a machine is there.
    fn leftovers(&self, machine: MachineId) -> bool {
        self.bundle(machine).exists()
            || self.runtime_state(machine).exists()
            || !self.config.cgroup_parent.directories_of(&self.container_id(machine)).is_empty()
    }

    async fn remove(&self, machine: MachineId) -> Result<(), DriverError> {
        let mut failures = Vec::new();
        if let Some(process) = self.process(machine) {
            if let Err(error) = process.signal(libc::SIGKILL) {
                failures.push(format!("cannot end process {}: {error}", process.record.pid));
            } else if !process.ended_within(KILL_LIMIT).await {
                failures.push(format!("process {} does not end", process.record.pid));
            }
        }
        let bundle = self.bundle(machine);
        if self.runtime_state(machine).exists() {
            // The log goes into the bundle, which a crash may have taken already.
            let made = files::make_directories(&bundle, 0o700);
            if let Err(error) = made.map_err(|error| error.to_string()) {
                failures.push(format!("cannot make {}: {error}", bundle.display()));
            }
            if let Err(error) = self.runtime(machine, "deleted", &["delete", "--force"]).await {
                // A runtime that died half way may leave a state that it cannot read itself.
                if files::absent_is_fine(std::fs::remove_dir_all(self.runtime_state(machine))).is_err() {
                    failures.push(error.to_string());
                }
            }
        }
        let directories = self.config.cgroup_parent.directories_of(&self.container_id(machine));
        if !directories.is_empty() {
            for (directory, result) in blocking(move || destroy_all(directories)).await {
                if let Err(error) = result {
                    failures.push(format!("cannot remove {}: {error}", directory.display()));
                }
            }
        }
        if let Err(error) = files::absent_is_fine(std::fs::remove_dir_all(&bundle)) {
            failures.push(format!("cannot remove {}: {error}", bundle.display()));
        }
        if failures.is_empty() {
            self.processes.lock().unwrap_or_else(PoisonError::into_inner).remove(&machine);
            Ok(())
        } else {
            Err(DriverError::Incomplete { machine, failures })
        }
    }

    fn observe(&self) -> Result<BTreeMap<MachineId, DriverState>, DriverError> {
        let mut found: BTreeMap<MachineId, DriverState> =
            self.known_directories()?.into_iter().map(|(machine, _)| (machine, DriverState::Dead)).collect();
        let prefix = self.prefix();
        let states = std::fs::read_dir(self.config.run_dir.join("oci")).into_iter().flatten().flatten();
        let states = states.filter_map(|entry| entry.file_name().into_string().ok());
        for name in states.chain(self.config.cgroup_parent.names_with(&prefix)) {
            if let Some(machine) = name.strip_prefix(&prefix).and_then(|bare| MachineId::from_bare(bare).ok()) {
                found.entry(machine).or_insert(DriverState::Dead);
            }
        }
        for (machine, process) in self.processes.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let pid = process.record.pid;
            let state = match (process.has_ended(), process.is_running()) {
                (true, _) => DriverState::Dead,
                (false, true) => DriverState::Running { pid },
                (false, false) => DriverState::Created { pid },
            };
            found.insert(*machine, state);
        }
        Ok(found)
    }
}

#[async_trait]
impl Driver for ContainerDriver {
    async fn check(&self) -> Result<(), DriverError> {
        let program = self.inner.program()?;
        let version = Helper::new(program.display().to_string(), Duration::from_secs(10)).arg("--version").run();
        version.await.map_err(DriverError::RuntimeUnusable)?;
        let missing = self.inner.config.cgroup_parent.missing_controllers();
        if !missing.is_empty() {
            return Err(DriverError::KernelFeatureMissing {
                what: format!("there is no cgroup controller for {}", missing.join(", ")),
                remedy: format!("boot with `cgroup_enable={}`", missing.join(",")),
            });
        }
        Ok(())
    }

    async fn create(&self, spec: &MachineSpec) -> Result<Created, DriverError> {
        self.inner.create(spec).await
    }

    async fn start(&self, machine: MachineId) -> Result<(), DriverError> {
        self.inner.start(machine).await
    }

    async fn stop(&self, machine: MachineId, grace: Duration) -> Result<(), DriverError> {
        self.inner.stop(machine, grace).await
    }

    async fn remove(&self, machine: MachineId) -> Result<(), DriverError> {
        self.inner.remove(machine).await
    }

    async fn observe(&self) -> Result<BTreeMap<MachineId, DriverState>, DriverError> {
        let inner = self.inner.clone();
        blocking(move || inner.observe()).await
    }

    fn network_namespace(&self, machine: MachineId) -> Result<OwnedFd, DriverError> {
        let process = self.inner.process(machine).ok_or(DriverError::NoSuchMachine { machine })?;
        process.network_namespace().map_err(|_| DriverError::Ended { machine })
    }

    fn exits(&self) -> mpsc::UnboundedReceiver<MachineId> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.inner.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        receiver
    }
}

fn destroy_all(directories: Vec<PathBuf>) -> Vec<(PathBuf, io::Result<()>)> {
    directories.into_iter().map(|directory| (directory.clone(), cgroup::destroy(&directory))).collect()
}

fn read_process(bundle: &Path) -> io::Result<ProcessRecord> {
    serde_json::from_slice(&std::fs::read(bundle.join("process.json"))?).map_err(io::Error::other)
}

/// In memory, where a rename is all that a crash of the daemon calls for.
fn write_process(bundle: &Path, record: ProcessRecord) -> io::Result<()> {
    let temporary = bundle.join("process.json.new");
    std::fs::write(&temporary, serde_json::to_vec(&record).map_err(io::Error::other)?)?;
    std::fs::rename(temporary, bundle.join("process.json"))
}

fn open_for_writing(path: &Path) -> io::Result<OwnedFd> {
    std::fs::OpenOptions::new().write(true).open(path).map(OwnedFd::from)
}

/// Moves the calling process into a cgroup. Only system calls: it runs between fork and exec.
fn enter(file: &OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor is open and the buffer is one byte; zero stands for the process that writes.
    let result = unsafe { libc::write(file.as_raw_fd(), b"0".as_ptr().cast(), 1) };
    if result == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What the runtime logged last, in one line.
fn last_words(log: &Path) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> io::Result<String> {
        let mut file = std::fs::File::open(log)?;
        let start = file.metadata()?.len().saturating_sub(LOG_SPACE);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(LOG_SPACE).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().replace('\n', "; "))
    };
    match read() {
        Ok(text) if !text.is_empty() => text,
        _ => "it did not say why".to_owned(),
    }
}
