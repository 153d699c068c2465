//! What a peer that may reach only a part of its network sends and gets.

use crate::packet::{ICMPV4, ICMPV6, Inner, TCP, UDP, upper};
use crate::peer::Only;

/// Unreachable (with "fragmentation needed", RFC 1191), time exceeded, parameter problem: RFC 792.
const ERRORS_V4: [u8; 3] = [3, 11, 12];
/// Unreachable, packet too big, time exceeded, parameter problem: RFC 4443 §3.
const ERRORS_V6: [u8; 4] = [1, 2, 3, 4];

/// The offsets of the ports in the headers of TCP and UDP.
const SOURCE: usize = 0;
const DESTINATION: usize = 2;

impl Only {
    /// Whether the peer may send this. `packet` is what `inner` was read from.
    pub(crate) fn admits_from(&self, inner: &Inner, packet: &[u8]) -> bool {
        self.addresses.contains(&inner.destination) && self.has_port(packet, DESTINATION)
    }

    /// Whether the peer may be sent this. `packet` is what `inner` was read from.
    pub(crate) fn admits_to(&self, inner: &Inner, packet: &[u8]) -> bool {
        (self.addresses.contains(&inner.source) && self.has_port(packet, SOURCE))
            || upper(packet).is_some_and(|(protocol, message)| is_error(inner.source.is_ipv4(), protocol, message))
    }

    fn has_port(&self, packet: &[u8], at: usize) -> bool {
        let Some(port) = self.port else { return true };
        let Some((TCP | UDP, transport)) = upper(packet) else { return false };
        transport.get(at..at + 2) == Some(&port.to_be_bytes())
    }
}

/// Whether this, right behind an IP header, says that something sent before did not arrive.
pub(crate) fn is_error(version4: bool, protocol: u8, message: &[u8]) -> bool {
    match (protocol, message) {
        (ICMPV4, [kind, ..]) if version4 => ERRORS_V4.contains(kind),
        (ICMPV6, [kind, ..]) if !version4 => ERRORS_V6.contains(kind),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
