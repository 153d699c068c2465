//! Shares of one resolver, so that no member can starve another.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a source may always ask, in questions per second, and how many of them at once.
const RATE: f64 = 20_000.0;
/// How long after two sources were seen in turn the resolver counts as shared.
const SHARED: Duration = Duration::from_secs(1);
/// How many sources are remembered; a network with more than that forgets the allowance of all at once.
const SOURCES: usize = 4096;

/// Bounds the questions that one source gets answered **while others are asking too**.
///
/// A source alone is never held back, so the bound costs nothing where there is nobody to protect.
#[derive(Debug, Default)]
pub(crate) struct FairShare {
    buckets: HashMap<IpAddr, Bucket>,
    last: Option<IpAddr>,
    shared_until: Option<Instant>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl FairShare {
    /// Whether a question from `source` is to be answered now.
    pub fn admit(&mut self, source: IpAddr, now: Instant) -> bool {
        if self.last.replace(source).is_some_and(|last| last != source) {
            self.shared_until = Some(now + SHARED);
        }
        if self.buckets.len() >= SOURCES && !self.buckets.contains_key(&source) {
            self.buckets.clear();
        }
        let bucket = self.buckets.entry(source).or_insert(Bucket { tokens: RATE, filled: now });
        let elapsed = now.saturating_duration_since(bucket.filled).as_secs_f64();
        bucket.tokens = (bucket.tokens + elapsed * RATE).min(RATE);
        bucket.filled = now;
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return true;
        }
        self.shared_until.is_none_or(|until| now >= until)
    }
}

/// Bounds what is under way at once, for each source and in total.
#[derive(Debug)]
pub(crate) struct Slots {
    held: Mutex<Held>,
    per_source: usize,
    total: usize,
}

#[derive(Debug, Default)]
struct Held {
    by_source: HashMap<IpAddr, usize>,
    total: usize,
}

/// One thing under way; ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Arc<Slots>,
    source: IpAddr,
}

impl Slots {
    pub fn new(per_source: usize, total: usize) -> Arc<Self> {
        Arc::new(Self { held: Mutex::default(), per_source, total })
    }

    /// A slot for this source, unless it or everybody together holds as many as they may.
    pub fn take(self: &Arc<Self>, source: IpAddr) -> Option<Slot> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.total >= self.total || held.by_source.get(&source).is_some_and(|count| *count >= self.per_source) {
            return None;
        }
        held.total += 1;
        *held.by_source.entry(source).or_default() += 1;
        Some(Slot { slots: self.clone(), source })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut held = self.slots.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.total -= 1;
        if let Some(count) = held.by_source.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                held.by_source.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOUD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 1, 10));
    const QUIET: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 1, 11));

    #[test]
    fn a_source_alone_is_never_held_back() {
        let (mut share, now) = (FairShare::default(), Instant::now());
        assert!((0..200_000).all(|_| share.admit(LOUD, now)));
    }

    #[test]
    fn a_loud_source_is_held_back_while_another_asks_and_the_other_is_not() {
        let (mut share, now) = (FairShare::default(), Instant::now());
        let mut admitted = 0;
        for second in 0..100_000u32 {
            let now = now + Duration::from_micros(u64::from(second) * 10);
            admitted += u32::from(share.admit(LOUD, now));
            if second.is_multiple_of(1000) {
                assert!(share.admit(QUIET, now));
            }
        }
        assert!((20_000..=41_000).contains(&admitted), "{admitted} in one second");
        assert!(share.admit(LOUD, now + Duration::from_secs(5)));
    }

    #[test]
    fn slots_are_bounded_for_each_source_and_in_total_and_come_back() {
        let slots = Slots::new(2, 3);
        let first = slots.take(LOUD).unwrap();
        let _second = slots.take(LOUD).unwrap();
        assert!(slots.take(LOUD).is_none());
        let _third = slots.take(QUIET).unwrap();
        assert!(slots.take(QUIET).is_none());
        drop(first);
        assert!(slots.take(QUIET).is_some());
    }
}
