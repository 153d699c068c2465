//! From UDP to the devices: one thread for each socket.

use std::io::{self, IoSlice};
use std::net::UdpSocket;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use crate::answers::Flow;
use crate::noise::{
    COOKIE_REPLY, DATA_HEADER, INITIATION, RESPONSE, TAG, TYPE_COOKIE_REPLY, TYPE_DATA, TYPE_INITIATION, TYPE_RESPONSE,
};
use crate::packet::Inner;
use crate::packet::coalesce::{Coalescer, Sink};
use crate::packet::frame::Head;
use crate::packet::virtio::Header;
use crate::session::{Session, lock};
use crate::shared::{Counters, Message, Shared};
use crate::sys::{Endpoint, Receiver, Sender};
use crate::tables::Indexed;
use crate::transport::{KEEPALIVE, Keypair, REJECT_AFTER, REKEY_TIMEOUT};

/// Milliseconds for which senders have to prove their addresses after there was load.
const LOADED: u64 = 1_000;

pub fn run(shared: &Shared, socket: &UdpSocket) {
    let (mut receiver, mut inbound) = (Receiver::new(), Inbound::new(shared));
    while !shared.stop.load(Relaxed) {
        match receiver.receive(socket.as_fd()) {
            Ok((received, buffer)) => inbound.pass(received, buffer),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let watched = &mut [PollFd::new(socket, PollFlags::IN), PollFd::new(&shared.ending, PollFlags::IN)];
                let _ = poll(watched, None);
            }
            // What somebody on the way says of a datagram that was sent (ICMP), or that memory is short.
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

struct Inbound<'s> {
    shared: &'s Shared,
    coalescer: Coalescer<Arc<Session>>,
    sender: Sender,
    /// Sessions that got keys with which something can be sent.
    confirmed: Vec<Arc<Session>>,
}

struct Devices<'s>(&'s Counters);

impl Sink<Arc<Session>> for Devices<'_> {
    fn head(&self, to: &Arc<Session>, header: &Header, version4: bool) -> Head {
        Head::new(header, to.stations.as_ref(), version4)
    }

    fn write(&mut self, to: &Arc<Session>, pieces: &[IoSlice<'_>]) {
        if !to.device.write(pieces) {
            self.0.undelivered.fetch_add(1, Relaxed);
        }
    }
}

impl PartialEq for Session {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

/// What a burst of one session did.
#[derive(Default)]
struct Tally {
    packets: u64,
    bytes: u64,
    refused: u64,
    /// Whether anything was authentic, and whether there was data.
    authentic: bool,
    data: bool,
    /// What answers were last said to be awaited for.
    flow: Option<Flow>,
}

impl<'s> Inbound<'s> {
    fn new(shared: &'s Shared) -> Self {
        Self { shared, coalescer: Coalescer::new(), sender: Sender::new(), confirmed: Vec::new() }
    }

    fn pass(&mut self, received: &[crate::sys::Received], buffer: &mut [u8]) {
        let shared = self.shared;
        let tables = shared.tables();
        let now = shared.clock.now();
        let mut devices = Devices(&shared.counters);
        for burst in received {
            let mut start = burst.at.start;
            // Bursts are nearly always of one session.
            let mut current: Option<(u32, Indexed)> = None;
            let mut tally = Tally::default();
            while start < burst.at.end {
                let at = start..(start + burst.segment).min(burst.at.end);
                start = at.end;
                let datagram = &mut buffer[at.clone()];
                if datagram.len() < DATA_HEADER + TAG || datagram[..4] != TYPE_DATA {
                    self.handshake(datagram, burst.endpoint, now);
                    continue;
                }
                let index = u32::from_le_bytes([datagram[4], datagram[5], datagram[6], datagram[7]]);
                if current.as_ref().is_none_or(|(known, _)| *known != index) {
                    if let Some((_, indexed)) = current.take() {
                        self.settle(&indexed, std::mem::take(&mut tally), now);
                    }
                    current = shared.indexed(index).map(|indexed| (index, indexed));
                }
                let Some((_, Indexed { session, keys: Some(keys) })) = &current else {
                    shared.counters.foreign.fetch_add(1, Relaxed);
                    continue;
                };
                if !session.is_on(now) || !keys.is_alive(now) {
                    tally.refused += 1;
                    continue;
                }
                let Ok(length) = keys.open(datagram) else {
                    tally.refused += 1;
                    continue;
                };
                if !tally.authentic {
                    tally.authentic = true;
                    // Before anything is written: the answer may come sooner than the end of the burst.
                    self.greet(session, keys, burst.endpoint, now);
                }
                if length == 0 {
                    continue;
                }
                if !tally.data {
                    tally.data = true;
                    session.life.received(now, true);
                }
                let packet = &datagram[DATA_HEADER..DATA_HEADER + length];
                let inner = Inner::read(packet).filter(|inner| session.owns(inner.source));
                let inner = inner.filter(|inner| {
                    session.only.as_ref().is_none_or(|only| only.admits_from(inner, &packet[..inner.length]))
                });
                let Some(inner) = inner.filter(|inner| inner.length <= session.device.mtu.max(1280)) else {
                    tally.refused += 1;
                    continue;
                };
                // Before it is written, as its answer may come at once.
                if let Some(answers) = &session.answers
                    && let Some(flow) = Flow::sent(&inner, &packet[..inner.length])
                    && tally.flow != Some(flow)
                {
                    answers.await_from(flow, now);
                    tally.flow = Some(flow);
                }
                tally.packets += 1;
                tally.bytes += inner.length as u64;
                let packet = at.start + DATA_HEADER..at.start + DATA_HEADER + inner.length;
                self.coalescer.push(buffer, packet, session, &mut devices);
            }
            if let Some((_, indexed)) = current {
                self.settle(&indexed, tally, now);
            }
        }
        self.coalescer.flush(buffer, &mut devices);
        for session in self.confirmed.drain(..) {
            shared.send_waiting(&mut self.sender, &session, false);
        }
        drop(tables);
    }

