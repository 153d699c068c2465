//! Putting a policy in force.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde_json::json;
use warren_model::policy::{
    self as model, Destination, Directory, Flow, HostName, Member, Policy, PolicyError, Protocol, ReadPolicy,
};
use warren_model::problem::TextError;
use warren_model::record::{EventKind, PolicyVersion};
use warren_model::{AccountId, Code, Problem, wire};
use warren_store::{Range, StoreError, TxnBuilder, TxnOutcome, schema};

use super::{apart, change, enforce, warnings};
use crate::caller::Caller;
use crate::directory::{self, Census};
use crate::error::{Answer, ApiError};
use crate::extract::JsonBody;
use crate::mutation::{ATTEMPTS, Deed, News, contended};
use crate::policies::{self, Edition};
use crate::state::{Api, Shared};

/// How many times as large as other bodies one with a policy may be: as JSON, a text grows.
const LARGE: usize = 3;
/// How many versions of an account's policy are kept, the one in force included.
const KEPT: usize = 1000;
/// How many versions are read at once to see how large they are: one has some MiB at most.
const MEASURED: usize = 8;
/// How many errors of a text are said.
const SAID: usize = 100;

/// Put a policy in force
///
/// Refused as a whole, with line and column, when the text does not parse, names what is not there or holds a test that
/// fails. Answers when every layer enforces it. The text that is in force already makes no new version.
#[utoipa::path(put, path = "/v1/policy", operation_id = "apply_policy", tag = "policy",
    request_body = wire::ApplyPolicy, responses((status = 200, body = wire::AppliedPolicy)))]
pub(crate) async fn apply(
    State(api): State<Shared>,
    caller: Caller,
    JsonBody { value, .. }: JsonBody<wire::ApplyPolicy, LARGE>,
) -> Answer<Json<wire::AppliedPolicy>> {
    let asked = Asked {
        read: Arc::new(parse(&value.text).await?),
        text: value.text,
        dry_run: value.dry_run.unwrap_or(false),
        based_on: value.based_on,
        rolled_back_from: None,
    };
    put(&api, &caller, asked).await
}

/// Put an earlier version in force again
///
/// As a new version with the old text, checked anew.
#[utoipa::path(post, path = "/v1/policy/rollback", operation_id = "roll_back_policy", tag = "policy",
    request_body = wire::RollBackPolicy, responses((status = 200, body = wire::AppliedPolicy)))]
pub(crate) async fn roll_back(
    State(api): State<Shared>,
    caller: Caller,
    JsonBody { value, .. }: JsonBody<wire::RollBackPolicy>,
) -> Answer<Json<wire::AppliedPolicy>> {
    let edition = policies::edition(&api, caller.account, value.version).await?;
    let edition = edition.ok_or_else(|| no_version(value.version))?;
    let asked = Asked {
        read: Arc::new(parse(&edition.text).await?),
        text: edition.text.clone(),
        dry_run: value.dry_run.unwrap_or(false),
        based_on: None,
        rolled_back_from: Some(value.version),
    };
    put(&api, &caller, asked).await
}

/// Run the tests of a policy
///
/// Of the text, or of the policy in force without one. A test that fails is no refusal here: see `passed`.
#[utoipa::path(post, path = "/v1/policy/test", operation_id = "test_policy", tag = "policy",
    request_body = wire::TestPolicy, responses((status = 200, body = wire::TestedPolicy)))]
pub(crate) async fn test(
    State(api): State<Shared>,
    caller: Caller,
    JsonBody { value, .. }: JsonBody<wire::TestPolicy, LARGE>,
) -> Answer<Json<wire::TestedPolicy>> {
    let text = match value.text {
        Some(text) => text,
        None => policies::in_force(&api, caller.account).await?.edition.text.clone(),
    };
    let read = Arc::new(parse(&text).await?);
    let Census { directory, .. } = directory::census(&api, caller.account).await?;
    let now = Timestamp::now();
    let checked = check(&api, &caller, &read, Arc::new(directory), now).await?;
    Ok(Json(wire::TestedPolicy {
        passed: checked.is_empty(),
        tests: read.policy.tests.len() as u64,
        failures: said(checked),
        hash: read.policy.hash(),
    }))
}

pub(super) fn no_version(version: u64) -> ApiError {
    ApiError::new(
        Code::PolicyVersionNotFound,
        format!("there is no version {version} of the policy: see GET /v1/policy/versions"),
    )
}

struct Asked {
    text: String,
    read: Arc<ReadPolicy>,
    dry_run: bool,
    based_on: Option<u64>,
    rolled_back_from: Option<u64>,
}

