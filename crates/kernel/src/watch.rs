//! Hints that somebody changed something, and reports of refused packets: a thread that listens to the namespaces' own
//! notifications.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{pipe2, read, write};
use tokio::sync::broadcast;
use warren_model::NetworkNumber;

use crate::Inner;
use crate::denied::{Readers, Sink};
use crate::error::KernelError;
use crate::namespace::file;
use crate::network::Network;

/// Changes come in swarms; one hint for each swarm is enough.
const GATHER: Duration = Duration::from_millis(20);

/// Refusals come in swarms, too, and every turn costs some time for each network.
const PAUSE: Duration = Duration::from_millis(2);

/// Ends the thread's wait, when a network came or went.
pub(crate) struct Waker(OwnedFd);

impl Waker {
    pub(crate) fn wake(&self) {
        // A full pipe wakes as well.
        let _ = write(&self.0, &[0]);
    }
}

/// Starts the thread; it ends with the kernel handle.
pub(crate) fn start(inner: Weak<Inner>, hints: broadcast::Sender<NetworkNumber>) -> Result<Waker, KernelError> {
    let (wakes, waker) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .map_err(|errno| file("create", std::path::Path::new("a pipe"))(errno.into()))?;
    std::thread::Builder::new()
        .name("warren-watch".to_owned())
        .spawn(move || watch(&inner, &wakes, &hints))
        .map_err(file("start", std::path::Path::new("a thread")))?;
    Ok(Waker(waker))
}

fn watch(inner: &Weak<Inner>, wakes: &OwnedFd, hints: &broadcast::Sender<NetworkNumber>) {
    let mut readers = Readers::default();
    loop {
        let (networks, sink): (Vec<Arc<Network>>, Arc<Sink>) = match inner.upgrade() {
            Some(inner) => (inner.known(), inner.denied.clone()),
            None => return,
        };
        readers.follow(&networks, &sink);
        let Some(ready) = wait(&networks, &readers, wakes) else { continue };
        for number in &ready.reporting {
            readers.read(*number, &sink);
        }
        for number in changed(&networks, &ready) {
            readers.forget_links(number);
            // Nobody listens: then nobody misses it.
            let _ = hints.send(number);
        }
        if !ready.reporting.is_empty() {
            std::thread::sleep(PAUSE);
        }
    }
}

/// What there is to read.
struct Ready {
    /// By position: networks in which something changed.
    changed: Vec<usize>,
    /// Networks that refused a packet.
    reporting: Vec<NetworkNumber>,
}

/// Waits until there is something to read, a network came or went, or a reader is to be opened again.
fn wait(networks: &[Arc<Network>], readers: &Readers, wakes: &OwnedFd) -> Option<Ready> {
    let mut waits = vec![PollFd::new(wakes.as_fd(), PollFlags::POLLIN)];
    for network in networks {
        waits.extend(network.watched().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
    }
    let reporting: Vec<NetworkNumber> = readers.watched().map(|(number, _)| number).collect();
    waits.extend(readers.watched().map(|(_, fd)| PollFd::new(fd, PollFlags::POLLIN)));
    let timeout = match readers.next_try() {
        // Rounded up, so that it is due afterwards.
        Some(at) => PollTimeout::try_from(at.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
            .unwrap_or(PollTimeout::MAX),
        None => PollTimeout::NONE,
    };
    poll(&mut waits, timeout).ok()?;
    let ready: Vec<bool> = waits.iter().map(|wait| wait.any().unwrap_or(true)).collect();
    if ready[0] {
        let mut bytes = [0u8; 64];
        while read(wakes, &mut bytes).is_ok_and(|length| length > 0) {}
    }
    let (watches, logs) = ready[1..].split_at(2 * networks.len());
    let changed = watches.chunks(2).enumerate().filter(|(_, ready)| ready.contains(&true)).map(|(at, _)| at).collect();
    let reporting = reporting.into_iter().zip(logs).filter(|(_, ready)| **ready).map(|(number, _)| number).collect();
    Some(Ready { changed, reporting })
}

fn changed(networks: &[Arc<Network>], ready: &Ready) -> Vec<NetworkNumber> {
    if ready.changed.is_empty() {
        return Vec::new();
    }
    std::thread::sleep(GATHER);
    // An operation of our own reads away its notifications before it lets go of the network.
    ready.changed.iter().map(|at| &networks[*at]).filter(|network| network.changed()).map(|n| n.number).collect()
}
