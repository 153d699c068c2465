//! Durable desired state.
//!
//! A store is a sorted map from keys to values with one revision counter for all of it. [`Store`] is the contract;
//! [`sqlite`] is the backend for one host, and a second one has to pass [`conformance`] unchanged. [`schema`] names
//! the keys and the records behind them; nobody else spells a key. [`session`] is what an operator
//! session has and how it ends, [`domain`] what a domain has.
//!
//! A write that was answered survives the death of the process and the loss of power. A watch replays every change
//! since a revision, in order, and then follows.

use std::time::Duration;

use async_trait::async_trait;

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod domain;
pub mod schema;
pub mod session;
pub mod sqlite;
mod typed;

pub use sqlite::SqliteStore;
pub use typed::{TxnBuilder, Typed, Versioned, decode};

/// Counts committed transactions that changed something; every change carries the revision that made it. The first
/// is 1; a store in which nothing was ever written is at 0.
pub type Revision = u64;

/// Why a store could not answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the disk that holds the store is full")]
    DiskFull,
    #[error("revision {asked} is no longer kept; the oldest is {oldest}")]
    Compacted { asked: Revision, oldest: Revision },
    #[error("lease {0} does not exist or has ended")]
    NoSuchLease(LeaseId),
    #[error("the store was made by a newer Warren (schema {found}, this one knows {known})")]
    TooNew { found: u32, known: u32 },
    #[error("{path} is in use by another process")]
    Locked { path: String },
    #[error("record {key} cannot be read")]
    Corrupt {
        key: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("record {key} is named by another one and is not there")]
    Missing { key: String },
    #[error("the store has shut down")]
    Closed,
    #[error("the store failed while it tried to {action}")]
    Backend {
        action: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A value with its key and the revisions that made and last changed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: Vec<u8>,
    pub created: Revision,
    pub modified: Revision,
}

/// A condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    Absent {
        key: String,
    },
    Exists {
        key: String,
    },
    /// The key exists and was last changed by this revision.
    Unchanged {
        key: String,
        modified: Revision,
    },
    /// Nothing below this prefix exists.
    EmptyPrefix {
        prefix: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Attaches the key to the lease, or to none; what it was attached to before no longer matters.
    Put { key: String, value: Vec<u8>, lease: Option<LeaseId> },
    /// Deleting what is not there is no error and no change.
    Delete { key: String },
}

/// All compares hold and all ops are done, or nothing is.
///
/// Where several ops name one key, the last of them counts. Ops that change nothing (no ops at all, or deletes of
/// what is not there) commit without a revision of their own and answer the newest one. A put of the value that is
/// already there is a change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub ops: Vec<Op>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TxnOutcome {
    Committed(Revision),
    /// Indices into `compares` of those that did not hold.
    Conflict(Vec<usize>),
}

/// Keys that start with `prefix`, in the order of their bytes, after `after` if given, `limit` at most.
///
/// The key that equals the prefix is one of them, and the empty prefix means every key. `after` need not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    pub prefix: String,
    pub after: Option<String>,
    pub limit: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    pub entries: Vec<Entry>,
    /// The revision at which this was true; a watch from the next one misses nothing.
    pub revision: Revision,
    pub more: bool,
}

/// One change that a watch reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub revision: Revision,
    pub key: String,
    /// `None` when the key was deleted or its lease ended.
    pub value: Option<Vec<u8>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId(pub u64);

impl std::fmt::Display for LeaseId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Changes in order. Ends with an error when the watcher fell behind what is kept, or the store closed.
#[async_trait]
pub trait Watch: Send {
    /// All changes of one revision at once, in the order of their keys, never half of them.
    ///
    /// May be dropped before it is ready (`tokio::select!`, a timeout): nothing is lost, the next call goes on.
    async fn next(&mut self) -> Result<Vec<Change>, StoreError>;
}

/// The contract of a backend.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;
    async fn list(&self, range: Range) -> Result<Page, StoreError>;
    /// How many keys start with `prefix`, without reading what is behind them.
    async fn count(&self, prefix: &str) -> Result<usize, StoreError>;
    /// # Errors
    /// [`StoreError::NoSuchLease`] when a put names a lease that does not exist or has ended; nothing is done then.
    /// [`StoreError::DiskFull`] means that nothing was done, too. After any other error, and when the caller goes away
    /// before the answer, the transaction may or may not have been done.
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError>;
    /// Every change below `prefix` with a revision of `from` or later, then whatever comes. `from` may lie in the
    /// future; 0 means 1.
    ///
    /// # Errors
    /// [`StoreError::Compacted`], here or from the first [`Watch::next`], when changes since `from` are gone.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Box<dyn Watch>, StoreError>;
    /// The newest revision.
    async fn revision(&self) -> Result<Revision, StoreError>;
    /// Forgets changes before this revision; values stay. The newest revision is always kept, whatever is asked.
    async fn compact(&self, before: Revision) -> Result<(), StoreError>;
    /// Keys put with the lease are deleted, in one revision, when it ends: `ttl` after the grant or the last
    /// [`Store::keep_alive`]. It outlives a restart with what was left of its time.
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError>;
    /// Starts the lease's time anew.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;
    /// Ends the lease now.
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError>;
}
