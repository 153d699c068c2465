//! What the resolvers did since the edge started, all networks together.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

use crate::dns::answer::Kind;

/// Counts since the edge started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryCounters {
    /// Messages that came in.
    pub received: u64,
    /// Answered with a record of the network.
    pub answered: u64,
    /// Answered that the name or type does not exist in the network.
    pub negative: u64,
    /// Refused: by policy, with an extended DNS error, or because it came from nobody in the network.
    pub prohibited: u64,
    /// Answered with what a resolver outside said.
    pub forwarded: u64,
    /// Not answered by any resolver outside.
    pub failed: u64,
    /// Not a question that is answered here.
    pub malformed: u64,
    /// Dropped without an answer: more than the source's share while others were asking.
    pub limited: u64,
}

/// The live counters; a task adds what it counted once for each batch of messages.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    received: AtomicU64,
    answered: AtomicU64,
    negative: AtomicU64,
    prohibited: AtomicU64,
    forwarded: AtomicU64,
    failed: AtomicU64,
    malformed: AtomicU64,
    limited: AtomicU64,
}

impl Stats {
    pub fn add(&self, counted: &QueryCounters) {
        let pairs = [
            (&self.received, counted.received),
            (&self.answered, counted.answered),
            (&self.negative, counted.negative),
            (&self.prohibited, counted.prohibited),
            (&self.forwarded, counted.forwarded),
            (&self.failed, counted.failed),
            (&self.malformed, counted.malformed),
            (&self.limited, counted.limited),
        ];
        for (counter, count) in pairs {
            if count > 0 {
                counter.fetch_add(count, Relaxed);
            }
        }
    }

    pub fn read(&self) -> QueryCounters {
        QueryCounters {
            received: self.received.load(Relaxed),
            answered: self.answered.load(Relaxed),
            negative: self.negative.load(Relaxed),
            prohibited: self.prohibited.load(Relaxed),
            forwarded: self.forwarded.load(Relaxed),
            failed: self.failed.load(Relaxed),
            malformed: self.malformed.load(Relaxed),
            limited: self.limited.load(Relaxed),
        }
    }
}

impl QueryCounters {
    pub(crate) fn count(&mut self, kind: Kind) {
        match kind {
            Kind::Answered => self.answered += 1,
            Kind::Negative => self.negative += 1,
            Kind::Prohibited => self.prohibited += 1,
            Kind::Malformed => self.malformed += 1,
        }
    }
}
