//! One network while it is being served.

use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwap;
use rustix::net::{SocketType, sockopt};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use warren_model::NetworkNumber;
use warren_model::policy::HostName;

use crate::change::NetworkChange;
use crate::denials::{Denials, Refuser};
use crate::dns::limit::Slots;
use crate::dns::stats::Stats;
use crate::dns::zone::{Zone, ZoneError};
use crate::dns::{tcp, udp};
use crate::flows::Flows;
use crate::names::{Ledger, Names};
use crate::outside::{Decision, Outside};
use crate::proxy;
use crate::resolve::Resolver;
use crate::view::{NetworkView, Sockets};

/// Questions of one network that may be with the resolvers outside at once, for each source and in total.
const LOOKUPS: (usize, usize) = (64, 512);
/// TCP connections that one network's resolver holds at once, for each source and in total.
const CONNECTIONS: (usize, usize) = (16, 256);
/// The same for all networks together: bounded by descriptors.
const ALL_LOOKUPS: usize = 4096;
const ALL_CONNECTIONS: usize = 4096;

/// The threads that answer DNS, and those that carry connections. A network's DNS stays on one thread, so that a
/// question wakes no other thread and networks do not wait for each other's snapshots to be built; it shares none with
/// connections, so that a busy one does not hold up a question.
#[derive(Debug)]
pub(crate) struct Workers {
    dns: Vec<Handle>,
    proxy: Runtime,
}

impl Workers {
    /// Starts so many threads for each purpose; they end with the process.
    pub fn start(count: usize) -> io::Result<Self> {
        let count = count.max(1);
        let start = |_| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let handle = runtime.handle().clone();
            std::thread::Builder::new()
                .name("edge-dns".to_owned())
                .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
            Ok(handle)
        };
        let proxy = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(count)
            .thread_name("edge-proxy")
            .enable_all()
            .build()?;
        Ok(Self { dns: (0..count).map(start).collect::<io::Result<_>>()?, proxy })
    }

    /// The thread that answers this network's questions.
    pub fn dns(&self, number: NetworkNumber) -> &Handle {
        &self.dns[usize::from(number.get()) % self.dns.len()]
    }

    /// The threads that carry connections.
    pub fn proxy(&self) -> &Handle {
        self.proxy.handle()
    }
}

/// What all networks share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub stats: Stats,
    pub lookups: Semaphore,
    pub connections: Semaphore,
    pub all_denials: Arc<Denials>,
    pub ledger: Arc<Ledger>,
}

impl Shared {
    pub fn new(ledger: Ledger) -> Arc<Self> {
        Arc::new(Self {
            stats: Stats::default(),
            lookups: Semaphore::new(ALL_LOOKUPS),
            connections: Semaphore::new(ALL_CONNECTIONS),
            all_denials: Arc::new(Denials::new()),
            ledger: Arc::new(ledger),
        })
    }
}

/// What the tasks of one network read.
#[derive(Debug)]
pub(crate) struct Network {
    pub number: NetworkNumber,
    /// Of the view that is in force.
    generation: AtomicU64,
    pub zone: ArcSwap<Zone>,
    pub outside: Arc<ArcSwap<Outside>>,
    pub names: Names,
    pub denials: Refuser,
    pub resolver: Resolver,
    /// Every connection that the proxy carries is registered here.
    pub flows: Arc<Flows>,
    pub lookups: Arc<Slots>,
    pub connections: Arc<Slots>,
    /// Connections by name that the proxy carries.
    pub proxied: Arc<Slots>,
    pub shared: Arc<Shared>,
}

