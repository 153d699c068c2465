//! Who asks, and what machines wrote to their consoles.

use axum::Json;
use axum::extract::State;
use futures::StreamExt;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use warren_model::Code;

use super::code::Said;
use super::error::{Answer, Refusal, Saying};
use crate::caller::Caller;
use crate::error::ApiError;
use crate::extract::{Named, Query};
use crate::resolve;
use crate::routes::views;
use crate::state::Shared;

/// Bytes of a console that are read.
const TAIL: u64 = 64 * 1024;

/// Show who asks
#[utoipa::path(get, path = "/compat/freestyle/auth/v1/whoami", responses((status = 200)))]
pub(crate) async fn whoami(caller: Caller) -> Json<Value> {
    let identity = caller.token().map(|(_, identity)| identity.to_string());
    Json(json!({ "accountId": caller.account.to_string(), "identityId": identity }))
}

/// Ask for a request in the background
///
/// There is none: every request is answered when it is done.
#[utoipa::path(get, path = "/compat/freestyle/auth/v1/background-requests/{request}", responses((status = 404)))]
pub(crate) async fn background(Named(_): Named) -> Answer<Json<Value>> {
    Err(Refusal::new(
        Code::NotFound,
        Said::JobNotFound,
        "no request goes on in the background: each is answered when it is done",
    ))
}

/// Other parameters of the client are about what Warren does not have, and select nothing.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LogQuery {
    vm_id: Option<String>,
    /// Text that a line has to hold, in any case.
    search: Option<String>,
    start_time: Option<Timestamp>,
    end_time: Option<Timestamp>,
}

/// Read a machine's console
#[utoipa::path(get, path = "/compat/freestyle/observability/v1/logs", responses((status = 200)))]
pub(crate) async fn logs(
    State(api): State<Shared>,
    caller: Caller,
    Query(query): Query<LogQuery>,
) -> Answer<Json<Value>> {
    let Some(given) = &query.vm_id else { return Ok(Json(json!({ "logs": [], "nextPageToken": null }))) };
    let machine = resolve::machine(&api, &caller, given).await.not_found_as(Said::VmNotFound)?.record;
    // A console has no times: its lines are as old as the machine's boot, so that the same line is told once only.
    let view = views::read_machine(&api, &machine).await?;
    let time = view.started_at.unwrap_or(view.created_at);
    if query.start_time.is_some_and(|start| time < start) || query.end_time.is_some_and(|end| time > end) {
        return Ok(Json(json!({ "logs": [], "nextPageToken": null })));
    }
    let mut console = Vec::new();
    let mut stream = api.access.logs(machine.id, TAIL, false).await.map_err(ApiError::from)?;
    while let Some(piece) = stream.next().await {
        console.extend_from_slice(&piece.map_err(|_| lost())?);
    }
    let search = query.search.map(|search| search.to_lowercase());
    let id = machine.id.to_string();
    let logs: Vec<Value> = String::from_utf8_lossy(&console)
        .lines()
        .filter(|line| search.as_ref().is_none_or(|search| line.to_lowercase().contains(search)))
        .map(|line| {
            json!({ "timestamp": time, "message": line, "resourceType": "vm", "resourceId": id, "source": "console" })
        })
        .collect();
    Ok(Json(json!({ "logs": logs, "nextPageToken": null })))
}

fn lost() -> ApiError {
    ApiError::new(Code::AgentUnavailable, "the console could not be read to its end: try again")
}
