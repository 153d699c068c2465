//! Dialing the host and answering it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Request, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, broadcast};
use tokio::time::Instant;
use warren_guest::frame::{Kind, encode};
use warren_guest::protocol::{self, Empty, GuestConfig, Hello, LogsRequest, PathRequest, Refusal, operation};
use warren_guest::stream::{FrameReader, collect, send};
use warren_model::Code;

use crate::{Agent, configure, console, exec, files, ports};

/// Time between two attempts to reach the host, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A connection that lived as long as this was a real one, and the next attempt is made at once.
const REAL: Duration = Duration::from_secs(1);

/// A request must have come as a whole after this.
const REQUEST: Duration = Duration::from_secs(10);

/// Bytes on their way that nobody has taken: of one stream, and of a connection. The connection holds 64 full streams,
/// so that commands which do not read their stdin do not stop the others.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 64 * STREAM_WINDOW;

/// Dials and serves, for ever.
pub async fn serve(agent: Arc<Agent>, socket: PathBuf) {
    let mut pause = FIRST_PAUSE;
    loop {
        if let Ok(stream) = UnixStream::connect(&socket).await {
            let since = Instant::now();
            answer(&agent, stream).await;
            if since.elapsed() >= REAL {
                agent.console.say("the host is gone; dialing again");
                pause = FIRST_PAUSE;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Answers on one connection until it ends.
async fn answer(agent: &Arc<Agent>, stream: UnixStream) {
    let handshake = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(protocol::MOST_STREAMS)
        .max_frame_size(protocol::LARGEST_HTTP2_FRAME)
        .max_header_list_size(16 << 10)
        .handshake(stream);
    let Ok(Ok(mut connection)) = tokio::time::timeout(REQUEST, handshake).await else { return };
    let places = Arc::new(Semaphore::new(protocol::MOST_STREAMS as usize));
    // Ends with an error or with the end of the connection; either way the host is gone.
    while let Some(Ok((request, respond))) = connection.accept().await {
        // The host keeps to the number of streams it was told; what is beyond it is refused by the library.
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let agent = Arc::clone(agent);
        tokio::spawn(async move {
            handle(agent, request, respond).await;
            drop(place);
        });
    }
}

async fn handle(agent: Arc<Agent>, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
    let (parts, mut body) = request.into_parts();
    let path = parts.uri.path();
    match path {
        operation::EXEC => {
            return exec::run(agent, FrameReader::new(body, protocol::LONGEST_REQUEST), respond).await;
        }
        operation::WRITE => {
            let answer = files::write(&agent, FrameReader::new(body, protocol::LONGEST_REQUEST)).await;
            return reply(respond, answer).await;
        }
        _ => {}
    }
    let collected = tokio::time::timeout(REQUEST, collect(&mut body, protocol::LONGEST_REQUEST)).await;
    let Ok(Ok(json)) = collected else {
        return refuse(respond, &Refusal::new(Code::InvalidRequest, "the request did not come as a whole")).await;
    };
    match path {
        operation::HELLO => {
            let hello = Hello { protocol: protocol::PROTOCOL, version: env!("CARGO_PKG_VERSION").to_owned() };
            reply(respond, Ok(hello)).await;
        }
        operation::CONFIGURE => {
            reply(respond, blocking(&agent, &json, |config: GuestConfig| configure::apply(&config)).await).await;
        }
        operation::READ => match parse::<PathRequest>(&json) {
            Ok(request) => files::read(&agent, request, respond).await,
            Err(refusal) => refuse(respond, &refusal).await,
        },
        operation::LIST => {
            reply(respond, blocking(&agent, &json, |request: PathRequest| files::list(&request)).await).await;
        }
        operation::STAT => {
            reply(respond, blocking(&agent, &json, |request: PathRequest| files::stat(&request)).await).await;
        }
        operation::MAKE_DIRECTORY => {
            reply(respond, blocking(&agent, &json, |request: PathRequest| files::make_directory(&request)).await).await;
        }
        operation::REMOVE => {
            reply(respond, blocking(&agent, &json, |request: PathRequest| files::remove(&request)).await).await;
        }
        operation::PORTS => {
            reply(respond, blocking(&agent, &json, |_: Empty| Ok(ports::listening())).await).await;
        }
        operation::LOGS => match parse::<LogsRequest>(&json) {
            Ok(request) => logs(&agent, request, respond).await,
            Err(refusal) => refuse(respond, &refusal).await,
        },
        operation::SHUTDOWN => {
            let answer = parse::<protocol::ShutdownRequest>(&json).map(|request| {
                // A second request finds the first one under way.
                let _ = agent.stop.try_send(Duration::from_millis(request.grace_ms));
                Empty {}
            });
            reply(respond, answer).await;
        }
        _ => refuse(respond, &Refusal::new(Code::RouteNotFound, "this agent has no such operation")).await,
    }
}

/// Reads the head of a streaming request.
pub async fn head<T: DeserializeOwned>(input: &mut FrameReader) -> Result<T, Refusal> {
    match tokio::time::timeout(REQUEST, input.next()).await {
        Ok(Ok(Some(frame))) if frame.kind == Kind::Head => parse(&frame.payload),
        _ => Err(Refusal::new(Code::InvalidRequest, "the request did not begin with its head")),
    }
}

/// Answers with a refusal.
pub async fn refuse(mut respond: SendResponse<Bytes>, refusal: &Refusal) {
    let response = response(StatusCode::UNPROCESSABLE_ENTITY);
    let Ok(json) = serde_json::to_vec(refusal) else { return };
    // An error means that whoever asked is gone.
    if let Ok(mut stream) = respond.send_response(response, false) {
        let _ = send(&mut stream, json.into(), true).await;
    }
}

/// Answers with a document or a refusal.
async fn reply(mut respond: SendResponse<Bytes>, answer: Result<impl Serialize, Refusal>) {
    let json = match &answer {
        Ok(answer) => serde_json::to_vec(answer),
        Err(refusal) => return refuse(respond, refusal).await,
    };
    match json {
        Ok(json) if json.len() <= protocol::LONGEST_ANSWER => {
            if let Ok(mut stream) = respond.send_response(response(StatusCode::OK), false) {
                let _ = send(&mut stream, json.into(), true).await;
            }
        }
        _ => refuse(respond, &Refusal::new(Code::LimitOutOfRange, "the answer is longer than 8 MiB")).await,
    }
}

/// A plain response.
pub fn response(status: StatusCode) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    response
}

fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(json).map_err(|error| Refusal::new(Code::InvalidRequest, error.to_string()))
}

async fn blocking<T, A>(
    agent: &Agent,
    json: &[u8],
    work: impl FnOnce(T) -> Result<A, Refusal> + Send + 'static,
) -> Result<A, Refusal>
where
    T: DeserializeOwned + Send + 'static,
    A: Send + 'static,
{
    let request = parse(json)?;
    let done = agent.blocking(move || work(request)).await;
    done.unwrap_or_else(|error| Err(Refusal::new(Code::Internal, error.to_string())))
}

async fn logs(agent: &Agent, request: LogsRequest, mut respond: SendResponse<Bytes>) {
    let mut follow = request.follow.then(|| agent.console.follow());
    let written = agent.blocking(move || console::tail(console::LOG.as_ref(), request.tail)).await;
    let Ok(mut stream) = respond.send_response(response(StatusCode::OK), false) else { return };
    for chunk in written.unwrap_or_default().chunks(protocol::CHUNK) {
        if send(&mut stream, encode(Kind::Data, chunk), false).await.is_err() {
            return;
        }
    }
    while let Some(coming) = &mut follow {
        let next = tokio::select! {
            next = coming.recv() => next,
            _ = std::future::poll_fn(|cx| stream.poll_reset(cx)) => return,
        };
        let bytes = match next {
            Ok(bytes) => bytes,
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                Bytes::from(format!("\nwarren: {missed} pieces were written faster than they were read\n"))
            }
            Err(broadcast::error::RecvError::Closed) => break,
        };
        if send(&mut stream, encode(Kind::Data, &bytes), false).await.is_err() {
            return;
        }
    }
    // The reader may be gone by now.
    let _ = send(&mut stream, encode(Kind::End, b""), true).await;
}
