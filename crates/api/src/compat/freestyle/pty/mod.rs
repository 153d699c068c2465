//! Terminals that go on while nobody looks.
//!
//! A session is a command with a terminal, and a task that moves its output to whoever is attached and keeps the last
//! of it for those who come later (`session.rs`). It ends with its command, when it is closed, when nobody was
//! attached for an hour, after the longest time that a command may take (24 hours), when whoever opened it may do so no
//! longer (the key or token is revoked or expires, or its grant is taken back), and with the server.
//!
//! Its name is one of a Linux user of a machine: users do not see, and do not type into, one another's sessions. The
//! signals that do something are SIGINT and SIGKILL. The client sends its key or token as a header of the WebSocket,
//! like with every other call, which needs the `WebSocket` of Node 22.

mod registry;
mod session;
mod socket;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};
use warren_model::access::{ExecCommand, LONGEST_EXEC, TerminalSize};
use warren_model::record::Machine;
use warren_model::{Code, LinuxUser, Verb, wire};

use super::USER_HEADER;
use super::code::Said;
use super::error::{Answer, Refusal};
use super::exec::shell;
use super::extract::AsUser;
use crate::caller::Caller;
use crate::error::ApiError;
use crate::extract::{Named, NamedPair, Query};
use crate::guard::StreamPlace;
use crate::resolve;
use crate::routes::exec;
use crate::routes::inside::running;
use crate::state::{Api, Shared};

pub(crate) use registry::Sessions;
use session::Session;

/// What runs when nothing is asked for: the login shell that the machine has.
const LOGIN: [&str; 3] = ["/bin/sh", "-c", "command -v bash >/dev/null 2>&1 && exec bash -l; exec sh -l"];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OpenQuery {
    cols: Option<u16>,
    rows: Option<u16>,
    /// Text for a shell, in place of a login shell.
    exec: Option<String>,
    /// What the session is to be called.
    session_id: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct AttachQuery {
    cols: Option<u16>,
    rows: Option<u16>,
}

/// The size that was asked for; a terminal has at least one row and one column.
fn size(cols: Option<u16>, rows: Option<u16>) -> TerminalSize {
    TerminalSize { cols: cols.unwrap_or(80).max(1), rows: rows.unwrap_or(24).max(1) }
}

/// Open a terminal
///
/// A WebSocket. Binary frames are what is typed and what is shown. The server says `sessionInfo` first and `exited`
/// last, the client `resize` and `signal`, as text frames.
#[utoipa::path(get, path = "/compat/freestyle/v1/vms/{machine}/pty", responses((status = 101)))]
pub(crate) async fn open(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
    AsUser(user): AsUser,
    Query(query): Query<OpenQuery>,
    place: StreamPlace,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Answer<Response> {
    let machine = running(&api, &caller, &given).await?;
    let user = caller.act_as(&machine, Verb::Shell, user)?;
    let upgrade = upgrade.map_err(|_| no_socket())?;
    let size = size(query.cols, query.rows);
    let asked = wire::Exec {
        command: query.exec.clone().map_or_else(|| LOGIN.map(str::to_owned).to_vec(), shell),
        user: user.clone(),
        terminal: Some(size),
        timeout_ms: None,
        stdin: None,
        env: Default::default(),
        cwd: None,
        settle: Some(false),
    };
    let longest = u64::try_from(LONGEST_EXEC.as_millis()).ok();
    let command = ExecCommand { timeout_ms: longest, ..exec::command(asked)? };
    let opening = registry::Opening { machine: machine.id, id: query.session_id, user, exec: query.exec, size };
    let session = registry::open(&api, &caller, opening, command).await?;
    Ok(socket::attach(api, caller, session, size, place, upgrade))
}

/// Attach to a terminal
///
/// The last of what it has shown comes first, in one binary frame.
#[utoipa::path(get, path = "/compat/freestyle/v1/vms/{machine}/pty/sessions/{session}", responses((status = 101)))]
pub(crate) async fn attach(
    State(api): State<Shared>,
    caller: Caller,
    NamedPair(given, id): NamedPair,
    AsUser(user): AsUser,
    Query(query): Query<AttachQuery>,
    place: StreamPlace,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Answer<Response> {
    let machine = running(&api, &caller, &given).await?;
    let session = find(&api, &caller, &machine, &id, user)?;
    if session.exit().is_some() {
        return Err(Refusal::new(Code::NotFound, Said::SessionExpired, "the command of this session has ended"));
    }
    let upgrade = upgrade.map_err(|_| no_socket())?;
    Ok(socket::attach(api, caller, session, size(query.cols, query.rows), place, upgrade))
}

/// List a machine's terminals
#[utoipa::path(get, path = "/compat/freestyle/v1/vms/{machine}/pty/sessions", responses((status = 200)))]
pub(crate) async fn list(State(api): State<Shared>, caller: Caller, Named(given): Named) -> Answer<Json<Value>> {
    let machine = resolve::machine(&api, &caller, &given).await?.record;
    let sessions = api.freestyle.terminals.of(machine.id);
    let may = |session: &&Arc<Session>| permitted(&caller, &machine, session).is_ok();
    let sessions: Vec<_> = sessions.iter().filter(may).map(|session| session.view()).collect();
    Ok(Json(json!({ "sessions": sessions })))
}

/// End a terminal's command
#[utoipa::path(delete, path = "/compat/freestyle/v1/vms/{machine}/pty/sessions/{session}", responses((status = 200)))]
pub(crate) async fn close(
    State(api): State<Shared>,
    caller: Caller,
    NamedPair(given, id): NamedPair,
    AsUser(user): AsUser,
) -> Answer<Json<Value>> {
    let machine = resolve::machine(&api, &caller, &given).await?.record;
    let session = find(&api, &caller, &machine, &id, user)?;
    let exit = session.exit();
    session.close();
    api.freestyle.terminals.forget(machine.id, &session);
    Ok(Json(json!({ "sessionId": id, "exitCode": exit.and_then(|exit| exit.code) })))
}

/// The session of this name of the user that the caller acts as. That another user has one of this name is said to
/// whom the list shows it.
fn find(api: &Api, caller: &Caller, machine: &Machine, id: &str, user: Option<String>) -> Answer<Arc<Session>> {
    let terminals = &api.freestyle.terminals;
    if let Ok(user) = caller.act_as(machine, Verb::Shell, user)
        && let Some(session) = terminals.find(machine.id, &or_root(user), id)
    {
        return Ok(session);
    }
    let shown = |session: &Arc<Session>| session.id == id && permitted(caller, machine, session).is_ok();
    Err(match terminals.of(machine.id).into_iter().find(shown) {
        Some(session) => Refusal::new(
            Code::InvalidRequest,
            Said::SessionUserMismatch,
            format!("the session is one of user {:?}: name that user in '{USER_HEADER}'", session.user()),
        ),
        None => Refusal::new(Code::NotFound, Said::SessionNotFound, "the user has no such terminal session"),
    })
}

fn permitted(caller: &Caller, machine: &Machine, session: &Session) -> Result<(), ApiError> {
    caller.act_as(machine, Verb::Shell, Some(session.user().to_owned())).map(drop)
}

fn no_socket() -> ApiError {
    ApiError::invalid("this call is a WebSocket: send the upgrade headers")
}

/// Whom a session runs as where nobody was named.
fn or_root(user: Option<String>) -> String {
    user.unwrap_or_else(|| LinuxUser::ROOT.to_owned())
}
