use std::cell::Cell;

use jiff::SignedDuration;
use warren_model::session::KeyHold;
use warren_model::{AccountId, KeyId, MemberNumber};
use warren_store::SqliteStore;

use super::*;

fn session() -> Session {
    let now = Timestamp::now();
    Session {
        id: SessionId::from_ulid(Ulid::from_parts(1, 1)),
        account: AccountId::from_ulid(Ulid::from_parts(1, 2)),
        network: NetworkId::from_ulid(Ulid::from_parts(1, 3)),
        member: MemberNumber::new(2).unwrap(),
        ipv4: [10, 0, 5, 10].into(),
        public_key: WireGuardKey::from_bytes([7; 32]),
        only: None,
        reachable: false,
        created_at: now,
        expires_at: now + SignedDuration::from_hours(1),
        idle_seconds: 600,
        opened_by: KeyId::from_ulid(Ulid::from_parts(1, 4)),
    }
}

/// A store with a session, to which somebody came or nobody did yet.
async fn store(heard: bool) -> (tempfile::TempDir, SqliteStore, Session) {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
    let session = session();
    let written = session::put(TxnBuilder::new(), &session, heard).unwrap().commit(&store).await.unwrap();
    assert!(matches!(written, TxnOutcome::Committed(_)));
    (directory, store, session)
}

fn said(session: SessionId, last_handshake: Option<Timestamp>) -> SessionStatus {
    SessionStatus {
        session,
        endpoint: None,
        received_packets: 0,
        received_bytes: 0,
        sent_packets: 0,
        sent_bytes: 0,
        refused: 0,
        last_handshake,
        last_data: None,
        ended: None,
    }
}

/// What is known of the key once the session is over, and whether the edge was asked, which says this.
async fn closed(heard: bool, statuses: &[SessionStatus]) -> (Option<KeyHold>, bool) {
    let (_directory, store, session) = store(heard).await;
    let asked = Cell::new(false);
    let nobody_came = || {
        asked.set(true);
        std::future::ready(is_unheard_of(statuses, session.id))
    };
    try_close(&store, &session, &Why::Expired, nobody_came).await.unwrap();
    assert!(store.read(&schema::session(session.id)).await.unwrap().is_none());
    let key = store.read(&schema::session_key(&session.public_key)).await.unwrap();
    (key.map(|key| key.record), asked.get())
}

#[tokio::test]
async fn a_key_is_free_only_where_the_edge_says_that_nobody_came_with_it() {
    let id = session().id;
    let rests =
        |key: &Option<KeyHold>| key.as_ref().is_some_and(|key| key.session.is_none() && key.resting_until.is_some());
    assert_eq!(closed(false, &[said(id, None)]).await, (None, true));
    let (key, asked) = closed(false, &[said(id, Some(Timestamp::now()))]).await;
    assert!(rests(&key) && asked, "somebody came since");
    let (key, asked) = closed(false, &[]).await;
    assert!(rests(&key) && asked, "an edge that knows nothing of it does not say that nobody came");
    let other = SessionId::from_ulid(Ulid::from_parts(9, 9));
    let (key, _) = closed(false, &[said(other, None)]).await;
    assert!(rests(&key), "nobody came to another session");
    let (key, asked) = closed(true, &[said(id, None)]).await;
    assert!(rests(&key) && !asked, "who came is known already");
}

#[tokio::test]
async fn who_waits_for_a_session_that_came_and_went_is_told_at_once() {
    let (_directory, store, session) = store(true).await;
    let (open, desired) = (watch::Sender::default(), SharedDesired::default());
    let waits = wait_open(&open, &desired, &store, &session);
    tokio::pin!(waits);
    // The watch of the store has not come this far, and nothing passes yet.
    assert_eq!(futures::poll!(&mut waits), std::task::Poll::Pending);
    try_close(&store, &session, &Why::Closed, || std::future::ready(true)).await.unwrap();
    open.send_modify(|_| {});
    assert_eq!(tokio::time::timeout(Duration::from_secs(60), waits).await, Ok(false));
}

#[tokio::test]
async fn who_waits_for_a_session_is_told_when_it_passes() {
    let (_directory, store, session) = store(true).await;
    let (open, desired) = (watch::Sender::default(), SharedDesired::default());
    let waits = async {
        let passes = wait_open(&open, &desired, &store, &session).await;
        assert!(passes);
    };
    let passes = async {
        tokio::task::yield_now().await;
        open.send_modify(|all: &mut BTreeMap<NetworkId, BTreeSet<SessionId>>| {
            all.insert(session.network, [session.id].into());
        });
    };
    tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(waits, passes) }).await.unwrap();
}
