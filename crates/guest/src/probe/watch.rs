//! Raw sockets that see tokens arrive at any port, whoever has it (raw(7)).

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, recvfrom, setsockopt, socket, sockopt,
};
use tokio::io::unix::AsyncFd;
use warren_model::probe::{Arrival, Token};

use super::Seen;

/// Room for what comes in while the probe does something else; the kernel may give less.
const ROOM: usize = 4 << 20;
/// Longer packets are cut: a token is at the beginning.
const PACKET: usize = 2048;
/// RFC 768, RFC 792 and RFC 4443 §4.1: the lengths of the headers, and what an echo request is.
const UDP_HEADER: usize = 8;
const ICMP_HEADER: usize = 8;
const ECHO_V4: u8 = 8;
const ECHO_V6: u8 = 128;

#[derive(Clone, Copy)]
enum Watched {
    Datagrams,
    Echoes,
}

/// Watches datagrams and echo requests of both families. Where IPv6 is switched off, there is nothing to watch.
pub fn start(seen: &Seen) -> io::Result<()> {
    use AddressFamily::{Inet, Inet6};
    let wanted = [
        (Inet, SockProtocol::Udp, Watched::Datagrams),
        (Inet, SockProtocol::Icmp, Watched::Echoes),
        (Inet6, SockProtocol::Udp, Watched::Datagrams),
        (Inet6, SockProtocol::IcmpV6, Watched::Echoes),
    ];
    for (family, protocol, watched) in wanted {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        match socket(family, SockType::Raw, flags, protocol) {
            Ok(socket) => {
                // Less room is no harm that could be helped.
                let _ = setsockopt(&socket, sockopt::RcvBuf, &ROOM);
                tokio::spawn(follow(super::registered(socket)?, family == Inet, watched, seen.clone()));
            }
            Err(nix::errno::Errno::EAFNOSUPPORT) if family == Inet6 => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

async fn follow(socket: AsyncFd<OwnedFd>, four: bool, watched: Watched, seen: Seen) {
    let mut packet = [0; PACKET];
    loop {
        let Ok(mut ready) = socket.readable().await else { return };
        let received = ready
            .try_io(|socket| recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut packet).map_err(io::Error::from));
        let Ok(Ok((length, from))) = received else { continue };
        let found = if four {
            in_ipv4(&packet[..length], watched)
        } else {
            from.and_then(|from| in_ipv6(&packet[..length], &from, watched))
        };
        if let Some((token, arrival)) = found {
            seen.note(token, arrival);
        }
    }
}

/// Raw IPv4 sockets give the IP header, too.
fn in_ipv4(packet: &[u8], watched: Watched) -> Option<(Token, Arrival)> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let from = Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(12..16)?).ok()?);
    inside(packet.get(header..)?, from.into(), ECHO_V4, watched)
}

fn in_ipv6(packet: &[u8], from: &SockaddrStorage, watched: Watched) -> Option<(Token, Arrival)> {
    inside(packet, from.as_sockaddr_in6()?.ip().into(), ECHO_V6, watched)
}

fn inside(payload: &[u8], from: IpAddr, echo: u8, watched: Watched) -> Option<(Token, Arrival)> {
    match watched {
        Watched::Datagrams => {
            let port = u16::from_be_bytes([*payload.get(2)?, *payload.get(3)?]);
            Some((Token::find(payload.get(UDP_HEADER..)?)?, Arrival { from, port: Some(port) }))
        }
        Watched::Echoes if *payload.first()? == echo => {
            Some((Token::find(payload.get(ICMP_HEADER..)?)?, Arrival { from, port: None }))
        }
        Watched::Echoes => None,
    }
}
