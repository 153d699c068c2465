//! What the writer can be asked to do, each inside a savepoint of the open transaction.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, params};

use super::draft::Draft;
use super::error::failed;
use super::fail;
use super::lease;
use super::read::{from_sql, prefix_end, to_sql};
use crate::{Change, Compare, LeaseId, Op, Revision, StoreError, Txn, TxnOutcome};

/// Work for the writer. After an error the writer undoes what `apply` did.
pub(super) trait Command: Send + 'static {
    type Answer: Send + 'static;

    fn apply(&self, draft: &mut Draft<'_>) -> Result<Self::Answer, StoreError>;
}

impl Command for Txn {
    type Answer = TxnOutcome;

    fn apply(&self, draft: &mut Draft<'_>) -> Result<TxnOutcome, StoreError> {
        let mut failed_compares = Vec::new();
        for (index, compare) in self.compares.iter().enumerate() {
            if !holds(draft.connection, compare).map_err(failed("compare"))? {
                failed_compares.push(index);
            }
        }
        if !failed_compares.is_empty() {
            return Ok(TxnOutcome::Conflict(failed_compares));
        }
        fail::point("compares-held");
        let revision = draft.next_revision();
        let mut changes = Vec::new();
        for op in last_op_of_each_key(&self.ops).into_values() {
            let change = match op {
                Op::Put { key, value, lease } => {
                    if let Some(lease) = lease {
                        lease::require(draft.connection, *lease)?;
                    }
                    put(draft.connection, key, value, *lease, revision).map_err(failed("put a key"))?;
                    Change { revision, key: key.clone(), value: Some(value.clone()) }
                }
                Op::Delete { key } => {
                    if !delete(draft.connection, key).map_err(failed("delete a key"))? {
                        continue;
                    }
                    Change { revision, key: key.clone(), value: None }
                }
            };
            fail::point("entry-changed");
            changes.push(change);
        }
        draft.record(changes).map(TxnOutcome::Committed)
    }
}

/// Forgets the history before a revision. The rows go later, see [`Sweep`].
pub(super) struct Compact {
    pub before: Revision,
}

impl Command for Compact {
    type Answer = ();

    fn apply(&self, draft: &mut Draft<'_>) -> Result<(), StoreError> {
        let oldest = self.before.min(draft.ledger.revision);
        draft.ledger.oldest = draft.ledger.oldest.max(oldest);
        fail::point("history-cut");
        Ok(())
    }
}

/// How much of the history is kept without being asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct HistoryLimit {
    /// The newest changes, at least.
    pub kept: u64,
    /// How many more may gather before they are forgotten.
    pub slack: u64,
    /// How many rows one transaction deletes at most.
    pub step: usize,
}

/// One bounded step of keeping the history short.
pub(super) struct Sweep {
    pub limit: HistoryLimit,
}

/// Whether another step would find work.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Swept {
    Clean,
    MoreToDo,
}

impl Command for Sweep {
    type Answer = Swept;

    fn apply(&self, draft: &mut Draft<'_>) -> Result<Swept, StoreError> {
        let (connection, limit, oldest) = (draft.connection, self.limit, draft.ledger.oldest);
        let deleted = delete_forgotten(connection, oldest, limit.step).map_err(failed("shorten the history"))?;
        draft.ledger.changes = draft.ledger.changes.saturating_sub(deleted as u64);
        fail::point("history-deleted");
        if deleted > 0 {
            return Ok(Swept::MoreToDo);
        }
        let excess = draft.ledger.changes.saturating_sub(limit.kept);
        if excess <= limit.slack {
            return Ok(Swept::Clean);
        }
        let first_kept = revision_of_row(connection, excess).map_err(failed("measure the history"))?;
        match first_kept {
            Some(first_kept) if first_kept > oldest => {
                draft.ledger.oldest = first_kept;
                fail::point("history-cut");
                Ok(Swept::MoreToDo)
            }
            // The oldest revision alone is more than the excess, and is kept whole.
            _ => Ok(Swept::Clean),
        }
    }
}

/// Deletes up to `step` rows of the forgotten history, the oldest first.
fn delete_forgotten(connection: &Connection, oldest: Revision, step: usize) -> rusqlite::Result<usize> {
    connection
        .prepare_cached(
            "DELETE FROM change WHERE revision < ?1 AND (revision, key) IN
             (SELECT revision, key FROM change WHERE revision < ?1 ORDER BY revision, key LIMIT ?2)",
        )?
        .execute(params![to_sql(oldest), to_sql(step as u64)])
}

/// The revision of the row of the history before which there are `index` others.
fn revision_of_row(connection: &Connection, index: u64) -> rusqlite::Result<Option<Revision>> {
    connection
        .prepare_cached("SELECT revision FROM change ORDER BY revision, key LIMIT 1 OFFSET ?1")?
        .query_row([to_sql(index)], |row| row.get(0).map(from_sql))
        .optional()
}

fn last_op_of_each_key(ops: &[Op]) -> BTreeMap<&str, &Op> {
    ops.iter()
        .map(|op| match op {
            Op::Put { key, .. } | Op::Delete { key } => (key.as_str(), op),
        })
        .collect()
}

fn holds(connection: &Connection, compare: &Compare) -> rusqlite::Result<bool> {
    Ok(match compare {
        Compare::Absent { key } => modified(connection, key)?.is_none(),
        Compare::Exists { key } => modified(connection, key)?.is_some(),
        Compare::Unchanged { key, modified: expected } => modified(connection, key)? == Some(*expected),
        Compare::EmptyPrefix { prefix } => !connection
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM entry WHERE key >= ?1 AND key < ?2)")?
            .query_row(params![prefix, prefix_end(prefix)], |row| row.get::<_, bool>(0))?,
    })
}

fn modified(connection: &Connection, key: &str) -> rusqlite::Result<Option<Revision>> {
    connection
        .prepare_cached("SELECT modified FROM entry WHERE key = ?1")?
        .query_row([key], |row| row.get(0).map(from_sql))
        .optional()
}

fn put(
    connection: &Connection,
    key: &str,
    value: &[u8],
    lease: Option<LeaseId>,
    revision: Revision,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO entry (key, value, created, modified, lease) VALUES (?1, ?2, ?3, ?3, ?4)
             ON CONFLICT (key) DO UPDATE
             SET value = excluded.value, modified = excluded.modified, lease = excluded.lease",
        )?
        .execute(params![key, value, to_sql(revision), lease.map(|lease| to_sql(lease.0))])?;
    Ok(())
}

/// Whether the key was there.
fn delete(connection: &Connection, key: &str) -> rusqlite::Result<bool> {
    let deleted = connection.prepare_cached("DELETE FROM entry WHERE key = ?1")?.execute([key])?;
    Ok(deleted > 0)
}
