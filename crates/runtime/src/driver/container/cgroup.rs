//! Where machines' cgroups are, in both versions (kernel: admin-guide/cgroup-v1, cgroup-v2.rst).
//!
//! In version 1 (and in the hybrid layout, where version 2 has no controllers) the runtime nests below its own cgroup
//! in each hierarchy. In version 2 machines live below one directory: the daemon's own, if systemd delegated that to
//! it, else `/warren`. Either is remembered, so that a daemon that is started elsewhere later finds its machines.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::files;

const MOUNT: &str = "/sys/fs/cgroup";
/// Where machines go in version 2 when the daemon's own cgroup is not its to divide.
const UNDELEGATED: &str = "/warren";
/// In version 2 a cgroup with processes cannot have limited children, so the daemon moves out of the way.
const DAEMON_LEAF: &str = "daemon";
/// The controllers that limits need.
pub const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// The cgroups below which machines are made. Found once and remembered by the caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "version", rename_all = "snake_case")]
pub enum CgroupParent {
    /// By hierarchy (`cpu`, `cpu,cpuacct`, `name=systemd`), a path from its root.
    V1 { paths: BTreeMap<String, String> },
    /// A path from the root.
    V2 { path: String },
}

impl CgroupParent {
    /// Where a daemon that is started here makes its machines.
    pub fn detect() -> io::Result<Self> {
        let membership = Membership::of_self()?;
        match membership {
            Membership::V1 { paths } => Ok(Self::V1 { paths }),
            Membership::V2 { path } => {
                // A daemon that was started before has moved into its leaf.
                let own = path.strip_suffix(&format!("/{DAEMON_LEAF}")).unwrap_or(&path).to_owned();
                let delegated = is_delegated(&directory_v2(&own));
                Ok(Self::V2 { path: if delegated { own } else { UNDELEGATED.to_owned() } })
            }
        }
    }

    /// Whether the remembered cgroups are still there, and the host still has the same layout.
    pub fn exists(&self) -> bool {
        match (self, is_v2()) {
            (Self::V1 { paths }, false) => paths.iter().all(|(hierarchy, path)| directory_v1(hierarchy, path).is_dir()),
            // Without delegation it is made when it is needed.
            (Self::V2 { path }, true) => path == UNDELEGATED || directory_v2(path).is_dir(),
            _ => false,
        }
    }

    /// Makes the parent ready for limited children. Only version 2 needs it.
    pub fn prepare(&self) -> io::Result<()> {
        let Self::V2 { path } = self else { return Ok(()) };
        let directory = directory_v2(path);
        files::make_directories(&directory, 0o755)?;
        if path == UNDELEGATED {
            enable(&directory_v2("/"))?;
            return enable(&directory);
        }
        if enable(&directory).is_err() {
            let leaf = directory.join(DAEMON_LEAF);
            files::make_directories(&leaf, 0o755)?;
            std::fs::write(leaf.join("cgroup.procs"), std::process::id().to_string())?;
            enable(&directory)?;
        }
        Ok(())
    }

    /// What the runtime is told (`linux.cgroupsPath`).
    pub fn path_for(&self, name: &str) -> String {
        match self {
            Self::V1 { .. } => name.to_owned(),
            Self::V2 { path } => format!("{}/{name}", path.trim_end_matches('/')),
        }
    }

    /// The files that the runtime has to be written into before it starts, so that it nests below this parent; none
    /// where it does so by itself.
    pub fn entrances(&self) -> io::Result<Vec<PathBuf>> {
        let Self::V1 { paths } = self else { return Ok(Vec::new()) };
        let Membership::V1 { paths: own } = Membership::of_self()? else { return Ok(Vec::new()) };
        let elsewhere = paths.iter().filter(|(hierarchy, path)| own.get(*hierarchy) != Some(path));
        Ok(elsewhere.map(|(hierarchy, path)| directory_v1(hierarchy, path).join("cgroup.procs")).collect())
    }

