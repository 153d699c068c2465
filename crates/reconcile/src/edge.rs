//! The connection to the edge process.
//!
//! The edge outlives the daemon and the daemon outlives the edge: one that answers is taken over with all it has, and
//! one that ended is started anew and handed everything again. In between it is sent what has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, RwLock};
use warren_edge::{
    EdgeClient, EdgeError, EdgeStatus, FlowCounters, NetworkChange, NetworkView, OpenFlow, RefusalCode, SessionStatus,
    Sockets, SpawnConfig, TakenDenials, TunnelReport, TunnelStatus, public_key,
};
use warren_kernel::GatewaySockets;
use warren_model::{NetworkNumber, SessionId};

use crate::ReconcileError;
use crate::sessions::{TunnelGateway, TunnelSettings};
use crate::world::{World, lock};

/// The pause before another attempt to start the edge.
const PAUSE: Duration = Duration::from_millis(200);

pub(crate) struct EdgeLink {
    config: SpawnConfig,
    client: AsyncMutex<Option<Arc<EdgeClient>>>,
    /// Apart, so that a slow answer of the edge holds up nobody who only asks this. `None` while nobody knows what there
    /// is, for want of a connection.
    known: Mutex<Option<Known>>,
    /// Whoever changes what the edge has, against whoever takes over what it says that it has.
    order: RwLock<()>,
    /// Whoever sees to it that operators can come in: the port can be had once.
    listening: AsyncMutex<()>,
}

/// What the edge has.
#[derive(Debug)]
struct Known {
    networks: BTreeMap<NetworkNumber, Held>,
    /// Whether it has sockets for operators, without which nothing of theirs passes.
    hears_operators: bool,
}

/// What the edge has of one network.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Held {
    pub generation: u64,
    /// Whether it has the device by which operators come in.
    pub device: bool,
    /// The operators whom it could not let in.
    pub refused: BTreeSet<SessionId>,
    /// What this generation is, where it is known: then it is enough to send what has changed since.
    view: Option<Arc<NetworkView>>,
}

impl Held {
    /// Whether it is this generation, with everybody inside: who was refused is tried again, and operators come by a
    /// device.
    fn is_whole(&self, generation: u64, has_operators: bool) -> bool {
        self.generation == generation && self.refused.is_empty() && (self.device || !has_operators)
    }
}

impl EdgeLink {
    pub fn new(config: SpawnConfig) -> Self {
        Self {
            config,
            client: AsyncMutex::default(),
            known: Mutex::default(),
            order: RwLock::default(),
            listening: AsyncMutex::default(),
        }
    }

    /// `None` when the edge has nothing of this network, or nobody knows whether it has.
    pub fn held(&self, network: NetworkNumber) -> Option<Held> {
        lock(&self.known).as_ref()?.networks.get(&network).cloned()
    }

    /// Whether the edge has something of this network, as far as is known.
    pub fn may_have(&self, network: NetworkNumber) -> bool {
        lock(&self.known).as_ref().is_none_or(|known| known.networks.contains_key(&network))
    }

    /// Whether the edge has this view, and everybody of it is inside.
    pub fn has_whole(&self, view: &Arc<NetworkView>) -> bool {
        let mut known = lock(&self.known);
        let held = known.as_mut().and_then(|known| known.networks.get_mut(&view.number));
        let Some(held) = held.filter(|held| held.is_whole(view.generation, !view.operators.is_empty())) else {
            return false;
        };
        held.view.get_or_insert_with(|| Arc::clone(view));
        true
    }

    /// Of these operators of a network, those whose packets pass, if the edge has its view.
    pub fn inside(&self, network: NetworkNumber, operators: BTreeSet<SessionId>) -> BTreeSet<SessionId> {
        let known = lock(&self.known);
        let Some(known) = known.as_ref().filter(|known| known.hears_operators) else { return BTreeSet::new() };
        match known.networks.get(&network) {
            Some(held) if held.refused.is_empty() => operators,
            Some(held) => &operators - &held.refused,
            None => BTreeSet::new(),
        }
    }

    /// The device that the edge has is not the network's any more.
    pub fn lost_device(&self, network: NetworkNumber) {
        if let Some(held) = lock(&self.known).as_mut().and_then(|known| known.networks.get_mut(&network)) {
            held.device = false;
        }
    }

