//! Who is where: peers by their names, keys, addresses and indexes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::device::OpenDevice;
use crate::peer::{NetworkKey, PeerId};
use crate::session::Session;
use crate::transport::Keypair;

/// Whoever passes packets holds this locked for reading while it does so. Whoever has locked it for writing knows that
/// nothing of what was looked up before is under way any more.
#[derive(Default)]
pub struct Tables {
    pub sessions: HashMap<PeerId, Arc<Session>>,
    /// Those that are on.
    pub by_key: HashMap<[u8; 32], Arc<Session>>,
    pub networks: HashMap<NetworkKey, Network>,
    pub by_token: HashMap<u64, NetworkKey>,
}

/// Where packets of one network go (cryptokey routing, whitepaper §2).
pub struct Network {
    pub device: Arc<OpenDevice>,
    hosts: HashMap<IpAddr, Arc<Session>>,
    /// Longest first.
    ranges: Vec<(IpNet, Arc<Session>)>,
}

/// What comes in under a receiver index.
#[derive(Clone)]
pub struct Indexed {
    pub session: Arc<Session>,
    /// Nothing while the handshake goes on.
    pub keys: Option<Arc<Keypair>>,
}

impl Network {
    pub fn new(device: Arc<OpenDevice>) -> Self {
        Self { device, hosts: HashMap::new(), ranges: Vec::new() }
    }

    pub fn route(&self, destination: IpAddr) -> Option<&Arc<Session>> {
        let range = || self.ranges.iter().find(|(range, _)| range.contains(&destination)).map(|(_, session)| session);
        self.hosts.get(&destination).or_else(range)
    }

    /// Whether exactly this address or range is somebody's.
    pub fn has(&self, address: &IpNet) -> bool {
        if is_host(address) {
            self.hosts.contains_key(&address.addr())
        } else {
            self.ranges.iter().any(|(range, _)| *range == address.trunc())
        }
    }

    pub fn add(&mut self, session: &Arc<Session>) {
        for address in &session.addresses {
            if is_host(address) {
                self.hosts.insert(address.addr(), Arc::clone(session));
            } else {
                self.ranges.push((address.trunc(), Arc::clone(session)));
            }
        }
        self.ranges.sort_by_key(|(range, _)| std::cmp::Reverse(range.prefix_len()));
    }

    pub fn remove(&mut self, session: &Session) {
        for address in &session.addresses {
            if self.hosts.get(&address.addr()).is_some_and(|other| other.id == session.id) {
                self.hosts.remove(&address.addr());
            }
        }
        self.ranges.retain(|(_, other)| other.id != session.id);
    }
}

fn is_host(address: &IpNet) -> bool {
    address.prefix_len() == address.max_prefix_len()
}
