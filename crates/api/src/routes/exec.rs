//! Running commands in machines: one that waits for the end, and one that streams over a WebSocket.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{Sink, SinkExt, Stream, StreamExt};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::Instant;
use warren_model::access::{ExecCommand, ExecExit, ExecInput, ExecOutput, ExecSession, LONGEST_EXEC, is_variable_name};
use warren_model::record::Machine;
use warren_model::wire::{Denial, Exec, ExecControl, ExecEvent, ExecResult};
use warren_model::{Code, MachineId, Problem, Verb};

use super::denials::views;
use super::inside::running;
use crate::caller::Caller;
use crate::error::{Answer, ApiError};
use crate::extract::{JsonBody, Named};
use crate::guard::{PROTOCOL, StreamPlace};
use crate::resolve;
use crate::state::{Api, Shared};

/// Bytes of stdout and of stderr, each, that an answer holds.
const HELD: usize = 1024 * 1024;
/// Bytes of stdin that are handed over at once.
pub(crate) const PIECE: usize = 32 * 1024;
/// How long after its time limit a command is still waited for.
const GRACE: Duration = Duration::from_secs(10);
/// How long a client may take to say what to run.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(10);
/// How often a streaming client is asked whether it is there, and how long it may be silent.
pub(crate) const PING_EVERY: Duration = Duration::from_secs(20);
pub(crate) const SILENT_LIMIT: Duration = Duration::from_secs(65);
/// The largest WebSocket message that a client may send.
pub(crate) const LARGEST_MESSAGE: usize = 1024 * 1024;
/// How long a command's answer waits for what was refused to it.
const GATHER_LIMIT: Duration = Duration::from_secs(1);
/// How many denials an answer holds.
const DENIALS: usize = 100;
/// What the first byte of a binary frame says.
const STDOUT: u8 = 1;
const STDERR: u8 = 2;

/// Run a command and wait for its end
#[utoipa::path(post, path = "/v1/machines/{machine}/exec", operation_id = "exec", tag = "exec",
    params(("machine" = String, Path, description = "Id or name")),
    request_body = Exec, responses((status = 200, body = ExecResult)))]
pub(crate) async fn run(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
    JsonBody { value, .. }: JsonBody<Exec>,
) -> Answer<Json<ExecResult>> {
    if value.terminal.is_some() {
        return Err(ApiError::invalid("a terminal needs a stream: leave it out, or open this route as a WebSocket"));
    }
    let longest = u64::try_from(api.config.exec_limit.as_millis()).unwrap_or(u64::MAX);
    let timeout_ms = value.timeout_ms.unwrap_or(longest);
    if timeout_ms > longest {
        return Err(ApiError::invalid(format!(
            "a call that waits runs a command for at most {longest} ms: open this route as a WebSocket for longer ones"
        )));
    }
    let stdin = Bytes::from(value.stdin.clone().unwrap_or_default());
    let command = ExecCommand { timeout_ms: Some(timeout_ms), ..command(value)? };
    let machine = running(&api, &caller, &given).await?;
    let command = ExecCommand { user: caller.act_as(&machine, Verb::Exec, command.user)?, ..command };
    let limit = Duration::from_millis(timeout_ms) + GRACE;
    let since = Timestamp::now();
    let whole = async {
        let ExecSession { input, output } = api.access.exec(machine.id, command).await?;
        let (_, collected) = tokio::join!(feed(input, stdin), collect(output));
        collected
    };
    let mut result = tokio::time::timeout(limit, whole).await.map_err(|_| {
        ApiError::new(
            Code::DeadlineExceeded,
            format!("the command was to end after {timeout_ms} ms and its end was not reported: restart the machine if this persists"),
        )
    })??;
    result.denials = refused(&api, machine.id, since).await;
    Ok(Json(result))
}

/// What was refused to the machine since then, as far as the layers tell in time.
async fn refused(api: &Api, machine: MachineId, since: Timestamp) -> Vec<Denial> {
    let gathered = tokio::time::timeout(GATHER_LIMIT, api.boundaries.gather(machine, since)).await;
    let mut denials = gathered.unwrap_or_default();
    denials.truncate(DENIALS);
    views(api, denials).await
}