impl Network {
    pub fn new(view: &NetworkView, shared: Arc<Shared>) -> Result<Arc<Self>, ZoneError> {
        let outside = Arc::new(ArcSwap::from_pointee(Outside::build(view)));
        let names = Names::new(shared.ledger.clone(), view.names6);
        names.keep(view.names6, outside.load().machines());
        Ok(Arc::new(Self {
            number: view.number,
            generation: AtomicU64::new(view.generation),
            zone: ArcSwap::from_pointee(Zone::build(view)?),
            names,
            denials: Refuser::new(shared.all_denials.clone(), outside.clone()),
            resolver: Resolver::new(outside.clone()),
            flows: Arc::default(),
            lookups: Slots::new(LOOKUPS.0, LOOKUPS.1),
            connections: Slots::new(CONNECTIONS.0, CONNECTIONS.1),
            proxied: Slots::new(proxy::PROXIED.0, proxy::PROXIED.1),
            outside,
            shared,
        }))
    }

    /// Puts a snapshot in place of the one before; ends the connections that it does not allow.
    pub fn update(&self, view: &NetworkView) -> Result<(), ZoneError> {
        let zone = Zone::build(view)?;
        let outside = Arc::new(Outside::build(view));
        self.outside.store(outside.clone());
        self.zone.store(Arc::new(zone));
        let ended = self.flows.recheck(&outside);
        if ended > 0 {
            tracing::info!(network = %self.number, ended, "policy no longer allows open connections, which were cut");
        }
        self.names.keep(view.names6, outside.machines());
        self.flows.keep(|machine| outside.is_member(machine));
        self.shared.all_denials.keep(self.number, |machine| outside.is_member(machine));
        self.generation.store(view.generation, Relaxed);
        Ok(())
    }

    /// Makes the snapshot before into the next one, which must be that with which the change begins; ends the connections
    /// that it does not allow.
    pub fn change(&self, change: &NetworkChange) {
        change.joined.iter().for_each(|member| self.names.join(member.id));
        let outside = Arc::new(self.outside.load().changed(change));
        self.outside.store(outside.clone());
        if let Some(zone) = self.zone.load().changed(change) {
            self.zone.store(Arc::new(zone));
        }
        if change.takes_away() {
            let ended = self.flows.recheck(&outside);
            if ended > 0 {
                tracing::info!(network = %self.number, ended, "members left, and their open connections were cut");
            }
            change.left.iter().for_each(|left| self.names.leave(left.id));
            self.flows.keep(|machine| outside.is_member(machine));
            self.shared.all_denials.keep(self.number, |machine| outside.is_member(machine));
        }
        self.generation.store(change.generation, Relaxed);
    }

    /// Of the view that is in force.
    pub fn generation(&self) -> u64 {
        self.generation.load(Relaxed)
    }

    /// What policy says about a connection to this name and port; a name that only a wildcard allows counts among those
    /// that the machine may use, as it does when the resolver is asked for it.
    pub fn decide(&self, source: IpAddr, host: &HostName, port: u16) -> Decision {
        let outside = self.outside.load();
        let decision = outside.decide(source, host, Some(port));
        let Some(member) = outside.member(source).filter(|_| decision.allowed && !outside.open) else {
            return decision;
        };
        if !outside.is_by_wildcard(source, host) {
            return decision;
        }
        match self.names.assign(member.id, host, true) {
            Ok(_) => decision,
            Err(error) => Decision::refused(Some(error.rule()), format!("{host} cannot be used: {error}")),
        }
    }

    /// The network is gone: ends what is open, and forgets whose addresses were whose.
    pub fn end(&self) {
        let nobody = Arc::new(self.outside.load().emptied());
        self.outside.store(nobody.clone());
        self.flows.recheck(&nobody);
        self.names.clear();
        self.shared.all_denials.keep(self.number, |_| false);
    }
}

