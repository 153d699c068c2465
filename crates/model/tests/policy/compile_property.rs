//! What is compiled says what is judged.

use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::prelude::*;
use warren_model::Label;
use warren_model::policy::{
    Destination, Directory, Flow, Group, HostName, Member, NameRule, NetworkRules, Policy, Protocol, Rule, RuleId,
    compile, evaluate,
};
use warren_model::record::Egress;

use super::arbitrary::{ADDRESSES, NAMES, TRIED, directory, policy};
use super::common::{label, member, now};
use super::router::{Router, assert_tidy};

fn ports_of(protocol: Protocol) -> Vec<u16> {
    if protocol.has_ports() { TRIED.to_vec() } else { vec![0] }
}

fn verdict(policy: &Policy, directory: &Directory, from: &Member, to: IpAddr, protocol: Protocol, port: u16) -> bool {
    let port = protocol.has_ports().then_some(port);
    evaluate(policy, directory, &Flow { from, to: Destination::Address(to), protocol, port }, now()).allowed
}

fn addresses(directory: &Directory) -> Vec<IpAddr> {
    let members = directory.members.iter().flat_map(|member| [IpAddr::V4(member.ipv4), IpAddr::V6(member.ipv6)]);
    members.chain(ADDRESSES.iter().map(|text| text.parse().unwrap())).collect()
}

/// Gateways are the host's, and no concern of the router's rules.
fn is_gateway(directory: &Directory, address: IpAddr) -> bool {
    directory.networks.values().any(|entry| {
        address == IpAddr::V4(entry.cidr.gateway()) || address == IpAddr::from(u128_plus_one(entry.cidr6.network()))
    })
}

fn u128_plus_one(address: std::net::Ipv6Addr) -> std::net::Ipv6Addr {
    std::net::Ipv6Addr::from(u128::from(address) + 1)
}

