//! DNS over UDP: one task per socket, many messages per system call.

use std::cell::RefCell;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, SockaddrIn6, SockaddrLike, recvmmsg, sendmmsg};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use crate::dns::answer::Outcome;
use crate::dns::limit::FairShare;
use crate::dns::stats::QueryCounters;
use crate::dns::wire::MAX_UDP;
use crate::dns::{forward, listed};
use crate::network::Network;

/// Messages per system call.
const BATCH: usize = 32;
/// The longest question that is read, in bytes; a longer one is not a question that anybody asks over UDP.
const MAX_QUESTION: usize = 1500;
/// Full batches that a socket may take before the other tasks of the thread get their turn.
const ROUNDS: usize = 8;

pub(crate) async fn serve_v4(network: Arc<Network>, socket: UdpSocket) {
    serve::<SockaddrIn>(network, socket).await
}

pub(crate) async fn serve_v6(network: Arc<Network>, socket: UdpSocket) {
    serve::<SockaddrIn6>(network, socket).await
}

async fn serve<S: Peer>(network: Arc<Network>, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let mut share = FairShare::default();
    let mut lookups = JoinSet::new();
    'ready: loop {
        if socket.readable().await.is_err() {
            return;
        }
        while lookups.try_join_next().is_some() {}
        for _ in 0..ROUNDS {
            let mut forward = Vec::new();
            let round = socket.try_io(Interest::READABLE, || {
                S::with_batch(|batch| batch.round(&network, socket.as_raw_fd(), &mut share, &mut forward))
            });
            for (peer, packet) in forward {
                let (network, socket) = (network.clone(), socket.clone());
                lookups.spawn(async move {
                    if let Some(answer) = forward::answer(network, peer.ip(), packet, true).await {
                        // A lost answer is asked for again.
                        let _ = socket.send_to(&answer, peer).await;
                    }
                });
            }
            match round {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue 'ready,
                Err(error) => {
                    tracing::warn!(network = %network.number, %error, "a DNS socket could not be read");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue 'ready;
                }
            }
        }
        tokio::task::yield_now().await;
    }
}

/// The address type of a socket's peers.
trait Peer: SockaddrLike + Copy + 'static {
    fn address(&self) -> SocketAddr;
    /// Lends the thread's buffers; they are shared by all sockets of the family that the thread serves.
    fn with_batch<R>(action: impl FnOnce(&mut Batch<Self>) -> R) -> R;
}

impl Peer for SockaddrIn {
    fn address(&self) -> SocketAddr {
        SocketAddr::V4((*self).into())
    }

    fn with_batch<R>(action: impl FnOnce(&mut Batch<Self>) -> R) -> R {
        thread_local!(static BUFFERS: RefCell<Batch<SockaddrIn>> = RefCell::new(Batch::new()));
        BUFFERS.with_borrow_mut(action)
    }
}

impl Peer for SockaddrIn6 {
    fn address(&self) -> SocketAddr {
        SocketAddr::V6((*self).into())
    }

    fn with_batch<R>(action: impl FnOnce(&mut Batch<Self>) -> R) -> R {
        thread_local!(static BUFFERS: RefCell<Batch<SockaddrIn6>> = RefCell::new(Batch::new()));
        BUFFERS.with_borrow_mut(action)
    }
}

struct Batch<S> {
    receive: MultiHeaders<S>,
    send: MultiHeaders<S>,
    questions: Box<[[u8; MAX_QUESTION]; BATCH]>,
    answers: Box<[[u8; MAX_UDP]; BATCH]>,
}

impl<S: Peer> Batch<S> {
    fn new() -> Self {
        Self {
            receive: MultiHeaders::preallocate(BATCH, None),
            send: MultiHeaders::preallocate(BATCH, None),
            questions: Box::new([[0; MAX_QUESTION]; BATCH]),
            answers: Box::new([[0; MAX_UDP]; BATCH]),
        }
    }

    /// Reads a batch, answers what can be answered here, and adds the rest to `forward`.
    ///
    /// Says that the socket would block when it gave less than a batch: it is empty then, and finding that out again
    /// would cost a system call for every question that comes alone.
    fn round(
        &mut self,
        network: &Network,
        socket: RawFd,
        share: &mut FairShare,
        forward: &mut Vec<(SocketAddr, Vec<u8>)>,
    ) -> io::Result<()> {
        let (mut read, mut received) = (0, [None; BATCH]);
        {
            let mut slices = self.questions.each_mut().map(|buffer| [IoSliceMut::new(buffer)]);
            let messages = recvmmsg(socket, &mut self.receive, &mut slices, MsgFlags::MSG_DONTWAIT, None)?;
            for (slot, message) in received.iter_mut().zip(messages) {
                read += 1;
                let whole = !message.flags.contains(MsgFlags::MSG_TRUNC);
                *slot = message.address.filter(|_| whole).map(|peer| (message.bytes, peer));
            }
        }
        let now = Instant::now();
        let (zone, outside) = (network.zone.load(), network.outside.load());
        let mut counted = QueryCounters { received: read as u64, ..Default::default() };
        let (mut replies, mut lengths, mut peers) = (0, [0; BATCH], [None; BATCH]);
        for (slot, question) in received[..read].iter().zip(self.questions.iter()) {
            let Some((length, peer)) = *slot else {
                counted.malformed += 1;
                continue;
            };
            let address = peer.address();
            if !share.admit(address.ip(), now) {
                counted.limited += 1;
                continue;
            }
            let packet = &question[..length];
            let buffer = &mut self.answers[replies];
            match listed::respond(network, (&zone, &outside), address.ip(), packet, buffer, true) {
                Outcome::Reply { length, kind } => {
                    counted.count(kind);
                    lengths[replies] = length;
                    peers[replies] = Some(peer);
                    replies += 1;
                }
                Outcome::Forward | Outcome::Outside => forward.push((address, packet.to_vec())),
                Outcome::Ignore => counted.malformed += 1,
            }
        }
        network.stats.add(&counted);
        self.send(socket, &lengths[..replies], &peers[..replies]);
        if read < BATCH { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    }

    /// Sends the first answers; what the socket does not take at once is lost, as UDP may lose anything.
    fn send(&mut self, socket: RawFd, lengths: &[usize], peers: &[Option<S>]) {
        let slices: [[IoSlice<'_>; 1]; BATCH] = std::array::from_fn(|index| {
            [IoSlice::new(&self.answers[index][..lengths.get(index).copied().unwrap_or(0)])]
        });
        let mut done = 0;
        while done < lengths.len() {
            let waiting = &slices[done..lengths.len()];
            let none: [nix::sys::socket::ControlMessage<'_>; 0] = [];
            match sendmmsg(socket, &mut self.send, waiting, &peers[done..], none, MsgFlags::MSG_DONTWAIT) {
                Ok(sent) => done += sent.count().max(1),
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                // This peer cannot be reached; the others can.
                Err(_) => done += 1,
            }
        }
    }
}
