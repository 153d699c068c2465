//! A WebSocket that is attached to a session.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt;
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;
use warren_model::access::{ExecInput, Signal, TerminalSize};

use super::session::{Seat, Session, Told};
use crate::caller::Caller;
use crate::guard::StreamPlace;
use crate::routes::exec::{LARGEST_MESSAGE, PING_EVERY, SILENT_LIMIT, START_LIMIT, next_message};
use crate::state::{Api, Shared};

/// What Control and C send (ASCII ETX), which the terminal turns into SIGINT.
const INTERRUPT: Bytes = Bytes::from_static(b"\x03");

/// How long a command that takes no input is waited for when one of several has gone.
const RESIZE_LIMIT: Duration = Duration::from_secs(1);

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
        let _ = socket.send(Message::Close(None)).await;
        // Until the client has closed too, or the bytes may be lost with the connection.
        let _ = tokio::time::timeout(START_LIMIT, async { while let Some(Ok(_)) = socket.next().await {} }).await;
        drop(place);
    })
}

/// Until either end is done; `None` when the client has gone.
async fn carry(api: &Api, session: &Session, seat: Seat, socket: &mut WebSocket) -> Option<()> {
    let Seat { number, before, mut told } = seat;
    let info = json!({ "type": "sessionInfo", "sessionId": session.id });
    socket.send(Message::text(info.to_string())).await.ok()?;
    if !before.is_empty() {
        socket.send(Message::Binary(before)).await.ok()?;
    }
    let mut ping = tokio::time::interval(PING_EVERY);
    let mut heard = Instant::now();
    let mut typed = session.fitting();
    loop {
        tokio::select! {
            told = told.recv() => match told {
                Some(Told::Shown(piece)) => socket.send(Message::Binary(piece)).await.ok()?,
                Some(Told::Exited(code)) => {
                    let exited = json!({ "type": "exited", "exitCode": code });
                    return socket.send(Message::text(exited.to_string())).await.ok();
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
                socket.send(Message::Ping(Bytes::new())).await.ok()?;
            }
            () = api.config.shutdown.cancelled() => return Some(()),
        }
    }
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
