//! Carrying bytes both ways between two sockets.
//!
//! One task carries both directions. A direction holds a buffer only while there is something in it: idle connections
//! cost no more than their sockets. An end of stream is passed on by itself, so that half-closed connections work; a
//! reset on one side resets the other.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::sleep;

use crate::proxy::gate::Passage;

/// The size of a buffer, in bytes.
pub(crate) const BUFFER: usize = 64 << 10;
/// Free buffers that a thread keeps.
const SPARE: usize = 64;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Both sides closed.
    Closed,
    /// One side was reset or went away; so was the other.
    Broken,
    /// Policy no longer allows it; both sides were reset.
    Revoked,
    /// Nothing moved for too long; both sides were reset.
    Idle,
    /// What the client sent was refused; both sides are still open.
    Refused,
}

/// Looks at what the client sends, in order, before it goes on.
pub(crate) type Watch = Box<dyn FnMut(&[u8]) -> Watched + Send>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watched {
    /// It may go on, and so may everything after it.
    Trust,
    /// It may go on; look at the next, too.
    Continue,
    /// It must not go on.
    Refuse,
}

/// A socket, and what was read from it already.
#[derive(Debug)]
pub(crate) struct Side {
    pub stream: TcpStream,
    pub ahead: Vec<u8>,
}

impl Side {
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, ahead: Vec::new() }
    }

    /// Makes the close of the socket a reset.
    pub fn reset(self) {
        reset(&self.stream);
    }
}

/// Carries bytes until both directions have ended, or one failed, or `passage` is revoked. What was read ahead goes
/// first. Except when the client was refused, both sockets are to be dropped afterwards.
pub(crate) async fn both_ways(
    client: &mut Side,
    server: &mut Side,
    passage: &dyn Passage,
    idle: Duration,
    watch: Option<Watch>,
) -> End {
    let end = carry(client, server, passage, idle, watch).await;
    if matches!(end, End::Broken | End::Revoked | End::Idle) {
        reset(&client.stream);
        reset(&server.stream);
    }
    end
}

/// Makes the next close of the socket a reset.
pub(crate) fn reset(stream: &TcpStream) {
    // The socket of a connection that is gone already needs none.
    let _ = stream.set_zero_linger();
}

async fn carry(
    client: &mut Side,
    server: &mut Side,
    passage: &dyn Passage,
    idle: Duration,
    mut watch: Option<Watch>,
) -> End {
    let mut up = Pump::beginning_with(std::mem::take(&mut client.ahead));
    let mut down = Pump::beginning_with(std::mem::take(&mut server.ahead));
    let (mut from_client, mut to_client) = client.stream.split();
    let (mut from_server, mut to_server) = server.stream.split();
    let mut moved = 0u64;
    let mut both = |cx: &mut Context<'_>, moved: &mut u64| {
        let upwards = up.poll(cx, &mut from_client, &mut to_server, &mut watch, &mut |count| {
            *moved += count;
            passage.add_sent(count);
        });
        let downwards = down.poll(cx, &mut from_server, &mut to_client, &mut None, &mut |count| {
            *moved += count;
            passage.add_received(count);
        });
        match (upwards, downwards) {
            (Poll::Ready(Err(Stop::Refused)), _) => Poll::Ready(End::Refused),
            (Poll::Ready(Err(Stop::Failed)), _) | (_, Poll::Ready(Err(_))) => Poll::Ready(End::Broken),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(End::Closed),
            _ => Poll::Pending,
        }
    };
    let revoked = passage.revoked().cancelled();
    tokio::pin!(revoked);
    loop {
        let before = moved;
        tokio::select! {
            biased;
            () = &mut revoked => return End::Revoked,
            end = poll_fn(|cx| both(cx, &mut moved)) => return end,
            () = sleep(idle) => {}
        }
        if moved == before {
            return End::Idle;
        }
    }
}

/// Why a direction stopped before its end.
enum Stop {
    Failed,
    Refused,
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Self {
        Self::Failed
    }
}

/// One direction.
#[derive(Default)]
struct Pump {
    buffer: Option<Box<[u8]>>,
    /// What of the buffer has not gone on yet.
    start: usize,
    end: usize,
    ended: bool,
    closed: bool,
}

impl Pump {
    fn beginning_with(ahead: Vec<u8>) -> Self {
        let end = ahead.len();
        Self { buffer: (end > 0).then(|| ahead.into_boxed_slice()), end, ..Self::default() }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut ReadHalf<'_>,
        to: &mut WriteHalf<'_>,
        watch: &mut Option<Watch>,
        count: &mut dyn FnMut(u64),
    ) -> Poll<Result<(), Stop>> {
        loop {
            if self.closed {
                return Poll::Ready(Ok(()));
            }
            if let Some(buffer) = self.buffer.as_deref().filter(|_| self.start < self.end) {
                let written = ready!(Pin::new(&mut *to).poll_write(cx, &buffer[self.start..self.end]))?;
                if written == 0 {
                    return Poll::Ready(Err(Stop::Failed));
                }
                self.start += written;
                count(written as u64);
                continue;
            }
            if self.buffer.as_deref().is_some_and(|buffer| buffer.len() != BUFFER) {
                self.buffer = None;
            }
            if self.ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.closed = true;
                self.release();
                continue;
            }
            let buffer = self.buffer.get_or_insert_with(take_buffer);
            let mut read = ReadBuf::new(buffer);
            match Pin::new(&mut *from).poll_read(cx, &mut read) {
                Poll::Pending => {
                    self.release();
                    return Poll::Pending;
                }
                Poll::Ready(result) => result?,
            }
            let filled = read.filled();
            (self.start, self.end) = (0, filled.len());
            self.ended = filled.is_empty();
            if let Some(look) = watch.as_mut().filter(|_| !filled.is_empty()) {
                match look(filled) {
                    Watched::Trust => *watch = None,
                    Watched::Continue => {}
                    Watched::Refuse => return Poll::Ready(Err(Stop::Refused)),
                }
            }
        }
    }

    fn release(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            give_buffer(buffer);
        }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.release();
    }
}

fn take_buffer() -> Box<[u8]> {
    FREE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice())
}

fn give_buffer(buffer: Box<[u8]>) {
    // A thread that is ending has no list any more, and needs none.
    let _ = FREE.try_with(|free| {
        let mut free = free.borrow_mut();
        if free.len() < SPARE && buffer.len() == BUFFER {
            free.push(buffer);
        }
    });
}
