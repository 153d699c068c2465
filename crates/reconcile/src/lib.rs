//! Drives plans against the host and writes status back.
//!
//! Everything here is level-triggered: a task is told *that* something may differ, never *what*, and looks for itself.
//!
//! ```text
//! store watch ─ desired ──┐
//! netlink, exits, edge ───┼─ queue ─ worker ─ observe ─ plan ─ steps ─ kernel / runtime / edge
//! slow timer ─────────────┘                                     └─ status, events ─ store
//! ```
//!
//! | module | task or part |
//! | --- | --- |
//! | `desired` | the store's records in memory, kept by one watch |
//! | `queue` | which networks and machines are to be looked at; one worker at a time for each |
//! | `machine`, `network` | observe, plan and execute for one of them |
//! | `sight` | who is there for whom; pure |
//! | `names`, `facts` | the files and DNS views that follow from the records; pure |
//! | `policy` | policies, compiled for their networks; what of them is enforced; rules that expire |
//! | `denials` | what kernel and edge refused, as records |
//! | `sessions` | the port that operators come to, and the end of their sessions |
//! | `public` | what the internet reaches: listeners, domains, the way to their machines, certificates |
//! | `edge` | the connection to the edge process; starts it anew when it ends |
//! | `drift` | what wakes workers besides the store: netlink, exits, a timer |
//! | `leftovers` | removes what nothing desires |
//! | `status` | statuses and events |
//! | `audit`, `housekeeping` | the audit log; addresses that have rested |
//! | `proof` | the audit: probes in machines, canaries, reports, the schedule |
//! | `crash` | the points at which tests end the process |

mod audit;
pub mod crash;
mod denials;
mod desired;
mod drift;
mod edge;
mod error;
mod facts;
mod housekeeping;
mod leftovers;
mod machine;
mod metrics;
mod names;
mod network;
mod policy;
mod proof;
mod public;
mod queue;
#[cfg(test)]
mod samples;
mod sessions;
mod sight;
mod status;
mod world;

pub use error::ReconcileError;
pub use proof::{AuditSettings, Auditor, host_addresses};
pub use public::{AcmeSettings, OrderLimits, OwnFiles, PublicListeners, PublicSettings};
pub use sessions::{TunnelGateway, TunnelSettings};
pub use world::{Parts, World};

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use tokio::task::JoinSet;

use crate::queue::Item;

/// How many networks and machines are worked on at once.
const WORKERS: usize = 16;
/// A network that has failed so often in a row is told of; what failed once is often good again the next time.
const TOLD_AFTER: u32 = 3;

/// Reads the records, adopts what the host has, and keeps the two together until the returned tasks are dropped.
pub async fn start(parts: Parts) -> Result<(Arc<World>, JoinSet<()>), ReconcileError> {
    let (world, changes) = World::load(parts).await?;
    let world = Arc::new(world);
    world.adopt().await?;
    leftovers::remove(&world).await?;
    if let Err(error) = status::server_started(&world).await {
        tracing::warn!(error = %error.chain(), "the start is not among the events");
    }

    let mut tasks = JoinSet::new();
    tasks.spawn(desired::follow(Arc::clone(&world), changes));
    for _ in 0..WORKERS {
        tasks.spawn(work(Arc::clone(&world)));
    }
    tasks.spawn(drift::netlink(Arc::clone(&world)));
    tasks.spawn(drift::exits(Arc::clone(&world)));
    tasks.spawn(drift::agents(Arc::clone(&world)));
    tasks.spawn(drift::timer(Arc::clone(&world)));
    tasks.spawn(policy::keep(Arc::clone(&world)));
    tasks.spawn(edge::keep(Arc::clone(&world)));
    tasks.spawn(sessions::keep(Arc::clone(&world)));
    public::begin(&world).await;
    tasks.spawn(public::keep(Arc::clone(&world)));
    tasks.spawn(public::certificates::keep(Arc::clone(&world)));
    tasks.spawn(audit::keep(Arc::clone(&world)));
    tasks.spawn(housekeeping::keep(Arc::clone(&world)));
    tasks.spawn(denials::from_kernel(Arc::clone(&world)));
    tasks.spawn(denials::from_edge(Arc::clone(&world)));
    tasks.spawn(denials::write(Arc::clone(&world)));
    world.enqueue_everything();
    Ok((world, tasks))
}

async fn work(world: Arc<World>) {
    loop {
        let claimed = world.queue.next().await;
        match attempt(&world, claimed.item).await {
            Ok(()) => world.queue.done(claimed),
            Err(error) => {
                tracing::warn!(item = %claimed.item, error = %error.chain(), "will try again");
                let item = claimed.item;
                let failures = world.queue.failed(claimed);
                // Whoever waits for an operator's session is told; nothing is wrong with the network.
                if let Item::Network(id) = item
                    && failures >= TOLD_AFTER
                    && !matches!(error, ReconcileError::OperatorsRefused(_))
                {
                    network::failed(&world, id, &error).await;
                }
            }
        }
    }
}

/// A panic costs this attempt, and neither the worker nor the item.
async fn attempt(world: &World, item: Item) -> Result<(), ReconcileError> {
    let work = async {
        match item {
            Item::Network(id) => network::reconcile(world, id).await,
            Item::Machine(id) => machine::reconcile(world, id).await,
        }
    };
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or(Err(ReconcileError::StepPanicked))
}
