//! A netlink socket stays in the namespace in which it was opened, whatever thread uses it later.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::message::{HEADER, Message};
use super::{ACK, DUMP, REQUEST};

/// `NLMSG_ERROR`, also the acknowledgement when its code is zero.
const ERROR: u16 = 2;
/// `NLMSG_DONE`.
const DONE: u16 = 3;
/// `NLM_F_DUMP_INTR`: the dump saw a change half-way.
const INTERRUPTED: u16 = 0x10;
/// `RTM_DELNEIGH`.
const NEIGHBOUR_DELETED: u16 = 29;
/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// `NFNL_SUBSYS_NFTABLES`.
const NFTABLES: u16 = 10;
/// `NFNL_BATCH_GENID`.
const BATCH_GENERATION: u16 = 1;
/// The kernel answers dumps in buffers of at most 32 KiB (`NLMSG_GOODSIZE` and `netlink_dump`).
const BUFFER: usize = 64 * 1024;
/// The kernel answers while it is being sent to, and drops what the socket has no room for: about a kilobyte for each
/// answer, of the 208 KiB of `net.core.rmem_default`.
const AT_ONCE: usize = 64;
/// An answer comes from the kernel itself, so this only guards against a hang.
const PATIENCE_SECONDS: i64 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// Links, addresses, routes, neighbours.
    Route,
    /// nftables.
    Netfilter,
}

/// A message from the kernel without its header.
pub(crate) struct Reply {
    pub(crate) payload: Vec<u8>,
}

impl Reply {
    /// What follows a fixed part of that many bytes.
    pub(crate) fn attributes(&self, fixed: usize) -> super::Attributes<'_> {
        super::Attributes(self.payload.get(fixed..).unwrap_or(&[]))
    }
}

/// Why the kernel refused a batch; nothing of it was applied.
#[derive(Debug)]
pub(crate) enum BatchError {
    /// Which messages (by position) were refused.
    Refused(Vec<(usize, Errno)>),
    /// The batch as a whole; `ERESTART` when the generation was not the expected one.
    Whole(Errno),
}

/// Requests and their answers.
pub(crate) struct Socket {
    fd: OwnedFd,
    /// What tells this socket's changes from others' in the kernel's notifications.
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
    /// How many requests were sent, and how many of them listed everything of a kind.
    #[cfg(test)]
    pub(crate) asked: (usize, usize),
}

impl Socket {
    /// Opens in the namespace of the calling thread.
    pub(crate) fn open(family: Family) -> Result<Self, Errno> {
        Self::open_small(family, BUFFER)
    }

