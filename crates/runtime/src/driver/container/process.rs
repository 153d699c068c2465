//! A machine's first process, held by a descriptor that no other process can come to stand for (pidfd_open(2)).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::driver::GUEST_COMMAND;

/// Which process it is: a pid, and when that started, because pids come round again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    pub pid: i32,
    /// In clock ticks since the host started (proc_pid_stat(5), field 22).
    pub started_at: u64,
}

#[derive(Debug)]
pub struct Process {
    pub record: ProcessRecord,
    descriptor: AsyncFd<OwnedFd>,
    running: AtomicBool,
}

impl Process {
    /// Takes hold of a process. Fails with `NotFound` when it has ended. Needs a tokio runtime.
    pub fn open(pid: i32) -> io::Result<Self> {
        let descriptor = open_descriptor(pid)?;
        // SAFETY: the descriptor is owned, is never replaced, and is closed only after it is no longer registered.
        let descriptor = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?;
        let started_at = start_time(pid)?;
        let process = Self { record: ProcessRecord { pid, started_at }, descriptor, running: AtomicBool::new(false) };
        // The start time was read of this process only if this process is still there.
        if process.has_ended() { Err(io::ErrorKind::NotFound.into()) } else { Ok(process) }
    }

    /// The same for a process that was held before; `NotFound` when its pid is another's now.
    pub fn reopen(record: ProcessRecord) -> io::Result<Self> {
        let process = Self::open(record.pid)?;
        if process.record != record {
            return Err(io::ErrorKind::NotFound.into());
        }
        process.running.store(runs_agent(record.pid), Ordering::Release);
        Ok(process)
    }

    /// Whether it has ended; also when nobody has collected its status yet.
    pub fn has_ended(&self) -> bool {
        let mut poll = libc::pollfd { fd: self.descriptor.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure is passed, and the count says so.
        unsafe { libc::poll(&mut poll, 1, 0) > 0 }
    }

    /// Waits until it has ended, and collects its status if it is a child of this process.
    pub async fn ended(&self) {
        // The descriptor stays readable, so nothing is cleared.
        if let Err(error) = self.descriptor.readable().await {
            tracing::warn!(pid = self.record.pid, %error, "a process can no longer be watched");
            return std::future::pending().await;
        }
        self.collect();
    }

    pub async fn ended_within(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.ended()).await.is_ok()
    }

    fn collect(&self) {
        // SAFETY: the structure is plain old data; the descriptor is open; the kernel answers ECHILD for others' children.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(
                libc::P_PIDFD,
                self.descriptor.as_raw_fd() as libc::id_t,
                &mut info,
                libc::WEXITED | libc::WNOHANG,
            );
        }
    }

    /// Sends a signal; fine when it has ended.
    pub fn signal(&self, signal: libc::c_int) -> io::Result<()> {
        // SAFETY: the descriptor is open, and the information may be null.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.descriptor.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        let error = io::Error::last_os_error();
        if result == 0 || error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) }
    }

    /// Whether the machine's own program has taken the place of the runtime's.
    pub fn is_running(&self) -> bool {
        // The runtime may have started it when the daemon died before it could say so.
        self.running.load(Ordering::Acquire) || {
            let runs = runs_agent(self.record.pid) && !self.has_ended();
            if runs {
                self.running.store(true, Ordering::Release);
            }
            runs
        }
    }

    pub fn mark_running(&self) {
        self.running.store(true, Ordering::Release);
    }

    /// The network namespace it is in.
    pub fn network_namespace(&self) -> io::Result<OwnedFd> {
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", self.record.pid))?;
        if self.has_ended() { Err(io::ErrorKind::NotFound.into()) } else { Ok(namespace.into()) }
    }
}

fn runs_agent(pid: i32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| line.split(|byte| *byte == 0).next() == Some(GUEST_COMMAND[0].as_bytes()))
}

fn open_descriptor(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if result < 0 {
        let error = io::Error::last_os_error();
        let gone = error.raw_os_error() == Some(libc::ESRCH);
        return Err(if gone { io::ErrorKind::NotFound.into() } else { error });
    }
    // SAFETY: the kernel has just handed out this descriptor, and nothing else owns it. Descriptors fit an i32.
    Ok(unsafe { OwnedFd::from_raw_fd(result as RawFd) })
}

fn start_time(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may hold anything but is the last thing in parentheses; the third field follows it.
    let field = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse().ok());
    field.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    // The process is to be collected through its descriptor.
    #[expect(clippy::zombie_processes)]
    async fn an_end_is_noticed_and_collected() {
        let child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let process = Process::open(pid).unwrap();
        assert!(!process.has_ended());
        assert_eq!(Process::reopen(process.record).unwrap().record, process.record);
        process.signal(libc::SIGKILL).unwrap();
        assert!(process.ended_within(Duration::from_secs(30)).await);
        assert!(process.has_ended());
        // It was a child of this process, so nothing of it is left.
        assert!(start_time(pid).is_err());
        process.signal(libc::SIGKILL).unwrap();
    }

    #[tokio::test]
    async fn another_process_with_the_pid_is_not_taken_for_it() {
        let own = i32::try_from(std::process::id()).unwrap();
        let record = ProcessRecord { pid: own, started_at: 1 };
        assert_eq!(Process::reopen(record).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