    /// The machines' cgroups of a name, wherever a hierarchy has one.
    pub fn directories_of(&self, name: &str) -> Vec<PathBuf> {
        let candidates: Vec<PathBuf> = match self {
            Self::V1 { paths } => {
                paths.iter().map(|(hierarchy, path)| directory_v1(hierarchy, path).join(name)).collect()
            }
            Self::V2 { path } => vec![directory_v2(path).join(name)],
        };
        candidates.into_iter().filter(|path| path.is_dir()).collect()
    }

    /// The names of all cgroups below the parent that start with `prefix`.
    pub fn names_with(&self, prefix: &str) -> BTreeSet<String> {
        let parents: Vec<PathBuf> = match self {
            Self::V1 { paths } => paths.iter().map(|(hierarchy, path)| directory_v1(hierarchy, path)).collect(),
            Self::V2 { path } => vec![directory_v2(path)],
        };
        let entries = parents.iter().filter_map(|parent| std::fs::read_dir(parent).ok()).flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with(prefix))
            .collect()
    }

    /// Whether swap can be limited; without that the kernel has no file for it.
    pub fn limits_swap(&self) -> bool {
        match self {
            Self::V1 { paths } => {
                let memory = paths.iter().find(|(hierarchy, _)| hierarchy.split(',').any(|name| name == "memory"));
                memory.is_some_and(|(hierarchy, path)| {
                    directory_v1(hierarchy, path).join("memory.memsw.limit_in_bytes").exists()
                })
            }
            // The runtime leaves it out where the kernel has none.
            Self::V2 { .. } => true,
        }
    }

    /// The controllers for limits that this host lacks.
    pub fn missing_controllers(&self) -> Vec<&'static str> {
        let has = |controller: &str| match self {
            Self::V1 { paths } => paths.keys().any(|hierarchy| hierarchy.split(',').any(|name| name == controller)),
            Self::V2 { .. } => read(&directory_v2("/").join("cgroup.controllers"))
                .is_some_and(|text| text.split_whitespace().any(|name| name == controller)),
        };
        CONTROLLERS.into_iter().filter(|controller| !has(controller)).collect()
    }
}

/// Ends everything in a cgroup and below it, and removes it. Blocks for a moment while processes go.
pub fn destroy(directory: &Path) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        // A frozen process does not die until it is thawed (version 1).
        let _ = std::fs::write(directory.join("freezer.state"), "THAWED");
        if std::fs::write(directory.join("cgroup.kill"), "1").is_err() {
            kill_all(directory)?;
        }
        match remove_directories(directory) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return files::absent_is_fine(other),
        }
    }
}

fn kill_all(directory: &Path) -> io::Result<()> {
    for child in children(directory)? {
        kill_all(&child)?;
    }
    for pid in read(&directory.join("cgroup.procs")).unwrap_or_default().lines().filter_map(|pid| pid.parse().ok()) {
        // Zero and negative numbers stand for groups; the kernel lists a process that this namespace lacks as zero.
        if pid > 0 {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
    Ok(())
}

fn remove_directories(directory: &Path) -> io::Result<()> {
    for child in children(directory)? {
        remove_directories(&child)?;
    }
    std::fs::remove_dir(directory)
}

fn children(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// The cgroups that a process is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Membership {
    V1 { paths: BTreeMap<String, String> },
    V2 { path: String },
}

impl Membership {
    pub fn of_self() -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read_to_string("/proc/self/cgroup")?, is_v2()))
    }

    /// Reads the lines of `/proc/{pid}/cgroup`: `{number}:{controllers}:{path}`.
    fn parse(text: &str, v2: bool) -> Self {
        let mut paths = BTreeMap::new();
        for line in text.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            if let (Some(hierarchy), Some(path)) = (parts.next(), parts.next()) {
                paths.insert(hierarchy.to_owned(), path.to_owned());
            }
        }
        // The line without controllers is version 2's.
        let unified = paths.remove("").unwrap_or_else(|| "/".to_owned());
        if v2 { Self::V2 { path: unified } } else { Self::V1 { paths } }
    }

    /// The directories in which a controller's limits apply to the process: its own and all above.
    pub fn directories(&self, controller: &str) -> Vec<PathBuf> {
        let own = match self {
            Self::V2 { path } => directory_v2(path),
            Self::V1 { paths } => {
                let found = paths.iter().find(|(hierarchy, _)| hierarchy.split(',').any(|name| name == controller));
                let Some((hierarchy, path)) = found else { return Vec::new() };
                directory_v1(hierarchy, path)
            }
        };
        own.ancestors().take_while(|path| *path != Path::new(MOUNT)).map(Path::to_path_buf).collect()
    }
}

