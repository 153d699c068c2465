//! A command's streams.
//!
//! Two tasks: one moves input to the agent, one moves output from it. The output task sees the caller go, since the
//! receiver of the output is what a caller holds on to, and tells the other one, which resets the stream; the agent
//! then ends the command.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, SendStream};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use warren_guest::frame::{Frame, HEADER, Kind, encode, header};
use warren_guest::protocol::{LONGEST_FRAME_JSON, operation};
use warren_guest::stream::{FrameReader, send};
use warren_model::access::{AccessError, ExecCommand, ExecExit, ExecInput, ExecOutput, ExecSession, LONGEST_EXEC};

use super::call::{refusal, to_json};
use super::link::Link;

/// A command that has not begun after this did not begin.
const START: Duration = Duration::from_secs(15);

/// After its time limit, a command gets a while to end, and what it left in the background a second.
const AFTER_LIMIT: Duration = Duration::from_secs(15);

/// The stream is closed by both ends, or dropped after this.
const CLOSING: Duration = Duration::from_secs(1);

/// Items that wait for whoever reads the output. Each is at most one HTTP/2 frame.
const OUTPUT_WAITING: usize = 16;
const INPUT_WAITING: usize = 16;

/// The most input in one frame, in bytes.
const PIECE: usize = 256 << 10;

/// Starts a command.
pub async fn start(link: Arc<Link>, mut command: ExecCommand) -> Result<ExecSession, AccessError> {
    let longest = u64::try_from(LONGEST_EXEC.as_millis()).unwrap_or(u64::MAX);
    let limit = command.timeout_ms.unwrap_or(longest).min(longest);
    command.timeout_ms = Some(limit);
    let head = encode(Kind::Head, &to_json(&command)?);
    let mut asked = link.ask(operation::EXEC, false).await?;
    let begin = async {
        let mut response = asked.response;
        // A refusal may come before the agent took everything.
        let early = tokio::select! {
            biased;
            early = &mut response => Some(early),
            _ = send(&mut asked.body, head, false) => None,
        };
        match early {
            Some(early) => early,
            None => response.await,
        }
    };
    let response = match tokio::time::timeout(START, begin).await {
        Ok(response) => response.map_err(|error| link.broken(error))?,
        Err(_) => return Err(link.late(START).await),
    };
    let output = match response.status().as_u16() {
        200 => FrameReader::new(response.into_body(), LONGEST_FRAME_JSON),
        422 => {
            let said = tokio::time::timeout(START, refusal(&link, response.into_body())).await;
            return Err(said.unwrap_or_else(|_| link.broken("its refusal does not end")));
        }
        status => return Err(link.broken(format_args!("it answers with status {status}"))),
    };
    let (input, input_items) = mpsc::channel(INPUT_WAITING);
    let (output_items, session_output) = mpsc::channel(OUTPUT_WAITING);
    let ended = CancellationToken::new();
    let given_up = CancellationToken::new();
    tokio::spawn(move_input(asked.body, input_items, ended.clone(), given_up.clone()));
    let moving = Output {
        link,
        reader: output,
        items: output_items,
        deadline: Instant::now() + Duration::from_millis(limit) + AFTER_LIMIT,
        place: asked.place,
        ended,
        given_up,
    };
    tokio::spawn(moving.run());
    Ok(ExecSession { input, output: session_output })
}

