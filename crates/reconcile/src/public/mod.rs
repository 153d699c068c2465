//! Public previews: what the internet reaches of this server, and by which way.
//!
//! ```text
//! domain records ─┐                          ┌─ listeners (once)
//! machine records ┼─ snapshot (pure) ─ keep ─┼─ pools of sockets, for networks with a domain
//! certificates ───┘                          └─ the snapshot, when its hash differs; challenges by themselves
//!       └─ own files, the server's own authority, or orders by ACME
//! ```
//!
//! The edge goes on with what it has while there is no daemon; a daemon that comes back compares what the edge says that
//! it has, and gives it what is missing. A machine that stops keeps its domain, whose requests then fail; one that is
//! deleted takes its domains along, in one transaction, so that no name leads to whoever has the address later.

pub(crate) mod certificates;
mod counted;
mod keep;
mod snapshot;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::registry::Registry;
use tokio::sync::{Notify, watch};
use warren_certs::acme::{Directory, Email};
use warren_model::NetworkId;
use warren_model::domain::{Domain, DomainStatus, DomainTraffic};
use warren_model::policy::HostName;
use warren_store::{StoreError, Typed, schema};

use crate::world::{World, lock};
use certificates::Certificates;
pub use certificates::orders::OrderLimits;
pub(crate) use counted::PublicMetrics;
pub(crate) use keep::{begin, keep};

/// Where the public comes in, and where certificates come from.
#[derive(Debug, Clone, Default)]
pub struct PublicSettings {
    pub https: Option<SocketAddr>,
    pub http: Option<SocketAddr>,
    /// Where certificates and keys are kept.
    pub directory: PathBuf,
    /// For the names that it covers, before anything else.
    pub own: Option<OwnFiles>,
    /// For all other names. Without it there is the server's own authority.
    pub acme: Option<AcmeSettings>,
    /// What clients show for the server's own authority.
    pub authority_name: String,
}

/// A certificate that the operator has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// An authority that is asked by ACME.
#[derive(Debug, Clone)]
pub struct AcmeSettings {
    pub directory: Directory,
    pub email: Option<Email>,
    pub limits: OrderLimits,
}

/// Where the public comes in, with the ports that were had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PublicListeners {
    pub https: Option<SocketAddr>,
    pub http: Option<SocketAddr>,
}

/// What is known of the public side besides the records.
pub(crate) struct Public {
    settings: PublicSettings,
    certificates: Arc<Certificates>,
    pub metrics: PublicMetrics,
    /// Or why not all of them are there.
    listeners: Mutex<Result<PublicListeners, String>>,
    /// What the edge serves; `None` before it is known.
    served: watch::Sender<Option<Served>>,
    /// What was to be served when it was last looked at.
    last: Mutex<snapshot::Last>,
    /// Answers to an authority that verifies a name, by token.
    challenges: Mutex<BTreeMap<String, String>>,
    /// Why machines of a network cannot be reached.
    trouble: Mutex<BTreeMap<NetworkId, String>>,
    /// Why the edge could not be brought up to date the last time.
    late: Mutex<Option<String>>,
    changed: Notify,
    /// There may be certificates to be ordered.
    wanted: Notify,
}

#[derive(Debug, Default)]
struct Served {
    domains: BTreeMap<HostName, Arc<Domain>>,
    challenges: BTreeSet<String>,
}

impl Public {
    pub fn new(settings: PublicSettings) -> Self {
        Self {
            certificates: Arc::new(Certificates::new(&settings)),
            settings,
            metrics: PublicMetrics::default(),
            listeners: Mutex::new(Err("the public listeners have not been opened yet".to_owned())),
            served: watch::Sender::new(None),
            last: Mutex::default(),
            challenges: Mutex::default(),
            trouble: Mutex::default(),
            late: Mutex::default(),
            changed: Notify::new(),
            wanted: Notify::new(),
        }
    }

