//! What this host can give one machine: what the hardware has, and what the daemon's own cgroups leave of it.

use std::path::{Path, PathBuf};

use super::container::cgroup::{self, Membership};

/// Processors, and memory in MiB, that a machine can be given at most.
pub fn host_capacity() -> (f64, u64) {
    let online = std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64);
    let memory = memory_total().unwrap_or(512 << 20);
    let Ok(membership) = Membership::of_self() else { return (online, memory >> 20) };
    let cpus = membership.directories("cpu").iter().filter_map(|path| quota(path)).fold(online, f64::min);
    let memory = membership.directories("memory").iter().filter_map(|path| memory_limit(path)).fold(memory, u64::min);
    (cpus, memory >> 20)
}

/// The processors that a cgroup may use, if it is limited.
fn quota(cgroup: &Path) -> Option<f64> {
    let (quota, period) = match cgroup::read(&cgroup.join("cpu.max")) {
        Some(text) => {
            let (quota, period) = text.split_once(' ')?;
            (quota.parse::<f64>().ok()?, period.parse::<f64>().ok()?)
        }
        None => {
            let number = |name: &str| cgroup::read(&cgroup.join(name))?.parse::<f64>().ok();
            (number("cpu.cfs_quota_us")?, number("cpu.cfs_period_us")?)
        }
    };
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

/// The memory that a cgroup may use, in bytes, if it is limited.
fn memory_limit(cgroup: &Path) -> Option<u64> {
    let files: [PathBuf; 2] = [cgroup.join("memory.max"), cgroup.join("memory.limit_in_bytes")];
    files.iter().find_map(|file| cgroup::read(file)?.parse().ok())
}

/// From `/proc/meminfo`, in bytes.
fn memory_total() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kibibytes| kibibytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_a_processor_and_memory() {
        let (cpus, memory_mib) = host_capacity();
        assert!(cpus > 0.0);
        assert!(memory_mib > 64);
    }
}
