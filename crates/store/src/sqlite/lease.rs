//! Leases: the table says which there are, the writer's clocks say when each ends.
//!
//! While the process runs, only the monotonic clock counts. The time at which a lease ends is also stored, in Unix
//! time, so that after a restart it has what was left, but never more than its whole ttl, whatever was done to the
//! clock meanwhile.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, params};

use super::command::Command;
use super::draft::{Draft, LeaseEvent, unix_ms};
use super::error::failed;
use super::fail;
use super::read::{from_sql, to_sql};
use crate::{Change, LeaseId, StoreError};

/// Longer ones are cut to this; 100 years cannot overflow any clock here.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);
const SHORTEST: Duration = Duration::from_millis(1);

/// When each lease ends.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    ends: HashMap<u64, Instant>,
    in_order: BTreeSet<(Instant, u64)>,
}

impl Clocks {
    /// The clocks of all leases in the file.
    pub fn load(connection: &Connection) -> Result<Self, StoreError> {
        let now = unix_ms();
        let read = || {
            connection
                .prepare("SELECT id, ttl_ms, ends_at_ms FROM lease")?
                .query_map([], |row| Ok((from_sql(row.get(0)?), row.get::<_, i64>(1)?, row.get::<_, i64>(2)?)))?
                .collect::<Result<Vec<_>, _>>()
        };
        let mut clocks = Self::default();
        for (id, ttl, ends_at) in read().map_err(failed("read the leases"))? {
            let left = from_sql(ends_at.saturating_sub(now).min(ttl));
            clocks.start(LeaseId(id), Duration::from_millis(left));
        }
        Ok(clocks)
    }

    pub fn note(&mut self, event: LeaseEvent) {
        match event {
            LeaseEvent::Started(lease, ttl) => self.start(lease, ttl),
            LeaseEvent::Ended(lease) => self.stop(lease),
        }
    }

    /// When the first of them ends.
    pub fn first_end(&self) -> Option<Instant> {
        self.in_order.first().map(|(end, _)| *end)
    }

    /// Some of those that have ended, the first ones first.
    pub fn ended(&self, now: Instant, limit: usize) -> Vec<LeaseId> {
        self.in_order.iter().take_while(|(end, _)| *end <= now).take(limit).map(|(_, id)| LeaseId(*id)).collect()
    }

    fn start(&mut self, lease: LeaseId, left: Duration) {
        self.stop(lease);
        let end = Instant::now() + left.min(LONGEST);
        self.ends.insert(lease.0, end);
        self.in_order.insert((end, lease.0));
    }

    fn stop(&mut self, lease: LeaseId) {
        if let Some(end) = self.ends.remove(&lease.0) {
            self.in_order.remove(&(end, lease.0));
        }
    }
}

/// # Errors
/// [`StoreError::NoSuchLease`]
pub(super) fn require(connection: &Connection, lease: LeaseId) -> Result<(), StoreError> {
    let read = || {
        connection
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM lease WHERE id = ?1)")?
            .query_row([to_sql(lease.0)], |row| row.get::<_, bool>(0))
    };
    if read().map_err(failed("find a lease"))? { Ok(()) } else { Err(StoreError::NoSuchLease(lease)) }
}

pub(super) struct Grant {
    pub ttl: Duration,
}

impl Command for Grant {
    type Answer = LeaseId;

    fn apply(&self, draft: &mut Draft<'_>) -> Result<LeaseId, StoreError> {
        let ttl = self.ttl.clamp(SHORTEST, LONGEST);
        let ttl_ms = to_sql(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
        let write = || {
            draft
                .connection
                .prepare_cached("INSERT INTO lease (ttl_ms, ends_at_ms) VALUES (?1, ?2) RETURNING id")?
                .query_row(params![ttl_ms, unix_ms().saturating_add(ttl_ms)], |row| row.get(0).map(from_sql))
        };
        let lease = write().map(LeaseId).map_err(failed("store a lease"))?;
        fail::point("lease-stored");
        draft.leases.push(LeaseEvent::Started(lease, ttl));
        Ok(lease)
    }
}

pub(super) struct KeepAlive {
    pub lease: LeaseId,
}

impl Command for KeepAlive {
    type Answer = ();

    fn apply(&self, draft: &mut Draft<'_>) -> Result<(), StoreError> {
        let write = || {
            draft
                .connection
                .prepare_cached("UPDATE lease SET ends_at_ms = ?2 + ttl_ms WHERE id = ?1 RETURNING ttl_ms")?
                .query_row(params![to_sql(self.lease.0), unix_ms()], |row| row.get(0).map(from_sql))
                .optional()
        };
        let ttl = write().map_err(failed("renew a lease"))?.ok_or(StoreError::NoSuchLease(self.lease))?;
        fail::point("lease-renewed");
        draft.leases.push(LeaseEvent::Started(self.lease, Duration::from_millis(ttl)));
        Ok(())
    }
}

/// Ends a lease and deletes its keys in one revision, because somebody asked or because its time is over.
pub(super) struct End {
    pub lease: LeaseId,
}

impl Command for End {
    type Answer = ();

    fn apply(&self, draft: &mut Draft<'_>) -> Result<(), StoreError> {
        require(draft.connection, self.lease)?;
        let id = to_sql(self.lease.0);
        let delete_keys = || {
            draft
                .connection
                .prepare_cached("DELETE FROM entry WHERE lease = ?1 RETURNING key")?
                .query_map([id], |row| row.get(0))?
                .collect::<Result<Vec<String>, _>>()
        };
        let mut keys = delete_keys().map_err(failed("delete the keys of a lease"))?;
        fail::point("lease-keys-deleted");
        let delete_lease = || draft.connection.prepare_cached("DELETE FROM lease WHERE id = ?1")?.execute([id]);
        delete_lease().map_err(failed("delete a lease"))?;
        fail::point("lease-deleted");
        keys.sort_unstable();
        let revision = draft.next_revision();
        draft.record(keys.into_iter().map(|key| Change { revision, key, value: None }).collect())?;
        draft.leases.push(LeaseEvent::Ended(self.lease));
        Ok(())
    }
}
