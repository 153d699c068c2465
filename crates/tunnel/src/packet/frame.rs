//! What stands before an IP packet on its device: the virtio header, and with a TAP device the Ethernet header.

use super::virtio::{HEADER, Header};

/// Bytes of an Ethernet header without a tag: destination, source, type.
pub const ETHERNET: usize = 14;
/// Bytes before an IP packet at most.
pub const LONGEST: usize = HEADER + ETHERNET;

/// RFC 894 and RFC 2464 §3.
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];

/// Between whom frames go: the destination and the source, as they stand in the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stations([u8; 12]);

/// What stands before one packet.
#[derive(Debug)]
pub struct Head {
    bytes: [u8; LONGEST],
    length: usize,
}

impl Stations {
    pub fn new(destination: [u8; 6], source: [u8; 6]) -> Self {
        let mut both = [0; 12];
        both[..6].copy_from_slice(&destination);
        both[6..].copy_from_slice(&source);
        Self(both)
    }
}

impl Head {
    /// `header` speaks of the IP packet alone.
    pub fn new(header: &Header, stations: Option<&Stations>, version4: bool) -> Self {
        let mut bytes = [0; LONGEST];
        let Some(Stations(stations)) = stations else {
            bytes[..HEADER].copy_from_slice(&header.write());
            return Self { bytes, length: HEADER };
        };
        bytes[..HEADER].copy_from_slice(&header.behind(ETHERNET as u16).write());
        bytes[HEADER..HEADER + 12].copy_from_slice(stations);
        bytes[HEADER + 12..].copy_from_slice(if version4 { &IPV4 } else { &IPV6 });
        Self { bytes, length: LONGEST }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Bytes before each packet of a device.
pub fn head_length(is_frame: bool) -> usize {
    if is_frame { LONGEST } else { HEADER }
}

/// What the head of a packet says of the IP packet, and the length of that, when `length` bytes were read, with the
/// head. Nothing for frames that are too short, carry no IP or are for more than one station, and for kinds of packets
/// that were not asked for.
pub fn read_head(head: &[u8; LONGEST], length: usize, is_frame: bool) -> Option<(Header, usize)> {
    let length = length.checked_sub(head_length(is_frame))?;
    let (virtio, frame) = head.split_first_chunk::<HEADER>()?;
    let header = Header::read(virtio)?;
    if !is_frame {
        return Some((header, length));
    }
    let kind = [frame[12], frame[13]];
    // The first bit on the wire, which is the lowest of its byte, says that it is a group's.
    if frame[0] & 1 != 0 || (kind != IPV4 && kind != IPV6) {
        return None;
    }
    Some((header.without(ETHERNET as u16)?, length))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::virtio::Kind;
    use super::*;

    const TO: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const FROM: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn large(version4: bool) -> Header {
        Header {
            kind: if version4 { Kind::Tcp4 } else { Kind::Tcp6 },
            needs_checksum: true,
            header_length: 52,
            segment: 1380,
            checksum_start: 20,
            checksum_offset: 16,
        }
    }

    fn array(head: &Head) -> [u8; LONGEST] {
        head.bytes().try_into().unwrap()
    }

    #[test]
    fn a_frame_has_its_addresses_and_type_and_the_offsets_count_from_its_start() {
        for (version4, kind) in [(true, [8, 0]), (false, [0x86, 0xdd])] {
            let head = array(&Head::new(&large(version4), Some(&Stations::new(TO, FROM)), version4));
            assert_eq!(head[10..22], [TO, FROM].concat());
            assert_eq!(head[22..], kind);
            let outer = Header::read(head.first_chunk().unwrap()).unwrap();
            let wanted = Header { header_length: 66, checksum_start: 34, ..large(version4) };
            assert_eq!(outer, wanted);
            assert_eq!(read_head(&head, LONGEST + 9, true), Some((large(version4), 9)), "and back again");
        }
    }

    #[test]
    fn a_packet_without_work_for_the_kernel_has_an_empty_virtio_header() {
        let head = array(&Head::new(&Header::WHOLE, Some(&Stations::new(TO, FROM)), true));
        assert_eq!(head[..10], [0; 10]);
        assert_eq!(Head::new(&Header::WHOLE, None, true).bytes(), [0; 10]);
        assert_eq!(read_head(&head, LONGEST, true), Some((Header::WHOLE, 0)));
    }

    #[test]
    fn without_frames_the_virtio_header_is_as_it_is() {
        let head = Head::new(&large(true), None, true);
        assert_eq!(head.bytes(), large(true).write());
        let mut read = [0xff; LONGEST];
        read[..HEADER].copy_from_slice(head.bytes());
        assert_eq!(read_head(&read, 110, false), Some((large(true), 100)));
    }

    #[test]
    fn frames_for_many_and_frames_that_carry_no_ip_are_left_out() {
        let good = array(&Head::new(&Header::WHOLE, Some(&Stations::new(TO, FROM)), true));
        assert!(read_head(&good, 60, true).is_some());
        // ARP, a VLAN tag, LLDP, 802.3 with a length, and one that differs in one byte.
        for kind in [[8, 6], [0x81, 0], [0x88, 0xcc], [0, 46], [8, 1], [0x86, 0xdc]] {
            let mut other = good;
            other[22..].copy_from_slice(&kind);
            assert_eq!(read_head(&other, 60, true), None, "{kind:x?}");
        }
        for to in [[0xff; 6], [0x33, 0x33, 0, 0, 0, 1], [1, 0, 0x5e, 0, 0, 1]] {
            let mut other = good;
            other[10..16].copy_from_slice(&to);
            assert_eq!(read_head(&other, 60, true), None, "{to:x?}");
        }
    }

    #[test]
    fn a_checksum_that_begins_within_the_ethernet_header_is_nothing() {
        let mut head = array(&Head::new(&large(true), Some(&Stations::new(TO, FROM)), true));
        head[6..8].copy_from_slice(&13u16.to_ne_bytes());
        assert_eq!(read_head(&head, 100, true), None);
    }

    proptest! {
        #[test]
        fn no_frame_is_too_short_or_too_strange_to_be_read(
            head in any::<[u8; LONGEST]>(), length in 0usize..200, is_frame in any::<bool>()
        ) {
            if let Some((_, inside)) = read_head(&head, length, is_frame) {
                prop_assert_eq!(inside + head_length(is_frame), length);
            }
        }

        #[test]
        fn short_frames_are_nothing(head in any::<[u8; LONGEST]>(), length in 0usize..LONGEST) {
            prop_assert_eq!(read_head(&head, length, true), None);
            if length < HEADER {
                prop_assert_eq!(read_head(&head, length, false), None);
            }
        }
    }
}
