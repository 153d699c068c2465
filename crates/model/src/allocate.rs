//! Which IPv4 address a new member gets. Pure: the caller says what is held and what time it is.
//!
//! In a network of /20 or wider each kind has a block of its own: machines from `x.x.1.10`, databases `x.x.2.10`,
//! caches `x.x.3.10`, storage `x.x.4.10`, operator sessions `x.x.5.10`. A full block grows into whole /24s from
//! `x.x.16.0` on, each used by one kind. A narrower network gives the lowest free address.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::cidr::NetworkCidr;
use crate::problem::Code;

/// How long a released address rests before it is given out again by itself.
pub const REST: SignedDuration = SignedDuration::from_mins(10);

/// Up to this prefix length a network has a block for each kind; a longer one has no room for them.
const BLOCKS_UP_TO: u8 = 20;
/// The first /24, counted from the start of the range, into which full blocks grow.
const GROWTH_BLOCK: u32 = 16;

/// What an address is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberKind {
    Machine,
    Database,
    Cache,
    Storage,
    Session,
}

impl MemberKind {
    /// The /24 of this kind, counted from the start of the range.
    fn block(self) -> u32 {
        match self {
            Self::Machine => 1,
            Self::Database => 2,
            Self::Cache => 3,
            Self::Storage => 4,
            Self::Session => 5,
        }
    }
}

/// An address that cannot be given out freely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    pub kind: MemberKind,
    /// `None` while a member holds it; the end of its rest once released.
    pub resting_until: Option<Timestamp>,
}

/// Every address of a network that is held or resting.
pub type Holds = BTreeMap<Ipv4Addr, Hold>;

/// Why no address was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    #[error("{address} is outside {cidr}")]
    Outside { address: Ipv4Addr, cidr: NetworkCidr },
    #[error("{0} is reserved: it is the network's first, second or last address")]
    Reserved(Ipv4Addr),
    #[error("{0} is taken")]
    Taken(Ipv4Addr),
    #[error("{0} has no free address left")]
    Full(NetworkCidr),
}

impl AllocateError {
    pub fn code(&self) -> Code {
        match self {
            Self::Outside { .. } => Code::AddressOutsideNetwork,
            Self::Reserved(_) => Code::AddressReserved,
            Self::Taken(_) => Code::AddressTaken,
            Self::Full(_) => Code::NetworkFull,
        }
    }
}

/// Checks an address that was asked for by name. A resting address is given: it was asked for.
pub fn check_explicit(cidr: NetworkCidr, address: Ipv4Addr, holds: &Holds) -> Result<(), AllocateError> {
    if !cidr.contains(address) {
        return Err(AllocateError::Outside { address, cidr });
    }
    if cidr.is_reserved(address) {
        return Err(AllocateError::Reserved(address));
    }
    match holds.get(&address) {
        Some(hold) if hold.resting_until.is_none() => Err(AllocateError::Taken(address)),
        _ => Ok(()),
    }
}

/// Chooses an address for a new member of this kind.
pub fn allocate(cidr: NetworkCidr, kind: MemberKind, holds: &Holds, now: Timestamp) -> Result<Ipv4Addr, AllocateError> {
    let free = |address: Ipv4Addr| {
        !cidr.is_reserved(address)
            && holds.get(&address).is_none_or(|hold| hold.resting_until.is_some_and(|until| until <= now))
    };
    if cidr.prefix_len() <= BLOCKS_UP_TO {
        let in_blocks = own_block(cidr, kind)
            .find(|address| free(*address))
            .or_else(|| growth_blocks(cidr, kind, holds).find(|address| free(*address)));
        if let Some(address) = in_blocks {
            return Ok(address);
        }
    }
    whole(cidr).find(|address| free(*address)).or_else(|| longest_rested(holds)).ok_or(AllocateError::Full(cidr))
}

fn own_block(cidr: NetworkCidr, kind: MemberKind) -> impl Iterator<Item = Ipv4Addr> {
    let start = u32::from(cidr.network()) + kind.block() * 256;
    (start + 10..=start + 254).map(Ipv4Addr::from)
}

fn growth_blocks(cidr: NetworkCidr, kind: MemberKind, holds: &Holds) -> impl Iterator<Item = Ipv4Addr> {
    let base = u32::from(cidr.network());
    let blocks = 1u32 << (24 - u32::from(cidr.prefix_len()));
    (GROWTH_BLOCK..blocks)
        .map(move |block| base + block * 256)
        .filter(move |start| {
            let block = Ipv4Addr::from(*start)..=Ipv4Addr::from(start + 255);
            holds.range(block).all(|(_, hold)| hold.kind == kind)
        })
        .flat_map(|start| (start + 1..=start + 254).map(Ipv4Addr::from))
}

fn whole(cidr: NetworkCidr) -> impl Iterator<Item = Ipv4Addr> {
    (u32::from(cidr.network())..=u32::from(cidr.broadcast())).map(Ipv4Addr::from)
}