    /// Takes notice that a peer is here, and that it has these keys.
    fn greet(&mut self, session: &Arc<Session>, keys: &Arc<Keypair>, endpoint: Endpoint, now: u64) {
        session.roam(endpoint);
        session.life.received(now, false);
        let (new, gone) = session.keys().confirm(keys);
        self.shared.drop_indexes(gone);
        if new {
            session.life.handshake_done(now);
            self.confirmed.push(Arc::clone(session));
        }
    }

    /// Takes notice of what a burst of one session was.
    fn settle(&mut self, indexed: &Indexed, tally: Tally, now: u64) {
        let (session, Some(keys)) = (&indexed.session, &indexed.keys) else { return };
        let traffic = &session.traffic;
        if tally.refused > 0 {
            traffic.refused.fetch_add(tally.refused, Relaxed);
        }
        if !tally.authentic {
            return;
        }
        traffic.received_packets.fetch_add(tally.packets, Relaxed);
        traffic.received_bytes.fetch_add(tally.bytes, Relaxed);
        let renewal = REJECT_AFTER - KEEPALIVE - REKEY_TIMEOUT;
        if keys.initiator && now.saturating_sub(keys.born) >= renewal && !keys.renewing.swap(true, Relaxed) {
            self.shared.want_handshake(session);
        }
    }

    /// Checks what can be checked cheaply, and hands the rest to a worker.
    fn handshake(&mut self, message: &[u8], endpoint: Endpoint, now: u64) {
        let (shared, counters) = (self.shared, &self.shared.counters);
        let kind: Option<[u8; 4]> = message.first_chunk().copied();
        let is_reply = match (kind, message.len()) {
            (Some(TYPE_INITIATION), INITIATION) | (Some(TYPE_RESPONSE), RESPONSE) => false,
            (Some(TYPE_COOKIE_REPLY), COOKIE_REPLY) => true,
            _ => {
                counters.garbage.fetch_add(1, Relaxed);
                return;
            }
        };
        if !is_reply && !shared.macs.check1(message) {
            counters.garbage.fetch_add(1, Relaxed);
            return;
        }
        // Answers have to be to something that was asked.
        let receiver = match message.len() {
            RESPONSE => Some(8),
            COOKIE_REPLY => Some(4),
            _ => None,
        };
        if let Some(at) = receiver {
            let index = u32::from_le_bytes([message[at], message[at + 1], message[at + 2], message[at + 3]]);
            if shared.indexed(index).is_none() {
                counters.foreign.fetch_add(1, Relaxed);
                return;
            }
        }
        if !is_reply && !self.admits(message, endpoint, now) {
            return;
        }
        let mut bytes = [0; INITIATION];
        bytes[..message.len()].copy_from_slice(message);
        if !shared.queue.push(Message { bytes, length: message.len(), endpoint }) {
            counters.dropped_handshakes.fetch_add(1, Relaxed);
        }
    }

    /// Under load, only senders that proved their address pass, and each as often as is fair.
    fn admits(&mut self, message: &[u8], endpoint: Endpoint, now: u64) -> bool {
        let shared = self.shared;
        let mut defense = lock(&shared.defense);
        if shared.queue.length() >= (shared.limits.handshakes / 8).max(1) {
            defense.loaded_until = now + LOADED;
        }
        if now >= defense.loaded_until {
            return true;
        }
        if defense.secret.is_old(now) {
            let mut random = [0; 32];
            if getrandom::fill(&mut random).is_ok() {
                defense.secret.renew(random, now);
            }
        }
        if !defense.secret.check2(message, endpoint.to) {
            let mut nonce = [0; 24];
            if getrandom::fill(&mut nonce).is_ok() {
                let reply = shared.macs.reply(message, &defense.secret.cookie(endpoint.to), &nonce);
                drop(defense);
                shared.port.send_one(&mut self.sender, endpoint, &reply);
                shared.counters.cookie_replies.fetch_add(1, Relaxed);
            }
            return false;
        }
        let fair = defense.limiter.admits(endpoint.to.ip(), now);
        if !fair {
            shared.counters.dropped_handshakes.fetch_add(1, Relaxed);
        }
        fair
    }
}
