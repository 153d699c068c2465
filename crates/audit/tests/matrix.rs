//! Which flows are tried, and what each is expected to do.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use jiff::Timestamp;
use ulid::Ulid;
use warren_audit::matrix::{At, Check, Host, Outside, Setting, matrix};
use warren_model::policy::{Directory, Member, NetworkEntry};
use warren_model::probe::{Listening, Token};
use warren_model::record::Egress;
use warren_model::{MachineId, MemberNumber, NetworkId, NetworkNumber, UlaPrefix};

const HOST_CANARIES: [&str; 2] = ["192.0.2.7:4000", "[2001:db8::7]:4000"];

fn checks(policy: &str, egress: Egress, outside: &[Outside]) -> Vec<Check> {
    checks_for(policy, egress, outside, true)
}

fn checks_for(policy: &str, egress: Egress, outside: &[Outside], host_named: bool) -> Vec<Check> {
    let number = NetworkNumber::new(1).unwrap();
    let entry = NetworkEntry {
        id: NetworkId::from_ulid(Ulid::from_parts(1, 1)),
        number,
        cidr: "10.0.0.0/16".parse().unwrap(),
        cidr6: UlaPrefix::from_random([7; 5]).network(number),
        egress,
    };
    let member = Member {
        id: MachineId::from_ulid(Ulid::from_parts(1, 2)).into(),
        network: "dev".parse().unwrap(),
        name: "agent".parse().unwrap(),
        number: MemberNumber::new(20).unwrap(),
        ipv4: "10.0.1.20".parse().unwrap(),
        ipv6: std::net::Ipv6Addr::from(u128::from(entry.cidr6.network()) | 20),
        tags: BTreeSet::new(),
    };
    let mut directory = Directory::default();
    directory.networks.insert("dev".parse().unwrap(), entry);
    directory.members.push(member.clone());
    let hosts = [Host { member, ports: Vec::new(), sends: true, listening: Some(Listening::default()) }];
    let policy = serde_json::from_str(policy).unwrap();
    let setting = Setting {
        policy: &policy,
        directory: &directory,
        now: Timestamp::UNIX_EPOCH,
        hosts: &hosts,
        foreign: &[],
        host_canaries: &HOST_CANARIES.map(|at| at.parse().unwrap()),
        host_named,
        api_port: None,
        outside,
    };
    let mut count = 0;
    let token = || {
        count += 1;
        Token::from_random(count)
    };
    matrix(&setting, token).checks
}

#[test]
fn a_name_is_expected_to_be_answered_when_any_port_of_it_is_allowed() {
    let policy = r#"{
        "allow": [{"id": "api", "from": "net:dev", "to": {"name": "api.example.com"}, "ports": ["tcp/80", "tcp/443"]}],
        "forbid": [{"id": "no-plain", "from": "net:dev", "to": {"name": "api.example.com"}, "ports": ["tcp/80"]}]
    }"#;
    let checks = checks(policy, Egress::Deny, &[]);
    let names: Vec<_> = checks.iter().filter(|check| check.at == At::Resolver).collect();
    let said: Vec<_> = names.iter().map(|check| (check.to.label(), check.port, check.expected.allowed)).collect();
    let unlisted = warren_audit::matrix::UNLISTED.to_owned();
    assert_eq!(said, [("api.example.com".to_owned(), None, true), (unlisted, None, false)]);
}

#[test]
fn where_egress_is_open_a_resolver_outside_is_reachable_like_anything_else() {
    let at: SocketAddr = "9.9.9.9:53".parse().unwrap();
    let resolver = |reached| Outside { at, what: "resolver 1 of this host".to_owned(), reached, named: true };
    let of = |egress, reached| -> Vec<bool> {
        let checks = checks("{}", egress, &[resolver(reached)]);
        checks.iter().filter(|check| check.at == At::Outside(at)).map(|check| check.expected.allowed).collect()
    };
    assert_eq!(of(Egress::Open, true), [true]);
    assert_eq!(of(Egress::Deny, true), [false]);
    assert!(of(Egress::Open, false).is_empty() && of(Egress::Deny, false).is_empty());
}

#[test]
fn where_the_host_is_not_to_be_named_its_addresses_are_tried_and_not_told() {
    let resolver: SocketAddr = "9.9.9.9:53".parse().unwrap();
    let ruled: SocketAddr = "8.8.8.8:443".parse().unwrap();
    let flows = |named| {
        let outside = [
            Outside { at: ruled, what: "named by rule dns".to_owned(), reached: true, named: true },
            Outside { at: resolver, what: "resolver 1 of this host".to_owned(), reached: true, named },
        ];
        checks_for("{}", Egress::Deny, &outside, named)
    };
    let (named, unnamed) = (flows(true), flows(false));
    let tried = |checks: &[Check]| checks.iter().map(|check| check.at.clone()).collect::<Vec<_>>();
    assert_eq!(tried(&named), tried(&unnamed));
    let told = |checks: &[Check]| {
        let ends: Vec<_> = checks.iter().map(|check| (&check.from, &check.to)).collect();
        serde_json::to_string(&ends).unwrap()
    };
    let (named, unnamed) = (told(&named), told(&unnamed));
    for address in ["192.0.2.7", "2001:db8::7", "9.9.9.9"] {
        assert!(named.contains(address) && !unnamed.contains(address), "{address}: {unnamed}");
    }
    for said in ["8.8.8.8", "address 1 of the host", "address 2 of the host", "resolver 1 of this host"] {
        assert!(unnamed.contains(said), "{said}: {unnamed}");
    }
}
