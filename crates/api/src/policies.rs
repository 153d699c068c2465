//! The policy that is in force in an account.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use warren_model::policy::{Policy, Subject};
use warren_model::record::PolicyVersion;
use warren_model::{AccountId, Code, KeyId, Label, Tag};
use warren_store::{StoreError, TxnBuilder, Typed, Versioned, schema};

use crate::caller::Caller;
use crate::error::{Answer, ApiError};
use crate::state::Api;

/// The text of version 0.
const EMPTY: &str = "{}\n";
/// How many accounts' policies are remembered.
const REMEMBERED: usize = 64;

/// A version of a policy; version 0 is the empty one, which nobody applied.
#[derive(Debug)]
pub(crate) struct Edition {
    pub version: u64,
    pub hash: String,
    pub text: String,
    pub policy: Policy,
    /// When, and with which key.
    pub applied: Option<(Timestamp, KeyId)>,
    pub rolled_back_from: Option<u64>,
}

impl Edition {
    fn empty() -> Self {
        let policy = Policy::default();
        Self { version: 0, hash: policy.hash(), text: EMPTY.to_owned(), policy, applied: None, rolled_back_from: None }
    }
}

impl From<PolicyVersion> for Edition {
    fn from(record: PolicyVersion) -> Self {
        let PolicyVersion { version, hash, text, policy, applied_at, key, rolled_back_from } = record;
        Self { version, hash, text, policy, applied: Some((applied_at, key)), rolled_back_from }
    }
}

/// The edition in force, and what a transaction has to compare to be sure that it still is.
pub(crate) struct InForce {
    pub edition: Arc<Edition>,
    pub read: Option<Versioned<u64>>,
}

impl InForce {
    /// Lets the transaction be done only while this edition is in force.
    pub fn same(&self, txn: TxnBuilder, account: AccountId) -> TxnBuilder {
        txn.same(&schema::policy_now(account), self.read.as_ref())
    }
}

/// The last edition that was read of each account. A version never changes, so nothing here can be stale.
#[derive(Default)]
pub(crate) struct PolicyCache(Mutex<HashMap<AccountId, Arc<Edition>>>);

impl PolicyCache {
    fn get(&self, account: AccountId, version: u64) -> Option<Arc<Edition>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&account).filter(|edition| edition.version == version).cloned()
    }

    pub fn put(&self, account: AccountId, edition: &Arc<Edition>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED && !known.contains_key(&account) {
            known.clear();
        }
        known.insert(account, edition.clone());
    }
}

/// The edition that is in force.
pub(crate) async fn in_force(api: &Api, account: AccountId) -> Answer<InForce> {
    let read = api.store.read(&schema::policy_now(account)).await?;
    let version = read.as_ref().map_or(0, |read| read.record);
    let edition = match api.policies.get(account, version) {
        Some(edition) => edition,
        None => {
            let edition = edition(api, account, version).await?.ok_or_else(ApiError::internal)?;
            api.policies.put(account, &edition);
            edition
        }
    };
    Ok(InForce { edition, read })
}

/// Any edition; `None` when there is no such version.
pub(crate) async fn edition(api: &Api, account: AccountId, version: u64) -> Result<Option<Arc<Edition>>, StoreError> {
    if version == 0 {
        return Ok(Some(Arc::new(Edition::empty())));
    }
    if let Some(edition) = api.policies.get(account, version) {
        return Ok(Some(edition));
    }
    let read = api.store.read(&schema::policy(account, version)).await?;
    Ok(read.map(|read| Arc::new(Edition::from(read.record))))
}

/// The networks that a policy names.
pub(crate) fn networks_of(policy: &Policy) -> BTreeSet<&Label> {
    let rules = policy.rules().flat_map(|(rule, _)| rule.subjects());
    let tests = policy.tests.iter().flat_map(|test| test.subjects());
    policy.networks.keys().chain(rules.chain(tests).filter_map(Subject::network)).collect()
}

/// Refuses a change of tags by somebody who owns them not. A tag without owners is anybody's.
pub(crate) fn refuse_foreign_tags<'a>(
    policy: &Policy,
    caller: &Caller,
    tags: impl IntoIterator<Item = &'a Tag>,
) -> Answer<()> {
    if caller.root {
        return Ok(());
    }
    for tag in tags {
        let Some(owners) = policy.tag_owners.get(tag) else { continue };
        if caller.key_name.as_ref().is_some_and(|name| owners.contains(name)) {
            continue;
        }
        let owners: Vec<_> = owners.iter().map(Label::as_str).collect();
        return Err(ApiError::new(
            Code::TagNotOwned,
            format!(
                "only a key named {} may give or take the tag {tag}: use such a key, or leave the tag as it is",
                owners.join(" or ")
            ),
        ));
    }
    Ok(())
}

/// Refuses what would take the name away from a network that the policy names.
pub(crate) fn refuse_named(policy: &Policy, network: &Label, advice: &str) -> Answer<()> {
    if !networks_of(policy).contains(network) {
        return Ok(());
    }
    Err(ApiError::new(
        Code::NetworkInPolicy,
        format!("the policy names network {network}: apply a policy without it first{advice}"),
    ))
}