    /// Gives the edge a view, or only what has changed of it where it has the one before.
    pub async fn put(
        &self,
        view: &Arc<NetworkView>,
        sockets: Option<GatewaySockets>,
        device: Option<OwnedFd>,
    ) -> Result<(), ReconcileError> {
        let client = self.client().await?;
        let _turn = self.order.read().await;
        let has_device = device.is_some();
        let before = match (&sockets, &device) {
            (None, None) => self.held(view.number).and_then(|held| held.view),
            _ => None,
        };
        let change = before.and_then(|before| NetworkChange::between(&before, view));
        let sockets = sockets.map(|sockets| {
            let GatewaySockets { udp4, udp6, tcp4, tcp6, transparent4, transparent6, proxy4, proxy6 } = sockets;
            Sockets { udp4, udp6, tcp4, tcp6, transparent4, transparent6, proxy4, proxy6 }
        });
        let outcome = match &change {
            Some(change) => match client.change_network(change).await {
                Err(EdgeError::Refused(refusal)) if refusal.code == RefusalCode::Outdated => {
                    tracing::warn!(network = %view.name, %refusal, "the edge is given all of it");
                    client.put_network(view, None, None).await
                }
                outcome => outcome,
            },
            None => client.put_network(view, sockets, device).await,
        };
        if outcome.as_ref().is_err_and(EdgeError::is_broken) {
            self.give_up(&client).await;
        }
        // By now another edge may have taken this one's place, which knows nothing of it.
        let current = self.client.lock().await;
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &client))
            && let Some(known) = lock(&self.known).as_mut()
        {
            match &outcome {
                Ok(refused) => {
                    let held = known.networks.entry(view.number).or_default();
                    held.generation = view.generation;
                    held.device |= has_device;
                    held.refused = refused.iter().copied().collect();
                    held.view = Some(Arc::clone(view));
                }
                Err(EdgeError::Refused(refusal)) if refusal.code == RefusalCode::SocketsMissing => {
                    known.networks.remove(&view.number);
                }
                // It may have some of what it was given.
                Err(_) => known.networks.get_mut(&view.number).into_iter().for_each(|held| held.view = None),
            }
        }
        drop(current);
        outcome.map(drop).map_err(ReconcileError::from)
    }

    pub async fn remove(&self, network: NetworkNumber) -> Result<(), ReconcileError> {
        let client = self.client().await?;
        let _turn = self.order.read().await;
        client.remove_network(network).await?;
        if let Some(known) = lock(&self.known).as_mut() {
            known.networks.remove(&network);
        }
        Ok(())
    }

    /// What was refused after the records that are already here.
    pub async fn take_denials(&self, after: u64) -> Result<TakenDenials, ReconcileError> {
        Ok(self.client().await?.take_denials(after).await?)
    }

    /// The proxied connections of a network that are open.
    pub async fn open_flows(&self, network: NetworkNumber) -> Result<Vec<OpenFlow>, ReconcileError> {
        Ok(self.client().await?.open_flows(network).await?)
    }

    /// What machines of a network did by name.
    pub async fn flow_counters(&self, network: NetworkNumber) -> Result<Vec<FlowCounters>, ReconcileError> {
        Ok(self.client().await?.flow_counters(network).await?)
    }

    /// How the tunnel of all networks stands, and which sessions ended by themselves.
    pub async fn tunnel(&self) -> Result<Option<TunnelReport>, ReconcileError> {
        Ok(self.client().await?.tunnel().await?)
    }

    /// How the sessions of operators stand in a network.
    pub async fn sessions(&self, network: NetworkNumber) -> Result<Vec<SessionStatus>, ReconcileError> {
        Ok(self.client().await?.sessions(network).await?)
    }

    /// Makes sure that operators can reach the edge where they should, and says in [`World`] whether they can.
    pub async fn listen(&self, world: &World) {
        let _turn = self.listening.lock().await;
        let outcome = self.try_listen(&world.sessions.settings).await;
        if let Ok((_, Begun::Now)) = &outcome {
            // Who could not be let in at once is tried again.
            world.enqueue_everything();
        }
        world.sessions.set_gateway(outcome.map(|(gateway, _)| gateway));
    }

    async fn try_listen(&self, settings: &TunnelSettings) -> Result<(TunnelGateway, Begun), String> {
        let TunnelSettings { listen, key } = settings;
        let public_key = public_key(key);
        let client = self.client().await.map_err(|error| error.chain())?;
        let there = |tunnel: TunnelStatus| {
            // What was asked for, in whatever of its addresses or ports it was had.
            let is_it = |address: &SocketAddr| {
                address.ip() == listen.ip() && (listen.port() == 0 || address.port() == listen.port())
            };
            let listening = tunnel.listening.into_iter().find(is_it)?;
            (tunnel.public_key == public_key).then_some(TunnelGateway { public_key, listening })
        };
        let status = client.status().await.map_err(|error| error.to_string())?;
        let listening = status.tunnel.and_then(there);
        // It may have begun to without anybody hearing of it.
        let is_known = lock(&self.known).as_ref().is_some_and(|known| known.hears_operators);
        let sockets = match listening {
            Some(gateway) if is_known => return Ok((gateway, Begun::Before)),
            Some(_) => None,
            None => {
                let failed = |error: std::io::Error| format!("UDP port {listen} cannot be had: {error}");
                Some(warren_kernel::tunnel_sockets(*listen).map_err(failed)?)
            }
        };
        // What is put or removed between its status and this would be forgotten here.
        let _alone = self.order.write().await;
        if let Some(sockets) = sockets
            && let Err(error) = client.listen(sockets, key).await
        {
            // Those before are closed by then.
            lock(&self.known).iter_mut().for_each(|known| known.hears_operators = false);
            return Err(error.to_string());
        }
        let status = client.status().await.map_err(|error| error.to_string())?;
        let gateway = status.tunnel.clone().and_then(there);
        let current = self.client.lock().await;
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &client)) {
            *lock(&self.known) = Some(known(status));
        }
        Ok((gateway.ok_or_else(|| "the edge does not listen".to_owned())?, Begun::Now))
    }

    /// How the edge is doing.
    pub async fn status(&self) -> Result<EdgeStatus, ReconcileError> {
        Ok(self.client().await?.status().await?)
    }

    /// Forgets this connection, unless another has taken its place; the next question makes a new one, to a new edge if need
    /// be.
    async fn give_up(&self, client: &Arc<EdgeClient>) {
        let mut current = self.client.lock().await;
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, client)) {
            *current = None;
            *lock(&self.known) = None;
        }
    }

    pub(crate) async fn client(&self) -> Result<Arc<EdgeClient>, ReconcileError> {
        let mut current = self.client.lock().await;
        if let Some(client) = current.as_ref() {
            return Ok(Arc::clone(client));
        }
        let client = match EdgeClient::connect(&self.config.control).await? {
            Some(client) => client,
            None => EdgeClient::spawn(&self.config).await?,
        };
        let client = Arc::new(client);
        let status = client.status().await?;
        tracing::info!(pid = client.pid(), networks = status.networks.len(), "the edge answers");
        *lock(&self.known) = Some(known(status));
        *current = Some(Arc::clone(&client));
        Ok(client)
    }
}

