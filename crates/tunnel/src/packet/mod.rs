//! Packets inside the tunnel: what they say about themselves, and their checksums.

pub mod coalesce;
pub mod frame;
pub mod split;
pub mod virtio;

#[cfg(test)]
#[path = "tests.rs"]
mod streams;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const ICMPV4: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
/// The extension header of IPv6.
pub const FRAGMENT: u8 = 44;
pub const ICMPV6: u8 = 58;
pub const IPV6_HEADER: usize = 40;

/// What is read from a packet before it passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inner {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Bytes without padding.
    pub length: usize,
}

impl Inner {
    /// Nothing when this is no whole IP packet. Behind it there may be padding.
    pub fn read(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => {
                let header: &[u8; 20] = packet.first_chunk()?;
                let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
                let header_length = usize::from(header[0] & 15) * 4;
                if header_length < 20 || length < header_length || length > packet.len() {
                    return None;
                }
                let address = |at| IpAddr::V4(Ipv4Addr::from(take::<4>(header, at)));
                Some(Self { source: address(12), destination: address(16), length })
            }
            6 => {
                let header: &[u8; IPV6_HEADER] = packet.first_chunk()?;
                let length = IPV6_HEADER + usize::from(u16::from_be_bytes([header[4], header[5]]));
                if length > packet.len() {
                    return None;
                }
                let address = |at| IpAddr::V6(Ipv6Addr::from(take::<16>(header, at)));
                Some(Self { source: address(8), destination: address(24), length })
            }
            _ => None,
        }
    }
}

/// What stands right behind the IP header of a packet that [`Inner::read`] took: its protocol and its bytes. With IPv6
/// that may be an extension header. Nothing for fragments but the first.
pub fn upper(packet: &[u8]) -> Option<(u8, &[u8])> {
    if packet.first()? >> 4 == 4 {
        let header: &[u8; 20] = packet.first_chunk()?;
        let is_later = header[6] & 0x1f != 0 || header[7] != 0;
        let transport = packet.get(usize::from(header[0] & 15) * 4..)?;
        (!is_later).then_some((header[9], transport))
    } else {
        let (header, transport) = packet.split_first_chunk::<IPV6_HEADER>()?;
        Some((header[6], transport))
    }
}

/// What a packet carries, also where it is only a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carried<'p> {
    /// With IPv6 that may be an extension header other than the one of fragments.
    pub protocol: u8,
    pub bytes: &'p [u8],
    /// When the packet is a fragment: of what, and where in there `bytes` begin.
    pub fragment: Option<Fragment>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// What the fragments of one packet have in common, besides their addresses. IPv4 has 16 bits of it.
    pub id: u32,
    /// In units of 8 bytes. 0 is the first fragment, which alone has a transport header.
    pub offset: u16,
}

/// What stands behind the IP header of a packet that [`Inner::read`] took, and with IPv6 behind a fragment header right
/// there (RFC 8200 §4.5). Nothing when the packet ends before that.
pub fn carried(packet: &[u8]) -> Option<Carried<'_>> {
    if packet.first()? >> 4 == 4 {
        let header: &[u8; 20] = packet.first_chunk()?;
        let bytes = packet.get(usize::from(header[0] & 15) * 4..)?;
        let (offset, more) = (read16(header, 6) & 0x1fff, header[6] & 0x20 != 0);
        let fragment = (more || offset != 0).then(|| Fragment { id: read16(header, 4).into(), offset });
        return Some(Carried { protocol: header[9], bytes, fragment });
    }
    let (header, rest) = packet.split_first_chunk::<IPV6_HEADER>()?;
    if header[6] != FRAGMENT {
        return Some(Carried { protocol: header[6], bytes: rest, fragment: None });
    }
    let (header, bytes) = rest.split_first_chunk::<8>()?;
    let fragment = Fragment { id: read32(header, 4), offset: read16(header, 2) >> 3 };
    Some(Carried { protocol: header[0], bytes, fragment: Some(fragment) })
}

/// Adds up the words of `data` (RFC 1071), onto what was added up before. The order of the bytes is the machine's,
/// until [`fold`].
pub fn sum(data: &[u8], before: u64) -> u64 {
    let mut lanes = [before, 0, 0, 0];
    let mut blocks = data.chunks_exact(32);
    for block in &mut blocks {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<8>().0) {
            *lane = add(*lane, u64::from_ne_bytes(*word));
        }
    }
    let mut total = lanes.into_iter().fold(0, add);
    let mut words = blocks.remainder().chunks_exact(2);
    for word in &mut words {
        total = add(total, u64::from(u16::from_ne_bytes([word[0], word[1]])));
    }
    match words.remainder() {
        [last] => add(total, u64::from(u16::from_ne_bytes([*last, 0]))),
        _ => total,
    }
}

