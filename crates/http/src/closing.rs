//! Ends of connections at which the last message still arrives.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

/// What is read after the last answer, in bytes: closing a socket with something unread in it is a reset, and may
/// overtake the answer.
const FAREWELL: usize = 1 << 20;

/// How a client's connection is closed so that the last answer arrives.
pub struct Farewell(State);

enum State {
    After(Duration),
    Until(Pin<Box<Sleep>>, usize),
}

impl Farewell {
    /// `time`: how long the last answer may take to be read.
    pub fn new(time: Duration) -> Self {
        Self(State::After(time))
    }

    /// Ends what goes out, and reads what still comes in, until that ends, too, or it was enough. Then the socket may be
    /// closed.
    pub fn poll(&mut self, stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match &mut self.0 {
                State::After(time) => {
                    let time = *time;
                    ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
                    self.0 = State::Until(Box::pin(sleep(time)), FAREWELL);
                }
                State::Until(sleep, left) => {
                    if sleep.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(Ok(()));
                    }
                    let mut scratch = [0; 4096];
                    let mut buffer = ReadBuf::new(&mut scratch);
                    match ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer)) {
                        Ok(()) if (1..*left).contains(&buffer.filled().len()) => *left -= buffer.filled().len(),
                        _ => return Poll::Ready(Ok(())),
                    }
                }
            }
        }
    }
}

/// A connection to a server whose last word is heard.
///
/// A server may answer before it has read the whole request, and close: then writing fails while its answer is still
/// there to be read. So a write that fails waits until reading has come to the end of what the server said, or nothing
/// was read for [`PATIENCE`].
pub struct LastWord<S> {
    stream: S,
    patience: Duration,
    /// Reading has come to an end.
    heard: bool,
    /// How long a write that failed still waits.
    waiting: Option<Pin<Box<Sleep>>>,
}

/// How long who does not read keeps a write from failing.
pub const PATIENCE: Duration = Duration::from_secs(30);

impl<S> LastWord<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, patience: PATIENCE, heard: false, waiting: None }
    }

    pub fn into_inner(self) -> S {
        self.stream
    }

    fn wrote(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if self.heard || !matches!(written, Poll::Ready(Err(_))) {
            return written;
        }
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(self.patience)));
        ready!(waiting.as_mut().poll(cx));
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for LastWord<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        let patience = self.patience;
        if let Some(waiting) = &mut self.waiting {
            waiting.as_mut().reset(Instant::now() + patience);
        }
        self.heard |= read.is_err() || buffer.filled().len() == before && buffer.remaining() > 0;
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for LastWord<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn a_write_fails_only_after_the_last_word_was_read() {
        let (near, mut far) = duplex(64);
        let mut near = LastWord::new(near);
        near.write_all(b"question").await.unwrap();
        far.write_all(b"answer").await.unwrap();
        drop(far);
        assert!(futures::poll!(Box::pin(near.write_all(b"more"))).is_pending());
        let mut said = String::new();
        near.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "answer");
        assert_eq!(near.write_all(b"more").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn a_write_does_not_wait_for_ever_for_somebody_to_read() {
        let (near, mut far) = duplex(64);
        let mut near = LastWord { patience: Duration::from_millis(20), ..LastWord::new(near) };
        far.write_all(b"answer").await.unwrap();
        drop(far);
        assert_eq!(near.write_all(b"more").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
