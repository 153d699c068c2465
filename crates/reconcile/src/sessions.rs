//! Operator sessions: the port that they come to, and their end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use ulid::Ulid;
use warren_edge::{Operator, OperatorScope, SessionEnd, SessionStatus};
use warren_model::record::{Machine, Network, Power};
use warren_model::session::{Session, TunnelKey, WireGuardKey};
use warren_model::{EventId, MachineId, NetworkId, SessionId, UlaPrefix};
use warren_store::session::{Open, Why};
use warren_store::{Store, TxnBuilder, TxnOutcome, Typed, schema, session};

use crate::ReconcileError;
use crate::desired::SharedDesired;
use crate::world::{World, lock};

/// How often the edge is asked which sessions were idle for too long, and how long a port that could not be had is left
/// alone.
const ASKED_EVERY: Duration = Duration::from_secs(1);
const TRIED_EVERY: Duration = Duration::from_secs(5);
/// While nobody is let in.
const COUNTED_EVERY: Duration = Duration::from_secs(15);

/// Where operators come in, and the server's key.
#[derive(Debug, Clone)]
pub struct TunnelSettings {
    pub listen: SocketAddr,
    pub key: TunnelKey,
}

/// The server's end of every tunnel, while there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelGateway {
    pub public_key: WireGuardKey,
    /// Where it listens, with the port that it got.
    pub listening: SocketAddr,
}

/// What is known of sessions besides their records.
#[derive(Debug)]
pub(crate) struct Sessions {
    pub settings: TunnelSettings,
    /// Or why there is none.
    gateway: Mutex<Result<TunnelGateway, String>>,
    /// Of each network, those whose packets pass.
    open: watch::Sender<BTreeMap<NetworkId, BTreeSet<SessionId>>>,
    changed: Notify,
}

impl Sessions {
    pub fn new(settings: TunnelSettings) -> Self {
        Self {
            settings,
            gateway: Mutex::new(Err("it has not started yet".to_owned())),
            open: watch::Sender::default(),
            changed: Notify::new(),
        }
    }

    /// A session came or went.
    pub fn changed(&self) {
        self.changed.notify_one();
    }

    pub fn set_gateway(&self, gateway: Result<TunnelGateway, String>) {
        let mut known = lock(&self.gateway);
        if let Err(reason) = &gateway
            && *known != gateway
        {
            tracing::warn!(reason, "operators cannot come in");
        }
        *known = gateway;
    }

    /// The packets of these sessions of a network pass, and of no other.
    pub fn settled(&self, network: NetworkId, open: BTreeSet<SessionId>) {
        self.open.send_modify(|all| {
            if open.is_empty() {
                all.remove(&network);
            } else {
                all.insert(network, open);
            }
        });
    }
}

impl World {
    /// The server's end of every tunnel, or why there is none.
    pub fn tunnel_gateway(&self) -> Result<TunnelGateway, String> {
        lock(&self.sessions.gateway).clone()
    }

    /// Waits until the packets of a session that was written pass; `false` when it is closed before.
    pub async fn session_opened(&self, session: &Session) -> bool {
        wait_open(&self.sessions.open, &self.desired, self.store.as_ref(), session).await
    }

    /// Whether the session's packets pass at this moment. The error says why not, for a person.
    pub fn session_passes(&self, session: &Session) -> Result<(), String> {
        self.tunnel_gateway()?;
        let number = self.desired.read().network(session.network).map(|network| network.number);
        let has_edge = number.is_some_and(|number| !self.edge.inside(number, [session.id].into()).is_empty());
        match has_edge && is_in(&self.sessions.open.borrow(), session) {
            true => Ok(()),
            false => Err("the tunnel has not let it in yet, and tries again; the server's log says more".to_owned()),
        }
    }

    /// Waits until nothing of the session passes. Its record is gone.
    pub async fn session_closed(&self, id: SessionId) {
        let mut open = self.sessions.open.subscribe();
        loop {
            let passes = open.borrow_and_update().values().any(|all| all.contains(&id));
            if !passes && self.desired.read().session(id).is_none() {
                return;
            }
            if open.changed().await.is_err() {
                return;
            }
        }
    }

    /// What the tunnels of a network say; nothing while the edge does not answer.
    pub async fn session_statuses(&self, network: NetworkId) -> Vec<SessionStatus> {
        let number = self.desired.read().network(network).map(|network| network.number);
        match number {
            Some(number) => self.edge.sessions(number).await.unwrap_or_default(),
            None => Vec::new(),
        }
    }
}

fn is_in(open: &BTreeMap<NetworkId, BTreeSet<SessionId>>, session: &Session) -> bool {
    open.get(&session.network).is_some_and(|all| all.contains(&session.id))
}

/// See [`World::session_opened`].
async fn wait_open(
    open: &watch::Sender<BTreeMap<NetworkId, BTreeSet<SessionId>>>,
    desired: &SharedDesired,
    store: &dyn Store,
    session: &Session,
) -> bool {
    let mut open = open.subscribe();
    loop {
        if is_in(&open.borrow_and_update(), session) {
            return true;
        }
        let there = desired.read().session(session.id).is_some();
        // It came and went in one look at the store, or the watch of the store has not come this far.
        if !there && matches!(store.read(&schema::session(session.id)).await, Ok(None)) {
            return false;
        }
        if open.changed().await.is_err() {
            return false;
        }
    }
}

