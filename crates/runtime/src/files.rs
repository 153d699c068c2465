//! Small pieces of file handling that disks, images and the driver share.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

/// Writes a small file so that a reader, and a crash, sees the old content or the new and nothing between.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut temporary = name.to_os_string();
    temporary.push(".new");
    let temporary = directory.join(temporary);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    File::open(directory)?.sync_all()
}

/// Makes a directory and those above it; those it makes get `mode`.
pub fn make_directories(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// Turns "it is not there" into success.
pub fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A lock on a file, held until it is dropped; by the kernel, so that a crash releases it.
pub type FileLock = Flock<File>;

/// Waits for a lock. Blocks the thread.
pub fn lock(path: &Path, exclusive: bool) -> io::Result<FileLock> {
    let how = if exclusive { FlockArg::LockExclusive } else { FlockArg::LockShared };
    let mut file = open_lock(path)?;
    loop {
        match Flock::lock(file, how) {
            // The file may have been removed, and made anew, while this waited: then the lock excludes nobody.
            Ok(lock) if lock.metadata()?.nlink() == 0 => file = open_lock(path)?,
            Ok(lock) => return Ok(lock),
            Err((returned, nix::errno::Errno::EINTR)) => file = returned,
            Err((_, errno)) => return Err(errno.into()),
        }
    }
}

/// Takes an exclusive lock; `None` when somebody else holds it.
pub fn try_lock(path: &Path) -> io::Result<Option<FileLock>> {
    match Flock::lock(open_lock(path)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EAGAIN)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Whether an error says that a file system has no room left.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Bytes that are still free to root on the file system of `path`, and its size.
pub fn free_and_total(path: &Path) -> io::Result<(u64, u64)> {
    let stat = nix::sys::statvfs::statvfs(path)?;
    let unit = stat.fragment_size();
    Ok((stat.blocks_available() * unit, stat.blocks() * unit))
}

/// Whether `path` is where a file system is mounted.
pub fn is_mount_point(path: &Path) -> io::Result<bool> {
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    mount_root_attribute(&file)
}

/// Runs work that blocks on a thread that may block.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down: nobody waits for an answer any more.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Asks the kernel whether the file is the root of a mount (statx(2), `STATX_ATTR_MOUNT_ROOT`, Linux 5.8).
fn mount_root_attribute(file: &File) -> io::Result<bool> {
    // SAFETY: `statx` is plain old data, for which all zeroes is a value.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, the path is a terminated empty string, and the buffer outlives the call.
    let result =
        unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_BASIC_STATS, &mut stat) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(stat.stx_attributes & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0)
}

/// The bytes that a tree takes on disk, each hard-linked file counted once. Does not follow links or leave the file
/// system.
pub fn tree_size(root: &Path) -> io::Result<u64> {
    let device = std::fs::symlink_metadata(root)?.dev();
    let mut linked = std::collections::HashSet::new();
    let mut total = 0;
    let mut pending = vec![root.to_path_buf()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.dev() != device
                || (metadata.nlink() > 1 && metadata.is_file() && !linked.insert(metadata.ino()))
            {
                continue;
            }
            total += metadata.blocks() * 512;
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_file_is_whole_and_leaves_no_temporary() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        write_atomically(&path, b"one").unwrap();
        write_atomically(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_held_lock_is_not_given_twice() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = lock(&path, true).unwrap();
        assert!(try_lock(&path).unwrap().is_none());
        drop(held);
        assert!(try_lock(&path).unwrap().is_some());
    }

    #[test]
    fn proc_is_a_mount_point_and_a_plain_directory_is_not() {
        let directory = tempfile::tempdir().unwrap();
        assert!(is_mount_point(Path::new("/proc")).unwrap());
        assert!(!is_mount_point(directory.path()).unwrap());
        assert!(!is_mount_point(&directory.path().join("absent")).unwrap());
    }
}
