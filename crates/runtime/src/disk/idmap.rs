//! Mounts that show a tree's owners shifted by a machine's uid range (mount_setattr(2), `MOUNT_ATTR_IDMAP`).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::wait::waitpid;
use nix::unistd::{Pid, pipe2};

/// How many uids a machine has.
pub const RANGE: u32 = 65_536;

/// A user namespace in which root is `uid_base` of the host, and so on for the whole range.
///
/// Its owner is `uid_base` too. Whatever the kernel counts for each user (inotify instances, timers, queued signals and
/// messages) it counts for the owner of the namespace as well (user_namespaces(7), namespaces(7) on
/// `/proc/sys/user`): if that was the host's root, one machine could use up what root and all other machines have.
pub fn user_namespace(uid_base: u32) -> io::Result<OwnedFd> {
    let (ready, said) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let (read, write) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let child =
        fork_into_user_namespace(uid_base, read.as_raw_fd(), [ready.as_raw_fd(), write.as_raw_fd()], said.as_raw_fd())?;
    drop(said);
    let outcome = (|| {
        let mut errno = [0; 4];
        File::from(ready).read_exact(&mut errno)?;
        match i32::from_ne_bytes(errno) {
            0 => {}
            errno => return Err(io::Error::from_raw_os_error(errno)),
        }
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

/// Starts a process that enters a fresh user namespace as `owner`, says into `said` how that went (an errno), and then
/// does nothing until the other end of `read` is closed. It closes `others`, which are the parent's.
fn fork_into_user_namespace(owner: u32, read: RawFd, others: [RawFd; 2], said: RawFd) -> io::Result<Pid> {
    // SAFETY: without CLONE_VM this is a fork; the child below calls nothing but system calls, which is all that the
    // child of a process with several threads may do, and it never returns.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD as libc::c_ulong, 0, 0, 0, 0) };
    if pid == 0 {
        let mut byte = 0u8;
        // SAFETY: all of these are system calls and nothing else (the C library's setresuid would look for other
        // threads); the buffers are on this stack and have the lengths that are passed.
        unsafe {
            for other in others {
                libc::close(other);
            }
            let errno = enter_user_namespace(owner).err().unwrap_or(0).to_ne_bytes();
            libc::write(said, errno.as_ptr().cast(), errno.len());
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

/// Becomes `owner`, with all capabilities, and enters a fresh user namespace. Fails with an errno.
///
/// # Safety
///
/// It changes the identity of the calling thread alone; meant for the child of a fork.
unsafe fn enter_user_namespace(owner: u32) -> Result<(), i32> {
    // `SECBIT_NO_SETUID_FIXUP` (capabilities(7)): hosts that let only root make user namespaces ask for CAP_SYS_ADMIN.
    const KEEP_CAPABILITIES: libc::c_ulong = 1 << 2;
    let unchanged: libc::c_long = -1;
    // SAFETY: none of these touches memory of this process.
    let done = unsafe {
        libc::prctl(libc::PR_SET_SECUREBITS, KEEP_CAPABILITIES, 0, 0, 0) == 0
            && libc::syscall(libc::SYS_setresuid, unchanged, libc::c_long::from(owner), unchanged) == 0
            && libc::unshare(libc::CLONE_NEWUSER) == 0
    };
    if done { Ok(()) } else { Err(nix::errno::Errno::last_raw()) }
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
