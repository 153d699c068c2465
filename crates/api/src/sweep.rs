//! Removes what has had its time: idempotency records, old events and tokens, grants on what is gone.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use warren_store::schema::{Prefix, Record};
use warren_model::grant::GrantTarget;
use warren_store::{Compare, Op, Store, StoreError, Txn, TxnBuilder, Typed, schema};

use crate::routes::tokens;

const EVERY: Duration = Duration::from_secs(600);
/// How many records one read and one transaction take.
const CHUNK: usize = 200;

pub(crate) async fn run(store: Arc<dyn Store>, keep_events: Duration) {
    loop {
        tokio::time::sleep(EVERY).await;
        if let Err(error) = sweep(&*store, keep_events, Timestamp::now()).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "expired records were not removed");
        }
    }
}

pub(crate) async fn sweep(store: &dyn Store, keep_events: Duration, now: Timestamp) -> Result<(), StoreError> {
    let keep = SignedDuration::try_from(keep_events).unwrap_or(SignedDuration::MAX);
    let oldest = now.saturating_sub(keep).unwrap_or(Timestamp::MIN);
    remove(store, &schema::events(), |event| event.time < oldest).await?;
    remove(store, &schema::idempotencies(), |record| record.expires_at <= now).await?;
    remove_tokens(store, now).await?;
    remove_grants(store).await
}

async fn remove_tokens(store: &dyn Store, now: Timestamp) -> Result<(), StoreError> {
    let mut after = None;
    loop {
        let (page, more) = store.list_page(&schema::tokens(), after, CHUNK).await?;
        after = page.last().map(|last| last.key.clone());
        for read in page.iter().filter(|read| tokens::is_forgotten(&read.record, now)) {
            tokens::remove(TxnBuilder::new().unchanged(read), &read.record).commit(store).await?;
        }
        if !more {
            return Ok(());
        }
    }
}

/// Grants on machines and networks that are gone.
async fn remove_grants(store: &dyn Store) -> Result<(), StoreError> {
    let mut after = None;
    loop {
        let (page, more) = store.list_page(&schema::grants(), after, CHUNK).await?;
        after = page.last().map(|last| last.key.clone());
        for read in page {
            let txn = TxnBuilder::new().unchanged(&read);
            let txn = match read.record.target {
                GrantTarget::Machine(id) => txn.absent(&schema::machine(id)),
                GrantTarget::Network(id) => txn.absent(&schema::network(id)),
            };
            txn.delete(&schema::grant(read.record.identity, read.record.target)).commit(store).await?;
        }
        if !more {
            return Ok(());
        }
    }
}

async fn remove<T: Record>(
    store: &dyn Store,
    prefix: &Prefix<T>,
    expired: impl Fn(&T) -> bool,
) -> Result<(), StoreError> {
    let mut after = None;
    loop {
        let (page, more) = store.list_page(prefix, after, CHUNK).await?;
        after = page.last().map(|last| last.key.clone());
        let mut txn = Txn::default();
        for read in page.into_iter().filter(|read| expired(&read.record)) {
            txn.compares.push(Compare::Unchanged { key: read.key.clone(), modified: read.modified });
            txn.ops.push(Op::Delete { key: read.key });
        }
        // A conflict means that one was renewed meanwhile; the next sweep takes the others.
        if !txn.ops.is_empty() {
            store.txn(txn).await?;
        }
        if !more {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ulid::Ulid;
    use warren_model::record::{Event, EventKind, IdempotencyRecord};
    use warren_model::{AccountId, EventId};
    use warren_store::{SqliteStore, TxnBuilder};

    #[tokio::test]
    async fn only_what_has_had_its_time_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
        let now = Timestamp::from_second(1_000_000).unwrap();
        let account = AccountId::from_ulid(Ulid::from_parts(1, 1));
        let mut txn = TxnBuilder::new();
        for (n, age) in [(1, 3601), (2, 3599)] {
            let time = now - SignedDuration::from_secs(age);
            let id = EventId::from_ulid(Ulid::from_parts(n, 1));
            let (kind, message) = (EventKind::ServerStarted, "started".to_owned());
            let event = Event { id, time, kind, account: None, network: None, machine: None, message };
            txn = txn.put(&schema::event(id), &event).unwrap();
        }
        for (key, expires_at) in [("past", now), ("future", now + SignedDuration::from_secs(1))] {
            let record = IdempotencyRecord { fingerprint: "f".into(), created: "c".into(), expires_at };
            txn = txn.put(&schema::idempotency(account, key), &record).unwrap();
        }
        txn.commit(&store).await.unwrap();

        sweep(&store, Duration::from_secs(3600), now).await.unwrap();

        let (events, _) = store.list_all(&schema::events()).await.unwrap();
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].record.id, EventId::from_ulid(Ulid::from_parts(2, 1)));
        let (records, _) = store.list_all(&schema::idempotencies()).await.unwrap();
        assert_eq!(records.len(), 1);
        assert!(records[0].key.ends_with("/future"));
    }
}
