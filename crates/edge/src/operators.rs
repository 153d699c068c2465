//! Operators: the WireGuard gateway of all networks, and who may come by it into which.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use warren_model::problem::chain;
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

/// What there is to do about the tunnel now and then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelReport {
    pub status: TunnelStatus,
    /// Sessions that ended by themselves and were not taken back yet.
    pub ended: Vec<(SessionId, SessionEnd)>,
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
    /// Of these, those whom the gateway did not take.
    refused: BTreeSet<SessionId>,
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
        // How many processors may be used is in files, of which there are none here.
        let limits = Limits { workers: 2, ..Limits::default() };
        let gateway = Gateway::start(given, PrivateKey::from_bytes(key.as_bytes()), limits)?;
        for (number, wanted) in &mut state.networks {
            let Some(device) = &wanted.device else { continue };
            match attach(&gateway, *number, device) {
                Ok(()) => wanted.refused = admit(&gateway, *number, wanted.operators.values()),
                // It comes anew with the network's next view.
                Err(error) => {
                    report(&error);
                    wanted.device = None;
                    wanted.refused = wanted.operators.keys().copied().collect();
                }
            }
        }
        state.gateway = Some(Listening { gateway, addresses });
        Ok(())
    }

    /// Lets these operators into a network, and nobody else. When this returns, those who were there before and are not
    /// wanted any more pass nothing. Without a device, now or before, nobody comes in.
    ///
    /// Returns those whom the gateway did not take, such as one whose key another network has still; they are tried
    /// again with every call. Before anything listens nobody is refused, and nobody is in. After an error the network
    /// has no device and nobody is in.
    pub fn put(
        &self,
        number: NetworkNumber,
        device: Option<OwnedFd>,
        operators: &[Operator],
    ) -> Result<Vec<SessionId>, OperatorsError> {
        let mut state = self.state();
        if operators.is_empty() && device.is_none() && !state.networks.contains_key(&number) {
            return Ok(Vec::new());
        }
        let State { gateway, networks } = &mut *state;
        let wanted = networks.entry(number).or_default();
        let mut inside = std::mem::take(&mut wanted.operators);
        for session in std::mem::take(&mut wanted.refused) {
            inside.remove(&session);
        }
        wanted.operators = operators.iter().map(|operator| (operator.session, operator.clone())).collect();
        let Some(Listening { gateway, .. }) = gateway else {
            wanted.device = device.or_else(|| wanted.device.take());
            return Ok(Vec::new());
        };
        if let Some(device) = device {
            gateway.remove_network(key(number));
            inside.clear();
            wanted.device = None;
            attach(gateway, number, &device)?;
            wanted.device = Some(device);
        }
        if wanted.device.is_none() {
            wanted.refused = wanted.operators.keys().copied().collect();
            return Ok(wanted.refused.iter().copied().collect());
        }
        for session in inside.iter().filter(|(session, was)| wanted.operators.get(session) != Some(was)) {
            gateway.remove_peer(id(*session.0));
        }
        let new = wanted.operators.values().filter(|operator| inside.get(&operator.session) != Some(operator));
        wanted.refused = admit(gateway, number, new);
        Ok(wanted.refused.iter().copied().collect())
    }

    /// Lets these operators in, or lets them in as they are now, and keeps those whose sessions have ended out; everything
    /// else stays as it is. Answers as [`put`](Self::put) without a device does.
    pub fn change(&self, number: NetworkNumber, operators: &[Operator], ended: &[SessionId]) -> Vec<SessionId> {
        let mut state = self.state();
        if operators.is_empty() && !state.networks.contains_key(&number) {
            return Vec::new();
        }
        let State { gateway, networks } = &mut *state;
        let wanted = networks.entry(number).or_default();
        let mut outside = std::mem::take(&mut wanted.refused);
        let changed = operators.iter().map(|operator| &operator.session);
        let before = ended.iter().chain(changed).filter(|session| wanted.operators.remove(session).is_some());
        let leave: Vec<SessionId> = before.filter(|session| !outside.contains(session)).copied().collect();
        for operator in operators {
            outside.insert(operator.session);
            wanted.operators.insert(operator.session, operator.clone());
        }
        let Some(Listening { gateway, .. }) = gateway else { return Vec::new() };
        if wanted.device.is_none() {
            wanted.refused = wanted.operators.keys().copied().collect();
        } else {
            for session in leave {
                gateway.remove_peer(id(session));
            }
            wanted.refused = admit(gateway, number, outside.iter().filter_map(|session| wanted.operators.get(session)));
        }
        wanted.refused.iter().copied().collect()
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

    /// Those whom the gateway did not take, of all networks.
    pub fn refused(&self) -> Vec<(NetworkNumber, SessionId)> {
        let state = self.state();
        let of = |(number, wanted): (&NetworkNumber, &Wanted)| {
            let number = *number;
            wanted.refused.iter().map(move |session| (number, *session)).collect::<Vec<_>>()
        };
        state.networks.iter().flat_map(of).collect()
    }

    /// `None` while nothing listens.
    pub fn report(&self) -> Option<TunnelReport> {
        let status = self.status()?;
        let sessions = self.statuses(|_| true);
        let ended = sessions.into_iter().filter_map(|session| Some((session.session, session.ended?))).collect();
        Some(TunnelReport { status, ended })
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

    /// How the sessions of a network stand.
    pub fn sessions(&self, network: NetworkNumber) -> Vec<SessionStatus> {
        self.statuses(|peer| peer.network == key(network))
    }

    fn statuses(&self, of: impl Fn(&PeerStatus) -> bool) -> Vec<SessionStatus> {
        let state = self.state();
        let Some(Listening { gateway, .. }) = &state.gateway else { return Vec::new() };
        gateway.peers().iter().filter(|peer| of(peer)).map(session_status).collect()
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

/// Returns those who were not taken.
fn admit<'a>(
    gateway: &Gateway,
    number: NetworkNumber,
    operators: impl Iterator<Item = &'a Operator>,
) -> BTreeSet<SessionId> {
    let refused = operators.filter(|operator| {
        let taken = gateway.add_peer(&peer(number, operator));
        taken.map_err(|error| OperatorsError::Peer(operator.session, error)).inspect_err(report).is_err()
    });
    refused.map(|operator| operator.session).collect()
}

/// What is wrong with one operator or one network keeps nobody else out.
fn report(error: &OperatorsError) {
    tracing::error!("{}", chain(error));
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
    use nix::sched::{CloneFlags, unshare};
    use ulid::Ulid;
    use warren_model::MemberNumber;

    fn number(number: u16) -> NetworkNumber {
        NetworkNumber::new(number).unwrap()
    }

    fn listen(operators: &Operators) -> SocketAddr {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let address = socket.local_addr().unwrap();
        operators.listen(vec![socket], &TunnelKey::from_bytes([7; 32])).unwrap();
        address
    }

    /// In a network namespace of the calling thread's own.
    fn listening() -> Operators {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let operators = Operators::default();
        listen(&operators);
        operators
    }

    fn unfit_device() -> Option<OwnedFd> {
        Some(std::fs::File::open("/dev/null").unwrap().into())
    }

    fn device(network: u16) -> Option<OwnedFd> {
        Some(warren_tunnel::open_device(&format!("tap{network}"), warren_tunnel::DeviceKind::Tap).unwrap())
    }

    fn operator(place: u8, key: u8) -> Operator {
        let private = PrivateKey::from_bytes(&[key; 32]);
        Operator {
            session: SessionId::from_ulid(Ulid::from_parts(place.into(), 1)),
            number: MemberNumber::new(place.into()).unwrap(),
            public_key: WireGuardKey::from_bytes(*private.public_key().as_bytes()),
            ipv4: [10, 0, 0, place].into(),
            ipv6: [0xfd00, 0, 0, 0, 0, 0, 0, place.into()].into(),
            only: None,
            reachable: false,
            expires_at: Timestamp::now() + jiff::SignedDuration::from_hours(1),
            idle_seconds: 600,
        }
    }

    fn inside(operators: &Operators, network: u16) -> Vec<SessionId> {
        operators.sessions(number(network)).into_iter().map(|status| status.session).collect()
    }

    #[test]
    fn a_device_that_cannot_be_served_keeps_no_other_network_out() {
        let operators = Operators::default();
        operators.put(number(1), unfit_device(), &[]).unwrap();
        let address = listen(&operators);
        assert_eq!(operators.status().unwrap().listening, [address]);
        assert!(matches!(operators.put(number(2), unfit_device(), &[]), Err(OperatorsError::Network(..))));
    }

    #[test]
    fn who_is_refused_keeps_nobody_else_out_and_comes_in_as_soon_as_it_can() {
        let operators = listening();
        let [first, same_key, other] = [operator(2, 1), operator(3, 1), operator(4, 2)];
        assert_eq!(operators.put(number(1), device(1), std::slice::from_ref(&first)).unwrap(), []);
        let both = [same_key.clone(), other.clone()];
        assert_eq!(operators.put(number(2), device(2), &both).unwrap(), [same_key.session]);
        assert_eq!(inside(&operators, 2), [other.session]);
        assert_eq!(operators.refused(), [(number(2), same_key.session)]);
        assert_eq!(operators.devices(), [number(1), number(2)], "the device is there all the same");
        assert_eq!(operators.put(number(2), None, &both).unwrap(), [same_key.session], "it is still in the way");
        operators.put(number(1), None, &[]).unwrap();
        assert_eq!(operators.put(number(2), None, &both).unwrap(), []);
        assert_eq!(inside(&operators, 2), [same_key.session, other.session]);
        assert_eq!(operators.refused(), []);
    }

    #[test]
    fn a_change_lets_in_and_keeps_out_just_whom_it_is_about() {
        let operators = listening();
        let [first, second, third] = [operator(2, 1), operator(3, 2), operator(4, 3)];
        operators.put(number(1), device(1), &[first.clone(), second.clone()]).unwrap();
        let changed = Operator { idle_seconds: 1, ..second.clone() };
        assert_eq!(operators.change(number(1), &[changed.clone(), third.clone()], &[first.session]), []);
        assert_eq!(inside(&operators, 1), [changed.session, third.session]);
        assert_eq!(operators.state().networks[&number(1)].operators[&changed.session], changed);
        // The same as the whole of it is no change.
        assert_eq!(operators.put(number(1), None, &[changed, third]).unwrap(), []);
    }

    #[test]
    fn who_was_refused_is_tried_again_with_every_change() {
        let operators = listening();
        let [first, same_key, other] = [operator(2, 1), operator(3, 1), operator(4, 2)];
        operators.put(number(1), device(1), std::slice::from_ref(&first)).unwrap();
        assert_eq!(operators.put(number(2), device(2), &[]).unwrap(), []);
        assert_eq!(operators.change(number(2), std::slice::from_ref(&same_key), &[]), [same_key.session]);
        assert_eq!(operators.change(number(2), std::slice::from_ref(&other), &[]), [same_key.session]);
        assert_eq!(inside(&operators, 2), [other.session]);
        operators.change(number(1), &[], &[first.session]);
        assert_eq!(operators.change(number(2), &[], &[]), []);
        assert_eq!(inside(&operators, 2), [same_key.session, other.session]);
        operators.put(number(1), None, std::slice::from_ref(&first)).unwrap();
        // One who was never inside ends like any other.
        assert_eq!(operators.change(number(1), &[], &[first.session]), []);
        assert_eq!(operators.refused(), []);
    }

    #[test]
    fn a_change_without_a_device_or_a_gateway_lets_nobody_in() {
        let some = [operator(2, 1)];
        let silent = Operators::default();
        assert_eq!(silent.change(number(1), &some, &[]), [], "it is tried when something listens");
        assert_eq!(silent.refused(), []);
        let operators = listening();
        assert_eq!(operators.change(number(1), &[], &[some[0].session]), []);
        assert_eq!(operators.change(number(1), &some, &[]), [some[0].session]);
        assert_eq!(operators.put(number(1), device(1), &some).unwrap(), []);
        assert_eq!(inside(&operators, 1), [some[0].session]);
    }

    #[test]
    fn after_a_device_that_cannot_be_served_the_next_one_lets_everybody_in() {
        let operators = listening();
        let some = [operator(2, 1)];
        operators.put(number(1), device(1), &some).unwrap();
        operators.put(number(1), unfit_device(), &some).unwrap_err();
        assert_eq!(operators.devices(), []);
        assert_eq!(inside(&operators, 1), []);
        assert_eq!(operators.put(number(1), device(1), &some).unwrap(), []);
        assert_eq!(inside(&operators, 1), [some[0].session]);
    }

    #[test]
    fn without_a_device_everybody_is_refused_until_there_is_one() {
        let operators = listening();
        let some = [operator(2, 1)];
        assert_eq!(operators.put(number(1), None, &some).unwrap(), [some[0].session]);
        assert_eq!(operators.put(number(1), device(1), &some).unwrap(), []);
        assert_eq!(inside(&operators, 1), [some[0].session]);
    }

    #[test]
    fn a_gateway_that_begins_later_with_an_unfit_device_has_nobody_inside() {
        let operators = Operators::default();
        let some = [operator(2, 1)];
        operators.put(number(1), unfit_device(), &some).unwrap();
        listen(&operators);
        assert_eq!(operators.devices(), []);
        assert_eq!(operators.refused(), [(number(1), some[0].session)]);
    }

    #[test]
    fn a_gateway_that_begins_later_says_whom_it_does_not_take() {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let operators = Operators::default();
        let [first, same_key] = [operator(2, 1), operator(3, 1)];
        operators.put(number(1), device(1), std::slice::from_ref(&first)).unwrap();
        operators.put(number(2), device(2), std::slice::from_ref(&same_key)).unwrap();
        listen(&operators);
        assert_eq!(inside(&operators, 1), [first.session]);
        assert_eq!(operators.refused(), [(number(2), same_key.session)]);
    }
}
