use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use warren_model::policy::compile::{Carrier, Default as ByDefault, Exception, Group, OUTSIDE};
use warren_model::policy::{NetworkRules, PortRange};
use warren_model::record::Egress;
use warren_model::{Access, InstallationId, MemberNumber, NetworkNumber, UlaPrefix};

use super::*;

const WORKERS: Group = Group(0x11);
const DATABASES: Group = Group(0x12);
const PARTNERS: Group = Group(0x2_0013);
const REGISTRY: Group = Group(0x14);

fn network(rules: NetworkRules) -> (InstallationId, NetworkSpec, Vec<MemberSpec>) {
    let ula = UlaPrefix::from_random([1, 2, 3, 4, 5]);
    let number = NetworkNumber::new(7).unwrap();
    let cidr: warren_model::NetworkCidr = "10.0.0.0/16".parse().unwrap();
    let spec = NetworkSpec {
        number,
        gateway4: cidr.gateway(),
        gateway6: ula.gateway(number),
        cidr,
        cidr6: ula.network(number),
        egress: Egress::Deny,
        rules: Arc::new(rules),
        names6: ula.names(number),
    };
    let members = [2, 3].map(|n| {
        let number = MemberNumber::new(n).unwrap();
        MemberSpec {
            number,
            access: Access::Link,
            ipv4: [10, 0, 1, n as u8].into(),
            ipv6: ula.member(spec.number, number),
        }
    });
    ("abcde".parse().unwrap(), spec, members.to_vec())
}

fn grouped(egress: Egress) -> NetworkRules {
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let mut rules = NetworkRules::unrestricted(egress);
    rules.groups = [
        (address("10.0.1.2"), WORKERS),
        (address("fd01:203:405:7::2"), WORKERS),
        (address("10.0.1.3"), DATABASES),
        (address("fd01:203:405:7::3"), DATABASES),
    ]
    .into();
    rules
}

fn exception(from: Group, to: Group, carrier: Carrier, first: u16, last: u16) -> Exception {
    Exception { from, to, carrier, ports: PortRange { first, last } }
}

fn text(rules: NetworkRules) -> String {
    let (installation, spec, members) = network(rules);
    router(&installation, &spec, &members, &Kept::default())
}

#[test]
fn a_sealed_network_has_these_rules() {
    insta::assert_snapshot!(text(NetworkRules::unrestricted(Egress::Deny)));
}

#[test]
fn an_open_network_has_these_rules() {
    let (installation, spec, members) = network(NetworkRules::unrestricted(Egress::Open));
    let mut kept = Kept { spoofed: Traffic { packets: 3, bytes: 120 }, ..Kept::default() };
    let entry = Set::Senders4.member(&installation, &members[1]).entry(false);
    kept.elements.insert(Set::Senders4, entry, Traffic { packets: 9, bytes: 900 });
    insta::assert_snapshot!(router(&installation, &spec, &members, &kept));
}

#[test]
fn a_network_with_something_forbidden_has_these_rules() {
    let mut rules = grouped(Egress::Deny);
    rules.exceptions = [
        exception(WORKERS, DATABASES, Carrier::Tcp, 22, 22),
        exception(WORKERS, DATABASES, Carrier::Udp, 0, u16::MAX),
        exception(WORKERS, DATABASES, Carrier::Other, 0, u16::MAX),
    ]
    .into();
    insta::assert_snapshot!(text(rules));
}

#[test]
fn a_network_with_only_something_allowed_has_these_rules() {
    let mut rules = grouped(Egress::Deny);
    rules.inside = ByDefault::Refuse;
    rules.exits = true;
    rules.classes = [
        ("203.0.114.0/24".parse::<IpNet>().unwrap(), REGISTRY),
        ("10.99.0.0/24".parse().unwrap(), REGISTRY),
        ("2606:4700::/32".parse().unwrap(), REGISTRY),
    ]
    .into();
    rules.private_exits = ["10.99.0.0/24".parse().unwrap()].into();
    rules.exceptions = [
        exception(WORKERS, DATABASES, Carrier::Tcp, 5432, 5432),
        exception(WORKERS, DATABASES, Carrier::Udp, 5000, 5010),
        exception(WORKERS, DATABASES, Carrier::Icmp, 0, u16::MAX),
        exception(WORKERS, REGISTRY, Carrier::Tcp, 443, 443),
        exception(DATABASES, OUTSIDE, Carrier::Udp, 123, 123),
    ]
    .into();
    insta::assert_snapshot!(text(rules));
}

#[test]
fn a_linked_network_has_these_rules() {
    let mut rules = grouped(Egress::Open);
    let other = NetworkNumber::new(9).unwrap();
    rules.links = [(other, vec!["10.9.0.0/16".parse().unwrap(), "fd01:203:405:9::/80".parse().unwrap()])].into();
    rules.groups.insert("10.9.1.4".parse().unwrap(), PARTNERS);
    rules.exceptions = [exception(PARTNERS, DATABASES, Carrier::Tcp, 5432, 5432)].into();
    insta::assert_snapshot!(text(rules));
}

#[test]
fn a_reload_replaces_rules_and_leaves_chains_and_sets() {
    let (installation, spec, members) = network(NetworkRules::unrestricted(Egress::Deny));
    let kept = Kept { skeleton: Some(Shape::WHOLE), ..Kept::default() };
    let text = router(&installation, &spec, &members, &kept);
    insta::assert_snapshot!(text.split("table inet warren {").next().unwrap());
}

#[test]
fn what_policy_names_makes_no_difference_to_the_fixed_rules() {
    let mut rules = grouped(Egress::Deny);
    rules.exceptions = [exception(WORKERS, DATABASES, Carrier::Tcp, 22, 22)].into();
    let (installation, spec, _) = network(rules.clone());
    rules.exceptions = [exception(DATABASES, WORKERS, Carrier::Udp, 1, 9)].into();
    rules.groups.clear();
    rules.groups.insert("10.0.1.9".parse().unwrap(), DATABASES);
    rules.groups.insert("10.0.1.10".parse().unwrap(), WORKERS);
    let (_, other, _) = network(rules);
    assert_eq!(Shape::of(&spec), Shape::of(&other));
    let fixed = |spec| fixed(&installation, spec, Shape::of(spec));
    assert_eq!(fixed(&spec), fixed(&other));
}
