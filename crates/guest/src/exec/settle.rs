//! Waiting for what a command left in the background.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::Pid;
use tokio::time::Instant;

use crate::{Agent, procfs};

/// The longest wait.
const LONGEST: Duration = Duration::from_secs(1);

/// Time between two looks, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(40);

/// Returns when one of the processes that the command left listens on a TCP port, when all of them have ended, or
/// after a second. At once when it left none.
pub async fn settle(agent: &Arc<Agent>, pid: Pid, serial: u64) {
    if agent.reaper.left_behind(pid, serial).is_empty() {
        return;
    }
    let deadline = Instant::now() + LONGEST;
    let mut pause = FIRST_PAUSE;
    loop {
        let looking = Arc::clone(agent);
        let look = agent.blocking(move || look(&looking, pid, serial));
        match tokio::time::timeout_at(deadline, look).await {
            Ok(Ok(Left::Waiting)) => {}
            _ => return,
        }
        if Instant::now() + pause >= deadline {
            tokio::time::sleep_until(deadline).await;
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    Listening,
    Waiting,
}

fn look(agent: &Agent, pid: Pid, serial: u64) -> Left {
    let orphans = agent.reaper.left_behind(pid, serial);
    if orphans.is_empty() {
        return Left::Nothing;
    }
    let listening: HashSet<u64> = procfs::listening_tcp().into_iter().map(|socket| socket.inode).collect();
    if listening.is_empty() {
        return Left::Waiting;
    }
    let holds_one = |pid: i32| procfs::sockets_of(pid).any(|inode| listening.contains(&inode));
    if procfs::descendants(&orphans).into_iter().any(holds_one) { Left::Listening } else { Left::Waiting }
}
