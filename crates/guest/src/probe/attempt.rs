//! One attempt over TCP, UDP or ICMP.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream as StdTcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, getsockopt, recv, send,
    socket, sockopt,
};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use warren_model::probe::{Outcome, Token};

use super::refusal;

/// When a datagram that nobody answered is sent again: the kernel answers so many refusals a second and no more, and
/// the last time is after the rush.
const AGAIN: [Duration; 2] = [Duration::from_millis(400), Duration::from_millis(1300)];
/// The header of an echo request (RFC 792, RFC 4443 §4.1): the kernel fills in checksum and identifier (icmp(7)).
const ECHO_V4: [u8; 8] = [8, 0, 0, 0, 0, 0, 0, 1];
const ECHO_V6: [u8; 8] = [128, 0, 0, 0, 0, 0, 0, 1];

/// Connects, sends the token, and waits for it to come back.
///
/// # Errors
/// When nothing could be sent at all.
pub async fn tcp(to: SocketAddr, token: &Token, patience: Duration) -> io::Result<Outcome> {
    let until = Instant::now() + patience;
    let socket = super::registered(open(to.ip(), SockType::Stream, None)?)?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        // What fails at once did not leave the machine, unless it answers for itself.
        Err(Errno::ECONNREFUSED) => return Ok(Outcome::Reset),
        Err(errno) => return Err(errno.into()),
    }
    let Ok(ready) = timeout_at(until, socket.writable()).await else { return Ok(Outcome::Silent) };
    drop(ready?);
    let error = getsockopt(&socket.as_fd(), sockopt::SocketError)?;
    if error != 0 {
        return Ok(refusal::meaning(socket.as_fd(), &io::Error::from_raw_os_error(error)));
    }
    let mut stream = TcpStream::from_std(StdTcpStream::from(socket.into_inner()))?;
    let exchange = async {
        stream.write_all(token.as_str().as_bytes()).await?;
        let mut answer = Vec::with_capacity(Token::LENGTH);
        while answer.len() < Token::LENGTH && stream.read_buf(&mut answer).await? > 0 {}
        io::Result::Ok(Token::find(&answer).as_ref() == Some(token))
    };
    match timeout_at(until, exchange).await {
        Ok(Ok(true)) => Ok(Outcome::Echoed),
        _ => Ok(Outcome::Connected),
    }
}

/// Sends the token in a datagram, up to three times, and waits for it to come back.
pub async fn udp(to: SocketAddr, token: &Token, patience: Duration) -> io::Result<Outcome> {
    let socket = open(to.ip(), SockType::Datagram, None)?;
    exchange(socket, to, token.as_str().as_bytes(), token, patience).await
}

/// Sends the token in an echo request, up to three times, and waits for it to come back.
pub async fn icmp(to: IpAddr, token: &Token, patience: Duration) -> io::Result<Outcome> {
    let (protocol, header) = match to {
        IpAddr::V4(_) => (SockProtocol::Icmp, ECHO_V4),
        IpAddr::V6(_) => (SockProtocol::IcmpV6, ECHO_V6),
    };
    let socket = open(to, SockType::Datagram, Some(protocol))?;
    let packet = [header.as_slice(), token.as_str().as_bytes()].concat();
    exchange(socket, SocketAddr::new(to, 0), &packet, token, patience).await
}

fn open(to: IpAddr, kind: SockType, protocol: Option<SockProtocol>) -> io::Result<OwnedFd> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, kind, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, protocol)?;
    refusal::keep(socket.as_fd(), to.is_ipv4())?;
    Ok(socket)
}

async fn exchange(
    socket: OwnedFd,
    to: SocketAddr,
    packet: &[u8],
    token: &Token,
    patience: Duration,
) -> io::Result<Outcome> {
    let started = Instant::now();
    let socket = super::registered(socket)?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    let put = || send(socket.as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL).map_err(io::Error::from);
    put()?;
    let mut again = AGAIN.into_iter();
    loop {
        let next = again.next();
        let until = started + next.unwrap_or(patience).min(patience);
        match timeout_at(until, answer(&socket, token)).await {
            Ok(outcome) => return outcome,
            Err(_) if next.is_some() => {
                // A refusal of the first may come as the error of the second.
                if let Err(error) = put() {
                    return Ok(refusal::meaning(socket.as_fd(), &error));
                }
            }
            Err(_) => return Ok(Outcome::Silent),
        }
    }
}

async fn answer(socket: &AsyncFd<OwnedFd>, token: &Token) -> io::Result<Outcome> {
    let mut bytes = [0; 2048];
    loop {
        let mut ready = socket.readable().await?;
        let received =
            ready.try_io(|socket| recv(socket.as_raw_fd(), &mut bytes, MsgFlags::empty()).map_err(io::Error::from));
        match received {
            Ok(Ok(length)) if Token::find(&bytes[..length]).as_ref() == Some(token) => return Ok(Outcome::Echoed),
            // Somebody else's answer says nothing.
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Ok(refusal::meaning(socket.as_fd(), &error)),
            Err(_) => {}
        }
    }
}
