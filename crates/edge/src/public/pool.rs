//! The sockets by which the public side reaches the machines of one network.
//!
//! They were made in the network's own namespace, where the edge cannot make any. A TCP socket can be used again:
//! connecting it to an address of no family ends its connection and forgets all of it (connect(2), `tcp_disconnect` in
//! the kernel). So they are not used up while the daemon is dead. How many there are is how many connections the network
//! has at once, unused ones among them; the ingress closes those for new ones where there is no socket left.

use std::io;
use std::net::{SocketAddrV4, TcpStream as StdTcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, connect, connect_unspec, sockopt};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit, TryAcquireError};
use tokio::time::timeout;

/// How long a patient connection waits for a socket when all are in use.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a machine may take to close what is closed here, and how much it may still send, in bytes. Without it the
/// kernel would tell the machine that the connection broke, and throw away what is on its way.
const FAREWELL: Duration = Duration::from_millis(500);
const LAST_WORDS: usize = 256 << 10;
/// Bytes that wait in a socket, either way. The kernel doubles it for its own records (socket(7)).
const WAITING: usize = 128 << 10;

/// How the sockets of one network are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolStatus {
    /// How many there are.
    pub sockets: usize,
    /// How many of them were in use at most.
    pub most_used: usize,
}

/// Sockets that can be used, and are set up for it.
#[derive(Debug)]
pub(crate) struct Prepared(Vec<OwnedFd>);

impl Prepared {
    /// Of sockets of TCP over IPv4. Takes a few system calls for each.
    pub fn new(sockets: Vec<OwnedFd>) -> io::Result<Self> {
        sockets.iter().try_for_each(prepare)?;
        Ok(Self(sockets))
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }
}

#[derive(Debug)]
pub(crate) struct Pool {
    free: Semaphore,
    state: Mutex<State>,
    /// Where connections say farewell.
    runtime: Handle,
}

#[derive(Debug, Default)]
struct State {
    /// As many as `free` has permits, but for those who hold one and have not come for their socket yet.
    free: Vec<OwnedFd>,
    status: PoolStatus,
    closed: bool,
}

impl Pool {
    pub fn new(runtime: Handle) -> Arc<Self> {
        Arc::new(Self { free: Semaphore::new(0), state: Mutex::default(), runtime })
    }

    pub fn add(&self, Prepared(sockets): Prepared) {
        let mut state = self.state();
        let count = sockets.len();
        state.status.sockets += count;
        state.free.extend(sockets);
        drop(state);
        self.free.add_permits(count);
    }

    pub fn status(&self) -> PoolStatus {
        self.state().status
    }

    /// Nothing connects any more; what is open goes on until it is dropped, and its socket is closed then.
    pub fn close(&self) {
        self.free.close();
        let mut state = self.state();
        state.closed = true;
        state.free.clear();
        state.status.sockets = 0;
    }

    /// Connects to a machine. The socket is free again when the connection, or this future, is dropped.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] when no socket is free.
    pub async fn connect(self: Arc<Self>, to: SocketAddrV4) -> io::Result<Connection> {
        let permit = self.free.try_acquire().map_err(|error| match error {
            TryAcquireError::NoPermits => io::Error::from(io::ErrorKind::ResourceBusy),
            TryAcquireError::Closed => gone(),
        })?;
        self.connect_with(permit, to).await
    }

    /// The same, but where no socket is free one is waited for, a second at most.
    pub async fn connect_patiently(self: Arc<Self>, to: SocketAddrV4) -> io::Result<Connection> {
        let permit = timeout(PATIENCE, self.free.acquire()).await.map_err(|_| io::ErrorKind::ResourceBusy)?;
        self.connect_with(permit.map_err(|_| gone())?, to).await
    }

