//! Sockets on the gateway's address, opened in the router namespace and handed to whoever answers there.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};
use warren_model::NetworkNumber;

use crate::error::KernelError;
use crate::namespace;
use crate::spec::{GatewaySockets, NetworkSpec};

const DNS: u16 = 53;
const WAITING: i32 = 1024;

pub(crate) fn open(inside: BorrowedFd<'_>, spec: &NetworkSpec) -> Result<GatewaySockets, KernelError> {
    let network = spec.number;
    let (four, six) = (IpAddr::from(spec.gateway4), IpAddr::from(spec.gateway6));
    namespace::enter(inside, || {
        Ok(GatewaySockets {
            udp4: bound(four, SockType::Datagram).map_err(refused(network, "UDP, IPv4"))?,
            udp6: bound(six, SockType::Datagram).map_err(refused(network, "UDP, IPv6"))?,
            tcp4: bound(four, SockType::Stream).map_err(refused(network, "TCP, IPv4"))?,
            tcp6: bound(six, SockType::Stream).map_err(refused(network, "TCP, IPv6"))?,
        })
    })
    .map_err(refused(network, "entering its namespace"))?
}

fn bound(address: IpAddr, kind: SockType) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    if kind == SockType::Stream {
        // Connections of an earlier listener may still be closing.
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    }
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(address, DNS)))?;
    if kind == SockType::Stream {
        listen(&fd, Backlog::new(WAITING)?)?;
    }
    Ok(fd)
}

fn refused(network: NetworkNumber, what: &'static str) -> impl FnOnce(Errno) -> KernelError {
    move |source| KernelError::GatewaySocket { network, what, source }
}
