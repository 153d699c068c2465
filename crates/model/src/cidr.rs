//! The address ranges of a network.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::address::{MemberNumber, NetworkNumber};
use crate::problem::Code;

/// The ranges a network's IPv4 CIDR may lie in: RFC 1918 §3 and RFC 6598 §7.
pub const PRIVATE_RANGES: [&str; 4] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"];

/// The widest prefix a network may have.
pub const WIDEST: u8 = 8;
/// The narrowest prefix a network may have.
pub const NARROWEST: u8 = 29;

/// Why a text is not the CIDR of a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    #[error("{0:?} is not an IPv4 CIDR: write it like 192.168.10.0/24")]
    Malformed(String),
    #[error("{given} has bits set after its prefix: write {meant}")]
    HostBits { given: Ipv4Net, meant: Ipv4Net },
    #[error("{0} is not private: choose a range inside 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or 100.64.0.0/10")]
    NotPrivate(Ipv4Net),
    #[error("{0} is too wide: choose a prefix from /8 to /29")]
    TooWide(Ipv4Net),
    #[error("{0} is too narrow: choose a prefix from /8 to /29")]
    TooNarrow(Ipv4Net),
}

impl CidrError {
    pub fn code(&self) -> Code {
        match self {
            Self::Malformed(_) | Self::HostBits { .. } => Code::CidrMalformed,
            Self::NotPrivate(_) => Code::CidrNotPrivate,
            Self::TooWide(_) => Code::CidrTooWide,
            Self::TooNarrow(_) => Code::CidrTooNarrow,
        }
    }
}

/// The private IPv4 range of a network, from /8 to /29.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NetworkCidr(Ipv4Net);

impl NetworkCidr {
    /// 10.0.0.0/16: the range of an account's network `default`.
    pub fn default_range() -> Self {
        Self(Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 16))
    }

    pub fn net(&self) -> Ipv4Net {
        self.0
    }

    pub fn prefix_len(&self) -> u8 {
        self.0.prefix_len()
    }

    /// The first usable address: DNS and, later, the proxy answer there.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.0.network()) + 1)
    }

    pub fn network(&self) -> Ipv4Addr {
        self.0.network()
    }

    pub fn broadcast(&self) -> Ipv4Addr {
        self.0.broadcast()
    }

    pub fn contains(&self, address: Ipv4Addr) -> bool {
        self.0.contains(&address)
    }

    /// Addresses that no member may hold: the network's own, the gateway and the broadcast address.
    pub fn is_reserved(&self, address: Ipv4Addr) -> bool {
        address == self.network() || address == self.gateway() || address == self.broadcast()
    }

    /// How many members the range can hold.
    pub fn capacity(&self) -> u32 {
        (1u32 << (32 - u32::from(self.0.prefix_len()))) - 3
    }

    /// Whether the two ranges share an address.
    pub fn overlaps(&self, other: Ipv4Net) -> bool {
        self.0.contains(&other.network()) || other.contains(&self.0.network())
    }
}

impl fmt::Display for NetworkCidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for NetworkCidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let given: Ipv4Net = text.parse().map_err(|_| CidrError::Malformed(text.chars().take(64).collect()))?;
        if given.trunc() != given {
            return Err(CidrError::HostBits { given, meant: given.trunc() });
        }
        if given.prefix_len() < WIDEST {
            return Err(CidrError::TooWide(given));
        }
        let private =
            PRIVATE_RANGES.iter().filter_map(|range| range.parse::<Ipv4Net>().ok()).any(|range| range.contains(&given));
        if !private {
            return Err(CidrError::NotPrivate(given));
        }
        if given.prefix_len() > NARROWEST {
            return Err(CidrError::TooNarrow(given));
        }
        Ok(Self(given))
    }
}

impl Serialize for NetworkCidr {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NetworkCidr {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The /48 of unique local addresses (RFC 4193) of one installation.
///
/// The 40 bits of the global id are random. A network's range is the /80 made of this prefix, the network's number
/// as the subnet id and 16 zero bits; a member's address ends in its 32-bit number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UlaPrefix([u8; 5]);

impl UlaPrefix {
    pub fn from_random(global_id: [u8; 5]) -> Self {
        Self(global_id)
    }

    /// The whole installation's range, a /48.
    pub fn range(&self) -> Ipv6Net {
        Ipv6Net::new_assert(self.compose(0, 0), 48)
    }

    /// The range of one network, a /80.
    pub fn network(&self, network: NetworkNumber) -> Ipv6Net {
        Ipv6Net::new_assert(self.compose(network.get(), 0), 80)
    }

