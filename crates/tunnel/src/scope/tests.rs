use proptest::prelude::*;

use super::*;
use crate::packet::testing::packet;

const SERVER: [&str; 2] = ["10.0.0.5", "fd00:1::5"];
const OTHER: [&str; 2] = ["10.0.0.6", "fd00:1::6"];
const PEER: [&str; 2] = ["10.0.9.2", "fd00:9::2"];
const PORT: u16 = 443;

fn ports(from: u16, to: u16) -> Vec<u8> {
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0; 16]].concat()
}

fn only(port: Option<u16>) -> Only {
    Only { addresses: SERVER.iter().map(|address| address.parse().unwrap()).collect(), port }
}

/// What is said of a packet from the peer, and what of one to it.
fn verdicts(only: &Only, packet: &[u8]) -> (bool, bool) {
    let inner = Inner::read(packet).unwrap();
    (only.admits_from(&inner, packet), only.admits_to(&inner, packet))
}

#[test]
fn without_a_port_everything_passes_to_and_from_the_addresses_and_nothing_else() {
    let only = only(None);
    for version in 0..2 {
        for protocol in [TCP, UDP, ICMPV4, ICMPV6, 47, 0] {
            // Neither an error of ICMP nor of ICMPv6.
            let payload = [128; 8];
            let say = |from, to| verdicts(&only, &packet(version, from, to, [protocol; 2], &payload));
            assert_eq!(say(PEER, SERVER), (true, false), "{protocol}");
            assert_eq!(say(SERVER, PEER), (false, true), "{protocol}");
            assert_eq!(say(PEER, OTHER), (false, false), "{protocol}");
            assert_eq!(say(OTHER, PEER), (false, false), "{protocol}");
        }
        let mut later = packet(0, PEER, SERVER, [UDP; 2], &[0; 8]);
        later[7] = 185;
        assert!(verdicts(&only, &later).0, "no port is asked for, so it need not be known");
    }
}

#[test]
fn with_a_port_tcp_and_udp_pass_to_and_from_it_and_nothing_else() {
    let only = only(Some(PORT));
    for version in 0..2 {
        for protocol in [TCP, UDP] {
            let say = |from, to, ports: &[u8]| verdicts(&only, &packet(version, from, to, [protocol; 2], ports));
            assert_eq!(say(PEER, SERVER, &ports(40_000, PORT)), (true, false));
            assert_eq!(say(SERVER, PEER, &ports(PORT, 40_000)), (false, true));
            assert_eq!(say(PEER, SERVER, &ports(PORT, PORT + 1)), (false, false), "the peer's own port opens nothing");
            assert_eq!(say(SERVER, PEER, &ports(22, PORT)), (false, false), "nor does it inwards");
            assert_eq!(say(PEER, OTHER, &ports(40_000, PORT)), (false, false));
            assert_eq!(say(OTHER, PEER, &ports(PORT, 40_000)), (false, false));
        }
        // GRE, SCTP, DCCP, AH, an echo request; what would be the ports is right.
        for protocol in [47, 132, 33, 51, ICMPV4, ICMPV6] {
            let looks_right = packet(version, PEER, SERVER, [protocol; 2], &ports(0x0800, PORT));
            assert_eq!(verdicts(&only, &looks_right), (false, false), "{protocol}");
        }
    }
}

#[test]
fn with_a_port_first_fragments_of_ipv4_pass_and_later_ones_do_not() {
    let only = only(Some(PORT));
    for (from, to, payload) in [(PEER, SERVER, ports(40_000, PORT)), (SERVER, PEER, ports(PORT, 40_000))] {
        for (flags, passes) in
            [([0x20, 0], true), ([0x40, 0], true), ([0x20, 1], false), ([0, 185], false), ([1, 0], false)]
        {
            let mut fragment = packet(0, from, to, [UDP; 2], &payload);
            fragment[6..8].copy_from_slice(&flags);
            let (outwards, inwards) = verdicts(&only, &fragment);
            assert_eq!(outwards || inwards, passes, "{flags:x?}");
        }
    }
}

