//! The streams of a command: what it writes goes out as frames, what comes in goes to its stdin.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use bytes::Bytes;
use nix::fcntl::OFlag;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use warren_guest::frame::{self, Kind};

use super::terminal::Terminal;
use crate::console::Console;

/// Bytes of one read: what a pipe holds.
const READ: usize = 64 << 10;

/// A command that writes many small pieces is read at most this often, so that frames do not outweigh content.
const PIECE: Duration = Duration::from_millis(1);
const SMALL: usize = 512;

/// After a command on a terminal has ended, what it wrote may still pass through the line discipline's queue.
const TERMINAL_QUIET: Duration = Duration::from_millis(25);

/// A terminal sends this for the end of input (VEOF).
const END_OF_INPUT: &[u8] = &[4];

/// Makes a pipe whose first end is the agent's, without blocking, and whose second is the user's.
pub fn pipe_from(uid: u32, gid: u32) -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    give(&writer, uid, gid)?;
    Ok((pipe::Receiver::from_owned_fd(reader)?, writer))
}

/// The same in the other direction.
pub fn pipe_to(uid: u32, gid: u32) -> io::Result<(pipe::Sender, OwnedFd)> {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    give(&reader, uid, gid)?;
    Ok((pipe::Sender::from_owned_fd(writer)?, reader))
}

/// Without this, a command of another user could not open `/dev/stdout`.
fn give(fd: &OwnedFd, uid: u32, gid: u32) -> io::Result<()> {
    if uid == 0 {
        return Ok(());
    }
    match nix::unistd::fchown(fd, Some(uid.into()), Some(gid.into())) {
        // A number that the machine does not have: becoming that user is what gets refused.
        Ok(()) | Err(nix::errno::Errno::EINVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Where output comes from.
#[derive(Debug)]
pub enum Source {
    Pipe(pipe::Receiver),
    Terminal(Terminal),
}

impl Source {
    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let pipe = match self {
            Self::Terminal(terminal) => return terminal.read(buffer).await,
            Self::Pipe(pipe) => pipe,
        };
        loop {
            pipe.readable().await?;
            match pipe.try_read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }
}

/// Moves one output stream until the command's part of it is over, and what background children write after that to
/// the console log.
pub struct Pump {
    pub source: Source,
    pub kind: Kind,
    pub frames: mpsc::Sender<Bytes>,
    /// The command has ended, and whoever is left in the background is not waited for.
    pub finish: CancellationToken,
    pub console: Console,
}

impl Pump {
    /// Starts it; the answer comes when everything that the command wrote was handed on.
    pub fn start(self) -> oneshot::Receiver<()> {
        let (handed_on, receiver) = oneshot::channel();
        tokio::spawn(self.run(handed_on));
        receiver
    }

    async fn run(self, handed_on: oneshot::Sender<()>) {
        let Self { source, kind, frames, finish, console } = self;
        let mut buffer = vec![0; READ];
        let mut small_at: Option<Instant> = None;
        loop {
            if let Some(at) = small_at.take() {
                tokio::select! {
                    () = tokio::time::sleep_until(at + PIECE), if at.elapsed() < PIECE => {}
                    () = finish.cancelled() => {}
                    else => {}
                }
            }
            let read = tokio::select! {
                biased;
                () = finish.cancelled() => break,
                read = source.read(&mut buffer) => read,
            };
            let Ok(length @ 1..) = read else { return };
            deliver(&frames, &console, kind, &buffer[..length]).await;
            small_at = (length < SMALL).then(Instant::now);
        }
        match &source {
            Source::Pipe(pipe) => {
                // Exactly what is there now: a background child may go on writing for ever. Read past the event loop,
                // which may not have heard of it yet.
                let mut left = waiting_bytes(pipe);
                while left > 0 {
                    let most = left.min(READ);
                    let Ok(length @ 1..) = nix::unistd::read(pipe.as_fd(), &mut buffer[..most]) else { break };
                    left -= length;
                    deliver(&frames, &console, kind, &buffer[..length]).await;
                }
            }
            Source::Terminal(terminal) => {
                let until = Instant::now() + 40 * TERMINAL_QUIET;
                while let Ok(Ok(length @ 1..)) = tokio::time::timeout(TERMINAL_QUIET, terminal.read(&mut buffer)).await
                {
                    deliver(&frames, &console, kind, &buffer[..length]).await;
                    if Instant::now() > until {
                        break;
                    }
                }
                // Closing the terminal hangs up whoever still holds it, as a terminal does.
                return;
            }
        }
        drop(frames);
        // The command may be given up already.
        let _ = handed_on.send(());
        // A server that was left in the background must not die of a closed pipe when it writes its log.
        while let Ok(length @ 1..) = source.read(&mut buffer).await {
            console.write(Bytes::copy_from_slice(&buffer[..length])).await;
        }
    }
}

async fn deliver(frames: &mpsc::Sender<Bytes>, console: &Console, kind: Kind, bytes: &[u8]) {
    if frames.send(frame::encode(kind, bytes)).await.is_err() {
        console.write(Bytes::copy_from_slice(bytes)).await;
    }
}

fn waiting_bytes(pipe: &pipe::Receiver) -> usize {
    let mut waiting: libc::c_int = 0;
    // SAFETY: FIONREAD writes an int.
    let answer = unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &mut waiting) };
    if answer < 0 { 0 } else { usize::try_from(waiting).unwrap_or(0) }
}

/// Where input goes.
#[derive(Debug)]
pub enum Sink {
    Pipe(pipe::Sender),
    Terminal(Terminal),
    /// The command reads no more, or was told that there is no more.
    Closed,
}

impl Sink {
    /// Writes some. Nothing is lost when the future is dropped.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => loop {
                pipe.writable().await?;
                match pipe.try_write(bytes) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    written => return written,
                }
            },
            Self::Terminal(terminal) => terminal.write(bytes).await,
            Self::Closed => Ok(bytes.len()),
        }
    }

    /// What has to be written for the end of input.
    pub fn farewell(&self) -> &'static [u8] {
        if matches!(self, Self::Terminal(_)) { END_OF_INPUT } else { &[] }
    }
}
