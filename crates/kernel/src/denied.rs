//! Refused packets, as the kernel reports them: the rules log them to a group of `nfnetlink_log`, one socket for each
//! network reads that group, and whoever asked gets them as [`DeniedPacket`]s.
//!
//! The rules limit how many packets of a member are logged, and count all of them; what is lost here is lost for the
//! record of single refusals only. One socket at a time may read a network's group: another daemon's turn comes when
//! the first one ends.

mod headers;
mod reader;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tokio::sync::mpsc;
use warren_model::{MacAddress, NetworkNumber};

pub use headers::{Headers, parse};
pub(crate) use reader::headers_in_report;

use crate::firewall::Refusal;
use crate::network::Network;
use reader::Reader;

/// How many packets may wait for a slow receiver.
const WAITING: usize = 4096;
/// When a group that could not be read is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// A packet that the rules of a network refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeniedPacket {
    pub network: NetworkNumber,
    pub kind: Refusal,
    pub source: IpAddr,
    pub destination: IpAddr,
    /// By the IANA registry of protocol numbers; of IPv6, what follows the extension headers.
    pub protocol: u8,
    /// `None` for protocols without ports, and for a fragment that is not the first.
    pub source_port: Option<u16>,
    pub destination_port: Option<u16>,
    /// The link in the router namespace by which it came; `None` when there is none or it is gone.
    pub inbound: Option<String>,
    /// The MAC that it came from on that link.
    pub mac: Option<MacAddress>,
}

/// What [`Kernel::denied`](crate::Kernel::denied) does not report.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeniedLosses {
    /// Packets that came faster than they were read, since this handle was made.
    pub overrun: u64,
    /// Packets that the receiver had no room for.
    pub dropped: u64,
    /// Reports that could not be understood, or are not of a rule of ours.
    pub malformed: u64,
    /// The networks whose reports cannot be read at the moment, and why; tried again every second.
    pub unread: BTreeMap<NetworkNumber, String>,
}

/// Where the packets go, and what is lost on the way.
#[derive(Default)]
pub(crate) struct Sink {
    sender: Mutex<Option<mpsc::Sender<DeniedPacket>>>,
    overrun: AtomicU64,
    dropped: AtomicU64,
    malformed: AtomicU64,
    unread: Mutex<BTreeMap<NetworkNumber, Errno>>,
}

impl Sink {
    /// Everything goes to this receiver from now on; an earlier one gets nothing more.
    pub(crate) fn open(&self) -> mpsc::Receiver<DeniedPacket> {
        let (sender, receiver) = mpsc::channel(WAITING);
        *lock(&self.sender) = Some(sender);
        receiver
    }

    pub(crate) fn losses(&self) -> DeniedLosses {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DeniedLosses {
            overrun: count(&self.overrun),
            dropped: count(&self.dropped),
            malformed: count(&self.malformed),
            unread: lock(&self.unread).iter().map(|(network, errno)| (*network, describe(*errno))).collect(),
        }
    }

    fn is_wanted(&self) -> bool {
        lock(&self.sender).as_ref().is_some_and(|sender| !sender.is_closed())
    }

    fn take(&self, packet: DeniedPacket) {
        let sent = lock(&self.sender).as_ref().map(|sender| sender.try_send(packet));
        if let Some(Err(mpsc::error::TrySendError::Full(_))) = sent {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn describe(errno: Errno) -> String {
    match errno {
        // EPERM is what the kernel says to a socket that is not the group's owner.
        Errno::EBUSY | Errno::EEXIST | Errno::EPERM => "another process reads them".to_owned(),
        other => other.desc().to_owned(),
    }
}

/// The open readers, in the thread that polls them.
#[derive(Default)]
pub(crate) struct Readers {
    slots: BTreeMap<NetworkNumber, Slot>,
}

struct Slot {
    network: Arc<Network>,
    state: Result<Reader, Instant>,
}

impl Readers {
    /// Opens and closes, so that these networks, in the order of their numbers, are read while somebody wants it.
    pub(crate) fn follow(&mut self, networks: &[Arc<Network>], sink: &Sink) {
        if !sink.is_wanted() {
            if !self.slots.is_empty() {
                self.slots.clear();
                lock(&sink.unread).clear();
            }
            return;
        }
        let now = Instant::now();
        self.slots.retain(|number, slot| {
            let at = networks.binary_search_by_key(number, |network| network.number);
            at.is_ok_and(|at| Arc::ptr_eq(&networks[at], &slot.network))
        });
        lock(&sink.unread).retain(|number, _| self.slots.contains_key(number));
        for network in networks {
            let number = network.number;
            match self.slots.get(&number).map(|slot| &slot.state) {
                Some(Ok(_)) => continue,
                Some(Err(again)) if *again > now => continue,
                _ => {}
            }
            let state = match Reader::open(network.inside()) {
                Ok(reader) => {
                    lock(&sink.unread).remove(&number);
                    Ok(reader)
                }
                Err(errno) => {
                    lock(&sink.unread).insert(number, errno);
                    Err(now + RETRY)
                }
            };
            self.slots.insert(number, Slot { network: network.clone(), state });
        }
    }

    /// What to poll for reading.
    pub(crate) fn watched(&self) -> impl Iterator<Item = (NetworkNumber, std::os::fd::BorrowedFd<'_>)> {
        use std::os::fd::AsFd;
        self.slots.iter().filter_map(|(number, slot)| Some((*number, slot.state.as_ref().ok()?.as_fd())))
    }

    /// When to call `follow` again at the latest.
    pub(crate) fn next_try(&self) -> Option<Instant> {
        self.slots.values().filter_map(|slot| slot.state.as_ref().err()).min().copied()
    }

    /// Reads what one network reported, up to a limit: the others get their turn before the rest.
    pub(crate) fn read(&mut self, number: NetworkNumber, sink: &Sink) {
        let Some(slot) = self.slots.get_mut(&number) else { return };
        let Ok(reader) = &mut slot.state else { return };
        match reader.read(number, |packet| sink.take(packet)) {
            Ok(losses) => {
                sink.overrun.fetch_add(losses.overrun, Ordering::Relaxed);
                sink.malformed.fetch_add(losses.malformed, Ordering::Relaxed);
            }
            Err(errno) => {
                lock(&sink.unread).insert(number, errno);
                slot.state = Err(Instant::now() + RETRY);
            }
        }
    }

    /// Links of the network came, went or were renamed.
    pub(crate) fn forget_links(&mut self, number: NetworkNumber) {
        if let Some(Slot { state: Ok(reader), .. }) = self.slots.get_mut(&number) {
            reader.forget_links();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each is replaced or changed by single insertions and removals, so that it is whole after a panic, too.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