#[test]
fn with_a_port_nothing_may_stand_between_ipv6_and_the_ports() {
    let only = only(Some(PORT));
    // Hop-by-hop, routing, fragment, destination options, then TCP to the right port.
    for extension in [0, 43, 44, 60] {
        let payload = [&[TCP, 0, 0, 0, 0, 0, 0, 0], &ports(40_000, PORT)[..]].concat();
        assert_eq!(verdicts(&only, &packet(1, PEER, SERVER, [extension; 2], &payload)), (false, false));
        let payload = [&[TCP, 0, 0, 0, 0, 0, 0, 0], &ports(PORT, 40_000)[..]].concat();
        assert_eq!(verdicts(&only, &packet(1, SERVER, PEER, [extension; 2], &payload)), (false, false));
    }
}

#[test]
fn with_a_port_the_options_of_ipv4_are_stepped_over() {
    let only = only(Some(PORT));
    for (first, second, passes) in [(ports(1, 1), ports(40_000, PORT), true), (ports(40_000, PORT), ports(1, 1), false)]
    {
        // As many options as would be taken for ports.
        let mut with_options = packet(0, PEER, SERVER, [TCP; 2], &[&first[..8], &second].concat());
        with_options[0] = 0x47;
        assert_eq!(verdicts(&only, &with_options).0, passes);
    }
}

#[test]
fn errors_of_icmp_pass_to_the_peer_from_anywhere_and_other_icmp_does_not() {
    for only in [only(None), only(Some(PORT))] {
        for kind in 0..=255 {
            let payload = [kind, 4, 0, 0, 0, 0, 5, 0];
            let v4 = packet(0, OTHER, PEER, [ICMPV4; 2], &payload);
            assert_eq!(verdicts(&only, &v4), (false, [3, 11, 12].contains(&kind)), "{kind}");
            let v6 = packet(1, OTHER, PEER, [ICMPV6; 2], &payload);
            assert_eq!(verdicts(&only, &v6), (false, [1, 2, 3, 4].contains(&kind)), "{kind}");
        }
        // The other version's, and a later fragment, of which this is not the type.
        assert!(!verdicts(&only, &packet(0, OTHER, PEER, [ICMPV6; 2], &[3; 8])).1);
        assert!(!verdicts(&only, &packet(1, OTHER, PEER, [ICMPV4; 2], &[3; 8])).1);
        let mut later = packet(0, OTHER, PEER, [ICMPV4; 2], &[3; 8]);
        later[7] = 1;
        assert!(!verdicts(&only, &later).1);
        // From the peer to elsewhere they are packets like others.
        assert!(!verdicts(&only, &packet(0, PEER, OTHER, [ICMPV4; 2], &[3; 8])).0);
    }
}

#[test]
fn packets_that_end_before_their_ports_do_not_pass() {
    let only = only(Some(PORT));
    for version in 0..2 {
        let (there, back) = (ports(40_000, PORT), ports(PORT, 40_000));
        for length in 0..4 {
            assert!(!verdicts(&only, &packet(version, PEER, SERVER, [TCP; 2], &there[..length])).0, "{length}");
        }
        for length in 0..2 {
            assert!(!verdicts(&only, &packet(version, SERVER, PEER, [TCP; 2], &back[..length])).1, "{length}");
        }
        assert!(!verdicts(&only, &packet(version, OTHER, PEER, [ICMPV4, ICMPV6], &[])).1);
    }
}

#[test]
fn with_no_address_nothing_passes_but_errors() {
    let nothing = Only { addresses: Vec::new(), port: None };
    assert_eq!(verdicts(&nothing, &packet(0, PEER, SERVER, [TCP; 2], &ports(1, 2))), (false, false));
    assert_eq!(verdicts(&nothing, &packet(0, SERVER, PEER, [TCP; 2], &ports(1, 2))), (false, false));
    assert!(verdicts(&nothing, &packet(0, SERVER, PEER, [ICMPV4; 2], &[3; 8])).1);
}

proptest! {
    #[test]
    fn no_packet_is_too_strange_to_be_judged(
        data in proptest::collection::vec(any::<u8>(), 0..100), port in any::<Option<u16>>()
    ) {
        if let Some(inner) = Inner::read(&data) {
            let only = Only { addresses: vec![inner.source, inner.destination], port };
            let packet = &data[..inner.length];
            let verdicts = (only.admits_from(&inner, packet), only.admits_to(&inner, packet));
            prop_assert!(port.is_some() || verdicts == (true, true));
        }
    }
}
