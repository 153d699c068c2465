//! What the API may ask about the enforcement of policies.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt as _};
use jiff::Timestamp;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use warren_api::{Boundaries, DenialFilter};
use warren_model::denial::Denial;
use warren_model::{AccountId, DenialId, MachineId, wire};
use warren_reconcile::World;

/// How many denials of one machine are gathered at once.
const GATHERED: usize = 1000;

/// How many denials are listed for a follower that lags.
const CAUGHT_UP: usize = 10_000;

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
        self.world.denials.list(account, filter.machine.map(Into::into), filter.after, limit)
    }

    fn follow(&self, account: AccountId) -> BoxStream<'static, Denial> {
        let world = Arc::clone(&self.world);
        let list = move |after, limit| world.denials.list(account, None, after, limit);
        let last = list(None, 1).pop().map(|denial| denial.id);
        follow(self.world.denials.follow(), account, last, list).boxed()
    }

    async fn gather(&self, machine: MachineId, since: Timestamp) -> Vec<Denial> {
        self.world.gather_denials(machine, since, GATHERED).await
    }

    async fn flows(&self, account: AccountId) -> Vec<wire::LiveFlow> {
        self.world.open_flows(account).await
    }
}

/// The denials of an account as they are told, after the one with the id `last`. Who is too slow for that is given what
/// the list has after the newest that they were given.
fn follow(
    news: broadcast::Receiver<Denial>,
    account: AccountId,
    last: Option<DenialId>,
    list: impl Fn(Option<DenialId>, usize) -> Vec<Denial> + Send + Sync + 'static,
) -> impl Stream<Item = Denial> + Send {
    let follower = Follower { news, last, waiting: VecDeque::new(), listed: HashSet::new() };
    stream::unfold((follower, list), move |(mut follower, list)| async move {
        let denial = follower.next(account, &list).await?;
        Some((denial, (follower, list)))
    })
}

struct Follower {
    news: broadcast::Receiver<Denial>,
    /// The newest that was given.
    last: Option<DenialId>,
    /// Listed, and not yet given.
    waiting: VecDeque<Denial>,
    /// What was listed, with its count, and may be told as well.
    listed: HashSet<(DenialId, u64)>,
}

impl Follower {
    /// `None` when nothing is told any more.
    async fn next(
        &mut self,
        account: AccountId,
        list: &impl Fn(Option<DenialId>, usize) -> Vec<Denial>,
    ) -> Option<Denial> {
        loop {
            if let Some(denial) = self.waiting.pop_front() {
                self.last = self.last.max(Some(denial.id));
                return Some(denial);
            }
            match self.news.recv().await {
                Ok(denial) if denial.account != account || self.listed.remove(&(denial.id, denial.count)) => {}
                Ok(denial) => self.waiting.push_back(denial),
                Err(RecvError::Lagged(_)) => {
                    // From before the list, so that nothing is missed in between.
                    self.news = self.news.resubscribe();
                    self.waiting = list(self.last, CAUGHT_UP).into();
                    self.listed = self.waiting.iter().map(|denial| (denial.id, denial.count)).collect();
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use warren_model::denial::Layer;
    use warren_model::policy::Protocol;

    use super::*;

    fn denial(account: u64, id: u64) -> Denial {
        Denial {
            id: format!("dny_{id:026}").parse().unwrap(),
            time: Timestamp::UNIX_EPOCH,
            account: format!("acc_{account:026}").parse().unwrap(),
            network: format!("net_{:026}", 1).parse().unwrap(),
            member: None,
            to: None,
            name: None,
            port: None,
            protocol: Protocol::Tcp,
            layer: Layer::Network,
            rule: None,
            reason: String::new(),
            suggested_rule: None,
            count: 1,
        }
    }

    #[tokio::test]
    async fn who_lags_is_told_everything_once_and_in_order() {
        let (told, news) = broadcast::channel(4);
        let all = Arc::new(Mutex::new(Vec::new()));
        let tell = |denial: Denial| {
            all.lock().unwrap().push(denial.clone());
            let _ = told.send(denial);
        };
        let (mine, listed) = (denial(1, 0).account, Arc::clone(&all));
        let list = move |after: Option<DenialId>, limit| {
            let all = listed.lock().unwrap();
            let new = all.iter().filter(|denial| denial.account == mine && after.is_none_or(|after| denial.id > after));
            new.take(limit).cloned().collect::<Vec<Denial>>()
        };
        tell(denial(1, 1));
        let mut following = std::pin::pin!(follow(news, mine, Some(denial(1, 1).id), list));
        for id in 2..=20 {
            tell(denial(1, id));
            tell(denial(2, 100 + id));
        }
        for id in 2..=20 {
            assert_eq!(following.next().await, Some(denial(1, id)));
        }
        tell(denial(1, 21));
        assert_eq!(following.next().await, Some(denial(1, 21)));
    }
}
