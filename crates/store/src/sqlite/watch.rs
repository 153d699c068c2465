//! Watches: the newest commits are in memory for all watchers, the older ones in the table of changes.
//!
//! A watcher owns nothing but its position. It waits for the head to pass that, then takes what follows from the
//! memory that all share, or from the table when it fell behind what is there. So a slow watcher costs nobody
//! anything, and none can lose a revision, see one twice, or see half of one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::watch;

use super::read::{Readers, ReplayLimit, replay};
use crate::{Change, Revision, StoreError, Watch};

/// How many commits a watcher takes out of memory at once.
const TAKE: usize = 256;

/// What one revision changed, in the order of the keys. Never empty.
#[derive(Debug)]
pub(super) struct Commit {
    pub revision: Revision,
    pub changes: Vec<Change>,
}

impl Commit {
    fn bytes(&self) -> usize {
        self.changes.iter().map(|change| change.key.len() + change.value.as_ref().map_or(0, Vec::len)).sum()
    }
}

/// How far the store is, as all readers see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub revision: Revision,
    pub oldest: Revision,
}

/// How much of the history is kept in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct FeedLimit {
    pub commits: usize,
    pub bytes: usize,
}

/// The newest commits, without a gap.
pub(super) struct Feed {
    limit: FeedLimit,
    recent: Mutex<Recent>,
}

#[derive(Default)]
struct Recent {
    commits: VecDeque<Arc<Commit>>,
    bytes: usize,
}

impl Feed {
    pub fn new(limit: FeedLimit) -> Self {
        Self { limit, recent: Mutex::default() }
    }

    pub fn push(&self, commits: Vec<Commit>) {
        let mut recent = self.lock();
        for commit in commits {
            recent.bytes += commit.bytes();
            recent.commits.push_back(Arc::new(commit));
        }
        while recent.commits.len() > self.limit.commits || recent.bytes > self.limit.bytes {
            let Some(oldest) = recent.commits.pop_front() else { break };
            recent.bytes -= oldest.bytes();
        }
    }

    /// The commits from `from` on, as many as one takes at once; `None` when they are not in memory.
    fn since(&self, from: Revision) -> Option<Vec<Arc<Commit>>> {
        let recent = self.lock();
        let first = recent.commits.front()?.revision;
        // Revisions follow each other without a gap, so the distance is the index.
        let skip = usize::try_from(from.checked_sub(first)?).ok()?;
        (skip < recent.commits.len()).then(|| recent.commits.iter().skip(skip).take(TAKE).cloned().collect())
    }

    fn lock(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Watcher {
    prefix: String,
    /// The first revision that is not in `ready` and was not returned yet.
    next: Revision,
    ready: VecDeque<Vec<Change>>,
    head: watch::Receiver<Head>,
    feed: Arc<Feed>,
    readers: Arc<Readers>,
    limit: ReplayLimit,
}

impl Watcher {
    pub fn new(
        prefix: &str,
        from: Revision,
        head: watch::Receiver<Head>,
        feed: Arc<Feed>,
        readers: Arc<Readers>,
        limit: ReplayLimit,
    ) -> Result<Self, StoreError> {
        let next = from.max(1);
        let oldest = head.borrow().oldest;
        if next < oldest {
            return Err(StoreError::Compacted { asked: from, oldest });
        }
        Ok(Self { prefix: prefix.to_owned(), next, ready: VecDeque::new(), head, feed, readers, limit })
    }

    fn below_prefix(&self, commit: &Commit) -> Vec<Change> {
        commit.changes.iter().filter(|change| change.key.starts_with(&self.prefix)).cloned().collect()
    }
}

#[async_trait]
impl Watch for Watcher {
    // Dropping this future loses nothing: nothing is moved on before an await that it depends on.
    async fn next(&mut self) -> Result<Vec<Change>, StoreError> {
        loop {
            if let Some(changes) = self.ready.pop_front() {
                return Ok(changes);
            }
            let newest = self.head.borrow_and_update().revision;
            if newest < self.next {
                self.head.changed().await.map_err(|_| StoreError::Closed)?;
                continue;
            }
            if let Some(commits) = self.feed.since(self.next) {
                for commit in commits {
                    let changes = self.below_prefix(&commit);
                    if !changes.is_empty() {
                        self.ready.push_back(changes);
                    }
                    self.next = commit.revision + 1;
                }
                continue;
            }
            let (prefix, from, limit) = (self.prefix.clone(), self.next, self.limit);
            let replay = self.readers.run(move |connection| replay(connection, &prefix, from, limit)).await?;
            self.ready.extend(replay.commits);
            self.next = replay.next;
        }
    }
}
