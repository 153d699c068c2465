//! Operators: the WireGuard gateway of all networks, and who may come by it into which.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use warren_model::session::{TUNNEL_MTU, TunnelKey, WireGuardKey};
use warren_model::{MacAddress, NetworkNumber, SessionId};
use warren_tunnel::{
    Device, Ended, Gateway, GatewayStatus, Limits, Mac, NetworkError, NetworkKey, Only, Peer, PeerError, PeerId,
    PeerStatus, PrivateKey, PublicKey, Sockets, StartError,
};

use crate::view::Operator;

/// How the tunnel stands, of all networks together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelStatus {
    pub public_key: WireGuardKey,
    /// Where operators send.
    pub listening: Vec<SocketAddr>,
    /// Messages that were no message of WireGuard's, or for another key or session.
    pub foreign: u64,
    /// Handshakes that were refused: an unknown key, a replay, or a forgery.
    pub refused: u64,
    /// Handshakes that were not looked at, as too many came.
    pub dropped: u64,
    /// Handshakes that gave keys.
    pub handshakes: u64,
}

/// How one operator's session stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    pub session: SessionId,
    /// Where its last authentic packet came from.
    pub endpoint: Option<SocketAddr>,
    pub received_packets: u64,
    pub received_bytes: u64,
    pub sent_packets: u64,
    pub sent_bytes: u64,
    /// Packets from it or to it that were refused: forged, replayed, of others' addresses, or outside of its scope.
    pub refused: u64,
    pub last_handshake: Option<Timestamp>,
    /// Keepalives are no data.
    pub last_data: Option<Timestamp>,
    /// Nothing of it passes any more.
    pub ended: Option<SessionEnd>,
}

/// Why a session ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionEnd {
    Expired,
    Idle,
}