/// The content of a small file without white space at its end; `None` when it cannot be read.
pub fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// Whether version 2 holds the controllers: whether it is what is mounted at the usual place.
pub fn is_v2() -> bool {
    nix::sys::statfs::statfs(MOUNT).is_ok_and(|stat| stat.filesystem_type() == nix::sys::statfs::CGROUP2_SUPER_MAGIC)
}

fn directory_v1(hierarchy: &str, path: &str) -> PathBuf {
    let name = hierarchy.strip_prefix("name=").unwrap_or(hierarchy);
    Path::new(MOUNT).join(name).join(path.trim_start_matches('/'))
}

fn directory_v2(path: &str) -> PathBuf {
    Path::new(MOUNT).join(path.trim_start_matches('/'))
}

/// systemd marks what it delegates (systemd: docs/CGROUP_DELEGATION.md).
fn is_delegated(directory: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let Ok(path) = std::ffi::CString::new(directory.as_os_str().as_bytes()) else { return false };
    [c"trusted.delegate", c"user.delegate"].into_iter().any(|name| {
        let mut value = [0u8; 1];
        // SAFETY: both strings are terminated, and the buffer's length is passed with it.
        let length = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        length == 1 && value[0] == b'1'
    })
}

fn enable(directory: &Path) -> io::Result<()> {
    let wanted: Vec<String> = CONTROLLERS.iter().map(|controller| format!("+{controller}")).collect();
    std::fs::write(directory.join("cgroup.subtree_control"), wanted.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_host_is_read_by_hierarchy() {
        let text = "9:name=systemd:/\n4:memory:/a/b\n2:cpu,cpuacct:/\n0::/x\n";
        let membership = Membership::parse(text, false);
        assert_eq!(
            membership.directories("memory"),
            ["/sys/fs/cgroup/memory/a/b", "/sys/fs/cgroup/memory/a", "/sys/fs/cgroup/memory"].map(PathBuf::from)
        );
        assert_eq!(membership.directories("cpu"), [PathBuf::from("/sys/fs/cgroup/cpu,cpuacct")]);
        assert!(membership.directories("pids").is_empty());
    }

    #[test]
    fn version_2_is_read_from_the_line_without_controllers() {
        let membership = Membership::parse("0::/system.slice/warren.service\n", true);
        assert_eq!(membership, Membership::V2 { path: "/system.slice/warren.service".to_owned() });
        assert_eq!(membership.directories("cpu").len(), 2);
    }

    #[test]
    fn a_parent_reads_back_as_written() {
        let parent = CgroupParent::detect().unwrap();
        let text = serde_json::to_string(&parent).unwrap();
        assert_eq!(serde_json::from_str::<CgroupParent>(&text).unwrap(), parent);
        assert!(parent.exists());
        assert!(parent.entrances().unwrap().is_empty());
    }

    #[test]
    fn machines_of_version_2_have_absolute_paths() {
        let parent = CgroupParent::V2 { path: "/system.slice/warren.service".to_owned() };
        assert_eq!(parent.path_for("warren-abcde-x"), "/system.slice/warren.service/warren-abcde-x");
    }
}
