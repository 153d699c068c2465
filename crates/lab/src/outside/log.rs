//! What was seen outside, in the order in which it was seen.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// More than any test causes; what comes later is not kept.
const MOST: usize = 400_000;

/// Something that reached the outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// The first packet of a TCP connection, or any packet of something else that came over the host's link.
    Packet(Packet),
    /// A question to a DNS server; the name in lower case, without a trailing dot.
    Query { server: IpAddr, name: String, kind: String, tcp: bool },
    /// A TCP connection was made.
    Opened { to: SocketAddr, from: SocketAddr },
    /// The beginning of a TLS connection that was understood.
    Hello { to: SocketAddr, from: SocketAddr, server_name: Option<String> },
    /// The head of an HTTP request, and the server name of the TLS connection that it came over.
    Request { to: SocketAddr, from: SocketAddr, server_name: Option<String>, head: String },
    /// Bytes of a connection; for TLS, what was inside.
    Data { to: SocketAddr, from: SocketAddr, bytes: Vec<u8> },
    /// A connection ended.
    Closed { to: SocketAddr, from: SocketAddr },
}

/// What the head of a packet says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    pub from: IpAddr,
    pub to: IpAddr,
    /// The number of the protocol (IANA), behind IPv6 extension headers.
    pub protocol: u8,
    /// The destination's port, for TCP and UDP, where the packet has it: later fragments have none.
    pub port: Option<u16>,
    /// One of several fragments.
    pub fragment: bool,
}

#[derive(Debug, Clone)]
pub struct Entry {
    pub at: SystemTime,
    pub seen: Seen,
}

/// A place in a [`Log`]: what came later is behind it.
#[derive(Debug, Clone, Copy)]
pub struct Mark(usize);

/// Everything that was seen.
#[derive(Default)]
pub struct Log(Mutex<Vec<Entry>>);

impl Log {
    pub(crate) fn add(&self, seen: Seen) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() < MOST {
            entries.push(Entry { at: SystemTime::now(), seen });
        }
    }

    pub fn mark(&self) -> Mark {
        Mark(self.0.lock().unwrap_or_else(PoisonError::into_inner).len())
    }

    pub fn since(&self, mark: Mark) -> Vec<Entry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)[mark.0..].to_vec()
    }

    /// The packets since then that went to this address.
    pub fn packets_to(&self, mark: Mark, address: IpAddr) -> Vec<Packet> {
        self.packets(mark).into_iter().filter(|packet| packet.to == address).collect()
    }

    pub fn packets(&self, mark: Mark) -> Vec<Packet> {
        let packet = |entry: Entry| match entry.seen {
            Seen::Packet(packet) => Some(packet),
            _ => None,
        };
        self.since(mark).into_iter().filter_map(packet).collect()
    }

    /// The names that DNS servers were asked for since then.
    pub fn queries(&self, mark: Mark) -> Vec<String> {
        let name = |entry: Entry| match entry.seen {
            Seen::Query { name, .. } => Some(name),
            _ => None,
        };
        self.since(mark).into_iter().filter_map(name).collect()
    }

    /// The ends at which TCP connections arrived since then.
    pub fn opened(&self, mark: Mark) -> Vec<SocketAddr> {
        let end = |entry: Entry| match entry.seen {
            Seen::Opened { to, .. } => Some(to),
            _ => None,
        };
        self.since(mark).into_iter().filter_map(end).collect()
    }

    /// The server names that TLS connections asked for since then; an empty one when they gave none.
    pub fn server_names(&self, mark: Mark) -> Vec<String> {
        let name = |entry: Entry| match entry.seen {
            Seen::Hello { server_name, .. } => Some(server_name.unwrap_or_default()),
            _ => None,
        };
        self.since(mark).into_iter().filter_map(name).collect()
    }

    /// The heads of HTTP requests since then.
    pub fn requests(&self, mark: Mark) -> Vec<String> {
        let head = |entry: Entry| match entry.seen {
            Seen::Request { head, .. } => Some(head),
            _ => None,
        };
        self.since(mark).into_iter().filter_map(head).collect()
    }

    /// Whether this text was among the bytes of any connection since then.
    pub fn heard(&self, mark: Mark, text: &str) -> bool {
        let mut streams: Vec<((SocketAddr, SocketAddr), Vec<u8>)> = Vec::new();
        for entry in self.since(mark) {
            let Seen::Data { to, from, bytes } = entry.seen else { continue };
            match streams.iter_mut().rev().find(|(ends, _)| *ends == (to, from)) {
                Some((_, stream)) => stream.extend(bytes),
                None => streams.push(((to, from), bytes)),
            }
        }
        streams.iter().any(|(_, stream)| stream.windows(text.len()).any(|window| window == text.as_bytes()))
    }

    /// When bytes that hold this text came last since then.
    pub fn last_heard(&self, mark: Mark, text: &str) -> Option<SystemTime> {
        let holds = |entry: &Entry| match &entry.seen {
            Seen::Data { bytes, .. } => bytes.windows(text.len()).any(|window| window == text.as_bytes()),
            _ => false,
        };
        self.since(mark).iter().rev().find(|entry| holds(entry)).map(|entry| entry.at)
    }
}
