//! Every child's end, and the machine's own.
//!
//! PID 1 inherits every orphan, so one loop reaps whatever ended and tells those who wait for one of the commands.
//! Forking and reaping happen on the same thread, so a command's entry is there before its end can be seen.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, oneshot};

use crate::procfs;

/// How often the list of PID 1's children is read at most, where one of them ends each time: a machine that starts and
/// ends processes without pause must not keep its agent.
const MOST_READS: usize = 32;

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Status(i32),
    Signal(i32),
}

/// Knows every command under way and every orphan that was looked at.
#[derive(Debug, Clone)]
pub struct Reaper {
    state: Arc<Mutex<State>>,
    reaped: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    /// Commands under way by the pid of their first process, which leads its session.
    commands: HashMap<i32, Command>,
    /// Orphans by pid, with the command that left them where that is known.
    orphans: HashMap<i32, Option<u64>>,
}

#[derive(Debug)]
struct Command {
    serial: u64,
    end: oneshot::Sender<End>,
}

impl Reaper {
    pub fn start() -> io::Result<Self> {
        let mut child_ended = signal(SignalKind::child())?;
        let reaper = Self { state: Arc::default(), reaped: Arc::default() };
        let reaping = reaper.clone();
        tokio::spawn(async move {
            loop {
                reaping.reap();
                if child_ended.recv().await.is_none() {
                    return;
                }
            }
        });
        Ok(reaper)
    }

    /// Enters a command that was just forked; must not be separated from the fork by an await. `serial` is what its
    /// [`EXEC_MARKER`](warren_guest::protocol::EXEC_MARKER) says.
    pub fn enter(&self, pid: Pid, serial: u64) -> oneshot::Receiver<End> {
        let (end, receiver) = oneshot::channel();
        self.lock().commands.insert(pid.as_raw(), Command { serial, end });
        receiver
    }

    /// Sends a signal to a command's process group. Does nothing once its first process was reaped, since then the
    /// number may be another's.
    pub fn signal_group(&self, pid: Pid, signal: Signal) {
        let state = self.lock();
        if state.commands.contains_key(&pid.as_raw()) {
            // The group may have ended in this instant; that is no failure.
            let _ = nix::sys::signal::killpg(pid, signal);
        }
    }

    /// The processes that a command, which has ended, left behind: its orphans that are alive. Costs one read where
    /// there is none.
    ///
    /// When a process ends, the kernel gives its children to PID 1 before it tells PID 1 of the end. So whatever lives
    /// on of the command is now below one of PID 1's own children. The list of those is read process by process: where
    /// one of them ended meanwhile, its own children can be missing, and the list is read again.
    pub fn left_behind(&self, pid: Pid, serial: u64) -> Vec<i32> {
        let mut ended = HashSet::new();
        for _ in 0..MOST_READS {
            let mut alive = Vec::new();
            let mut ended_meanwhile = false;
            let children = procfs::children(1);
            let mut state = self.lock();
            for child in children {
                if !procfs::is_alive(child) {
                    ended_meanwhile |= ended.insert(child);
                } else if state.belongs_to(child, pid.as_raw(), serial) {
                    alive.push(child);
                }
            }
            if !alive.is_empty() || !ended_meanwhile {
                return alive;
            }
        }
        Vec::new()
    }

    /// Ends every process of the machine: SIGTERM, and SIGKILL for what is left after `grace`.
    pub async fn end_everything(&self, grace: Duration) {
        // As PID 1 of its namespace, -1 reaches every process of the machine and nothing else.
        let everyone = Pid::from_raw(-1);
        let _ = kill(everyone, Signal::SIGTERM);
        let _ = kill(everyone, Signal::SIGCONT);
        if tokio::time::timeout(grace, self.nobody_left()).await.is_err() {
            let _ = kill(everyone, Signal::SIGKILL);
            let _ = tokio::time::timeout(Duration::from_secs(2), self.nobody_left()).await;
        }
    }

    async fn nobody_left(&self) {
        loop {
            let reaped = self.reaped.notified();
            if !has_children() {
                return;
            }
            reaped.await;
        }
    }

    fn reap(&self) {
        loop {
            let mut status = 0;
            // SAFETY: waitpid only writes to `status`.
            let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
            if pid <= 0 {
                break;
            }
            let end = match libc::WIFSIGNALED(status) {
                true => End::Signal(libc::WTERMSIG(status)),
                false => End::Status(libc::WEXITSTATUS(status)),
            };
            let mut state = self.lock();
            state.orphans.remove(&pid);
            if let Some(command) = state.commands.remove(&pid) {
                // Nobody waits for a command whose session was torn down.
                let _ = command.end.send(end);
            }
        }
        self.reaped.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No holder of this lock can leave it half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether a child of PID 1 is an orphan of the command that has just ended.
    fn belongs_to(&mut self, child: i32, ended: i32, serial: u64) -> bool {
        if self.commands.contains_key(&child) {
            return false;
        }
        if !self.orphans.contains_key(&child) {
            let owner = self.owner_of(child, ended, serial);
            self.orphans.insert(child, owner);
        }
        self.orphans.get(&child) == Some(&Some(serial))
    }

    /// Which command an orphan belongs to: the one whose session it is in; else the one whose mark it carries. Where
    /// the mark was wiped, it belongs to the command that has just ended, if no other is under way.
    fn owner_of(&self, orphan: i32, ended: i32, serial: u64) -> Option<u64> {
        let session = procfs::session(orphan);
        if session == Some(ended) {
            return Some(serial);
        }
        if let Some(command) = session.and_then(|session| self.commands.get(&session)) {
            return Some(command.serial);
        }
        procfs::exec_marker(orphan).or(self.commands.is_empty().then_some(serial))
    }
}

fn has_children() -> bool {
    let flags = libc::WNOHANG | libc::WNOWAIT | libc::WEXITED;
    // SAFETY: an all-zero siginfo_t is valid, and waitid only writes to it.
    let answer = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        libc::waitid(libc::P_ALL, 0, &mut info, flags)
    };
    answer == 0 || Errno::last() != Errno::ECHILD
}
