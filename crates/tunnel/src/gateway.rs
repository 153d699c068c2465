//! The handle to it all.

use std::collections::hash_map::Entry;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, epoll, eventfd};

use crate::device::{Device, OpenDevice};
use crate::keys::{PrivateKey, PublicKey};
use crate::outbound::ENDING;
use crate::peer::{GatewayStatus, Limits, NetworkKey, Peer, PeerError, PeerId, PeerStatus};
use crate::session::Session;
use crate::shared::Shared;
use crate::sockets::{Port, Sockets};
use crate::tables::Network;
use crate::{inbound, outbound, timers, workers};

const STACK: usize = 256 << 10;

/// Why the gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("no socket was given")]
    NoSocket,
    #[error("a socket of the tunnel cannot be used")]
    Socket(#[source] io::Error),
    #[error("the kernel gives no random numbers")]
    Random(#[source] getrandom::Error),
    #[error("the kernel gives no descriptor to wait with")]
    Wait(#[source] io::Error),
    #[error("the kernel gives no thread")]
    Thread(#[source] io::Error),
}

/// Why a network was not added.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("the network is there already")]
    Exists,
    #[error("the device of the network cannot be used")]
    Device(#[source] io::Error),
}

/// An end of WireGuard tunnels: one UDP port, and a device for each network. Everything ends when this is dropped.
pub struct Gateway {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    tokens: std::sync::atomic::AtomicU64,
}

impl Gateway {
    /// Begins to serve the port. Needs no privileges, and opens nothing afterwards.
    pub fn start(sockets: Sockets, private_key: PrivateKey, limits: Limits) -> Result<Self, StartError> {
        if sockets.v4.is_none() && sockets.v6.is_none() {
            return Err(StartError::NoSocket);
        }
        let port = Port::new(sockets).map_err(StartError::Socket)?;
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(StartError::Random)?;
        let wait = |errno: rustix::io::Errno| StartError::Wait(errno.into());
        let devices = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(wait)?;
        let ending = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(wait)?;
        epoll::add(&devices, &ending, epoll::EventData::new_u64(ENDING), epoll::EventFlags::IN).map_err(wait)?;
        let workers = match limits.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from).min(4),
            some => some,
        };
        let sockets = port.all().count();
        let shared = Arc::new(Shared::new(private_key, port, limits, random, devices, ending));
        let tokens = std::sync::atomic::AtomicU64::new(ENDING + 1);
        // From here on dropping it ends what was started.
        let mut gateway = Self { shared, threads: Vec::new(), tokens };
        for place in 0..sockets {
            let read = move |shared: &Shared| {
                if let Some(socket) = shared.port.all().nth(place) {
                    inbound::run(shared, socket);
                }
            };
            gateway.spawn("tunnel-in", read)?;
        }
        gateway.spawn("tunnel-out", outbound::run)?;
        gateway.spawn("tunnel-timers", timers::run)?;
        for _ in 0..workers {
            gateway.spawn("tunnel-keys", workers::run)?;
        }
        Ok(gateway)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce(&Shared) + Send + 'static) -> Result<(), StartError> {
        let shared = Arc::clone(&self.shared);
        let builder = std::thread::Builder::new().name(name.to_owned()).stack_size(STACK);
        self.threads.push(builder.spawn(move || work(&shared)).map_err(StartError::Thread)?);
        Ok(())
    }

    /// What peers have to know.
    pub fn public_key(&self) -> PublicKey {
        self.shared.public
    }

    /// Begins to read and write a network's device, which has to be of this kind, with `IFF_NO_PI` and `IFF_VNET_HDR`,
    /// and a virtio header of 10 bytes. Offloads that were set with `TUNSETOFFLOAD` are used. [`open_device`] gives
    /// such a descriptor.
    ///
    /// [`open_device`]: crate::open_device
    pub fn add_network(&self, network: NetworkKey, descriptor: OwnedFd, device: Device) -> Result<(), NetworkError> {
        let token = self.tokens.fetch_add(1, Relaxed);
        let device = Arc::new(OpenDevice::new(descriptor, token, device).map_err(NetworkError::Device)?);
        let mut tables = self.shared.tables_mut();
        let Entry::Vacant(place) = tables.networks.entry(network) else { return Err(NetworkError::Exists) };
        let data = epoll::EventData::new_u64(token);
        epoll::add(&self.shared.devices, device.as_fd(), data, epoll::EventFlags::IN)
            .map_err(|errno| NetworkError::Device(errno.into()))?;
        place.insert(Network::new(device));
        tables.by_token.insert(token, network);
        Ok(())
    }

    /// Removes a network and its peers, and lets go of its device. False when it is not there.
    pub fn remove_network(&self, network: NetworkKey) -> bool {
        let mut tables = self.shared.tables_mut();
        let of: Vec<_> = tables.sessions.values().filter(|session| session.network == network).cloned().collect();
        for session in of {
            self.shared.cut(&mut tables, &session, None);
            tables.sessions.remove(&session.id);
        }
        let Some(gone) = tables.networks.remove(&network) else { return false };
        tables.by_token.remove(&gone.device.token);
        // Fails only when the device is gone, and with it this.
        let _ = epoll::delete(&self.shared.devices, gone.device.as_fd());
        true
    }

    /// Admits a peer. Packets pass when this returns.
    pub fn add_peer(&self, peer: &Peer) -> Result<(), PeerError> {
        if peer.addresses.is_empty() {
            return Err(PeerError::NoAddress);
        }
        let static_static = self.shared.own.agree(&peer.public_key).ok_or(PeerError::WeakKey)?;
        let mut tables = self.shared.tables_mut();
        if tables.sessions.contains_key(&peer.id) {
            return Err(PeerError::Exists);
        }
        if tables.sessions.len() >= self.shared.limits.peers {
            return Err(PeerError::TooMany(self.shared.limits.peers));
        }
        if tables.by_key.contains_key(peer.public_key.as_bytes()) {
            return Err(PeerError::KeyTaken);
        }
        let network = tables.networks.get_mut(&peer.network).ok_or(PeerError::NoNetwork)?;
        if let Some(taken) = peer.addresses.iter().find(|address| network.has(address)) {
            return Err(PeerError::AddressTaken(*taken));
        }
        let device = Arc::clone(&network.device);
        let session = Arc::new(Session::new(peer, static_static, device, &self.shared.clock)?);
        network.add(&session);
        let first = session.life.first();
        tables.by_key.insert(*peer.public_key.as_bytes(), Arc::clone(&session));
        tables.sessions.insert(peer.id, session);
        drop(tables);
        self.shared.ring(first);
        Ok(())
    }

    /// Removes a peer. When this returns, none of its packets passes, in either direction. What was counted comes
    /// back; nothing when there is no such peer.
    pub fn remove_peer(&self, id: PeerId) -> Option<PeerStatus> {
        let mut tables = self.shared.tables_mut();
        let session = tables.sessions.remove(&id)?;
        self.shared.cut(&mut tables, &session, None);
        drop(tables);
        Some(session.status(&self.shared.clock))
    }

    /// How all peers are, also those that ended and were not removed.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let tables = self.shared.tables();
        let mut all: Vec<_> = tables.sessions.values().map(|session| session.status(&self.shared.clock)).collect();
        drop(tables);
        all.sort_unstable_by_key(|status| status.id);
        all
    }

    /// How one peer is.
    pub fn peer(&self, id: PeerId) -> Option<PeerStatus> {
        self.shared.tables().sessions.get(&id).map(|session| session.status(&self.shared.clock))
    }

    pub fn status(&self) -> GatewayStatus {
        self.shared.status()
    }

    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Gateway").field("public_key", &self.shared.public).finish_non_exhaustive()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        self.shared.queue.end();
        // Nobody reads it, so that it stays readable for all.
        let _ = rustix::io::write(&self.shared.ending, &1u64.to_ne_bytes());
        while self.threads.iter().any(|thread| !thread.is_finished()) {
            self.shared.ring(0);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the tunnel panicked");
            }
        }
    }
}
