use proptest::prelude::*;

use super::*;
use crate::packet::testing::{End, packet};

const OTHER: End = ["10.0.0.5", "fd00:1::5"];
const STRANGER: End = ["10.0.0.6", "fd00:1::6"];
const PEER: End = ["10.0.9.2", "fd00:9::2"];
const NOW: u64 = 1 << 32;

/// The headers of IPv4 and IPv6 with these protocols, from the other one to the peer.
fn to_peer(version: usize, protocols: [u8; 2], payload: &[u8]) -> Vec<u8> {
    packet(version, OTHER, PEER, protocols, payload)
}

fn segment(flags: u8) -> [u8; 20] {
    let mut segment = [0; 20];
    segment[12..14].copy_from_slice(&[0x50, flags]);
    segment
}

fn datagram(from: u16, to: u16) -> Vec<u8> {
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0; 12]].concat()
}

fn admits(answers: &Answers, packet: &[u8], now: u64) -> bool {
    answers.admit(&Inner::read(packet).unwrap(), packet, now)
}

/// The peer sends this; whether it awaits an answer to it.
fn sends(answers: &Answers, packet: &[u8], now: u64) -> bool {
    let flow = Flow::sent(&Inner::read(packet).unwrap(), packet);
    flow.into_iter().for_each(|flow| answers.await_from(flow, now));
    flow.is_some()
}

/// A fragment of what is fragmented: its offset in units of 8 bytes, and whether more follow.
fn fragment(version: usize, protocols: [u8; 2], id: u16, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    if version == 0 {
        let mut fragment = to_peer(0, protocols, payload);
        fragment[4..6].copy_from_slice(&id.to_be_bytes());
        fragment[6..8].copy_from_slice(&(offset | if more { 0x2000 } else { 0 }).to_be_bytes());
        return fragment;
    }
    let place = (offset << 3 | u16::from(more)).to_be_bytes();
    let header = [&[protocols[1], 0][..], &place, &u32::from(id).to_be_bytes()].concat();
    to_peer(1, [FRAGMENT; 2], &[&header, payload].concat())
}

#[test]
fn of_tcp_all_passes_but_what_begins_a_connection() {
    let answers = Answers::default();
    let (fin, psh, urg) = (0x01, 0x08, 0x20);
    for version in 0..2 {
        let say = |flags| admits(&answers, &to_peer(version, [TCP; 2], &segment(flags)), NOW);
        for flags in [SYN | ACK, ACK, ACK | psh, ACK | fin, RST, RST | ACK, ACK | 0xc0, ACK | urg] {
            assert!(say(flags), "{flags:x}");
        }
        // With congestion notification (RFC 3168 §6.1.1), with data for fast open; then what scanners send.
        for flags in [SYN, SYN | 0xc0, SYN | psh, SYN | RST, SYN | fin, 0, fin, fin | psh | urg] {
            assert!(!say(flags), "{flags:x}");
        }
    }
}

#[test]
fn the_flags_are_found_behind_the_options_of_ipv4() {
    let answers = Answers::default();
    for (flags, passes) in [(ACK, true), (SYN, false)] {
        let other = segment(SYN | ACK ^ flags);
        let mut with_options = to_peer(0, [TCP; 2], &[&other[..], &segment(flags)].concat());
        with_options[0] = 0x4a;
        assert_eq!(admits(&answers, &with_options, NOW), passes);
    }
}

#[test]
fn datagrams_pass_only_as_answers() {
    let answers = Answers::default();
    for version in 0..2 {
        let answer = to_peer(version, [UDP; 2], &datagram(53, 40_000));
        assert!(!admits(&answers, &answer, NOW), "nothing was asked");
        assert!(sends(&answers, &packet(version, PEER, OTHER, [UDP; 2], &datagram(40_000, 53)), NOW));
        assert!(admits(&answers, &answer, NOW) && admits(&answers, &answer, NOW));
        for (from, ports) in [(OTHER, (53, 40_001)), (OTHER, (54, 40_000)), (STRANGER, (53, 40_000))] {
            let other = packet(version, from, PEER, [UDP; 2], &datagram(ports.0, ports.1));
            assert!(!admits(&answers, &other, NOW), "{from:?} {ports:?}");
        }
        let elsewhere = packet(version, OTHER, ["10.0.9.3", "fd00:9::3"], [UDP; 2], &datagram(53, 40_000));
        assert!(!admits(&answers, &elsewhere, NOW), "another address of the peer's asked nothing");
    }
}

