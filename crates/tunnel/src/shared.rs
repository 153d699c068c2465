//! What the threads of a gateway have in common.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use crate::clock::{Clock, NEVER};
use crate::keys::{PrivateKey, PublicKey};
use crate::noise::cookie::{CookieSecret, MacKeys};
use crate::noise::limiter::Limiter;
use crate::noise::{DATA_HEADER, INITIATION, TAG};
use crate::peer::{Ended, GatewayStatus, Limits};
use crate::session::{Session, lock};
use crate::sockets::Port;
use crate::sys::{Endpoint, Outgoing, Sender};
use crate::tables::{Indexed, Tables};
use crate::transport::Keypair;

pub struct Shared {
    pub own: PrivateKey,
    pub public: PublicKey,
    /// For messages to us.
    pub macs: MacKeys,
    pub port: Port,
    pub limits: Limits,
    pub clock: Clock,
    pub counters: Counters,
    pub queue: Queue,
    pub defense: Mutex<Defense>,
    /// Which devices there are to be read.
    pub devices: OwnedFd,
    /// Readable when everything ends.
    pub ending: OwnedFd,
    pub stop: AtomicBool,
    /// Bytes of packets that wait for handshakes.
    pub waiting: AtomicUsize,
    alarm: Alarm,
    tables: RwLock<Tables>,
    indexes: RwLock<HashMap<u32, Indexed>>,
}

/// When the timers are looked at.
#[derive(Default)]
struct Alarm {
    /// What was rung for since they were looked at the last time.
    earliest: AtomicU64,
    wakes_at: AtomicU64,
    mutex: Mutex<()>,
    condvar: Condvar,
}

/// What is counted for the port as a whole.
#[derive(Default)]
pub struct Counters {
    pub garbage: AtomicU64,
    pub foreign: AtomicU64,
    pub refused_handshakes: AtomicU64,
    pub dropped_handshakes: AtomicU64,
    pub cookie_replies: AtomicU64,
    pub handshakes: AtomicU64,
    pub unrouted: AtomicU64,
    pub undelivered: AtomicU64,
    pub unsent: AtomicU64,
}

/// What is done against floods of handshakes.
pub struct Defense {
    pub secret: CookieSecret,
    pub limiter: Limiter,
    /// Until when senders have to prove their addresses, in milliseconds.
    pub loaded_until: u64,
}

/// Handshakes that wait for a worker. Messages are bounded by the limit, sessions by their number.
pub struct Queue {
    inner: Mutex<Waiting>,
    filled: Condvar,
    most: usize,
}

#[derive(Default)]
struct Waiting {
    messages: VecDeque<Message>,
    sessions: VecDeque<Arc<Session>>,
    ended: bool,
}

/// A handshake message that passed the cheap checks.
pub struct Message {
    pub bytes: [u8; INITIATION],
    pub length: usize,
    pub endpoint: Endpoint,
}

#[expect(clippy::large_enum_variant, reason = "there is one for each worker")]
pub enum Job {
    Read(Message),
    Begin(Arc<Session>),
}

impl Shared {
    pub fn new(
        own: PrivateKey,
        port: Port,
        limits: Limits,
        random: [u8; 32],
        devices: OwnedFd,
        ending: OwnedFd,
    ) -> Self {
        let (public, clock) = (own.public_key(), Clock::new());
        let secret = CookieSecret::new(random, clock.now());
        Self {
            macs: MacKeys::new(&public),
            queue: Queue::new(limits.handshakes),
            defense: Mutex::new(Defense { secret, limiter: Limiter::new(), loaded_until: 0 }),
            own,
            public,
            port,
            limits,
            clock,
            counters: Counters::default(),
            devices,
            ending,
            stop: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            alarm: Alarm::default(),
            tables: RwLock::default(),
            indexes: RwLock::default(),
        }
    }

