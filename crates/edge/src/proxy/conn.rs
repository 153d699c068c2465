//! A socket as the HTTP library takes it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use warren_http::closing::Farewell;

use crate::proxy::copy::{Side, reset};
use crate::proxy::gate::Passage;

/// What the sockets of one session share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Closing is a reset from now on.
    pub reset: AtomicBool,
    /// Bytes that moved, on whichever side.
    pub moved: AtomicU64,
}

/// A socket with what was read from it already.
pub(crate) struct Conn {
    /// `None` once taken apart.
    stream: Option<TcpStream>,
    ahead: Vec<u8>,
    shared: Arc<Shared>,
    /// Counts the bytes: on the server's side.
    passage: Option<Arc<dyn Passage>>,
    /// On the client's side; the server's is closed at once.
    farewell: Option<Farewell>,
}

impl Conn {
    /// The client's side.
    pub fn client(side: Side, shared: Arc<Shared>, farewell: Duration) -> Self {
        let Side { stream, ahead } = side;
        Self { stream: Some(stream), ahead, shared, passage: None, farewell: Some(Farewell::new(farewell)) }
    }

    /// The server's side.
    pub fn server(stream: TcpStream, shared: Arc<Shared>, passage: Arc<dyn Passage>) -> Self {
        Self { stream: Some(stream), ahead: Vec::new(), shared, passage: Some(passage), farewell: None }
    }

    /// The socket, and what was read from it and not taken yet, with `read` in front.
    pub fn into_side(mut self, read: &[u8]) -> Option<Side> {
        let ahead = [read, &self.ahead].concat();
        self.stream.take().map(|stream| Side { stream, ahead })
    }

    fn stream(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.as_ref().filter(|_| self.shared.reset.load(Relaxed)) {
            reset(stream);
        }
    }
}

impl AsyncRead for Conn {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.ahead.is_empty() {
            let count = this.ahead.len().min(buffer.remaining());
            buffer.put_slice(&this.ahead[..count]);
            this.ahead.drain(..count);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(this.stream()?.poll_read(cx, buffer))?;
        let count = (buffer.filled().len() - before) as u64;
        this.shared.moved.fetch_add(count, Relaxed);
        if let Some(passage) = &this.passage {
            passage.add_received(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl Conn {
    fn wrote(&self, written: io::Result<usize>) -> Poll<io::Result<usize>> {
        let count = *written.as_ref().unwrap_or(&0) as u64;
        self.shared.moved.fetch_add(count, Relaxed);
        if let Some(passage) = &self.passage {
            passage.add_sent(count);
        }
        Poll::Ready(written)
    }
}

impl AsyncWrite for Conn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(self.stream()?.poll_write(cx, bytes));
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(self.stream()?.poll_write_vectored(cx, slices));
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        match (&mut this.farewell, &mut this.stream) {
            (Some(farewell), Some(stream)) => farewell.poll(stream, cx),
            _ => this.stream()?.poll_shutdown(cx),
        }
    }
}
