//! Sockets at which tokens arrive, and from which they are sent back.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use warren_model::probe::{Arrival, Holder, Listening, Setup, Token};

use super::Seen;

/// How often another free port is tried when it is not free on every address.
const TRIES: usize = 8;
/// How long somebody who connected may take to send a token.
const PATIENCE: Duration = Duration::from_secs(2);
/// The most bytes that are read of a connection.
const MOST: usize = 512;
/// Nothing of Warren's sends a longer datagram here.
const DATAGRAM: usize = 2048;

/// Opens what is asked for. What cannot be opened is said, and is no error.
pub fn start(setup: &Setup, seen: &Seen, problems: &mut Vec<String>) -> Listening {
    let tcp = fixed(&setup.tcp, "tcp", problems, |port| {
        setup.addresses.iter().map(|address| serve_tcp((*address, port).into(), seen)).collect()
    });
    let udp = fixed(&setup.udp, "udp", problems, |port| {
        setup.addresses.iter().map(|address| serve_udp((*address, port).into(), seen)).collect()
    });
    let free_tcp =
        free(&setup.addresses, |at| serve_tcp(at, seen)).map_err(|error| problem(problems, "tcp", error)).ok();
    let free_udp =
        free(&setup.addresses, |at| serve_udp(at, seen)).map_err(|error| problem(problems, "udp", error)).ok();
    Listening { free_tcp, free_udp, tcp, udp, sees_all: false, problems: Vec::new() }
}

fn problem(problems: &mut Vec<String>, protocol: &str, error: io::Error) {
    problems.push(format!("no {protocol} port of its own: {error}"));
}

fn fixed(
    ports: &BTreeSet<u16>,
    protocol: &str,
    problems: &mut Vec<String>,
    open: impl Fn(u16) -> Vec<io::Result<u16>>,
) -> BTreeMap<u16, Holder> {
    let mut holders = BTreeMap::new();
    for port in ports {
        let outcomes = open(*port);
        let taken = outcomes.iter().flatten_err().any(|error| error.kind() == io::ErrorKind::AddrInUse);
        let failed = outcomes.iter().flatten_err().find(|error| error.kind() != io::ErrorKind::AddrInUse);
        if let Some(error) = failed {
            problems.push(format!("{protocol}/{port}: {error}"));
        }
        let holder = match (failed, taken) {
            (Some(_), _) => Holder::Nobody,
            (None, true) => Holder::Service,
            (None, false) => Holder::Probe,
        };
        holders.insert(*port, holder);
    }
    holders
}

/// The errors among outcomes.
trait FlattenErr<'a> {
    fn flatten_err(self) -> impl Iterator<Item = &'a io::Error>;
}

impl<'a, I: Iterator<Item = &'a io::Result<u16>>> FlattenErr<'a> for I {
    fn flatten_err(self) -> impl Iterator<Item = &'a io::Error> {
        self.filter_map(|outcome| outcome.as_ref().err())
    }
}

/// One port that is free on every address.
fn free(addresses: &[IpAddr], open: impl Fn(SocketAddr) -> io::Result<u16>) -> io::Result<u16> {
    let (first, rest) = addresses.split_first().ok_or(io::ErrorKind::AddrNotAvailable)?;
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..TRIES {
        // A port that is not free elsewhere stays open here, and is not told to anybody.
        let port = open((*first, 0).into())?;
        match rest.iter().try_for_each(|address| open((*address, port).into()).map(drop)) {
            Ok(()) => return Ok(port),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

fn serve_tcp(at: SocketAddr, seen: &Seen) -> io::Result<u16> {
    let listener = StdTcpListener::bind(at)?;
    let port = listener.local_addr()?.port();
    listener.set_nonblocking(true)?;
    let (listener, seen) = (TcpListener::from_std(listener)?, seen.clone());
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, from)) => {
                    drop(tokio::spawn(tokio::time::timeout(PATIENCE, answer(stream, from, port, seen.clone()))))
                }
                // Out of descriptors, for a moment.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    });
    Ok(port)
}

async fn answer(mut stream: TcpStream, from: SocketAddr, port: u16, seen: Seen) {
    let mut bytes = Vec::with_capacity(Token::LENGTH);
    while bytes.len() < MOST {
        match stream.read_buf(&mut bytes).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if let Some(token) = Token::find(&bytes) {
            seen.note(token.clone(), Arrival { from: from.ip().to_canonical(), port: Some(port) });
            // Whoever sent it may be gone.
            let _ = stream.write_all(token.as_str().as_bytes()).await;
            return;
        }
    }
}

fn serve_udp(at: SocketAddr, seen: &Seen) -> io::Result<u16> {
    let socket = StdUdpSocket::bind(at)?;
    let port = socket.local_addr()?.port();
    socket.set_nonblocking(true)?;
    let (socket, seen) = (UdpSocket::from_std(socket)?, seen.clone());
    tokio::spawn(async move {
        let mut bytes = [0; DATAGRAM];
        loop {
            // An error here is an earlier answer's that nobody took.
            let Ok((length, from)) = socket.recv_from(&mut bytes).await else { continue };
            if let Some(token) = Token::find(&bytes[..length]) {
                seen.note(token.clone(), Arrival { from: from.ip().to_canonical(), port: Some(port) });
                let _ = socket.send_to(token.as_str().as_bytes(), from).await;
            }
        }
    });
    Ok(port)
}