    pub fn tables(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn tables_mut(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn indexed(&self, index: u32) -> Option<Indexed> {
        self.indexes.read().unwrap_or_else(PoisonError::into_inner).get(&index).cloned()
    }

    /// A new index for this session; nothing when the kernel gives no random numbers.
    pub fn take_index(&self, session: &Arc<Session>) -> Option<u32> {
        let mut indexes = self.indexes.write().unwrap_or_else(PoisonError::into_inner);
        loop {
            let index = getrandom::u32().ok()?;
            if let std::collections::hash_map::Entry::Vacant(place) = indexes.entry(index) {
                place.insert(Indexed { session: Arc::clone(session), keys: None });
                return Some(index);
            }
        }
    }

    pub fn fill_index(&self, index: u32, session: &Arc<Session>, keys: &Arc<Keypair>) {
        let indexed = Indexed { session: Arc::clone(session), keys: Some(Arc::clone(keys)) };
        self.indexes.write().unwrap_or_else(PoisonError::into_inner).insert(index, indexed);
    }

    pub fn drop_indexes(&self, gone: impl IntoIterator<Item = u32>) {
        let mut gone = gone.into_iter().peekable();
        if gone.peek().is_none() {
            return;
        }
        let mut indexes = self.indexes.write().unwrap_or_else(PoisonError::into_inner);
        gone.for_each(|index| drop(indexes.remove(&index)));
    }

    #[cfg(test)]
    pub fn indexes(&self) -> usize {
        self.indexes.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Takes a session out of everything by which packets find it. With the tables locked for writing, nothing of it is
    /// under way afterwards.
    pub fn cut(&self, tables: &mut Tables, session: &Session, why: Option<Ended>) {
        session.end(why);
        if tables.by_key.get(session.public_key.as_bytes()).is_some_and(|other| other.id == session.id) {
            tables.by_key.remove(session.public_key.as_bytes());
        }
        if let Some(network) = tables.networks.get_mut(&session.network) {
            network.remove(session);
        }
        let negotiated = session.negotiation().initiating.take().map(|(_, index)| index);
        self.drop_indexes(session.keys().clear().into_iter().chain(negotiated));
        self.forget_waiting(session);
    }

    pub fn forget_waiting(&self, session: &Session) {
        let bytes: usize = session.take_waiting().iter().map(|packet| packet.len()).sum();
        self.waiting.fetch_sub(bytes, Relaxed);
    }

    /// Has a worker begin a handshake, unless one is going on.
    pub fn want_handshake(&self, session: &Arc<Session>) {
        if session.life.retry_at.load(Relaxed) == 0 {
            self.begin_handshake(session, true);
        }
    }

    /// Has a worker begin the next attempt.
    pub fn begin_handshake(&self, session: &Arc<Session>, first: bool) {
        if session.endpoint().is_none() || session.wants_handshake.swap(true, Relaxed) {
            return;
        }
        if first {
            session.negotiation().attempts = 0;
        }
        self.queue.push_session(Arc::clone(session));
    }

    /// Keeps a packet, as there are no keys for it yet.
    pub fn keep_waiting(&self, session: &Arc<Session>, packet: &[u8]) {
        if session.endpoint().is_none() || self.waiting.load(Relaxed) + packet.len() > self.limits.waiting {
            session.traffic.lost.fetch_add(1, Relaxed);
            return;
        }
        // Before anybody can take it out again.
        self.waiting.fetch_add(packet.len(), Relaxed);
        self.waiting.fetch_sub(session.wait_with(packet), Relaxed);
    }

    /// Sends what waited; when nothing did, a keepalive where one is asked for. To be called with the tables locked.
    pub fn send_waiting(&self, sender: &mut Sender, session: &Arc<Session>, keepalive: bool) {
        let (Some(endpoint), now) = (session.endpoint(), self.clock.now()) else { return };
        let Some(keys) = session.keys().sending(now).filter(|_| session.is_on(now)) else { return };
        let mut packets = session.take_waiting();
        let bytes: usize = packets.iter().map(|packet| packet.len()).sum();
        self.waiting.fetch_sub(bytes, Relaxed);
        let data = !packets.is_empty();
        if !data && keepalive {
            packets.push_back(Box::default());
        }
        for packet in packets {
            let padded = padded(packet.len(), session.device.mtu);
            let mut sealed = vec![0; DATA_HEADER + padded + TAG];
            sealed[DATA_HEADER..][..packet.len()].copy_from_slice(&packet);
            let Some(counter) = keys.reserve(1) else { return };
            keys.seal(counter, &mut sealed);
            let message = Outgoing { at: 0..sealed.len(), segment: sealed.len(), endpoint };
            let lost = self.port.send(sender, &sealed, &mut [message]) as u64;
            session.traffic.lost.fetch_add(lost, Relaxed);
            if data {
                session.traffic.sent_packets.fetch_add(1, Relaxed);
                session.traffic.sent_bytes.fetch_add(packet.len() as u64, Relaxed);
            }
            session.life.sent(now, data);
        }
    }

    /// Has the timers looked at again at this time, if not before. What they are to see has to be there already.
    pub fn ring(&self, at: u64) {
        self.alarm.earliest.fetch_min(at, SeqCst);
        // Nearly always they wake up early enough, and handshakes are many.
        if at < self.alarm.wakes_at.load(SeqCst) {
            let _waits = lock(&self.alarm.mutex);
            self.alarm.condvar.notify_one();
        }
    }

    /// Waits until then, or until somebody rings for an earlier time.
    pub fn sleep(&self, until: u64) {
        let mut waits = lock(&self.alarm.mutex);
        while !self.stop.load(Relaxed) {
            // Either whoever rings sees when this wakes up, or this sees the time that was rung for.
            self.alarm.wakes_at.store(until.min(self.alarm.earliest.load(SeqCst)), SeqCst);
            let until = until.min(self.alarm.earliest.load(SeqCst));
            let left = until.saturating_sub(self.clock.now());
            if left == 0 {
                break;
            }
            let waited = self.alarm.condvar.wait_timeout(waits, Duration::from_millis(left));
            waits = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        self.alarm.earliest.store(NEVER, SeqCst);
    }

    pub fn status(&self) -> GatewayStatus {
        let counters = &self.counters;
        GatewayStatus {
            garbage: counters.garbage.load(Relaxed),
            foreign: counters.foreign.load(Relaxed),
            refused_handshakes: counters.refused_handshakes.load(Relaxed),
            dropped_handshakes: counters.dropped_handshakes.load(Relaxed),
            cookie_replies: counters.cookie_replies.load(Relaxed),
            handshakes: counters.handshakes.load(Relaxed),
            unrouted: counters.unrouted.load(Relaxed),
            undelivered: counters.undelivered.load(Relaxed),
            unsent: counters.unsent.load(Relaxed),
        }
    }
}

impl Queue {
    fn new(most: usize) -> Self {
        Self { inner: Mutex::default(), filled: Condvar::new(), most }
    }

    /// How many messages wait.
    pub fn length(&self) -> usize {
        lock(&self.inner).messages.len()
    }

    /// False when there are too many.
    pub fn push(&self, message: Message) -> bool {
        let mut waiting = lock(&self.inner);
        if waiting.messages.len() >= self.most {
            return false;
        }
        waiting.messages.push_back(message);
        drop(waiting);
        self.filled.notify_one();
        true
    }

    fn push_session(&self, session: Arc<Session>) {
        lock(&self.inner).sessions.push_back(session);
        self.filled.notify_one();
    }

    /// Waits for the next; nothing when everything ends.
    pub fn pop(&self) -> Option<Job> {
        let mut waiting = lock(&self.inner);
        loop {
            if waiting.ended {
                return None;
            }
            if let Some(session) = waiting.sessions.pop_front() {
                return Some(Job::Begin(session));
            }
            if let Some(message) = waiting.messages.pop_front() {
                return Some(Job::Read(message));
            }
            waiting = self.filled.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub fn end(&self) {
        lock(&self.inner).ended = true;
        self.filled.notify_all();
    }
}

/// The length with the padding that hides it a little: to a multiple of 16, but not beyond the largest packet.
pub fn padded(length: usize, mtu: usize) -> usize {
    length.next_multiple_of(16).min(mtu.max(length))
}
