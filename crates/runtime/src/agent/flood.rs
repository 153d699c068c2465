//! A byte stream that gives up a peer who sends frames without content.
//!
//! HTTP/2 bounds content by flow control, but nothing bounds how many settings, pings or empty pieces a peer sends, and
//! each of them costs work. This counts frames (RFC 9113, section 4.1) and ends the stream when too many in one second
//! carry next to nothing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Frames with little content that a peer may send in one second. An exec of nothing costs about ten.
const MOST_FRAMES: u32 = 100_000;

/// A frame with content as long as this is worth its work. In bytes.
const SUBSTANTIAL: usize = 64;

/// Bytes of a frame before its payload.
const HEADER: usize = 9;

const DATA: u8 = 0;

/// Counts what is read from `inner`.
#[derive(Debug)]
pub struct FloodGuard<S> {
    inner: S,
    count: Count,
    since: Instant,
}

impl<S> FloodGuard<S> {
    pub fn new(inner: S) -> Self {
        Self { inner, count: Count::default(), since: Instant::now() }
    }
}

#[derive(Debug, Default)]
struct Count {
    header: [u8; HEADER],
    collected: usize,
    skip: usize,
    light: u32,
}

impl Count {
    /// Follows the frames in `bytes`.
    fn see(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let part = (HEADER - self.collected).min(bytes.len());
            self.header[self.collected..][..part].copy_from_slice(&bytes[..part]);
            self.collected += part;
            bytes = &bytes[part..];
            if self.collected == HEADER {
                self.collected = 0;
                let [a, b, c, kind, ..] = self.header;
                self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                if kind != DATA || self.skip < SUBSTANTIAL {
                    self.light += 1;
                }
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FloodGuard<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        self.count.see(&buf.filled()[before..]);
        if self.count.light > MOST_FRAMES {
            if self.since.elapsed() < Duration::from_secs(1) {
                // A read that fails has read nothing.
                buf.set_filled(before);
                return Poll::Ready(Err(io::Error::other("it floods the connection with frames that carry nothing")));
            }
            self.count.light = 0;
            self.since = Instant::now();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FloodGuard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, length: usize) -> Vec<u8> {
        let mut bytes = vec![0, (length >> 8) as u8, length as u8, kind, 0, 0, 0, 0, 1];
        bytes.resize(HEADER + length, 7);
        bytes
    }

    #[test]
    fn frames_are_counted_however_they_are_cut() {
        let wire = [frame(DATA, 1000), frame(6, 8), frame(DATA, 3), frame(DATA, 0), frame(4, 300)].concat();
        for cut in [1, 2, 7, 9, 10, 64, 5000] {
            let mut count = Count::default();
            wire.chunks(cut).for_each(|chunk| count.see(chunk));
            assert_eq!((count.light, count.skip, count.collected), (4, 0, 0), "cut at {cut}");
        }
    }

    #[tokio::test]
    async fn a_flood_ends_the_stream_and_content_does_not() {
        use tokio::io::AsyncReadExt;
        let pings = frame(6, 8).repeat(MOST_FRAMES as usize + 1);
        assert!(FloodGuard::new(&pings[..]).read_to_end(&mut Vec::new()).await.is_err());
        let content = frame(DATA, 100).repeat(MOST_FRAMES as usize + 1);
        assert!(FloodGuard::new(&content[..]).read_to_end(&mut Vec::new()).await.is_ok());
    }
}