async fn put(api: &Shared, caller: &Caller, asked: Asked) -> Answer<Json<wire::AppliedPolicy>> {
    let turn = api.turns.take(caller.account).await;
    let mut seen = None;
    for _ in 0..ATTEMPTS {
        let now = Timestamp::now();
        let before = policies::in_force(api, caller.account).await?;
        let current = before.edition.version;
        let expected = asked.based_on.or(seen);
        if let Some(expected) = expected.filter(|expected| *expected != current) {
            return Err(ApiError::new(
                Code::PolicyConflict,
                format!(
                    "version {current} of the policy is in force, not {expected}: look at GET \
                     /v1/policy/diff?from={expected} and apply again"
                ),
            ));
        }
        seen = Some(current);
        let Census { directory, networks, .. } = directory::census(api, caller.account).await?;
        let directory = Arc::new(directory);
        let failures = check(api, caller, &asked.read, directory.clone(), now).await?;
        // Before the tests that fail: they may fail for what the host does not permit.
        let overlaps = enforce::can_be_enforced(api, &asked.read.policy, directory.clone(), now).await?;
        if !failures.is_empty() {
            return Err(refused(Code::PolicyTestFailed, "the policy was not applied", failures));
        }
        let policy = &asked.read.policy;
        let unchanged = asked.rolled_back_from.is_none() && before.edition.text == asked.text;
        let mut answer = wire::AppliedPolicy {
            version: if unchanged { current } else { current + 1 },
            hash: policy.hash(),
            dry_run: asked.dry_run,
            unchanged,
            warnings: warnings(policy, &directory, now).into_iter().chain(overlaps).collect(),
            change: None,
            cuts: Vec::new(),
        };
        if asked.dry_run {
            drop(turn);
            let change = compare(&before.edition, &asked.read, directory.clone(), now).await?;
            answer.cuts = cuts(api, caller, policy, &directory, now).await;
            answer.change = Some(change);
            return Ok(Json(answer));
        }
        if !unchanged {
            let record = PolicyVersion {
                version: answer.version,
                hash: answer.hash.clone(),
                text: asked.text.clone(),
                policy: policy.clone(),
                applied_at: now,
                key: caller.must_be_key()?,
                rolled_back_from: asked.rolled_back_from,
            };
            let mut txn = before
                .same(TxnBuilder::new(), caller.account)
                .put(&schema::policy(caller.account, record.version), &record)?
                .put(&schema::policy_now(caller.account), &record.version)?;
            for oldest in outgrown(api, caller.account, current).await? {
                txn = txn.delete(&schema::policy(caller.account, oldest));
            }
            // A network that is renamed or goes away meanwhile would be named and not there.
            for network in policies::networks_of(policy).into_iter().filter_map(|name| networks.get(name)) {
                txn = txn.unchanged(network);
            }
            let action = if asked.rolled_back_from.is_some() { "policy.rollback" } else { "policy.apply" };
            let deed = Deed { caller, now, action };
            let request = json!({ "version": record.version, "hash": record.hash, "from": asked.rolled_back_from });
            let txn = deed.record(txn, format!("policy/{}", record.version), &request, [news(caller, &record)])?;
            if !matches!(txn.commit(&*api.store).await?, TxnOutcome::Committed(_)) {
                continue;
            }
            api.policies.put(caller.account, &Arc::new(Edition::from(record)));
        }
        drop(turn);
        return wait(api, caller, answer).await;
    }
    Err(contended())
}

/// The versions that are kept no longer once there is one after `current`: the oldest, so that the others are neither too
/// many nor too large.
async fn outgrown(api: &Api, account: AccountId, current: u64) -> Result<Vec<u64>, StoreError> {
    let (mut sizes, mut after) = (Vec::new(), None);
    loop {
        let range = Range { prefix: schema::policies(account).as_str().to_owned(), after, limit: MEASURED };
        let page = api.store.list(range).await?;
        sizes.extend(page.entries.iter().map(|entry| entry.value.len()));
        after = page.entries.last().map(|entry| entry.key.clone());
        if !page.more {
            break;
        }
    }
    // They are in a row and end with the one that is in force.
    let versions = (1..=current).rev().zip(sizes.into_iter().rev());
    let mut bytes = 0;
    let kept = versions.clone().take(KEPT - 1).take_while(|(_, size)| {
        bytes += size;
        bytes <= api.config.policy_history
    });
    let kept = kept.count();
    Ok(versions.skip(kept).map(|(version, _)| version).collect())
}