/// Whether it is known only now that the edge has sockets for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begun {
    Now,
    Before,
}

fn known(status: EdgeStatus) -> Known {
    let EdgeStatus { networks, devices, refused, tunnel, .. } = status;
    let of = |(number, generation)| (number, Held { generation, device: devices.contains(&number), ..Held::default() });
    let mut networks: BTreeMap<NetworkNumber, Held> = networks.into_iter().map(of).collect();
    for (number, session) in refused {
        networks.entry(number).or_default().refused.insert(session);
    }
    Known { networks, hears_operators: tunnel.is_some() }
}

/// Connects, waits until the edge ends, and starts over.
pub(crate) async fn keep(world: Arc<World>) {
    let mut first = true;
    loop {
        match world.edge.client().await {
            Ok(client) => {
                if !first {
                    world.metrics.edge_starts.inc();
                    world.enqueue_everything();
                }
                first = false;
                world.public.changed();
                world.edge.listen(&world).await;
                client.ended().await;
                tracing::warn!("the edge ended; it is started anew");
                world.edge.give_up(&client).await;
            }
            Err(error) => {
                tracing::error!(error = %error.chain(), "the edge cannot be started");
                world.sessions.set_gateway(Err(error.chain()));
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
#[path = "edge_tests.rs"]
mod tests;
