//! Networks of one account that a policy links.

mod common;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use common::{Fixture, talks};
use ipnet::IpNet;
use warren_kernel::{KernelError, MemberSpec, NetworkSpec, names};
use warren_lab::Namespace;
use warren_model::NetworkNumber;
use warren_model::policy::compile::{Carrier, Exception};
use warren_model::policy::{Group, NetworkRules, PortRange};
use warren_model::record::Egress;

const CLIENTS: Group = Group(10);
const SERVERS: Group = Group(11);

/// Two networks of one member each, where the first's may begin TCP connections to the second's.
struct Linked {
    specs: [NetworkSpec; 2],
    members: [MemberSpec; 2],
    machines: [Namespace; 2],
}

/// The ranges by which a network of this specification is reached.
type Ranges = fn(&NetworkSpec) -> Vec<IpNet>;

fn both(spec: &NetworkSpec) -> Vec<IpNet> {
    vec![spec.cidr.net().into(), spec.cidr6.into()]
}

fn only_ipv6(spec: &NetworkSpec) -> Vec<IpNet> {
    vec![spec.cidr6.into()]
}

fn linked(fixture: &Fixture, numbers: [u16; 2], cidrs: [&str; 2], ranges: Ranges) -> Linked {
    let mut specs = [0, 1].map(|at| fixture.spec(numbers[at], cidrs[at], Egress::Deny));
    // Different addresses also where the ranges are the same.
    let members = [fixture.member(&specs[0], 2), fixture.member(&specs[1], 3)];
    let (links_one, links_other) = (ranges(&specs[1]), ranges(&specs[0]));
    let mut groups = BTreeMap::new();
    for (member, group) in members.iter().zip([CLIENTS, SERVERS]) {
        groups.insert(member.ipv6.into(), group);
        if ranges(&specs[0]).len() > 1 {
            groups.insert(IpAddr::from(member.ipv4), group);
        }
    }
    let exception = Exception { from: CLIENTS, to: SERVERS, carrier: Carrier::Tcp, ports: PortRange::ALL };
    let numbers = [specs[1].number, specs[0].number];
    for ((spec, other), ranges) in specs.iter_mut().zip(numbers).zip([links_one, links_other]) {
        spec.rules = Arc::new(NetworkRules {
            groups: groups.clone(),
            exceptions: [exception].into(),
            links: [(other, ranges)].into(),
            ..NetworkRules::unrestricted(Egress::Deny)
        });
    }
    for (spec, member) in specs.iter().zip(&members) {
        fixture.kernel.create_network(spec, std::slice::from_ref(member)).unwrap();
    }
    let machines = [0, 1].map(|at| fixture.machine(&specs[at], &members[at]));
    fixture.kernel.link_networks(&specs[0], &specs[1]).unwrap();
    Linked { specs, members, machines }
}

fn peers(fixture: &Fixture, spec: &NetworkSpec) -> BTreeMap<NetworkNumber, bool> {
    fixture.kernel.observe(spec).unwrap().unwrap().peers
}

#[test]
fn linked_networks_reach_each_other_as_the_rules_allow() {
    let fixture = Fixture::new();
    let Linked { specs: [one, other], members: [a, b], machines: [client, server] } =
        linked(&fixture, [1, 2], ["10.1.0.0/16", "10.2.0.0/16"], both);
    for address in [IpAddr::from(b.ipv4), b.ipv6.into()] {
        assert!(talks(&client, &server, address), "{address}");
    }
    for address in [IpAddr::from(a.ipv4), a.ipv6.into()] {
        assert!(!talks(&server, &client, address), "{address} was reached against the rules");
    }
    assert!(!client.pings(&other.gateway4.to_string()), "the other gateway was reached");
    assert!(!client.pings(&b.ipv4.to_string()), "only TCP is allowed");
    let stranger = fixture.member(&one, 9);
    fixture.kernel.admit(&one, std::slice::from_ref(&stranger)).unwrap();
    let strange = fixture.machine(&one, &stranger);
    assert!(talks(&strange, &client, a.ipv4.into()), "inside its own network");
    assert!(!talks(&strange, &server, b.ipv4.into()), "a member that no rule names was let through");
    assert_eq!(peers(&fixture, &one), [(other.number, true)].into());
    assert_eq!(peers(&fixture, &other), [(one.number, true)].into());

    fixture.kernel.unlink_networks(other.number, one.number).unwrap();
    assert!(!talks(&client, &server, b.ipv6.into()));
    assert!(peers(&fixture, &one).is_empty() && peers(&fixture, &other).is_empty());
    fixture.kernel.unlink_networks(other.number, one.number).unwrap();
}

