//! What the whole of the ingress may be used for.

use std::time::Duration;

/// The most that is read of a message's headers, in bytes, and how many there may be.
pub(crate) const MAX_HEAD: usize = 64 << 10;
pub(crate) const MAX_HEADERS: usize = 128;
/// Requests that one HTTP/2 connection may have under way.
pub(crate) const MAX_STREAMS: u32 = 128;
/// Streams that a client may reset before they were looked at (CVE-2023-44487), and that may break its own rules.
pub(crate) const MAX_PENDING_RESETS: usize = 20;
pub(crate) const MAX_ERROR_RESETS: usize = 128;

/// Limits that concern no single site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Client connections at once.
    pub connections: u32,
    /// Client connections at once from one source: an IPv4 address, or the /64 of an IPv6 address.
    pub connections_per_source: u32,
    /// How long a TLS handshake may take.
    pub handshake: Duration,
    /// How long the headers of a request may take; so long also is a connection kept that asks for nothing.
    pub header: Duration,
    /// How long nothing of a request's body may come.
    pub body: Duration,
    /// How long a request's body may be waited for in all; from then on it has to have come at `body_rate`.
    pub body_grace: Duration,
    /// Bytes a second, on average over the time in which the body was waited for; any where zero.
    pub body_rate: u32,
    /// How long it may take to connect to one address of a machine.
    pub connect: Duration,
    /// How long an unused connection to a machine is kept.
    pub upstream_idle: Duration,
    /// Unused connections to one machine that are kept, while no other machine of the network needs their room.
    pub upstream_spare: usize,
    /// How long the last answer on a connection may take to be read.
    pub farewell: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            connections_per_source: 1_024,
            handshake: Duration::from_secs(10),
            header: Duration::from_secs(10),
            body: Duration::from_secs(30),
            body_grace: Duration::from_secs(30),
            body_rate: 1 << 10,
            connect: Duration::from_secs(5),
            upstream_idle: Duration::from_secs(30),
            upstream_spare: 64,
            farewell: Duration::from_secs(1),
        }
    }
}
