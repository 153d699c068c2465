//! The traffic: the same code on either kind of wire, each end in a process of its own.
//!
//! A connection says with its first byte what it wants: [`SINK`] takes everything and, at the end of the stream,
//! answers with the number of bytes (8 bytes, big endian); [`ECHO`] gives every byte back; [`SOURCE`] sends for as
//! many milliseconds as the next 4 bytes say (big endian), and closes. The same port echoes UDP.
//! Where there may be a proxy in between, the beginning of TLS comes before that, and bytes are sent to the near end: not
//! every proxy lets a client close one direction and still listen.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use crate::hello;
use crate::options::Role;
use crate::process;
use crate::proxies;
use crate::stats::percentile;

const SINK: u8 = b'S';
const ECHO: u8 = b'E';
const SOURCE: u8 = b'D';
/// Bytes per read and write.
const BUFFER: usize = 128 << 10;
/// Round trips before those that count.
const WARM_UP: usize = 1000;
/// Connections before those that count.
const CONNECT_WARM_UP: usize = 20;

/// What a sender saw.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Throughput {
    /// Bytes that arrived.
    pub bytes: u64,
    pub seconds: f64,
}

/// How long one byte took there and back, in microseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct RoundTrips {
    pub p50: f64,
    pub p99: f64,
}

/// Plays one part and prints what came of it, as JSON.
pub fn run(role: Role) -> anyhow::Result<()> {
    if let Role::Serve { cpu: Some(cpu), .. }
    | Role::Throughput { cpu: Some(cpu), .. }
    | Role::RoundTrips { cpu: Some(cpu), .. }
    | Role::Connects { cpu: Some(cpu), .. } = role
    {
        process::pin(cpu)?;
    }
    match role {
        Role::Serve { port, tls, .. } => serve(port, tls),
        Role::Throughput { to, streams, milliseconds, hello, .. } => {
            print(&throughput(to, streams, Duration::from_millis(milliseconds), hello.as_deref())?)
        }
        Role::RoundTrips { to, count, .. } => print(&round_trips(to, count)?),
        Role::Connects { to, count, hello, .. } => print(&connects(to, count, &hello)?),
        Role::Relay { listen, to } => proxies::relay(listen, to),
    }
}

fn print(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}

/// Prints the port and serves until stdin ends.
fn serve(port: u16, tls: bool) -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    let port = listener.local_addr()?.port();
    let datagrams = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    std::thread::spawn(move || echo_datagrams(&datagrams));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that goes away ends its own measurement with an error.
            std::thread::spawn(move || answer(stream, tls));
        }
    });
    print(&port)?;
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    Ok(())
}

fn echo_datagrams(socket: &UdpSocket) {
    let mut buffer = [0; 2048];
    loop {
        if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            // A lost answer is asked for again.
            let _ = socket.send_to(&buffer[..length], peer);
        }
    }
}

