//! When something has to happen to a peer by itself (whitepaper §6). Times are milliseconds; 0 is none.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::clock::NEVER;
use crate::peer::Ended;
use crate::transport::{KEEPALIVE, REKEY_TIMEOUT};

/// Attempts at a handshake: 90 seconds' worth.
pub const ATTEMPTS: u32 = 18;

/// The timers of a peer. The threads that pass packets set them, one thread looks at them.
pub struct Life {
    born: u64,
    pub expires: u64,
    idle_limit: u64,
    /// Between keepalives that are sent in any case.
    persistent: u64,
    /// When it gets a sign of life, as it sent data and heard nothing.
    keepalive_at: AtomicU64,
    /// When it counts as gone, as it was sent data and nothing came.
    handshake_at: AtomicU64,
    persistent_at: AtomicU64,
    /// When the next attempt at the handshake that is going on begins.
    pub retry_at: AtomicU64,
    last_data: AtomicU64,
    pub last_packet: AtomicU64,
    pub last_handshake: AtomicU64,
}

/// What has to happen now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Due {
    pub ended: Option<Ended>,
    pub keepalive: bool,
    /// A new handshake.
    pub handshake: bool,
    /// The next attempt at the one that is going on.
    pub retry: bool,
    /// When to look again.
    pub next: u64,
}

impl Life {
    pub fn new(now: u64, expires: u64, idle_limit: u64, persistent: u64) -> Self {
        let none = || AtomicU64::new(0);
        Self {
            born: now,
            expires,
            idle_limit,
            persistent,
            keepalive_at: none(),
            handshake_at: none(),
            persistent_at: AtomicU64::new(if persistent == NEVER { 0 } else { now }),
            retry_at: none(),
            last_data: AtomicU64::new(now),
            last_packet: none(),
            last_handshake: none(),
        }
    }

    /// When data last came; nothing when there was none yet.
    pub fn heard_data(&self) -> Option<u64> {
        let at = self.last_data.load(Relaxed);
        (at != self.born).then_some(at)
    }

    /// When something is due for the first time.
    pub fn first(&self) -> u64 {
        let idle = self.last_data.load(Relaxed).saturating_add(self.idle_limit);
        let persistent = Some(self.persistent_at.load(Relaxed)).filter(|at| *at != 0);
        self.expires.min(idle).min(persistent.unwrap_or(NEVER))
    }

    /// Something authentic was sent.
    pub fn sent(&self, now: u64, data: bool) {
        clear(&self.keepalive_at);
        self.persist(now);
        if data && self.handshake_at.load(Relaxed) == 0 {
            self.handshake_at.store(now + KEEPALIVE + REKEY_TIMEOUT, Relaxed);
        }
    }

    /// Something authentic came.
    pub fn received(&self, now: u64, data: bool) {
        clear(&self.handshake_at);
        self.persist(now);
        self.last_packet.store(now, Relaxed);
        if data {
            self.last_data.store(now, Relaxed);
            if self.keepalive_at.load(Relaxed) == 0 {
                self.keepalive_at.store(now + KEEPALIVE, Relaxed);
            }
        }
    }

    pub fn handshake_done(&self, now: u64) {
        self.last_handshake.store(now, Relaxed);
        clear(&self.retry_at);
        clear(&self.handshake_at);
    }

    /// What has to happen. Asked again, it does not say the same thing.
    pub fn due(&self, now: u64) -> Due {
        let idle = self.last_data.load(Relaxed).saturating_add(self.idle_limit);
        if now >= self.expires || now >= idle {
            let ended = if now >= self.expires { Ended::Expired } else { Ended::Idle };
            return Due { ended: Some(ended), next: NEVER, ..Due::default() };
        }
        let passed = |timer: &AtomicU64| {
            let at = timer.load(Relaxed);
            at != 0 && now >= at && timer.compare_exchange(at, 0, Relaxed, Relaxed).is_ok()
        };
        let mut due = Due {
            keepalive: passed(&self.keepalive_at),
            handshake: passed(&self.handshake_at),
            retry: passed(&self.retry_at),
            ..Due::default()
        };
        if passed(&self.persistent_at) {
            due.keepalive = true;
            self.persist(now);
        }
        let timers = [&self.keepalive_at, &self.handshake_at, &self.retry_at, &self.persistent_at];
        let set = timers.into_iter().map(|timer| timer.load(Relaxed)).filter(|at| *at != 0);
        due.next = set.chain([self.expires, idle]).min().unwrap_or(NEVER);
        due
    }

    fn persist(&self, now: u64) {
        if self.persistent != NEVER {
            self.persistent_at.store(now + self.persistent, Relaxed);
        }
    }
}

fn clear(timer: &AtomicU64) {
    if timer.load(Relaxed) != 0 {
        timer.store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_sent_data_hears_from_us_within_ten_seconds() {
        let life = Life::new(1000, NEVER, NEVER, NEVER);
        life.received(1000, true);
        life.received(5000, true);
        assert_eq!(life.due(10_999), Due { next: 11_000, ..Due::default() });
        assert_eq!(life.due(11_000), Due { keepalive: true, next: NEVER, ..Due::default() });
        life.received(12_000, true);
        life.sent(13_000, false);
        assert!(!life.due(40_000).keepalive, "it heard something already");
        life.received(50_000, false);
        assert_eq!(life.due(90_000).next, NEVER, "a keepalive is not answered");
    }

    #[test]
    fn a_peer_from_which_nothing_comes_gets_a_new_handshake() {
        let life = Life::new(1000, NEVER, NEVER, NEVER);
        life.sent(1000, true);
        life.sent(9000, true);
        assert!(!life.due(15_999).handshake && life.due(16_000).handshake && !life.due(16_001).handshake);
        life.sent(20_000, true);
        life.received(21_000, false);
        assert!(!life.due(90_000).handshake);
    }

    #[test]
    fn a_peer_ends_when_its_time_is_up_or_when_it_sends_no_data() {
        let life = Life::new(1000, 100_000, 30_000, 5000);
        life.received(2000, true);
        life.received(20_000, false);
        assert_eq!(life.due(31_999).ended, None);
        assert_eq!(life.due(32_000).ended, Some(Ended::Idle));
        life.received(99_000, true);
        assert_eq!(life.due(99_999).ended, None);
        assert_eq!(life.due(100_000).ended, Some(Ended::Expired));
    }

    #[test]
    fn a_persistent_keepalive_goes_on() {
        let life = Life::new(1000, NEVER, NEVER, 5000);
        assert!(life.due(1000).keepalive);
        assert_eq!(life.due(1001), Due { next: 6000, ..Due::default() });
        assert!(life.due(6000).keepalive && !life.due(10_999).keepalive && life.due(11_000).keepalive);
    }
}
