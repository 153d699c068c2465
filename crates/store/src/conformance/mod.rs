//! What every backend has to do, as scenarios that panic when it does not.
//!
//! A backend's test implements [`Factory`] and calls [`run`]. The suite is lenient where backends may differ:
//! revisions may skip numbers, the first may be any, and leases may end some seconds late.

mod durable;
mod lease;
mod list;
mod model;
mod txn;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::{Change, Compare, Entry, LeaseId, Op, Range, Revision, Store, StoreError, Txn, TxnOutcome, Watch};

/// Makes stores for the suite.
#[async_trait]
pub trait Factory: Send + Sync {
    /// A store in which nothing was ever written.
    async fn fresh(&self) -> Box<dyn Instance>;

    /// The shortest time that a lease may have, at least 200 ms.
    fn shortest_ttl(&self) -> Duration;
}

/// One store, and the power over its life.
#[async_trait]
pub trait Instance: Send {
    /// The store as it is open now. The suite drops what it got before it calls the other two.
    fn store(&self) -> Arc<dyn Store>;

    /// Closes the store in an orderly way, and opens it again.
    async fn reopen(&mut self);

    /// Opens again what is on the disk, as if the process had died without another instruction.
    async fn crash(&mut self);
}

/// What a scenario is given.
struct Subject {
    instance: Box<dyn Instance>,
    ttl: Duration,
}

impl Subject {
    fn store(&self) -> Arc<dyn Store> {
        self.instance.store()
    }
}

macro_rules! scenarios {
    ($($module:ident :: $name:ident,)*) => {
        /// Runs every scenario, each on a fresh store, one after the other.
        ///
        /// # Panics
        /// When the backend breaks the contract. The scenario's name is on standard output before.
        pub async fn run(factory: &dyn Factory) {
            $(
                println!("conformance: {}::{}", stringify!($module), stringify!($name));
                let subject = Subject { instance: factory.fresh().await, ttl: factory.shortest_ttl() };
                $module::$name(subject).await;
            )*
        }
    };
}

scenarios! {
    txn::a_value_comes_back_as_it_was_put,
    txn::an_entry_knows_what_made_and_last_changed_it,
    txn::revisions_grow_with_every_change,
    txn::a_transaction_that_changes_nothing_has_no_revision,
    txn::each_compare_holds_exactly_when_it_should,
    txn::a_conflict_names_every_compare_that_failed_and_changes_nothing,
    txn::all_ops_of_a_transaction_share_its_revision,
    txn::the_last_op_on_a_key_counts,
    txn::no_update_of_concurrent_counters_is_lost,
    txn::only_one_of_many_concurrent_creates_wins,
    list::keys_come_in_byte_order,
    list::neighbours_of_a_prefix_are_not_below_it,
    list::a_prefix_may_end_at_the_edge_of_unicode,
    list::characters_that_mean_something_to_a_query_mean_nothing_here,
    list::pages_cover_everything_once,
    list::a_page_may_be_empty,
    list::a_count_is_of_the_keys_below_a_prefix_and_follows_every_change,
    list::a_watch_from_the_revision_after_a_page_misses_nothing,
    watch::the_past_is_replayed_in_order,
    watch::what_comes_is_followed,
    watch::only_changes_below_the_prefix_are_seen,
    watch::a_watch_may_begin_in_the_future,
    watch::a_revision_is_never_split,
    watch::changes_of_a_revision_come_in_key_order,
    watch::a_deleted_key_is_a_change_without_a_value,
    watch::forgotten_history_is_refused,
    watch::compaction_keeps_values_and_the_newest_revision,
    watch::a_slow_watcher_gets_everything,
    watch::a_watcher_that_fell_behind_compaction_is_told_so,
    watch::a_dropped_call_loses_nothing,
    watch::all_watchers_see_the_same_while_many_write,
    lease::the_keys_of_an_ended_lease_go_in_one_revision,
    lease::keeping_a_lease_alive_keeps_its_keys,
    lease::a_revoked_lease_is_gone_at_once,
    lease::an_unknown_lease_is_refused_and_nothing_is_done,
    lease::the_last_put_says_which_lease_a_key_has,
    lease::a_lease_without_keys_ends_without_a_revision,
    lease::a_lease_outlives_a_restart_and_then_ends,
    lease::a_lease_whose_time_passed_during_a_crash_ends_after_it,
    durable::everything_is_there_after_a_restart,
    durable::everything_answered_is_there_after_a_crash,
    durable::what_was_forgotten_stays_forgotten,
    durable::a_watch_ends_when_its_store_closes,
    model::random_transactions_do_what_a_sorted_map_would,
}

/// How long the suite waits for what has to happen.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long it waits to see that something does not happen.
const QUIET: Duration = Duration::from_millis(150);

fn put_op(key: &str, value: &str) -> Op {
    Op::Put { key: key.into(), value: value.into(), lease: None }
}

fn put_with(key: &str, value: &str, lease: LeaseId) -> Op {
    Op::Put { key: key.into(), value: value.into(), lease: Some(lease) }
}

fn delete_op(key: &str) -> Op {
    Op::Delete { key: key.into() }
}

async fn attempt(store: &dyn Store, compares: Vec<Compare>, ops: Vec<Op>) -> TxnOutcome {
    store.txn(Txn { compares, ops }).await.unwrap()
}

async fn commit(store: &dyn Store, ops: Vec<Op>) -> Revision {
    match attempt(store, Vec::new(), ops).await {
        TxnOutcome::Committed(revision) => revision,
        TxnOutcome::Conflict(failed) => panic!("compares {failed:?} failed, but there were none"),
    }
}

async fn put(store: &dyn Store, key: &str, value: &str) -> Revision {
    commit(store, vec![put_op(key, value)]).await
}

async fn get(store: &dyn Store, key: &str) -> Option<Entry> {
    store.get(key).await.unwrap()
}

async fn keys(store: &dyn Store, prefix: &str) -> Vec<String> {
    everything(store, prefix).await.into_iter().map(|entry| entry.key).collect()
}

async fn everything(store: &dyn Store, prefix: &str) -> Vec<Entry> {
    let page = store.list(Range { prefix: prefix.into(), after: None, limit: 100_000 }).await.unwrap();
    assert!(!page.more);
    page.entries
}

/// The next changes, which have to come.
async fn next(watch: &mut dyn Watch) -> Vec<Change> {
    next_or_error(watch).await.unwrap()
}

async fn next_or_error(watch: &mut dyn Watch) -> Result<Vec<Change>, StoreError> {
    let result = tokio::time::timeout(PATIENCE, watch.next()).await.expect("nothing came from a watch");
    if let Ok(changes) = &result {
        let first = changes.first().expect("a watch reported no change");
        assert!(changes.iter().all(|change| change.revision == first.revision), "a watch mixed revisions: {changes:?}");
    }
    result
}

async fn nothing_comes(watch: &mut dyn Watch) {
    if let Ok(result) = tokio::time::timeout(QUIET, watch.next()).await {
        panic!("a watch reported what it should not: {result:?}");
    }
}

/// Waits until the key is gone.
async fn gone(store: &dyn Store, key: &str) {
    let wait = async {
        while get(store, key).await.is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{key} never goes away"));
}

fn changed(revision: Revision, key: &str, value: Option<&str>) -> Change {
    Change { revision, key: key.into(), value: value.map(Into::into) }
}