impl std::ops::Deref for Network {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

/// A descriptor that is not the socket it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    #[error("the {0} socket is of another kind")]
    Unfit(&'static str),
    #[error("the {0} socket cannot be used")]
    Io(&'static str, #[source] io::Error),
}

/// Sockets that fit, ready to be served.
pub(crate) struct Listening {
    udp4: tokio::net::UdpSocket,
    udp6: tokio::net::UdpSocket,
    tcp4: tokio::net::TcpListener,
    tcp6: tokio::net::TcpListener,
    transparent4: tokio::net::TcpListener,
    transparent6: tokio::net::TcpListener,
    proxy4: tokio::net::TcpListener,
    proxy6: tokio::net::TcpListener,
    dns: Handle,
    proxy: Handle,
}

impl Listening {
    /// Takes the sockets of this network over for the threads that will serve them.
    pub fn new(sockets: Sockets, workers: &Workers, number: NetworkNumber) -> Result<Self, SocketError> {
        let Sockets { udp4, udp6, tcp4, tcp6, transparent4, transparent6, proxy4, proxy6 } = sockets;
        let (dns, proxy) = (workers.dns(number).clone(), workers.proxy().clone());
        let (udp4, udp6, tcp4, tcp6) = {
            let _inside = dns.enter();
            (
                adopt_udp("udp4", udp4.into(), true)?,
                adopt_udp("udp6", udp6.into(), false)?,
                adopt_tcp("tcp4", tcp4.into(), true)?,
                adopt_tcp("tcp6", tcp6.into(), false)?,
            )
        };
        let _inside = proxy.enter();
        Ok(Self {
            udp4,
            udp6,
            tcp4,
            tcp6,
            transparent4: adopt_tcp("transparent4", transparent4.into(), true)?,
            transparent6: adopt_tcp("transparent6", transparent6.into(), false)?,
            proxy4: adopt_tcp("proxy4", proxy4.into(), true)?,
            proxy6: adopt_tcp("proxy6", proxy6.into(), false)?,
            dns,
            proxy: proxy.clone(),
        })
    }

    /// Serves until the returned set is dropped.
    pub fn serve(self, network: &Arc<Network>) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        tasks.spawn_on(udp::serve_v4(network.clone(), self.udp4), &self.dns);
        tasks.spawn_on(udp::serve_v6(network.clone(), self.udp6), &self.dns);
        tasks.spawn_on(tcp::serve(network.clone(), self.tcp4), &self.dns);
        tasks.spawn_on(tcp::serve(network.clone(), self.tcp6), &self.dns);
        for listener in [self.transparent4, self.transparent6] {
            tasks.spawn_on(proxy::serve_transparent(network.clone(), listener), &self.proxy);
        }
        for listener in [self.proxy4, self.proxy6] {
            tasks.spawn_on(proxy::serve_explicit(network.clone(), listener), &self.proxy);
        }
        tasks
    }
}

fn adopt_udp(name: &'static str, socket: UdpSocket, v4: bool) -> Result<tokio::net::UdpSocket, SocketError> {
    check(name, &socket, SocketType::DGRAM, socket.local_addr(), v4)?;
    // As much as the host lets an ordinary process have: what does not fit is lost.
    sockopt::set_socket_recv_buffer_size(&socket, 1 << 20).map_err(|e| SocketError::Io(name, e.into()))?;
    socket
        .set_nonblocking(true)
        .and_then(|()| tokio::net::UdpSocket::from_std(socket))
        .map_err(|error| SocketError::Io(name, error))
}

fn adopt_tcp(name: &'static str, socket: TcpListener, v4: bool) -> Result<tokio::net::TcpListener, SocketError> {
    check(name, &socket, SocketType::STREAM, socket.local_addr(), v4)?;
    if !sockopt::socket_acceptconn(&socket).map_err(|e| SocketError::Io(name, e.into()))? {
        return Err(SocketError::Unfit(name));
    }
    socket
        .set_nonblocking(true)
        .and_then(|()| tokio::net::TcpListener::from_std(socket))
        .map_err(|error| SocketError::Io(name, error))
}

fn check(
    name: &'static str,
    socket: impl AsFd,
    kind: SocketType,
    address: io::Result<std::net::SocketAddr>,
    v4: bool,
) -> Result<(), SocketError> {
    let found = sockopt::socket_type(socket).map_err(|error| SocketError::Io(name, error.into()))?;
    let address = address.map_err(|error| SocketError::Io(name, error))?;
    if found != kind || address.is_ipv4() != v4 { Err(SocketError::Unfit(name)) } else { Ok(()) }
}
