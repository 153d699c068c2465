//! What the API may ask about the host.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use ipnet::IpNet;
use prometheus_client::registry::Registry;
use tokio::sync::Mutex;
use warren_api::Host;
use warren_kernel::Kernel;
use warren_model::{MemberNumber, NetworkCidr, NetworkNumber, wire};
use warren_reconcile::World;

/// How long an examination of the host is answered from: anybody may ask for it, and each runs a program.
const EXAMINED_FOR: Duration = Duration::from_secs(1);

/// The host, through the parts that know it.
pub struct LiveHost {
    world: Arc<World>,
    forwarding: bool,
    registry: Registry,
    examined: Mutex<Option<(Instant, Result<(), String>)>>,
}

impl LiveHost {
    pub fn new(world: Arc<World>, forwarding: bool) -> Self {
        let mut registry = Registry::default();
        world.metrics.register(&mut registry);
        world.denials.register(&mut registry);
        world.register_public_metrics(&mut registry);
        Self { world, forwarding, registry, examined: Mutex::default() }
    }
}

#[async_trait]
impl Host for LiveHost {
    fn overlapping_routes(&self, cidr: NetworkCidr) -> Vec<String> {
        match Kernel::host_routes() {
            Ok(routes) => routes
                .into_iter()
                .filter(|route| matches!(route, IpNet::V4(v4) if v4.prefix_len() > 0 && cidr.overlaps(*v4)))
                .map(|route| route.to_string())
                .collect(),
            Err(error) => {
                tracing::warn!(%error, "the host's routes cannot be read");
                Vec::new()
            }
        }
    }

    fn addresses(&self) -> BTreeSet<IpAddr> {
        warren_reconcile::host_addresses().unwrap_or_else(|error| {
            tracing::warn!(%error, "the host's addresses cannot be read");
            BTreeSet::new()
        })
    }

    fn forwarding(&self) -> bool {
        self.forwarding
    }

    async fn traffic(&self, network: NetworkNumber, member: MemberNumber) -> Option<wire::Traffic> {
        let kernel = self.world.kernel.clone();
        let counters = tokio::task::spawn_blocking(move || kernel.counters(network)).await.ok()?.ok()?;
        let counters = counters.get(&member)?;
        let (names, refused) = self.world.named_traffic(network, member).await;
        Some(wire::Traffic { private: convert(&counters.private), egress: convert(&counters.egress), names, refused })
    }

    async fn readiness(&self) -> Result<(), String> {
        let mut examined = self.examined.lock().await;
        if let Some((at, outcome)) = &*examined
            && at.elapsed() < EXAMINED_FOR
        {
            return outcome.clone();
        }
        let outcome = examine(&self.world).await;
        *examined = Some((Instant::now(), outcome.clone()));
        outcome
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        // Encoding into a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

async fn examine(world: &World) -> Result<(), String> {
    world.driver.check().await.map_err(|error| error.to_string())?;
    world.edge_answers().await.map_err(|error| error.chain())
}

fn convert(flow: &warren_kernel::Flow) -> wire::Counters {
    wire::Counters {
        sent_bytes: flow.sent.bytes,
        sent_packets: flow.sent.packets,
        received_bytes: flow.received.bytes,
        received_packets: flow.received.packets,
    }
}
