//! The connection to the edge process.
//!
//! The edge outlives the daemon and the daemon outlives the edge: one that answers is taken over with all it has, and
//! one that ended is started anew and handed everything again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Mutex as AsyncMutex;
use warren_edge::{EdgeClient, EdgeStatus, FlowCounters, NetworkView, OpenFlow, Sockets, SpawnConfig, TakenDenials};
use warren_kernel::GatewaySockets;
use warren_model::NetworkNumber;

use crate::ReconcileError;
use crate::world::{World, lock};

/// The pause before another attempt to start the edge.
const PAUSE: Duration = Duration::from_millis(200);

pub(crate) struct EdgeLink {
    config: SpawnConfig,
    client: AsyncMutex<Option<Arc<EdgeClient>>>,
    /// What the edge has, by network. Apart, so that a slow answer of the edge holds up nobody who only asks this.
    generations: Mutex<BTreeMap<NetworkNumber, u64>>,
}

impl EdgeLink {
    pub fn new(config: SpawnConfig) -> Self {
        Self { config, client: AsyncMutex::default(), generations: Mutex::default() }
    }

    /// What the edge answers with for this network; `None` when it has nothing of it.
    pub fn generation(&self, network: NetworkNumber) -> Option<u64> {
        lock(&self.generations).get(&network).copied()
    }

    pub async fn put(&self, view: &NetworkView, sockets: Option<GatewaySockets>) -> Result<(), ReconcileError> {
        let client = self.client().await?;
        let sockets = sockets.map(|sockets| {
            let GatewaySockets { udp4, udp6, tcp4, tcp6, transparent4, transparent6, proxy4, proxy6 } = sockets;
            Sockets { udp4, udp6, tcp4, tcp6, transparent4, transparent6, proxy4, proxy6 }
        });
        client.put_network(view, sockets).await?;
        // By now another edge may have taken this one's place, which knows nothing of it.
        let current = self.client.lock().await;
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &client)) {
            lock(&self.generations).insert(view.number, view.generation);
        }
        Ok(())
    }

    pub async fn remove(&self, network: NetworkNumber) -> Result<(), ReconcileError> {
        self.client().await?.remove_network(network).await?;
        lock(&self.generations).remove(&network);
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

    /// How the edge is doing.
    pub async fn status(&self) -> Result<EdgeStatus, ReconcileError> {
        Ok(self.client().await?.status().await?)
    }

    /// Forgets the connection; the next question makes a new one, to a new edge if need be.
    pub async fn disconnect(&self) {
        *self.client.lock().await = None;
        lock(&self.generations).clear();
    }

    async fn client(&self) -> Result<Arc<EdgeClient>, ReconcileError> {
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
                client.ended().await;
                tracing::warn!("the edge ended; it is started anew");
            }
            Err(error) => tracing::error!(error = %error.chain(), "the edge cannot be started"),
        }
        world.edge.disconnect().await;
        tokio::time::sleep(PAUSE).await;
    }
}