    /// The gateway's address; it is member number 1.
    pub fn gateway(&self, network: NetworkNumber) -> Ipv6Addr {
        self.member(network, MemberNumber::GATEWAY)
    }

    pub fn member(&self, network: NetworkNumber, member: MemberNumber) -> Ipv6Addr {
        self.compose(network.get(), member.get())
    }

    /// The range from which a network's resolver answers for names outside, a /80; its proxy takes what goes there.
    pub fn names(&self, network: NetworkNumber) -> Ipv6Net {
        let mut octets = self.compose(network.get(), 0).octets();
        octets[8..10].copy_from_slice(&[0xff, 0xff]);
        Ipv6Net::new_assert(Ipv6Addr::from(octets), 80)
    }

    /// What an operator's tunnel into a network carries, a /64: the network's own range and that of names outside.
    pub fn tunnelled(&self, network: NetworkNumber) -> Ipv6Net {
        Ipv6Net::new_assert(self.compose(network.get(), 0), 64)
    }

    fn compose(&self, subnet: u16, member: u32) -> Ipv6Addr {
        let mut octets = [0u8; 16];
        octets[0] = 0xfd;
        octets[1..6].copy_from_slice(&self.0);
        octets[6..8].copy_from_slice(&subnet.to_be_bytes());
        octets[12..16].copy_from_slice(&member.to_be_bytes());
        Ipv6Addr::from(octets)
    }
}

impl fmt::Display for UlaPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.range().fmt(f)
    }
}

impl Serialize for UlaPrefix {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UlaPrefix {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let range: Ipv6Net = String::deserialize(d)?.parse().map_err(serde::de::Error::custom)?;
        let octets = range.network().octets();
        if octets[0] != 0xfd || range.prefix_len() != 48 {
            return Err(serde::de::Error::custom("expected a /48 inside fd00::/8"));
        }
        let mut global_id = [0u8; 5];
        global_id.copy_from_slice(&octets[1..6]);
        Ok(Self(global_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn code(text: &str) -> Code {
        text.parse::<NetworkCidr>().unwrap_err().code()
    }

    #[test]
    fn refusals_are_told_apart() {
        assert_eq!(code("10.0.0.0"), Code::CidrMalformed);
        assert_eq!(code("10.0.0.1/16"), Code::CidrMalformed);
        assert_eq!(code("fd00::/64"), Code::CidrMalformed);
        assert_eq!(code("8.8.8.0/24"), Code::CidrNotPrivate);
        assert_eq!(code("172.0.0.0/8"), Code::CidrNotPrivate);
        assert_eq!(code("10.0.0.0/7"), Code::CidrTooWide);
        assert_eq!(code("0.0.0.0/0"), Code::CidrTooWide);
        assert_eq!(code("10.0.0.0/30"), Code::CidrTooNarrow);
        assert_eq!(code("169.254.0.0/16"), Code::CidrNotPrivate);
    }

    #[test]
    fn the_edges_are_allowed() {
        for good in ["10.0.0.0/8", "10.255.255.248/29", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"] {
            assert!(good.parse::<NetworkCidr>().is_ok(), "{good}");
        }
    }

    #[test]
    fn the_ula_holds_both_numbers() {
        let ula = UlaPrefix::from_random([1, 2, 3, 4, 5]);
        let network = NetworkNumber::new(1).unwrap();
        assert_eq!(ula.network(network).to_string(), "fd01:203:405:1::/80");
        assert_eq!(ula.gateway(network).to_string(), "fd01:203:405:1::1");
        let member = MemberNumber::new(0x2ad).unwrap();
        assert_eq!(ula.member(network, member).to_string(), "fd01:203:405:1::2ad");
        let json = serde_json::to_string(&ula).unwrap();
        assert_eq!(serde_json::from_str::<UlaPrefix>(&json).unwrap(), ula);
    }

    proptest! {
        #[test]
        fn reserved_addresses_are_inside(prefix in 8u8..=29, bits: u32) {
            let net = Ipv4Net::new(Ipv4Addr::from(0x0a00_0000 | (bits & 0x00ff_ffff)), prefix).unwrap().trunc();
            let cidr: NetworkCidr = net.to_string().parse().unwrap();
            prop_assert!(cidr.contains(cidr.gateway()) && cidr.is_reserved(cidr.gateway()));
            prop_assert!(cidr.contains(cidr.broadcast()) && cidr.is_reserved(cidr.broadcast()));
        }
    }
}
