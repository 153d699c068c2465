//! How many connections there may be, in all and from one source.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const SHARDS: usize = 16;

#[derive(Debug)]
pub(crate) struct Admission {
    most: u32,
    most_per_source: u32,
    open: AtomicU32,
    hasher: RandomState,
    sources: [Mutex<HashMap<IpAddr, u32>>; SHARDS],
}

/// An admitted connection, until it is dropped.
#[derive(Debug)]
pub(crate) struct Admitted {
    admission: Arc<Admission>,
    source: IpAddr,
}

impl Admission {
    pub fn new(most: u32, most_per_source: u32) -> Self {
        Self { most, most_per_source, open: AtomicU32::new(0), hasher: RandomState::new(), sources: Default::default() }
    }

    /// `None` where there are too many already.
    pub fn admit(self: &Arc<Self>, from: IpAddr) -> Option<Admitted> {
        let source = source(from);
        if self.open.fetch_add(1, Relaxed) >= self.most {
            self.open.fetch_sub(1, Relaxed);
            return None;
        }
        let mut shard = self.shard(source);
        let count = shard.entry(source).or_default();
        if *count >= self.most_per_source {
            drop(shard);
            self.open.fetch_sub(1, Relaxed);
            return None;
        }
        *count += 1;
        drop(shard);
        Some(Admitted { admission: self.clone(), source })
    }

    pub fn open(&self) -> u32 {
        self.open.load(Relaxed)
    }

    fn shard(&self, source: IpAddr) -> MutexGuard<'_, HashMap<IpAddr, u32>> {
        let index = self.hasher.hash_one(source) as usize % SHARDS;
        self.sources[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admitted {
    /// Whose the connection is, as it is counted.
    pub fn source(&self) -> IpAddr {
        self.source
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = self.admission.shard(self.source).entry(self.source) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
        self.admission.open.fetch_sub(1, Relaxed);
    }
}

/// Who has one IPv6 address commonly has the other 2^64 of its network, too.
fn source(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_has_too_many_does_not_keep_others_out() {
        let admission = Arc::new(Admission::new(4, 2));
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let one = admission.admit(ip("192.0.2.1")).unwrap();
        let two = admission.admit(ip("::ffff:192.0.2.1")).unwrap();
        assert!(admission.admit(ip("192.0.2.1")).is_none());
        let _three = admission.admit(ip("2001:db8::1")).unwrap();
        let _four = admission.admit(ip("2001:db8::2")).unwrap();
        assert!(admission.admit(ip("2001:db8::3")).is_none(), "the same /64");
        assert!(admission.admit(ip("192.0.2.2")).is_none(), "four in all");
        drop(one);
        assert!(admission.admit(ip("192.0.2.2")).is_some());
        drop(two);
        assert_eq!(admission.open(), 2);
        let left: usize = admission.sources.iter().map(|shard| shard.lock().unwrap().len()).sum();
        assert_eq!(left, 1, "sources without connections are forgotten");
    }
}
