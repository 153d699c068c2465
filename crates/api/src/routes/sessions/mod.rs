//! Operator sessions: short-lived WireGuard peers in a network.
//!
//! | module | holds |
//! | --- | --- |
//! | [`open`] | opening: what is asked for, one transaction, the wait until packets pass |
//! | [`end`] | closing, by whoever and for whatever reason |
//! | [`heard`] | whether anybody came with a public key that was given |
//! | [`endpoint`] | where the server's WireGuard is said to be reached |
//! | [`view`] | sessions as the API shows them |

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use jiff::Timestamp;
use warren_model::session::{self, Session};
use warren_model::{SessionId, wire};
use warren_store::{Typed, Versioned, schema, session as records};

use self::endpoint::AskedHost;
use self::view::Views;
use super::ListQuery;
use crate::caller::Caller;
use crate::cursor::Paging;
use crate::error::{Answer, ApiError};
use crate::extract::{JsonBody, Named, Query};
use crate::idempotency::Idempotency;
use crate::resolve;
use crate::state::{Api, Shared};

pub(crate) mod end;
pub(crate) mod endpoint;
pub(crate) mod heard;
pub(crate) mod open;
mod view;

/// Open a session
///
/// Answers when the operator's packets pass. Without a public key the server makes a key pair; the private key is only in
/// this answer.
#[utoipa::path(post, path = "/v1/networks/{network}/sessions", operation_id = "open_session", tag = "sessions",
    params(("network" = String, Path, description = "Id or name")),
    request_body = wire::OpenSession, responses(
        (status = 201, body = wire::OpenedSession, description = "Opened"),
        (status = 200, body = wire::OpenedSession, description = "Opened before with this Idempotency-Key")))]
pub(crate) async fn open(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
    host: AskedHost,
    idempotency: Idempotency,
    JsonBody { value, bytes }: JsonBody<wire::OpenSession>,
) -> Answer<Response> {
    let made = open::make(&api, &caller, &given, &host, &idempotency, &value, &bytes).await?;
    Ok(made.respond(|opened| format!("/v1/sessions/{}", opened.session_id)))
}

/// List a network's sessions
#[utoipa::path(get, path = "/v1/networks/{network}/sessions", operation_id = "list_network_sessions", tag = "sessions",
    params(("network" = String, Path, description = "Id or name"), ListQuery),
    responses((status = 200, body = wire::Page<wire::Session>)))]
pub(crate) async fn list_in_network(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
    Query(query): Query<ListQuery>,
) -> Answer<Json<wire::Page<wire::Session>>> {
    let network = resolve::network(&api, caller.account, &given).await?.record.id;
    let scope = format!("sessions {network}");
    let paging = Paging::parse(&scope, caller.account, query.limit, query.cursor.as_deref())?;
    let (page, more) =
        api.store.list_page(&schema::sessions_in(caller.account, network), paging.after.clone(), paging.limit).await?;
    let next = page.last().filter(|_| more).map(|last| paging.next(&last.key));
    let now = Timestamp::now();
    let (mut views, mut items) = (Views::default(), Vec::with_capacity(page.len()));
    for id in page.iter().filter_map(|read| schema::session_in(&read.key)) {
        let session = api.store.read(&schema::session(id)).await?.map(|read| read.record);
        if let Some(session) = session.filter(|session| now < session.expires_at) {
            items.extend(views.session(&api, &session).await?);
        }
    }
    Ok(Json(wire::Page { items, next }))
}

/// List sessions
///
/// In every network of the account, the oldest first.
#[utoipa::path(get, path = "/v1/sessions", operation_id = "list_sessions", tag = "sessions",
    params(ListQuery), responses((status = 200, body = wire::Page<wire::Session>)))]
pub(crate) async fn list(
    State(api): State<Shared>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Answer<Json<wire::Page<wire::Session>>> {
    let paging = Paging::parse("sessions", caller.account, query.limit, query.cursor.as_deref())?;
    let now = Timestamp::now();
    let ids = records::ids_of(&*api.store, caller.account).await?;
    let left = ids.into_iter().filter(|id| match &paging.after {
        Some(after) => schema::session(*id).as_str() > after.as_str(),
        None => true,
    });
    // One more tells whether there is another page.
    let mut found = Vec::new();
    for id in left {
        let read = api.store.read(&schema::session(id)).await?;
        found.extend(read.filter(|read| now < read.record.expires_at));
        if found.len() > paging.limit {
            break;
        }
    }
    let more = found.len() > paging.limit;
    found.truncate(paging.limit);
    let next = found.last().filter(|_| more).map(|last| paging.next(&last.key));
    let (mut views, mut items) = (Views::default(), Vec::with_capacity(found.len()));
    for session in &found {
        items.extend(views.session(&api, &session.record).await?);
    }
    Ok(Json(wire::Page { items, next }))
}

/// Show a session
#[utoipa::path(get, path = "/v1/sessions/{session}", operation_id = "show_session", tag = "sessions",
    params(("session" = String, Path, description = "Id, or the name that it has as a member")),
    responses((status = 200, body = wire::Session)))]
pub(crate) async fn show(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
) -> Answer<Json<wire::Session>> {
    let session = find(&api, &caller, &given).await?.record;
    let view = Views::default().session(&api, &session).await?;
    view.filter(|_| Timestamp::now() < session.expires_at).map(Json).ok_or_else(|| none(&given))
}

/// Close a session
///
/// Answers when nothing of it passes any more.
#[utoipa::path(delete, path = "/v1/sessions/{session}", operation_id = "close_session", tag = "sessions",
    params(("session" = String, Path, description = "Id, or the name that it has as a member")),
    responses((status = 204, description = "Closed")))]
pub(crate) async fn close(State(api): State<Shared>, caller: Caller, Named(given): Named) -> Answer<StatusCode> {
    let session = find(&api, &caller, &given).await?.record;
    end::close(&api, &caller, session.id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A session of the account, by its id or its name.
pub(crate) async fn find(api: &Api, caller: &Caller, given: &str) -> Answer<Versioned<Session>> {
    if let Ok(id) = given.parse::<SessionId>() {
        let found = api.store.read(&schema::session(id)).await?;
        return found.filter(|read| read.record.account == caller.account).ok_or_else(|| none(given));
    }
    let ids = records::ids_of(&*api.store, caller.account).await?;
    let mut found = Vec::new();
    for id in ids.into_iter().filter(|id| session::name(*id).as_str() == given) {
        found.extend(api.store.read(&schema::session(id)).await?);
    }
    match found.len() {
        0 | 1 => found.pop().ok_or_else(|| none(given)),
        _ => Err(ApiError::invalid(format!("several sessions are named {given}: use the id of the one you mean"))),
    }
}

fn none(given: &str) -> ApiError {
    ApiError::not_found("session", given, "/v1/sessions")
}
