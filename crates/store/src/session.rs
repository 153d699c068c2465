//! Which records an operator session has, and how it ends: the same transaction for whoever ends it.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use warren_model::allocate::REST;
use warren_model::record::{AddressHold, Event, EventKind};
use warren_model::session::{KEY_REST_DAYS, KeyHold, Session};
use warren_model::{AccountId, EventId, KeyId, MachineId, NetworkId, SessionId};

use crate::{Store, StoreError, TxnBuilder, Typed, Versioned, schema};

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// An operator closed it.
    Closed,
    Expired,
    Idle,
    /// The key that opened it was revoked.
    KeyRevoked,
    NetworkDeleted,
    /// It reached this machine and nothing else.
    MachineDeleted,
    /// Nobody came with the public key that was given for it.
    Unheard,
    /// No packet of it could be passed, and why.
    NotOpened(String),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("was closed"),
            Self::Expired => f.write_str("has expired"),
            Self::Idle => f.write_str("was closed: its operator sent nothing for too long"),
            Self::KeyRevoked => f.write_str("was closed: the key that opened it was revoked"),
            Self::NetworkDeleted => f.write_str("was closed: its network is being deleted"),
            Self::MachineDeleted => f.write_str("was closed: the only machine that it reached is being deleted"),
            Self::Unheard => f.write_str("was closed: nobody came with its public key in time"),
            Self::NotOpened(reason) => write!(f, "could not be opened: {reason}"),
        }
    }
}

/// Writes a new session. The address, and what else of its network it takes, is left to whoever opens it.
///
/// `heard`: its operator is known to have the private key. If not, the key is the account's only while the session is
/// there, until somebody [comes](Open::heard) with it.
///
/// # Errors
/// When a record cannot be written.
pub fn put(txn: TxnBuilder, session: &Session, heard: bool) -> Result<TxnBuilder, StoreError> {
    let key = KeyHold { account: session.account, session: Some(session.id), resting_until: None };
    let mut txn = txn
        .put(&schema::session(session.id), session)?
        .put(&schema::session_of(session.account, session.network, session.id), &())?
        .put(&schema::session_key(&session.public_key), &key)?;
    if let Some(only) = session.only {
        txn = txn.put(&schema::session_for(only.machine, session.id), &())?;
    }
    if !heard {
        txn = txn.put(&schema::session_unheard(session.id), &())?;
    }
    Ok(txn)
}

/// A session that is there, with what has to go when it is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    pub session: Versioned<Session>,
    /// Its address. `None` where somebody else's, or nobody's, stands there.
    hold: Option<Versioned<AddressHold>>,
    /// `None` where its operator is known to have the private key.
    unheard: Option<Versioned<()>>,
    may_have_come: bool,
}

impl Open {
    /// `None` when there is no such session (any more).
    ///
    /// # Errors
    /// When the store fails.
    pub async fn read<S: Store + ?Sized>(store: &S, id: SessionId) -> Result<Option<Self>, StoreError> {
        match store.read(&schema::session(id)).await? {
            Some(session) => Self::of(store, session).await.map(Some),
            None => Ok(None),
        }
    }

