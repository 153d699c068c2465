//! Public previews: HTTP and HTTPS for names that somebody published, passed on to a port of a machine.
//!
//! ```text
//!   listen ── admitted? TLS? ──▶ client ──▶ forward ── whose? allowed? ──▶ upstream ──▶ machine:port
//!                                  │ HTTP/1.1, HTTP/2     │                  │ HTTP/1.1, kept open
//!                                  ▼                      ▼                  ▼
//!                               activity                table              tunnel (WebSocket)
//! ```
//!
//! It opens nothing by itself: listeners are handed in, and connections to machines are made by a [`Dial`]. Requests are
//! parsed and written anew, so that what was checked is what a machine reads. What is published is one [`Snapshot`],
//! replaced as a whole; requests look it up without a lock. Each connection is a task, each stream of HTTP/2 is one, and
//! so is each connection to a machine. The latter belong to the site's target, and end with it.
//!
//! | module | holds |
//! | --- | --- |
//! | `snapshot` | what is published, as it is sent |
//! | `table`, `certificates` | the same, as it is looked up |
//! | `listen`, `admit`, `socket` | accepting connections |
//! | `strict`, `framing` | reading HTTP/1.1 strictly |
//! | `client`, `streams`, `gather` | HTTP/1.1 and HTTP/2 with clients |
//! | `forward` | one request, from its head to its response |
//! | `host`, `headers`, `auth`, `rate`, `pace`, `problem` | judging requests; no I/O |
//! | `counters` | what happened to each site, and each source's share of it |
//! | `body`, `activity` | bodies on their way, and whether they still move |
//! | `upstream`, `room`, `tunnel` | connections to machines |

mod activity;
mod admit;
mod auth;
mod body;
mod certificates;
mod client;
mod counters;
mod forward;
mod framing;
#[doc(hidden)]
pub mod fuzz;
mod gather;
mod headers;
mod host;
mod limits;
mod listen;
mod pace;
mod problem;
mod rate;
mod room;
mod shared;
mod snapshot;
mod socket;
mod streams;
mod strict;
mod table;
mod tunnel;
mod upstream;

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio_util::task::TaskTracker;
use warren_model::NetworkNumber;
use warren_model::policy::HostName;

pub use crate::counters::{SiteCounters, Totals};
pub use crate::limits::Limits;
pub use crate::listen::Kind;
pub use crate::snapshot::{
    Auth, Certificate, CertificateError, InvalidSecretHash, SecretHash, Site, SiteLimits, Snapshot, SnapshotError,
};
pub use crate::upstream::{Dial, Upstream};

use crate::admit::Admission;
use crate::certificates::Tls;
use crate::counters::Refused;
use crate::room::Room;
use crate::shared::Shared;
use crate::table::Table;

/// Connections to machines that are no longer to be, on their way to their end.
#[derive(Debug, Default)]
pub struct Ending(Vec<TaskTracker>);

impl Ending {
    /// Resolves when they have ended. What came over them may still be on its way to clients, and nothing follows.
    pub async fn ended(self) {
        for connections in self.0 {
            connections.wait().await;
        }
    }
}

/// Serves what is published. Clones are the same.
#[derive(Clone)]
pub struct Ingress {
    shared: Arc<Shared>,
}

impl Ingress {
    /// With nothing published. Fails where the system gives no random numbers.
    pub fn new(limits: Limits, dial: Arc<dyn Dial>) -> Result<Self, SnapshotError> {
        let tls = Tls::new().map_err(|error| SnapshotError::Tls(error.into()))?;
        let table = Table::build(&Snapshot::default(), &tls, &limits, None)?;
        let room = Arc::new(Room::new(dial));
        let shared = Shared {
            table: ArcSwap::from_pointee(table),
            applying: Mutex::new(()),
            tls,
            dial: room.clone(),
            room,
            limits,
            admission: Arc::new(Admission::new(limits.connections, limits.connections_per_source)),
            started: Instant::now(),
            refused: Refused::default(),
            connections_refused: 0.into(),
            handshakes_failed: 0.into(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Publishes `snapshot` and nothing else. No request begins any more to places that are published no longer, and what
    /// is under way there ends, as the answer tells; everything else goes on, with its counters. A snapshot that is refused
    /// changes nothing.
    pub fn apply(&self, snapshot: &Snapshot) -> Result<Ending, SnapshotError> {
        let _applying = self.shared.applying.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.shared.table.load_full();
        let after = Arc::new(Table::build(snapshot, &self.shared.tls, &self.shared.limits, Some(&before))?);
        self.shared.room.share_among(after.sites.values().map(|live| (live.site.network, &live.target)));
        self.shared.table.store(after.clone());
        Ok(Ending(before.close_all_but(&after)))
    }

    /// Answers these challenges of ACME, by token, and no others; what is published stays as it is. Where one is refused
    /// nothing changes.
    pub fn answer(&self, challenges: &BTreeMap<String, String>) -> Result<(), SnapshotError> {
        let _applying = self.shared.applying.lock().unwrap_or_else(PoisonError::into_inner);
        let after = self.shared.table.load().with_challenges(challenges)?;
        self.shared.table.store(Arc::new(after));
        Ok(())
    }

    /// Ends everything that is under way to the machines of a network. What is published there stays so.
    pub fn cut(&self, network: NetworkNumber) -> Ending {
        let table = self.shared.table.load();
        let there = table.sites.values().filter(|live| live.site.network == network);
        Ending(there.map(|live| live.target.cut()).collect())
    }

    /// Closes connections to machines that were not used for a while, for ever. It has to run as long as anything is
    /// published, also while nothing listens.
    pub fn sweep(&self) -> impl Future<Output = ()> + Send + use<> {
        listen::sweep(self.shared.clone())
    }

    /// Serves a listener until the future is dropped, and with it the listener's connections; only WebSockets go on, until
    /// their site is gone. Errors: the listener is of no use to the runtime.
    pub fn serve(&self, listener: TcpListener, kind: Kind) -> impl Future<Output = io::Result<()>> + Send + use<> {
        listen::serve(self.shared.clone(), listener, kind)
    }

    /// What happened to each published site, by host.
    pub fn counters(&self) -> Vec<SiteCounters> {
        let table = self.shared.table.load();
        let mut counters: Vec<_> = table.sites.values().map(|live| live.counters()).collect();
        counters.sort_by(|a, b| a.host.cmp(&b.host));
        counters
    }

    /// What happened to those of these sites that are published, in the order in which they are asked for.
    pub fn counters_of(&self, hosts: &[HostName]) -> Vec<SiteCounters> {
        let table = self.shared.table.load();
        hosts.iter().filter_map(|host| Some(table.sites.get(host.as_str())?.counters())).collect()
    }

    /// What happened to no site.
    pub fn totals(&self) -> Totals {
        let shared = &self.shared;
        Totals {
            open_connections: shared.admission.open(),
            connections_refused: shared.connections_refused.load(Relaxed),
            handshakes_failed: shared.handshakes_failed.load(Relaxed),
            refused: shared.refused.by_code(),
        }
    }
}