#[test]
fn answers_pass_for_three_minutes_from_when_the_peer_sent_the_last_time() {
    let answers = Answers::default();
    let question = packet(0, PEER, OTHER, [UDP; 2], &datagram(40_000, 53));
    let answer = to_peer(0, [UDP; 2], &datagram(53, 40_000));
    sends(&answers, &question, NOW);
    assert!(admits(&answers, &answer, NOW + 180_000), "the last moment");
    assert!(!admits(&answers, &answer, NOW + 180_001), "an answer lengthens nothing");
    sends(&answers, &question, NOW + 200_000);
    assert!(admits(&answers, &answer, NOW + 380_000) && !admits(&answers, &answer, NOW + 380_001));
}

#[test]
fn of_many_flows_the_last_ones_are_known_and_take_no_more_room() {
    let answers = Answers::default();
    let ask =
        |port, now: u64| assert!(sends(&answers, &packet(0, PEER, OTHER, [UDP; 2], &datagram(port, 53)), NOW + now));
    let answered = |port, now: u64| admits(&answers, &to_peer(0, [UDP; 2], &datagram(53, port)), NOW + now);
    for number in 0..10_000 {
        ask(number, number.into());
        // One that goes on is never the oldest.
        ask(65_000, number.into());
    }
    let end = 10_000;
    assert!(answered(65_000, end));
    let known: Vec<u16> = (0..10_000).filter(|port| answered(*port, end)).collect();
    assert_eq!(known, (10_000 - 127..10_000).collect::<Vec<_>>());
    let memory = answers.memory();
    assert_eq!((memory.flows.len(), memory.flows.capacity()), (FLOWS, FLOWS));
    let most = FLOWS * size_of::<Timed<Flow>>() + FRAGMENTED * size_of::<Timed<Whole>>() + size_of::<Answers>();
    assert!(most < 8 << 10, "{most} bytes of one peer");
}

#[test]
fn only_datagrams_are_awaited_answers_to() {
    let answers = Answers::default();
    for version in 0..2 {
        for protocol in [TCP, ICMPV4, ICMPV6, 47, 132, 0, 60] {
            assert!(!sends(&answers, &packet(version, PEER, OTHER, [protocol; 2], &datagram(1, 2)), NOW));
        }
        assert!(!sends(&answers, &packet(version, PEER, OTHER, [UDP; 2], &[0; 3]), NOW), "it has no ports");
    }
    let mut later = packet(0, PEER, OTHER, [UDP; 2], &datagram(1, 2));
    later[7] = 9;
    assert!(!sends(&answers, &later, NOW), "what is in the place of the ports is none");
    later[6..8].copy_from_slice(&[0x20, 0]);
    assert!(sends(&answers, &later, NOW), "the first one has them");
    let first = [&[UDP, 0, 0, 1, 0, 0, 0, 9][..], &datagram(1, 2)].concat();
    assert!(sends(&answers, &packet(1, PEER, OTHER, [FRAGMENT; 2], &first), NOW));
    assert!(admits(&answers, &to_peer(1, [UDP; 2], &datagram(2, 1)), NOW));
}

#[test]
fn of_icmp_replies_and_errors_pass_and_nothing_else() {
    let answers = Answers::default();
    // Unreachable, time exceeded, parameter problem and echo reply; with ICMPv6 also packet too big.
    let pass: [&[u8]; 2] = [&[0, 3, 11, 12], &[1, 2, 3, 4, 129]];
    for (version, pass) in pass.into_iter().enumerate() {
        for kind in 0..=255 {
            let message = to_peer(version, [ICMPV4, ICMPV6], &[kind, 0, 0, 0, 0, 0, 0, 0]);
            assert_eq!(admits(&answers, &message, NOW), pass.contains(&kind), "{version} {kind}");
            let foreign = to_peer(version, [ICMPV6, ICMPV4], &[kind, 0, 0, 0, 0, 0, 0, 0]);
            assert!(!admits(&answers, &foreign, NOW), "the other one's ICMP: {version} {kind}");
        }
    }
}

