//! Messages with descriptors over a Unix stream socket.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// The longest message, in bytes: room for a network of several hundred thousand names.
pub(crate) const MAX_MESSAGE: usize = 64 << 20;
/// How many descriptors one message may bring; the kernel takes at most 253 (`SCM_MAX_FD`).
pub(crate) const MAX_DESCRIPTORS: usize = 64;
const READ: usize = 64 << 10;

/// One end of a control connection.
#[derive(Debug)]
pub(crate) struct Channel {
    stream: UnixStream,
    received: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Channel {
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, received: Vec::new(), descriptors: VecDeque::new() }
    }

    /// Sends one message. Not to be cancelled: the rest of a message that was begun has to follow.
    pub async fn send(&self, body: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let length = u32::try_from(body.len()).ok().filter(|length| *length as usize <= MAX_MESSAGE);
        let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the message is too long"))?;
        let prefix = length.to_be_bytes();
        let (mut sent, total) = (0, prefix.len() + body.len());
        while sent < total {
            let parts = [
                IoSlice::new(&prefix[sent.min(prefix.len())..]),
                IoSlice::new(&body[sent.saturating_sub(prefix.len())..]),
            ];
            let attached = if sent == 0 { descriptors } else { &[] };
            sent += self
                .stream
                .async_io(Interest::WRITABLE, || {
                    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
                    let mut control = SendAncillaryBuffer::new(&mut space);
                    if !attached.is_empty() && !control.push(SendAncillaryMessage::ScmRights(attached)) {
                        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
                    }
                    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                    Ok(sendmsg(&self.stream, &parts, &mut control, flags)?)
                })
                .await?;
        }
        Ok(())
    }

    /// The next message; `None` when the other end has closed. May be cancelled and called again.
    pub async fn receive(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some((prefix, rest)) = self.received.split_first_chunk::<4>() {
                let length = u32::from_be_bytes(*prefix) as usize;
                if length > MAX_MESSAGE {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "the message is too long"));
                }
                if rest.len() >= length {
                    let rest = self.received.split_off(4 + length);
                    let mut message = std::mem::replace(&mut self.received, rest);
                    message.drain(..4);
                    // It has the room of everything that came with it.
                    message.shrink_to_fit();
                    return Ok(Some(message));
                }
            }
            if !self.read_some().await? {
                let whole = self.received.is_empty();
                return if whole { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// The descriptors that came with the messages so far, in order; they are not kept.
    pub fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        self.descriptors.drain(..).collect()
    }

    /// Appends what has come; false at the end. Everything happens in one step after the wait, so that a caller may
    /// stop waiting.
    async fn read_some(&mut self) -> io::Result<bool> {
        let Self { stream, received, descriptors } = self;
        let read = stream.async_io(Interest::READABLE, || {
            let before = received.len();
            received.resize(before + READ, 0);
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut received[before..])];
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let result = recvmsg(&*stream, &mut parts, &mut control, flags);
            received.truncate(before + result.as_ref().map_or(0, |message| message.bytes));
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    descriptors.extend(rights);
                }
            }
            Ok(result?.bytes)
        });
        let read = read.await?;
        if descriptors.len() > MAX_DESCRIPTORS {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "too many descriptors"));
        }
        Ok(read > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[tokio::test]
    async fn messages_and_descriptors_arrive_whole_and_in_order() {
        let (left, right) = UnixStream::pair().unwrap();
        let (left, mut right) = (Channel::new(left), Channel::new(right));
        let file = tempfile::tempfile().unwrap();
        let large = vec![b'x'; 3 << 20];
        let sender = async {
            left.send(b"one", &[file.as_fd(), file.as_fd()]).await.unwrap();
            left.send(&large, &[]).await.unwrap();
            left.send(b"", &[]).await.unwrap();
            drop(left);
        };
        let receiver = async {
            assert_eq!(right.receive().await.unwrap().unwrap(), b"one");
            assert_eq!(right.take_descriptors().len(), 2);
            assert_eq!(right.receive().await.unwrap().unwrap(), large);
            assert_eq!(right.receive().await.unwrap().unwrap(), b"");
            assert!(right.take_descriptors().is_empty());
            assert!(right.receive().await.unwrap().is_none());
        };
        tokio::join!(sender, receiver);
    }

    #[tokio::test]
    async fn a_length_beyond_the_bound_is_refused_before_it_is_read() {
        let (left, right) = UnixStream::pair().unwrap();
        left.try_write(&u32::MAX.to_be_bytes()).unwrap();
        let error = Channel::new(right).receive().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_message_that_breaks_off_is_an_error() {
        let (left, right) = UnixStream::pair().unwrap();
        left.try_write(&[0, 0, 0, 9, b'x']).unwrap();
        drop(left);
        let error = Channel::new(right).receive().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_loses_nothing() {
        let (left, right) = UnixStream::pair().unwrap();
        let (left, mut right) = (Channel::new(left), Channel::new(right));
        for round in 0..50u8 {
            let none = tokio::time::timeout(std::time::Duration::from_millis(1), right.receive()).await;
            assert!(none.is_err(), "nothing was sent");
            left.send(&[round; 100], &[]).await.unwrap();
            assert_eq!(right.receive().await.unwrap().unwrap(), [round; 100]);
        }
    }
}
