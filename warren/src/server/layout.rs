//! Where an installation keeps its things.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use warren_model::InstallationId;
use warren_model::session::{TunnelKey, WireGuardKey};
use warren_runtime::driver::CgroupParent;

/// How long the lock of a server that is gone is waited for.
const LAST_BREATH: Duration = Duration::from_secs(2);

/// The data directory, by what is in it.
#[derive(Debug, Clone)]
pub struct Layout {
    directory: PathBuf,
}

/// Whether there is such a process.
fn is_alive(pid: i32) -> bool {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None) != Err(Errno::ESRCH)
}

impl Layout {
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn store(&self) -> PathBuf {
        self.directory.join("warren.db")
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.join("api.sock")
    }

    pub fn root_key(&self) -> PathBuf {
        self.directory.join("root.key")
    }

    /// The private key that operators' tunnels end with.
    fn tunnel_key_file(&self) -> PathBuf {
        self.directory.join("vpn.key")
    }

    pub fn audit_log(&self) -> PathBuf {
        self.directory.join("audit.log")
    }

    /// The key that audits are signed with, and their reports.
    pub fn audits(&self) -> PathBuf {
        self.directory.join("audit")
    }

    /// Certificates and keys of public names.
    pub fn public(&self) -> PathBuf {
        self.directory.join("public")
    }

    /// What policies refused of late.
    pub fn denials_log(&self) -> PathBuf {
        self.directory.join("denials.log")
    }

    /// What the edge logs; it outlives the daemon, so it cannot share the daemon's stderr.
    pub fn edge_log(&self) -> PathBuf {
        self.directory.join("edge.log")
    }

    fn lock_file(&self) -> PathBuf {
        self.directory.join("lock")
    }

    fn traces_file(&self) -> PathBuf {
        self.directory.join("installation.json")
    }

    pub fn create(&self) -> anyhow::Result<()> {
        fs::create_dir_all(&self.directory)
            .with_context(|| format!("cannot make the data directory {}", self.directory.display()))
    }

    /// Makes sure that one server at most uses the directory. The file holds the process id of who has the lock.
    pub fn lock(&self) -> anyhow::Result<Flock<fs::File>> {
        let path = self.lock_file();
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let (mut file, deadline) = (file, Instant::now() + LAST_BREATH);
        let mut lock = loop {
            let back = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => break lock,
                Err((_, error)) if error != Errno::EWOULDBLOCK => {
                    anyhow::bail!("cannot lock {}: {error}", path.display());
                }
                Err((file, _)) => file,
            };
            let holder = self.lock_holder();
            if holder.is_some_and(is_alive) || Instant::now() > deadline {
                let directory = self.directory.display();
                let holder = holder.map_or(String::new(), |pid| format!(" (process {pid})"));
                anyhow::bail!("another server{holder} uses {directory}: end that one, or choose another --data-dir");
            }
            // What a server that was killed had just forked has its lock for a moment longer.
            std::thread::sleep(Duration::from_millis(5));
            file = back;
        };
        lock.set_len(0).and_then(|()| write!(lock, "{}", std::process::id()))?;
        Ok(lock)
    }

    /// The process that holds the lock, as it wrote itself down.
    pub fn lock_holder(&self) -> Option<i32> {
        fs::read_to_string(self.lock_file()).ok()?.trim().parse().ok()
    }

    pub fn write_root_key(&self, key: &str) -> anyhow::Result<()> {
        self.write_secret(&self.root_key(), key)
    }

    /// The private key that operators' tunnels end with, which is made the first time: what operators were given names
    /// its public half.
    pub fn tunnel_key(&self) -> anyhow::Result<TunnelKey> {
        let path = self.tunnel_key_file();
        match fs::read_to_string(&path) {
            Ok(text) => {
                let key: WireGuardKey = text.trim().parse().with_context(|| {
                    format!("{} holds no WireGuard key; remove it to have a new one", path.display())
                })?;
                Ok(TunnelKey::from_bytes(*key.as_bytes()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let mut bytes = [0; 32];
                getrandom::fill(&mut bytes).context("the kernel gives no random numbers")?;
                // The text of a key is the same for both halves.
                self.write_secret(&path, &WireGuardKey::from_bytes(bytes).to_string())?;
                Ok(TunnelKey::from_bytes(bytes))
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// A line that only the server's user can read, there whole or not at all.
    fn write_secret(&self, path: &Path, line: &str) -> anyhow::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
        writeln!(file, "{line}")?;
        file.as_file().sync_all()?;
        file.persist(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(())
    }

    /// Removes every file that a server makes here, and the pool if it is here; nothing else.
    pub fn remove_files(&self) -> anyhow::Result<()> {
        let store = self.store();
        let beside = ["-wal", "-shm", ".lock"].map(|suffix| {
            let mut path = store.clone().into_os_string();
            path.push(suffix);
            PathBuf::from(path)
        });
        let own = [
            self.socket(),
            self.root_key(),
            self.tunnel_key_file(),
            self.audit_log(),
            self.audit_log().with_extension("head"),
            self.denials_log(),
            self.denials_log().with_extension("log.1"),
            self.edge_log(),
            self.traces_file(),
            self.lock_file(),
            store.clone(),
        ];
        for path in own.iter().chain(&beside) {
            match fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", path.display()));
                }
                _ => {}
            }
        }
        for folder in [self.audits(), self.public()] {
            match fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", folder.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub fn read_traces(&self) -> anyhow::Result<Option<Traces>> {
        let path = self.traces_file();
        match fs::read(&path) {
            Ok(bytes) => {
                Ok(Some(serde_json::from_slice(&bytes).with_context(|| format!("{} cannot be read", path.display()))?))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("{} cannot be read", path.display())),
        }
    }

    pub fn write_traces(&self, traces: &Traces) -> anyhow::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
        serde_json::to_writer_pretty(&mut file, traces)?;
        file.as_file().sync_all()?;
        file.persist(self.traces_file())?;
        Ok(())
    }
}

/// What an installation leaves on the host outside its data directory: enough to remove all of it without its store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Traces {
    pub installation: InstallationId,
    pub ula: warren_model::UlaPrefix,
    pub pool_dir: PathBuf,
    pub cgroup_parent: CgroupParent,
    pub runtime: String,
}

/// The socket on which the edge takes orders.
pub fn edge_control(installation: &InstallationId) -> PathBuf {
    installation.run_directory().join("edge.sock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_server_is_told_who_uses_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().to_owned());
        let lock = layout.lock().unwrap();
        let said = layout.lock().unwrap_err().to_string();
        assert!(said.contains(&format!("another server (process {})", std::process::id())), "{said}");
        assert!(said.contains("--data-dir") && !said.contains("EAGAIN"), "{said}");
        drop(lock);
        assert!(layout.lock().is_ok());
    }

    #[test]
    fn the_lock_of_a_server_that_is_gone_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().to_owned());
        let lock = layout.lock().unwrap();
        let mut gone = std::process::Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        fs::write(layout.lock_file(), gone.id().to_string()).unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| layout.lock().map(drop));
            std::thread::sleep(Duration::from_millis(200));
            drop(lock);
            second.join().unwrap().unwrap();
        });
    }
}
