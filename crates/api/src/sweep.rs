//! Removes what has had its time: idempotency records, old events, tokens and keys of sessions, grants on what is gone.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use warren_model::grant::GrantTarget;
use warren_store::schema::{Prefix, Record};
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
    remove(store, &schema::session_keys(), |key| key.resting_until.is_some_and(|until| until <= now)).await?;
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
            // Neither comes back: an id is never given out twice.
            let gone = match read.record.target {
                GrantTarget::Machine(id) => store.get(schema::machine(id).as_str()).await?.is_none(),
                GrantTarget::Network(id) => store.get(schema::network(id).as_str()).await?.is_none(),
            };
            if gone {
                let txn = TxnBuilder::new().unchanged(&read);
                txn.delete(&schema::grant(read.record.identity, read.record.target)).commit(store).await?;
            }
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
    use warren_model::grant::{Permission, Verb};
    use warren_model::record::{Event, EventKind, Grant, IdempotencyRecord, Token};
    use warren_model::session::{KeyHold, WireGuardKey};
    use warren_model::{
        AccountId, EventId, IdentityId, KeyId, MachineId, NetworkId, NetworkNumber, SessionId, TokenId,
    };
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

    #[tokio::test]
    async fn a_public_key_goes_when_its_rest_is_over_and_no_earlier() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
        let now = Timestamp::from_second(1_000_000).unwrap();
        let account = AccountId::from_ulid(Ulid::from_parts(1, 1));
        let session = SessionId::from_ulid(Ulid::from_parts(1, 1));
        let over = KeyHold { account, session: None, resting_until: Some(now) };
        let rests = KeyHold { resting_until: Some(now + SignedDuration::from_millis(1)), ..over.clone() };
        let used = KeyHold { session: Some(session), resting_until: None, ..over.clone() };
        let mut txn = TxnBuilder::new();
        for (n, hold) in [(1, &over), (2, &rests), (3, &used)] {
            txn = txn.put(&schema::session_key(&WireGuardKey::from_bytes([n; 32])), hold).unwrap();
        }
        txn.commit(&store).await.unwrap();

        sweep(&store, Duration::from_secs(3600), now).await.unwrap();

        let (left, _) = store.list_all(&schema::session_keys()).await.unwrap();
        assert_eq!(left.into_iter().map(|read| read.record).collect::<Vec<_>>(), [rests, used]);
    }

    #[tokio::test]
    async fn tokens_go_a_day_after_their_end_and_grants_with_what_they_are_on() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
        let now = Timestamp::from_second(1_000_000).unwrap();
        let ulid = |n| Ulid::from_parts(n, 1);
        let (account, identity) = (AccountId::from_ulid(ulid(1)), IdentityId::from_ulid(ulid(1)));
        let mut txn = TxnBuilder::new();
        let day = SignedDuration::from_hours(24);
        for (n, ended) in [(1, day), (2, day - SignedDuration::from_secs(1))] {
            let (id, hash) = (TokenId::from_ulid(ulid(n)), n.to_string());
            let (expires_at, revoked_at) = (now - ended, None);
            let token = Token { id, account, identity, hash, created_at: now - day - day, expires_at, revoked_at };
            txn = txn.put(&schema::token(&token.hash), &token).unwrap();
            txn = txn.put(&schema::token_of(identity, id), &token.hash).unwrap();
            txn = txn.put(&schema::token_used(id), &now).unwrap();
        }
        let (network, machine) = (NetworkId::from_ulid(ulid(1)), MachineId::from_ulid(ulid(1)));
        let network = crate::bootstrap::default_network(account, NetworkNumber::FIRST, now)
            .map(|made| warren_model::record::Network { id: network, ..made })
            .unwrap();
        txn = txn.put(&schema::network(network.id), &network).unwrap();
        for target in [GrantTarget::Network(network.id), GrantTarget::Machine(machine)] {
            let permission = Permission::new(Verb::usual(), None).unwrap();
            let granted_by = KeyId::from_ulid(ulid(1));
            let grant = Grant { identity, target, permission, granted_at: now, granted_by };
            txn = txn.put(&schema::grant(identity, target), &grant).unwrap();
        }
        txn.commit(&store).await.unwrap();

        sweep(&store, Duration::from_secs(3600), now).await.unwrap();

        let (tokens, _) = store.list_all(&schema::tokens()).await.unwrap();
        assert_eq!(tokens.iter().map(|read| read.record.hash.as_str()).collect::<Vec<_>>(), ["2"]);
        let page = store.list(warren_store::Range { prefix: "token-".into(), after: None, limit: 10 }).await.unwrap();
        assert!(page.entries.iter().all(|entry| entry.key.contains(&TokenId::from_ulid(ulid(2)).to_string())));
        let (grants, _) = store.list_all(&schema::grants()).await.unwrap();
        assert_eq!(grants.len(), 1);
        assert_eq!(grants[0].record.target, GrantTarget::Network(network.id));
    }
}
