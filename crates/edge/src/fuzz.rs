//! What a fuzz target calls: each takes bytes from outside, and must return. Not part of the interface.

use hickory_proto::rr::RecordType;
use warren_model::policy::HostName;

use crate::dns::answer::{self, Outcome};
use crate::dns::upstream::{self, Said};
use crate::dns::wire::{self, MAX_UDP, Query};
use crate::dns::zone::Zone;
use crate::resolve;
use crate::view::NetworkView;

/// A message from a machine, to the resolver of this network.
pub fn question(view: &NetworkView, packet: &[u8]) {
    let Ok(zone) = Zone::build(view) else { return };
    let asker = view.members.first().map_or(view.gateway4, |member| member.ipv4);
    for udp in [true, false] {
        let outcome = answer::respond(&zone, packet, &mut [0; MAX_UDP], udp, Some(asker.into()));
        let asks_outside = matches!(outcome, Outcome::Outside | Outcome::Forward);
        if asks_outside && let Ok(query) = Query::parse(packet) {
            // As a text, a name is at most four times as long as on the wire.
            let text = query.name.to_string();
            assert!(text.len() <= 4 * wire::MAX_NAME);
            let _ = text.parse::<HostName>();
            let _ = answer::address_of(&query.name);
        }
    }
}

/// A message from a resolver outside that was asked for the A records of `x.example.com` under id 7.
pub fn upstream_answer(packet: &[u8]) {
    let question = b"\x01x\x07example\x03com\0\0\x01\0\x01";
    let Said::Answer(message) = upstream::read(7, question, packet) else { return };
    let Ok(host) = "x.example.com".parse::<HostName>() else { return };
    if let Ok((addresses, _)) = resolve::read(&host, RecordType::A, &message) {
        assert!(addresses.into_iter().all(warren_model::policy::is_global));
    }
    let asked = upstream::ask(1, question);
    if let Ok(query) = Query::parse(&asked) {
        let _ = upstream::relay(&query.head, &message, MAX_UDP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::tests::network_view;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_are_survived(
            packet in proptest::collection::vec(any::<u8>(), 0..600),
            header in any::<[u8; 8]>(),
            open in any::<bool>(),
        ) {
            let mut view = network_view();
            if open {
                view.forward = vec!["192.0.2.53:53".parse().unwrap()];
            }
            question(&view, &packet);
            let [counts @ .., flags] = header;
            let plausible = [0, 7, flags, counts[0], 0, 1, 0, counts[1] % 4, 0, counts[2] % 4, 0, counts[3] % 4];
            question(&view, &[&plausible, packet.as_slice()].concat());
            upstream_answer(&packet);
            let answered = [0, 7, 0x81, 0x80, 0, 1, 0, counts[1] % 4, 0, counts[2] % 4, 0, counts[3] % 4];
            let question = b"\x01x\x07example\x03com\0\0\x01\0\x01".as_slice();
            upstream_answer(&[&answered, question, &packet].concat());
        }
    }
}
