//! On the real kernel with the host's runc. Needs root, and rustc for the machines' first process.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_model::record::Limits;
use warren_model::{Code, ImageName, InstallationId, MachineId};

use super::{CgroupParent, ContainerConfig, ContainerDriver, bundle};
use crate::disk::testing::{TestPool, UID_BASE, machine, pool_with_image};
use crate::disk::{Pool, PoolPreference};
use crate::driver::{Driver, DriverError, DriverState, MachineSpec};

struct Lab {
    driver: ContainerDriver,
    config: ContainerConfig,
    pool: Arc<Pool>,
    image: ImageName,
    agent_directory: PathBuf,
    machines: std::sync::Mutex<Vec<MachineId>>,
    _test: TestPool,
}

impl Lab {
    async fn new(preference: PoolPreference) -> Self {
        let test = TestPool::new();
        let (pool, installation, image) = pool_with_image(&test, preference).await;
        let agent_directory = test.directory.path().join("agent");
        std::fs::create_dir(&agent_directory).unwrap();
        let program = agent_directory.join("init");
        // By another process: what this one starts meanwhile would have the file open, too, and what is open to be
        // written is not run (ETXTBSY, execve(2)).
        let mut write = std::process::Command::new("sh");
        write.args(["-c", "cat > \"$1\" && chmod 755 \"$1\"", "sh"]).arg(&program);
        let mut writing = write.stdin(std::process::Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut writing.stdin.take().unwrap(), init_program()).unwrap();
        assert!(writing.wait().unwrap().success());
        // The machine's root reaches the directory by a path that others may pass through.
        std::fs::set_permissions(test.directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
        let config = config(installation);
        let driver = ContainerDriver::new(config.clone()).unwrap();
        Self { driver, config, pool, image, agent_directory, machines: std::sync::Mutex::default(), _test: test }
    }

    async fn spec(&self) -> MachineSpec {
        let id = machine();
        self.machines.lock().unwrap().push(id);
        self.pool.create_disk(id, &self.image, UID_BASE, None).await.unwrap();
        let limits = Limits { cpus_milli: 500, memory_mib: 128, disk_gib: None };
        let root = self.pool.mount_root(id, UID_BASE).await.unwrap();
        let (hostname, agent_directory) = ("worker.vm.internal".to_owned(), self.agent_directory.clone());
        MachineSpec { id, hostname, uid_base: UID_BASE, limits, root, agent_directory }
    }

    async fn started(&self) -> MachineSpec {
        let spec = self.spec().await;
        self.driver.create(&spec).await.unwrap();
        self.driver.start(spec.id).await.unwrap();
        spec
    }

    fn mode(&self, mode: &str) {
        std::fs::write(self.agent_directory.join("mode"), mode).unwrap();
    }

    /// Nothing of any machine is on the host.
    fn assert_clean(&self) {
        let parent = &self.config.cgroup_parent;
        assert_eq!(parent.names_with(&format!("warren-{}-", self.config.installation)), Default::default());
        for directory in ["oci", "machines"] {
            assert_eq!(std::fs::read_dir(self.config.run_dir.join(directory)).unwrap().count(), 0, "{directory}");
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let (driver, machines) = (self.driver.clone(), std::mem::take(&mut *self.machines.lock().unwrap()));
        let removal = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                // A driver of its own: the other's descriptors belong to the test's runtime.
                let driver = ContainerDriver::new(driver.inner.config.clone()).unwrap();
                for machine in machines {
                    let _ = driver.remove(machine).await;
                }
            });
        });
        let _ = removal.join();
    }
}

fn config(installation: InstallationId) -> ContainerConfig {
    let run_dir = installation.run_directory();
    ContainerConfig {
        installation,
        runtime: "runc".to_owned(),
        run_dir,
        cgroup_parent: CgroupParent::detect().unwrap(),
    }
}

