//! Following the reconciler until it has done what was asked.

use futures::future::BoxFuture;
use tokio::time::Instant;
use warren_model::MachineId;
use warren_model::record::{Machine, MachineStatus, Network};
use warren_store::schema::{self, Key, Record};
use warren_store::{Revision, StoreError, Typed, Versioned};

use crate::error::{Answer, ApiError};
use crate::state::Api;

/// The time is over; the operation goes on without anybody waiting for it.
pub(crate) struct TooLate;

/// A machine as it is wanted and as it is.
pub(crate) struct Seen {
    pub machine: Option<Versioned<Machine>>,
    pub status: Option<Versioned<MachineStatus>>,
}

/// Looks at the machine after each change of its status, until `judge` has an opinion.
pub(crate) async fn machine<T: Send>(
    api: &Api,
    id: MachineId,
    since: Revision,
    deadline: Instant,
    judge: impl Fn(Seen) -> Option<T> + Send + Sync,
) -> Answer<Result<T, TooLate>> {
    let key = schema::status(id);
    let judge = &judge;
    let look = move || -> BoxFuture<'_, _> {
        Box::pin(async move {
            let machine = api.store.read(&schema::machine(id)).await?;
            let status = api.store.read(&schema::status(id)).await?;
            Ok(judge(Seen { machine, status }))
        })
    };
    follow(api, &key, since, deadline, look).await
}

/// Waits until the network's record is gone.
pub(crate) async fn network_gone(
    api: &Api,
    network: &Network,
    since: Revision,
    deadline: Instant,
) -> Answer<Result<(), TooLate>> {
    let key = schema::network(network.id);
    let id = network.id;
    let look = move || -> BoxFuture<'_, _> {
        Box::pin(async move { Ok(api.store.read(&schema::network(id)).await?.is_none().then_some(())) })
    };
    follow(api, &key, since, deadline, look).await
}

async fn follow<'a, T, R: Record>(
    api: &'a Api,
    key: &Key<R>,
    since: Revision,
    deadline: Instant,
    look: impl Fn() -> BoxFuture<'a, Result<Option<T>, StoreError>> + Send + Sync,
) -> Answer<Result<T, TooLate>> {
    let mut since = since;
    loop {
        let mut watch = match api.store.watch(key.as_str(), since + 1).await {
            Err(StoreError::Compacted { .. }) => {
                since = api.store.revision().await?;
                continue;
            }
            watch => watch?,
        };
        loop {
            if let Some(found) = look().await? {
                return Ok(Ok(found));
            }
            let changed = tokio::select! {
                changed = tokio::time::timeout_at(deadline, watch.next()) => changed,
                () = api.config.shutdown.cancelled() => {
                    return Err(ApiError::new(
                        warren_model::Code::NotReady,
                        "the server is shutting down; what was asked for is stored and goes on when it is back",
                    ));
                }
            };
            match changed {
                Err(_) => return Ok(Err(TooLate)),
                Ok(Ok(_)) => {}
                // Fell behind: look at what is, and follow from there.
                Ok(Err(StoreError::Compacted { .. })) => break,
                Ok(Err(error)) => return Err(error.into()),
            }
        }
        since = api.store.revision().await?;
    }
}
