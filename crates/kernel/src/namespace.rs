//! Network namespaces: made, pinned under `/run/netns`, entered, removed.
//!
//! A namespace is entered only by a thread that is started for it and ends afterwards. So no thread of anybody else is
//! ever in a wrong namespace, also when the work panics: the thread dies with it, and the panic goes on in the caller.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::fstatfs;

use crate::error::KernelError;
use crate::names;

/// `NSFS_MAGIC` (`linux/magic.h`).
const NSFS: i64 = 0x6e73_6673;
/// The namespace of the calling thread.
const OWN: &str = "/proc/thread-self/ns/net";

/// Runs `work` inside the namespace.
pub(crate) fn enter<T: Send>(namespace: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> Result<T, Errno> {
    std::thread::scope(|scope| {
        let inside = scope.spawn(move || setns(namespace, CloneFlags::CLONE_NEWNET).map(|()| work()));
        inside.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// The namespace of the calling thread.
pub(crate) fn current() -> Result<OwnedFd, KernelError> {
    File::open(OWN).map(OwnedFd::from).map_err(file("open", Path::new(OWN)))
}

/// A new namespace that goes with the descriptor.
pub(crate) fn fresh() -> Result<OwnedFd, KernelError> {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(namespace("make", Path::new("of its own")))?;
            current()
        });
        inside.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// The pinned namespace, or `None` when there is none: also when the file is only what a crash left behind.
pub(crate) fn open(path: &Path) -> Result<Option<OwnedFd>, KernelError> {
    let opened = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(file("open", path))?,
    };
    let kind = fstatfs(&opened).map_err(namespace("look at", path))?.filesystem_type();
    Ok((kind.0 == NSFS).then(|| opened.into()))
}

/// Opens the namespace, making and pinning it if needed; whether it was made.
pub(crate) fn ensure(path: &Path) -> Result<(OwnedFd, bool), KernelError> {
    if let Some(found) = open(path)? {
        return Ok((found, false));
    }
    // One at a time: two that prepare the directory at once would hide each other's pins.
    static MAKING: Mutex<()> = Mutex::new(());
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = open(path)? {
        return Ok((found, false));
    }
    prepare_directory()?;
    let _ = fs::remove_file(path);
    OpenOptions::new().write(true).create_new(true).mode(0o444).open(path).map_err(file("create", path))?;
    let made = std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some(OWN), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        });
        inside.join().unwrap_or_else(|panic| resume_unwind(panic))
    });
    if let Err(errno) = made {
        let _ = fs::remove_file(path);
        return Err(namespace("make", path)(errno));
    }
    let opened = open(path)?.ok_or_else(|| namespace("find", path)(Errno::ENOENT))?;
    Ok((opened, true))
}

/// Unpins the namespace; it goes when its last process and socket go. Fine if absent.
pub(crate) fn remove(path: &Path) -> Result<(), KernelError> {
    // Pinned twice on top of each other, it would stay: unmount until nothing is mounted there.
    loop {
        match umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(errno) => return Err(namespace("unpin", path)(errno)),
        }
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Whether the descriptor is the namespace that is pinned there now.
pub(crate) fn is_pinned(path: &Path, namespace: BorrowedFd<'_>) -> bool {
    let pinned = nix::sys::stat::stat(path).map(|stat| (stat.st_dev, stat.st_ino));
    let held = nix::sys::stat::fstat(namespace).map(|stat| (stat.st_dev, stat.st_ino));
    pinned.is_ok() && pinned == held
}

/// The names in the directory of pinned namespaces.
pub(crate) fn pinned() -> Result<Vec<String>, KernelError> {
    let directory = Path::new(names::NAMESPACES);
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(file("list", directory))?,
    };
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// Writes settings below `/proc/sys/net` of a namespace; those that the kernel does not have are left out.
pub(crate) fn set_sysctls(
    namespace: BorrowedFd<'_>,
    place: &str,
    settings: &[(&str, &str)],
) -> Result<(), KernelError> {
    enter(namespace, || {
        for (name, value) in settings {
            let path = PathBuf::from("/proc/sys/net").join(name);
            match fs::write(&path, value) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other.map_err(file("write", &path))?,
            }
        }
        Ok(())
    })
    .map_err(|source| KernelError::Refused { action: "enter the namespace", place: place.to_owned(), source })?
}

/// The directory as iproute2 leaves it: a shared mount, so that what is pinned there shows in every mount namespace.
fn prepare_directory() -> Result<(), KernelError> {
    let directory = Path::new(names::NAMESPACES);
    fs::DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(file("create", directory))?;
    let share = || mount(None::<&str>, directory, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    match share() {
        Err(Errno::EINVAL) => {
            let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(directory), directory, None::<&str>, bind, None::<&str>)
                .and_then(|()| share())
                .map_err(namespace("share the directory of", directory))
        }
        other => other.map_err(namespace("share the directory of", directory)),
    }
}

pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KernelError {
    let path = path.to_owned();
    move |source| KernelError::File { action, path, source }
}

fn namespace(action: &'static str, path: &Path) -> impl FnOnce(Errno) -> KernelError {
    let path = path.to_owned();
    move |source| KernelError::Namespace { action, path, source }
}
