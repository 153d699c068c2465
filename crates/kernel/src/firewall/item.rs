//! One element of a set or map: as nft reads it, and as the kernel holds it.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use warren_model::MacAddress;
use warren_model::policy::PortRange;

/// A part of a key, or what a key is mapped to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Field {
    Link(String),
    Mac(MacAddress),
    Address(IpAddr),
    Range(IpNet),
    /// `nf_proto`: the range's family. In front of an address, since only a key of several parts can be a range without
    /// tricks.
    Family(IpNet),
    /// `mark`: the group that sends.
    Mark(u32),
    /// `classid`: the group or class that is sent to. Another type than `mark`, since a packet has one place for each.
    Class(u32),
    Protocol(u8),
    Port(u16),
    Ports(PortRange),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) key: Vec<Field>,
    pub(crate) data: Option<Field>,
}

/// An element in the kernel's form: each field of several is filled up with zeros to a multiple of four bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    pub(crate) key: Vec<u8>,
    /// The last key that is meant, in a set of ranges.
    pub(crate) end: Option<Vec<u8>>,
    pub(crate) data: Option<Vec<u8>>,
}

impl Item {
    pub(crate) fn new<const N: usize>(key: [Field; N]) -> Self {
        Self { key: key.into(), data: None }
    }

    pub(crate) fn mapped<const N: usize>(key: [Field; N], data: Field) -> Self {
        Self { key: key.into(), data: Some(data) }
    }

    /// For a set of ranges or of single keys.
    pub(crate) fn entry(&self, ranges: bool) -> Entry {
        let (mut key, mut end) = (Vec::with_capacity(44), Vec::new());
        let data = self.data.as_ref().map(|field| field.bytes(false).0);
        if let ([field], false) = (self.key.as_slice(), ranges) {
            return Entry { key: field.bytes(false).0, end: None, data };
        }
        for field in &self.key {
            let (first, last) = field.bytes(ranges);
            pad(&mut key, &first);
            if ranges {
                pad(&mut end, last.as_ref().unwrap_or(&first));
            }
        }
        Entry { key, end: ranges.then_some(end), data }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, field) in self.key.iter().enumerate() {
            let before = if position == 0 { "" } else { " . " };
            write!(f, "{before}{field}")?;
        }
        match &self.data {
            Some(data) => write!(f, " : {data}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(name) => write!(f, "\"{name}\""),
            Self::Mac(mac) => write!(f, "{mac}"),
            Self::Address(address) => write!(f, "{address}"),
            Self::Range(range) if range.prefix_len() == range.max_prefix_len() => write!(f, "{}", range.addr()),
            Self::Range(range) => write!(f, "{range}"),
            Self::Family(IpNet::V4(_)) => f.write_str("ipv4"),
            Self::Family(IpNet::V6(_)) => f.write_str("ipv6"),
            Self::Mark(group) => write!(f, "{group:#x}"),
            // Major and minor number.
            Self::Class(group) => write!(f, "{:x}:{:x}", group >> 16, group & 0xffff),
            Self::Protocol(number) => write!(f, "{number}"),
            Self::Port(port) => write!(f, "{port}"),
            Self::Ports(PortRange { first, last }) if first == last => write!(f, "{first}"),
            Self::Ports(PortRange { first, last }) => write!(f, "{first}-{last}"),
        }
    }
}

impl Field {
    /// The first value and, of a range, the last. In sets of ranges numbers are compared bit by bit from the front, so
    /// that those of the host's byte order are turned round.
    fn bytes(&self, ranges: bool) -> (Vec<u8>, Option<Vec<u8>>) {
        let address = |address: IpAddr| match address {
            IpAddr::V4(four) => four.octets().to_vec(),
            IpAddr::V6(six) => six.octets().to_vec(),
        };
        match self {
            Self::Link(name) => {
                let mut bytes = name.as_bytes().to_vec();
                bytes.resize(16, 0);
                (bytes, None)
            }
            Self::Mac(mac) => (mac.octets().to_vec(), None),
            Self::Address(one) => (address(*one), None),
            Self::Range(range) => (address(range.network()), Some(address(range.broadcast()))),
            // NFPROTO_IPV4, NFPROTO_IPV6.
            Self::Family(range) => (vec![if matches!(range, IpNet::V4(_)) { 2 } else { 10 }], None),
            Self::Mark(group) | Self::Class(group) if ranges => (group.to_be_bytes().to_vec(), None),
            Self::Mark(group) | Self::Class(group) => (group.to_ne_bytes().to_vec(), None),
            Self::Protocol(number) => (vec![*number], None),
            Self::Port(port) => (port.to_be_bytes().to_vec(), None),
            Self::Ports(PortRange { first, last }) => (first.to_be_bytes().to_vec(), Some(last.to_be_bytes().to_vec())),
        }
    }
}

fn pad(key: &mut Vec<u8>, field: &[u8]) {
    key.extend_from_slice(field);
    key.resize(key.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_both_ends_and_turned_numbers() {
        let item = Item::new([
            Field::Mark(0x0102_0304),
            Field::Class(7),
            Field::Protocol(6),
            Field::Ports(PortRange { first: 5000, last: 6000 }),
        ]);
        assert_eq!(item.to_string(), "0x1020304 . 0:7 . 6 . 5000-6000");
        let entry = item.entry(true);
        assert_eq!(entry.key, [1, 2, 3, 4, 0, 0, 0, 7, 6, 0, 0, 0, 0x13, 0x88, 0, 0]);
        assert_eq!(entry.end.unwrap(), [1, 2, 3, 4, 0, 0, 0, 7, 6, 0, 0, 0, 0x17, 0x70, 0, 0]);
        assert_eq!(item.entry(false).key[..4], 0x0102_0304u32.to_ne_bytes());
    }

    #[test]
    fn a_map_has_a_value() {
        let range: IpNet = "1.2.3.0/24".parse().unwrap();
        let item = Item::mapped([Field::Family(range), Field::Range(range)], Field::Class(0x1_0002));
        assert_eq!(item.to_string(), "ipv4 . 1.2.3.0/24 : 1:2");
        let entry = item.entry(true);
        assert_eq!(entry.end.unwrap(), [2, 0, 0, 0, 1, 2, 3, 255]);
        assert_eq!(entry.data.unwrap(), 0x1_0002u32.to_ne_bytes());
    }
}
