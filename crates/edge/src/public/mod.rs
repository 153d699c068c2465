//! Public previews: the listeners that the internet reaches, and the way from there to machines.
//!
//! ```text
//!   internet ─▶ listener ─▶ warren_ingress ── site of this host? ─▶ dialers ─▶ pool of that network ─▶ machine
//! ```
//!
//! The public side reaches nothing but machines: it connects with the sockets of the pools and makes none itself. Each of
//! those is inside the router namespace of one network, which the internet, the host's loopback and with it the control
//! API are not part of. Whom it connects to is what the daemon published, and never what a client says.
//!
//! It has threads of its own, so that whatever the internet sends holds up no DNS and no machine's connection.

mod dial;
mod pool;

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::net::{SocketType, sockopt};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use warren_ingress::{Ending, Ingress, Kind, Limits, SiteCounters, Snapshot, SnapshotError, Totals};
use warren_model::NetworkNumber;
use warren_model::policy::HostName;

pub use pool::PoolStatus;

use dial::Dialers;

/// What the public side has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicStatus {
    /// Of what is published; `None` before anything was.
    pub generation: Option<PublicGeneration>,
    pub listening: BTreeMap<Kind, Vec<SocketAddr>>,
    /// The networks whose machines can be reached.
    pub dialers: BTreeMap<NetworkNumber, PoolStatus>,
    /// How many more sockets to machines are taken, of all networks together.
    pub room: usize,
}

/// Tells two things that were published from each other. Chosen by the daemon; the edge only repeats it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicGeneration {
    /// Of everything but the challenges of ACME.
    pub content: u64,
    /// Of these, which come and go with every order of a certificate.
    pub challenges: u64,
}

/// What happened to requests from outside since the edge started, with the sites that were asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicCounters {
    pub sites: Vec<SiteCounters>,
    pub totals: Totals,
}

/// Why the public side does not do what the daemon asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublicError {
    #[error("the threads of the public side cannot be started")]
    Threads(#[source] io::Error),
    #[error("what is to be published is refused")]
    Snapshot(#[from] SnapshotError),
    #[error("a public listener cannot be used")]
    Listener(#[source] io::Error),
    #[error("a socket to the machines of network {0} cannot be used")]
    Dialer(NetworkNumber, #[source] io::Error),
}

/// The public side of the edge.
pub(crate) struct Public {
    runtime: Runtime,
    ingress: Ingress,
    dialers: Arc<Dialers>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    generation: Option<PublicGeneration>,
    listening: BTreeMap<Kind, Listening>,
}

/// Ends when it is dropped.
struct Listening {
    addresses: Vec<SocketAddr>,
    tasks: JoinSet<()>,
}

impl Public {
    /// With so many threads, and nothing published.
    pub fn start(threads: usize) -> Result<Self, PublicError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .thread_name("edge-public")
            .enable_all()
            .build()
            .map_err(PublicError::Threads)?;
        let dialers = Arc::new(Dialers::new(runtime.handle().clone()));
        let ingress = Ingress::new(Limits::default(), dialers.clone())?;
        // It ends with the runtime.
        runtime.spawn(ingress.sweep());
        Ok(Self { runtime, ingress, dialers, state: Mutex::default() })
    }

    /// Publishes this and nothing else. Returns what is open to places that are not published any more, which is about to
    /// end.
    pub fn put(&self, generation: PublicGeneration, snapshot: &Snapshot) -> Result<Ending, PublicError> {
        let mut state = self.state();
        let ending = self.ingress.apply(snapshot)?;
        state.generation = Some(generation);
        Ok(ending)
    }

    /// Answers these challenges and no others.
    pub fn answer(&self, generation: u64, challenges: &BTreeMap<String, String>) -> Result<(), PublicError> {
        let mut state = self.state();
        self.ingress.answer(challenges)?;
        if let Some(there) = &mut state.generation {
            there.challenges = generation;
        }
        Ok(())
    }

    /// Serves these listeners instead of those of the kind before; none to serve none. Returns those before, which are
    /// closed when the tasks have ended.
    pub fn listen(&self, kind: Kind, listeners: Vec<OwnedFd>) -> Result<Option<JoinSet<()>>, PublicError> {
        let listeners: Vec<TcpListener> =
            listeners.into_iter().map(listener).collect::<io::Result<_>>().map_err(PublicError::Listener)?;
        let mut state = self.state();
        let before = state.listening.remove(&kind).map(|before| before.tasks);
        if listeners.is_empty() {
            return Ok(before);
        }
        let addresses = listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
        let mut tasks = JoinSet::new();
        for listener in listeners {
            let serving = self.ingress.serve(listener, kind);
            let serve = async move {
                if let Err(error) = serving.await {
                    tracing::error!(%error, "a public listener ended");
                }
            };
            tasks.spawn_on(serve, self.runtime.handle());
        }
        state.listening.insert(kind, Listening { addresses, tasks });
        Ok(before)
    }

    /// Adds sockets by which a network's machines can be reached.
    pub fn add_dialers(&self, network: NetworkNumber, sockets: Vec<OwnedFd>) -> Result<(), PublicError> {
        self.dialers.add(network, sockets).map_err(|error| PublicError::Dialer(network, error))
    }

    /// Nothing connects to the network's machines any more. Returns what is open to them, which is about to end.
    pub fn remove_dialers(&self, network: NetworkNumber) -> Ending {
        match self.dialers.remove(network) {
            true => self.ingress.cut(network),
            false => Ending::default(),
        }
    }

    pub fn status(&self) -> PublicStatus {
        let state = self.state();
        PublicStatus {
            generation: state.generation,
            listening: state.listening.iter().map(|(kind, there)| (*kind, there.addresses.clone())).collect(),
            dialers: self.dialers.status(),
            room: self.dialers.room(),
        }
    }

    /// With those of these hosts' sites; of all where there is `None`.
    pub fn counters(&self, hosts: Option<&[HostName]>) -> PublicCounters {
        let sites = hosts.map_or_else(|| self.ingress.counters(), |hosts| self.ingress.counters_of(hosts));
        PublicCounters { sites, totals: self.ingress.totals() }
    }

    /// Keeps one thread busy for so long.
    #[cfg(test)]
    pub fn occupy(&self, time: std::time::Duration) {
        let (begun, begins) = std::sync::mpsc::channel();
        self.runtime.spawn(async move {
            begun.send(()).unwrap();
            std::thread::sleep(time);
        });
        begins.recv().unwrap();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What it says is written after it became true.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn listener(descriptor: OwnedFd) -> io::Result<TcpListener> {
    let fits = sockopt::socket_type(&descriptor)? == SocketType::STREAM && sockopt::socket_acceptconn(&descriptor)?;
    match fits {
        true => Ok(descriptor.into()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no TCP socket that listens")),
    }
}