fn answer(mut stream: TcpStream, tls: bool) -> io::Result<()> {
    if tls {
        hello::answer(&mut stream)?;
    }
    let mut wanted = [0];
    stream.read_exact(&mut wanted)?;
    if wanted[0] == SINK {
        let mut buffer = vec![0; BUFFER];
        let mut total = 0u64;
        loop {
            match stream.read(&mut buffer)? {
                0 => return stream.write_all(&total.to_be_bytes()),
                length => total += length as u64,
            }
        }
    }
    if wanted[0] == SOURCE {
        let mut milliseconds = [0; 4];
        stream.read_exact(&mut milliseconds)?;
        let until = Instant::now() + Duration::from_millis(u32::from_be_bytes(milliseconds).into());
        let buffer = vec![0x5a; BUFFER];
        while Instant::now() < until {
            stream.write_all(&buffer)?;
        }
        return Ok(());
    }
    stream.set_nodelay(true)?;
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

fn throughput(to: SocketAddr, streams: usize, duration: Duration, name: Option<&str>) -> anyhow::Result<Throughput> {
    let mut connections = Vec::new();
    for _ in 0..streams {
        let mut stream = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
        match name {
            Some(name) => hello::greet(&mut stream, name).context("the way to the server is closed")?,
            None => stream.write_all(&[SINK])?,
        }
        connections.push(stream);
    }
    let carry = |stream, until| if name.is_some() { receive(stream, duration) } else { send(stream, until) };
    let started = Instant::now();
    let bytes = std::thread::scope(|scope| {
        let carriers: Vec<_> =
            connections.into_iter().map(|stream| scope.spawn(move || carry(stream, started + duration))).collect();
        carriers.into_iter().map(|carrier| carrier.join().unwrap_or_else(|_| Err(io::Error::other("panicked")))).sum()
    });
    // Until everything has arrived, not until it was handed to the kernel.
    let seconds = started.elapsed().as_secs_f64();
    let bytes: io::Result<u64> = bytes;
    Ok(Throughput { bytes: bytes?, seconds })
}

fn receive(mut stream: TcpStream, duration: Duration) -> io::Result<u64> {
    let milliseconds = u32::try_from(duration.as_millis()).map_err(io::Error::other)?;
    stream.write_all(&[&[SOURCE], milliseconds.to_be_bytes().as_slice()].concat())?;
    let mut buffer = vec![0; BUFFER];
    let mut total = 0u64;
    loop {
        match stream.read(&mut buffer)? {
            0 if total > 0 => return Ok(total),
            0 => return Err(io::Error::other("nothing came")),
            length => total += length as u64,
        }
    }
}

fn send(mut stream: TcpStream, until: Instant) -> io::Result<u64> {
    let buffer = vec![0x5a; BUFFER];
    while Instant::now() < until {
        stream.write_all(&buffer)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut total = [0; 8];
    stream.read_exact(&mut total)?;
    Ok(u64::from_be_bytes(total))
}

fn round_trips(to: SocketAddr, count: usize) -> anyhow::Result<RoundTrips> {
    if count == 0 {
        bail!("nothing to measure");
    }
    let mut stream = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
    stream.set_nodelay(true)?;
    stream.write_all(&[ECHO])?;
    let mut taken = Vec::with_capacity(count);
    for trip in 0..WARM_UP + count {
        let began = Instant::now();
        let mut byte = [1];
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        if trip >= WARM_UP {
            taken.push(began.elapsed().as_secs_f64() * 1e6);
        }
    }
    taken.sort_unstable_by(f64::total_cmp);
    Ok(RoundTrips { p50: percentile(&taken, 50.0), p99: percentile(&taken, 99.0) })
}

/// How long a connection and the first bytes of the server's answer took, again and again.
fn connects(to: SocketAddr, count: usize, name: &str) -> anyhow::Result<RoundTrips> {
    if count == 0 {
        bail!("nothing to measure");
    }
    let begins = hello::client_hello(name);
    let mut taken = Vec::with_capacity(count);
    for connection in 0..CONNECT_WARM_UP + count {
        let began = Instant::now();
        let mut stream = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
        stream.set_nodelay(true)?;
        stream.write_all(&begins)?;
        stream.read_exact(&mut [0]).context("the way to the server is closed")?;
        if connection >= CONNECT_WARM_UP {
            taken.push(began.elapsed().as_secs_f64() * 1e6);
        }
    }
    taken.sort_unstable_by(f64::total_cmp);
    Ok(RoundTrips { p50: percentile(&taken, 50.0), p99: percentile(&taken, 99.0) })
}

/// A connection, greeted by name where there is one, to the echo, that has passed a byte there and back.
pub fn connected(to: SocketAddr, name: Option<&str>, limit: Duration) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, limit).context("a connection that is allowed does not pass")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(limit))?;
    if let Some(name) = name {
        hello::greet(&mut stream, name).context("a connection that is allowed is not served")?;
    }
    stream.write_all(&[ECHO, b'?'])?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

/// Sends a datagram again and again until it comes back; how long that took. Gives up after `limit`.
pub fn first_reply(to: SocketAddr, limit: Duration) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(Duration::from_micros(500)))?;
    let mut buffer = [0; 16];
    while started.elapsed() < limit {
        // Refused while there is no way yet.
        if socket.send_to(b"?", to).is_ok() && socket.recv_from(&mut buffer).is_ok() {
            return Ok(started.elapsed());
        }
    }
    bail!("no packet passed within {limit:?}")
}
