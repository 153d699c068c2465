//! Forgets addresses that have rested.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use warren_store::{Compare, Op, StoreError, Txn, Typed, schema};

use crate::world::World;

const INTERVAL: Duration = Duration::from_secs(60);

pub(crate) async fn keep(world: Arc<World>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        if let Err(error) = release_rested(&world, Timestamp::now()).await {
            tracing::warn!(%error, "rested addresses stay for now");
        }
    }
}

async fn release_rested(world: &World, now: Timestamp) -> Result<(), StoreError> {
    let networks: Vec<_> = world.desired.read().networks().map(|network| network.id).collect();
    for network in networks {
        let (holds, _) = world.store.list_all(&schema::addresses(network)).await?;
        let rested = holds
            .into_iter()
            .filter(|hold| hold.record.holder.is_none() && hold.record.resting_until.is_none_or(|until| until < now));
        // Somebody may take the address just now, so each is removed only as it was read.
        for hold in rested {
            let txn = Txn {
                compares: vec![Compare::Unchanged { key: hold.key.clone(), modified: hold.modified }],
                ops: vec![Op::Delete { key: hold.key }],
            };
            world.store.txn(txn).await?;
        }
    }
    Ok(())
}