async fn feed(input: mpsc::Sender<ExecInput>, mut stdin: Bytes) {
    while !stdin.is_empty() {
        let piece = stdin.split_to(stdin.len().min(PIECE));
        // A command may end, or close its stdin, before it has read everything.
        if input.send(ExecInput::Stdin(piece)).await.is_err() {
            return;
        }
    }
    let _ = input.send(ExecInput::StdinClosed).await;
    // Dropping the session ends the command, so the sender stays until the command has ended.
    input.closed().await;
}

async fn collect(mut output: mpsc::Receiver<ExecOutput>) -> Answer<ExecResult> {
    let (mut stdout, mut stderr, mut truncated) = (Vec::new(), Vec::new(), false);
    let mut keep = |held: &mut Vec<u8>, piece: &[u8]| {
        let room = HELD - held.len();
        truncated |= piece.len() > room;
        held.extend_from_slice(&piece[..piece.len().min(room)]);
    };
    while let Some(item) = output.recv().await {
        match item {
            ExecOutput::Stdout(piece) => keep(&mut stdout, &piece),
            ExecOutput::Stderr(piece) => keep(&mut stderr, &piece),
            ExecOutput::Exit(ExecExit { status, signal, timed_out }) => {
                return Ok(ExecResult {
                    stdout: text(stdout),
                    stderr: text(stderr),
                    status,
                    signal,
                    timed_out,
                    truncated,
                    denials: Vec::new(),
                });
            }
        }
    }
    Err(lost().into())
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// The agent went away.
pub(crate) fn lost() -> Problem {
    Problem::new(
        Code::AgentUnavailable,
        "the machine's agent went away before the command had ended: see whether the machine runs, and try again",
    )
}

/// What the runtime is asked to run.
pub(crate) fn command(asked: Exec) -> Answer<ExecCommand> {
    let zero = |text: &String| text.contains('\0');
    if asked.command.first().is_none_or(String::is_empty) {
        return Err(ApiError::invalid("command is the program and its arguments: give at least the program"));
    }
    if asked.command.iter().any(zero) || asked.env.iter().any(|(key, value)| zero(key) || zero(value)) {
        return Err(ApiError::invalid("arguments and environment cannot hold a zero byte"));
    }
    if let Some(key) = asked.env.keys().find(|key| !is_variable_name(key)) {
        return Err(ApiError::invalid(format!(
            "{key:?} is not the name of an environment variable: use letters, digits and '_', not a digit first"
        )));
    }
    if asked.cwd.as_ref().is_some_and(|cwd| !cwd.starts_with('/') || zero(cwd)) {
        return Err(ApiError::invalid("cwd is an absolute path"));
    }
    if asked.user.as_ref().is_some_and(|user| user.is_empty() || zero(user)) {
        return Err(ApiError::invalid("user is a name or a number"));
    }
    if asked.terminal.is_some_and(|size| size.rows == 0 || size.cols == 0) {
        return Err(ApiError::invalid("a terminal has at least one row and one column"));
    }
    let longest = u64::try_from(LONGEST_EXEC.as_millis()).unwrap_or(u64::MAX);
    if asked.timeout_ms.is_some_and(|limit| limit == 0 || limit > longest) {
        return Err(ApiError::invalid(format!("timeout_ms is 1 to {longest}")));
    }
    Ok(ExecCommand {
        argv: asked.command,
        env: asked.env,
        cwd: asked.cwd,
        user: asked.user,
        timeout_ms: asked.timeout_ms,
        terminal: asked.terminal,
        settle: asked.settle.unwrap_or(true),
    })
}

/// Run a command and stream
///
/// A WebSocket. The client sends an `ExecControl` of type `start` as the first text frame, then stdin as binary frames
/// and further `ExecControl`s as text frames. The server sends output as binary frames whose first byte is 1 for
/// stdout and 2 for stderr, `ExecEvent`s as text frames, and at last one of type `exit` or `failed`. The command ends
/// with the connection.
#[utoipa::path(get, path = "/v1/machines/{machine}/exec", operation_id = "exec_stream", tag = "exec",
    params(("machine" = String, Path, description = "Id or name")),
    responses((status = 101, description = "Switching to WebSocket")))]
