//! What may talk to what: the account's policy, its history, and what it means for those who are there.
//!
//! | module | holds |
//! | --- | --- |
//! | `apply` | putting a policy in force, rolling back, running tests |
//! | `enforce` | whether the host can enforce it, and its operator permits it |
//! | `history` | versions, and how they differ |
//! | `explain`, `places`, `operator` | one question about one flow, who is meant by it, and how far a session goes |
//! | `reach` | the whole matrix |
//! | `pieces`, `change` | all ports at once; all members at once |
//! | `builtin` | the rules that no policy holds |

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use warren_model::policy::{Directory, Policy, Subject};
use warren_model::{Code, Label, wire};

use crate::caller::Caller;
use crate::directory::{self, Census};
use crate::error::{Answer, ApiError};
use crate::extract::Query;
use crate::policies::{self, Edition};
use crate::state::Shared;

pub(crate) mod apply;
mod builtin;
mod change;
pub(crate) mod enforce;
pub(crate) mod explain;
pub(crate) mod history;
mod operator;
mod pieces;
mod places;
pub(crate) mod reach;

/// No parameters; others are refused.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NoQuery {}

/// Show the policy in force
///
/// With the rules that are built in and what its owner should know.
#[utoipa::path(get, path = "/v1/policy", operation_id = "show_policy", tag = "policy",
    responses((status = 200, body = wire::PolicyInForce)))]
pub(crate) async fn show(
    State(api): State<Shared>,
    caller: Caller,
    Query(NoQuery {}): Query<NoQuery>,
) -> Answer<Json<wire::PolicyInForce>> {
    let edition = policies::in_force(&api, caller.account).await?.edition;
    let Census { directory, .. } = directory::census(&api, caller.account).await?;
    let mut view = view(&edition);
    view.builtin = builtin::rules(&edition.policy, &directory);
    view.warnings = warnings(&edition.policy, &directory, Timestamp::now());
    Ok(Json(view))
}

/// A version as it was applied.
fn view(edition: &Edition) -> wire::PolicyInForce {
    wire::PolicyInForce {
        version: edition.version,
        hash: edition.hash.clone(),
        text: edition.text.clone(),
        policy: edition.policy.clone(),
        applied_at: edition.applied.map(|(at, _)| at),
        key: edition.applied.map(|(_, key)| key.to_string()),
        rolled_back_from: edition.rolled_back_from,
        builtin: Vec::new(),
        warnings: Vec::new(),
    }
}

/// What the owner of a policy should know, in the light of who is there.
fn warnings(policy: &Policy, directory: &Directory, now: Timestamp) -> Vec<String> {
    let machines: BTreeSet<(&Label, &Label)> =
        directory.members.iter().map(|member| (&member.network, &member.name)).collect();
    let absent = |subject: &Subject| match subject {
        Subject::Machine(network, machine) => !machines.contains(&(network, machine)),
        _ => false,
    };
    let mut warnings: Vec<String> = policies::networks_of(policy)
        .into_iter()
        .filter(|network| !directory.networks.contains_key(*network))
        .map(|network| format!("there is no network {network}: what the policy says about it means nobody"))
        .collect();
    for (rule, _) in policy.rules() {
        for subject in rule.subjects().filter(|subject| absent(subject)) {
            warnings.push(format!("rule {} is about {subject}, and there is no such machine", rule.id));
        }
        if let Some(expired) = rule.expires.filter(|_| !rule.is_in_force(now)) {
            warnings.push(format!("rule {} expired at {expired} and has no effect", rule.id));
        }
    }
    warnings
}

/// How long a question may keep a processor busy.
const LONGEST: Duration = Duration::from_secs(20);

/// Runs what takes the processor for long where it holds up nobody.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Answer<T> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ApiError::internal())
}

/// The work that begins now took too long.
#[derive(Debug, Clone, Copy)]
struct TooLong;

/// When the work that begins now has to end.
#[derive(Debug, Clone, Copy)]
struct Limit(Instant);

impl Limit {
    fn new() -> Self {
        Self(Instant::now() + LONGEST)
    }

    fn check(self) -> Result<(), TooLong> {
        if Instant::now() < self.0 { Ok(()) } else { Err(TooLong) }
    }
}

impl From<TooLong> for ApiError {
    fn from(TooLong: TooLong) -> Self {
        Self::new(
            Code::DeadlineExceeded,
            "there are too many flows to look at: ask about fewer machines or ports, or put rules for many machines into \
             fewer that name a tag",
        )
    }
}

/// The policy in force and who is there, to be taken to another thread.
async fn scene(api: &Shared, caller: &Caller) -> Answer<(Arc<Edition>, Census)> {
    let edition = policies::in_force(api, caller.account).await?.edition;
    Ok((edition, directory::census(api, caller.account).await?))
}