/// Compiled once for all tests of a process.
fn init_program() -> &'static [u8] {
    static PROGRAM: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    PROGRAM.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/driver/container/test_init.rs");
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("init");
        let rustc = Path::new(env!("CARGO")).with_file_name("rustc");
        let status = std::process::Command::new(rustc)
            .args(["--edition=2024", "-Copt-level=1", "-Ctarget-feature=+crt-static", "-Cpanic=abort", "-o"])
            .args([&program, &source])
            .status()
            .unwrap();
        assert!(status.success());
        std::fs::read(program).unwrap()
    })
}

async fn report(spec: &MachineSpec) -> BTreeMap<String, String> {
    let path = spec.root.join("report");
    for _ in 0..1500 {
        if let Ok(text) = std::fs::read_to_string(&path) {
            let pairs = text.lines().filter_map(|line| line.split_once('='));
            return pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the machine said nothing");
}

#[tokio::test]
async fn a_machine_is_created_started_seen_and_stopped() {
    for preference in [PoolPreference::Best, PoolPreference::Overlay] {
        let lab = Lab::new(preference).await;
        lab.driver.check().await.unwrap();
        let mut exits = lab.driver.exits();
        let spec = lab.spec().await;
        assert!(lab.driver.observe().await.unwrap().is_empty());
        let created = lab.driver.create(&spec).await.unwrap();
        let pid = created.pid;
        assert_eq!(lab.driver.observe().await.unwrap(), [(spec.id, DriverState::Created { pid })].into());
        assert!(!spec.root.join("report").exists());
        let namespace = |fd: i32| std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let netns = lab.driver.network_namespace(spec.id).unwrap();
        assert_eq!(namespace(created.netns.as_raw_fd()), namespace(netns.as_raw_fd()));
        assert_ne!(namespace(created.netns.as_raw_fd()), own);
        for _ in 0..2 {
            lab.driver.start(spec.id).await.unwrap();
        }
        assert_eq!(lab.driver.observe().await.unwrap(), [(spec.id, DriverState::Running { pid })].into());
        report(&spec).await;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains(&format!("Uid:\t{UID_BASE}\t{UID_BASE}")), "{status}");
        let start = Instant::now();
        lab.driver.stop(spec.id, Duration::from_secs(60)).await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(50));
        assert_eq!(exits.recv().await, Some(spec.id));
        assert!(lab.driver.observe().await.unwrap().is_empty());
        assert!(lab.driver.network_namespace(spec.id).is_err());
        lab.assert_clean();
        lab.driver.stop(spec.id, Duration::ZERO).await.unwrap();
        lab.driver.remove(spec.id).await.unwrap();
    }
}

#[tokio::test]
async fn a_machine_is_its_own_root_and_nothing_of_the_host() {
    let lab = Lab::new(PoolPreference::Best).await;
    let spec = lab.started().await;
    let report = report(&spec).await;
    let is = |name: &str, expected: &str| assert_eq!(report[name], expected, "{name}");
    let (eperm, enosys) = (libc::EPERM.to_string(), libc::ENOSYS.to_string());
    is("pid", "1");
    assert_eq!(report["uid_map"].split_whitespace().collect::<Vec<_>>(), ["0", &UID_BASE.to_string(), "65536"]);
    is("hostname", "worker.vm.internal");
    is("root", "bin dev etc proc run sys tmp");
    is("kcore", "0");
    is("write_sysctl", "false");
    is("write_agent_directory", "false");
    is("write_run", "true");
    // Loopback, and whatever devices the kernel puts into every namespace by itself.
    assert_ne!(report["sysfs_net"], "99");
    for refused in ["unshare", "mount", "device", "subvolume", "subvolume_high", "bpf"] {
        is(refused, &eperm);
    }
    for family in ["vsock", "vsock_high", "appletalk", "rds", "can", "tipc", "bluetooth", "alg", "pair_tipc"] {
        is(family, &eperm);
    }
    is("clone3", &enosys);
    #[cfg(target_arch = "x86_64")]
    is("socketcall", &enosys);
    is("io_uring", &enosys);
    assert_eq!(report["unknown_ioctl"], libc::ENOTTY.to_string());
    for allowed in ["ping", "raw", "packet", "unix", "pair_unix", "tcp6", "netlink"] {
        is(allowed, "ok");
    }
    is("port_80", "true");
    is("chown", "true");
    assert!(report["status"].contains("NoNewPrivs:\t0"));
    assert!(report["status"].contains("Seccomp:\t2"));
    // CAP_SYS_ADMIN is bit 21, CAP_SYS_MODULE 16, CAP_NET_ADMIN 12.
    let bounding = report["status"].split("CapBnd:\t").nth(1).unwrap();
    let bounding = u64::from_str_radix(&bounding[..16], 16).unwrap();
    assert_eq!(bounding & (1 << 21 | 1 << 16 | 1 << 12), 1 << 12);
    let home = lab.pool.layout().directory.display().to_string();
    assert!(!report["mountinfo"].contains(&home), "{}", report["mountinfo"]);
    assert_eq!(
        std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(spec.root.join("etc/issue")).unwrap()),
        UID_BASE + 1000
    );
}