#[test]
fn other_protocols_and_extension_headers_do_not_pass() {
    let answers = Answers::default();
    for version in 0..2 {
        // As if it were an answer of TCP, or had an answer of TCP behind it.
        let payload = [&[TCP, 0, 0, 0, 0, 0, 0, 0][..], &segment(ACK), &segment(ACK)].concat();
        for protocol in (0..=255).filter(|other| ![TCP, UDP, ICMPV4, ICMPV6, FRAGMENT].contains(other)) {
            assert!(!admits(&answers, &to_peer(version, [protocol; 2], &payload), NOW), "{version} {protocol}");
        }
        let hidden = [&[60, 0, 0, 0, 0, 0, 0, 1][..], &payload].concat();
        assert!(!admits(&answers, &to_peer(version, [FRAGMENT; 2], &hidden), NOW), "behind the fragment header");
    }
}

#[test]
fn fragments_pass_behind_a_first_one_that_is_an_answer() {
    for version in 0..2 {
        for (protocols, first) in [([UDP; 2], datagram(53, 40_000)), ([TCP; 2], segment(ACK).to_vec())] {
            let answers = Answers::default();
            let first = |id, rest: &[u8]| fragment(version, protocols, id, 0, true, &[&first, rest].concat());
            let later = |id, offset| fragment(version, protocols, id, offset, false, &segment(SYN));
            assert!(!admits(&answers, &later(7, 100), NOW), "before its first one");
            assert_eq!(admits(&answers, &first(7, &[]), NOW), protocols[0] == TCP);
            sends(&answers, &packet(version, PEER, OTHER, [UDP; 2], &datagram(40_000, 53)), NOW);
            assert!(admits(&answers, &first(7, &[]), NOW));
            assert!(admits(&answers, &later(7, 2), NOW) && admits(&answers, &later(7, 8000), NOW + 30_000));
            assert!(!admits(&answers, &later(7, 1), NOW), "it may write over the flags");
            assert!(!admits(&answers, &later(8, 100), NOW), "of another packet");
            assert!(!admits(&answers, &later(7, 100), NOW + 30_001), "too late");
            let mut from_other = later(7, 100);
            let last = if version == 0 { 15 } else { 23 };
            from_other[last] ^= 1;
            assert!(!admits(&answers, &from_other, NOW), "from another address");
        }
    }
}

#[test]
fn fragments_of_what_begins_something_do_not_pass() {
    for version in 0..2 {
        let answers = Answers::default();
        let say = |packet: &[u8]| admits(&answers, packet, NOW);
        assert!(!say(&fragment(version, [TCP; 2], 7, 0, true, &segment(SYN))));
        assert!(!say(&fragment(version, [TCP; 2], 7, 2, false, &segment(ACK))));
        // Without the flags nothing is known (RFC 1858 §3).
        assert!(!say(&fragment(version, [TCP; 2], 8, 0, true, &segment(ACK)[..8])));
        assert!(!say(&fragment(version, [UDP; 2], 9, 0, true, &datagram(53, 40_000))));
        let request = [8, 128][version];
        assert!(!say(&fragment(version, [ICMPV4, ICMPV6], 10, 0, true, &[request, 0, 0, 0, 0, 0, 0, 0])));
        let reply = [0, 129][version];
        assert!(say(&fragment(version, [ICMPV4, ICMPV6], 11, 0, true, &[reply, 0, 0, 0, 0, 0, 0, 0])));
        assert!(say(&fragment(version, [ICMPV4, ICMPV6], 11, 100, false, &[0; 8])));
        // Another first one of the same packet is looked at like the first.
        assert!(!say(&fragment(version, [TCP; 2], 11, 0, true, &segment(SYN))));
    }
}