    /// As `open`, for one that never dumps: no answer or report is longer than this, in bytes.
    pub(crate) fn open_small(family: Family, longest: usize) -> Result<Self, Errno> {
        let fd = open(family, 0, SockFlag::empty())?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE_SECONDS))?;
        let port = getsockname::<NetlinkAddr>(fd.as_raw_fd())?.pid();
        let buffer = vec![0; longest];
        Ok(Self {
            fd,
            port,
            sequence: 1,
            buffer,
            #[cfg(test)]
            asked: (0, 0),
        })
    }

    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// Sends all messages and waits for all answers, in order; a refused one does not stop the others.
    pub(crate) fn request(&mut self, messages: Vec<Message>) -> Result<Vec<Result<(), Errno>>, Errno> {
        let mut answers = Vec::with_capacity(messages.len());
        let mut messages = messages.into_iter().peekable();
        while messages.peek().is_some() {
            answers.extend(self.request_at_once(messages.by_ref().take(AT_ONCE).collect())?);
        }
        Ok(answers)
    }

    fn request_at_once(&mut self, messages: Vec<Message>) -> Result<Vec<Result<(), Errno>>, Errno> {
        let count = messages.len();
        let first = self.send(messages, REQUEST | ACK)?;
        let mut answers = vec![None; count];
        while answers.iter().any(Option::is_none) {
            self.receive(|header, payload| {
                let position = header.sequence.wrapping_sub(first) as usize;
                if header.kind == ERROR && position < count {
                    answers[position] = Some(code(payload));
                }
            })?;
        }
        Ok(answers.into_iter().flatten().collect())
    }

    /// As `request`, but the first refusal is the result.
    pub(crate) fn apply(&mut self, messages: Vec<Message>) -> Result<(), Errno> {
        self.request(messages)?.into_iter().collect()
    }

    /// Asks for one thing.
    pub(crate) fn get(&mut self, message: Message) -> Result<Reply, Errno> {
        let first = self.send(vec![message], REQUEST)?;
        let mut answer = None;
        while answer.is_none() {
            self.receive(|header, payload| {
                if header.sequence == first {
                    answer = Some(match header.kind {
                        ERROR => Err(code(payload).err().unwrap_or(Errno::ENODATA)),
                        _ => Ok(Reply { payload: payload.to_vec() }),
                    });
                }
            })?;
        }
        answer.unwrap_or(Err(Errno::ENODATA))
    }

    /// Asks for everything of a kind; asks again when something changed meanwhile.
    pub(crate) fn dump(&mut self, message: Message) -> Result<Vec<Reply>, Errno> {
        for _ in 0..16 {
            let (mut replies, mut end, mut interrupted) = (Vec::new(), None, false);
            let first = self.send(vec![message.clone()], REQUEST | DUMP)?;
            while end.is_none() {
                self.receive(|header, payload| {
                    if header.sequence != first {
                        return;
                    }
                    interrupted |= header.flags & INTERRUPTED != 0;
                    match header.kind {
                        DONE | ERROR => end = Some(code(payload)),
                        _ => replies.push(Reply { payload: payload.to_vec() }),
                    }
                })?;
            }
            match end {
                Some(Err(Errno::EINTR)) => continue,
                Some(Err(errno)) => return Err(errno),
                _ if interrupted => continue,
                _ => return Ok(replies),
            }
        }
        Err(Errno::EINTR)
    }

    /// Applies nftables messages as one transaction, only if the generation is still the expected one (when given).
    pub(crate) fn batch(&mut self, generation: Option<u32>, mut messages: Vec<Message>) -> Result<(), BatchError> {
        let count = messages.len();
        let Some(last) = messages.last_mut() else { return Ok(()) };
        // A success is silent unless asked for: the last message's answer ends the wait.
        last.add_flags(ACK);
        let fixed = [0, 0, 0, NFTABLES as u8];
        let mut begin = Message::new(BATCH_BEGIN, 0, &fixed);
        if let Some(generation) = generation {
            begin = begin.put(BATCH_GENERATION, &generation.to_be_bytes());
        }
        messages.insert(0, begin);
        messages.push(Message::new(BATCH_END, 0, &fixed));
        let first = self.send(messages, REQUEST).map_err(BatchError::Whole)?;
        let (mut refused, mut whole, mut done) = (Vec::new(), None, false);
        while !done {
            self.receive(|header, payload| {
                let position = header.sequence.wrapping_sub(first) as usize;
                if header.kind != ERROR || position > count + 1 {
                    return;
                }
                match code(payload) {
                    Err(errno) if position == 0 || position > count => {
                        whole = Some(errno);
                        done = true;
                    }
                    Err(errno) => refused.push((position - 1, errno)),
                    Ok(()) => {}
                }
                done |= position == count;
            })
            .map_err(BatchError::Whole)?;
        }
        match whole {
            Some(errno) => Err(BatchError::Whole(errno)),
            None if refused.is_empty() => Ok(()),
            None => Err(BatchError::Refused(refused)),
        }
    }

    /// Reads one datagram of what the kernel reports by itself, each message with its kind and payload.
    ///
    /// # Errors
    /// `EAGAIN` when nothing waits; `ENOBUFS` once after something did not fit into the socket.
    pub(crate) fn receive_waiting(&mut self, mut each: impl FnMut(u16, &[u8])) -> Result<(), Errno> {
        self.receive_with(MsgFlags::MSG_DONTWAIT, |header, payload| each(header.kind, payload))
    }

    /// How many bytes may wait to be read.
    pub(crate) fn make_room(&self, bytes: usize) -> Result<(), Errno> {
        setsockopt(&self.fd, sockopt::RcvBufForce, &bytes)
    }

    fn send(&mut self, messages: Vec<Message>, flags: u16) -> Result<u32, Errno> {
        #[cfg(test)]
        {
            self.asked.0 += messages.len();
            self.asked.1 += usize::from(flags & DUMP != 0);
        }
        let first = self.sequence;
        let mut bytes = Vec::new();
        for mut message in messages {
            message.add_flags(flags);
            bytes.extend(message.finish(self.sequence));
            self.sequence = self.sequence.wrapping_add(1);
        }
        if bytes.len() > BUFFER {
            // The default send buffer holds about 200 KiB; only a whole network's elements exceed it.
            setsockopt(&self.fd, sockopt::SndBufForce, &(bytes.len() * 2))?;
        }
        sendto(self.fd.as_raw_fd(), &bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        Ok(first)
    }

    fn receive(&mut self, each: impl FnMut(Header, &[u8])) -> Result<(), Errno> {
        self.receive_with(MsgFlags::empty(), each)
    }

    fn receive_with(&mut self, flags: MsgFlags, mut each: impl FnMut(Header, &[u8])) -> Result<(), Errno> {
        let length = loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, flags) {
                Err(Errno::EINTR) => continue,
                other => break other?,
            }
        };
        let mut rest = &self.buffer[..length];
        while let Some((header, payload, after)) = split(rest) {
            each(header, payload);
            rest = after;
        }
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What a [`Watch`] read away.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Reported {
    pub(crate) any: bool,
    /// Any of it was somebody else's doing, or followed from something else.
    pub(crate) by_others: bool,
}

