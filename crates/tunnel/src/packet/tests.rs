use std::io::IoSlice;

use proptest::prelude::*;

use super::coalesce::{Coalescer, Sink};
use super::frame::Head;
use super::split::Split;
use super::testing::checks;
use super::virtio::{HEADER, Header, Kind};
use super::{TCP, fold, pseudo_header, read16, sum, write16, write32};

/// What was written, as whole packets with their virtio header.
#[derive(Default)]
struct Written(Vec<(u8, Header, Vec<u8>)>);

impl Sink<u8> for Written {
    fn head(&self, _: &u8, header: &Header, version4: bool) -> Head {
        Head::new(header, None, version4)
    }

    fn write(&mut self, to: &u8, pieces: &[IoSlice<'_>]) {
        let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        let header = Header::read(bytes[..HEADER].try_into().unwrap()).unwrap();
        self.0.push((*to, header, bytes[HEADER..].to_vec()));
    }
}

#[derive(Debug, Clone)]
struct Stream {
    version4: bool,
    options: usize,
    flags: u8,
    port: u16,
    sequence: u32,
    id: u16,
    segment: u16,
    payload: Vec<u8>,
}

impl Stream {
    fn headers(&self) -> (usize, usize) {
        let transport = if self.version4 { 20 } else { 40 };
        (transport, transport + 20 + self.options * 4)
    }

    /// One large packet, as the kernel hands it over.
    fn large(&self) -> (Header, Vec<u8>) {
        let (transport, headers) = self.headers();
        let mut packet = vec![0; headers];
        packet.extend_from_slice(&self.payload);
        let total = packet.len();
        if self.version4 {
            packet[0] = 0x45;
            write16(&mut packet, 2, total as u16);
            write16(&mut packet, 4, self.id);
            packet[6] = 0x40;
            packet[8] = 64;
            packet[9] = TCP;
            packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
            let checksum = !fold(sum(&packet[..20], 0));
            write16(&mut packet, 10, checksum);
        } else {
            packet[0] = 0x60;
            write16(&mut packet, 4, (total - 40) as u16);
            packet[6] = TCP;
            packet[7] = 64;
            packet[8] = 0xfd;
            packet[24] = 0xfd;
            packet[39] = 2;
        }
        let addresses = if self.version4 { packet[12..20].to_vec() } else { packet[8..40].to_vec() };
        let tcp = &mut packet[transport..];
        write16(tcp, 0, self.port);
        write16(tcp, 2, 443);
        write32(tcp, 4, self.sequence);
        write32(tcp, 8, 77);
        tcp[12] = ((5 + self.options) << 4) as u8;
        tcp[13] = self.flags;
        write16(tcp, 14, 512);
        tcp[20..20 + self.options * 4].fill(1);
        let before = fold(pseudo_header(&addresses, TCP, total - transport));
        write16(tcp, 16, before);
        let kind = if self.version4 { Kind::Tcp4 } else { Kind::Tcp6 };
        let header = Header {
            kind,
            needs_checksum: true,
            header_length: headers as u16,
            segment: self.segment,
            checksum_start: transport as u16,
            checksum_offset: 16,
        };
        (header, packet)
    }
}

fn split(header: &Header, packet: &[u8]) -> Vec<Vec<u8>> {
    let mut split = Split::new(header, packet).unwrap();
    let mut pieces = Vec::new();
    while let Some(length) = split.next_length() {
        let mut piece = vec![0xaa; length];
        split.write(&mut piece);
        pieces.push(piece);
    }
    pieces
}

fn coalesced(packets: &[(u8, Vec<u8>)]) -> Vec<(u8, Header, Vec<u8>)> {
    let mut buffer: Vec<u8> = Vec::new();
    let places: Vec<_> = packets
        .iter()
        .map(|(to, packet)| {
            buffer.extend_from_slice(&[0xee; 3]);
            let start = buffer.len();
            buffer.extend_from_slice(packet);
            (*to, start..buffer.len())
        })
        .collect();
    let (mut coalescer, mut written) = (Coalescer::new(), Written::default());
    for (to, at) in places {
        coalescer.push(&mut buffer, at, &to, &mut written);
    }
    coalescer.flush(&mut buffer, &mut written);
    written.0
}

fn stream() -> impl Strategy<Value = Stream> {
    let flags = prop_oneof![Just(0x10u8), Just(0x18), Just(0x11), Just(0x19), Just(0x50), Just(0x90)];
    let numbers = (any::<u32>(), any::<u16>(), 1u16..4, 500u16..1500, 0usize..6000);
    (any::<bool>(), 0usize..4, flags, numbers).prop_map(
        |(version4, options, flags, (sequence, id, port, segment, length))| Stream {
            version4,
            options,
            flags,
            port,
            sequence,
            id,
            segment,
            payload: (0..=length).map(|at| (at * 7 + usize::from(port)) as u8).collect(),
        },
    )
}

fn again(packets: Vec<(u8, Header, Vec<u8>)>) -> Vec<(u8, Vec<u8>)> {
    packets
        .into_iter()
        .flat_map(|(to, header, packet)| split(&header, &packet).into_iter().map(move |piece| (to, piece)))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn pieces_are_packets_with_right_checksums_and_put_together_they_are_the_stream_again(stream in stream()) {
        let (header, packet) = stream.large();
        let pieces = split(&header, &packet);
        let headers = stream.headers().1;
        for piece in &pieces {
            prop_assert!(checks(piece));
            prop_assert!(piece.len() <= headers + usize::from(stream.segment));
        }
        let payload: Vec<u8> = pieces.iter().flat_map(|piece| piece[headers..].to_vec()).collect();
        prop_assert_eq!(&payload, &stream.payload);
        let pieces: Vec<_> = pieces.into_iter().map(|piece| (0, piece)).collect();
        let written = coalesced(&pieces);
        if stream.flags & !0x58 == 0 && pieces.len() > 1 {
            prop_assert_eq!(written.len(), 1, "nothing keeps them apart");
            prop_assert_eq!(&written[0].1, &header);
            prop_assert_eq!(&written[0].2, &packet);
        }
        prop_assert_eq!(again(written), pieces);
    }

    #[test]
    fn whatever_is_lost_or_mixed_each_flow_keeps_its_packets_and_their_order(
        streams in proptest::collection::vec(stream(), 1..5),
        order in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..12), 60),
    ) {
        let mut queues: Vec<(u8, std::collections::VecDeque<Vec<u8>>)> = streams
            .iter()
            .enumerate()
            .map(|(to, stream)| {
                let (header, packet) = stream.large();
                (to as u8 % 2, split(&header, &packet).into())
            })
            .collect();
        let mut sent = Vec::new();
        for (which, fate) in order {
            let (to, queue) = which.get(&queues);
            let (to, next) = (*to, queue.front().cloned());
            let place = which.index(queues.len());
            queues[place].1.pop_front();
            match (next, fate) {
                (None, _) | (_, 0) => {}
                (Some(packet), 1) => sent.extend([(to, packet.clone()), (to, packet)]),
                (Some(mut packet), 2) => {
                    // A wrong checksum has to stay wrong.
                    *packet.last_mut().unwrap() ^= 0x40;
                    sent.push((to, packet));
                }
                (Some(packet), _) => sent.push((to, packet)),
            }
        }
        let written = again(coalesced(&sent));
        prop_assert_eq!(written.len(), sent.len());
        let flow = |(to, packet): &(u8, Vec<u8>)| (*to, packet[0], read16(packet, if packet[0] == 0x45 { 20 } else { 40 }));
        for one in &sent {
            let of = |all: &[(u8, Vec<u8>)]| -> Vec<_> { all.iter().filter(|other| flow(other) == flow(one)).cloned().collect() };
            prop_assert_eq!(of(&sent), of(&written));
        }
    }

    #[test]
    fn a_header_that_does_not_fit_its_packet_splits_into_nothing_that_is_too_large(
        header in any::<[u8; HEADER]>(), packet in proptest::collection::vec(any::<u8>(), 0..300)
    ) {
        let Some(header) = Header::read(&header) else { return Ok(()) };
        let Some(mut split) = Split::new(&header, &packet) else { return Ok(()) };
        while let Some(length) = split.next_length() {
            prop_assert!(length <= packet.len());
            split.write(&mut vec![0; length]);
        }
    }
}

