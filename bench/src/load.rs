//! A load generator for resolvers: how many questions a second does this server answer?
//!
//! One thread keeps a fixed number of questions under way on one socket and asks the next as soon as one is
//! answered, many messages per system call, so that it costs less than any server that is measured with it.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};

const BATCH: usize = 32;
const MESSAGE: usize = 512;
/// The length of a message's head (RFC 1035 §4.1.1).
const HEAD: usize = 12;
/// How long nothing may come back before everything under way counts as lost and is asked again.
const LOST: Duration = Duration::from_millis(200);

/// What to ask of whom.
#[derive(Debug, Clone)]
pub struct Load {
    pub server: SocketAddr,
    /// Names to ask for in turn, such as `worker.vm.internal`; every one has to have an A record.
    pub names: Vec<String>,
    /// Questions under way at the same time, 1 to 4096.
    pub in_flight: usize,
    pub duration: Duration,
}

/// What came back.
#[derive(Debug, Clone, Copy)]
pub struct LoadReport {
    /// Right answers.
    pub answered: u64,
    /// Answers without an address.
    pub wrong: u64,
    elapsed: Duration,
}

impl LoadReport {
    /// Right answers per second.
    pub fn per_second(&self) -> f64 {
        self.answered as f64 / self.elapsed.as_secs_f64()
    }
}

/// Asks for as long as it says. Fails when a name is not a name or the socket breaks.
pub fn measure(load: &Load) -> io::Result<LoadReport> {
    let invalid = |text| io::Error::new(io::ErrorKind::InvalidInput, text);
    let questions: Option<Vec<Vec<u8>>> = load.names.iter().map(|name| question(name)).collect();
    let questions = questions.filter(|all| !all.is_empty()).ok_or_else(|| invalid("a name is not a name"))?;
    let window = load.in_flight.clamp(1, 4096);
    let local = match load.server {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(local)?;
    socket.connect(load.server)?;
    socket.set_read_timeout(Some(LOST))?;

    let mut flight = Flight::new(window, &questions);
    let mut report = LoadReport { answered: 0, wrong: 0, elapsed: Duration::ZERO };
    let started = Instant::now();
    while started.elapsed() < load.duration {
        flight.send(&socket)?;
        flight.receive(&socket, &mut report)?;
    }
    report.elapsed = started.elapsed();
    Ok(report)
}

/// A question for the A record of a name, with an id of 0.
fn question(name: &str) -> Option<Vec<u8>> {
    let mut message = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length))?);
        message.extend(label.as_bytes());
    }
    // The root; type A, class IN.
    message.extend([0, 0, 1, 0, 1]);
    (message.len() <= MESSAGE).then_some(message)
}

/// What is under way. A slot is a question; the lower 12 bits of an id are its slot.
struct Flight<'q> {
    questions: &'q [Vec<u8>],
    next: usize,
    ids: Vec<u16>,
    free: Vec<u16>,
    out: Vec<[u8; MESSAGE]>,
    inbox: Box<[[u8; MESSAGE]; BATCH]>,
    send: MultiHeaders<SockaddrStorage>,
    receive: MultiHeaders<SockaddrStorage>,
}

impl<'q> Flight<'q> {
    fn new(window: usize, questions: &'q [Vec<u8>]) -> Self {
        Self {
            questions,
            next: 0,
            ids: (0..window as u16).collect(),
            free: (0..window as u16).collect(),
            out: vec![[0; MESSAGE]; BATCH],
            inbox: Box::new([[0; MESSAGE]; BATCH]),
            send: MultiHeaders::preallocate(BATCH, None),
            receive: MultiHeaders::preallocate(BATCH, None),
        }
    }

    /// Asks until the window is full.
    fn send(&mut self, socket: &UdpSocket) -> io::Result<()> {
        while !self.free.is_empty() {
            let count = self.free.len().min(BATCH);
            let slots = self.free.split_off(self.free.len() - count);
            let mut lengths = [0; BATCH];
            for (index, slot) in slots.iter().enumerate() {
                let question = &self.questions[self.next % self.questions.len()];
                self.next += 1;
                let id = &mut self.ids[usize::from(*slot)];
                *id = id.wrapping_add(1 << 12);
                self.out[index][..question.len()].copy_from_slice(question);
                self.out[index][..2].copy_from_slice(&id.to_be_bytes());
                lengths[index] = question.len();
            }
            let slices: Vec<_> = (0..count).map(|i| [IoSlice::new(&self.out[i][..lengths[i]])]).collect();
            let (none, addresses): ([ControlMessage<'_>; 0], _) = ([], vec![None; count]);
            let mut done = 0;
            while done < count {
                let sent = sendmmsg(
                    socket.as_raw_fd(),
                    &mut self.send,
                    &slices[done..],
                    &addresses[done..],
                    none,
                    MsgFlags::empty(),
                );
                done += sent?.count().max(1);
            }
        }
        Ok(())
    }

    /// Takes what has come, and waits for the first.
    fn receive(&mut self, socket: &UdpSocket, report: &mut LoadReport) -> io::Result<()> {
        let (mut received, mut lengths) = (0, [0; BATCH]);
        {
            let mut slices = self.inbox.each_mut().map(|buffer| [IoSliceMut::new(buffer)]);
            let flags = MsgFlags::MSG_WAITFORONE;
            match recvmmsg(socket.as_raw_fd(), &mut self.receive, &mut slices, flags, None) {
                Ok(messages) => {
                    for message in messages {
                        lengths[received] = message.bytes;
                        received += 1;
                    }
                }
                Err(Errno::EAGAIN) => {
                    self.free = (0..self.ids.len() as u16).collect();
                    return Ok(());
                }
                Err(Errno::EINTR) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        for (message, length) in self.inbox.iter().zip(lengths).take(received) {
            let id = u16::from_be_bytes([message[0], message[1]]);
            let slot = usize::from(id & 0xfff);
            if length < HEAD || self.ids.get(slot) != Some(&id) {
                continue;
            }
            // Spent: a second answer to the same question counts for nothing.
            self.ids[slot] = self.ids[slot].wrapping_add(1 << 12);
            let right = message[3] & 0xf == 0 && message[6..8] != [0, 0];
            if right {
                report.answered += 1;
            } else {
                report.wrong += 1;
            }
            self.free.push(slot as u16);
        }
        Ok(())
    }
}
