//! The mount namespace that Warren works in.
//!
//! `ip netns exec` gives a process a mount namespace of its own, and what is bind-mounted there dies with it. Pinned
//! network namespaces and machines' disks have to outlive the daemon, so it moves to the mount namespace of PID 1,
//! unless its data directory is not the same one there.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::Context as _;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns};

/// Moves the process to the mount namespace of PID 1. To be called while the process has one thread only.
///
/// Every path in `directories` has to be the same directory there; otherwise, or when that namespace cannot be
/// entered, the process stays where it is, and what it mounts lives as long as the namespace that it was started in.
/// Answers whether the process is in a namespace that lasts.
pub fn enter_lasting_namespace(directories: &[&Path]) -> anyhow::Result<bool> {
    let own = File::open("/proc/self/ns/mnt").context("cannot open the own mount namespace")?;
    let Some(wanted) = root_mount("1") else { return Ok(false) };
    if root_mount("self") == Some(wanted) {
        return Ok(true);
    }
    let Some(lasting) = open_namespace_of(wanted) else { return Ok(false) };
    let identities = || directories.iter().map(|path| identity(path).ok()).collect::<Vec<_>>();
    let here = identities();
    setns(&lasting, CloneFlags::CLONE_NEWNS).context("cannot enter the mount namespace of PID 1")?;
    if here == identities() {
        return Ok(true);
    }
    setns(&own, CloneFlags::CLONE_NEWNS).context("cannot return to the own mount namespace")?;
    Ok(false)
}

/// The id of the mount that a process has as its root; it is unique on the host, so it tells namespaces apart even
/// where the namespace itself may not be looked at (proc_pid_mountinfo(5)).
fn root_mount(process: &str) -> Option<u64> {
    let table = std::fs::read_to_string(format!("/proc/{process}/mountinfo")).ok()?;
    let line = table.lines().find(|line| line.split(' ').nth(4) == Some("/"))?;
    line.split(' ').next()?.parse().ok()
}

/// The mount namespace with this root, through whichever process of it lets it be opened: PID 1 often does not.
fn open_namespace_of(root: u64) -> Option<File> {
    let others = std::fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    std::iter::once("1".to_owned())
        .chain(others.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())))
        .filter(|process| root_mount(process) == Some(root))
        .find_map(|process| File::open(format!("/proc/{process}/ns/mnt")).ok())
}

/// Mounts a memory file system for what must not survive a reboot, unless it is there.
///
/// The agent is executed from below it, and many systems mount `/run` itself with `noexec`.
pub fn volatile_directory(path: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
    if is_mounted(path)? {
        return Ok(());
    }
    let name = path.file_name().map_or_else(|| path.into(), |name| name.to_owned());
    mount(Some(name.as_os_str()), path, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0711"))
        .with_context(|| format!("cannot mount a memory file system at {}", path.display()))
}

/// Unmounts and removes it; fine when it is not there.
pub fn remove_volatile_directory(path: &Path) -> anyhow::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    if is_mounted(path)? {
        umount2(path, MntFlags::MNT_DETACH).with_context(|| format!("cannot unmount {}", path.display()))?;
    }
    std::fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))
}

/// A mount point is on another device than the directory that it is in.
fn is_mounted(path: &Path) -> anyhow::Result<bool> {
    let parent = path.parent().context("it has no parent directory")?;
    Ok(path.metadata()?.dev() != parent.metadata()?.dev())
}

fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    let metadata = path.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}
