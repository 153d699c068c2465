//! Commands: texts for a shell.

use axum::Json;
use axum::extract::State;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use warren_model::{Code, wire};

use super::code::Said;
use super::error::{Answer, Refusal};
use super::extract::{AsUser, Body};
use crate::caller::Caller;
use crate::extract::{JsonBody, Named};
use crate::routes::exec;
use crate::state::Shared;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ExecAwait {
    command: String,
    /// A terminal that is open in the machine.
    terminal: Option<String>,
    timeout_ms: Option<u64>,
}

/// Run a command and wait for its end
///
/// Also until what it left in the background listens, at most a second.
#[utoipa::path(post, path = "/compat/freestyle/v1/vms/{machine}/exec-await", responses((status = 200)))]
pub(crate) async fn run(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
    AsUser(user): AsUser,
    Body { value, .. }: Body<ExecAwait>,
) -> Answer<Json<Value>> {
    if value.terminal.is_some() {
        return Err(Refusal::unsupported(
            Said::InvalidParameters,
            "no terminal is shared between commands: leave 'terminal' out, or open one with vm.pty",
        ));
    }
    let longest = u64::try_from(api.config.exec_limit.as_millis()).unwrap_or(u64::MAX);
    let timeout_ms = value.timeout_ms.map_or(longest, |asked| asked.min(longest));
    let asked = wire::Exec {
        command: shell(value.command),
        user,
        timeout_ms: Some(timeout_ms),
        stdin: None,
        env: Default::default(),
        cwd: None,
        terminal: None,
        settle: Some(true),
    };
    let result = exec::run(State(api), caller, Named(given), JsonBody { value: asked, bytes: Bytes::new() }).await?.0;
    if result.timed_out {
        return Err(Refusal::new(
            Code::DeadlineExceeded,
            Said::ExecTimedOut,
            format!("the command was ended after {timeout_ms} ms: give it more time, or leave it in the background"),
        ));
    }
    let mut answer = json!({ "stdout": result.stdout, "stderr": result.stderr, "statusCode": result.status });
    // Beside what the client knows, and only where there is something to say.
    if result.truncated {
        answer["truncated"] = true.into();
    }
    if !result.denials.is_empty() {
        answer["denials"] = serde_json::to_value(result.denials).unwrap_or_default();
    }
    Ok(Json(answer))
}

/// The command line of a text: bash where the machine has it, else sh. It takes the place of the shell that looks.
pub(super) fn shell(text: String) -> Vec<String> {
    const LOOK: &str = "command -v bash >/dev/null 2>&1 && exec bash -c -- \"$1\"; exec sh -c -- \"$1\"";
    vec!["/bin/sh".to_owned(), "-c".to_owned(), LOOK.to_owned(), "sh".to_owned(), text]
}
