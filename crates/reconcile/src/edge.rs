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
    TunnelStatus, public_key,
};
use warren_kernel::GatewaySockets;
use warren_model::NetworkNumber;

use crate::ReconcileError;
use crate::sessions::{TunnelGateway, TunnelSettings};
use crate::world::{World, lock};

/// The pause before another attempt to start the edge.
const PAUSE: Duration = Duration::from_millis(200);

pub(crate) struct EdgeLink {
    config: SpawnConfig,
    client: AsyncMutex<Option<Arc<EdgeClient>>>,
    /// What the edge has, by network. Apart, so that a slow answer of the edge holds up nobody who only asks this.
    generations: Mutex<BTreeMap<NetworkNumber, u64>>,
    /// The networks whose device for operators the edge has.
    devices: Mutex<BTreeSet<NetworkNumber>>,
    /// Whoever sees to it that operators can come in: the port can be had once.
    listening: AsyncMutex<()>,
}

impl EdgeLink {
    pub fn new(config: SpawnConfig) -> Self {
        Self {
            config,
            client: AsyncMutex::default(),
            generations: Mutex::default(),
            devices: Mutex::default(),
            listening: AsyncMutex::default(),
        }
    }

    /// What the edge answers with for this network; `None` when it has nothing of it.
    pub fn generation(&self, network: NetworkNumber) -> Option<u64> {
        lock(&self.generations).get(&network).copied()
    }

    /// Whether operators can come into this network.
    pub fn has_device(&self, network: NetworkNumber) -> bool {
        lock(&self.devices).contains(&network)
    }

    /// The device that the edge has is not the network's any more.
    pub fn lost_device(&self, network: NetworkNumber) {
        lock(&self.devices).remove(&network);
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
        client.put_network(view, sockets, device).await?;
        // By now another edge may have taken this one's place, which knows nothing of it.
        let current = self.client.lock().await;
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &client)) {
            lock(&self.generations).insert(view.number, view.generation);
            if has_device {
                lock(&self.devices).insert(view.number);
            }
        }
        Ok(())
    }

    pub async fn remove(&self, network: NetworkNumber) -> Result<(), ReconcileError> {
        self.client().await?.remove_network(network).await?;
        lock(&self.generations).remove(&network);
        lock(&self.devices).remove(&network);
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

    /// How the sessions of operators stand, in one network or in all.
    pub async fn sessions(&self, network: Option<NetworkNumber>) -> Result<Vec<SessionStatus>, ReconcileError> {
        Ok(self.client().await?.sessions(network).await?)
    }

    /// Makes sure that operators can reach the edge where they should, and says in [`World`] whether they can.
    pub async fn listen(&self, world: &World) {
        let _turn = self.listening.lock().await;
        let outcome = self.try_listen(world).await;
        if let Err(error) = &outcome {
            tracing::warn!(error, "operators cannot come in");
        }
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
        status.tunnel.and_then(there).ok_or_else(|| "the edge does not listen".to_owned())
    }

    /// How the edge is doing.
    pub async fn status(&self) -> Result<EdgeStatus, ReconcileError> {
        Ok(self.client().await?.status().await?)
    }

    /// Forgets the connection; the next question makes a new one, to a new edge if need be.
    pub async fn disconnect(&self) {
        *self.client.lock().await = None;
        lock(&self.generations).clear();
        lock(&self.devices).clear();
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
        *lock(&self.generations) = status.networks;
        *lock(&self.devices) = status.devices;
        *current = Some(Arc::clone(&client));
        Ok(client)
    }
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