/// Nothing else is free: the address whose rest ends first.
fn longest_rested(holds: &Holds) -> Option<Ipv4Addr> {
    holds
        .iter()
        .filter_map(|(address, hold)| hold.resting_until.map(|until| (until, *address)))
        .min()
        .map(|(_, address)| address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn held(kind: MemberKind) -> Hold {
        Hold { kind, resting_until: None }
    }

    fn resting(minutes: i64) -> Hold {
        Hold { kind: MemberKind::Machine, resting_until: Some(NOW + SignedDuration::from_mins(minutes)) }
    }

    fn give(cidr: &str, kind: MemberKind, holds: &Holds) -> String {
        allocate(cidr.parse().unwrap(), kind, holds, NOW).unwrap().to_string()
    }

    #[test]
    fn each_kind_has_its_block() {
        let none = Holds::new();
        assert_eq!(give("10.0.0.0/16", MemberKind::Machine, &none), "10.0.1.10");
        assert_eq!(give("10.0.0.0/16", MemberKind::Database, &none), "10.0.2.10");
        assert_eq!(give("10.0.0.0/16", MemberKind::Cache, &none), "10.0.3.10");
        assert_eq!(give("10.0.0.0/16", MemberKind::Storage, &none), "10.0.4.10");
        assert_eq!(give("10.0.0.0/16", MemberKind::Session, &none), "10.0.5.10");
        assert_eq!(give("192.168.10.0/24", MemberKind::Machine, &none), "192.168.10.2");
    }

    #[test]
    fn a_full_block_grows_into_a_24_of_its_own() {
        let cidr: NetworkCidr = "10.0.0.0/16".parse().unwrap();
        let mut holds: Holds = own_block(cidr, MemberKind::Machine).map(|a| (a, held(MemberKind::Machine))).collect();
        assert_eq!(give("10.0.0.0/16", MemberKind::Machine, &holds), "10.0.16.1");
        holds.insert("10.0.16.9".parse().unwrap(), held(MemberKind::Cache));
        assert_eq!(give("10.0.0.0/16", MemberKind::Machine, &holds), "10.0.17.1");
    }

    #[test]
    fn a_released_address_rests_and_then_returns() {
        let mut holds = Holds::from([("192.168.10.2".parse().unwrap(), resting(1))]);
        assert_eq!(give("192.168.10.0/24", MemberKind::Machine, &holds), "192.168.10.3");
        holds.insert("192.168.10.2".parse().unwrap(), resting(0));
        assert_eq!(give("192.168.10.0/24", MemberKind::Machine, &holds), "192.168.10.2");
    }

    #[test]
    fn a_resting_address_is_given_when_nothing_else_is_free() {
        let mut holds: Holds = (2..=6).map(|n| (Ipv4Addr::new(10, 0, 0, n), held(MemberKind::Machine))).collect();
        assert!(allocate("10.0.0.0/29".parse().unwrap(), MemberKind::Machine, &holds, NOW).is_err());
        holds.insert(Ipv4Addr::new(10, 0, 0, 4), resting(3));
        holds.insert(Ipv4Addr::new(10, 0, 0, 5), resting(2));
        assert_eq!(give("10.0.0.0/29", MemberKind::Machine, &holds), "10.0.0.5");
    }

    #[test]
    fn an_explicit_address_is_honoured_or_refused() {
        let cidr: NetworkCidr = "10.0.0.0/24".parse().unwrap();
        let holds = Holds::from([
            ("10.0.0.9".parse().unwrap(), held(MemberKind::Machine)),
            ("10.0.0.8".parse().unwrap(), resting(5)),
        ]);
        let check = |text: &str| check_explicit(cidr, text.parse().unwrap(), &holds).map_err(|e| e.code());
        assert_eq!(check("10.0.0.7"), Ok(()));
        assert_eq!(check("10.0.0.8"), Ok(()));
        assert_eq!(check("10.0.0.9"), Err(Code::AddressTaken));
        assert_eq!(check("10.0.1.1"), Err(Code::AddressOutsideNetwork));
        for reserved in ["10.0.0.0", "10.0.0.1", "10.0.0.255"] {
            assert_eq!(check(reserved), Err(Code::AddressReserved));
        }
    }

    proptest! {
        #[test]
        fn never_two_holders_and_never_outside(prefix in 18u8..=29, count in 1usize..400) {
            let cidr: NetworkCidr = format!("10.64.0.0/{prefix}").parse().unwrap();
            let mut holds = Holds::new();
            let kinds = [MemberKind::Machine, MemberKind::Database, MemberKind::Session];
            for n in 0..count {
                match allocate(cidr, kinds[n % 3], &holds, NOW) {
                    Ok(address) => {
                        prop_assert!(cidr.contains(address) && !cidr.is_reserved(address));
                        prop_assert!(holds.insert(address, held(kinds[n % 3])).is_none());
                    }
                    Err(error) => {
                        prop_assert_eq!(error, AllocateError::Full(cidr));
                        prop_assert_eq!(holds.len() as u32, cidr.capacity());
                        break;
                    }
                }
            }
        }

        #[test]
        fn a_resting_address_is_never_given_before_its_time(minutes in 1i64..10) {
            let cidr: NetworkCidr = "10.0.0.0/24".parse().unwrap();
            let holds = Holds::from([("10.0.0.2".parse().unwrap(), resting(minutes))]);
            let given = allocate(cidr, MemberKind::Machine, &holds, NOW).unwrap();
            prop_assert_ne!(given, "10.0.0.2".parse::<Ipv4Addr>().unwrap());
        }
    }
}
