//! A token bucket in one word, without a lock.
//!
//! Kept as the time at which the bucket is full again (the generic cell rate algorithm, ITU-T I.371 Annex A).

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// How fast a bucket fills and how much it holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    /// Nanoseconds for one token.
    interval: u64,
    /// How far ahead of now the bucket may be full again when a token is taken, in nanoseconds.
    tolerance: u64,
}

impl Rate {
    pub fn new(per_second: NonZeroU32, burst: NonZeroU32) -> Self {
        let interval = (1_000_000_000 / u64::from(per_second.get())).max(1);
        Self { interval, tolerance: interval * u64::from(burst.get() - 1) }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Bucket {
    full_at: AtomicU64,
}

impl Bucket {
    /// Takes a token, or says how long it takes until there is one. `now` is in nanoseconds and never goes back.
    pub fn take(&self, rate: Rate, now: u64) -> Result<(), Duration> {
        let mut full_at = self.full_at.load(Relaxed);
        loop {
            let from = full_at.max(now);
            let ahead = from - now;
            if ahead > rate.tolerance {
                return Err(Duration::from_nanos(ahead - rate.tolerance));
            }
            match self.full_at.compare_exchange_weak(full_at, from + rate.interval, Relaxed, Relaxed) {
                Ok(_) => return Ok(()),
                Err(other) => full_at = other,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(per_second: u32, burst: u32) -> Rate {
        Rate::new(NonZeroU32::new(per_second).unwrap(), NonZeroU32::new(burst).unwrap())
    }

    #[test]
    fn a_burst_is_let_through_and_then_the_rate() {
        let (bucket, rate) = (Bucket::default(), rate(10, 3));
        let start = 5_000_000_000;
        let taken = (0..10).filter(|_| bucket.take(rate, start).is_ok()).count();
        assert_eq!(taken, 3);
        assert_eq!(bucket.take(rate, start), Err(Duration::from_millis(100)));
        assert_eq!(bucket.take(rate, start + 100_000_000), Ok(()));
        assert!(bucket.take(rate, start + 100_000_000).is_err());
        // After a rest there is a burst again, and no more than that.
        let taken = (0..10).filter(|_| bucket.take(rate, start + 60_000_000_000).is_ok()).count();
        assert_eq!(taken, 3);
    }

    #[test]
    fn a_rate_of_one_lets_one_through() {
        let (bucket, rate) = (Bucket::default(), rate(1, 1));
        assert_eq!(bucket.take(rate, 1), Ok(()));
        assert!(bucket.take(rate, 2).is_err());
        assert_eq!(bucket.take(rate, 1_000_000_001), Ok(()));
    }
}