fn news(caller: &Caller, record: &PolicyVersion) -> News {
    let short: String = record.hash.chars().take(12).collect();
    let message = match record.rolled_back_from {
        Some(from) => format!("version {} of the policy ({short}) was applied: version {from} again", record.version),
        None => format!("version {} of the policy ({short}) was applied", record.version),
    };
    News { kind: EventKind::PolicyApplied, account: caller.account, network: None, machine: None, message }
}

async fn wait(api: &Api, caller: &Caller, answer: wire::AppliedPolicy) -> Answer<Json<wire::AppliedPolicy>> {
    let within = api.config.operation_deadline;
    match api.boundaries.enforced(caller.account, answer.version, within).await {
        Ok(()) => Ok(Json(answer)),
        Err(reason) => Err(ApiError::new(
            Code::DeadlineExceeded,
            format!(
                "version {} of the policy is applied and not yet enforced everywhere, and that goes on: {reason}",
                answer.version
            ),
        )),
    }
}

async fn parse(text: &str) -> Answer<ReadPolicy> {
    let text = text.to_owned();
    apart(move || model::read(&text))
        .await?
        .map_err(|errors| refused(Code::PolicyInvalid, "the policy is not valid", errors))
}

/// Refuses a policy that does not fit the account; answers which of its tests fail.
async fn check(
    api: &Api,
    caller: &Caller,
    read: &Arc<ReadPolicy>,
    directory: Arc<Directory>,
    now: Timestamp,
) -> Answer<Vec<PolicyError>> {
    let keys = directory::key_names(api, caller.account, now).await?;
    let read = read.clone();
    let (others, tests) = apart(move || {
        let Err(findings) = model::check(&read.policy, &directory, &keys, now) else { return Default::default() };
        let placed = findings.into_iter().map(|finding| {
            let (line, column) = read.position(&finding.pointer);
            (is_test(&finding.pointer), PolicyError { line, column, message: finding.message })
        });
        let mut placed: Vec<_> = placed.collect();
        placed.sort_by_key(|(_, error)| (error.line, error.column));
        let (tests, others): (Vec<_>, Vec<_>) = placed.into_iter().partition(|(is_test, _)| *is_test);
        let errors = |placed: Vec<(bool, PolicyError)>| placed.into_iter().map(|(_, error)| error).collect::<Vec<_>>();
        (errors(others), errors(tests))
    })
    .await?;
    if others.is_empty() {
        Ok(tests)
    } else {
        Err(refused(Code::PolicyInvalid, "the policy does not fit the account", others))
    }
}

/// Whether a finding is about what a test claims, and not about how it is written: `/tests/3`.
fn is_test(pointer: &str) -> bool {
    pointer.strip_prefix("/tests/").is_some_and(|index| !index.contains('/'))
}

async fn compare(
    before: &Arc<Edition>,
    read: &Arc<ReadPolicy>,
    directory: Arc<Directory>,
    now: Timestamp,
) -> Answer<wire::PolicyChange> {
    let (before, read) = (before.clone(), read.clone());
    Ok(apart(move || change::compare(&before.policy, &read.policy, &directory, now)).await??)
}

/// The open connections to names outside that the new policy would not allow. Only the proxy knows which are open.
async fn cuts(
    api: &Api,
    caller: &Caller,
    policy: &Policy,
    directory: &Directory,
    now: Timestamp,
) -> Vec<wire::LiveFlow> {
    let flows = api.boundaries.flows(caller.account).await;
    if flows.is_empty() {
        return Vec::new();
    }
    let members: HashMap<String, &Member> =
        directory.members.iter().map(|member| (member.full_name(), member)).collect();
    let stays = |open: &wire::LiveFlow| {
        let (Some(from), Ok(name)) = (members.get(&open.machine), open.name.parse::<HostName>()) else { return false };
        let flow = Flow { from, to: Destination::Name(&name), protocol: Protocol::Tcp, port: Some(open.port) };
        model::evaluate(policy, directory, &flow, now).allowed
    };
    flows.into_iter().filter(|open| !stays(open)).collect()
}

fn said(errors: Vec<PolicyError>) -> Vec<TextError> {
    let place = |error: PolicyError| TextError { line: error.line, column: error.column, message: error.message };
    errors.into_iter().take(SAID).map(place).collect()
}

fn refused(code: Code, what: &str, errors: Vec<PolicyError>) -> ApiError {
    let first = errors.first().map(ToString::to_string).unwrap_or_default();
    let rest = match errors.len() {
        0 | 1 => String::new(),
        2 => " (and one more error)".to_owned(),
        count => format!(" (and {} more errors)", count - 1),
    };
    let mut problem = Problem::new(code, format!("{what}: {first}{rest}"));
    problem.errors = said(errors).into();
    problem.into()
}