    /// Reads what belongs to a session.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn of<S: Store + ?Sized>(store: &S, session: Versioned<Session>) -> Result<Self, StoreError> {
        let Session { id, network, ipv4, .. } = session.record;
        let hold = store.read(&schema::address(network, ipv4)).await?;
        let unheard = store.read(&schema::session_unheard(id)).await?;
        let hold = hold.filter(|hold| hold.record.holder == Some(id.into()));
        Ok(Self { session, hold, unheard, may_have_come: false })
    }

    /// Whether nobody has shown yet to have the private key.
    pub fn is_unheard(&self) -> bool {
        self.unheard.is_some()
    }

    /// The same where it is not certain that nobody came since: its key rests like any other.
    #[must_use]
    pub fn maybe_heard(self) -> Self {
        Self { may_have_come: true, ..self }
    }

    /// Notes that its operator has come, and so has the private key. The transaction fails where the session was closed
    /// since it was read.
    pub fn heard(&self, txn: TxnBuilder) -> TxnBuilder {
        match &self.unheard {
            Some(unheard) => txn.unchanged(unheard).delete(&schema::session_unheard(self.session.record.id)),
            None => txn,
        }
    }

    /// Closes it: every record of it goes, and its address and key begin to rest; a key with which nobody came is free at
    /// once, unless somebody [may have](Self::maybe_heard). The transaction fails where anything of it has changed since it was read. Whoever commits this says so with
    /// an [`event`].
    ///
    /// # Errors
    /// When a record cannot be written.
    pub fn close(&self, txn: TxnBuilder, now: Timestamp) -> Result<TxnBuilder, StoreError> {
        let session = &self.session.record;
        let mut txn = txn.unchanged(&self.session).delete(&schema::session(session.id)).delete(&schema::session_of(
            session.account,
            session.network,
            session.id,
        ));
        if let Some(only) = session.only {
            txn = txn.delete(&schema::session_for(only.machine, session.id));
        }
        let key = schema::session_key(&session.public_key);
        txn = match self.is_unheard() && !self.may_have_come {
            true => self.heard(txn).delete(&key),
            false => {
                txn = self.heard(txn);
                let until = now + SignedDuration::from_hours(24 * KEY_REST_DAYS);
                txn.put(&key, &KeyHold { account: session.account, session: None, resting_until: Some(until) })?
            }
        };
        if let Some(hold) = &self.hold {
            let rest = AddressHold { kind: hold.record.kind, holder: None, resting_until: Some(now + REST) };
            txn = txn.unchanged(hold).put(&schema::address(session.network, session.ipv4), &rest)?;
        }
        Ok(txn)
    }
}

/// The ids of every session of an account, the oldest first.
///
/// # Errors
/// When the store fails.
pub async fn ids_of<S: Store + ?Sized>(store: &S, account: AccountId) -> Result<Vec<SessionId>, StoreError> {
    let (marks, _) = store.list_all(&schema::sessions_of(account)).await?;
    let mut ids: Vec<_> = marks.iter().filter_map(|mark| schema::session_in(&mark.key)).collect();
    ids.sort_unstable();
    Ok(ids)
}

/// Every session in a network of an account.
///
/// # Errors
/// When the store fails.
pub async fn in_network<S: Store + ?Sized>(
    store: &S,
    account: AccountId,
    network: NetworkId,
) -> Result<Vec<Open>, StoreError> {
    let (ids, _) = store.list_all(&schema::sessions_in(account, network)).await?;
    let mut open = Vec::with_capacity(ids.len());
    for id in ids.iter().filter_map(|read| schema::session_in(&read.key)) {
        open.extend(Open::read(store, id).await?);
    }
    Ok(open)
}

/// Every session that reaches this machine and nothing else. None is added while the machine's record stays as it is, for
/// whoever opens one writes that record again.
///
/// # Errors
/// When the store fails.
pub async fn only_for<S: Store + ?Sized>(store: &S, machine: MachineId) -> Result<Vec<Open>, StoreError> {
    let (ids, _) = store.list_all(&schema::sessions_for(machine)).await?;
    let mut open = Vec::with_capacity(ids.len());
    for id in ids.iter().filter_map(|read| schema::session_in(&read.key)) {
        open.extend(Open::read(store, id).await?);
    }
    Ok(open)
}

/// Every session that was opened with a key, in whatever network.
///
/// # Errors
/// When the store fails.
pub async fn opened_by<S: Store + ?Sized>(store: &S, key: KeyId) -> Result<Vec<Open>, StoreError> {
    let (all, _) = store.list_all(&schema::sessions()).await?;
    let mut open = Vec::new();
    for session in all.into_iter().filter(|read| read.record.opened_by == key) {
        open.push(Open::of(store, session).await?);
    }
    Ok(open)
}

/// That a session ended.
pub fn event(id: EventId, session: &Session, why: &Why, now: Timestamp) -> Event {
    Event {
        id,
        time: now,
        kind: EventKind::SessionClosed,
        account: Some(session.account),
        network: Some(session.network),
        machine: None,
        message: message(session, why),
    }
}

