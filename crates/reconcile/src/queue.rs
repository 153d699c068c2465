//! Which networks and machines are to be looked at.
//!
//! An item that is pushed while it is being worked on is worked on once more afterwards, so nothing is missed and no
//! two workers meet at one item. A failed item returns by itself, later each time.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use warren_model::{MachineId, NetworkId};

/// The first pause after a failure; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Item {
    Network(NetworkId),
    Machine(MachineId),
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(id) => id.fmt(f),
            Self::Machine(id) => id.fmt(f),
        }
    }
}

/// An item that one worker has; hand it back with [`Queue::done`] or [`Queue::failed`].
#[derive(Debug)]
#[must_use]
pub struct Claimed {
    pub item: Item,
}

#[derive(Debug, Clone, Default)]
pub struct Queue {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    pushed: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Item>,
    queued: HashSet<Item>,
    running: HashSet<Item>,
    again: HashSet<Item>,
    failures: HashMap<Item, u32>,
}

impl Queue {
    pub fn push(&self, item: Item) {
        let mut state = self.lock();
        if state.running.contains(&item) {
            state.again.insert(item);
        } else if state.queued.insert(item) {
            state.waiting.push_back(item);
            drop(state);
            self.shared.pushed.notify_one();
        }
    }

    /// Waits for an item and claims it.
    pub async fn next(&self) -> Claimed {
        loop {
            let pushed = self.shared.pushed.notified();
            if let Some(item) = self.claim() {
                return Claimed { item };
            }
            pushed.await;
        }
    }

    pub fn done(&self, claimed: Claimed) {
        self.lock().failures.remove(&claimed.item);
        self.release(claimed.item);
    }

    /// Releases the item and pushes it again after a pause. Answers how often in a row it has failed.
    pub fn failed(&self, claimed: Claimed) -> u32 {
        let item = claimed.item;
        let failures = {
            let mut state = self.lock();
            let count = state.failures.entry(item).or_insert(0);
            *count += 1;
            *count
        };
        self.release(item);
        let queue = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(pause_after(failures)).await;
            queue.retry(item, failures);
        });
        failures
    }

    /// Pushes the item when the pause is over.
    pub fn push_later(&self, item: Item, pause: Duration) {
        let queue = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            queue.push(item);
        });
    }

    /// Pushes the item if that failure was its last one. Else a later attempt decides: an item that is also pushed by
    /// others while it fails would gather a series of retries for each push.
    fn retry(&self, item: Item, failures: u32) {
        if self.lock().failures.get(&item) == Some(&failures) {
            self.push(item);
        }
    }

    fn claim(&self) -> Option<Item> {
        let mut state = self.lock();
        let item = state.waiting.pop_front()?;
        state.queued.remove(&item);
        state.running.insert(item);
        let more = !state.waiting.is_empty();
        drop(state);
        if more {
            self.shared.pushed.notify_one();
        }
        Some(item)
    }

    fn release(&self, item: Item) {
        let again = {
            let mut state = self.lock();
            state.running.remove(&item);
            state.again.remove(&item)
        };
        if again {
            self.push(item);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // The state is whole between any two statements, so a panic elsewhere does not spoil it.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pause_after(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(8)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(n: u64) -> Item {
        Item::Machine(MachineId::from_ulid(ulid::Ulid::from_parts(n, 0)))
    }

    #[tokio::test]
    async fn an_item_pushed_twice_is_worked_on_once() {
        let queue = Queue::default();
        queue.push(item(1));
        queue.push(item(1));
        queue.push(item(2));
        let first = queue.next().await;
        let second = queue.next().await;
        assert_eq!((first.item, second.item), (item(1), item(2)));
        assert!(queue.claim().is_none());
    }

    #[tokio::test]
    async fn an_item_pushed_while_it_is_worked_on_comes_again() {
        let queue = Queue::default();
        queue.push(item(1));
        let first = queue.next().await;
        queue.push(item(1));
        assert!(queue.claim().is_none(), "two workers must not meet at one item");
        queue.done(first);
        assert_eq!(queue.next().await.item, item(1));
    }

    #[tokio::test]
    async fn a_failed_item_returns_by_itself() {
        let queue = Queue::default();
        queue.push(item(1));
        let claimed = queue.next().await;
        queue.failed(claimed);
        assert!(queue.claim().is_none(), "it rests first");
        let again = tokio::time::timeout(Duration::from_secs(10), queue.next()).await.unwrap();
        assert_eq!(again.item, item(1));
    }

    #[tokio::test]
    async fn only_the_last_failure_of_an_item_brings_it_back() {
        let queue = Queue::default();
        for _ in 0..2 {
            queue.push(item(1));
            let claimed = queue.next().await;
            queue.failed(claimed);
        }
        queue.retry(item(1), 1);
        assert!(queue.claim().is_none(), "it failed again since");
        queue.retry(item(1), 2);
        assert_eq!(queue.claim(), Some(item(1)));
    }

    #[test]
    fn pauses_grow_up_to_a_minute() {
        let pauses: Vec<u64> = (1..=10).map(|failures| pause_after(failures).as_millis() as u64).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000, 60_000]);
    }

    #[tokio::test]
    async fn every_waiting_worker_gets_an_item() {
        let queue = Queue::default();
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.next().await.item })
            })
            .collect();
        tokio::task::yield_now().await;
        for n in 0..4 {
            queue.push(item(n));
        }
        for worker in workers {
            tokio::time::timeout(Duration::from_secs(5), worker).await.unwrap().unwrap();
        }
    }
}
