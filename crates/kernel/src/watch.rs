//! Hints that somebody changed something: a thread that listens to the namespaces' own notifications.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{pipe2, read, write};
use tokio::sync::broadcast;
use warren_model::NetworkNumber;

use crate::Inner;
use crate::error::KernelError;
use crate::namespace::file;
use crate::network::Network;

/// Changes come in swarms; one hint for each swarm is enough.
const GATHER: Duration = Duration::from_millis(20);

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
    loop {
        let networks: Vec<Arc<Network>> = match inner.upgrade() {
            Some(inner) => inner.known(),
            None => return,
        };
        for number in changed(&networks, wakes) {
            // Nobody listens: then nobody misses it.
            let _ = hints.send(number);
        }
    }
}

fn changed(networks: &[Arc<Network>], wakes: &OwnedFd) -> Vec<NetworkNumber> {
    let mut waits = vec![PollFd::new(wakes.as_fd(), PollFlags::POLLIN)];
    for network in networks {
        waits.extend(network.watched().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
    }
    if poll(&mut waits, PollTimeout::NONE).is_err() {
        return Vec::new();
    }
    let ready: Vec<bool> = waits.iter().map(|wait| wait.any().unwrap_or(true)).collect();
    if ready[0] {
        let mut bytes = [0u8; 64];
        while read(wakes, &mut bytes).is_ok_and(|length| length > 0) {}
    }
    let found: Vec<&Arc<Network>> =
        networks.iter().zip(ready[1..].chunks(2)).filter(|(_, ready)| ready.contains(&true)).map(|(n, _)| n).collect();
    if found.is_empty() {
        return Vec::new();
    }
    std::thread::sleep(GATHER);
    // An operation of our own reads away its notifications before it lets go of the network.
    found.into_iter().filter(|network| network.changed()).map(|network| network.number).collect()
}
