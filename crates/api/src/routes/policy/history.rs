//! The versions of the policy, and how they differ.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::Deserialize;
use warren_model::policy::{Expect, Policy, Rule};
use warren_model::{Code, wire};
use warren_store::{Typed, schema};

use super::apply::no_version;
use super::{TooLong, apart, change, view};
use crate::bootstrap;
use crate::caller::Caller;
use crate::cursor::Paging;
use crate::directory::{self, Census};
use crate::error::{Answer, ApiError};
use crate::extract::{Named, Query};
use crate::policies::{self, Edition};
use crate::routes::ListQuery;
use crate::state::{Api, Shared};

/// List the versions of the policy
///
/// The newest first. Version 0, the empty policy, is not among them.
#[utoipa::path(get, path = "/v1/policy/versions", operation_id = "list_policy_versions", tag = "policy",
    params(ListQuery), responses((status = 200, body = wire::Page<wire::PolicySummary>)))]
pub(crate) async fn list(
    State(api): State<Shared>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Answer<Json<wire::Page<wire::PolicySummary>>> {
    let paging = Paging::parse("policy-versions", caller.account, query.limit, query.cursor.as_deref())?;
    let current = policies::in_force(&api, caller.account).await?.edition.version;
    let first = match paging.after.as_deref().and_then(|after| after.parse::<u64>().ok()) {
        Some(after) => after.saturating_sub(1).min(current),
        None => current,
    };
    let keys = bootstrap::keys(&*api.store, caller.account).await?;
    let names: BTreeMap<_, _> =
        keys.iter().filter_map(|key| Some((key.record.id, key.record.name.as_ref()?.to_string()))).collect();
    let (mut items, mut next) = (Vec::new(), None);
    for version in (1..=first).rev() {
        if items.len() == paging.limit {
            next = Some(paging.next(&(version + 1).to_string()));
            break;
        }
        // Older ones are no longer kept.
        let Some(read) = api.store.read(&schema::policy(caller.account, version)).await? else { break };
        let record = read.record;
        items.push(wire::PolicySummary {
            version,
            hash: record.hash,
            applied_at: record.applied_at,
            key: record.key.to_string(),
            key_name: names.get(&record.key).cloned(),
            rolled_back_from: record.rolled_back_from,
            rules: (record.policy.allow.len() + record.policy.forbid.len()) as u64,
            current: version == current,
        });
    }
    Ok(Json(wire::Page { items, next }))
}

/// Show a version of the policy
#[utoipa::path(get, path = "/v1/policy/versions/{version}", operation_id = "show_policy_version", tag = "policy",
    params(("version" = u64, Path, description = "0 is the empty policy")),
    responses((status = 200, body = wire::PolicyInForce)))]
pub(crate) async fn show(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
) -> Answer<Json<wire::PolicyInForce>> {
    let version = given.parse::<u64>().map_err(|_| {
        let given: String = given.chars().take(40).collect();
        ApiError::new(
            Code::PolicyVersionNotFound,
            format!("{given:?} is no version of a policy: versions are numbers, see GET /v1/policy/versions"),
        )
    })?;
    Ok(Json(view(&*find(&api, &caller, version).await?)))
}

async fn find(api: &Api, caller: &Caller, version: u64) -> Answer<Arc<Edition>> {
    policies::edition(api, caller.account, version).await?.ok_or_else(|| no_version(version))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct DiffQuery {
    /// A version; the one before `to` when absent.
    from: Option<u64>,
    /// A version; the one in force when absent.
    to: Option<u64>,
}

/// Compare two versions of the policy
#[utoipa::path(get, path = "/v1/policy/diff", operation_id = "diff_policy", tag = "policy",
    params(DiffQuery), responses((status = 200, body = wire::PolicyDiff)))]
pub(crate) async fn diff(
    State(api): State<Shared>,
    caller: Caller,
    Query(query): Query<DiffQuery>,
) -> Answer<Json<wire::PolicyDiff>> {
    let to = match query.to {
        Some(to) => find(&api, &caller, to).await?,
        None => policies::in_force(&api, caller.account).await?.edition,
    };
    let from = find(&api, &caller, query.from.unwrap_or(to.version.saturating_sub(1))).await?;
    let Census { directory, .. } = directory::census(&api, caller.account).await?;
    let now = Timestamp::now();
    let diff = apart(move || {
        let change = change::compare(&from.policy, &to.policy, &directory, now)?;
        let mut diff = rules(&from.policy, &to.policy);
        (diff.from, diff.to) = (from.version, to.version);
        (diff.opens, diff.closes) = (change.opens, change.closes);
        Ok::<_, TooLong>(diff)
    });
    Ok(Json(diff.await??))
}

/// What was written differently.
fn rules(from: &Policy, to: &Policy) -> wire::PolicyDiff {
    let shown = |(rule, forbids): (&Rule, bool)| wire::PolicyRule {
        effect: if forbids { Expect::Deny } else { Expect::Allow },
        rule: rule.clone(),
    };
    let by_id = |policy: &Policy| -> BTreeMap<String, wire::PolicyRule> {
        policy.rules().map(|rule| (rule.0.id.to_string(), shown(rule))).collect()
    };
    let (mut before, after) = (by_id(from), by_id(to));
    let (mut added, mut changed) = (Vec::new(), Vec::new());
    for (id, after) in after {
        match before.remove(&id) {
            None => added.push(after),
            Some(before) if before != after => changed.push(wire::ChangedRule { id, before, after }),
            Some(_) => {}
        }
    }
    let named: BTreeSet<_> = from.networks.keys().chain(to.networks.keys()).collect();
    let networks = named.into_iter().filter(|network| from.networks.get(*network) != to.networks.get(*network));
    wire::PolicyDiff {
        from: 0,
        to: 0,
        added,
        removed: before.into_values().collect(),
        changed,
        networks: networks
            .map(|network| wire::ChangedNetwork {
                network: network.to_string(),
                before: from.networks.get(network).copied(),
                after: to.networks.get(network).copied(),
            })
            .collect(),
        opens: wire::Passages::default(),
        closes: wire::Passages::default(),
    }
}
