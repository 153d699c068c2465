//! What the caller says of a peer, and what it learns of one.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use crate::device::Mac;
use crate::keys::{PresharedKey, PublicKey};

/// A network, as the caller names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkKey(pub u128);

/// A peer, as the caller names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u128);

/// Somebody who may send and receive packets of one network.
#[derive(Debug, Clone)]
pub struct Peer {
    pub id: PeerId,
    pub network: NetworkKey,
    pub public_key: PublicKey,
    pub preshared_key: Option<PresharedKey>,
    /// Its addresses inside: what it sends has to come from them, and what goes to them goes to it. Whole ranges are
    /// for a peer behind which there is more.
    pub addresses: Vec<IpNet>,
    /// Its address in a network with a TAP device, which it needs there. In a network with a TUN device it says nothing.
    pub mac: Option<Mac>,
    /// The part of the network that it may reach; without it, all of it.
    pub only: Option<Only>,
    /// Whether others may begin to talk to it. If not, it is sent only what answers it.
    ///
    /// To a peer that is not reachable passes:
    /// - TCP but what begins a connection: segments with ACK, and RST without SYN. Every segment behind the first SYN
    ///   of a connection has ACK, but for resets (RFC 9293 §3.10.7);
    /// - UDP from an address and port to which the peer itself sent, from the address and port to which it goes, not
    ///   more than 180 seconds ago. The last 128 of such pairs are known; answers do not lengthen the time;
    /// - of ICMP and ICMPv6, echo replies and the errors that [`Only`] lets pass;
    /// - of fragments, the first one when it passes as above, with the whole of what is looked at; then the others of
    ///   its packet, unless one could write over that. What comes before its first fragment, or more than 30 seconds
    ///   behind it, does not pass. With IPv6, the fragment header has to stand right behind the IPv6 header.
    ///
    /// Nothing else does: echo requests, other protocols, and other extension headers of IPv6 are counted as
    /// [`withheld`](PeerStatus::withheld). Where there is [`only`](Self::only), a packet has to pass by both.
    pub reachable: bool,
    /// Where it is, when it is we who have to call. A peer that calls is found by its packets.
    pub endpoint: Option<SocketAddr>,
    /// When it ends.
    pub expires: Option<SystemTime>,
    /// It ends when it has sent no data for so long. Keepalives are no data.
    pub idle_limit: Option<Duration>,
    /// How often it hears from us even when there is nothing to say, so that address translators keep the way open.
    pub keepalive: Option<Duration>,
}

/// A part of a network.
///
/// From the peer passes what goes to one of the addresses: with a port, only TCP and UDP to that port; without one, of
/// all protocols. What does not pass is counted as [`refused`](PeerStatus::refused).
///
/// To the peer passes what comes from one of the addresses: with a port, only TCP and UDP from that port; without one,
/// of all protocols. Besides, errors of ICMP and ICMPv6 pass from anywhere (unreachable, packet too big, time exceeded,
/// parameter problem), as path MTU discovery needs those of the routers on the way. What does not pass is counted as
/// [`withheld`](PeerStatus::withheld).
///
/// With a port, both ways, a fragment passes only when it is the first one, so that no fragmented packet arrives whole;
/// and an IPv6 packet only when TCP or UDP stands right behind its IPv6 header, without extension headers (the fragment
/// header is one).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Only {
    /// With none, nothing passes.
    pub addresses: Vec<IpAddr>,
    pub port: Option<u16>,
}

/// Why a peer was not added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    #[error("a peer of this name is there already")]
    Exists,
    #[error("the network of the peer is not there")]
    NoNetwork,
    #[error("another peer has the same public key")]
    KeyTaken,
    #[error("another peer of the network has the address {0}")]
    AddressTaken(IpNet),
    #[error("a peer needs an address")]
    NoAddress,
    /// None was given, or one of a group, or the router's.
    #[error("a peer of a network with a TAP device needs a MAC address of its own")]
    NoMac,
    #[error("this is no public key with which anybody can agree on something")]
    WeakKey,
    #[error("there are {0} peers already, which is the limit")]
    TooMany(usize),
}

/// Why a peer passes nothing any more, though nobody removed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Expired,
    Idle,
}

/// Packets inside the tunnel, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    pub packets: u64,
    pub bytes: u64,
}

/// How a peer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    pub id: PeerId,
    pub network: NetworkKey,
    pub public_key: PublicKey,
    /// Where its last authentic packet came from.
    pub endpoint: Option<SocketAddr>,
    /// What it sent.
    pub received: Counted,
    /// What it was sent.
    pub sent: Counted,
    /// Packets from it that did not pass: replays, forgeries, packets of others' addresses, no packets at all, or
    /// packets to where it may not reach.
    pub refused: u64,
    /// Packets to it that were lost here: nobody knew where it is, or too many waited for a handshake.
    pub lost: u64,
    /// Packets to it from where it may not reach, or that answer nothing where it is not reachable. A large one that would have been split counts once.
    pub withheld: u64,
    pub last_handshake: Option<SystemTime>,
    /// When its last authentic packet came.
    pub last_packet: Option<SystemTime>,
    /// When data last came from it. Keepalives are no data.
    pub last_data: Option<SystemTime>,
    pub ended: Option<Ended>,
}

/// How much the gateway takes upon itself.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Peers at most, of all networks.
    pub peers: usize,
    /// Handshake messages that wait at most. When an eighth of them wait, senders have to prove their addresses first.
    pub handshakes: usize,
    /// Threads for handshakes. 0: one for each processor, but not more than 4.
    pub workers: usize,
    /// Bytes of packets that wait for handshakes at most, of all peers.
    pub waiting: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { peers: 16_384, handshakes: 1024, workers: 0, waiting: 4 << 20 }
    }
}

/// What happened at the port as a whole, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GatewayStatus {
    /// Datagrams that are no message of WireGuard's, or for another key.
    pub garbage: u64,
    /// Messages for a session that is not, or not any more.
    pub foreign: u64,
    /// Handshakes that were refused: an unknown key, a replay, or a forgery.
    pub refused_handshakes: u64,
    /// Handshake messages that were not looked at, as too many came.
    pub dropped_handshakes: u64,
    /// Answers under load that tell a sender to prove its address.
    pub cookie_replies: u64,
    /// Handshakes that gave keys.
    pub handshakes: u64,
    /// Packets from a network for which there was no peer, or that were no packets: with a TAP device, also frames that
    /// carry no IP, and frames to all.
    pub unrouted: u64,
    /// Packets that a network's device did not take.
    pub undelivered: u64,
    /// Bursts of packets that the sockets did not take.
    pub unsent: u64,
}