#[tokio::test]
async fn what_a_machine_uses_up_is_not_counted_for_the_hosts_root() {
    let lab = Lab::new(PoolPreference::Best).await;
    let spec = lab.spec().await;
    let created = lab.driver.create(&spec).await.unwrap();
    let namespace = std::fs::File::open(format!("/proc/{}/ns/user", created.pid)).unwrap();
    let mut owner = 0u32;
    // `NS_GET_OWNER_UID` (ioctl_nsfs(2)).
    // SAFETY: the descriptor is open, and the request writes one uid.
    let result = unsafe { libc::ioctl(namespace.as_raw_fd(), 0xb704, &raw mut owner) };
    assert_eq!((result, owner), (0, UID_BASE));
    let kept = std::fs::read_to_string(lab.driver.inner.bundle(spec.id).join("config.json")).unwrap();
    assert!(!kept.contains("/proc/self/fd") && !kept.contains(&format!("/proc/{}/", std::process::id())), "{kept}");
}

#[tokio::test]
async fn limits_are_in_the_kernel() {
    let lab = Lab::new(PoolPreference::Best).await;
    let spec = lab.started().await;
    let directories = lab.driver.cgroups(spec.id);
    let value = |names: [&str; 2]| {
        let found = names
            .iter()
            .find_map(|name| directories.iter().find_map(|path| std::fs::read_to_string(path.join(name)).ok()));
        found.unwrap_or_else(|| panic!("{names:?} in {directories:?}")).trim().to_owned()
    };
    assert_eq!(value(["memory.max", "memory.limit_in_bytes"]), (128 << 20).to_string());
    assert_eq!(value(["pids.max", "pids.max"]), bundle::PIDS.to_string());
    let cpu = value(["cpu.max", "cpu.cfs_quota_us"]);
    assert!(cpu == "50000" || cpu == "50000 100000", "{cpu}");
}

#[tokio::test]
async fn an_end_is_reported_and_the_rest_can_be_removed() {
    let lab = Lab::new(PoolPreference::Best).await;
    let mut exits = lab.driver.exits();
    lab.mode("exit");
    let spec = lab.started().await;
    assert_eq!(exits.recv().await, Some(spec.id));
    assert_eq!(lab.driver.observe().await.unwrap(), [(spec.id, DriverState::Dead)].into());
    assert!(matches!(lab.driver.start(spec.id).await, Err(DriverError::Ended { .. })));
    // What is left is no obstacle for the next boot.
    lab.mode("");
    lab.driver.create(&spec).await.unwrap();
    lab.driver.start(spec.id).await.unwrap();
    report(&spec).await;
    lab.driver.remove(spec.id).await.unwrap();
    lab.assert_clean();
}

#[tokio::test]
async fn a_machine_that_does_not_want_to_end_is_ended() {
    let lab = Lab::new(PoolPreference::Best).await;
    lab.mode("ignore");
    let spec = lab.started().await;
    report(&spec).await;
    let start = Instant::now();
    lab.driver.stop(spec.id, Duration::from_millis(300)).await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(300));
    lab.assert_clean();
}