/// What such an event says.
pub fn message(session: &Session, why: &Why) -> String {
    format!("{} ({}) {why}", session.name(), session.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SqliteStore, TxnOutcome};
    use ulid::Ulid;
    use warren_model::MemberNumber;
    use warren_model::allocate::MemberKind;
    use warren_model::session::{SessionScope, WireGuardKey};

    fn session(n: u64) -> Session {
        let ulid = |random| Ulid::from_parts(n, random);
        Session {
            id: SessionId::from_ulid(ulid(1)),
            account: AccountId::from_ulid(ulid(2)),
            network: NetworkId::from_ulid(ulid(3)),
            member: MemberNumber::FIRST,
            ipv4: [10, 0, 5, 10].into(),
            public_key: WireGuardKey::from_bytes([7; 32]),
            only: None,
            reachable: false,
            created_at: Timestamp::UNIX_EPOCH,
            expires_at: Timestamp::UNIX_EPOCH,
            idle_seconds: 60,
            opened_by: KeyId::from_ulid(ulid(4)),
        }
    }

    async fn opened(store: &SqliteStore, session: &Session, holder: Option<warren_model::MemberId>) -> Open {
        let hold = AddressHold { kind: MemberKind::Session, holder, resting_until: None };
        let txn = put(TxnBuilder::new(), session, true).unwrap();
        txn.put(&schema::address(session.network, session.ipv4), &hold).unwrap().commit(store).await.unwrap();
        Open::read(store, session.id).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_closed_session_leaves_an_address_and_a_key_that_rest_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
        let session = session(1);
        let open = opened(&store, &session, Some(session.id.into())).await;
        let now = Timestamp::from_second(1_000).unwrap();
        assert_eq!(in_network(&store, session.account, session.network).await.unwrap(), std::slice::from_ref(&open));
        assert_eq!(opened_by(&store, session.opened_by).await.unwrap(), std::slice::from_ref(&open));
        let another = KeyId::from_ulid(Ulid::from_parts(1, 5));
        assert!(opened_by(&store, another).await.unwrap().is_empty());
        let outcome = open.close(TxnBuilder::new(), now).unwrap().commit(&store).await.unwrap();
        assert!(matches!(outcome, TxnOutcome::Committed(_)));

        let range = crate::Range { prefix: String::new(), after: None, limit: 10 };
        let keys: Vec<_> = store.list(range).await.unwrap().entries.into_iter().map(|entry| entry.key).collect();
        let (address, key) = (schema::address(session.network, session.ipv4), schema::session_key(&session.public_key));
        assert_eq!(keys, [address.as_str(), key.as_str()]);
        let key = store.read(&key).await.unwrap().unwrap().record;
        assert_eq!((key.account, key.session), (session.account, None));
        let hold = store.read(&schema::address(session.network, session.ipv4)).await.unwrap().unwrap().record;
        assert_eq!((hold.kind, hold.holder, hold.resting_until), (MemberKind::Session, None, Some(now + REST)));

        assert!(in_network(&store, session.account, session.network).await.unwrap().is_empty());

        // It ends once.
        let again = open.close(TxnBuilder::new(), now).unwrap().commit(&store).await.unwrap();
        assert!(matches!(again, TxnOutcome::Conflict(_)));
        assert_eq!(Open::read(&store, session.id).await.unwrap(), None);
    }

    async fn keys(store: &SqliteStore) -> Vec<String> {
        let range = crate::Range { prefix: "session".into(), after: None, limit: 10 };
        store.list(range).await.unwrap().entries.into_iter().map(|entry| entry.key).collect()
    }

    #[tokio::test]
    async fn a_key_with_which_nobody_came_is_free_when_its_session_is_over() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
        let session = session(1);
        let key = schema::session_key(&session.public_key);
        for came in [false, true] {
            put(TxnBuilder::new(), &session, false).unwrap().commit(&store).await.unwrap();
            let before = Open::read(&store, session.id).await.unwrap().unwrap();
            assert!(before.is_unheard());
            let mut open = before.clone();
            if came {
                before.heard(TxnBuilder::new()).commit(&store).await.unwrap();
                // Whoever did not know that does not free the key.
                let outcome = before.close(TxnBuilder::new(), Timestamp::UNIX_EPOCH).unwrap().commit(&store).await;
                assert!(matches!(outcome.unwrap(), TxnOutcome::Conflict(_)));
                open = Open::read(&store, session.id).await.unwrap().unwrap();
                assert!(!open.is_unheard());
            }
            open.close(TxnBuilder::new(), Timestamp::UNIX_EPOCH).unwrap().commit(&store).await.unwrap();
            let left = if came { vec![key.as_str().to_owned()] } else { Vec::new() };
            assert_eq!(keys(&store).await, left);
        }
    }

    #[tokio::test]
    async fn a_key_with_which_somebody_may_have_come_rests() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
        let session = session(1);
        put(TxnBuilder::new(), &session, false).unwrap().commit(&store).await.unwrap();
        let open = Open::read(&store, session.id).await.unwrap().unwrap().maybe_heard();
        open.close(TxnBuilder::new(), Timestamp::UNIX_EPOCH).unwrap().commit(&store).await.unwrap();
        assert_eq!(keys(&store).await, [schema::session_key(&session.public_key).as_str()]);
    }

    #[tokio::test]
    async fn sessions_of_an_account_are_listed_by_age_whatever_their_networks() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
        let account = session(1).account;
        let network = |n| NetworkId::from_ulid(Ulid::from_parts(n, 3));
        for (n, of) in [(3, network(1)), (1, network(2)), (2, network(1))] {
            let one = Session { account, network: of, ..session(n) };
            put(TxnBuilder::new(), &one, true).unwrap().commit(&store).await.unwrap();
        }
        put(TxnBuilder::new(), &session(4), true).unwrap().commit(&store).await.unwrap();
        assert_eq!(ids_of(&store, account).await.unwrap(), [session(1).id, session(2).id, session(3).id]);
    }

    #[tokio::test]
    async fn a_session_for_one_machine_is_found_by_it_and_leaves_nothing_there() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
        let machine = MachineId::from_ulid(Ulid::from_parts(9, 9));
        let one = Session { only: Some(SessionScope { machine, port: None }), ..session(1) };
        let open = opened(&store, &one, Some(one.id.into())).await;
        opened(&store, &Session { public_key: WireGuardKey::from_bytes([8; 32]), ..session(2) }, None).await;
        assert_eq!(only_for(&store, machine).await.unwrap(), std::slice::from_ref(&open));
        open.close(TxnBuilder::new(), Timestamp::UNIX_EPOCH).unwrap().commit(&store).await.unwrap();
        assert!(only_for(&store, machine).await.unwrap().is_empty());
        assert!(!keys(&store).await.iter().any(|key| key.contains(&one.id.to_string())));
    }

    #[tokio::test]
    async fn an_address_that_somebody_else_holds_stays_theirs() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
        let session = session(1);
        let other = MachineId::from_ulid(Ulid::from_parts(9, 9));
        let open = opened(&store, &session, Some(other.into())).await;
        let outcome = open.close(TxnBuilder::new(), Timestamp::UNIX_EPOCH).unwrap().commit(&store).await.unwrap();
        assert!(matches!(outcome, TxnOutcome::Committed(_)));
        let hold = store.read(&schema::address(session.network, session.ipv4)).await.unwrap().unwrap().record;
        assert_eq!(hold.holder, Some(other.into()));
    }

    #[test]
    fn an_event_says_which_session_ended_and_why() {
        let session = session(1);
        let told = event(EventId::from_ulid(Ulid::nil()), &session, &Why::Idle, Timestamp::UNIX_EPOCH);
        let expected =
            format!("{} ({}) was closed: its operator sent nothing for too long", session.name(), session.id);
        assert_eq!((told.kind, told.message), (EventKind::SessionClosed, expected));
    }
}
