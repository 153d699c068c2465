//! Tunnels without a network.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use jiff::Timestamp;
use warren_api::{GatewayInfo, SessionStatus, Tunnels};
use warren_model::access::AccessError;
use warren_model::client_config::Endpoint;
use warren_model::session::{Session, WireGuardKey};
use warren_model::{Code, NetworkId, SessionId};

/// Listens on every address, and passes packets of every session that it is told of.
pub struct FakeTunnels {
    pub gateway: Mutex<Result<GatewayInfo, String>>,
    endpoint: Mutex<Option<Endpoint>>,
    pub failing: AtomicBool,
    pub stuck: AtomicBool,
    /// Nobody has come to any session.
    pub silent: AtomicBool,
    /// Why no session passes, though it is open.
    pub hindrance: Mutex<Option<String>>,
    /// They say nothing of any session.
    pub mute: AtomicBool,
    open: Mutex<BTreeMap<SessionId, NetworkId>>,
    cut: Mutex<BTreeSet<SessionId>>,
}

impl Default for FakeTunnels {
    fn default() -> Self {
        Self {
            gateway: Mutex::new(Ok(GatewayInfo {
                public_key: Self::public_key(),
                listen: "0.0.0.0:51820".parse().unwrap(),
                endpoint: None,
                fallback: Some("10.9.9.9".parse().unwrap()),
            })),
            endpoint: Mutex::new(Some("vpn.example:51820".parse().unwrap())),
            failing: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            hindrance: Mutex::default(),
            mute: AtomicBool::new(false),
            open: Mutex::default(),
            cut: Mutex::default(),
        }
    }
}

impl FakeTunnels {
    /// The base point of the curve: somebody may have it.
    pub fn public_key() -> WireGuardKey {
        let mut bytes = [0; 32];
        bytes[0] = 9;
        WireGuardKey::from_bytes(bytes)
    }

    /// Without anything that says where it is reached.
    pub fn forget_endpoint(&self) {
        *self.endpoint.lock().unwrap() = None;
    }

    pub fn set_endpoint(&self, endpoint: &str) {
        *self.endpoint.lock().unwrap() = Some(endpoint.parse().unwrap());
    }

    /// Whether the server has waited until nothing of the session passes.
    pub fn was_cut(&self, session: &str) -> bool {
        self.cut.lock().unwrap().contains(&session.parse().unwrap())
    }
}

#[async_trait]
impl Tunnels for FakeTunnels {
    fn gateway(&self) -> Result<GatewayInfo, String> {
        let gateway = self.gateway.lock().unwrap().clone()?;
        Ok(GatewayInfo { endpoint: self.endpoint(), ..gateway })
    }

    fn endpoint(&self) -> Option<Endpoint> {
        self.endpoint.lock().unwrap().clone()
    }

    async fn opened(&self, session: &Session) -> Result<(), AccessError> {
        if self.stuck.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        if self.failing.load(Ordering::Relaxed) {
            return Err(AccessError::new(Code::VpnUnavailable, "the edge does not answer"));
        }
        self.open.lock().unwrap().insert(session.id, session.network);
        Ok(())
    }

    fn passes(&self, _: &Session) -> Result<(), String> {
        self.hindrance.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    async fn closed(&self, session: SessionId) {
        if self.stuck.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        self.open.lock().unwrap().remove(&session);
        self.cut.lock().unwrap().insert(session);
    }

    async fn status(&self, network: NetworkId) -> BTreeMap<SessionId, SessionStatus> {
        let status = SessionStatus {
            endpoint: Some("198.51.100.7:40000".parse().unwrap()),
            received_bytes: 1,
            received_packets: 2,
            sent_bytes: 3,
            sent_packets: 4,
            refused_packets: 5,
            last_handshake_at: (!self.silent.load(Ordering::Relaxed)).then_some(Timestamp::UNIX_EPOCH),
            last_data_at: None,
        };
        if self.mute.load(Ordering::Relaxed) {
            return BTreeMap::new();
        }
        let open = self.open.lock().unwrap();
        open.iter().filter(|(_, of)| **of == network).map(|(id, _)| (*id, status)).collect()
    }
}
