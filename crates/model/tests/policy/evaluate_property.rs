//! The evaluator against the reference.

use std::net::IpAddr;

use proptest::prelude::*;
use warren_model::policy::{Destination, Flow, HostName, Protocol, evaluate};

use super::arbitrary::{ADDRESSES, NAMES, TRIED, directory, policy};
use super::common::now;
use super::reference::{Goal, judge};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn every_flow_is_judged_as_the_reference_judges_it((directory, policy) in (directory(), policy())) {
        let members = directory.members.iter().flat_map(|member| [IpAddr::V4(member.ipv4), IpAddr::V6(member.ipv6)]);
        let addresses: Vec<IpAddr> = members.chain(ADDRESSES.iter().map(|text| text.parse().unwrap())).collect();
        for from in &directory.members {
            for to in &addresses {
                for protocol in Protocol::ALL {
                    for port in if protocol.has_ports() { &TRIED[..] } else { &[0] } {
                        let flow = Flow {
                            from,
                            to: Destination::Address(*to),
                            protocol,
                            port: protocol.has_ports().then_some(*port),
                        };
                        let found = evaluate(&policy, &directory, &flow, now());
                        let expected = judge(&policy, &directory, from, &Goal::Address(*to), protocol, *port);
                        let found = (found.allowed, found.rule.map(|rule| rule.to_string()));
                        prop_assert_eq!(found, expected, "{}/{} to {} {} {}", from.network, from.name, to, protocol, port);
                    }
                }
            }
            for name in NAMES {
                let host: HostName = name.parse().unwrap();
                for port in TRIED {
                    let flow = Flow { from, to: Destination::Name(&host), protocol: Protocol::Tcp, port: Some(port) };
                    let found = evaluate(&policy, &directory, &flow, now());
                    let expected = judge(&policy, &directory, from, &Goal::Name(name), Protocol::Tcp, port);
                    let found = (found.allowed, found.rule.map(|rule| rule.to_string()));
                    prop_assert_eq!(found, expected, "{}/{} to {} {}", from.network, from.name, name, port);
                }
            }
        }
    }

    #[test]
    fn a_member_is_judged_like_its_address((directory, policy) in (directory(), policy())) {
        for from in &directory.members {
            for to in directory.members.iter().filter(|to| to.network == from.network) {
                for address in [IpAddr::V4(to.ipv4), IpAddr::V6(to.ipv6)] {
                    for (protocol, port) in [(Protocol::Tcp, Some(22)), (Protocol::Icmp, None), (Protocol::Other, None)] {
                        let judge = |to| evaluate(&policy, &directory, &Flow { from, to, protocol, port }, now());
                        prop_assert_eq!(judge(Destination::Member(to)), judge(Destination::Address(address)));
                    }
                }
            }
        }
    }

    #[test]
    fn without_a_port_any_allowed_one_is_enough((directory, policy) in (directory(), policy())) {
        for from in &directory.members {
            for to in &directory.members {
                let judge = |port| {
                    let flow = Flow { from, to: Destination::Member(to), protocol: Protocol::Tcp, port };
                    evaluate(&policy, &directory, &flow, now()).allowed
                };
                prop_assert_eq!(judge(None), (1..=u16::MAX).filter(|port| *port < 500 || *port > 65530).any(|port| judge(Some(port))));
            }
        }
    }
}
