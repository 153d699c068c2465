//! What the daemon hands to the edge.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

use ipnet::Ipv6Net;
use serde::{Deserialize, Serialize};
use warren_model::{NetworkCidr, NetworkNumber};

/// What the resolver of one network answers: a snapshot that replaces the one before it as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkView {
    pub number: NetworkNumber,
    /// Chosen by the daemon; the edge only repeats it.
    pub generation: u64,
    pub gateway4: Ipv4Addr,
    pub gateway6: Ipv6Addr,
    /// The range whose reverse names (in-addr.arpa) are answered here.
    pub cidr: NetworkCidr,
    /// The range whose reverse names (ip6.arpa) are answered here.
    pub cidr6: Ipv6Net,
    /// The names in `.internal`. `gateway.internal` is always there and cannot be given to a member.
    pub names: Vec<NameRecord>,
    /// Where every other name is looked up, in order of preference. Empty: nothing outside is looked up.
    pub forward: Vec<SocketAddr>,
}

/// One name of a network and the two addresses behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameRecord {
    /// A name inside `.internal`, such as `worker.vm.internal`, without a trailing dot.
    pub name: String,
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
}

/// The sockets of one network, bound to port 53 of its gateway addresses inside its namespace; the TCP ones listen.
#[derive(Debug)]
pub struct Sockets {
    pub udp4: OwnedFd,
    pub udp6: OwnedFd,
    pub tcp4: OwnedFd,
    pub tcp6: OwnedFd,
}

impl Sockets {
    /// How many descriptors travel with a view.
    pub(crate) const COUNT: usize = 4;

    pub(crate) fn into_descriptors(self) -> [OwnedFd; Self::COUNT] {
        [self.udp4, self.udp6, self.tcp4, self.tcp6]
    }

    /// The inverse of [`Self::into_descriptors`].
    pub(crate) fn from_descriptors(descriptors: [OwnedFd; Self::COUNT]) -> Self {
        let [udp4, udp6, tcp4, tcp6] = descriptors;
        Self { udp4, udp6, tcp4, tcp6 }
    }

    /// Binds all four to these addresses and this port in the network namespace of the calling thread.
    ///
    /// Port 0 lets the kernel choose one for each socket. Fails like `bind(2)`.
    pub fn bind(gateway4: Ipv4Addr, gateway6: Ipv6Addr, port: u16) -> std::io::Result<Self> {
        let (v4, v6) = (SocketAddr::new(IpAddr::V4(gateway4), port), SocketAddr::new(IpAddr::V6(gateway6), port));
        Ok(Self {
            udp4: UdpSocket::bind(v4)?.into(),
            udp6: UdpSocket::bind(v6)?.into(),
            tcp4: TcpListener::bind(v4)?.into(),
            tcp6: TcpListener::bind(v6)?.into(),
        })
    }
}
