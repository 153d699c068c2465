//! The OCI bundle of a machine: `config.json` (opencontainers/runtime-spec, config.md and config-linux.md).

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use serde_json::{Value, json};

use super::cgroup::CgroupParent;
use super::seccomp;
use crate::disk::UID_RANGE;
use crate::driver::{GUEST_COMMAND, GUEST_DIRECTORY, MachineSpec};

/// How many processes and threads a machine may have at once.
pub const PIDS: i64 = 4096;
/// The period over which processor time is counted, in microseconds (the kernel's default).
const PERIOD: u64 = 100_000;
/// How many files a process may have open: what it starts with, and what it may raise that to.
const OPEN_FILES: (rlim_t, rlim_t) = (65_536, 524_288);
/// The kernel's limit for a host name (`__NEW_UTS_LEN`).
const LONGEST_HOSTNAME: usize = 64;
/// When the host runs out of memory, machines go before the daemon does.
const OOM_SCORE: i32 = 200;

/// What root in a machine may do, all of it in the machine's own user namespace: files, identities, processes, and its
/// own network namespace. Not mounts and namespaces (`SYS_ADMIN`).
const CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
];

/// All but the user namespace are made by the runtime, inside that: a network namespace made outside belongs to the
/// host's user namespace, and then the machine may neither mount /sys nor configure its own interfaces.
const NAMESPACES: [&str; 7] = ["pid", "mount", "ipc", "uts", "cgroup", "network", "user"];

const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/btrfs",
];

const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The configuration of a machine whose cgroup has the name `cgroup`. It enters the user namespace at the path `user`;
/// without one, the runtime makes one that belongs to the host's root.
pub fn config(spec: &MachineSpec, cgroup: &str, parent: &CgroupParent, user: Option<&str>) -> Value {
    let range = json!([{ "containerID": 0, "hostID": spec.uid_base, "size": UID_RANGE }]);
    let namespaces = NAMESPACES.map(|kind| match user.filter(|_| kind == "user") {
        Some(path) => json!({ "type": kind, "path": path }),
        None => json!({ "type": kind }),
    });
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": GUEST_COMMAND,
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME=/root",
                "LANG=C.UTF-8",
            ],
            "cwd": "/",
            "capabilities": {
                "bounding": CAPABILITIES,
                "effective": CAPABILITIES,
                "permitted": CAPABILITIES,
                "inheritable": [],
                "ambient": [],
            },
            // sudo and ping have to work, and gain nothing beyond the machine's own range of users.
            "noNewPrivileges": false,
            "oomScoreAdj": OOM_SCORE,
        },
        "root": { "path": spec.root, "readonly": false },
        "hostname": hostname(&spec.hostname),
        "mounts": mounts(spec, parent),
        "linux": {
            "uidMappings": range,
            "gidMappings": range,
            "cgroupsPath": parent.path_for(cgroup),
            "namespaces": namespaces,
            "resources": resources(spec, parent),
            "sysctl": {
                // ping without privilege, and servers of any user on any port.
                "net.ipv4.ping_group_range": "0 65535",
                "net.ipv4.ip_unprivileged_port_start": "0",
            },
            "seccomp": seccomp::profile(),
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    })
}

/// Sets the limits that a machine's processes inherit; for the runtime's process before it executes. The runtime itself
/// could not set them where the daemon lacks CAP_SYS_RESOURCE: the machine belongs to another user (prlimit(2)).
///
/// Two system calls for each limit and nothing else, so that it can run between fork and exec.
pub fn limit_processes() -> nix::Result<()> {
    // A machine's root cannot raise what the host's root has lowered.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES.0.min(most), OPEN_FILES.1.min(most))?;
    let (_, most) = getrlimit(Resource::RLIMIT_CORE)?;
    setrlimit(Resource::RLIMIT_CORE, 0, most)
}

fn resources(spec: &MachineSpec, parent: &CgroupParent) -> Value {
    let memory = spec.limits.memory_mib.saturating_mul(1 << 20);
    let mut limits = json!({ "limit": memory });
    if parent.limits_swap() {
        // The sum of memory and swap: none is left for swap.
        limits["swap"] = json!(memory);
    }
    json!({
        "devices": [{ "allow": false, "access": "rwm" }],
        "memory": limits,
        "cpu": { "quota": u64::from(spec.limits.cpus_milli) * PERIOD / 1000, "period": PERIOD },
        "pids": { "limit": PIDS },
    })
}

fn mounts(spec: &MachineSpec, parent: &CgroupParent) -> Vec<Value> {
    let shared_memory = format!("size={}m", (spec.limits.memory_mib / 2).max(16));
    let run = format!("size={}m", (spec.limits.memory_mib / 4).max(16));
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "noexec", "strictatime", "mode=755", "size=4m"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "nodev", "mode=1777", &shared_memory]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/run", "tmpfs", "tmpfs", &["nosuid", "nodev", "mode=755", &run]),
    ];
    // In version 1 this would be a mount for every hierarchy, for little use.
    if matches!(parent, CgroupParent::V2 { .. }) {
        mounts.push(mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]));
    }
    mounts.push(json!({
        "destination": GUEST_DIRECTORY,
        "type": "bind",
        "source": spec.agent_directory,
        "options": ["bind", "ro", "nosuid", "nodev", "private"],
    }));
    mounts
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": kind, "source": source, "options": options })
}

/// The whole name where the kernel takes it, else its first label, which is never too long.
fn hostname(name: &str) -> &str {
    if name.len() <= LONGEST_HOSTNAME { name } else { name.split('.').next().unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_the_kernel_refuses_is_cut_to_its_first_label() {
        assert_eq!(hostname("a.vm.internal"), "a.vm.internal");
        let label = "x".repeat(63);
        assert_eq!(hostname(&format!("{label}.vm.internal")), label);
    }
}
