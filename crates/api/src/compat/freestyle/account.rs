//! Who asks, and what machines wrote to their consoles.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
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
/// Lines that one answer holds.
const MOST_LINES: usize = 1000;

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

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Logs<'a> {
    logs: Vec<Line<'a>>,
    next_page_token: Option<()>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    timestamp: Timestamp,
    message: &'a str,
    resource_type: &'static str,
    resource_id: &'a str,
    source: &'static str,
}

/// Read a machine's console
#[utoipa::path(get, path = "/compat/freestyle/observability/v1/logs", responses((status = 200)))]
pub(crate) async fn logs(State(api): State<Shared>, caller: Caller, Query(query): Query<LogQuery>) -> Answer<Response> {
    let none = || Json(Logs { logs: Vec::new(), next_page_token: None }).into_response();
    let Some(given) = &query.vm_id else { return Ok(none()) };
    let machine = resolve::machine(&api, &caller, given).await.not_found_as(Said::VmNotFound)?.record;
    // A console has no times: its lines are as old as the machine's boot, so that the same line is told once only.
    let view = views::read_machine(&api, &machine).await?;
    let time = view.started_at.unwrap_or(view.created_at);
    if query.start_time.is_some_and(|start| time < start) || query.end_time.is_some_and(|end| time > end) {
        return Ok(none());
    }
    let mut console = Vec::new();
    let mut stream = api.access.logs(machine.id, TAIL, false).await.map_err(ApiError::from)?;
    while let Some(piece) = stream.next().await {
        console.extend_from_slice(&piece.map_err(|_| lost())?);
    }
    let search = query.search.map(|search| search.to_lowercase());
    let id = machine.id.to_string();
    let console = String::from_utf8_lossy(&console);
    let logs = last_lines(&console, search.as_deref())
        .into_iter()
        .map(|message| Line { timestamp: time, message, resource_type: "vm", resource_id: &id, source: "console" })
        .collect();
    Ok(Json(Logs { logs, next_page_token: None }).into_response())
}

/// The last lines that are not empty and hold the text, which is in lower case.
fn last_lines<'a>(console: &'a str, search: Option<&str>) -> Vec<&'a str> {
    let holds = |line: &str| search.is_none_or(|search| line.to_lowercase().contains(search));
    let mut lines: Vec<_> =
        console.lines().rev().filter(|line| !line.is_empty() && holds(line)).take(MOST_LINES).collect();
    lines.reverse();
    lines
}

fn lost() -> ApiError {
    ApiError::new(Code::AgentUnavailable, "the console could not be read to its end: try again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_that_say_something_are_told() {
        let console: String = (0..1200).map(|n| format!("Line {n}\n\n")).collect();
        let lines = last_lines(&console, None);
        assert_eq!((lines.len(), lines[0], lines[999]), (1000, "Line 200", "Line 1199"));
        assert_eq!(last_lines(&console, Some("line 7")).len(), 111);
    }
}
