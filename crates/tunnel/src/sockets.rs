//! The UDP port: a socket for each version of IP.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;

use crate::sys::{self, Endpoint, Outgoing, SENT, Sender};

/// How long a full socket is waited for before what did not fit is lost. Removing a peer waits for that, too.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// How much may wait in a socket, in bytes.
const ROOM: usize = 4 << 20;

/// The port. One of the two may be missing.
#[derive(Debug)]
pub struct Sockets {
    /// For IPv4.
    pub v4: Option<UdpSocket>,
    /// For IPv6 alone (`IPV6_V6ONLY`).
    pub v6: Option<UdpSocket>,
}

/// The sockets, ready for use.
pub(crate) struct Port {
    sockets: Sockets,
    /// Whether the way out splits datagrams. Cleared by the first device that cannot.
    segments: AtomicBool,
}

impl Port {
    pub fn new(sockets: Sockets) -> io::Result<Self> {
        for (socket, is_v6) in sockets.all() {
            if socket.local_addr()?.is_ipv6() != is_v6 {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "a socket is of the other version of IP"));
            }
            sys::prepare(socket.as_fd(), is_v6)?;
            make_room(socket);
        }
        Ok(Self { sockets, segments: AtomicBool::new(true) })
    }

    pub fn all(&self) -> impl Iterator<Item = &UdpSocket> {
        self.sockets.all().map(|(socket, _)| socket)
    }

    /// Sends one datagram, without waiting. Whatever keeps it from being sent, it counts as lost on the way.
    pub fn send_one(&self, sender: &mut Sender, endpoint: Endpoint, datagram: &[u8]) {
        let message = Outgoing { at: 0..datagram.len(), segment: datagram.len(), endpoint };
        self.send(sender, datagram, &mut [message]);
    }

    /// Sends all of them, and says how many messages were lost.
    pub fn send(&self, sender: &mut Sender, buffer: &[u8], messages: &mut [Outgoing]) -> usize {
        let mut lost = 0;
        let mut rest = messages;
        while let Some(first) = rest.first() {
            let is_v6 = first.endpoint.to.is_ipv6();
            let same = rest.iter().take(SENT).take_while(|message| message.endpoint.to.is_ipv6() == is_v6).count();
            let (now, later) = rest.split_at_mut(same);
            match if is_v6 { &self.sockets.v6 } else { &self.sockets.v4 } {
                Some(socket) => lost += self.send_all(socket.as_fd(), sender, buffer, now),
                None => lost += now.len(),
            }
            rest = later;
        }
        lost
    }

    fn send_all(&self, socket: BorrowedFd<'_>, sender: &mut Sender, buffer: &[u8], mut rest: &mut [Outgoing]) -> usize {
        let mut lost = 0;
        let mut waited = false;
        while let Some(first) = rest.first() {
            let splits = first.segment < first.at.len();
            if splits && !self.segments.load(Ordering::Relaxed) {
                lost += one_by_one(socket, sender, buffer, first);
                rest = &mut rest[1..];
                continue;
            }
            match sender.send(socket, buffer, rest) {
                Ok(sent) => rest = &mut rest[sent..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !waited => {
                    waited = true;
                    let _ = poll(&mut [PollFd::new(&socket, PollFlags::OUT)], Some(&PATIENCE));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return lost + rest.len(),
                Err(error) => {
                    let code = error.raw_os_error();
                    let first = &mut rest[0];
                    if first.endpoint.from.is_some()
                        && matches!(code, Some(libc::EINVAL | libc::ENETUNREACH | libc::EADDRNOTAVAIL))
                    {
                        // The address that the peer knows us by is gone: from whichever there is.
                        first.endpoint.from = None;
                        continue;
                    }
                    if splits && matches!(code, Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE)) {
                        // EIO: a device without checksums. EINVAL: segments that are larger than the way allows.
                        if code == Some(libc::EIO) {
                            self.segments.store(false, Ordering::Relaxed);
                        }
                        lost += one_by_one(socket, sender, buffer, first);
                    } else {
                        lost += 1;
                    }
                    rest = &mut rest[1..];
                }
            }
        }
        lost
    }
}

impl Sockets {
    fn all(&self) -> impl Iterator<Item = (&UdpSocket, bool)> {
        self.v4.iter().map(|socket| (socket, false)).chain(self.v6.iter().map(|socket| (socket, true)))
    }

    /// Both sockets on one port. With port 0 the kernel chooses it.
    ///
    /// # Errors
    ///
    /// When the port is taken. Without IPv6 on this host the second socket is missing.
    pub fn bind(v4: std::net::SocketAddrV4) -> io::Result<Self> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with};

        let first = UdpSocket::bind(v4)?;
        let port = first.local_addr()?.port();
        let second = || -> io::Result<UdpSocket> {
            let flags = SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::INET6, SocketType::DGRAM, flags, Some(ipproto::UDP))?;
            sockopt::set_ipv6_v6only(&socket, true)?;
            bind(&socket, &SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port)))?;
            Ok(socket.into())
        };
        match second() {
            Ok(second) => Ok(Self { v4: Some(first), v6: Some(second) }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
            Err(_) => Ok(Self { v4: Some(first), v6: None }),
        }
    }
}

