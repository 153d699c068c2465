//! A pseudo-terminal (pty(7)).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use warren_model::access::TerminalSize;

/// The agent's end.
#[derive(Debug, Clone)]
pub struct Terminal(Arc<AsyncFd<OwnedFd>>);

/// Opens a terminal for a user; the second is the command's end.
pub fn open_for(uid: u32, size: TerminalSize) -> io::Result<(Terminal, OwnedFd)> {
    let ours =
        open("/dev/ptmx", OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK, Mode::empty())?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCSPTLCK reads an int; TIOCGPTPEER takes flags and returns a new descriptor, which is owned here.
    let theirs = unsafe {
        checked(libc::ioctl(ours.as_raw_fd(), libc::TIOCSPTLCK, &0))?;
        OwnedFd::from_raw_fd(checked(libc::ioctl(ours.as_raw_fd(), libc::TIOCGPTPEER, flags))?)
    };
    nix::unistd::fchown(&theirs, Some(uid.into()), None)?;
    nix::sys::stat::fchmod(&theirs, Mode::from_bits_truncate(0o620))?;
    // SAFETY: an `OwnedFd` stays open and the same until it is dropped.
    let registered = unsafe { AsyncFd::register_with_interest(ours, Interest::READABLE | Interest::WRITABLE) };
    let terminal = Terminal(Arc::new(registered?));
    terminal.resize(size)?;
    Ok((terminal, theirs))
}

impl Terminal {
    /// Says the new size to the terminal, which tells the foreground processes.
    pub fn resize(&self, size: TerminalSize) -> io::Result<()> {
        let size = libc::winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: TIOCSWINSZ reads a winsize.
        checked(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TIOCSWINSZ, &size) }).map(drop)
    }

    /// Reads some; 0 when nobody holds the other end any more.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.async_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, buffer)?)).await;
        match read {
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(0),
            read => read,
        }
    }

    /// Writes some.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, bytes)?)).await
    }
}

fn checked(answer: i32) -> io::Result<i32> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}
