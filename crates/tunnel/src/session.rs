//! One peer, as the threads of the gateway share it.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use zeroize::Zeroizing;

use crate::answers::Answers;
use crate::clock::{Clock, NEVER};
use crate::device::OpenDevice;
use crate::keys::PublicKey;
use crate::life::Life;
use crate::noise::cookie::{Cookie, Mac, MacKeys};
use crate::noise::handshake::{Initiating, Timestamp};
use crate::packet::frame::Stations;
use crate::peer::{Counted, Ended, NetworkKey, Only, Peer, PeerError, PeerId, PeerStatus};
use crate::sys::Endpoint;
use crate::transport::Keypair;

/// Packets that wait for a handshake at most.
const WAITING: usize = 32;

pub struct Session {
    pub id: PeerId,
    pub network: NetworkKey,
    pub public_key: PublicKey,
    /// What both static keys agree on.
    pub static_static: Zeroizing<[u8; 32]>,
    pub preshared: Zeroizing<[u8; 32]>,
    /// For messages to it.
    pub macs: MacKeys,
    pub addresses: Box<[IpNet]>,
    pub device: Arc<OpenDevice>,
    /// Between whom its frames go, where there are frames.
    pub stations: Option<Stations>,
    /// When not everything passes.
    pub only: Option<Only>,
    /// When only answers pass to it.
    pub answers: Option<Box<Answers>>,
    pub life: Life,
    pub traffic: Traffic,
    pub negotiation: Mutex<Negotiation>,
    /// Whether a handshake is asked for and not begun.
    pub wants_handshake: AtomicBool,
    keys: Mutex<Keys>,
    endpoint: Mutex<Option<Endpoint>>,
    waiting: Mutex<VecDeque<Box<[u8]>>>,
    /// 0: it is on. Else why not: [`Ended`], or 3 when it was removed.
    ended: AtomicU8,
}

/// Where a handshake stands.
#[derive(Default)]
pub struct Negotiation {
    /// What we began, and the index under which the answer comes.
    pub initiating: Option<(Initiating, u32)>,
    /// The first mac of the last message that we sent; cookies are bound to it.
    pub last_mac1: Option<Mac>,
    /// And when it came.
    pub cookie: Option<(Cookie, u64)>,
    pub attempts: u32,
    /// When we began one the last time.
    pub begun: u64,
    pub greatest: Timestamp,
    /// When we answered one the last time.
    pub answered: u64,
}

/// The keys in use, as whitepaper §5.4.6 and §6 have them.
#[derive(Default)]
pub struct Keys {
    current: Option<Arc<Keypair>>,
    /// For packets that are still under way.
    previous: Option<Arc<Keypair>>,
    /// Ours as responder, until the initiator shows that it has them.
    next: Option<Arc<Keypair>>,
}

#[derive(Default)]
pub struct Traffic {
    pub received_packets: AtomicU64,
    pub received_bytes: AtomicU64,
    pub sent_packets: AtomicU64,
    pub sent_bytes: AtomicU64,
    pub refused: AtomicU64,
    pub lost: AtomicU64,
    pub withheld: AtomicU64,
}

impl Session {
    pub fn new(
        peer: &Peer,
        static_static: Zeroizing<[u8; 32]>,
        device: Arc<OpenDevice>,
        clock: &Clock,
    ) -> Result<Self, PeerError> {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(NEVER).max(1);
        let expires = peer.expires.map_or(NEVER, |at| clock.until(at));
        let idle_limit = peer.idle_limit.map_or(NEVER, milliseconds);
        let keepalive = peer.keepalive.map_or(NEVER, milliseconds);
        let preshared = peer.preshared_key.as_ref().map_or([0; 32], |key| *key.as_bytes());
        Ok(Self {
            id: peer.id,
            network: peer.network,
            public_key: peer.public_key,
            static_static,
            preshared: Zeroizing::new(preshared),
            macs: MacKeys::new(&peer.public_key),
            addresses: peer.addresses.clone().into(),
            stations: device.stations(peer.mac)?,
            device,
            only: peer.only.clone(),
            answers: (!peer.reachable).then(Box::default),
            life: Life::new(clock.now(), expires, idle_limit, keepalive),
            traffic: Traffic::default(),
            negotiation: Mutex::default(),
            wants_handshake: AtomicBool::new(false),
            keys: Mutex::default(),
            endpoint: Mutex::new(peer.endpoint.map(|to| Endpoint { to, from: None })),
            waiting: Mutex::default(),
            ended: AtomicU8::new(0),
        })
    }

