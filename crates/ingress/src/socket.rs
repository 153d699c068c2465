//! A client's socket: it tells when something moves, and closes so that the last answer arrives.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use crate::activity::Activity;

/// What is read after the last answer, in bytes: closing a socket with something unread in it is a reset, and may
/// overtake the answer.
const FAREWELL: usize = 1 << 20;

pub(crate) struct Socket {
    stream: TcpStream,
    activity: Arc<Activity>,
    farewell: Farewell,
}

enum Farewell {
    After(Duration),
    Until(Pin<Box<Sleep>>, usize),
}

impl Socket {
    pub fn new(stream: TcpStream, activity: Arc<Activity>, farewell: Duration) -> Self {
        Self { stream, activity, farewell: Farewell::After(farewell) }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.activity.touch();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        self.activity.touch();
        Poll::Ready(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices));
        self.activity.touch();
        Poll::Ready(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            match &mut this.farewell {
                Farewell::After(time) => {
                    let time = *time;
                    ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
                    this.farewell = Farewell::Until(Box::pin(tokio::time::sleep(time)), FAREWELL);
                }
                Farewell::Until(sleep, left) => {
                    if sleep.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(Ok(()));
                    }
                    let mut scratch = [0; 4096];
                    let mut buffer = ReadBuf::new(&mut scratch);
                    match ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buffer)) {
                        Ok(()) if (1..*left).contains(&buffer.filled().len()) => *left -= buffer.filled().len(),
                        _ => return Poll::Ready(Ok(())),
                    }
                }
            }
        }
    }
}