/// A socket that only listens for changes.
pub(crate) struct Watch {
    fd: OwnedFd,
}

impl Watch {
    /// Opens in the namespace of the calling thread; `groups` is a bit mask of multicast groups (`1 << (group - 1)`).
    pub(crate) fn open(family: Family, groups: u32) -> Result<Self, Errno> {
        Ok(Self { fd: open(family, groups, SockFlag::SOCK_NONBLOCK)? })
    }

    /// Reads away what was reported. An overrun counts as a change by others.
    ///
    /// `own` is the [`port`](Socket::port) of the socket whose changes are our own. The kernel tells of a neighbour that
    /// is deleted twice, first in the name of whoever asked for it and then in its own; or a link went down with it, and
    /// is told of, too. So the second telling is nobody's.
    pub(crate) fn drain(&self, own: u32) -> Reported {
        let mut reported = Reported::default();
        let mut header = [0u8; HEADER];
        loop {
            match recv(self.fd.as_raw_fd(), &mut header, MsgFlags::empty()) {
                Ok(length) => {
                    let port = header[..length].get(12..).and_then(super::native32);
                    let kind = u16::from_ne_bytes([header[4], header[5]]);
                    reported.any = true;
                    reported.by_others |= port != Some(own) && (kind, port) != (NEIGHBOUR_DELETED, Some(0));
                }
                Err(Errno::ENOBUFS) => reported = Reported { any: true, by_others: true },
                Err(Errno::EINTR) => {}
                Err(_) => return reported,
            }
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[derive(Clone, Copy)]
struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
}

fn open(family: Family, groups: u32, flags: SockFlag) -> Result<OwnedFd, Errno> {
    let protocol = match family {
        Family::Route => SockProtocol::NetlinkRoute,
        Family::Netfilter => SockProtocol::NetlinkNetFilter,
    };
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags | SockFlag::SOCK_CLOEXEC, protocol)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(fd)
}

fn split(bytes: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let length = super::native32(bytes)? as usize;
    let payload = bytes.get(HEADER..length)?;
    let half = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let header =
        Header { kind: half(4)?, flags: half(6)?, sequence: u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?) };
    Some((header, payload, bytes.get(length.next_multiple_of(4)..).unwrap_or(&[])))
}

fn code(payload: &[u8]) -> Result<(), Errno> {
    match payload.get(..4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes) {
        None | Some(0) => Ok(()),
        Some(negative) => Err(Errno::from_raw(negative.wrapping_neg())),
    }
}
