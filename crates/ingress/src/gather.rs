//! Gathers what a connection of HTTP/2 writes.
//!
//! The library flushes behind every frame of data, which would make each answer a TLS record, a system call and a packet
//! of its own. Here flushing does nothing; who polls the connection flushes afterwards, once for all that was written.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How much is gathered at most, in bytes: what a TLS record holds (RFC 8446 §5.1).
const AT_ONCE: usize = 16 << 10;

/// A stream that gathers what is written. Clones are the same.
pub(crate) struct Gathered<S> {
    inner: Arc<Mutex<Inner<S>>>,
}

struct Inner<S> {
    stream: S,
    held: Vec<u8>,
    /// How much of the beginning was written.
    written: usize,
}

impl<S> Gathered<S> {
    pub fn new(stream: S) -> Self {
        Self { inner: Arc::new(Mutex::new(Inner { stream, held: Vec::new(), written: 0 })) }
    }

    /// Gives back a buffer in which nothing is.
    pub fn give_back(&self) {
        let mut inner = self.lock();
        if inner.held.is_empty() {
            inner.held = Vec::new();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<S>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    /// Writes what was gathered, and flushes the stream.
    pub fn poll_out(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        ready!(inner.drain(cx))?;
        Pin::new(&mut inner.stream).poll_flush(cx)
    }
}

impl<S> Clone for Gathered<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    fn drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.held.len() {
            let rest = &self.held[self.written..];
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        self.held.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    /// Makes room for so much, where that is possible at all; then it can be held.
    fn poll_room(&mut self, cx: &mut Context<'_>, count: usize) -> Poll<io::Result<bool>> {
        if self.held.len() + count > AT_ONCE {
            ready!(self.drain(cx))?;
        }
        Poll::Ready(Ok(count < AT_ONCE))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.lock().stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.lock();
        if ready!(inner.poll_room(cx, bytes.len()))? {
            inner.held.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut inner.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.lock();
        let count = slices.iter().map(|slice| slice.len()).sum();
        if ready!(inner.poll_room(cx, count))? {
            slices.iter().for_each(|slice| inner.held.extend_from_slice(slice));
            return Poll::Ready(Ok(count));
        }
        Pin::new(&mut inner.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.lock().stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        ready!(inner.drain(cx))?;
        Pin::new(&mut inner.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    /// Counts what is written, and takes no more than `room` at once; nothing where that is 0.
    #[derive(Default)]
    struct Counting {
        writes: Vec<usize>,
        room: usize,
    }

    impl AsyncWrite for Counting {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let count = bytes.len().min(self.room);
            if count == 0 {
                return Poll::Pending;
            }
            self.writes.push(count);
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn counting(room: usize) -> Gathered<Counting> {
        Gathered::new(Counting { room, ..Counting::default() })
    }

    #[tokio::test]
    async fn what_is_flushed_in_between_goes_out_at_once() {
        let mut gathered = counting(usize::MAX);
        let out = gathered.clone();
        for _ in 0..10 {
            gathered.write_all(&[1; 100]).await.unwrap();
            gathered.flush().await.unwrap();
        }
        poll_fn(|cx| out.poll_out(cx)).await.unwrap();
        assert_eq!(out.lock().stream.writes, [1000]);
        // What is large is not copied, and goes behind what is held.
        gathered.write_all(&[1; 100]).await.unwrap();
        gathered.write_all(&[2; 40_000]).await.unwrap();
        assert_eq!(out.lock().stream.writes, [1000, 100, 40_000]);
    }

    #[tokio::test]
    async fn no_more_is_held_than_a_record() {
        let mut gathered = counting(0);
        let mut taken = 0;
        while let Poll::Ready(count) = futures::poll!(poll_fn(|cx| Pin::new(&mut gathered).poll_write(cx, &[1; 1000])))
        {
            taken += count.unwrap();
            assert!(taken <= AT_ONCE);
        }
        assert_eq!(taken, 16_000);
        assert!(futures::poll!(poll_fn(|cx| gathered.poll_out(cx))).is_pending());
        gathered.give_back();
        gathered.lock().stream.room = 10_000;
        poll_fn(|cx| gathered.poll_out(cx)).await.unwrap();
        assert_eq!(gathered.lock().stream.writes, [10_000, 6_000]);
        gathered.give_back();
        assert_eq!(gathered.lock().held.capacity(), 0);
    }

    #[tokio::test]
    async fn what_is_held_goes_out_before_the_end() {
        let (near, mut far) = duplex(64);
        let mut gathered = Gathered::new(near);
        gathered.write_all(b"goodbye").await.unwrap();
        gathered.shutdown().await.unwrap();
        let mut read = String::new();
        far.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "goodbye");
    }
}
