//! What the caller says of a peer, and what it learns of one.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

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
    /// Where it is, when it is we who have to call. A peer that calls is found by its packets.
    pub endpoint: Option<SocketAddr>,
    /// When it ends.
    pub expires: Option<SystemTime>,
    /// It ends when it has sent no data for so long. Keepalives are no data.
    pub idle_limit: Option<Duration>,
    /// How often it hears from us even when there is nothing to say, so that address translators keep the way open.
    pub keepalive: Option<Duration>,
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
    /// Packets from it that did not pass: replays, forgeries, packets of others' addresses, no packets at all.
    pub refused: u64,
    /// Packets to it that were lost here: nobody knew where it is, or too many waited for a handshake.
    pub lost: u64,
    pub last_handshake: Option<SystemTime>,
    /// When its last authentic packet came.
    pub last_packet: Option<SystemTime>,
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
    /// Packets from a network for which there was no peer, or that were no packets.
    pub unrouted: u64,
    /// Packets that a network's device did not take.
    pub undelivered: u64,
    /// Bursts of packets that the sockets did not take.
    pub unsent: u64,
}
