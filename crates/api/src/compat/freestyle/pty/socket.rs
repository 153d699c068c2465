//! A WebSocket that is attached to a session.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;
use warren_model::access::{ExecInput, Signal, TerminalSize};

use super::session::{Seat, Session, Told};
use crate::caller::Caller;
use crate::guard::StreamPlace;
use crate::routes::exec::{LARGEST_MESSAGE, PING_EVERY, SILENT_LIMIT, START_LIMIT, next_message, part};
use crate::state::{Api, Shared};

/// What Control and C send (ASCII ETX), which the terminal turns into SIGINT.
const INTERRUPT: Bytes = Bytes::from_static(b"\x03");

/// How long a command that takes no input is waited for when one of several has gone.
const RESIZE_LIMIT: Duration = Duration::from_secs(1);

/// How long a client is waited for that does not read: it holds a place.
const SEND_LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
enum Control {
    Resize { cols: u16, rows: u16 },
    Signal { signal: String },
}

pub(super) fn attach(
    api: Shared,
    caller: Caller,
    session: Arc<Session>,
    size: TerminalSize,
    place: StreamPlace,
    upgrade: WebSocketUpgrade,
) -> Response {
    upgrade.max_message_size(LARGEST_MESSAGE).on_upgrade(move |mut socket| async move {
        if let Some(seat) = session.sit_down(size) {
            let number = seat.number;
            tokio::select! {
                _ = carry(&api, &session, seat, &mut socket) => {}
                () = caller.over(&api) => {}
            }
            session.stand_up(number);
            if let Some(resize) = session.fitting() {
                let _ = tokio::time::timeout(RESIZE_LIMIT, session.say(resize)).await;
            }
        }
        part(&mut socket, None, START_LIMIT).await;
        drop(place);
    })
}

/// Until either end is done; `None` when the client has gone.
async fn carry(api: &Api, session: &Session, seat: Seat, socket: &mut WebSocket) -> Option<()> {
    let Seat { number, before, mut told } = seat;
    let info = json!({ "type": "sessionInfo", "sessionId": session.id });
    send(socket, Message::text(info.to_string())).await?;
    if !before.is_empty() {
        send(socket, Message::Binary(before)).await?;
    }
    let mut ping = tokio::time::interval(PING_EVERY);
    let mut heard = Instant::now();
    let mut typed = session.fitting();
    loop {
        tokio::select! {
            told = told.recv() => match told {
                Some(Told::Shown(piece)) => send(socket, Message::Binary(piece)).await?,
                Some(Told::Exited(code)) => {
                    let exited = json!({ "type": "exited", "exitCode": code });
                    return send(socket, Message::text(exited.to_string())).await;
                }
                None => return Some(()),
            },
            // Read on only when the command has taken what came before.
            message = next_message(socket), if typed.is_none() => {
                heard = Instant::now();
                typed = match message? {
                    Message::Binary(piece) => Some(ExecInput::Stdin(piece)),
                    Message::Text(text) => said(session, number, text.as_str()),
                    Message::Ping(_) | Message::Pong(_) | Message::Close(_) => None,
                };
            }
            () = hand_over(session, typed.clone()), if typed.is_some() => typed = None,
            _ = ping.tick() => {
                if heard.elapsed() > SILENT_LIMIT && typed.is_none() {
                    return None;
                }
                send(socket, Message::Ping(Bytes::new())).await?;
            }
            () = api.config.shutdown.cancelled() => return Some(()),
        }
    }
}

/// `None` when the client has gone, or does not read.
async fn send(socket: &mut WebSocket, message: Message) -> Option<()> {
    tokio::time::timeout(SEND_LIMIT, socket.send(message)).await.ok()?.ok()
}

async fn hand_over(session: &Session, typed: Option<ExecInput>) {
    if let Some(typed) = typed {
        session.say(typed).await;
    }
}

/// What a text frame asks for; one that is not known is passed over.
fn said(session: &Session, number: u64, text: &str) -> Option<ExecInput> {
    match serde_json::from_str(text).ok()? {
        Control::Resize { cols, rows } => {
            session.resize(number, TerminalSize { cols: cols.max(1), rows: rows.max(1) });
            session.fitting()
        }
        Control::Signal { signal } => match signal.as_str() {
            "SIGINT" => Some(ExecInput::Stdin(INTERRUPT)),
            "SIGKILL" => Some(ExecInput::Signal(Signal::Kill)),
            _ => None,
        },
    }
}
