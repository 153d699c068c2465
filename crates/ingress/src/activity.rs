//! Whether anything still moves.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::sleep;

/// How often it is looked at, at least.
const LOOK: Duration = Duration::from_secs(2);

/// What moves on a connection of HTTP/1.1, on a stream of HTTP/2, or on a WebSocket.
#[derive(Debug)]
pub(crate) struct Activity {
    moved: AtomicU64,
    /// How long nothing may move, in milliseconds.
    patience: AtomicU64,
    /// Answers that somebody else waits for, and gives up in time.
    waiting: AtomicU32,
    late: AtomicBool,
}

/// How long nothing has moved, as one who looks now and then sees it.
#[derive(Debug, Default)]
pub(crate) struct Rest {
    before: Option<u64>,
    rested: Duration,
}

/// What a look shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Something moved, or it is too early to tell.
    GoesOn,
    /// An answer that is waited for did not come in time; see [`Waiting::is_late`].
    Late,
    Stopped,
}

/// See [`Activity::wait`].
pub(crate) struct Waiting<'a>(&'a Activity);

impl Activity {
    pub fn new(patience: Duration) -> Self {
        let activity = Self {
            moved: AtomicU64::new(0),
            patience: AtomicU64::new(0),
            waiting: AtomicU32::new(0),
            late: AtomicBool::new(false),
        };
        activity.set_patience(patience);
        activity
    }

    pub fn set_patience(&self, patience: Duration) {
        self.patience.store(u64::try_from(patience.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    pub fn touch(&self) {
        self.moved.fetch_add(1, Relaxed);
    }

    /// While it is held, it is the answer that is late, and nothing that stopped. Who looks has to wake the one who waits.
    pub fn wait(&self) -> Waiting<'_> {
        self.late.store(false, Relaxed);
        self.waiting.fetch_add(1, Relaxed);
        Waiting(self)
    }

    /// Looks again, so long after the last look. The first one only remembers.
    pub fn look(&self, rest: &mut Rest, passed: Duration) -> Verdict {
        self.judge(self.moved.load(Relaxed), rest, passed)
    }

    /// `now`: what was seen a moment ago.
    fn judge(&self, now: u64, rest: &mut Rest, passed: Duration) -> Verdict {
        if rest.before.replace(now) != Some(now) {
            rest.rested = Duration::ZERO;
            return Verdict::GoesOn;
        }
        rest.rested += passed;
        if rest.rested < self.patience() {
            Verdict::GoesOn
        } else if self.waiting.load(Acquire) == 0 {
            // What was waited for may have come in between.
            if self.moved.load(Relaxed) == now { Verdict::Stopped } else { Verdict::GoesOn }
        } else {
            self.late.store(true, Relaxed);
            Verdict::Late
        }
    }

    /// Ends when nothing moved for as long as that may be. Belongs into the task that waits for answers.
    pub async fn stopped(&self) {
        let mut rest = Rest::default();
        self.look(&mut rest, Duration::ZERO);
        loop {
            // How long it may take can change meanwhile.
            let nap = self.patience().saturating_sub(rest.rested).min(LOOK);
            sleep(nap).await;
            match self.look(&mut rest, nap) {
                Verdict::GoesOn => {}
                Verdict::Late => {
                    rest = Rest::default();
                    yield_now().await;
                }
                Verdict::Stopped => return,
            }
        }
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(self.patience.load(Relaxed))
    }
}

impl Waiting<'_> {
    /// Whether what is waited for did not come in time.
    pub fn is_late(&self) -> bool {
        self.0.late.load(Relaxed)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // What follows has its whole time.
        self.0.touch();
        self.0.waiting.fetch_sub(1, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_comes_while_it_is_looked_is_nothing_that_stopped() {
        let patience = Duration::from_secs(1);
        let activity = Activity::new(patience);
        let waiting = activity.wait();
        let mut rest = Rest::default();
        assert_eq!(activity.look(&mut rest, Duration::ZERO), Verdict::GoesOn);
        let seen = activity.moved.load(Relaxed);
        // After what moved was read, and before it is read whether anything is waited for.
        drop(waiting);
        assert_eq!(activity.judge(seen, &mut rest, patience), Verdict::GoesOn);
        // From then on it has its whole time.
        assert_eq!(activity.look(&mut rest, patience), Verdict::GoesOn);
        assert_eq!(activity.look(&mut rest, patience / 2), Verdict::GoesOn);
        assert_eq!(activity.look(&mut rest, patience / 2), Verdict::Stopped);
    }
}
