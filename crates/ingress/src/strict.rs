//! Reads HTTP/1.1 strictly, in front of the library that serves it.
//!
//! The library is right about where requests end, and lenient where the standard lets it be: it takes one of two lengths,
//! and lines that end otherwise. What it lets through so is put right before it goes on; but who sends it means to be
//! read differently by somebody, and is refused here. The library gets every head whole, and only after it was checked.
//! Instead of one that is refused it gets one that is harmless, and whose answer is the refusal: so answers stay in
//! order.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::framing::{Body, Chunks, Head, check};
use crate::limits::MAX_HEAD;
use crate::problem::Refusal;

/// How much is read at once, in bytes: what a TLS record holds.
const AT_ONCE: usize = 16 << 10;
/// What the library gets for a head that is refused.
const HARMLESS: &[u8] = b"GET / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; AT_ONCE].into_boxed_slice());
}

/// What the one who reads and the one who answers tell each other.
#[derive(Debug)]
pub(crate) struct Verdicts {
    /// From which head on all are refused, and why.
    refused_from: AtomicU64,
    why: AtomicU8,
    answered: AtomicU64,
    /// How many requests to go on as something else were decided, and whether the last one was granted.
    decided: AtomicU64,
    open: AtomicU8,
}

impl Verdicts {
    pub fn new() -> Self {
        Self {
            refused_from: AtomicU64::new(u64::MAX),
            why: AtomicU8::new(0),
            answered: AtomicU64::new(0),
            decided: AtomicU64::new(0),
            open: AtomicU8::new(0),
        }
    }

    /// The verdict about the next request.
    pub fn next(&self) -> Result<(), Refusal> {
        let index = self.answered.fetch_add(1, Relaxed);
        if index < self.refused_from.load(Relaxed) {
            return Ok(());
        }
        Err(Refusal::ALL[usize::from(self.why.load(Relaxed))])
    }

    /// Says whether the connection goes on as something else.
    pub fn decide(&self, open: bool) {
        self.open.store(open.into(), Relaxed);
        self.decided.store(self.answered.load(Relaxed), Relaxed);
    }
}

/// A client's connection that is read strictly.
pub(crate) struct Strict<S> {
    stream: S,
    verdicts: Arc<Verdicts>,
    place: Place,
    /// What was read and not taken. The first `ready` of it may be, and `looked` of the head behind that was looked at.
    held: Vec<u8>,
    ready: usize,
    looked: usize,
    heads: u64,
}

enum Place {
    Head,
    Sized(u64),
    Chunked(Chunks),
    /// Behind a request to go on as something else: what comes may or may not be HTTP.
    Undecided,
    /// It is not HTTP any more.
    Open,
    /// A body broke the rules.
    Broken,
    /// Nothing that comes is looked at.
    Refused,
}

impl<S> Strict<S> {
    pub fn new(stream: S, verdicts: Arc<Verdicts>) -> Self {
        Self { stream, verdicts, place: Place::Head, held: Vec::new(), ready: 0, looked: 0, heads: 0 }
    }

    /// How much of the beginning of `bytes` may be taken.
    fn judge(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        loop {
            let rest = &bytes[taken..];
            match &mut self.place {
                Place::Undecided if self.verdicts.decided.load(Relaxed) == self.heads => {
                    let open = self.verdicts.open.load(Relaxed) == 1;
                    self.place = if open { Place::Open } else { Place::Head };
                    continue;
                }
                Place::Open => return bytes.len(),
                Place::Undecided | Place::Broken | Place::Refused => return taken,
                _ if rest.is_empty() => return taken,
                Place::Sized(left) => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    *left -= count as u64;
                    taken += count;
                    if *left == 0 {
                        self.place = Place::Head;
                    }
                }
                Place::Chunked(chunks) => {
                    let count = chunks.follow(rest);
                    taken += count;
                    if chunks.ended() {
                        self.place = Place::Head;
                    } else if count < rest.len() {
                        self.place = Place::Broken;
                    }
                }
                Place::Head => match find_end(rest, &mut self.looked) {
                    Found::Whole(end) => {
                        self.looked = 0;
                        match check(&rest[..end]) {
                            Ok(head) => {
                                taken += end;
                                self.heads += 1;
                                self.place = Place::behind(&head);
                            }
                            Err(refusal) => {
                                self.refuse(refusal);
                                return taken;
                            }
                        }
                    }
                    Found::Empty => taken += 2,
                    Found::Part if rest.len() > MAX_HEAD => {
                        self.refuse(Refusal::Headers);
                        return taken;
                    }
                    Found::Part => return taken,
                    Found::Wrong => {
                        self.refuse(Refusal::Syntax);
                        return taken;
                    }
                },
            }
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.verdicts.why.store(refusal as u8, Relaxed);
        self.verdicts.refused_from.store(self.heads, Relaxed);
        self.place = Place::Refused;
    }

