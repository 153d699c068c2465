//! Becoming PID 1: a session of its own, stdio inside the machine, no descriptor of the host.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::fcntl::{OFlag, open};
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::stat::Mode;

/// How many files a command may have open unless it asks for more. Runtimes raise their own limit and hand that on, and
/// programs that close whatever they might have open take long where it is high.
const OPEN_FILES: rlim_t = 65_536;

/// What the agent was given and gives back to every command.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Soft and hard limit of open files.
    pub open_files: Option<(rlim_t, rlim_t)>,
    /// The kernel spares the agent when memory is short; its commands are not to inherit that.
    pub spared_when_memory_is_short: bool,
}

/// Makes this process fit to be dumped and restored with its machine: leader of a session, holding nothing of the
/// host.
pub fn become_init() -> Limits {
    // Fails only when it already leads a session, which is what is wanted.
    let _ = nix::unistd::setsid();
    replace_stdio();
    // SAFETY: nothing in this process owns a descriptor from 3 on yet: no runtime and no thread has been started.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    let _ = std::env::set_current_dir("/");
    let open_files = getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, hard)| (soft.min(OPEN_FILES), hard));
    if let Some((_, hard)) = open_files {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let score = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    Limits { open_files, spared_when_memory_is_short: score.trim_start().starts_with('-') }
}

/// Puts `file` in the place of stdout and stderr.
pub fn redirect_output(file: impl AsFd) {
    let fd = file.as_fd().as_raw_fd();
    for standard in 1..=2 {
        // SAFETY: dup2 replaces a descriptor that Rust never closes by itself; `file` is open for the whole call.
        unsafe { libc::dup2(fd, standard) };
    }
}

fn replace_stdio() {
    // A machine without /dev/null still needs its first three descriptors taken, lest a socket become stdout.
    let null = open("/dev/null", OFlag::O_RDWR, Mode::empty()).or_else(|_| open("/", OFlag::O_PATH, Mode::empty()));
    let Ok(null): Result<OwnedFd, _> = null else { return };
    // SAFETY: as in `redirect_output`.
    unsafe { libc::dup2(null.as_raw_fd(), 0) };
    redirect_output(&null);
    if null.as_raw_fd() <= 2 {
        // It took the place of a standard descriptor that was closed, and stays there.
        std::mem::forget(null);
    }
}