#[test]
fn datagrams_are_split_with_right_lengths_and_checksums() {
    let payload: Vec<u8> = (0..2500u32).map(|at| at as u8).collect();
    let mut packet = vec![0; 28];
    packet[0] = 0x45;
    packet[8] = 64;
    packet[9] = super::UDP;
    packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    packet[20..24].copy_from_slice(&[1, 2, 3, 4]);
    packet.extend_from_slice(&payload);
    let header = Header {
        kind: Kind::Udp,
        needs_checksum: true,
        header_length: 28,
        segment: 1000,
        checksum_start: 20,
        checksum_offset: 6,
    };
    let pieces = split(&header, &packet);
    assert_eq!(pieces.iter().map(Vec::len).collect::<Vec<_>>(), [1028, 1028, 528]);
    assert!(pieces.iter().all(|piece| checks(piece) && usize::from(read16(piece, 24)) == piece.len() - 20));
    assert_eq!(pieces.iter().flat_map(|piece| piece[28..].to_vec()).collect::<Vec<_>>(), payload);
}

#[test]
fn one_packet_gets_the_checksum_that_the_kernel_left_out() {
    let stream = Stream {
        version4: false,
        options: 3,
        flags: 0x12,
        port: 9,
        sequence: 5,
        id: 0,
        segment: 0,
        payload: Vec::new(),
    };
    let (header, packet) = stream.large();
    let pieces = split(&Header { kind: Kind::Whole, ..header }, &packet);
    assert_eq!(pieces.len(), 1);
    assert!(checks(&pieces[0]) && !checks(&packet));
}
