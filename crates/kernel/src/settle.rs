//! Lets flows be remembered again after a change of policy, once no packet is under way that the change came upon.
//!
//! A change is in force when its transaction is through, and whoever made it goes on. Only that flows which pass are
//! looked up no more has to wait: a grace period of the kernel, which takes some milliseconds, or tens of them on a busy
//! host. So it is for a thread of its own, started when there is something to wait for, which waits once for all networks
//! that changed. What it makes current is bound to the generation that it found before it waited; whatever came later,
//! of whomever, asks anew. Where a daemon ends before, its successor finds that nothing is current, and asks.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use warren_model::NetworkNumber;

use crate::Inner;
use crate::firewall::cache;

pub(crate) struct Settler {
    inner: Weak<Inner>,
    /// To the thread, once it runs; it ends with this.
    to: Mutex<Option<Sender<NetworkNumber>>>,
}

impl Settler {
    pub(crate) fn new(inner: Weak<Inner>) -> Self {
        Self { inner, to: Mutex::new(None) }
    }

    /// Soon, flows of this network are to be remembered. Whether somebody will see to it.
    pub(crate) fn ask(&self, number: NetworkNumber) -> bool {
        let mut to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        if to.as_ref().is_some_and(|to| to.send(number).is_ok()) {
            return true;
        }
        let (sender, asked) = channel();
        let inner = self.inner.clone();
        let thread = std::thread::Builder::new().name("warren-settle".to_owned());
        // Without a thread nothing is remembered, and the next observation asks again.
        if thread.spawn(move || settle(&inner, &asked)).is_err() {
            return false;
        }
        let sent = sender.send(number).is_ok();
        *to = Some(sender);
        sent
    }
}

fn settle(inner: &Weak<Inner>, asked: &Receiver<NetworkNumber>) {
    while let Ok(first) = asked.recv() {
        let mut numbers = BTreeSet::from([first]);
        numbers.extend(asked.try_iter());
        let Some(networks) = inner.upgrade().map(|inner| inner.known()) else { return };
        let unsettled: Vec<_> = networks
            .into_iter()
            .filter(|network| numbers.contains(&network.number))
            // The wait must not keep the namespace of a network that is removed meanwhile.
            .filter_map(|network| Some((network.unsettled()?, Arc::downgrade(&network))))
            .collect();
        if unsettled.is_empty() || cache::wait_for_packets().is_err() {
            continue;
        }
        for (generation, network) in unsettled {
            if let Some(network) = network.upgrade() {
                // What failed is tried again after the next observation.
                let _ = network.operate().settle(generation);
            }
        }
    }
}