    async fn connect_with(self: &Arc<Self>, permit: SemaphorePermit<'_>, to: SocketAddrV4) -> io::Result<Connection> {
        let socket = {
            let mut state = self.state();
            let socket = state.free.pop().ok_or_else(gone)?;
            let used = state.status.sockets.saturating_sub(state.free.len());
            state.status.most_used = state.status.most_used.max(used);
            socket
        };
        // It comes back with the socket.
        permit.forget();
        let begun = match connect(&socket, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(()),
            Err(errno) => Err(errno),
        };
        if let Err(errno) = begun {
            self.take_back(socket);
            return Err(errno.into());
        }
        // A descriptor that epoll cannot take is lost, and counted as such.
        let stream = TcpStream::from_std(StdTcpStream::from(socket)).inspect_err(|_| self.lose())?;
        let mut connection = Connection { stream: Some(stream), pool: self.clone(), open: false };
        let stream = connection.stream_mut()?;
        stream.writable().await?;
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        connection.open = true;
        Ok(connection)
    }

    /// Ends the connection of a socket and keeps it for the next one.
    fn take_back(&self, socket: OwnedFd) {
        let forgotten = forget(&socket);
        let mut state = self.state();
        if state.closed {
            return;
        }
        if let Err(error) = forgotten {
            drop(state);
            tracing::warn!(%error, "a socket to machines cannot be used again");
            return self.lose();
        }
        state.free.push(socket);
        drop(state);
        self.free.add_permits(1);
    }

    fn lose(&self) {
        let mut state = self.state();
        state.status.sockets = state.status.sockets.saturating_sub(1);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn prepare(socket: &OwnedFd) -> io::Result<()> {
    let fits = sockopt::socket_type(socket)? == SocketType::STREAM
        && sockopt::socket_domain(socket)? == AddressFamily::INET
        && !sockopt::socket_acceptconn(socket)?;
    if !fits {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no TCP socket for IPv4"));
    }
    rustix::io::ioctl_fionbio(socket, true)?;
    // Small writes are not delayed.
    sockopt::set_tcp_nodelay(socket, true)?;
    // What a client does not take waits with the machine, and not in the host's memory.
    sockopt::set_socket_recv_buffer_size(socket, WAITING)?;
    sockopt::set_socket_send_buffer_size(socket, WAITING)?;
    Ok(())
}

fn gone() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

/// Ends what is left of a connection at once, and forgets what it left unread.
fn forget(socket: &OwnedFd) -> io::Result<()> {
    connect_unspec(socket.as_fd())?;
    // That the connection was cut is told once, and would be told to the next one.
    let _ = sockopt::socket_error(socket)?;
    Ok(())
}

/// A connection to a machine.
#[derive(Debug)]
pub(crate) struct Connection {
    /// `None` once it is over.
    stream: Option<TcpStream>,
    pool: Arc<Pool>,
    open: bool,
}

impl Connection {
    fn stream_mut(&mut self) -> io::Result<&mut TcpStream> {
        self.stream.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn stream(self: Pin<&mut Self>) -> io::Result<Pin<&mut TcpStream>> {
        self.get_mut().stream_mut().map(Pin::new)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let Some(stream) = self.stream.take() else { return };
        let pool = self.pool.clone();
        match self.open {
            true => drop(self.pool.runtime.spawn(farewell(stream, pool))),
            false => give_back(stream, &pool),
        }
    }
}

async fn farewell(mut stream: TcpStream, pool: Arc<Pool>) {
    let rest = async {
        stream.shutdown().await?;
        let mut left = LAST_WORDS;
        let mut scratch = vec![0; 16 << 10];
        while left > 0 {
            match stream.read(&mut scratch).await? {
                0 => break,
                read => left = left.saturating_sub(read),
            }
        }
        Ok::<_, io::Error>(())
    };
    // How it ended is of no more interest.
    let _ = timeout(FAREWELL, rest).await;
    give_back(stream, &pool);
}

fn give_back(stream: TcpStream, pool: &Pool) {
    match stream.into_std() {
        Ok(stream) => pool.take_back(stream.into()),
        Err(_) => pool.lose(),
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(cx)
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