/// The sum as 16 bits in the order of the network; a checksum is its complement.
pub fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    u16::from_be(sum as u16)
}

/// The sum of what stands before a transport header as far as its checksum is concerned. `addresses` are source and
/// destination, next to each other.
pub fn pseudo_header(addresses: &[u8], protocol: u8, length: usize) -> u64 {
    let word = |value: u16| u64::from(value.to_be());
    sum(addresses, add(word(u16::from(protocol)), word(length as u16)))
}

fn add(one: u64, other: u64) -> u64 {
    let (sum, carry) = one.overflowing_add(other);
    sum + u64::from(carry)
}

fn take<const N: usize>(header: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&header[at..at + N]);
    bytes
}

pub(crate) fn read16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(take(bytes, at))
}

pub(crate) fn read32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(take(bytes, at))
}

pub(crate) fn write16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

pub(crate) fn write32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
pub(crate) mod testing {
    //! Packets to try things with; and checksums once more, word by word as RFC 1071 writes them, to judge the fast
    //! ones by.

    use super::*;

    /// An end of packets: its addresses of IPv4 and IPv6.
    pub type End = [&'static str; 2];

    /// A packet of IPv4 (0) or IPv6 (1) from one end to another, with these protocols right behind the headers of IPv4
    /// and IPv6.
    pub fn packet(version: usize, from: End, to: End, protocols: [u8; 2], payload: &[u8]) -> Vec<u8> {
        let address = |text: &str| match text.parse().unwrap() {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let addresses = [address(from[version]), address(to[version])].concat();
        let length = payload.len() as u16;
        if version == 0 {
            let mut header = vec![0; 12];
            header[0] = 0x45;
            header[2..4].copy_from_slice(&(20 + length).to_be_bytes());
            header[9] = protocols[0];
            [header, addresses, payload.to_vec()].concat()
        } else {
            let mut header = vec![0; 8];
            header[0] = 0x60;
            header[4..6].copy_from_slice(&length.to_be_bytes());
            header[6] = protocols[1];
            [header, addresses, payload.to_vec()].concat()
        }
    }

    pub fn plain_sum(parts: &[&[u8]]) -> u16 {
        let data: Vec<u8> = parts.concat();
        let mut sum = 0u32;
        for pair in data.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    /// Whether every checksum of a TCP or UDP packet without fragments and extension headers is right.
    pub fn checks(packet: &[u8]) -> bool {
        let (start, addresses, protocol) = if packet[0] >> 4 == 4 {
            let start = usize::from(packet[0] & 15) * 4;
            if plain_sum(&[&packet[..start]]) != 0xffff {
                return false;
            }
            (start, 12..20, packet[9])
        } else {
            (IPV6_HEADER, 8..40, packet[6])
        };
        let length = (packet.len() - start) as u32;
        let tail = [length.to_be_bytes(), [0, 0, 0, protocol]].concat();
        plain_sum(&[&packet[addresses], &tail, &packet[start..]]) == 0xffff
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sums_are_those_of_rfc_1071(data in proptest::collection::vec(any::<u8>(), 0..3000), before in any::<u16>()) {
            let wanted = testing::plain_sum(&[&before.to_be_bytes(), &data]);
            let got = fold(sum(&data, u64::from(before.to_be())));
            prop_assert!(got == wanted || (got.is_multiple_of(0xffff) && wanted.is_multiple_of(0xffff)), "{got:x} {wanted:x}");
        }

        #[test]
        fn no_bytes_are_too_strange_to_be_read(data in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Some(inner) = Inner::read(&data) {
                prop_assert!(inner.length <= data.len() && inner.length >= 20);
                let _ = (upper(&data[..inner.length]), carried(&data[..inner.length]));
            }
        }
    }

    #[test]
    fn what_is_no_whole_packet_is_refused() {
        let mut packet = [0; 28];
        packet[0] = 0x45;
        packet[3] = 28;
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        let inner = Inner::read(&packet).unwrap();
        assert_eq!((inner.source, inner.length), (IpAddr::from([10, 0, 0, 1]), 28));
        assert_eq!(Inner::read(&packet[..27]), None);
        for (place, value) in [(0, 0x44), (0, 0x55), (3, 29), (3, 19), (0, 0x65)] {
            let mut changed = packet;
            changed[place] = value;
            assert_eq!(Inner::read(&changed), None, "{place}");
        }
        assert_eq!(Inner::read(&[]), None);
    }
}
