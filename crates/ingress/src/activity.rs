//! Whether anything still moves.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

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
}

/// See [`Activity::wait`].
pub(crate) struct Waiting<'a>(&'a Activity);

impl Activity {
    pub fn new(patience: Duration) -> Self {
        let activity = Self { moved: AtomicU64::new(0), patience: AtomicU64::new(0), waiting: AtomicU32::new(0) };
        activity.set_patience(patience);
        activity
    }

    pub fn set_patience(&self, patience: Duration) {
        self.patience.store(u64::try_from(patience.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    pub fn touch(&self) {
        self.moved.fetch_add(1, Relaxed);
    }

    /// While it is held, [`Self::stopped`] does not say so.
    pub fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Relaxed);
        Waiting(self)
    }

    /// Ends when nothing moved for as long as that may be.
    pub async fn stopped(&self) {
        self.rested(|| self.waiting.load(Relaxed) == 0).await;
    }

    /// The same for the one who waits.
    pub async fn unanswered(&self) {
        self.rested(|| true).await;
    }

    async fn rested(&self, counts: impl Fn() -> bool) {
        let (mut before, mut rested) = (self.moved.load(Relaxed), Duration::ZERO);
        loop {
            let patience = Duration::from_millis(self.patience.load(Relaxed));
            if rested >= patience {
                return;
            }
            // How long it may take can change meanwhile.
            let nap = (patience - rested).min(LOOK);
            sleep(nap).await;
            let now = self.moved.load(Relaxed);
            if now == before && counts() { rested += nap } else { (before, rested) = (now, Duration::ZERO) }
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // What follows has its whole time.
        self.0.touch();
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}