/// What does not fit is lost, at the price of a retransmission. The kernel gives what its limits allow, so that whoever
/// opened the socket may have got more, and what is there stays.
fn make_room(socket: &UdpSocket) {
    // The kernel counts its own part in, and says twice what was asked for (`socket(7)`).
    let lacks = |there: rustix::io::Result<usize>| there.is_ok_and(|there| there < 2 * ROOM);
    if lacks(sockopt::socket_recv_buffer_size(socket)) {
        let _ = sockopt::set_socket_recv_buffer_size(socket, ROOM);
    }
    if lacks(sockopt::socket_send_buffer_size(socket)) {
        let _ = sockopt::set_socket_send_buffer_size(socket, ROOM);
    }
}

/// What the way out does not split.
fn one_by_one(socket: BorrowedFd<'_>, sender: &mut Sender, buffer: &[u8], message: &Outgoing) -> usize {
    let mut failed = false;
    let mut start = message.at.start;
    while start < message.at.end {
        let at = start..(start + message.segment).min(message.at.end);
        start = at.end;
        let one = Outgoing { segment: at.len(), at, endpoint: message.endpoint };
        failed |= sender.send(socket, buffer, &[one]).is_err();
    }
    usize::from(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::Receiver;

    #[test]
    fn the_room_that_a_socket_was_given_beyond_the_limits_stays() {
        let lab = warren_lab::Lab::new();
        let namespace = lab.namespace("room");
        let socket = namespace.enter(|| UdpSocket::bind("127.0.0.1:0").unwrap());
        sockopt::set_socket_recv_buffer_size_force(&socket, 16 * ROOM).unwrap();
        let port = Port::new(Sockets { v4: Some(socket), v6: None }).unwrap();
        let room = sockopt::socket_recv_buffer_size(port.all().next().unwrap()).unwrap();
        assert!(room >= 16 * ROOM, "{room}");
    }

    #[test]
    fn a_socket_gets_as_much_room_as_the_limits_allow() {
        let lab = warren_lab::Lab::new();
        let namespace = lab.namespace("room");
        let [socket, asked] = [(); 2].map(|()| namespace.enter(|| UdpSocket::bind("127.0.0.1:0").unwrap()));
        sockopt::set_socket_recv_buffer_size(&asked, ROOM).unwrap();
        let port = Port::new(Sockets { v4: Some(socket), v6: None }).unwrap();
        let room = |socket: &UdpSocket| sockopt::socket_recv_buffer_size(socket).unwrap();
        assert_eq!(room(port.all().next().unwrap()), room(&asked));
    }

    #[test]
    fn a_burst_arrives_whole_with_its_sender_and_the_address_it_came_to() {
        let lab = warren_lab::Lab::new();
        let namespace = lab.namespace("port");
        for (loopback, segments) in [("127.0.0.1:0", true), ("[::1]:0", true), ("127.0.0.1:0", false)] {
            let bind = || namespace.enter(|| UdpSocket::bind(loopback).unwrap());
            let (own, other) = (bind(), bind());
            let to = other.local_addr().unwrap();
            let is_v6 = to.is_ipv6();
            let sockets = |socket| {
                if is_v6 { Sockets { v4: None, v6: Some(socket) } } else { Sockets { v4: Some(socket), v6: None } }
            };
            let from = own.local_addr().unwrap();
            let (own, other) = (Port::new(sockets(own)).unwrap(), Port::new(sockets(other)).unwrap());
            own.segments.store(segments, Ordering::Relaxed);
            let buffer: Vec<u8> = (0..4500u32).map(|at| (at % 251) as u8).collect();
            let endpoint = Endpoint { to, from: Some((from.ip(), 0)) };
            let mut sender = Sender::new();
            let mut messages = [
                Outgoing { at: 0..3500, segment: 1000, endpoint },
                Outgoing { at: 3500..4500, segment: 1000, endpoint },
            ];
            assert_eq!(own.send(&mut sender, &buffer, &mut messages), 0);
            let mut receiver = Receiver::new();
            let mut got = Vec::new();
            while got.len() < 4500 {
                let (received, bytes) = receiver.receive(other.all().next().unwrap().as_fd()).unwrap();
                for message in received {
                    assert!(message.segment <= 1000);
                    assert_eq!((message.endpoint.to, message.endpoint.from), (from, Some((to.ip(), 0))));
                    got.extend_from_slice(&bytes[message.at.clone()]);
                }
            }
            assert_eq!(got, buffer);
        }
    }
}