#[test]
fn networks_with_the_same_ipv4_range_are_linked_by_ipv6_alone() {
    let fixture = Fixture::new();
    let Linked { specs: [one, other], members: [a, b], machines: [client, server] } =
        linked(&fixture, [300, 4], ["10.0.0.0/16", "10.0.0.0/16"], only_ipv6);
    assert!(talks(&client, &server, b.ipv6.into()));
    assert!(!talks(&client, &server, b.ipv4.into()), "the same address belongs to the own network");
    assert!(!talks(&server, &client, a.ipv6.into()));
    for (spec, to) in [(&one, other.number), (&other, one.number)] {
        assert_eq!(peers(&fixture, spec), [(to, true)].into());
        let link = names::peer_link(&fixture.installation, to);
        assert_eq!(fixture.in_router(spec, &format!("ip -4 route show dev {link}")), "");
    }
}

#[test]
fn a_link_that_lost_something_is_observed_and_made_good() {
    let fixture = Fixture::new();
    let Linked { specs: [one, other], members: [_, b], machines: [client, server] } =
        linked(&fixture, [1, 2], ["10.1.0.0/16", "10.2.0.0/16"], both);
    let link = names::peer_link(&fixture.installation, other.number);
    for damage in [
        format!("ip link del {link}"),
        format!("ip link set {link} down"),
        format!("ip link set {link} address 02:00:00:00:00:01"),
        format!("ip route del {}", other.cidr),
        format!("ip -6 route flush dev {link}"),
        format!("ip neigh flush dev {link} nud permanent"),
        format!("ip route add 192.0.2.0/24 via 169.254.1.3 dev {link} onlink"),
    ] {
        assert_eq!(peers(&fixture, &one), [(other.number, true)].into(), "before {damage}");
        fixture.in_router(&one, &damage);
        assert_ne!(peers(&fixture, &one), [(other.number, true)].into(), "after {damage}");
        fixture.kernel.link_networks(&other, &one).unwrap();
        assert!(talks(&client, &server, b.ipv4.into()) && talks(&client, &server, b.ipv6.into()), "{damage}");
    }
    let index = |spec: &NetworkSpec| fixture.in_router(spec, "ip -o link show");
    let before = index(&one);
    fixture.kernel.link_networks(&one, &other).unwrap();
    assert_eq!(index(&one), before, "what is right stays");

    let mut narrower = one.clone();
    Arc::make_mut(&mut narrower.rules).links.insert(other.number, only_ipv6(&other));
    assert_eq!(peers(&fixture, &narrower), [(other.number, false)].into(), "a range too much");
    fixture.kernel.link_networks(&narrower, &other).unwrap();
    assert_eq!(peers(&fixture, &narrower), [(other.number, true)].into());
    Arc::make_mut(&mut narrower.rules).links.clear();
    assert_eq!(peers(&fixture, &narrower), [(other.number, false)].into(), "a link too much");
}

#[test]
fn a_link_to_a_network_that_is_not_there_says_which_one_it_waits_for() {
    let fixture = Fixture::new();
    let (one, other) = (fixture.spec(1, "10.1.0.0/16", Egress::Deny), fixture.spec(2, "10.2.0.0/16", Egress::Deny));
    fixture.kernel.create_network(&one, &[]).unwrap();
    for (a, b) in [(&one, &other), (&other, &one)] {
        let refused = fixture.kernel.link_networks(a, b).unwrap_err();
        assert!(matches!(refused, KernelError::NoNetwork(number) if number == other.number), "{refused}");
    }
    fixture.kernel.unlink_networks(one.number, other.number).unwrap();
    assert!(fixture.kernel.link_networks(&one, &one).is_err());
}

#[test]
fn callers_that_link_the_same_networks_at_once_do_not_wait_for_each_other_for_ever() {
    let fixture = Fixture::new();
    let Linked { specs: [one, other], members: [_, b], machines: [client, server] } =
        linked(&fixture, [1, 2], ["10.1.0.0/16", "10.2.0.0/16"], both);
    std::thread::scope(|scope| {
        for (a, b) in [(&one, &other), (&other, &one)] {
            let kernel = fixture.kernel.clone();
            scope.spawn(move || {
                for _ in 0..20 {
                    kernel.link_networks(a, b).unwrap();
                    kernel.observe(a).unwrap();
                }
            });
        }
    });
    assert!(talks(&client, &server, b.ipv4.into()));
}

#[test]
fn a_network_goes_with_its_links() {
    let fixture = Fixture::new();
    let Linked { specs: [one, other], members: [_, b], machines: [client, server] } =
        linked(&fixture, [1, 2], ["10.1.0.0/16", "10.2.0.0/16"], both);
    let sockets = fixture.kernel.gateway_sockets(&other).unwrap();
    fixture.kernel.remove_network(other.number).unwrap();
    assert!(peers(&fixture, &one).is_empty(), "also while somebody holds a socket");
    drop(sockets);
    fixture.kernel.create_network(&other, std::slice::from_ref(&b)).unwrap();
    fixture.kernel.attach(&other, &b, server.fd()).unwrap();
    fixture.kernel.link_networks(&one, &other).unwrap();
    assert!(talks(&client, &server, b.ipv4.into()));
}
