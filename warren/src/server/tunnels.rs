//! What the API may ask about the operators' tunnels.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use warren_api::{GatewayInfo, SessionStatus, Tunnels};
use warren_model::access::AccessError;
use warren_model::client_config::Endpoint;
use warren_model::policy::is_global;
use warren_model::session::Session;
use warren_model::{Code, NetworkId, SessionId};
use warren_reconcile::World;

/// The tunnels, through the parts that serve them.
pub struct LiveTunnels {
    world: Arc<World>,
    /// What the operator of the server says.
    endpoint: Option<Endpoint>,
}

impl LiveTunnels {
    pub fn new(world: Arc<World>, endpoint: Option<Endpoint>) -> Self {
        Self { world, endpoint }
    }
}

#[async_trait]
impl Tunnels for LiveTunnels {
    fn gateway(&self) -> Result<GatewayInfo, String> {
        let gateway = self.world.tunnel_gateway()?;
        Ok(GatewayInfo {
            public_key: gateway.public_key,
            listen: gateway.listening,
            endpoint: self.endpoint.clone(),
            fallback: address_for_others(),
        })
    }

    fn endpoint(&self) -> Option<Endpoint> {
        self.endpoint.clone()
    }

    async fn opened(&self, session: &Session) -> Result<(), AccessError> {
        match self.world.session_opened(session).await {
            true => Ok(()),
            false => Err(AccessError::new(Code::NotFound, "the session was closed while it was being opened")),
        }
    }

    fn passes(&self, session: &Session) -> Result<(), String> {
        self.world.session_passes(session)
    }

    async fn closed(&self, session: SessionId) {
        self.world.session_closed(session).await;
    }

    async fn status(&self, network: NetworkId) -> BTreeMap<SessionId, SessionStatus> {
        let statuses = self.world.session_statuses(network).await.into_iter();
        let told = statuses.map(|status| {
            let shown = SessionStatus {
                endpoint: status.endpoint,
                received_bytes: status.received_bytes,
                received_packets: status.received_packets,
                sent_bytes: status.sent_bytes,
                sent_packets: status.sent_packets,
                refused_packets: status.refused,
                last_handshake_at: status.last_handshake,
                last_data_at: status.last_data,
            };
            (status.session, shown)
        });
        told.collect()
    }
}

/// An address of the host at which others may reach it: a global one, else a private one.
fn address_for_others() -> Option<IpAddr> {
    let own = warren_reconcile::host_addresses().ok()?;
    let usable = own.into_iter().filter(|address| {
        let link_local = match address {
            IpAddr::V4(four) => four.is_link_local(),
            IpAddr::V6(six) => six.is_unicast_link_local(),
        };
        !address.is_loopback() && !address.is_unspecified() && !link_local
    });
    usable.min_by_key(|address| (!is_global(*address), address.is_ipv6()))
}
