//! Random small worlds and policies.

use proptest::prelude::*;
use proptest::sample::{Index, select};
use warren_model::policy::{
    Directory, Intra, Join, NetworkSettings, Policy, Ports, Protocol, Rule, RuleId, Subject, Target,
};
use warren_model::record::Egress;

use super::common::{label, member, network, now};

const NETWORKS: [&str; 3] = ["a", "b", "c"];
const TAGS: [&str; 3] = ["x", "y", "z"];

/// Addresses at which answers differ: outside, private, built in, and just beside ranges of rules.
pub const ADDRESSES: [&str; 24] = [
    "8.8.8.8",
    "8.8.8.9",
    "8.8.9.0",
    "1.1.1.1",
    "0.0.0.1",
    "127.0.0.1",
    "169.254.169.254",
    "198.18.0.1",
    "192.168.1.1",
    "192.168.2.1",
    "172.16.0.1",
    "10.0.0.200",
    "10.0.1.200",
    "10.9.9.9",
    "100.64.0.1",
    "255.255.255.255",
    "224.0.0.1",
    "2606:4700::1111",
    "2606:4700:1::1",
    "2001:db8::1",
    "fd99::1",
    "fd01:203:405:1::99",
    "fd01:203:405:ffff::1",
    "64:ff9b::808:808",
];

pub const NAMES: [&str; 5] =
    ["example.com", "api.example.com", "a.b.example.com", "other.example.net", "www.other.example.net"];

const RANGES: [&str; 22] = [
    "0.0.0.0/0",
    "0.0.0.0/1",
    "8.0.0.0/6",
    "8.8.8.0/24",
    "8.8.8.8/32",
    "10.0.0.0/8",
    "10.0.0.0/16",
    "10.0.0.0/24",
    "10.0.0.0/30",
    "10.0.1.0/24",
    "10.0.0.3/32",
    "192.168.0.0/16",
    "192.168.1.0/24",
    "172.16.0.0/12",
    "169.254.0.0/16",
    "198.0.0.0/8",
    "::/0",
    "fd00::/8",
    "fd01:203:405:2::/80",
    "fd01:203:405:1::2/128",
    "2606:4700::/32",
    "2606:4700::/47",
];

const PORTS: [&str; 9] =
    ["tcp", "udp", "icmp", "tcp/22", "tcp/20-80", "tcp/80-443", "tcp/1-65535", "udp/53", "udp/50-60"];

const PATTERNS: [&str; 6] = [
    "example.com",
    "*.example.com",
    "**.example.com",
    "other.example.net",
    "*.other.example.net",
    "**.other.example.net",
];

/// Ports at which answers differ.
pub const TRIED: [u16; 10] = [0, 1, 19, 20, 22, 53, 80, 81, 443, 65535];

pub fn directory() -> impl Strategy<Value = Directory> {
    let cidr = select(vec!["10.0.0.0/24", "10.0.1.0/24", "10.0.0.0/16", "10.9.0.0/16"]);
    let egress = prop_oneof![2 => Just(Egress::Deny), 1 => Just(Egress::Open)];
    let tags = proptest::collection::vec(select(TAGS.to_vec()), 0..3);
    let members = proptest::collection::vec((tags, any::<Index>()), 0..4);
    proptest::collection::vec((cidr, egress, members), 1..=3).prop_map(|networks| {
        let mut directory = Directory::default();
        for (name, (cidr, egress, members)) in NETWORKS.iter().zip(networks) {
            network(&mut directory, name, cidr, egress);
            let base = cidr.split('/').next().unwrap().rsplit_once('.').unwrap().0;
            for (index, (tags, _)) in members.into_iter().enumerate() {
                member(&mut directory, &format!("{name}/m{index}@{base}.{} {}", index + 2, tags.join(" ")));
            }
        }
        directory
    })
}

fn subject() -> impl Strategy<Value = Subject> {
    let text = prop_oneof![
        2 => select(NETWORKS.to_vec()).prop_map(|network| format!("net:{network}")),
        3 => (select(NETWORKS.to_vec()), select(TAGS.to_vec())).prop_map(|(network, tag)| format!("{network}/tag:{tag}")),
        3 => (select(NETWORKS.to_vec()), 0..4).prop_map(|(network, index)| format!("{network}/m{index}")),
        2 => select(RANGES.to_vec()).prop_map(str::to_owned),
        1 => (select(NETWORKS.to_vec()), select(RANGES.to_vec())).prop_map(|(network, range)| format!("{network}/{range}")),
    ];
    text.prop_map(|text| text.parse().unwrap())
}

fn rule() -> impl Strategy<Value = Rule> {
    let to = prop_oneof![
        4 => subject().prop_map(Target::Inside),
        2 => select(RANGES.to_vec()).prop_map(|range| Target::Inside(Subject::Range(None, range.parse().unwrap()))),
        1 => select(PATTERNS.to_vec()).prop_map(|pattern| Target::Outside(pattern.parse().unwrap())),
    ];
    let ports = proptest::collection::vec(select(PORTS.to_vec()), 0..3);
    let expires = prop_oneof![
        4 => Just(None),
        1 => Just(Some("2025-01-01T00:00:00Z".parse().unwrap())),
        1 => Just(Some("2027-01-01T00:00:00Z".parse().unwrap())),
        1 => Just(Some(now())),
    ];
    (subject(), to, ports, expires).prop_map(|(from, to, ports, expires)| {
        let mut ports: Vec<Ports> = ports.into_iter().map(|text| text.parse().unwrap()).collect();
        if matches!(to, Target::Outside(_)) {
            ports.retain(|ports| ports.protocol == Protocol::Tcp);
        }
        let id = "r".parse::<RuleId>().unwrap();
        Rule { id, from, to, ports, application: None, owner: None, expires, reason: None }
    })
}

pub fn policy() -> impl Strategy<Value = Policy> {
    let rules = || proptest::collection::vec(rule(), 0..6);
    let intra = proptest::collection::vec(any::<bool>(), 3);
    (rules(), rules(), intra).prop_map(|(mut forbid, mut allow, intra)| {
        for (index, rule) in forbid.iter_mut().enumerate() {
            rule.id = format!("forbid-{index}").parse().unwrap();
        }
        for (index, rule) in allow.iter_mut().enumerate() {
            rule.id = format!("allow-{index}").parse().unwrap();
        }
        let settings = |deny: bool| NetworkSettings {
            join: Some(Join::Open),
            intra: if deny { Intra::Deny } else { Intra::Allow },
        };
        let networks = NETWORKS.iter().zip(intra).map(|(name, deny)| (label(name), settings(deny))).collect();
        Policy { networks, forbid, allow, ..Policy::default() }
    })
}
