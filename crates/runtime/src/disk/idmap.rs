//! Mounts that show a tree's owners shifted by a machine's uid range (mount_setattr(2), `MOUNT_ATTR_IDMAP`).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::wait::waitpid;
use nix::unistd::{Pid, pipe2};

/// How many uids a machine has.
pub const RANGE: u32 = 65_536;

/// A user namespace in which root is `uid_base` of the host, and so on for the whole range.
pub fn user_namespace(uid_base: u32) -> io::Result<OwnedFd> {
    let (read, write) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let child = fork_into_user_namespace(read.as_raw_fd(), write.as_raw_fd())?;
    let outcome = (|| {
        let mapping = format!("0 {uid_base} {RANGE}");
        std::fs::write(format!("/proc/{child}/uid_map"), &mapping)?;
        std::fs::write(format!("/proc/{child}/gid_map"), &mapping)?;
        File::open(format!("/proc/{child}/ns/user")).map(OwnedFd::from)
    })();
    drop(write);
    let _ = nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL);
    let _ = waitpid(child, None);
    outcome
}

/// Starts a process that owns a fresh user namespace and does nothing until the pipe is closed.
fn fork_into_user_namespace(read: RawFd, write: RawFd) -> io::Result<Pid> {
    let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
    // SAFETY: without CLONE_VM this is a fork; the child below calls nothing but system calls, which is all that the
    // child of a process with several threads may do, and it never returns.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags as libc::c_ulong, 0, 0, 0, 0) };
    if pid == 0 {
        let mut byte = 0u8;
        // SAFETY: close, read and _exit are async-signal-safe; the buffer is one byte on this stack.
        unsafe {
            libc::close(write);
            libc::read(read, (&raw mut byte).cast(), 1);
            libc::_exit(0);
        }
    }
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    // A pid is never above 2^22 (proc_sys_kernel(5), pid_max).
    Ok(Pid::from_raw(pid as i32))
}

/// A copy of the mount at `source` with shifted owners, not yet attached anywhere.
///
/// The copy allows set-user-id programs again, which the pool's own mount forbids.
pub fn shifted_mount(source: &Path, user_namespace: &OwnedFd) -> io::Result<OwnedFd> {
    let path = terminated(source)?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: the path is a terminated string that outlives the call.
    let tree = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let tree = owned(tree)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP | libc::MOUNT_ATTR_NODEV,
        attr_clr: libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC,
        propagation: libc::MS_PRIVATE,
        userns_fd: user_namespace.as_raw_fd() as u64,
    };
    // SAFETY: both descriptors are open; the structure is the kernel's and its size is passed with it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(tree)
}

/// Attaches a mount to a directory.
pub fn attach(mount: &OwnedFd, target: &Path) -> io::Result<()> {
    let path = terminated(target)?;
    // SAFETY: the descriptor is open and both paths are terminated strings that outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    if result != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn terminated(path: &Path) -> io::Result<std::ffi::CString> {
    std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just handed out this descriptor, and nothing else owns it. Descriptors fit an i32.
    Ok(unsafe { OwnedFd::from_raw_fd(result as RawFd) })
}