/// Those who may come into a network, as the edge is told. Pure.
pub(crate) fn operators<'a>(
    network: &Network,
    ula: UlaPrefix,
    sessions: impl Iterator<Item = &'a Arc<Session>>,
    machine: impl Fn(MachineId) -> Option<Arc<Machine>>,
) -> Vec<Operator> {
    let scope = |session: &Session| {
        let only = session.only?;
        let there =
            machine(only.machine).filter(|machine| machine.power != Power::Gone && machine.network == network.id);
        // A machine that is gone has no address, and what is left to reach is nothing.
        let addresses =
            there.map_or_else(Vec::new, |machine| vec![machine.ipv4.into(), machine.ipv6(ula, network.number).into()]);
        Some(OperatorScope { addresses, port: only.port })
    };
    sessions
        .map(|session| Operator {
            session: session.id,
            number: session.member,
            public_key: session.public_key,
            ipv4: session.ipv4,
            ipv6: session.ipv6(ula, network.number),
            only: scope(session),
            reachable: session.reachable,
            expires_at: session.expires_at,
            idle_seconds: session.idle_seconds,
        })
        .collect()
}

/// Closes sessions whose time is over, and those that the edge ended because nothing came; tries to get the port as long
/// as it cannot be had.
pub(crate) async fn keep(world: Arc<World>) {
    let (mut asked, mut tried): (Option<Instant>, Option<Instant>) = (None, None);
    let is_due = |last: Option<Instant>, every: Duration| last.is_none_or(|last| last.elapsed() >= every);
    loop {
        let now = Timestamp::now();
        let sessions: Vec<Arc<Session>> = world.desired.read().sessions().cloned().collect();
        let (over, open): (Vec<_>, Vec<_>) = sessions.into_iter().partition(|session| session.expires_at <= now);
        for session in over {
            close(&world, &session, Why::Expired).await;
        }
        let every = if open.is_empty() { COUNTED_EVERY } else { ASKED_EVERY };
        if is_due(asked, every) {
            ask(&world, &open).await;
            asked = Some(Instant::now());
        }
        let unheard = world.tunnel_gateway().is_err();
        if unheard && is_due(tried, TRIED_EVERY) {
            world.edge.listen(&world).await;
            tried = Some(Instant::now());
        }
        let next = open.iter().map(|session| session.expires_at).min();
        // A later instant is never before an earlier one.
        let next = next.map(|next| Duration::try_from(next.duration_since(now)).unwrap_or_default());
        let rest = next.unwrap_or(every).min(every).min(if unheard { TRIED_EVERY } else { every });
        // Not over before the instant itself.
        let rest = rest + Duration::from_millis(1);
        drop(tokio::time::timeout(rest, world.sessions.changed.notified()).await);
    }
}

/// Counts what comes to the port, also while nobody is let in, and closes what ended by itself.
async fn ask(world: &World, open: &[Arc<Session>]) {
    let report = world.edge.tunnel().await.ok().flatten();
    world.metrics.tunnel(open.len(), report.as_ref().map(|report| &report.status));
    let ended: BTreeMap<SessionId, SessionEnd> =
        report.map(|report| report.ended).unwrap_or_default().into_iter().collect();
    for session in open {
        match ended.get(&session.id) {
            Some(SessionEnd::Idle) => close(world, session, Why::Idle).await,
            Some(SessionEnd::Expired) => close(world, session, Why::Expired).await,
            None => {}
        }
    }
}

async fn close(world: &World, session: &Session, why: Why) {
    let asked = || nobody_came(world, session);
    if let Err(error) = try_close(world.store.as_ref(), session, &why, asked).await {
        tracing::warn!(session = %session.id, error = %error.chain(), "a session that is over will be closed later");
    }
}

/// `nobody_came`: whether it is certain that nobody came with its key, which is free then.
async fn try_close<F: Future<Output = bool>>(
    store: &dyn Store,
    session: &Session,
    why: &Why,
    nobody_came: impl Fn() -> F,
) -> Result<(), ReconcileError> {
    while let Some(open) = Open::read(store, session.id).await? {
        let open = if open.is_unheard() && !nobody_came().await { open.maybe_heard() } else { open };
        let now = Timestamp::now();
        let event = session::event(EventId::from_ulid(Ulid::generate()), session, why, now);
        let txn = open.close(TxnBuilder::new(), now)?.put(&schema::event(event.id), &event)?;
        if let TxnOutcome::Committed(_) = store.txn(txn.build()).await? {
            tracing::info!(session = %session.id, "{}", event.message);
            return Ok(());
        }
    }
    Ok(())
}

/// Whether the edge says so, which still has what ended there.
async fn nobody_came(world: &World, session: &Session) -> bool {
    is_unheard_of(&world.session_statuses(session.network).await, session.id)
}

/// Tunnels that say nothing of a session do not say that nobody came.
fn is_unheard_of(statuses: &[SessionStatus], id: SessionId) -> bool {
    statuses.iter().any(|status| status.session == id && status.last_handshake.is_none())
}

#[cfg(test)]
#[path = "sessions_tests.rs"]
mod tests;
