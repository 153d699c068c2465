//! What the API may ask about the enforcement of policies.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use jiff::Timestamp;
use tokio_stream::wrappers::BroadcastStream;
use warren_api::{Boundaries, DenialFilter};
use warren_model::denial::Denial;
use warren_model::{AccountId, MachineId, wire};
use warren_reconcile::World;

/// How many denials of one machine are gathered at once.
const GATHERED: usize = 1000;

/// The boundaries, through the parts that enforce them.
pub struct LiveBoundaries {
    world: Arc<World>,
}

impl LiveBoundaries {
    pub fn new(world: Arc<World>) -> Self {
        Self { world }
    }
}

#[async_trait]
impl Boundaries for LiveBoundaries {
    async fn enforced(&self, account: AccountId, version: u64, within: Duration) -> Result<(), String> {
        if tokio::time::timeout(within, self.world.enforced(account, version)).await.is_ok() {
            return Ok(());
        }
        match self.world.not_enforced(account, version) {
            late if late.is_empty() => Ok(()),
            late => Err(format!("still without it: {}", late.join(", "))),
        }
    }

    async fn denials(&self, account: AccountId, filter: DenialFilter, limit: usize) -> Vec<Denial> {
        self.world.fetch_denials().await;
        self.world.denials.list(account, filter.machine, filter.after, limit)
    }

    fn follow(&self, account: AccountId) -> BoxStream<'static, Denial> {
        // What a slow follower misses is still in the list.
        let news = BroadcastStream::new(self.world.denials.follow()).filter_map(|denial| async { denial.ok() });
        news.filter(move |denial| std::future::ready(denial.account == account)).boxed()
    }

    async fn gather(&self, machine: MachineId, since: Timestamp) -> Vec<Denial> {
        self.world.gather_denials(machine, since, GATHERED).await
    }

    async fn flows(&self, account: AccountId) -> Vec<wire::LiveFlow> {
        self.world.open_flows(account).await
    }
}
