//! Sockets on the gateway, opened in the router namespace and handed to whoever answers there.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
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
/// Where tools that want a proxy find one, on the gateway's addresses.
pub const PROXY_PORT: u16 = 3128;
/// Where the rules hand over connections to synthetic addresses.
pub const TRANSPARENT_PORT: u16 = 3129;
const WAITING: i32 = 1024;

pub(crate) fn open(inside: BorrowedFd<'_>, spec: &NetworkSpec) -> Result<GatewaySockets, KernelError> {
    let network = spec.number;
    let [dns4, dns6] = [spec.gateway4.into(), spec.gateway6.into()].map(|gateway: IpAddr| (gateway, DNS));
    let [proxy4, proxy6] = [dns4.0, dns6.0].map(|gateway| (gateway, PROXY_PORT));
    let [any4, any6] =
        [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()].map(|any: IpAddr| (any, TRANSPARENT_PORT));
    namespace::enter(inside, || {
        Ok(GatewaySockets {
            udp4: bound(dns4, SockType::Datagram).map_err(refused(network, "UDP, IPv4"))?,
            udp6: bound(dns6, SockType::Datagram).map_err(refused(network, "UDP, IPv6"))?,
            tcp4: bound(dns4, SockType::Stream).map_err(refused(network, "TCP, IPv4"))?,
            tcp6: bound(dns6, SockType::Stream).map_err(refused(network, "TCP, IPv6"))?,
            transparent4: transparent(any4).map_err(refused(network, "transparent, IPv4"))?,
            transparent6: transparent(any6).map_err(refused(network, "transparent, IPv6"))?,
            proxy4: bound(proxy4, SockType::Stream).map_err(refused(network, "proxy, IPv4"))?,
            proxy6: bound(proxy6, SockType::Stream).map_err(refused(network, "proxy, IPv6"))?,
        })
    })
    .map_err(refused(network, "entering its namespace"))?
}

/// The sockets for operators, in the calling thread's namespace: at this address; where it is that of every interface
/// with IPv4, at the same port of IPv6 as well.
pub fn tunnel_sockets(listen: SocketAddr) -> io::Result<Vec<UdpSocket>> {
    /// Bytes that wait for a busy reader; what does not fit is lost.
    const WAITING: usize = 4 << 20;
    let sockets = match listen {
        SocketAddr::V4(four) if four.ip().is_unspecified() => {
            let warren_tunnel::Sockets { v4, v6 } = warren_tunnel::Sockets::bind(four)?;
            v4.into_iter().chain(v6).collect()
        }
        other => vec![UdpSocket::bind(other)?],
    };
    for socket in &sockets {
        // Beyond the limit for ordinary processes, where that is allowed.
        let _ = setsockopt(socket, sockopt::RcvBufForce, &WAITING);
    }
    Ok(sockets)
}

/// Sockets that connect to the network's machines from the gateway's address. A port is taken when one is connected, so
/// that many take none.
pub(crate) fn dialers(inside: BorrowedFd<'_>, spec: &NetworkSpec, count: usize) -> Result<Vec<OwnedFd>, KernelError> {
    let network = spec.number;
    let dialer = || {
        let fd = made(spec.gateway4.into(), SockType::Stream)?;
        setsockopt(&fd, sockopt::IpBindAddressNoPort, &true)?;
        bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(spec.gateway4.into(), 0)))?;
        Ok(fd)
    };
    namespace::enter(inside, || (0..count).map(|_| dialer()).collect::<Result<_, Errno>>())
        .map_err(refused(network, "entering its namespace"))?
        .map_err(refused(network, "to its machines"))
}

/// Listeners for the public, in the calling thread's namespace: at this address; where it is that of every interface
/// with IPv4, at the same port of IPv6 as well if the host has that.
pub fn public_sockets(listen: SocketAddr) -> io::Result<Vec<TcpListener>> {
    let first = TcpListener::from(bound((listen.ip(), listen.port()), SockType::Stream)?);
    let port = first.local_addr()?.port();
    let mut sockets = vec![first];
    if listen.ip() == Ipv4Addr::UNSPECIFIED {
        match bound((Ipv6Addr::UNSPECIFIED.into(), port), SockType::Stream) {
            Ok(second) => sockets.push(second.into()),
            Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(sockets)
}

fn bound((address, port): (IpAddr, u16), kind: SockType) -> Result<OwnedFd, Errno> {
    let fd = made(address, kind)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(address, port)))?;
    if kind == SockType::Stream {
        listen(&fd, Backlog::new(WAITING)?)?;
    }
    Ok(fd)
}

/// A listener that takes connections to addresses that are not the router's own, as `tproxy` hands them over (the
/// kernel's `tproxy.rst`).
fn transparent((address, port): (IpAddr, u16)) -> Result<OwnedFd, Errno> {
    let fd = made(address, SockType::Stream)?;
    // One flag of the socket for both families; `IP_TRANSPARENT` sets it on an IPv6 socket, too (`ipv6_setsockopt`).
    setsockopt(&fd, sockopt::IpTransparent, &true)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(address, port)))?;
    listen(&fd, Backlog::new(WAITING)?)?;
    Ok(fd)
}

fn made(address: IpAddr, kind: SockType) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    if kind == SockType::Stream {
        // Connections of an earlier listener may still be closing.
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    }
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    Ok(fd)
}

fn refused(network: NetworkNumber, what: &'static str) -> impl FnOnce(Errno) -> KernelError {
    move |source| KernelError::GatewaySocket { network, what, source }
}
