//! Fork and exec of a command.
//!
//! The child runs between `fork` and `execve` with only async-signal-safe calls (signal-safety(7)), since helper
//! threads of the agent may hold any lock at that instant: everything it needs is laid out beforehand. What fails in
//! the child is told through a pipe that `execve` closes.

use std::ffi::{CString, c_char, c_int};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::account::Account;
use crate::startup::Limits;

/// Everything that the child needs.
pub struct Plan {
    /// What to try to execute, one after the other, while there is no such file.
    pub candidates: Vec<CString>,
    pub argv: Vec<CString>,
    pub environment: Vec<CString>,
    /// Where it starts. With `or_root` the root directory takes its place.
    pub directory: CString,
    pub or_root: bool,
    pub account: Account,
    /// Stdin, stdout and stderr; the same descriptor three times for a terminal.
    pub stdio: [OwnedFd; 3],
    /// Stdin becomes the controlling terminal.
    pub terminal: bool,
    pub limits: Limits,
}

/// Where it went wrong in the child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    Setup = 1,
    Account = 2,
    Directory = 3,
    Execute = 4,
}

/// A child that has not told yet whether it could execute.
#[derive(Debug)]
pub struct Forked {
    pub pid: Pid,
    /// Ends when the command executes; else carries what [`parse_failure`] reads.
    pub failure: OwnedFd,
}

/// Bytes of a failure on the pipe.
pub const FAILURE: usize = 5;

/// What a child wrote to its pipe before it gave up.
pub fn parse_failure(bytes: [u8; FAILURE]) -> (Stage, Errno) {
    let [stage, errno @ ..] = bytes;
    let stage = match stage {
        2 => Stage::Account,
        3 => Stage::Directory,
        4 => Stage::Execute,
        _ => Stage::Setup,
    };
    (stage, Errno::from_raw(i32::from_ne_bytes(errno)))
}

/// Forks. The child leads a session and a process group of its own.
pub fn fork(plan: &Plan) -> nix::Result<Forked> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let layout = Layout::new(plan, writer.as_raw_fd());
    // A signal that reached the child before its handlers are reset would write to the parent's signal pipe.
    let blocked = Blocked::everything()?;
    // SAFETY: the child only calls `become_command`, which is async-signal-safe and never returns.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: this is the forked child, and `layout` points into `plan`, which it has a copy of.
        unsafe { become_command(&layout) }
    }
    let failed = Errno::last();
    drop(blocked);
    if pid < 0 {
        return Err(failed);
    }
    Ok(Forked { pid: Pid::from_raw(pid), failure: reader })
}

/// Blocks every signal of this thread while it lives.
struct Blocked(nix::sys::signal::SigSet);

impl Blocked {
    fn everything() -> nix::Result<Self> {
        use nix::sys::signal::{SigSet, SigmaskHow};
        SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK).map(Self)
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // Setting a mask that was in force before cannot fail.
        let _ = self.0.thread_set_mask();
    }
}

/// A plan as the raw calls want it.
struct Layout {
    candidates: Vec<*const c_char>,
    argv: Vec<*const c_char>,
    environment: Vec<*const c_char>,
    directory: *const c_char,
    or_root: bool,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    stdio: [RawFd; 3],
    terminal: bool,
    open_files: Option<libc::rlimit>,
    reset_score: bool,
    failure: RawFd,
}

impl Layout {
    fn new(plan: &Plan, failure: RawFd) -> Self {
        let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let terminated = |strings| {
            let mut list = pointers(strings);
            list.push(std::ptr::null());
            list
        };
        Self {
            candidates: pointers(&plan.candidates),
            argv: terminated(&plan.argv),
            environment: terminated(&plan.environment),
            directory: plan.directory.as_ptr(),
            or_root: plan.or_root,
            uid: plan.account.uid,
            gid: plan.account.gid,
            groups: plan.account.groups.clone(),
            stdio: plan.stdio.each_ref().map(|fd| fd.as_raw_fd()),
            terminal: plan.terminal,
            open_files: plan.limits.open_files.map(|(soft, hard)| libc::rlimit { rlim_cur: soft, rlim_max: hard }),
            reset_score: plan.limits.spared_when_memory_is_short,
            failure,
        }
    }
}

/// # Safety
///
/// Only in a forked child, with a layout whose pointers are alive.
unsafe fn become_command(layout: &Layout) -> ! {
    // SAFETY: every call is async-signal-safe; pointers come from a `Layout`; nothing here allocates or locks.
    unsafe {
        let check = |stage: Stage, answer: libc::c_long| {
            if answer < 0 {
                fail(layout.failure, stage);
            }
        };
        libc::setsid();
        reset_signals();
        if layout.terminal {
            check(Stage::Setup, libc::ioctl(layout.stdio[0], libc::TIOCSCTTY, 0).into());
        }
        for (standard, fd) in layout.stdio.iter().enumerate() {
            check(Stage::Setup, libc::dup2(*fd, standard as c_int).into());
        }
        if let Some(limit) = &layout.open_files {
            libc::setrlimit(libc::RLIMIT_NOFILE, limit);
        }
        if layout.reset_score {
            let score = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            libc::write(score, c"0".as_ptr().cast(), 1);
        }
        // The raw calls: the library's own reach for every thread of the process that was forked.
        let (uid, gid) = (layout.uid, layout.gid);
        check(Stage::Account, libc::syscall(libc::SYS_setgroups, layout.groups.len(), layout.groups.as_ptr()));
        check(Stage::Account, libc::syscall(libc::SYS_setresgid, gid, gid, gid));
        check(Stage::Account, libc::syscall(libc::SYS_setresuid, uid, uid, uid));
        if libc::chdir(layout.directory) < 0 {
            let to_root = if layout.or_root { libc::chdir(c"/".as_ptr()) } else { -1 };
            check(Stage::Directory, to_root.into());
        }
        let mut denied = false;
        for candidate in &layout.candidates {
            libc::execve(*candidate, layout.argv.as_ptr(), layout.environment.as_ptr());
            match *libc::__errno_location() {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => denied = true,
                _ => fail(layout.failure, Stage::Execute),
            }
        }
        // As execvp(3): a file that may not be executed counts more than one that is not there.
        *libc::__errno_location() = if denied { libc::EACCES } else { libc::ENOENT };
        fail(layout.failure, Stage::Execute)
    }
}

/// # Safety
///
/// Only in a forked child.
unsafe fn reset_signals() {
    // The kernel's `struct sigaction`: handler, flags, restorer and one mask of 64 bits. All zero is SIG_DFL.
    const DEFAULT: [u64; 4] = [0; 4];
    // SAFETY: the buffer is as large as the kernel's structure; the calls are async-signal-safe.
    unsafe {
        for signal in 1..=64 {
            // The raw call: the C library keeps 32 and 33 to itself, and who started the agent may have ignored them.
            libc::syscall(libc::SYS_rt_sigaction, signal, DEFAULT.as_ptr(), std::ptr::null_mut::<u64>(), 8);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// # Safety
///
/// Only in a forked child.
unsafe fn fail(pipe: RawFd, stage: Stage) -> ! {
    // SAFETY: write and _exit are async-signal-safe; the buffer lives on the stack.
    unsafe {
        let [a, b, c, d] = (*libc::__errno_location()).to_ne_bytes();
        let bytes = [stage as u8, a, b, c, d];
        libc::write(pipe, bytes.as_ptr().cast(), FAILURE);
        libc::_exit(127)
    }
}