async fn move_input(
    mut body: SendStream<Bytes>,
    mut items: mpsc::Receiver<ExecInput>,
    ended: CancellationToken,
    given_up: CancellationToken,
) {
    let mut closed = false;
    let moving = async {
        while let Some(item) = items.recv().await {
            let sent = match item {
                ExecInput::Stdin(_) | ExecInput::StdinClosed if closed => Ok(()),
                ExecInput::Stdin(bytes) => send_stdin(&mut body, bytes).await,
                ExecInput::StdinClosed => {
                    closed = true;
                    send(&mut body, encode(Kind::StdinClosed, b""), false).await
                }
                ExecInput::Resize(size) => send_json(&mut body, Kind::Resize, &size).await,
                ExecInput::Signal(signal) => send_json(&mut body, Kind::Signal, &signal).await,
            };
            if sent.is_err() {
                return;
            }
        }
        // Whoever lets go of the input has no more of it, and may still read the output.
        if !closed {
            let _ = send(&mut body, encode(Kind::StdinClosed, b""), false).await;
        }
    };
    tokio::select! {
        biased;
        () = given_up.cancelled() => {}
        () = ended.cancelled() => {}
        () = async { moving.await; std::future::pending().await } => {}
    }
    if given_up.is_cancelled() {
        body.send_reset(Reason::CANCEL);
    } else {
        // The agent may have closed the stream by itself.
        let _ = body.send_data(Bytes::new(), true);
    }
}

async fn send_stdin(body: &mut SendStream<Bytes>, mut bytes: Bytes) -> Result<(), h2::Error> {
    while !bytes.is_empty() {
        let piece = bytes.split_to(bytes.len().min(PIECE));
        send(body, Bytes::copy_from_slice(&header(Kind::Data, piece.len())), false).await?;
        send(body, piece, false).await?;
    }
    Ok(())
}

async fn send_json(body: &mut SendStream<Bytes>, kind: Kind, value: &impl serde::Serialize) -> Result<(), h2::Error> {
    // Sizes and signals are plain; there is nothing in them that JSON could not say.
    let Ok(json) = serde_json::to_vec(value) else { return Ok(()) };
    debug_assert!(json.len() < HEADER + LONGEST_FRAME_JSON);
    send(body, encode(kind, &json), false).await
}

struct Output {
    link: Arc<Link>,
    reader: FrameReader,
    items: mpsc::Sender<ExecOutput>,
    deadline: Instant,
    place: OwnedSemaphorePermit,
    ended: CancellationToken,
    given_up: CancellationToken,
}

impl Output {
    async fn run(self) {
        let Self { link, mut reader, items, deadline, place, ended, given_up } = self;
        let finished = loop {
            // A slow reader may be behind the limit; then the agent gets its while from now on.
            let until = deadline.max(Instant::now() + AFTER_LIMIT);
            let frame = tokio::select! {
                biased;
                () = items.closed() => break false,
                frame = timeout_at(until, reader.next()) => frame,
            };
            let item = match frame {
                Ok(Ok(Some(Frame { kind: Kind::Data, payload }))) => ExecOutput::Stdout(payload),
                Ok(Ok(Some(Frame { kind: Kind::Errors, payload }))) => ExecOutput::Stderr(payload),
                Ok(Ok(Some(Frame { kind: Kind::Exit, payload }))) => match parse_exit(&payload) {
                    Some(exit) => ExecOutput::Exit(exit),
                    None => break wrong(&link, "it says how a command ended, and nothing ends like that"),
                },
                Ok(Ok(_)) => break wrong(&link, "a command's stream ends without its exit, or carries what it cannot"),
                Ok(Err(error)) => break wrong(&link, error),
                Err(_) => break wrong(&link, "a command runs on after its time limit"),
            };
            let last = matches!(item, ExecOutput::Exit(_));
            if items.send(item).await.is_err() {
                break false;
            }
            if last {
                break true;
            }
        };
        drop(items);
        if finished {
            ended.cancel();
            // The agent closes its direction as well; a reset instead would be work for both.
            let _ = tokio::time::timeout(CLOSING, reader.next()).await;
        } else {
            given_up.cancel();
        }
        drop(place);
    }
}

fn wrong(link: &Link, why: impl std::fmt::Display) -> bool {
    // The caller sees an output that ends without an exit.
    let _ = link.broken(why);
    false
}

fn parse_exit(json: &[u8]) -> Option<ExecExit> {
    let exit: ExecExit = serde_json::from_slice(json).ok()?;
    let plausible = (0..=255).contains(&exit.status) && exit.signal.is_none_or(|signal| (1..=64).contains(&signal));
    plausible.then_some(exit)
}
