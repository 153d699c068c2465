//! Refusals of every layer become records: one denial, one voice.
//!
//! ```text
//!  kernel (NFLOG) ── packets ──┐
//!                              ├─ Denials ── ring for each account ── API, exec answers
//!  edge (DNS, proxy) ─ records ┘        └─── denials.log
//! ```
//!
//! The edge knows the policy and says in full what it refused. The kernel says only which packet it was; the rule, the
//! reason and the missing rule are found here by the evaluator.

mod ledger;
mod log;
mod losses;
mod packet;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::sync::{broadcast, mpsc};
use warren_kernel::{DeniedLosses, DeniedPacket};
use warren_model::denial::Denial;
use warren_model::{AccountId, DenialId, MachineId, MemberId};

use crate::ReconcileError;
use crate::world::{World, blocking, lock};
use ledger::Ledger;
use losses::Losses;

/// How often the edge is asked what it refused.
const ASKED_EVERY: Duration = Duration::from_millis(200);
/// How many records may wait to be logged; more are in the ring only.
const WAITING: usize = 4096;
/// How many records a slow follower may lag behind.
const FOLLOWED: usize = 1024;

/// What was refused on this host.
#[derive(Debug)]
pub struct Denials {
    ledger: Mutex<Ledger>,
    news: broadcast::Sender<Denial>,
    to_log: mpsc::Sender<Denial>,
    /// Taken by the task that writes.
    from_log: Mutex<Option<mpsc::Receiver<Denial>>>,
    path: PathBuf,
    /// The number of the last record that was fetched from the edge.
    fetched: tokio::sync::Mutex<u64>,
    /// How often the edge refused each member.
    by_edge: Mutex<HashMap<MemberId, u64>>,
    counted: Family<LayerLabel, Counter>,
    losses: Losses,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LayerLabel {
    layer: &'static str,
}

impl Denials {
    /// Remembers what the log at this path says.
    pub(crate) fn open(path: PathBuf) -> Result<Self, ReconcileError> {
        let mut ledger = Ledger::default();
        let known = log::read(&path).map_err(|source| ReconcileError::File {
            action: "reading the denials",
            path: path.clone(),
            source,
        })?;
        ledger.restore(known);
        let (to_log, from_log) = mpsc::channel(WAITING);
        let (news, _) = broadcast::channel(FOLLOWED);
        Ok(Self {
            ledger: Mutex::new(ledger),
            news,
            to_log,
            from_log: Mutex::new(Some(from_log)),
            path,
            fetched: tokio::sync::Mutex::default(),
            by_edge: Mutex::default(),
            counted: Family::default(),
            losses: Losses::default(),
        })
    }

    /// Oldest first: those after `after`, or else the newest.
    pub fn list(
        &self,
        account: AccountId,
        member: Option<MemberId>,
        after: Option<DenialId>,
        limit: usize,
    ) -> Vec<Denial> {
        lock(&self.ledger).list(account, member, after, limit)
    }

    /// What this member was refused since then, oldest first.
    pub fn since(&self, account: AccountId, member: MemberId, since: Timestamp, limit: usize) -> Vec<Denial> {
        lock(&self.ledger).since(account, member, since, limit)
    }

    /// How often the edge refused this member since it started.
    pub fn by_edge(&self, member: MemberId) -> u64 {
        lock(&self.by_edge).get(&member).copied().unwrap_or(0)
    }

    pub fn register(&self, registry: &mut Registry) {
        registry.register("warren_denials", "What policy refused, by the layer that refused it", self.counted.clone());
        self.losses.register(registry);
    }

    /// Every record of every account; one that is counted on comes again.
    pub fn follow(&self) -> broadcast::Receiver<Denial> {
        self.news.subscribe()
    }

    fn add(&self, denial: Denial) {
        let (record, more) = lock(&self.ledger).add(denial, Timestamp::now());
        self.counted.get_or_create(&LayerLabel { layer: record.layer.as_str() }).inc_by(more);
        // Nobody may be following.
        let _ = self.news.send(record.clone());
        // A full queue costs the log a line, and the ring nothing.
        let _ = self.to_log.try_send(record);
    }
}

impl World {
    /// Asks the edge for what it has refused until now. An edge that does not answer is found out elsewhere.
    pub async fn fetch_denials(&self) {
        if let Err(error) = fetch(self).await {
            tracing::debug!(error = %error.chain(), "the edge did not say what it refused");
        }
    }

    /// What a machine was refused since then, the oldest first.
    pub async fn gather_denials(&self, machine: MachineId, since: Timestamp, limit: usize) -> Vec<Denial> {
        self.fetch_denials().await;
        let account = self.desired.read().machine(machine).map(|machine| machine.account);
        account.map_or_else(Vec::new, |account| self.denials.since(account, machine.into(), since, limit))
    }
}

/// Makes records of the packets that the kernel refused.
pub(crate) async fn from_kernel(world: Arc<World>) {
    let mut packets = match world.kernel.denied() {
        Ok(packets) => packets,
        Err(error) => {
            tracing::warn!(%error, "packets that are refused are counted, but not told");
            return;
        }
    };
    let (mut look, mut before) = (tokio::time::interval(losses::LOOKED_AT_EVERY), DeniedLosses::default());
    loop {
        tokio::select! {
            packet = packets.recv() => {
                let Some(packet) = packet else { return };
                take(&world, &packet);
                while let Ok(packet) = packets.try_recv() {
                    take(&world, &packet);
                }
            }
            _ = look.tick() => {
                let now = world.kernel.denied_losses();
                world.denials.losses.take(&before, &now);
                before = now;
            }
        }
    }
}

fn take(world: &World, packet: &DeniedPacket) {
    if let Some(denial) = packet::explain(world, packet, Timestamp::now()) {
        world.denials.add(denial);
    }
}

/// Fetches from the edge what it refused, now and then.
pub(crate) async fn from_edge(world: Arc<World>) {
    loop {
        tokio::time::sleep(ASKED_EVERY).await;
        world.fetch_denials().await;
    }
}

/// Fetches what the edge refused until now.
async fn fetch(world: &World) -> Result<(), ReconcileError> {
    // One at a time, so that nothing is taken twice.
    let mut fetched = world.denials.fetched.lock().await;
    loop {
        let taken = world.edge.take_denials(*fetched).await?;
        *fetched = taken.last;
        taken.denials.into_iter().for_each(|denial| world.denials.add(denial));
        let mut totals: HashMap<MemberId, u64> = HashMap::new();
        for total in taken.totals {
            if let Some(member) = total.member {
                *totals.entry(member).or_default() += total.count;
            }
        }
        *lock(&world.denials.by_edge) = totals;
        if !taken.more {
            return Ok(());
        }
    }
}

/// Writes records to the log.
pub(crate) async fn write(world: Arc<World>) {
    let Some(mut records) = lock(&world.denials.from_log).take() else { return };
    let mut batch = Vec::new();
    let mut shares = log::Shares::default();
    while records.recv_many(&mut batch, WAITING).await > 0 {
        batch.retain(|denial| shares.admit(denial, Instant::now()));
        let (path, lines) = (world.denials.path.clone(), std::mem::take(&mut batch));
        let failed_path = path.clone();
        let written = blocking(move || {
            log::append(&path, &lines).map_err(|source| ReconcileError::File {
                action: "appending to the denials",
                path: failed_path,
                source,
            })
        });
        if let Err(error) = written.await {
            tracing::warn!(error = %error.chain(), "denials are not logged");
        }
    }
}
