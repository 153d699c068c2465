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
/// Every path in `directories` has to be the same directory there; otherwise the process stays where it is, and what
/// it mounts lives as long as the namespace that it was started in.
pub fn enter_lasting_namespace(directories: &[&Path]) -> anyhow::Result<()> {
    let own = File::open("/proc/self/ns/mnt").context("cannot open the own mount namespace")?;
    let Ok(lasting) = File::open("/proc/1/ns/mnt") else { return Ok(()) };
    if identity(&own)? == identity(&lasting)? {
        return Ok(());
    }
    let here: Vec<_> = directories.iter().map(|path| path.metadata().ok().map(|m| (m.dev(), m.ino()))).collect();
    setns(&lasting, CloneFlags::CLONE_NEWNS).context("cannot enter the mount namespace of PID 1")?;
    let there: Vec<_> = directories.iter().map(|path| path.metadata().ok().map(|m| (m.dev(), m.ino()))).collect();
    if here != there {
        setns(&own, CloneFlags::CLONE_NEWNS).context("cannot return to the own mount namespace")?;
    }
    Ok(())
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
    mount(
        Some(name.as_os_str()),
        path,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("mode=0711"),
    )
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

fn identity(file: &File) -> anyhow::Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}