    /// Whether a packet that says it is from this address may come from this peer.
    pub fn owns(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|range| range.contains(&address))
    }

    pub fn keys(&self) -> MutexGuard<'_, Keys> {
        lock(&self.keys)
    }

    pub fn negotiation(&self) -> MutexGuard<'_, Negotiation> {
        lock(&self.negotiation)
    }

    pub fn endpoint(&self) -> Option<Endpoint> {
        *lock(&self.endpoint)
    }

    /// Only for where an authentic packet came from.
    pub fn roam(&self, to: Endpoint) {
        *lock(&self.endpoint) = Some(to);
    }

    /// Keeps a packet until there are keys; the bytes of the one that had to go for it, or 0.
    pub fn wait_with(&self, packet: &[u8]) -> usize {
        let mut waiting = lock(&self.waiting);
        let dropped = if waiting.len() == WAITING { waiting.pop_front() } else { None };
        waiting.push_back(packet.into());
        self.traffic.lost.fetch_add(u64::from(dropped.is_some()), Relaxed);
        dropped.map_or(0, |packet| packet.len())
    }

    pub fn take_waiting(&self) -> VecDeque<Box<[u8]>> {
        std::mem::take(&mut *lock(&self.waiting))
    }

    /// Whether it may send and receive.
    pub fn is_on(&self, now: u64) -> bool {
        self.ended.load(Relaxed) == 0 && now < self.life.expires
    }

    /// From now on nothing passes. The caller takes it out of the tables.
    pub fn end(&self, why: Option<Ended>) {
        let code = match why {
            Some(Ended::Expired) => 1,
            Some(Ended::Idle) => 2,
            None => 3,
        };
        let _ = self.ended.compare_exchange(0, code, Relaxed, Relaxed);
    }

    pub fn ended(&self) -> Option<Ended> {
        match self.ended.load(Relaxed) {
            1 => Some(Ended::Expired),
            2 => Some(Ended::Idle),
            _ => None,
        }
    }

    pub fn status(&self, clock: &Clock) -> PeerStatus {
        let traffic = &self.traffic;
        let count = |packets: &AtomicU64, bytes: &AtomicU64| Counted {
            packets: packets.load(Relaxed),
            bytes: bytes.load(Relaxed),
        };
        let wall = |at: &AtomicU64| Some(at.load(Relaxed)).filter(|at| *at != 0).map(|at| clock.wall(at));
        PeerStatus {
            id: self.id,
            network: self.network,
            public_key: self.public_key,
            endpoint: self.endpoint().map(|endpoint| endpoint.to),
            received: count(&traffic.received_packets, &traffic.received_bytes),
            sent: count(&traffic.sent_packets, &traffic.sent_bytes),
            refused: traffic.refused.load(Relaxed),
            lost: traffic.lost.load(Relaxed),
            withheld: traffic.withheld.load(Relaxed),
            last_handshake: wall(&self.life.last_handshake),
            last_packet: wall(&self.life.last_packet),
            last_data: self.life.heard_data().map(|at| clock.wall(at)),
            ended: self.ended(),
        }
    }
}

impl Keys {
    /// What to seal with now.
    pub fn sending(&self, now: u64) -> Option<Arc<Keypair>> {
        self.current.clone().filter(|keys| keys.is_alive(now))
    }

    /// Takes new keys, and gives the indexes of those that they replace.
    pub fn install(&mut self, new: Arc<Keypair>) -> impl Iterator<Item = u32> {
        let dropped = if new.initiator {
            // The responder has them, as it made them first.
            let next = self.next.take();
            let dropped = match next {
                Some(next) => [self.previous.replace(next), self.current.take()],
                None => [std::mem::replace(&mut self.previous, self.current.take()), None],
            };
            self.current = Some(new);
            dropped
        } else {
            [self.next.replace(new), self.previous.take()]
        };
        dropped.into_iter().flatten().map(|keys| keys.local)
    }

    /// Takes notice that the initiator has the keys in which it just sent something. Whether they are new; and the
    /// index of those that they replace.
    pub fn confirm(&mut self, used: &Arc<Keypair>) -> (bool, Option<u32>) {
        if !self.next.as_ref().is_some_and(|next| Arc::ptr_eq(next, used)) {
            return (false, None);
        }
        let dropped = std::mem::replace(&mut self.previous, self.current.take());
        self.current = self.next.take();
        (true, dropped.map(|keys| keys.local))
    }

    /// Forgets the keys that are too old, and gives their indexes.
    pub fn forget(&mut self, now: u64) -> Vec<u32> {
        let old = |keys: &mut Option<Arc<Keypair>>| keys.take_if(|keys| !keys.is_alive(now)).map(|keys| keys.local);
        let Self { current, previous, next } = self;
        [current, previous, next].into_iter().filter_map(old).collect()
    }

    /// Forgets all keys, and gives their indexes.
    pub fn clear(&mut self) -> Vec<u32> {
        let Self { current, previous, next } = std::mem::take(self);
        [current, previous, next].into_iter().flatten().map(|keys| keys.local).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.current.is_none() && self.previous.is_none() && self.next.is_none()
    }
}

/// A panic in another thread leaves nothing half done that matters here: each lock guards values that are replaced.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
