//! A command in a machine, over a WebSocket (RFC 6455).
//!
//! Text frames carry [`ExecControl`] and [`ExecEvent`]; binary frames carry stdin to the server, and from it output
//! behind one byte that tells stdout from stderr.

use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use http::header::{
    CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Method, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{self, Message};
use warren_model::wire::{Denial, Exec, ExecControl, ExecEvent};

use super::error::ClientError;
use super::route::Route;
use super::{Client, Payload};

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// What the command sends.
#[derive(Debug, PartialEq)]
pub enum Output {
    Stdout(Bytes),
    Stderr(Bytes),
    /// What was refused to the machine while it ran; before `Exit`.
    Denials(Vec<Denial>),
    Exit {
        status: i32,
        signal: Option<i32>,
        timed_out: bool,
    },
}

/// The way to the command.
pub struct Sender(SplitSink<Socket, Message>);

/// The way from the command.
pub struct Receiver(SplitStream<Socket>);

impl Client {
    /// Starts a command. Dropping both ends, ends it.
    pub async fn exec(&self, machine: &str, exec: Exec) -> Result<(Sender, Receiver), ClientError> {
        let key = generate_key();
        let mut headers = HeaderMap::new();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        let unsendable = |_| ClientError::Usage("the handshake's key cannot stand in a header".to_owned());
        headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_str(&key).map_err(unsendable)?);

        let route = Route::new(&["machines", machine, "exec"]);
        let response = self.send_with(Method::GET, &route, Payload::Nothing, headers).await?;
        let accepted = response.headers().get(SEC_WEBSOCKET_ACCEPT).map(HeaderValue::as_bytes)
            == Some(derive_accept_key(key.as_bytes()).as_bytes());
        if response.status() != StatusCode::SWITCHING_PROTOCOLS || !accepted {
            return Err(ClientError::BrokenOff("the server did not open a WebSocket; is a proxy in between?".into()));
        }
        let stream = hyper::upgrade::on(response).await.map_err(|error| ClientError::BrokenOff(error.into()))?;
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(stream), Role::Client, None).await;
        let (sink, stream) = socket.split();
        let mut sender = Sender(sink);
        sender.control(&ExecControl::Start { exec }).await?;
        Ok((sender, Receiver(stream)))
    }
}

impl Sender {
    /// Waits until the server takes it.
    pub async fn stdin(&mut self, bytes: Bytes) -> Result<(), ClientError> {
        self.0.send(Message::Binary(bytes)).await.map_err(broken)
    }

    pub async fn control(&mut self, control: &ExecControl) -> Result<(), ClientError> {
        let text = serde_json::to_string(control).map_err(ClientError::NotUnderstood)?;
        self.0.send(Message::Text(text.into())).await.map_err(broken)
    }

    /// Shows the hops in between that the connection is in use.
    pub async fn ping(&mut self) -> Result<(), ClientError> {
        self.0.send(Message::Ping(Bytes::new())).await.map_err(broken)
    }
}

impl Receiver {
    /// What comes next. An error when the connection ends before the command.
    pub async fn next(&mut self) -> Result<Output, ClientError> {
        loop {
            let frame = match self.0.next().await {
                Some(frame) => frame.map_err(broken)?,
                None => return Err(early_end("")),
            };
            match frame {
                Message::Binary(bytes) => match bytes.first() {
                    Some(1) => return Ok(Output::Stdout(bytes.slice(1..))),
                    Some(2) => return Ok(Output::Stderr(bytes.slice(1..))),
                    _ => return Err(ClientError::BrokenOff("the server sent output of no known kind".into())),
                },
                Message::Text(text) => {
                    return match serde_json::from_str(&text).map_err(ClientError::NotUnderstood)? {
                        ExecEvent::Exit { status, signal, timed_out } => Ok(Output::Exit { status, signal, timed_out }),
                        ExecEvent::Denials { denials } => Ok(Output::Denials(denials)),
                        ExecEvent::Failed { problem } => Err(problem.into()),
                    };
                }
                Message::Close(reason) => {
                    return Err(early_end(reason.as_ref().map_or("", |reason| reason.reason.as_str())));
                }
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }
}

fn early_end(reason: &str) -> ClientError {
    let why = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
    ClientError::BrokenOff(format!("the server ended it before the command was done{why}").into())
}

fn broken(error: tungstenite::Error) -> ClientError {
    ClientError::BrokenOff(error.into())
}
