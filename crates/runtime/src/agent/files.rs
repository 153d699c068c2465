//! File content and logs as they come.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use h2::SendStream;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;
use warren_guest::frame::{Frame, Kind, encode, header};
use warren_guest::protocol::{
    Attributes, LONGEST_ANSWER, LONGEST_FRAME_JSON, LogsRequest, PathRequest, WriteRequest, operation,
};
use warren_guest::stream::{FrameReader, collect, send};
use warren_model::Code;
use warren_model::access::{AccessError, ByteStream};

use super::call::{CALL, parse_refusal, refusal, to_json};
use super::link::Link;

/// A machine that moves no byte for this long does not move any more.
const STALLED: Duration = Duration::from_secs(60);

/// The most content in one frame, in bytes.
const PIECE: usize = 256 << 10;

/// Reads a file: what it is, then its content.
pub async fn read(link: Arc<Link>, path: &str) -> Result<(Attributes, ByteStream), AccessError> {
    let request = PathRequest { path: path.to_owned(), deep: false };
    let (mut reader, place) = open(&link, operation::READ, &request).await?;
    let frame = match tokio::time::timeout(CALL, reader.next()).await {
        Ok(frame) => frame.map_err(|error| link.broken(error))?,
        Err(_) => return Err(link.late(CALL).await),
    };
    let head = frame.filter(|frame| frame.kind == Kind::Head).and_then(|frame| parse(&frame.payload));
    let attributes = head.ok_or_else(|| link.broken("a file that begins without its attributes"))?;
    Ok((attributes, content(Reading { link, reader, _place: place, patience: Some(STALLED) })))
}

/// Reads the console log.
pub async fn logs(link: Arc<Link>, request: LogsRequest) -> Result<ByteStream, AccessError> {
    let (reader, place) = open(&link, operation::LOGS, &request).await?;
    let patience = (!request.follow).then_some(STALLED);
    Ok(content(Reading { link, reader, _place: place, patience }))
}

/// Writes a file, at the pace of whoever sends it and of the machine.
pub async fn write(link: Arc<Link>, request: &WriteRequest, mut from: ByteStream) -> Result<Attributes, AccessError> {
    let head = encode(Kind::Head, &to_json(request)?);
    let mut asked = link.ask(operation::WRITE, false).await?;
    let mut response = asked.response;
    let body = &mut asked.body;
    // Any answer before the end is a refusal, and what was not sent yet goes unsent.
    let sending = async {
        moved(&link, send(body, head, false)).await?;
        while let Some(chunk) = from.next().await {
            let mut chunk = chunk.map_err(|error| {
                AccessError::new(
                    Code::InvalidRequest,
                    format!("the content broke off, and nothing was written: {error}"),
                )
            })?;
            while !chunk.is_empty() {
                let piece = chunk.split_to(chunk.len().min(PIECE));
                moved(&link, send(body, Bytes::copy_from_slice(&header(Kind::Data, piece.len())), false)).await?;
                moved(&link, send(body, piece, false)).await?;
            }
        }
        moved(&link, send(body, encode(Kind::End, b""), true)).await
    };
    let early = tokio::select! {
        biased;
        answer = &mut response => Some(answer),
        sent = sending => match sent {
            Ok(()) => None,
            Err(error) => {
                asked.body.send_reset(h2::Reason::CANCEL);
                return Err(error);
            }
        },
    };
    let answer = match early {
        Some(answer) => answer,
        None => match tokio::time::timeout(STALLED, &mut response).await {
            Ok(answer) => answer,
            Err(_) => return Err(link.late(STALLED).await),
        },
    };
    let response = answer.map_err(|error| link.broken(error))?;
    let status = response.status().as_u16();
    let reading = async {
        let mut body = response.into_body();
        match status {
            200 => {
                let json = collect(&mut body, LONGEST_ANSWER).await.map_err(|error| link.broken(error))?;
                parse(&json).ok_or_else(|| link.broken("a file was written and has no attributes"))
            }
            422 => Err(refusal(&link, body).await),
            status => Err(link.broken(format_args!("it answers with status {status}"))),
        }
    };
    match tokio::time::timeout(CALL, reading).await {
        Ok(answer) => answer,
        Err(_) => Err(link.late(CALL).await),
    }
}

/// Waits while the machine takes a piece.
async fn moved(link: &Link, sending: impl Future<Output = Result<(), h2::Error>>) -> Result<(), AccessError> {
    match tokio::time::timeout(STALLED, sending).await {
        Ok(Ok(())) => Ok(()),
        // The agent closed this direction: its answer, which is on its way, says why.
        Ok(Err(_)) => std::future::pending().await,
        Err(_) => Err(link.late(STALLED).await),
    }
}

async fn open(
    link: &Arc<Link>,
    operation: &'static str,
    request: &impl Serialize,
) -> Result<(FrameReader, OwnedSemaphorePermit), AccessError> {
    let json = to_json(request)?;
    let mut asked = link.ask(operation, false).await?;
    send_whole(link, &mut asked.body, json).await?;
    let (granted, body) = link.head(asked.response, CALL).await?;
    if granted {
        return Ok((FrameReader::new(body, LONGEST_FRAME_JSON), asked.place));
    }
    let said = tokio::time::timeout(CALL, refusal(link, body)).await;
    Err(said.unwrap_or_else(|_| link.broken("its refusal does not end")))
}

async fn send_whole(link: &Link, body: &mut SendStream<Bytes>, json: Vec<u8>) -> Result<(), AccessError> {
    match tokio::time::timeout(CALL, send(body, json.into(), true)).await {
        Ok(sent) => sent.map_err(|error| link.broken(error)),
        Err(_) => Err(link.late(CALL).await),
    }
}

struct Reading {
    link: Arc<Link>,
    reader: FrameReader,
    _place: OwnedSemaphorePermit,
    /// How long the next piece may take.
    patience: Option<Duration>,
}

fn content(reading: Reading) -> BoxStream<'static, io::Result<Bytes>> {
    stream::unfold(Some(reading), |reading| async {
        let mut reading = reading?;
        match reading.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(reading))),
            Ok(None) => None,
            Err(error) => Some((Err(io::Error::other(error)), None)),
        }
    })
    .boxed()
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>, AccessError> {
        let next = self.reader.next();
        let frame = match self.patience {
            None => next.await,
            Some(patience) => match tokio::time::timeout(patience, next).await {
                Ok(frame) => frame,
                Err(_) => return Err(self.link.late(patience).await),
            },
        };
        match frame.map_err(|error| self.link.broken(error))? {
            Some(Frame { kind: Kind::Data, payload }) => Ok(Some(payload)),
            Some(Frame { kind: Kind::End, .. }) => Ok(None),
            Some(Frame { kind: Kind::Refused, payload }) => Err(parse_refusal(&self.link, &payload)),
            _ => Err(self.link.broken("content ends before its end, or carries what it cannot")),
        }
    }
}

fn parse<T: DeserializeOwned>(json: &[u8]) -> Option<T> {
    serde_json::from_slice(json).ok()
}
