//! What happens in an account, as it happens or as a page.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use warren_model::record::Event;
use warren_model::{Code, Problem, wire};
use warren_store::{Change, Revision, StoreError, Typed, Watch, schema};

use crate::caller::Caller;
use crate::cursor::Paging;
use crate::error::{Answer, ApiError};
use crate::extract::Query;
use crate::state::{Api, Shared};

const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How many events a page looks at, at most, to find its items.
const LOOKED_AT: usize = 10_000;
const CHUNK: usize = 1000;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventQuery {
    /// Only events after this revision; from now on when absent and `follow` is not false.
    after: Option<u64>,
    /// False for a JSON page of what has happened, instead of a stream.
    follow: Option<bool>,
    /// Items on a page, 1 to 1000; 100 when absent.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// Follow or list events
///
/// Server-sent events, each with an `Event` as its data. `Last-Event-ID` (or `after`) resumes after that revision;
/// events that are no longer kept answer `events_expired`. With `follow=false`, a JSON page.
#[utoipa::path(get, path = "/v1/events", operation_id = "events", tag = "events",
    params(EventQuery), responses((status = 200, content(
        (wire::Event = "text/event-stream"), (wire::Page<wire::Event> = "application/json")))))]
pub(crate) async fn follow(
    State(api): State<Shared>,
    caller: Caller,
    headers: HeaderMap,
    Query(query): Query<EventQuery>,
) -> Answer<Response> {
    if query.follow == Some(false) {
        return Ok(Json(page(&api, &caller, &query).await?).into_response());
    }
    if query.limit.is_some() || query.cursor.is_some() {
        return Err(ApiError::new(
            Code::InvalidQuery,
            "limit and cursor are for pages: add follow=false, or leave them out",
        ));
    }
    let last = headers.get("last-event-id").map(|value| {
        value.to_str().ok().and_then(|text| text.trim().parse::<Revision>().ok()).ok_or_else(|| {
            ApiError::new(Code::InvalidQuery, "Last-Event-ID is the revision of the last event that was seen")
        })
    });
    let after = match last.transpose()?.or(query.after) {
        Some(after) => after,
        None => api.store.revision().await?,
    };
    let watch = match api.store.watch(schema::events().as_str(), after.saturating_add(1)).await {
        Ok(watch) => watch,
        Err(StoreError::Compacted { oldest, .. }) => return Err(expired(oldest).into()),
        Err(error) => return Err(error.into()),
    };
    let stream = sent(watch, caller).take_until(api.config.shutdown.clone().cancelled_owned());
    let mut response = Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    // Proxies that buffer would hold events back.
    response.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(response)
}

fn expired(oldest: Revision) -> Problem {
    Problem::new(
        Code::EventsExpired,
        format!(
            "events before revision {oldest} are no longer kept: list what is with GET /v1/topology and follow from \
             there, without 'after'"
        ),
    )
}

struct Following {
    watch: Box<dyn Watch>,
    caller: Caller,
    ready: VecDeque<Sent>,
    ended: bool,
}

fn sent(watch: Box<dyn Watch>, caller: Caller) -> impl Stream<Item = Result<Sent, Infallible>> {
    let start = Following { watch, caller, ready: VecDeque::new(), ended: false };
    futures::stream::unfold(start, |mut following| async move {
        loop {
            if let Some(event) = following.ready.pop_front() {
                return Some((Ok(event), following));
            }
            if following.ended {
                return None;
            }
            match following.watch.next().await {
                Ok(changes) => following.take(changes),
                Err(error) => {
                    following.ended = true;
                    let problem = match error {
                        StoreError::Compacted { oldest, .. } => expired(oldest),
                        StoreError::Closed => return None,
                        other => *ApiError::from(other).problem,
                    };
                    let data = serde_json::to_string(&problem).unwrap_or_default();
                    return Some((Ok(Sent::default().event("problem").data(data)), following));
                }
            }
        }
    })
}

impl Following {
    fn take(&mut self, changes: Vec<Change>) {
        let seen: Vec<_> = changes.iter().filter_map(|change| view(change, &self.caller)).collect();
        let count = seen.len();
        for (index, event) in seen.into_iter().enumerate() {
            let sent = Sent::default().data(serde_json::to_string(&event).unwrap_or_default());
            // Only the last of a revision may be resumed after: the others would be skipped with it.
            let last = index + 1 == count;
            self.ready.push_back(if last { sent.id(event.revision.to_string()) } else { sent });
        }
    }
}

/// An event that happened and that the caller may see. Removals of old events are no news.
fn view(change: &Change, caller: &Caller) -> Option<wire::Event> {
    let event: Event = serde_json::from_slice(change.value.as_ref()?).ok()?;
    may_see(&event, caller).then(|| shape(event, change.revision))
}

/// The account's own events; the root key also sees those of the whole installation.
fn may_see(event: &Event, caller: &Caller) -> bool {
    match event.account {
        Some(account) => account == caller.account,
        None => caller.root,
    }
}

fn shape(event: Event, revision: Revision) -> wire::Event {
    wire::Event {
        id: event.id.to_string(),
        revision,
        time: event.time,
        kind: event.kind,
        network: event.network.map(|id| id.to_string()),
        machine: event.machine.map(|id| id.to_string()),
        message: event.message,
    }
}

async fn page(api: &Api, caller: &Caller, query: &EventQuery) -> Answer<wire::Page<wire::Event>> {
    let after = query.after.unwrap_or(0);
    let paging = Paging::parse(&format!("events {after}"), caller.account, query.limit, query.cursor.as_deref())?;
    let (mut items, mut looked, mut from) = (Vec::new(), 0, paging.after.clone());
    loop {
        let (read, more) = api.store.list_page(&schema::events(), from, CHUNK).await?;
        let last = read.last().map(|last| last.key.clone());
        let length = read.len();
        for (index, event) in read.into_iter().enumerate() {
            if event.modified > after && may_see(&event.record, caller) {
                items.push(shape(event.record, event.modified));
            }
            if items.len() == paging.limit {
                let next = (more || index + 1 < length).then(|| paging.next(&event.key));
                return Ok(wire::Page { items, next });
            }
        }
        looked += length;
        if !more || looked >= LOOKED_AT {
            let next = last.filter(|_| more).map(|last| paging.next(&last));
            return Ok(wire::Page { items, next });
        }
        from = last;
    }
}