pub(crate) async fn stream(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
    place: StreamPlace,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Answer<Response> {
    let known = resolve::machine(&api, &caller, &given).await?.record;
    if !caller.may_any(&known, &[Verb::Exec, Verb::Shell]) {
        return Err(ApiError::new(
            Code::Forbidden,
            format!("this token's identity was granted neither 'exec' nor 'shell' on machine {}", known.name),
        ));
    }
    let machine = running(&api, &caller, &given).await?;
    let upgrade = upgrade.map_err(|_| {
        ApiError::invalid("this route is a WebSocket: send the upgrade headers, or POST to it to wait for the end")
    })?;
    Ok(upgrade.protocols([PROTOCOL]).max_message_size(LARGEST_MESSAGE).on_upgrade(move |mut socket| async move {
        let last = tokio::select! {
            last = converse(&api, &caller, &machine, &mut socket) => last,
            () = caller.over(&api) => Some(ExecEvent::Failed { problem: *ApiError::unauthorized().problem }),
        };
        if let Some(event) = last {
            let text = serde_json::to_string(&event).unwrap_or_default();
            part(&mut socket, Some(Message::text(text)), START_LIMIT).await;
        }
        drop(place);
    }))
}

/// Says the last words and closes, within the limit, whether the client reads or not.
pub(crate) async fn part<S>(socket: &mut S, last: Option<Message>, limit: Duration)
where
    S: Sink<Message> + Stream<Item = Result<Message, axum::Error>> + Unpin,
{
    let words = async {
        for message in last.into_iter().chain([Message::Close(None)]) {
            let _ = socket.send(message).await;
        }
        // Until the client has closed too, or the bytes may be lost with the connection.
        while let Some(Ok(_)) = socket.next().await {}
    };
    let _ = tokio::time::timeout(limit, words).await;
}

/// The last event for the client; `None` when it has gone.
async fn converse(api: &Api, caller: &Caller, machine: &Machine, socket: &mut WebSocket) -> Option<ExecEvent> {
    let failed = |problem: Problem| Some(ExecEvent::Failed { problem });
    let first = tokio::time::timeout(START_LIMIT, next_message(socket)).await;
    let Ok(first) = first else {
        return failed(Problem::new(Code::RequestTimeout, "send the start frame within ten seconds"));
    };
    let command = match control(&first?) {
        Ok(ExecControl::Start { exec }) => command(exec).and_then(|command| {
            let verb = if command.terminal.is_some() { Verb::Shell } else { Verb::Exec };
            Ok(ExecCommand { user: caller.act_as(machine, verb, command.user)?, ..command })
        }),
        Ok(_) => Err(ApiError::invalid("the first frame has to be of type start")),
        Err(problem) => Err(problem.into()),
    };
    let command = match command {
        Ok(command) => {
            ExecCommand { timeout_ms: command.timeout_ms.or(Some(LONGEST_EXEC.as_millis() as u64)), ..command }
        }
        Err(error) => return failed(*error.problem),
    };
    let since = Timestamp::now();
    match api.access.exec(machine.id, command).await {
        Ok(session) => {
            let end = relay(api, session, socket).await?;
            if matches!(end, ExecEvent::Exit { .. }) {
                let denials = refused(api, machine.id, since).await;
                if !denials.is_empty() {
                    let text = serde_json::to_string(&ExecEvent::Denials { denials }).unwrap_or_default();
                    socket.send(Message::text(text)).await.ok()?;
                }
            }
            Some(end)
        }
        Err(error) => failed(error.into()),
    }
}

async fn relay(api: &Api, session: ExecSession, socket: &mut WebSocket) -> Option<ExecEvent> {
    let failed = |problem: Problem| Some(ExecEvent::Failed { problem });
    let ExecSession { input, mut output } = session;
    let mut waiting: Option<ExecInput> = None;
    let mut listening = true;
    let mut ping = tokio::time::interval(PING_EVERY);
    let mut heard = Instant::now();
    loop {
        tokio::select! {
            item = output.recv() => match item {
                Some(ExecOutput::Stdout(piece)) => socket.send(framed(STDOUT, &piece)).await.ok()?,
                Some(ExecOutput::Stderr(piece)) => socket.send(framed(STDERR, &piece)).await.ok()?,
                Some(ExecOutput::Exit(ExecExit { status, signal, timed_out })) => {
                    return Some(ExecEvent::Exit { status, signal, timed_out });
                }
                None => return failed(lost()),
            },
            // Read on only when the command has taken what came before.
            message = next_message(socket), if waiting.is_none() => {
                heard = Instant::now();
                match said(&message?) {
                    Ok(said) => waiting = said.filter(|_| listening),
                    Err(problem) => return failed(problem),
                }
            }
            room = input.reserve(), if waiting.is_some() => match (room, waiting.take()) {
                (Ok(room), Some(said)) => room.send(said),
                _ => listening = false,
            },
            _ = ping.tick() => {
                if heard.elapsed() > SILENT_LIMIT && waiting.is_none() {
                    return None;
                }
                socket.send(Message::Ping(Bytes::new())).await.ok()?;
            }
            () = api.config.shutdown.cancelled() => {
                return failed(Problem::new(Code::NotReady, "the server is shutting down: run the command again when it is back"));
            }
        }
    }
}

/// `None` when the client has gone.
pub(crate) async fn next_message(socket: &mut WebSocket) -> Option<Message> {
    socket.next().await?.ok().filter(|message| !matches!(message, Message::Close(_)))
}

fn said(message: &Message) -> Result<Option<ExecInput>, Problem> {
    match message {
        Message::Binary(piece) => Ok(Some(ExecInput::Stdin(piece.clone()))),
        Message::Text(_) => match control(message)? {
            ExecControl::StdinClosed => Ok(Some(ExecInput::StdinClosed)),
            ExecControl::Resize { size } => Ok(Some(ExecInput::Resize(size))),
            ExecControl::Signal { signal } => Ok(Some(ExecInput::Signal(signal))),
            ExecControl::Start { .. } => {
                Err(Problem::new(Code::InvalidRequest, "a command runs already: open another stream"))
            }
        },
        Message::Ping(_) | Message::Pong(_) | Message::Close(_) => Ok(None),
    }
}

fn control(message: &Message) -> Result<ExecControl, Problem> {
    let Message::Text(text) = message else {
        return Err(Problem::new(Code::InvalidRequest, "the first frame has to be text: an ExecControl of type start"));
    };
    serde_json::from_str(text.as_str())
        .map_err(|error| Problem::new(Code::InvalidRequest, format!("the frame is not an ExecControl: {error}")))
}

fn framed(stream: u8, piece: &Bytes) -> Message {
    let mut frame = BytesMut::with_capacity(piece.len() + 1);
    frame.put_u8(stream);
    frame.put_slice(piece);
    Message::Binary(frame.freeze())
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use super::*;

    /// A client that neither reads nor writes.
    struct Stuck;

    impl Stream for Stuck {
        type Item = Result<Message, axum::Error>;

        fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            Poll::Pending
        }
    }

    impl Sink<Message> for Stuck {
        type Error = axum::Error;

        fn poll_ready(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Pending
        }

        fn start_send(self: Pin<&mut Self>, _: Message) -> Result<(), Self::Error> {
            unreachable!("it is never ready")
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Pending
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Pending
        }
    }

    fn refused(json: &str) -> bool {
        command(serde_json::from_str(json).unwrap()).is_err()
    }

    #[test]
    fn a_command_that_no_kernel_takes_is_refused() {
        for bad in [
            r#"{"command":[]}"#,
            r#"{"command":[""]}"#,
            r#"{"command":["a\u0000b"]}"#,
            r#"{"command":["a"],"env":{"A=B":"c"}}"#,
            r#"{"command":["a"],"env":{"":"c"}}"#,
            r#"{"command":["a"],"cwd":"relative"}"#,
            r#"{"command":["a"],"user":""}"#,
            r#"{"command":["a"],"timeout_ms":0}"#,
            r#"{"command":["a"],"timeout_ms":86400001}"#,
            r#"{"command":["a"],"terminal":{"rows":0,"cols":80}}"#,
        ] {
            assert!(refused(bad), "{bad}");
        }
        assert!(!refused(r#"{"command":["true"],"timeout_ms":86400000}"#));
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_parted_from_in_time() {
        let mut socket = Stuck;
        let parted = part(&mut socket, Some(Message::text("last")), Duration::from_millis(20));
        tokio::time::timeout(Duration::from_secs(5), parted).await.expect("it ends");
    }

    #[tokio::test]
    async fn output_beyond_what_an_answer_holds_is_cut_and_said_to_be() {
        let (send, receive) = mpsc::channel(4);
        let writer = tokio::spawn(async move {
            for _ in 0..3 {
                send.send(ExecOutput::Stdout(vec![b'x'; HELD / 2].into())).await.unwrap();
            }
            send.send(ExecOutput::Exit(ExecExit { status: 0, signal: None, timed_out: false })).await.unwrap();
        });
        let result = collect(receive).await.unwrap();
        writer.await.unwrap();
        assert!(result.truncated);
        assert_eq!(result.stdout.len(), HELD);
    }
}
