//! Reads: a few connections of their own, each read a snapshot of what was committed when it began.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, params};
use tokio::sync::Semaphore;

use super::error::failed;
use super::file;
use crate::{Change, Entry, Page, Range, Revision, StoreError};

/// How many reads run at once; more of them wait for their turn.
const READERS: usize = 4;

/// The connections that read.
pub(super) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
}

impl Readers {
    pub fn open(path: PathBuf) -> Result<Self, StoreError> {
        let idle = (0..READERS).map(|_| file::open_reader(&path)).collect::<Result<_, _>>()?;
        Ok(Self { path, idle: Mutex::new(idle), permits: Arc::new(Semaphore::new(READERS)) })
    }

    /// Runs a read on a thread that may block.
    pub async fn run<T, F>(self: &Arc<Self>, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let readers = Arc::clone(self);
        let task = tokio::task::spawn_blocking(move || {
            let mut connection = readers.take()?;
            let result = read(&mut connection);
            readers.put_back(connection);
            drop(permit);
            result
        });
        task.await.map_err(|error| StoreError::Backend { action: "read", source: error.into() })?
    }

    /// Lets no read begin any more, and closes the connections that are not in use.
    pub fn close(&self) {
        self.permits.close();
        self.lock().clear();
    }

    fn take(&self) -> Result<Connection, StoreError> {
        let idle = self.lock().pop();
        // A connection is lost when a read panics.
        idle.map_or_else(|| file::open_reader(&self.path), Ok)
    }

    fn put_back(&self, connection: Connection) {
        if !self.permits.is_closed() {
            self.lock().push(connection);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn get(connection: &Connection, key: &str) -> Result<Option<Entry>, StoreError> {
    let read = || {
        connection
            .prepare_cached("SELECT key, value, created, modified FROM entry WHERE key = ?1")?
            .query_row([key], entry)
            .optional()
    };
    read().map_err(failed("read a key"))
}

pub(super) fn list(connection: &mut Connection, range: &Range) -> Result<Page, StoreError> {
    let mut read = || {
        let snapshot = connection.transaction()?;
        let revision = ledger(&snapshot)?.revision;
        let (from, sql) = match &range.after {
            Some(after) if *after >= range.prefix => (
                after,
                "SELECT key, value, created, modified FROM entry WHERE key > ?1 AND key < ?2 ORDER BY key LIMIT ?3",
            ),
            _ => (
                &range.prefix,
                "SELECT key, value, created, modified FROM entry WHERE key >= ?1 AND key < ?2 ORDER BY key LIMIT ?3",
            ),
        };
        let one_more = i64::try_from(range.limit.saturating_add(1)).unwrap_or(i64::MAX);
        let mut entries = snapshot
            .prepare_cached(sql)?
            .query_map(params![from, prefix_end(&range.prefix), one_more], entry)?
            .collect::<Result<Vec<_>, _>>()?;
        let more = entries.len() > range.limit;
        entries.truncate(range.limit);
        Ok(Page { entries, revision, more })
    };
    read().map_err(failed("list keys"))
}

pub(super) fn count(connection: &Connection, prefix: &str) -> Result<usize, StoreError> {
    let read = || {
        connection
            .prepare_cached("SELECT count(*) FROM entry WHERE key >= ?1 AND key < ?2")?
            .query_row(params![prefix, prefix_end(prefix)], |row| row.get(0))
    };
    let count: i64 = read().map_err(failed("count keys"))?;
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}

/// Part of the history.
pub(super) struct Replay {
    /// One item for each revision that has a change below the prefix.
    pub commits: Vec<Vec<Change>>,
    /// The first revision after it.
    pub next: Revision,
}

/// How much of the history one read may return, checked at the end of each revision.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReplayLimit {
    pub changes: usize,
    pub bytes: usize,
}

/// Whole revisions of the history from `from` on.
pub(super) fn replay(
    connection: &mut Connection,
    prefix: &str,
    from: Revision,
    limit: ReplayLimit,
) -> Result<Replay, StoreError> {
    let action = "read the history";
    let snapshot = connection.transaction().map_err(failed(action))?;
    let ledger = ledger(&snapshot).map_err(failed(action))?;
    if from < ledger.oldest {
        return Err(StoreError::Compacted { asked: from, oldest: ledger.oldest });
    }
    let read = || {
        let mut statement = snapshot.prepare_cached(
            "SELECT revision, key, value FROM change WHERE revision >= ?1 AND key >= ?2 AND key < ?3
             ORDER BY revision, key",
        )?;
        let mut rows = statement.query(params![to_sql(from), prefix, prefix_end(prefix)])?;
        let mut commits: Vec<Vec<Change>> = Vec::new();
        let (mut count, mut bytes, mut current) = (0, 0, 0);
        while let Some(row) = rows.next()? {
            let change = Change { revision: from_sql(row.get(0)?), key: row.get(1)?, value: row.get(2)? };
            if change.revision != current && (count >= limit.changes || bytes >= limit.bytes) {
                return Ok(Replay { commits, next: change.revision });
            }
            count += 1;
            bytes += change.key.len() + change.value.as_ref().map_or(0, Vec::len);
            match commits.last_mut() {
                Some(commit) if change.revision == current => commit.push(change),
                _ => {
                    current = change.revision;
                    commits.push(vec![change]);
                }
            }
        }
        Ok(Replay { commits, next: from.max(ledger.revision.saturating_add(1)) })
    };
    read().map_err(failed(action))
}

/// Where the store stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ledger {
    /// The newest revision.
    pub revision: Revision,
    /// The first revision whose changes are kept.
    pub oldest: Revision,
    /// How many changes the table has, forgotten ones included.
    pub changes: u64,
}

pub(super) fn ledger(connection: &Connection) -> rusqlite::Result<Ledger> {
    connection.prepare_cached("SELECT revision, oldest, changes FROM ledger")?.query_row([], |row| {
        Ok(Ledger { revision: from_sql(row.get(0)?), oldest: from_sql(row.get(1)?), changes: from_sql(row.get(2)?) })
    })
}

/// The end of the keys that start with `prefix`: it is less than this, and every key after them is not.
///
/// Keys are compared as UTF-8, whose order is that of the characters. Where there is no such text, it is a blob, which
/// SQLite puts after any text.
pub(super) fn prefix_end(prefix: &str) -> Value {
    let mut end = prefix.to_owned();
    while let Some(last) = end.pop() {
        // A range of characters skips the surrogates.
        if let Some(next) = (last..=char::MAX).nth(1) {
            end.push(next);
            return Value::Text(end);
        }
    }
    Value::Blob(Vec::new())
}

/// SQLite's integers are signed; no store gets to revision 2^63.
pub(super) fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn from_sql(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry { key: row.get(0)?, value: row.get(1)?, created: from_sql(row.get(2)?), modified: from_sql(row.get(3)?) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_keys_below_a_prefix_are_those_before_its_end(
            prefix in "(a|/|0|\u{7f}|\u{d7ff}|\u{e000}|\u{10ffff}){0,4}",
            rest in any::<String>(),
            other in "(a|/|0|\u{80}|\u{d7ff}|\u{e000}|\u{10ffff}){0,5}",
        ) {
            let connection = Connection::open_in_memory().unwrap();
            for key in [format!("{prefix}{rest}"), other, rest] {
                let inside: bool = connection
                    .query_row("SELECT ?1 >= ?2 AND ?1 < ?3", params![key, prefix, prefix_end(&prefix)], |row| row.get(0))
                    .unwrap();
                prop_assert_eq!(inside, key.starts_with(&prefix), "{:?} below {:?}", key, prefix);
            }
        }
    }
}
