//! Time, in milliseconds since the gateway started.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Never, as a time.
pub const NEVER: u64 = u64::MAX;

/// Everything is timed by this, so that tests can let time pass.
#[derive(Debug)]
pub struct Clock {
    start: Instant,
    skipped: AtomicU64,
}

impl Clock {
    /// So far ahead that "long ago" is a time, and that zero is none.
    const BEGINNING: u64 = 1 << 32;

    pub fn new() -> Self {
        Self { start: Instant::now(), skipped: AtomicU64::new(0) }
    }

    pub fn now(&self) -> u64 {
        Self::BEGINNING + self.start.elapsed().as_millis() as u64 + self.skipped.load(Ordering::Relaxed)
    }

    /// When a time was, by the clock on the wall as it goes now.
    pub fn wall(&self, at: u64) -> SystemTime {
        let ago = Duration::from_millis(self.now().saturating_sub(at));
        SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// When the clock on the wall will say this.
    pub fn until(&self, at: SystemTime) -> u64 {
        let left = at.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO);
        self.now().saturating_add(u64::try_from(left.as_millis()).unwrap_or(NEVER))
    }

    #[cfg(test)]
    pub fn skip(&self, milliseconds: u64) {
        self.skipped.fetch_add(milliseconds, Ordering::Relaxed);
    }
}