    /// Judges what was read behind what is held.
    fn take_in(&mut self, bytes: &[u8], buffer: &mut ReadBuf<'_>) {
        let was_refused = matches!(self.place, Place::Refused);
        if self.held.is_empty() {
            let good = self.judge(bytes);
            let now = good.min(buffer.remaining());
            buffer.put_slice(&bytes[..now]);
            self.ready = good - now;
            if !matches!(self.place, Place::Refused | Place::Broken) {
                self.held.extend_from_slice(&bytes[now..]);
            } else {
                self.held.extend_from_slice(&bytes[now..good]);
            }
        } else {
            let mut held = std::mem::take(&mut self.held);
            held.extend_from_slice(bytes);
            self.ready += self.judge(&held[self.ready..]);
            if matches!(self.place, Place::Refused | Place::Broken) {
                held.truncate(self.ready);
            }
            self.held = held;
        }
        if matches!(self.place, Place::Refused) && !was_refused {
            self.held.extend_from_slice(HARMLESS);
            self.ready = self.held.len();
        }
    }

    fn give(&mut self, buffer: &mut ReadBuf<'_>) {
        let count = self.ready.min(buffer.remaining());
        buffer.put_slice(&self.held[..count]);
        self.ready -= count;
        if count == self.held.len() {
            self.held = Vec::new();
        } else {
            self.held.drain(..count);
        }
    }
}

impl Place {
    fn behind(head: &Head) -> Self {
        match head.body {
            Body::Sized(0) if head.upgrade => Self::Undecided,
            Body::Sized(0) => Self::Head,
            Body::Sized(length) => Self::Sized(length),
            Body::Chunked => Self::Chunked(Chunks::default()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Strict<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        loop {
            if this.ready == 0 && !this.held.is_empty() {
                // It may have been decided by now.
                this.take_in(&[], buffer);
            }
            if this.ready > 0 {
                this.give(buffer);
            }
            if buffer.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            match this.place {
                Place::Open => return Pin::new(&mut this.stream).poll_read(cx, buffer),
                Place::Broken => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
                // Answering wakes this task, which answers.
                Place::Undecided if this.held.len() >= AT_ONCE => return Poll::Pending,
                _ => {}
            }
            let end = SCRATCH.with_borrow_mut(|scratch| {
                let mut read = ReadBuf::new(scratch);
                ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
                if !matches!(this.place, Place::Refused) {
                    this.take_in(read.filled(), buffer);
                }
                Poll::Ready(io::Result::Ok(read.filled().is_empty()))
            });
            if ready!(end)? || buffer.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Strict<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
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

enum Found {
    /// A head of so many bytes.
    Whole(usize),
    /// An empty line before the head, which is to be passed over (RFC 9112 §2.2).
    Empty,
    Part,
    /// A line that ends otherwise than lines do.
    Wrong,
}

/// Looks for the end of a head, from where it was `looked` for before.
fn find_end(bytes: &[u8], looked: &mut usize) -> Found {
    if bytes.starts_with(b"\r\n") {
        *looked = 0;
        return Found::Empty;
    }
    while let Some(next) = bytes[*looked..].iter().position(|byte| *byte == b'\n') {
        let end = *looked + next + 1;
        let line = &bytes[..end - 1];
        if line.last() != Some(&b'\r') {
            return Found::Wrong;
        }
        *looked = end;
        if line.ends_with(b"\r\n\r") {
            return Found::Whole(end);
        }
    }
    *looked = bytes.len();
    Found::Part
}