#[tokio::test]
async fn another_daemon_takes_machines_over_and_hears_when_they_end() {
    let lab = Lab::new(PoolPreference::Best).await;
    let (running, created, half) = (lab.started().await, lab.spec().await, lab.spec().await);
    report(&running).await;
    lab.driver.create(&created).await.unwrap();
    lab.driver.create(&half).await.unwrap();
    // As after a crash between the runtime's work and the record of it.
    std::fs::remove_file(lab.driver.inner.bundle(half.id).join("process.json")).unwrap();
    let next = ContainerDriver::new(lab.config.clone()).unwrap();
    let mut exits = next.exits();
    let seen = next.observe().await.unwrap();
    assert!(matches!(seen[&running.id], DriverState::Running { .. }), "{seen:?}");
    assert!(matches!(seen[&created.id], DriverState::Created { .. }), "{seen:?}");
    assert_eq!(seen[&half.id], DriverState::Dead);
    next.create(&half).await.unwrap();
    next.start(half.id).await.unwrap();
    next.start(created.id).await.unwrap();
    report(&created).await;
    next.stop(running.id, Duration::from_secs(10)).await.unwrap();
    assert_eq!(exits.recv().await, Some(running.id));
    next.remove(created.id).await.unwrap();
    next.remove(half.id).await.unwrap();
    lab.assert_clean();
}

#[tokio::test]
async fn machines_of_a_daemon_that_moved_to_another_cgroup_stay_below_the_remembered_one() {
    let lab = Lab::new(PoolPreference::Best).await;
    let CgroupParent::V1 { paths } = &lab.config.cgroup_parent else { return };
    let Some((hierarchy, path)) = paths.iter().find(|(hierarchy, _)| *hierarchy == "freezer") else { return };
    // The remembered place is another one than this process's.
    let name = format!("warren-test-{}", lab.config.installation);
    let elsewhere = format!("{}/{name}", path.trim_end_matches('/'));
    let mut remembered = paths.clone();
    remembered.insert(hierarchy.clone(), elsewhere.clone());
    let directory = Path::new("/sys/fs/cgroup/freezer").join(elsewhere.trim_start_matches('/'));
    std::fs::create_dir(&directory).unwrap();
    let driver = ContainerDriver::new(ContainerConfig {
        cgroup_parent: CgroupParent::V1 { paths: remembered },
        ..lab.config.clone()
    })
    .unwrap();
    let spec = lab.spec().await;
    driver.create(&spec).await.unwrap();
    let made = directory.join(format!("warren-{}-{}", lab.config.installation, spec.id.bare()));
    assert!(made.is_dir());
    driver.remove(spec.id).await.unwrap();
    assert!(!made.exists());
    std::fs::remove_dir(&directory).unwrap();
}

#[tokio::test]
async fn a_runtime_that_is_not_there_is_said_to_be_missing() {
    let lab = Lab::new(PoolPreference::Overlay).await;
    let driver =
        ContainerDriver::new(ContainerConfig { runtime: "no-such-runtime".to_owned(), ..lab.config.clone() }).unwrap();
    assert_eq!(driver.check().await.unwrap_err().code(), Code::RuntimeMissing);
    let spec = lab.spec().await;
    assert_eq!(driver.create(&spec).await.unwrap_err().code(), Code::RuntimeMissing);
    lab.assert_clean();
}

#[tokio::test]
async fn a_machine_that_cannot_be_created_leaves_nothing_and_says_why() {
    let lab = Lab::new(PoolPreference::Best).await;
    let spec = MachineSpec { root: PathBuf::from("/nonexistent"), ..lab.spec().await };
    let error = lab.driver.create(&spec).await.unwrap_err();
    assert_eq!(error.code(), Code::MachineFailed);
    assert!(error.to_string().contains("/nonexistent"), "{error}");
    lab.assert_clean();
}
