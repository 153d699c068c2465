//! Numbers that make a member unambiguous even where IPv4 ranges repeat.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number that is out of range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is out of range")]
pub struct OutOfRange(u64);

/// The number of a network within its installation: 1 to 65,535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct NetworkNumber(u16);

impl NetworkNumber {
    pub const FIRST: Self = Self(1);

    pub fn new(number: u16) -> Result<Self, OutOfRange> {
        if number == 0 { Err(OutOfRange(0)) } else { Ok(Self(number)) }
    }

    pub fn get(self) -> u16 {
        self.0
    }

    /// The number after this one, if there is one.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

impl fmt::Display for NetworkNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for NetworkNumber {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::new(u16::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

/// The number of a member within its network: 1 to 4,294,967,295. Number 1 is the gateway. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct MemberNumber(u32);

impl MemberNumber {
    pub const GATEWAY: Self = Self(1);
    /// The first number that a member can have.
    pub const FIRST: Self = Self(2);

    pub fn new(number: u32) -> Result<Self, OutOfRange> {
        if number == 0 { Err(OutOfRange(0)) } else { Ok(Self(number)) }
    }

    pub fn get(self) -> u32 {
        self.0
    }

    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

impl fmt::Display for MemberNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for MemberNumber {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::new(u32::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

/// The 48-bit address of a member: `N:NNNN.HHHH.LLLL`.
///
/// The network's number in decimal, the same in hex, and the member's number in two hex words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberAddress {
    pub network: NetworkNumber,
    pub member: MemberNumber,
}

/// A text that is not a 48-bit address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address: write it like 1:0001.0000.02AD")]
pub struct InvalidAddress(String);

impl fmt::Display for MemberAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (network, member) = (self.network.get(), self.member.get());
        write!(f, "{network}:{network:04X}.{:04X}.{:04X}", member >> 16, member & 0xffff)
    }
}

impl FromStr for MemberAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let refused = || InvalidAddress(text.chars().take(64).collect());
        let (decimal, rest) = text.split_once(':').ok_or_else(refused)?;
        let words: Vec<u16> = rest
            .split('.')
            .map(|word| {
                let hex = word.len() == 4 && word.bytes().all(|b| b.is_ascii_hexdigit());
                hex.then(|| u16::from_str_radix(word, 16).ok()).flatten().ok_or_else(refused)
            })
            .collect::<Result<_, _>>()?;
        let [network, high, low] = words[..] else {
            return Err(refused());
        };
        if decimal.parse::<u16>().ok() != Some(network) {
            return Err(refused());
        }
        Ok(Self {
            network: NetworkNumber::new(network).map_err(|_| refused())?,
            member: MemberNumber::new(u32::from(high) << 16 | u32::from(low)).map_err(|_| refused())?,
        })
    }
}

impl Serialize for MemberAddress {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MemberAddress {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// How a member's packets come to the router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Access {
    /// By a link of its own.
    Link,
    /// By the device that all operators share, where its MAC tells it from the others.
    Tunnel,
}

/// A unicast MAC address that is administered locally (IEEE 802c, second bit of the first octet).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// The router's end of every link: the same everywhere, since links are point to point.
    pub const ROUTER: Self = Self([0x02, 0x77, 0, 0, 0, 1]);

    /// The member's end: `02` and a byte of its own, then the member's number.
    pub fn of_member(member: MemberNumber) -> Self {
        let [a, b, c, d] = member.get().to_be_bytes();
        Self([0x02, 0x6d, a, b, c, d])
    }

    /// The member whose end has this address.
    pub fn member(&self) -> Option<MemberNumber> {
        let [0x02, 0x6d, number @ ..] = self.0 else { return None };
        MemberNumber::new(u32::from_be_bytes(number)).ok()
    }

    pub fn octets(&self) -> [u8; 6] {
        self.0
    }

    pub fn from_octets(octets: [u8; 6]) -> Self {
        Self(octets)
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_address_is_written_as_the_field_writes_it() {
        let address =
            MemberAddress { network: NetworkNumber::new(1).unwrap(), member: MemberNumber::new(0x2ad).unwrap() };
        assert_eq!(address.to_string(), "1:0001.0000.02AD");
    }

    #[test]
    fn a_wrong_address_is_refused() {
        for bad in
            ["", "1", "1:0002.0000.0001", "1:0001.0000", "1:0001.0000.0000", "1:0001.+000.0001", "0:0000.0000.0001"]
        {
            assert!(bad.parse::<MemberAddress>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn an_address_reads_back(network in 1u16.., member in 1u32..) {
            let address = MemberAddress {
                network: NetworkNumber::new(network).unwrap(),
                member: MemberNumber::new(member).unwrap(),
            };
            prop_assert_eq!(address.to_string().parse::<MemberAddress>().unwrap(), address);
        }
    }
}
