//! The connection to the edge process.
//!
//! The edge outlives the daemon and the daemon outlives the edge: one that answers is taken over with all it has, and
//! one that ended is started anew and handed everything again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Mutex as AsyncMutex;
use warren_edge::{
    EdgeClient, EdgeStatus, FlowCounters, NetworkView, OpenFlow, SessionStatus, Sockets, SpawnConfig, TakenDenials,
    TunnelReport, TunnelStatus, public_key,
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
    /// What the edge has, by network. Apart, so that a slow answer of the edge holds up nobody who only asks this.
    held: Mutex<BTreeMap<NetworkNumber, Held>>,
    /// Whoever sees to it that operators can come in: the port can be had once.
    listening: AsyncMutex<()>,
}

/// What the edge has of one network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub generation: u64,
    /// Whether it has the device by which operators come in.
    pub device: bool,
    /// The operators whom it could not let in.
    pub refused: BTreeSet<SessionId>,
}

impl Held {
    /// Whether it is this generation, with everybody inside: who was refused is tried again, and operators come by a
    /// device.
    pub fn is_whole(&self, generation: u64, has_operators: bool) -> bool {
        self.generation == generation && self.refused.is_empty() && (self.device || !has_operators)
    }
}

impl EdgeLink {
    pub fn new(config: SpawnConfig) -> Self {
        Self { config, client: AsyncMutex::default(), held: Mutex::default(), listening: AsyncMutex::default() }
    }

    /// `None` when the edge has nothing of this network.
    pub fn held(&self, network: NetworkNumber) -> Option<Held> {
        lock(&self.held).get(&network).cloned()
    }

    /// The device that the edge has is not the network's any more.
    pub fn lost_device(&self, network: NetworkNumber) {
        if let Some(held) = lock(&self.held).get_mut(&network) {
            held.device = false;
        }
    }

    pub async fn put(
        &self,
        view: &NetworkView,
        sockets: Option<GatewaySockets>,
        device: Option<OwnedFd>,
    ) -> Result<(), ReconcileError> {
        let client = self.client().await?;
        let has_device = device.is_some();
        let sockets = sockets.map(|sockets| {
            let GatewaySockets { udp4, udp6, tcp4, tcp6, transparent4, transparent6, proxy4, proxy6 } = sockets;
            Sockets { udp4, udp6, tcp4, tcp6, transparent4, transparent6, proxy4, proxy6 }
        });
        let refused = client.put_network(view, sockets, device).await?;
        // By now another edge may have taken this one's place, which knows nothing of it.
        let current = self.client.lock().await;
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &client)) {
            let mut all = lock(&self.held);
            let held = all.entry(view.number).or_default();
            held.generation = view.generation;
            held.device |= has_device;
            held.refused = refused.into_iter().collect();
        }
        Ok(())
    }

    pub async fn remove(&self, network: NetworkNumber) -> Result<(), ReconcileError> {
        self.client().await?.remove_network(network).await?;
        lock(&self.held).remove(&network);
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
        let outcome = self.try_listen(world).await;
        world.sessions.set_gateway(outcome);
    }

    async fn try_listen(&self, world: &World) -> Result<TunnelGateway, String> {
        let TunnelSettings { listen, key } = world.sessions.settings.clone();
        let public_key = public_key(&key);
        let client = self.client().await.map_err(|error| error.chain())?;
        let there = |tunnel: TunnelStatus| {
            let is_it = |address: &SocketAddr| {
                address.ip() == listen.ip() && (listen.port() == 0 || address.port() == listen.port())
            };
            let listening = tunnel.listening.into_iter().find(is_it)?;
            (tunnel.public_key == public_key).then_some(TunnelGateway { public_key, listening })
        };
        let status = client.status().await.map_err(|error| error.to_string())?;
        if let Some(gateway) = status.tunnel.and_then(there) {
            return Ok(gateway);
        }
        let failed = |error: std::io::Error| format!("UDP port {listen} cannot be had: {error}");
        let sockets = warren_kernel::tunnel_sockets(listen).map_err(failed)?;
        client.listen(sockets, &key).await.map_err(|error| error.to_string())?;
        let status = client.status().await.map_err(|error| error.to_string())?;
        let gateway = status.tunnel.clone().and_then(there);
        *lock(&self.held) = held(status);
        // Who could not be let in at once is tried again.
        world.enqueue_everything();
        gateway.ok_or_else(|| "the edge does not listen".to_owned())
    }

    /// How the edge is doing.
    pub async fn status(&self) -> Result<EdgeStatus, ReconcileError> {
        Ok(self.client().await?.status().await?)
    }

    /// Forgets the connection; the next question makes a new one, to a new edge if need be.
    pub async fn disconnect(&self) {
        *self.client.lock().await = None;
        lock(&self.held).clear();
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
        *lock(&self.held) = held(status);
        *current = Some(Arc::clone(&client));
        Ok(client)
    }
}

fn held(status: EdgeStatus) -> BTreeMap<NetworkNumber, Held> {
    let EdgeStatus { networks, devices, refused, .. } = status;
    let of = |(number, generation)| (number, Held { generation, device: devices.contains(&number), ..Held::default() });
    let mut all: BTreeMap<NetworkNumber, Held> = networks.into_iter().map(of).collect();
    for (number, session) in refused {
        all.entry(number).or_default().refused.insert(session);
    }
    all
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
            }
            Err(error) => tracing::error!(error = %error.chain(), "the edge cannot be started"),
        }
        world.edge.disconnect().await;
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ulid::Ulid;
    use warren_edge::{PublicStatus, QueryCounters};

    #[test]
    fn of_an_edge_that_is_taken_over_everything_that_is_not_whole_is_done_again() {
        let [whole, wanting, without_device] = [1, 2, 3].map(|number| NetworkNumber::new(number).unwrap());
        let session = SessionId::from_ulid(Ulid::from_parts(1, 1));
        let status = EdgeStatus {
            pid: 1,
            version: String::new(),
            networks: [whole, wanting, without_device].map(|number| (number, 7)).into(),
            queries: QueryCounters::default(),
            names: 0,
            tunnel: None,
            devices: [whole, wanting].into(),
            refused: vec![(wanting, session)],
            public: PublicStatus::default(),
        };
        let all = held(status);
        assert!(all[&whole].is_whole(7, true) && all[&whole].is_whole(7, false));
        assert!(!all[&whole].is_whole(8, false), "it has another generation");
        assert!(!all[&wanting].is_whole(7, true), "who was refused is tried again");
        assert!(all[&without_device].is_whole(7, false) && !all[&without_device].is_whole(7, true));
    }
}
