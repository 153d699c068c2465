//! From the devices to UDP: one thread.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use rustix::event::epoll;

use crate::noise::{DATA_HEADER, TAG};
use crate::packet::Inner;
use crate::packet::frame::LONGEST;
use crate::packet::split::Split;
use crate::session::Session;
use crate::shared::{Shared, padded};
use crate::sys::{Outgoing, Sender};
use crate::tables::Tables;
use crate::transport::Keypair;

/// The token of the descriptor that says that everything ends.
pub const ENDING: u64 = 0;

/// Sealed packets are handed to the kernel when there are so many bytes of them.
const BURST: usize = 128 << 10;
const LARGEST: usize = 65_535;
/// One datagram is a packet of the device's whole, when that has to be.
const ARENA: usize = BURST + LARGEST + 64;
/// Bytes and segments of one GSO message: what fits a datagram, and what every kernel takes.
const MESSAGE: usize = 65_000;
const SEGMENTS: usize = 64;
/// Packets from one device before the next one has its turn.
const TURN: usize = 64;

pub fn run(shared: &Shared) {
    let mut outbound = Outbound {
        shared,
        arena: vec![0; ARENA].into(),
        packet: vec![0; LARGEST + 1].into(),
        used: 0,
        runs: Vec::new(),
        messages: Vec::new(),
        sender: Sender::new(),
    };
    let mut events = Vec::with_capacity(64);
    while !shared.stop.load(Relaxed) {
        events.clear();
        if epoll::wait(&shared.devices, rustix::buffer::spare_capacity(&mut events), None).is_err() {
            continue;
        }
        for event in &events {
            if event.data.u64() != ENDING {
                outbound.pass(event.data.u64());
            }
        }
    }
}

struct Outbound<'s> {
    shared: &'s Shared,
    /// Sealed packets, next to each other.
    arena: Box<[u8]>,
    /// One packet from a device.
    packet: Box<[u8]>,
    used: usize,
    runs: Vec<Run>,
    messages: Vec<Outgoing>,
    sender: Sender,
}

/// Packets of the same size, but for the last, of one session.
struct Run {
    session: Arc<Session>,
    start: usize,
    end: usize,
    segment: usize,
    count: u64,
    /// Bytes before they were sealed.
    bytes: u64,
}

impl Outbound<'_> {
    fn pass(&mut self, token: u64) {
        let shared = self.shared;
        // Until what was read is sent, so that removing a peer waits for that.
        let tables = shared.tables();
        let now = shared.clock.now();
        let Some(network) = tables.by_token.get(&token).and_then(|key| tables.networks.get(key)) else { return };
        let mut head = [0; LONGEST];
        let mut packet = std::mem::take(&mut self.packet);
        for _ in 0..TURN {
            let read = match network.device.read(&mut head, &mut packet) {
                Ok(read) => read,
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => {
                    // Somebody deleted it. It would be called readable for ever.
                    let _ = epoll::delete(&shared.devices, network.device.as_fd());
                    tracing::error!(%error, "the tunnel's device of a network is gone");
                    break;
                }
            };
            let routed = read.and_then(|(header, length)| {
                let whole = &packet[..length];
                let inner = Inner::read(whole).filter(|inner| inner.length == length)?;
                let session = network.route(inner.destination).filter(|session| session.is_on(now))?;
                Some((inner, whole, session, Split::new(&header, whole)?))
            });
            let Some((inner, whole, session, split)) = routed else {
                shared.counters.unrouted.fetch_add(1, Relaxed);
                continue;
            };
            // The pieces of a large packet have its addresses and ports, and all of them are answers or none.
            if session.only.as_ref().is_some_and(|only| !only.admits_to(&inner, whole))
                || session.answers.as_ref().is_some_and(|answers| !answers.admit(&inner, whole, now))
            {
                session.traffic.withheld.fetch_add(1, Relaxed);
                continue;
            }
            let keys = session.keys().sending(now);
            match &keys {
                Some(keys) => {
                    if keys.is_stale(now) {
                        shared.want_handshake(session);
                    }
                    self.seal(split, session, keys, now);
                }
                None => {
                    self.keep(split, session);
                    shared.want_handshake(session);
                    // There may be keys since we looked, and what waited may have been sent before this came.
                    shared.send_waiting(&mut self.sender, session, false);
                }
            }
        }
        self.flush(now);
        self.packet = packet;
        drop::<std::sync::RwLockReadGuard<'_, Tables>>(tables);
    }

    fn seal(&mut self, mut split: Split<'_>, session: &Arc<Session>, keys: &Keypair, now: u64) {
        while let Some(length) = split.next_length() {
            let padded = padded(length, session.device.mtu);
            let size = DATA_HEADER + padded + TAG;
            if self.used >= BURST || self.used + size > self.arena.len() {
                self.flush(now);
            }
            let Some(counter) = keys.reserve(1) else {
                session.traffic.lost.fetch_add(1, Relaxed);
                return;
            };
            let (start, end) = (self.used, self.used + size);
            let sealed = &mut self.arena[start..end];
            split.write(&mut sealed[DATA_HEADER..DATA_HEADER + length]);
            sealed[DATA_HEADER + length..DATA_HEADER + padded].fill(0);
            keys.seal(counter, sealed);
            self.used = end;
            match self.runs.last_mut() {
                Some(run)
                    if Arc::ptr_eq(&run.session, session)
                        && size <= run.segment
                        && (run.end - run.start).is_multiple_of(run.segment)
                        && end - run.start <= MESSAGE
                        && run.count < SEGMENTS as u64 =>
                {
                    run.end = end;
                    run.count += 1;
                    run.bytes += length as u64;
                }
                _ => {
                    let session = Arc::clone(session);
                    self.runs.push(Run { session, start, end, segment: size, count: 1, bytes: length as u64 });
                }
            }
        }
    }

    fn keep(&self, mut split: Split<'_>, session: &Arc<Session>) {
        while let Some(length) = split.next_length() {
            let mut packet = vec![0; length];
            split.write(&mut packet);
            self.shared.keep_waiting(session, &packet);
        }
    }

    /// Hands to the kernel what is sealed.
    fn flush(&mut self, now: u64) {
        for run in self.runs.drain(..) {
            let traffic = &run.session.traffic;
            let Some(endpoint) = run.session.endpoint() else {
                traffic.lost.fetch_add(run.count, Relaxed);
                continue;
            };
            traffic.sent_packets.fetch_add(run.count, Relaxed);
            traffic.sent_bytes.fetch_add(run.bytes, Relaxed);
            run.session.life.sent(now, true);
            self.messages.push(Outgoing { at: run.start..run.end, segment: run.segment, endpoint });
        }
        let lost = self.shared.port.send(&mut self.sender, &self.arena, &mut self.messages);
        self.shared.counters.unsent.fetch_add(lost as u64, Relaxed);
        self.messages.clear();
        self.used = 0;
    }
}
