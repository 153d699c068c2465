//! Sending and receiving over HTTP/2 streams with backpressure in both directions.

use std::future::poll_fn;

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream};

use crate::frame::{Decoder, Frame, Malformed};

/// Why nothing more comes.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the stream ended: {0}")]
    Stream(#[from] h2::Error),
    #[error("it sent what is no frame: {0}")]
    Malformed(#[from] Malformed),
    #[error("it ended in the middle of a frame")]
    Truncated,
    #[error("it sent more than {most} bytes")]
    TooLong { most: usize },
}

impl ReadError {
    /// Whether the peer gave this stream up, while the connection lives on.
    pub fn is_reset(&self) -> bool {
        matches!(self, Self::Stream(error) if error.is_reset())
    }
}

/// Sends all of `data`, waiting for the peer to take it; `end` closes this direction.
pub async fn send(stream: &mut SendStream<Bytes>, mut data: Bytes, end: bool) -> Result<(), h2::Error> {
    if data.is_empty() {
        return if end { stream.send_data(data, true) } else { Ok(()) };
    }
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let capacity = match stream.capacity() {
            0 => match poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(capacity) => capacity?,
                None => return Err(h2::Reason::STREAM_CLOSED.into()),
            },
            capacity => capacity,
        };
        let part = data.split_to(capacity.min(data.len()));
        if !part.is_empty() {
            stream.send_data(part, end && data.is_empty())?;
        }
    }
    Ok(())
}

/// Collects a body of at most `most` bytes.
pub async fn collect(body: &mut RecvStream, most: usize) -> Result<Bytes, ReadError> {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(chunk) = next_chunk(body).await? {
        if first.len() + rest.len() + chunk.len() > most {
            return Err(ReadError::TooLong { most });
        }
        if first.is_empty() && rest.is_empty() {
            first = chunk;
        } else {
            if rest.is_empty() {
                rest.extend_from_slice(&std::mem::take(&mut first));
            }
            rest.extend_from_slice(&chunk);
        }
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

/// The frames of a body. What was handed out counts as taken, so the caller holds back by not asking.
#[derive(Debug)]
pub struct FrameReader {
    body: RecvStream,
    decoder: Decoder,
}

impl FrameReader {
    /// `longest` bounds the frames that are collected, in bytes.
    pub fn new(body: RecvStream, longest: usize) -> Self {
        Self { body, decoder: Decoder::new(longest) }
    }

    /// The next frame; `None` at the end. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Option<Frame>, ReadError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            match next_chunk(&mut self.body).await? {
                Some(chunk) => self.decoder.push(chunk),
                None if self.decoder.is_inside_frame() => return Err(ReadError::Truncated),
                None => return Ok(None),
            }
        }
    }
}

async fn next_chunk(body: &mut RecvStream) -> Result<Option<Bytes>, h2::Error> {
    let Some(chunk) = poll_fn(|cx| body.poll_data(cx)).await else { return Ok(None) };
    let chunk = chunk?;
    body.flow_control().release_capacity(chunk.len())?;
    Ok(Some(chunk))
}
