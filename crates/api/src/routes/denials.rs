//! What policy refused, as it happens or as a page.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use warren_model::denial::Denial;
use warren_model::{Code, DenialId, Label, MemberId, wire};
use warren_store::{Typed, schema};

use crate::boundaries::DenialFilter;
use crate::caller::Caller;
use crate::cursor::Paging;
use crate::error::{Answer, ApiError};
use crate::extract::Query;
use crate::resolve;
use crate::state::{Api, Shared};

const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How many denials a stream begins with, at most, when it is resumed.
const RESUMED: usize = 10_000;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct DenialQuery {
    /// Only what was refused to this machine, by id or name.
    machine: Option<String>,
    /// Only denials after this one; the newest when absent.
    after: Option<String>,
    /// True for a stream of server-sent events instead of a page.
    follow: Option<bool>,
    /// Items on a page, 1 to 1000; 100 when absent.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// List or follow denials
///
/// A page, the oldest first: the newest `limit`, or the first after `after`. With `follow=true`, server-sent events with a
/// `Denial` as their data; one that happens again comes again, with a higher count. `Last-Event-ID` (or `after`) resumes.
#[utoipa::path(get, path = "/v1/denials", operation_id = "list_denials", tag = "policy",
    params(DenialQuery), responses((status = 200, content(
        (wire::Page<wire::Denial> = "application/json"), (wire::Denial = "text/event-stream")))))]
pub(crate) async fn list(
    State(api): State<Shared>,
    caller: Caller,
    headers: HeaderMap,
    Query(query): Query<DenialQuery>,
) -> Answer<Response> {
    let machine = match &query.machine {
        Some(given) => Some(resolve::machine(&api, &caller, given).await?.record.id),
        None => None,
    };
    let after = query.after.as_deref().map(|after| id("after", after)).transpose()?;
    if query.follow == Some(true) {
        if query.limit.is_some() || query.cursor.is_some() {
            return Err(ApiError::new(Code::InvalidQuery, "limit and cursor are for pages: leave follow or them out"));
        }
        let last =
            headers.get("last-event-id").map(|value| id("Last-Event-ID", value.to_str().unwrap_or_default().trim()));
        return Ok(stream(api, &caller, DenialFilter { machine, after: last.transpose()?.or(after) }).await);
    }
    let scope = format!("denials {}", machine.map(|id| id.to_string()).unwrap_or_default());
    let paging = Paging::parse(&scope, caller.account, query.limit, query.cursor.as_deref())?;
    let after = paging.after.as_deref().and_then(|after| after.parse().ok()).or(after);
    let found = api.boundaries.denials(caller.account, DenialFilter { machine, after }, paging.limit).await;
    // Before the newest, there is nothing to go on to.
    let next = found.last().filter(|_| after.is_some() && found.len() == paging.limit);
    let next = next.map(|last| paging.next(&last.id.to_string()));
    Ok(Json(wire::Page { items: views(&api, found).await, next }).into_response())
}

fn id(field: &str, given: &str) -> Answer<DenialId> {
    given.parse().map_err(|error| ApiError::new(Code::InvalidQuery, format!("{field}: {error}")))
}

async fn stream(api: Shared, caller: &Caller, filter: DenialFilter) -> Response {
    // Followed before the old ones are listed, so that none is missed in between.
    let following = api.boundaries.follow(caller.account);
    let old = match filter.after {
        Some(_) => api.boundaries.denials(caller.account, filter, RESUMED).await,
        None => Vec::new(),
    };
    let known: HashSet<_> = old.iter().map(|denial| (denial.id, denial.count)).collect();
    let new = following.filter(move |denial| {
        let wanted = filter.machine.is_none_or(|machine| denial.member == Some(machine.into()));
        std::future::ready(wanted && !known.contains(&(denial.id, denial.count)))
    });
    let shutdown = api.config.shutdown.clone().cancelled_owned();
    let stream = sent(api, futures::stream::iter(old).chain(new)).take_until(shutdown);
    let mut response = Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    // Proxies that buffer would hold denials back.
    response.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

fn sent(api: Shared, denials: impl Stream<Item = Denial>) -> impl Stream<Item = Result<Sent, Infallible>> {
    denials.then(move |denial| {
        let api = api.clone();
        async move {
            let denial = views(&api, vec![denial]).await.remove(0);
            Ok(Sent::default().id(&denial.id).data(serde_json::to_string(&denial).unwrap_or_default()))
        }
    })
}

async fn name(api: &Api, member: MemberId) -> Option<Label> {
    match member {
        MemberId::Machine(id) => Some(api.store.read(&schema::machine(id)).await.ok()??.record.name),
        MemberId::Session(id) => Some(api.store.read(&schema::session(id)).await.ok()??.record.name()),
    }
}

/// Denials as their account sees them.
pub(super) async fn views(api: &Api, denials: Vec<Denial>) -> Vec<wire::Denial> {
    let mut names: HashMap<MemberId, String> = HashMap::new();
    let mut views = Vec::with_capacity(denials.len());
    for denial in denials {
        let machine = match denial.member {
            Some(id) => Some(match names.get(&id) {
                Some(name) => name.clone(),
                None => {
                    // A name that cannot be read is no reason to keep a denial back.
                    let name = name(api, id).await.map_or_else(|| id.to_string(), |name| name.to_string());
                    names.insert(id, name.clone());
                    name
                }
            }),
            None => None,
        };
        views.push(wire::Denial {
            id: denial.id.to_string(),
            time: denial.time,
            machine,
            to: denial.to,
            name: denial.name,
            port: denial.port,
            protocol: denial.protocol,
            layer: denial.layer,
            rule: denial.rule.map(|rule| rule.to_string()),
            reason: denial.reason,
            suggested_rule: denial.suggested_rule,
            count: denial.count,
        });
    }
    views
}