/// Why operators cannot come into a network.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OperatorsError {
    #[error("the sockets of the tunnel cannot be served")]
    Start(#[from] StartError),
    #[error("the device of network {0} cannot be served")]
    Network(NetworkNumber, #[source] NetworkError),
    #[error("the descriptor of the device of network {0} cannot be kept")]
    Keep(NetworkNumber, #[source] io::Error),
    #[error("operator {0} cannot be let in")]
    Peer(SessionId, #[source] PeerError),
}

/// The gateway, and what it has to know.
///
/// What is wanted is kept here, so that a gateway that begins later serves all of it.
#[derive(Debug, Default)]
pub(crate) struct Operators {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    gateway: Option<Listening>,
    networks: BTreeMap<NetworkNumber, Wanted>,
}

#[derive(Debug)]
struct Listening {
    gateway: Gateway,
    addresses: Vec<SocketAddr>,
}

#[derive(Debug, Default)]
struct Wanted {
    device: Option<OwnedFd>,
    operators: BTreeMap<SessionId, Operator>,
}

impl Operators {
    /// Begins to serve these sockets, instead of those before.
    pub fn listen(&self, sockets: Vec<UdpSocket>, key: &TunnelKey) -> Result<(), OperatorsError> {
        let addresses = sockets.iter().filter_map(|socket| socket.local_addr().ok()).collect();
        let mut given = Sockets { v4: None, v6: None };
        for socket in sockets {
            let is_v6 = socket.local_addr().is_ok_and(|address| address.is_ipv6());
            if is_v6 { given.v6 = Some(socket) } else { given.v4 = Some(socket) }
        }
        let mut state = self.state();
        // The port can be had once.
        state.gateway = None;
        // The number of processors is in files, of which there are none here.
        let limits = Limits { workers: 2, ..Limits::default() };
        let gateway = Gateway::start(given, PrivateKey::from_bytes(key.as_bytes()), limits)?;
        for (number, wanted) in &mut state.networks {
            let Some(device) = &wanted.device else { continue };
            match attach(&gateway, *number, device) {
                Ok(()) => wanted
                    .operators
                    .retain(|_, operator| admit(&gateway, *number, operator).inspect_err(report).is_ok()),
                // A device that was deleted comes anew with the network's next view.
                Err(error) => report(&error),
            }
        }
        state.gateway = Some(Listening { gateway, addresses });
        Ok(())
    }

    /// Lets these operators into a network, and nobody else. When this returns, those who were there before and are not
    /// wanted any more pass nothing. Without a device, now or before, nobody comes in.
    pub fn put(
        &self,
        number: NetworkNumber,
        device: Option<OwnedFd>,
        operators: &[Operator],
    ) -> Result<(), OperatorsError> {
        let mut state = self.state();
        if operators.is_empty() && device.is_none() && !state.networks.contains_key(&number) {
            return Ok(());
        }
        let State { gateway, networks } = &mut *state;
        let wanted = networks.entry(number).or_default();
        let before = std::mem::take(&mut wanted.operators);
        wanted.operators = operators.iter().map(|operator| (operator.session, operator.clone())).collect();
        let Some(Listening { gateway, .. }) = gateway else {
            wanted.device = device.or_else(|| wanted.device.take());
            return Ok(());
        };
        let mut known = before;
        if let Some(device) = device {
            gateway.remove_network(key(number));
            known.clear();
            attach(gateway, number, &device)?;
            wanted.device = Some(device);
        }
        if wanted.device.is_none() {
            return Ok(());
        }
        let stays = |session: &SessionId, operator: &Operator| wanted.operators.get(session) == Some(operator);
        for (session, _) in known.iter().filter(|(session, operator)| !stays(session, operator)) {
            gateway.remove_peer(id(*session));
        }
        let is_new = |operator: &&Operator| known.get(&operator.session) != Some(*operator);
        let new: Vec<Operator> = wanted.operators.values().filter(is_new).cloned().collect();
        let mut refused = Ok(());
        for operator in new {
            if let Err(error) = admit(gateway, number, &operator) {
                // Tried again with the next view; whoever waits for it must not be told that it is in.
                wanted.operators.remove(&operator.session);
                refused = Err(error);
            }
        }
        refused
    }

    /// The network is gone, and its operators with it.
    pub fn remove(&self, number: NetworkNumber) {
        let mut state = self.state();
        if state.networks.remove(&number).is_some()
            && let Some(Listening { gateway, .. }) = &state.gateway
        {
            gateway.remove_network(key(number));
        }
    }

    /// The networks whose device is here.
    pub fn devices(&self) -> Vec<NetworkNumber> {
        let state = self.state();
        state.networks.iter().filter(|(_, wanted)| wanted.device.is_some()).map(|(number, _)| *number).collect()
    }

    /// `None` while nothing listens.
    pub fn status(&self) -> Option<TunnelStatus> {
        let state = self.state();
        let Listening { gateway, addresses } = state.gateway.as_ref()?;
        let GatewayStatus { garbage, foreign, refused_handshakes, dropped_handshakes, handshakes, .. } =
            gateway.status();
        Some(TunnelStatus {
            public_key: WireGuardKey::from_bytes(*gateway.public_key().as_bytes()),
            listening: addresses.clone(),
            foreign: garbage + foreign,
            refused: refused_handshakes,
            dropped: dropped_handshakes,
            handshakes,
        })
    }

    /// How the sessions of one network stand, or those of all.
    pub fn sessions(&self, network: Option<NetworkNumber>) -> Vec<SessionStatus> {
        let state = self.state();
        let Some(Listening { gateway, .. }) = &state.gateway else { return Vec::new() };
        let wanted = |peer: &PeerStatus| network.is_none_or(|number| peer.network == key(number));
        gateway.peers().iter().filter(|peer| wanted(peer)).map(session_status).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What is wanted is written before anything is done about it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What operators have to know of the server's key.
pub fn public_key(key: &TunnelKey) -> WireGuardKey {
    WireGuardKey::from_bytes(*PrivateKey::from_bytes(key.as_bytes()).public_key().as_bytes())
}

fn attach(gateway: &Gateway, number: NetworkNumber, device: &OwnedFd) -> Result<(), OperatorsError> {
    let descriptor = device.try_clone().map_err(|error| OperatorsError::Keep(number, error))?;
    let router = Mac(MacAddress::ROUTER.octets());
    let device = Device::Tap { mtu: TUNNEL_MTU, router };
    gateway.add_network(key(number), descriptor, device).map_err(|error| OperatorsError::Network(number, error))
}

fn admit(gateway: &Gateway, number: NetworkNumber, operator: &Operator) -> Result<(), OperatorsError> {
    gateway.add_peer(&peer(number, operator)).map_err(|error| OperatorsError::Peer(operator.session, error))
}

/// What is wrong with one operator or one network keeps nobody else out.
fn report(error: &OperatorsError) {
    let cause = std::error::Error::source(error).map_or_else(String::new, ToString::to_string);
    tracing::error!(error = %cause, "{error}");
}

fn peer(number: NetworkNumber, operator: &Operator) -> Peer {
    Peer {
        id: id(operator.session),
        network: key(number),
        public_key: PublicKey::from_bytes(*operator.public_key.as_bytes()),
        preshared_key: None,
        addresses: [IpAddr::from(operator.ipv4), operator.ipv6.into()].map(IpNet::from).into(),
        mac: Some(Mac(MacAddress::of_member(operator.number).octets())),
        only: operator.only.as_ref().map(|only| Only { addresses: only.addresses.clone(), port: only.port }),
        reachable: operator.reachable,
        endpoint: None,
        expires: Some(SystemTime::from(operator.expires_at)),
        idle_limit: Some(Duration::from_secs(operator.idle_seconds)),
        keepalive: None,
    }
}

fn session_status(peer: &PeerStatus) -> SessionStatus {
    let time = |at: SystemTime| Timestamp::try_from(at).ok();
    SessionStatus {
        session: SessionId::from_u128(peer.id.0),
        endpoint: peer.endpoint,
        received_packets: peer.received.packets,
        received_bytes: peer.received.bytes,
        sent_packets: peer.sent.packets,
        sent_bytes: peer.sent.bytes,
        refused: peer.refused + peer.withheld,
        last_handshake: peer.last_handshake.and_then(time),
        last_data: peer.last_data.and_then(time),
        ended: peer.ended.map(|ended| match ended {
            Ended::Expired => SessionEnd::Expired,
            Ended::Idle => SessionEnd::Idle,
        }),
    }
}

fn key(number: NetworkNumber) -> NetworkKey {
    NetworkKey(number.get().into())
}

fn id(session: SessionId) -> PeerId {
    PeerId(session.as_u128())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_cannot_be_served_keeps_no_other_network_out() {
        let operators = Operators::default();
        let no_device = || Some(std::fs::File::open("/dev/null").unwrap().into());
        let number = |number| NetworkNumber::new(number).unwrap();
        operators.put(number(1), no_device(), &[]).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        operators.listen(vec![socket], &TunnelKey::from_bytes([7; 32])).unwrap();
        assert_eq!(operators.status().unwrap().listening, [address]);
        assert!(matches!(operators.put(number(2), no_device(), &[]), Err(OperatorsError::Network(..))));
    }
}
