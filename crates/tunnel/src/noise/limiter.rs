//! How many handshakes one address gets under load.

use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv6Addr};

/// Handshakes a second, as in Linux.
const PER_SECOND: u64 = 20;
const BURST: u64 = 5;
/// Milliseconds that one handshake costs.
const COST: u64 = 1000 / PER_SECOND;
const SLOTS: usize = 4096;

/// Token buckets in a table of a fixed size. Addresses that share a place share a bucket; which ones do, nobody
/// outside can tell.
pub struct Limiter {
    /// For each place, until when what it took is paid off, in milliseconds.
    paid: Box<[u64]>,
    hasher: RandomState,
}

impl Limiter {
    pub fn new() -> Self {
        Self { paid: vec![0; SLOTS].into(), hasher: RandomState::new() }
    }

    pub fn admits(&mut self, from: IpAddr, now: u64) -> bool {
        // Whoever has one IPv6 address has all that share its first half.
        let from = match from {
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) >> 64 << 64)),
            v4 => v4,
        };
        let place = self.hasher.hash_one(from) as usize % SLOTS;
        let paid = self.paid[place].max(now);
        if paid + COST > now + BURST * COST {
            return false;
        }
        self.paid[place] = paid + COST;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_gets_a_burst_and_then_its_share() {
        let mut limiter = Limiter::new();
        let from = IpAddr::from([192, 0, 2, 1]);
        let passed = (0..100).filter(|_| limiter.admits(from, 1000)).count();
        assert_eq!(passed, 5);
        let passed = (1000..2000).filter(|now| limiter.admits(from, *now)).count();
        assert_eq!(passed, 19, "20 a second, of which the burst took the first");
    }
}
