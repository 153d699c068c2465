//! What the API must know of the operators' tunnels.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use async_trait::async_trait;
use jiff::Timestamp;
use warren_model::access::AccessError;
use warren_model::client_config::Endpoint;
use warren_model::session::{Session, WireGuardKey};
use warren_model::{NetworkId, SessionId};

/// The server's end of every tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayInfo {
    pub public_key: WireGuardKey,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where the operator of the server says that it is reached.
    pub endpoint: Option<Endpoint>,
    /// An address of the host at which others may reach it, where nothing else is known: a global one, else a private
    /// one.
    pub fallback: Option<IpAddr>,
}

/// What a tunnel says of its session, since the gateway last started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SessionStatus {
    /// From where the operator was last heard.
    pub endpoint: Option<SocketAddr>,
    /// From the operator, into the network.
    pub received_bytes: u64,
    pub received_packets: u64,
    /// To the operator.
    pub sent_bytes: u64,
    pub sent_packets: u64,
    /// Packets of the operator that were not its own, or not allowed.
    pub refused_packets: u64,
    pub last_handshake_at: Option<Timestamp>,
    /// When data last came from the operator.
    pub last_data_at: Option<Timestamp>,
}

/// The tunnels as the API sees them; the wiring implements it.
#[async_trait]
pub trait Tunnels: Send + Sync + 'static {
    /// # Errors
    /// Why there is none, such as a port that could not be had. Sessions are refused then.
    fn gateway(&self) -> Result<GatewayInfo, String>;

    /// Where the operator of the server says that it is reached, whether it listens or not.
    fn endpoint(&self) -> Option<Endpoint>;

    /// Waits until packets of a session that was just written pass. The API bounds the wait.
    ///
    /// # Errors
    /// Why they never will, such as that its record is gone; the API closes the session again.
    async fn opened(&self, session: &Session) -> Result<(), AccessError>;

    /// Whether packets of a session pass at this moment.
    ///
    /// # Errors
    /// Why they do not, for a person: the port cannot be had, or the tunnel could not take the session yet.
    fn passes(&self, session: &Session) -> Result<(), String>;

    /// Waits until nothing of a session passes whose record is gone. The API bounds the wait.
    async fn closed(&self, session: SessionId);

    /// What the tunnels of a network say. A session that is not in it has none yet.
    async fn status(&self, network: NetworkId) -> BTreeMap<SessionId, SessionStatus>;
}