fn compiled(policy: &Policy, directory: &Directory, network: &str) -> NetworkRules {
    compile(policy, directory, &label(network), now()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn a_router_passes_what_policy_allows((directory, policy) in (directory(), policy())) {
        for network in directory.networks.keys() {
            let rules = compiled(&policy, &directory, network.as_str());
            assert_tidy(&rules);
            let router = Router { rules: &rules, directory: &directory, network };
            for from in directory.members.iter().filter(|member| member.network == *network) {
                for to in addresses(&directory) {
                    // What a member sends to itself never leaves it.
                    if from.has(to) || is_gateway(&directory, to) {
                        continue;
                    }
                    let source = if to.is_ipv4() { IpAddr::V4(from.ipv4) } else { IpAddr::V6(from.ipv6) };
                    for protocol in Protocol::ALL {
                        for port in ports_of(protocol) {
                            let allowed = verdict(&policy, &directory, from, to, protocol, port);
                            let passes = router.passes(source, to, protocol, port);
                            prop_assert_eq!(passes, allowed, "{}/{} to {} {} {}\n{:#?}", network, from.name, to, protocol, port, rules);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn both_ends_of_a_link_say_the_same((directory, policy) in (directory(), policy())) {
        let all: BTreeMap<&Label, NetworkRules> =
            directory.networks.keys().map(|network| (network, compiled(&policy, &directory, network.as_str()))).collect();
        let by = |here: &Label, there: &Label| -> Option<Vec<bool>> {
            let ranges = all[here].links.get(&directory.networks[there].number)?;
            Some(ranges.iter().map(|range| range.addr().is_ipv4()).collect())
        };
        for network in directory.networks.keys() {
            let rules = &all[network];
            let router = Router { rules, directory: &directory, network };
            for other in directory.networks.keys().filter(|other| *other != network) {
                prop_assert_eq!(by(network, other), by(other, network), "{} and {}\n{:#?}", network, other, policy.allow);
            }
            for to in directory.members.iter().filter(|member| member.network == *network) {
                for from in directory.members.iter().filter(|member| member.network != *network) {
                    let families = by(&from.network, network);
                    let six = (IpAddr::V6(from.ipv6), IpAddr::V6(to.ipv6));
                    let four = (IpAddr::V4(from.ipv4), IpAddr::V4(to.ipv4));
                    let joined = families.as_ref().is_some_and(|families| families.contains(&true));
                    for (source, goal) in [Some(six), joined.then_some(four)].into_iter().flatten() {
                        for protocol in Protocol::ALL {
                            for port in ports_of(protocol) {
                                let allowed = verdict(&policy, &directory, from, goal, protocol, port);
                                let passes = families.is_some() && router.passes(source, goal, protocol, port);
                                prop_assert_eq!(passes, allowed, "{}/{} to {} of {}/{} {} {}", from.network, from.name, goal, network, to.name, protocol, port);
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn names_are_decided_as_policy_judges_them((directory, policy) in (directory(), policy())) {
        for (network, entry) in &directory.networks {
            let rules = compiled(&policy, &directory, network.as_str());
            for from in directory.members.iter().filter(|member| member.network == *network) {
                let group = rules.groups.get(&IpAddr::V4(from.ipv4));
                let names: &[NameRule] = group.and_then(|group: &Group| rules.names.get(group)).map_or(&[], Vec::as_slice);
                for name in NAMES {
                    let name: HostName = name.parse().unwrap();
                    for port in TRIED.map(Some).into_iter().chain([None]) {
                        let flow = Flow { from, to: Destination::Name(&name), protocol: Protocol::Tcp, port };
                        let verdict = evaluate(&policy, &directory, &flow, now());
                        let decision = NameRule::decide(names, &name, port);
                        if entry.egress == Egress::Open {
                            // A question is answered where any port is left.
                            if port.is_some() {
                                prop_assert_eq!(decision.rule.is_none(), verdict.allowed);
                            }
                        } else {
                            prop_assert_eq!(decision.allowed, verdict.allowed);
                            if port.is_some() {
                                prop_assert_eq!(&decision.rule, &verdict.rule);
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_rule_about_somebody_else_changes_no_number((directory, policy) in (directory(), policy())) {
        let mut directory = directory;
        member(&mut directory, "a/unrelated@10.0.0.77");
        member(&mut directory, "a/unrelated-2@10.0.0.78");
        let before = compiled(&policy, &directory, "a");
        let mut more = policy.clone();
        let id: RuleId = "more".parse().unwrap();
        let subject = |text: &str| text.parse().unwrap();
        let to = warren_model::policy::Target::Inside(subject("a/unrelated-2"));
        let rule = Rule {
            id, from: subject("a/unrelated"), to, ports: Vec::new(), application: None, owner: None, expires: None, reason: None,
        };
        more.forbid.push(rule.clone());
        more.allow.push(Rule { id: "more-2".parse().unwrap(), ..rule });
        let after = compiled(&more, &directory, "a");
        for (address, group) in &before.groups {
            let own = directory.at(&label("a"), *address).is_some_and(|member| member.name.as_str().starts_with("unrelated"));
            if !own && let Some(now) = after.groups.get(address) {
                prop_assert_eq!(now, group, "{}", address);
            }
        }
        prop_assert_eq!(before.classes, after.classes);
        prop_assert_eq!(before.links, after.links);
    }

    #[test]
    fn the_order_of_rules_and_members_makes_no_difference((directory, policy) in (directory(), policy())) {
        let (mut other, mut turned) = (directory.clone(), policy.clone());
        other.members.reverse();
        turned.allow.reverse();
        turned.forbid.reverse();
        for network in directory.networks.keys() {
            let mut one = compiled(&policy, &directory, network.as_str());
            let mut two = compiled(&turned, &other, network.as_str());
            // Lists of names keep the order of the policy.
            for names in one.names.values_mut().chain(two.names.values_mut()) {
                names.sort_by(|one, two| one.id.cmp(&two.id));
            }
            prop_assert_eq!(one, two);
        }
    }
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(192)
}
