//! One network's resolver while it runs.

use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustix::net::{SocketType, sockopt};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use warren_model::NetworkNumber;

use crate::dns::limit::Slots;
use crate::dns::stats::Stats;
use crate::dns::zone::Zone;
use crate::dns::{tcp, udp};
use crate::view::Sockets;

/// Questions of one network that may be with the resolvers outside at once, for each source and in total.
const LOOKUPS: (usize, usize) = (64, 512);
/// TCP connections that one network's resolver holds at once, for each source and in total.
const CONNECTIONS: (usize, usize) = (16, 256);
/// The same for all networks together: bounded by descriptors.
const ALL_LOOKUPS: usize = 4096;
const ALL_CONNECTIONS: usize = 4096;

/// The threads that answer. A network stays on one of them, so that a question wakes no other thread and networks
/// do not wait for each other's snapshots to be built.
#[derive(Debug)]
pub(crate) struct Workers(Vec<Handle>);

impl Workers {
    /// Starts so many threads; they end with the process.
    pub fn start(count: usize) -> io::Result<Self> {
        let start = |_| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let handle = runtime.handle().clone();
            std::thread::Builder::new()
                .name("edge-dns".to_owned())
                .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
            Ok(handle)
        };
        (0..count.max(1)).map(start).collect::<io::Result<_>>().map(Self)
    }

    /// The thread of this network.
    pub fn of(&self, number: NetworkNumber) -> &Handle {
        &self.0[usize::from(number.get()) % self.0.len()]
    }
}

/// What all networks share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub stats: Stats,
    pub lookups: Semaphore,
    pub connections: Semaphore,
}

impl Shared {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            stats: Stats::default(),
            lookups: Semaphore::new(ALL_LOOKUPS),
            connections: Semaphore::new(ALL_CONNECTIONS),
        })
    }
}

/// What the tasks of one network read.
#[derive(Debug)]
pub(crate) struct Network {
    pub zone: ArcSwap<Zone>,
    pub lookups: Arc<Slots>,
    pub connections: Arc<Slots>,
    pub shared: Arc<Shared>,
}

impl Network {
    pub fn new(zone: Zone, shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self {
            zone: ArcSwap::from_pointee(zone),
            lookups: Slots::new(LOOKUPS.0, LOOKUPS.1),
            connections: Slots::new(CONNECTIONS.0, CONNECTIONS.1),
            shared,
        })
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

/// Four sockets that fit, ready to be served.
pub(crate) struct Listening {
    udp4: tokio::net::UdpSocket,
    udp6: tokio::net::UdpSocket,
    tcp4: tokio::net::TcpListener,
    tcp6: tokio::net::TcpListener,
    worker: Handle,
}

impl Listening {
    /// Takes the sockets over for the thread that `worker` stands for.
    pub fn new(sockets: Sockets, worker: &Handle) -> Result<Self, SocketError> {
        let _inside = worker.enter();
        let Sockets { udp4, udp6, tcp4, tcp6 } = sockets;
        Ok(Self {
            udp4: adopt_udp("udp4", udp4.into(), true)?,
            udp6: adopt_udp("udp6", udp6.into(), false)?,
            tcp4: adopt_tcp("tcp4", tcp4.into(), true)?,
            tcp6: adopt_tcp("tcp6", tcp6.into(), false)?,
            worker: worker.clone(),
        })
    }

    /// Serves until the returned set is dropped.
    pub fn serve(self, network: &Arc<Network>) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        tasks.spawn_on(udp::serve_v4(network.clone(), self.udp4), &self.worker);
        tasks.spawn_on(udp::serve_v6(network.clone(), self.udp6), &self.worker);
        tasks.spawn_on(tcp::serve(network.clone(), self.tcp4), &self.worker);
        tasks.spawn_on(tcp::serve(network.clone(), self.tcp6), &self.worker);
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
