//! What a peer that is not [`reachable`](crate::Peer::reachable) is sent: answers, and errors.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard};

use crate::packet::{FRAGMENT, Fragment, ICMPV4, ICMPV6, Inner, TCP, UDP, carried, read16};
use crate::scope::is_error;
use crate::session::lock;

/// Milliseconds for which a datagram may be answered. Address translators keep two minutes at least (RFC 4787 §4.3).
const ANSWERED_WITHIN: u64 = 180_000;
/// Flows whose answers are awaited at most, of one peer.
const FLOWS: usize = 128;

/// Milliseconds within which the fragments of a packet come: as long as Linux waits for those of IPv4.
const COMPLETE_WITHIN: u64 = 30_000;
/// Packets of which fragments may come at most, to one peer.
const FRAGMENTED: usize = 16;
/// No fragment but the first may begin before this, in units of 8 bytes: as far as anything is looked at (RFC 3128).
const LOOKED_AT: u16 = 2;

/// Where the flags of TCP stand (RFC 9293 §3.1).
const FLAGS: usize = 13;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

const ECHO_REPLY_V4: u8 = 0;
const ECHO_REPLY_V6: u8 = 129;

/// What is known of one peer, to tell answers by.
#[derive(Default)]
pub struct Answers(Mutex<Memory>);

#[derive(Default)]
struct Memory {
    /// Those that were in use last are near the front.
    flows: Vec<Timed<Flow>>,
    /// Packets whose first fragment passed.
    begun: Vec<Timed<Whole>>,
}

#[derive(Clone, Copy)]
struct Timed<T> {
    what: T,
    at: u64,
}

/// Between whom datagrams go, as the peer sees it. IPv4 addresses are written as IPv6 has them (RFC 4291 §2.5.5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    own_port: u16,
    other_port: u16,
    own: Ipv6Addr,
    other: Ipv6Addr,
}

/// A packet that comes in fragments.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Whole {
    id: u32,
    source: Ipv6Addr,
    destination: Ipv6Addr,
}

impl Flow {
    /// What answers a packet of the peer's may come in; nothing when it is no datagram. `packet` is what `inner` was
    /// read from.
    pub fn sent(inner: &Inner, packet: &[u8]) -> Option<Self> {
        // Before anything else, as most packets are of TCP.
        let protocol = if inner.source.is_ipv4() { packet.get(9) } else { packet.get(6) };
        if !matches!(protocol, Some(&(UDP | FRAGMENT))) {
            return None;
        }
        let carried = carried(packet).filter(|carried| carried.protocol == UDP)?;
        if carried.fragment.is_some_and(|fragment| fragment.offset > 0) {
            return None;
        }
        let (own_port, other_port) = ports(carried.bytes)?;
        Some(Self { own_port, other_port, own: wide(inner.source), other: wide(inner.destination) })
    }

    /// What a datagram to the peer with these ports is of.
    fn answered(inner: &Inner, datagram: &[u8]) -> Option<Self> {
        let (other_port, own_port) = ports(datagram)?;
        Some(Self { own_port, other_port, own: wide(inner.destination), other: wide(inner.source) })
    }
}

impl Answers {
    /// The peer sent a datagram, which may be answered from now on.
    pub fn await_from(&self, flow: Flow, now: u64) {
        remember(&mut self.memory().flows, flow, now, FLOWS);
    }

    /// Whether the peer may be sent this, of which notice is taken then. `packet` is what `inner` was read from.
    pub fn admit(&self, inner: &Inner, packet: &[u8], now: u64) -> bool {
        let Some(carried) = carried(packet) else { return false };
        let whole =
            |Fragment { id, .. }| Whole { id, source: wide(inner.source), destination: wide(inner.destination) };
        if let Some(fragment) = carried.fragment.filter(|fragment| fragment.offset > 0) {
            return fragment.offset >= LOOKED_AT
                && is_known(&mut self.memory().begun, whole(fragment), now, COMPLETE_WITHIN);
        }
        let (version4, bytes) = (inner.source.is_ipv4(), carried.bytes);
        let passes = match carried.protocol {
            TCP => bytes.get(FLAGS).is_some_and(|flags| flags & ACK != 0 || flags & (SYN | RST) == RST),
            UDP => Flow::answered(inner, bytes)
                .is_some_and(|flow| is_known(&mut self.memory().flows, flow, now, ANSWERED_WITHIN)),
            ICMPV4 if version4 && bytes.first() == Some(&ECHO_REPLY_V4) => true,
            ICMPV6 if !version4 && bytes.first() == Some(&ECHO_REPLY_V6) => true,
            protocol => is_error(version4, protocol, bytes),
        };
        if passes && let Some(fragment) = carried.fragment {
            remember(&mut self.memory().begun, whole(fragment), now, FRAGMENTED);
        }
        passes
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        lock(&self.0)
    }
}

/// Writes down when this was, in the place of what is the longest ago when there is no other.
fn remember<T: Copy + PartialEq>(known: &mut Vec<Timed<T>>, what: T, now: u64, most: usize) {
    let new = Timed { what, at: now };
    let place = match known.iter().position(|other| other.what == new.what) {
        Some(place) => place,
        None if known.len() < most => {
            known.push(new);
            known.len() - 1
        }
        None => known.iter().enumerate().min_by_key(|(_, other)| other.at).map_or(0, |(place, _)| place),
    };
    known[place] = new;
    known.swap(0, place);
}

fn is_known<T: PartialEq>(known: &mut [Timed<T>], what: T, now: u64, within: u64) -> bool {
    let Some(place) = known.iter().position(|other| other.what == what) else { return false };
    known.swap(0, place);
    now.saturating_sub(known[0].at) <= within
}

/// The first and the second port of a transport header.
fn ports(header: &[u8]) -> Option<(u16, u16)> {
    (header.len() >= 4).then(|| (read16(header, 0), read16(header, 2)))
}

fn wide(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

#[cfg(test)]
mod tests;
