//! The store of one host: a file of SQLite.
//!
//! ```text
//!  txn, grant, ...  ── jobs ──>  writer thread ── one commit, one sync for all that wait ──>  file (WAL)
//!                                     │                                                        │
//!                          feed: newest commits, head: newest revision                  connections that read
//!                                     │                                                        │
//!                                  watchers  <── what is no longer in the feed ──────────  get, list
//! ```
//!
//! The writer syncs before it answers (`synchronous=FULL`), and publishes before it answers, so a read or a watch that
//! begins after an answer sees what was answered. A second process gets [`StoreError::Locked`].

mod command;
mod draft;
mod error;
mod fail;
mod file;
mod lease;
mod migration;
mod read;
#[cfg(test)]
mod tests;
mod watch;
mod writer;

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch as latest;

use self::command::{Command, Compact, HistoryLimit};
use self::error::file_failed;
use self::lease::{End, Grant, KeepAlive};
use self::read::{Readers, ReplayLimit};
use self::watch::{Feed, FeedLimit, Head, Watcher};
use self::writer::{Asked, Job, Writer};
use crate::{Entry, LeaseId, Page, Range, Revision, Store, StoreError, Txn, TxnOutcome, Watch};

/// A watch can go back over at least this many of the newest changes. Older ones are forgotten without being asked.
pub const KEPT_CHANGES: u64 = 100_000;

/// The store of one host, in a file. Dropping it waits for the writes that were asked for and gives up the file; its
/// watches end with [`StoreError::Closed`].
pub struct SqliteStore {
    /// `None` only while it is dropped.
    jobs: Option<mpsc::Sender<Box<dyn Job>>>,
    writer: Option<JoinHandle<()>>,
    readers: Arc<Readers>,
    feed: Arc<Feed>,
    head: latest::Receiver<Head>,
    limits: Limits,
}

/// How much is kept where, and how much is done at once.
#[derive(Debug, Clone, Copy)]
struct Limits {
    history: HistoryLimit,
    feed: FeedLimit,
    replay: ReplayLimit,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            history: HistoryLimit { kept: KEPT_CHANGES, slack: 1000, step: 500 },
            feed: FeedLimit { commits: 4096, bytes: 8 << 20 },
            replay: ReplayLimit { changes: 1000, bytes: 4 << 20 },
        }
    }
}

impl SqliteStore {
    /// Opens the store in the file `path`, which is made, readable for its owner alone, if it does not exist; its
    /// directory has to. Blocks for some milliseconds, and for seconds while somebody else holds the file. Next to it there will be files with `-wal`, `-shm` and `.lock`
    /// after its name. The lock is inherited over fork, not over exec: a child that never calls exec has to close it.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process, or another store of this one, has it open;
    /// [`StoreError::TooNew`] when a newer Warren made it; [`StoreError::DiskFull`]; [`StoreError::Backend`] for
    /// whatever else the file system or SQLite refuses.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, Limits::default())
    }

    fn open_with(path: &Path, limits: Limits) -> Result<Self, StoreError> {
        let claim = file::claim(path)?;
        let path = claim.path.clone();
        let connection = file::open_writer(&path)?;
        let readers = Arc::new(Readers::open(path)?);
        let feed = Arc::new(Feed::new(limits.feed));
        let (jobs, queue) = mpsc::channel();
        let (writer, head) = Writer::new(connection, claim, queue, limits.history, Arc::clone(&feed))?;
        let writer = thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run())
            .map_err(file_failed("start the thread that writes"))?;
        Ok(Self { jobs: Some(jobs), writer: Some(writer), readers, feed, head, limits })
    }

    /// Hands a command to the writer. When the caller goes away before the answer, it is done all the same.
    async fn ask<C: Command>(&self, command: C) -> Result<C::Answer, StoreError> {
        let (job, answer) = Asked::new(command);
        let jobs = self.jobs.as_ref().ok_or(StoreError::Closed)?;
        jobs.send(Box::new(job)).map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.readers.close();
        drop(self.jobs.take());
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the thread that writes the store had panicked");
        }
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let key = key.to_owned();
        self.readers.run(move |connection| read::get(connection, &key)).await
    }

    async fn list(&self, range: Range) -> Result<Page, StoreError> {
        self.readers.run(move |connection| read::list(connection, &range)).await
    }

    async fn count(&self, prefix: &str) -> Result<usize, StoreError> {
        let prefix = prefix.to_owned();
        self.readers.run(move |connection| read::count(connection, &prefix)).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        self.ask(txn).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Box<dyn Watch>, StoreError> {
        let (feed, readers) = (Arc::clone(&self.feed), Arc::clone(&self.readers));
        let watcher = Watcher::new(prefix, from, self.head.clone(), feed, readers, self.limits.replay)?;
        Ok(Box::new(watcher))
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        Ok(self.head.borrow().revision)
    }

    async fn compact(&self, before: Revision) -> Result<(), StoreError> {
        self.ask(Compact { before }).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.ask(Grant { ttl }).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(KeepAlive { lease }).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(End { lease }).await
    }
}