    /// A domain or the machine of one, a certificate, a challenge, or the edge is another.
    pub fn changed(&self) {
        self.changed.notify_one();
    }

    fn is_on(&self) -> bool {
        self.settings.https.is_some() || self.settings.http.is_some()
    }

    /// Why a name is not served yet, for a person.
    fn hindrance(&self, domain: Option<&Domain>) -> String {
        if let Err(reason) = &*lock(&self.listeners) {
            return reason.clone();
        }
        let trouble = domain.and_then(|domain| lock(&self.trouble).get(&domain.network).cloned());
        let late = || lock(&self.late).clone();
        trouble.or_else(late).unwrap_or_else(|| "the edge has not taken it yet".to_owned())
    }
}

impl World {
    /// Where the public comes in, or why it does not.
    pub fn public_listeners(&self) -> Result<PublicListeners, String> {
        lock(&self.public.listeners).clone()
    }

    pub fn register_public_metrics(&self, registry: &mut Registry) {
        self.public.metrics.register(registry);
    }

    /// The root of the server's own authority as PEM, if that is where certificates come from.
    pub fn certificate_authority(&self) -> Option<String> {
        self.public.certificates.authority_pem()
    }

    /// Waits until the edge serves the name as its record says. The error says why it does not yet.
    pub async fn domain_published(&self, host: &HostName, within: Duration) -> Result<(), String> {
        self.domain_settled(host, within, |wanted, served| wanted.is_some() && wanted == served).await
    }

    /// Waits until nothing is served under the name, unless it has a record again. The error says why it still is.
    pub async fn domain_withdrawn(&self, host: &HostName, within: Duration) -> Result<(), String> {
        self.domain_settled(host, within, |wanted, served| served.is_none() || wanted.is_some()).await
    }

    async fn domain_settled(
        &self,
        host: &HostName,
        within: Duration,
        settled: impl Fn(Option<&Domain>, Option<&Domain>) -> bool,
    ) -> Result<(), String> {
        let mut served = self.public.served.subscribe();
        let wait = async {
            loop {
                // Before the record is read: whatever is served later is told.
                let now = served.borrow_and_update().as_ref().map(|served| served.domains.get(host).cloned());
                let wanted = self.store.read(&schema::domain(host)).await?.map(|read| read.record);
                if let Some(now) = now
                    && settled(wanted.as_ref(), now.as_deref())
                {
                    return Ok::<(), StoreError>(());
                }
                if served.changed().await.is_err() {
                    return Ok(());
                }
            }
        };
        match tokio::time::timeout(within, wait).await {
            Ok(outcome) => outcome.map_err(|error| error.to_string()),
            Err(_) => {
                let read = self.store.read(&schema::domain(host)).await.ok().flatten();
                Err(self.public.hindrance(read.map(|read| read.record).as_ref()))
            }
        }
    }

    /// What is known of these names; one that is not served is left out.
    pub async fn domain_statuses(&self, hosts: &[HostName]) -> BTreeMap<HostName, DomainStatus> {
        let counters = match self.edge.client().await {
            Ok(client) => client.public_counters(Some(hosts)).await.unwrap_or_default(),
            Err(_) => Default::default(),
        };
        let mut traffic: BTreeMap<HostName, DomainTraffic> = counters
            .sites
            .into_iter()
            .map(|site| {
                let refused = site.refused.values().sum();
                let traffic = DomainTraffic {
                    requests: site.requests.saturating_sub(refused),
                    refused,
                    sent_bytes: site.bytes_out,
                    received_bytes: site.bytes_in,
                    open: site.open_requests.into(),
                };
                (site.host, traffic)
            })
            .collect();
        let now = Timestamp::now();
        let status = |host: &HostName| {
            let traffic = traffic.remove(host)?;
            Some((host.clone(), DomainStatus { certificate: self.public.certificates.status(host, now), traffic }))
        };
        hosts.iter().filter_map(status).collect()
    }
}
