//! A transaction of SQLite while it is being filled with the work of several callers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, params};

use super::error::failed;
use super::fail;
use super::read::{Ledger, to_sql};
use super::watch::Commit;
use crate::{Change, LeaseId, Revision, StoreError};

/// What has to happen to the clocks of leases once the transaction is committed.
#[derive(Debug, Clone, Copy)]
pub(super) enum LeaseEvent {
    /// It lasts this long from now.
    Started(LeaseId, Duration),
    Ended(LeaseId),
}

/// What the open transaction did so far. Nobody but it can see that before the commit.
pub(super) struct Draft<'c> {
    pub connection: &'c Connection,
    pub ledger: Ledger,
    pub commits: Vec<Commit>,
    pub leases: Vec<LeaseEvent>,
}

/// How much of a draft there was at some time.
pub(super) struct Mark {
    ledger: Ledger,
    commits: usize,
    leases: usize,
}

impl<'c> Draft<'c> {
    pub fn new(connection: &'c Connection, ledger: Ledger) -> Self {
        Self { connection, ledger, commits: Vec::new(), leases: Vec::new() }
    }

    pub fn mark(&self) -> Mark {
        Mark { ledger: self.ledger, commits: self.commits.len(), leases: self.leases.len() }
    }

    /// Forgets what was noted since the mark; the caller rolls the tables back.
    pub fn back_to(&mut self, mark: Mark) {
        self.ledger = mark.ledger;
        self.commits.truncate(mark.commits);
        self.leases.truncate(mark.leases);
    }

    /// The revision that the changes of the current caller get.
    pub fn next_revision(&self) -> Revision {
        self.ledger.revision + 1
    }

    /// Gives the changes, which are in the order of their keys, the next revision, and writes them into the history.
    /// Without any, nothing happens. Returns the newest revision.
    pub fn record(&mut self, changes: Vec<Change>) -> Result<Revision, StoreError> {
        if changes.is_empty() {
            return Ok(self.ledger.revision);
        }
        let write = || {
            let mut insert =
                self.connection.prepare_cached("INSERT INTO change (revision, key, value) VALUES (?1, ?2, ?3)")?;
            for change in &changes {
                insert.execute(params![to_sql(change.revision), change.key, change.value])?;
                fail::point("change-recorded");
            }
            Ok(())
        };
        write().map_err(failed("record a change"))?;
        let revision = self.next_revision();
        self.ledger.revision = revision;
        self.ledger.changes += changes.len() as u64;
        self.commits.push(Commit { revision, changes });
        Ok(revision)
    }

    /// Writes the ledger, the last thing before the commit.
    pub fn close(&self) -> Result<(), StoreError> {
        let write = || {
            self.connection
                .prepare_cached("UPDATE ledger SET revision = ?1, oldest = ?2, changes = ?3")?
                .execute(params![to_sql(self.ledger.revision), to_sql(self.ledger.oldest), to_sql(self.ledger.changes)])
        };
        write().map_err(failed("write the ledger"))?;
        fail::point("ledger-written");
        Ok(())
    }
}

/// Milliseconds of Unix time. Leases use it to find out how long the process was away, and for nothing else.
pub(super) fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