#[test]
fn so_many_packets_may_come_in_fragments_at_the_same_time() {
    let answers = Answers::default();
    for id in 0..1000 {
        assert!(admits(&answers, &fragment(0, [TCP; 2], id, 0, true, &segment(ACK)), NOW + u64::from(id)));
    }
    let complete = |id: &u16| admits(&answers, &fragment(0, [TCP; 2], *id, 9, false, &[0; 8]), NOW + 1000);
    assert_eq!((0..1000).filter(complete).collect::<Vec<_>>(), (1000 - 16..1000).collect::<Vec<_>>());
    assert_eq!(answers.memory().begun.capacity(), FRAGMENTED);
}

#[test]
fn packets_that_end_before_what_is_looked_at_do_not_pass() {
    let answers = Answers::default();
    for version in 0..2 {
        for length in 0..=FLAGS {
            assert!(!admits(&answers, &to_peer(version, [TCP; 2], &segment(ACK)[..length]), NOW), "{length}");
        }
        assert!(admits(&answers, &to_peer(version, [TCP; 2], &segment(ACK)[..=FLAGS]), NOW));
        sends(&answers, &packet(version, PEER, OTHER, [UDP; 2], &datagram(0, 0)), NOW);
        for length in 0..4 {
            assert!(!admits(&answers, &to_peer(version, [UDP; 2], &datagram(0, 0)[..length]), NOW), "{length}");
        }
        assert!(!admits(&answers, &to_peer(version, [ICMPV4, ICMPV6], &[]), NOW));
    }
    for length in 0..8 {
        assert!(!admits(&answers, &to_peer(1, [FRAGMENT; 2], &[TCP, 0, 0, 0, 0, 0, 0, 0][..length]), NOW));
    }
}

proptest! {
    #[test]
    fn no_packet_is_too_strange_to_be_judged(
        mut data in proptest::collection::vec(any::<u8>(), 20..100), version in prop_oneof![Just(0x45u8), Just(0x4f), Just(0x60)],
        protocol in prop_oneof![Just(TCP), Just(UDP), Just(ICMPV4), Just(ICMPV6), Just(FRAGMENT), any::<u8>()],
        next in prop_oneof![Just(TCP), Just(UDP), any::<u8>()],
    ) {
        let length = data.len() as u16;
        data[0] = version;
        if version == 0x60 {
            data[4..6].copy_from_slice(&length.saturating_sub(40).to_be_bytes());
            data[6] = protocol;
            if let Some(inside) = data.get_mut(40) {
                *inside = next;
            }
        } else {
            data[2..4].copy_from_slice(&length.to_be_bytes());
            data[9] = protocol;
        }
        let answers = Answers::default();
        if let Some(inner) = Inner::read(&data) {
            let packet = &data[..inner.length];
            let passes = answers.admit(&inner, packet, NOW);
            let flow = Flow::sent(&inner, packet);
            prop_assert!(!passes || flow.is_none(), "nobody sent a datagram before");
            flow.into_iter().for_each(|flow| answers.await_from(flow, NOW));
        }
    }

    #[test]
    fn what_is_awaited_passes_whatever_else_was_sent(
        ports in proptest::collection::vec((any::<u16>(), any::<u16>()), 1..FLOWS), version in 0..2usize
    ) {
        let answers = Answers::default();
        for ((own, other), at) in ports.iter().zip(NOW..) {
            sends(&answers, &packet(version, PEER, OTHER, [UDP; 2], &datagram(*own, *other)), at);
        }
        for (own, other) in &ports {
            let at = NOW + ports.len() as u64;
            prop_assert!(admits(&answers, &to_peer(version, [UDP; 2], &datagram(*other, *own)), at));
            let swapped = ports.contains(&(*other, *own));
            prop_assert_eq!(admits(&answers, &to_peer(version, [UDP; 2], &datagram(*own, *other)), at), swapped);
        }
    }
}
