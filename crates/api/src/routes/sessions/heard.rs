//! Sessions with public keys that were given, until somebody comes who has the private ones.
//!
//! Who opens a session shows no private key; a handshake does. So a key with which nobody came is its account's only for
//! as long as the session waits, and not for the [rest](warren_model::session::KEY_REST_DAYS) that a used one has.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use warren_model::session::UNHEARD_SECONDS;
use warren_model::{EventId, NetworkId};
use warren_store::session::{self, Open, Why};
use warren_store::{Store, StoreError, TxnBuilder, TxnOutcome, Typed, schema};

use crate::secret::{self, NoRandomness};
use crate::tunnels::Tunnels;

/// Why not every session was looked at.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HeardError {
    #[error("the store failed")]
    Store(#[from] StoreError),
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

/// Notes who came, and closes sessions to which nobody came in time.
pub(crate) async fn keep(store: Arc<dyn Store>, tunnels: Arc<dyn Tunnels>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        if let Err(error) = look(&*store, &*tunnels, Timestamp::now()).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "sessions that wait for their operators will be looked at later");
        }
    }
}

async fn look(store: &dyn Store, tunnels: &dyn Tunnels, now: Timestamp) -> Result<(), HeardError> {
    let (unheard, _) = store.list_all(&schema::sessions_unheard()).await?;
    let mut networks = BTreeMap::<NetworkId, _>::new();
    for id in unheard.iter().filter_map(|mark| schema::session_in(&mark.key)) {
        let Some(read) = store.read(&schema::session(id)).await? else { continue };
        let session = &read.record;
        let statuses = match networks.entry(session.network) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(tunnels.status(session.network).await),
        };
        // Tunnels that do not answer say nothing of who came.
        let Some(status) = statuses.get(&id) else { continue };
        let came = status.last_handshake_at.is_some();
        if !came && now.duration_since(session.created_at) < SignedDuration::from_secs(UNHEARD_SECONDS) {
            continue;
        }
        // What changed meanwhile is looked at the next time.
        let open = Open::of(store, read).await?;
        if came {
            open.heard(TxnBuilder::new()).commit(store).await?;
            continue;
        }
        let event = session::event(EventId::from_ulid(secret::ulid(now)?), &open.session.record, &Why::Unheard, now);
        let txn = open.close(TxnBuilder::new(), now)?.put(&schema::event(event.id), &event)?;
        if let TxnOutcome::Committed(_) = txn.commit(store).await? {
            tracing::info!(session = %id, "{}", event.message);
        }
    }
    Ok(())
}

/// The sessions as they are to be closed: a key with which nobody came is free only where the tunnels say so.
pub(super) async fn certain(tunnels: &dyn Tunnels, open: Vec<Open>) -> Vec<Open> {
    let mut networks = BTreeMap::<NetworkId, _>::new();
    let mut certain = Vec::with_capacity(open.len());
    for one in open {
        let (id, network) = (one.session.record.id, one.session.record.network);
        if !one.is_unheard() {
            certain.push(one);
            continue;
        }
        let statuses = match networks.entry(network) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(tunnels.status(network).await),
        };
        let nobody_came = statuses.get(&id).is_some_and(|status| status.last_handshake_at.is_none());
        certain.push(if nobody_came { one } else { one.maybe_heard() });
    }
    certain
}
