//! Ranges that are not the public internet and that a policy opens all the same.

mod common;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use common::Fixture;
use ipnet::IpNet;
use warren_kernel::NetworkSpec;
use warren_lab::{Internet, Lab, Namespace, PUBLIC_V4, fetch};
use warren_model::policy::compile::{Carrier, Exception};
use warren_model::policy::{Group, PortRange};
use warren_model::record::Egress;

const MEMBERS: Group = Group(20);
const CLASS: u32 = 30;

/// Opens these ranges for all members of the network.
fn open(fixture: &Fixture, spec: &mut NetworkSpec, ranges: &[&str]) {
    let members = [2, 3].map(|number| fixture.member(spec, number));
    let rules = Arc::make_mut(&mut spec.rules);
    rules.exits = true;
    rules.groups =
        members.iter().flat_map(|member| [(member.ipv4.into(), MEMBERS), (member.ipv6.into(), MEMBERS)]).collect();
    for (number, range) in (CLASS..).zip(ranges) {
        let range: IpNet = range.parse().unwrap();
        rules.private_exits.insert(range);
        rules.classes.insert(range, Group(number));
        let ports = PortRange::ALL;
        rules.exceptions.insert(Exception { from: MEMBERS, to: Group(number), carrier: Carrier::Tcp, ports });
    }
}

#[test]
fn a_private_range_is_reached_by_the_network_that_may_and_by_no_other() {
    let lab = Lab::new();
    let internet = Internet::new(&lab);
    let host = internet.host(&lab, "host");
    let fixture = Fixture::on(lab, host);
    fixture.kernel.forwarding().enable(true).unwrap();
    let sealed = fixture.spec(1, "10.0.0.0/16", Egress::Deny);
    let mut spec = sealed.clone();
    // What no rule can open is among them.
    open(&fixture, &mut spec, &["10.99.0.0/24", "fd0a::/64", "169.254.0.0/16", "fd00:ec2::/32"]);
    internet.namespace.run("ip addr add fd0a::1/128 dev lo nodad");
    let other = fixture.spec(2, "10.0.0.0/16", Egress::Open);
    let [(a, machine), (b, _other)] = fixture.pair(&spec);
    let [_, (_, elsewhere)] = fixture.pair(&other);
    let reached = |address: &str| machine.enter(|| fetch(address)).is_some();

    assert!(reached("10.99.0.1") && reached("fd0a::1"));
    for closed in ["172.16.9.9", "192.168.77.1", "169.254.169.254", "fd00:ec2::254", PUBLIC_V4] {
        assert!(!reached(closed), "{closed} was reached");
    }
    assert!(elsewhere.enter(|| fetch("10.99.0.1")).is_none(), "by a network that may not");
    assert!(elsewhere.enter(|| fetch(PUBLIC_V4)).is_some());
    fixture.host.run("ip addr add 10.99.0.77/32 dev lo");
    let own = "10.99.0.77:80".parse().unwrap();
    let _listener = fixture.host.enter(|| TcpListener::bind::<SocketAddr>(own)).unwrap();
    let connects = |from: &Namespace| from.enter(|| TcpStream::connect_timeout(&own, Duration::from_secs(1))).is_ok();
    assert!(connects(&fixture.host) && !connects(&machine), "the host's own address was reached");
    let seen = |kernel: &warren_kernel::Kernel, spec: &NetworkSpec| kernel.observe(spec).unwrap().unwrap().uplink;
    assert!(seen(&fixture.kernel, &spec) && seen(&fixture.kernel, &other));

    // A daemon that starts anew closes nothing before it has looked at every network.
    let again = fixture.restarted();
    again.forwarding().enable(true).unwrap();
    assert!(seen(&again, &other));
    again.repair_uplink(&other).unwrap();
    assert!(reached("10.99.0.1"));

    let table = warren_kernel::names::host_table(&fixture.installation);
    fixture.host.run(&format!("nft delete element inet {table} never4 {{ 169.254.0.0/16 }}"));
    assert!(reached("169.254.169.254"), "nothing else closes what no rule opens");
    assert!(!seen(&again, &other));
    again.repair_uplink(&other).unwrap();
    assert!(!reached("169.254.169.254") && seen(&again, &other));
    fixture.host.run(&format!("nft flush set inet {table} private4"));
    assert!(!reached("10.99.0.1") && !seen(&again, &other));
    again.repair_uplink(&other).unwrap();
    assert!(reached("10.99.0.1") && seen(&again, &spec));

    let mut narrower = spec.clone();
    Arc::make_mut(&mut narrower.rules).private_exits.clear();
    assert!(!seen(&again, &narrower));
    again.repair_uplink(&narrower).unwrap();
    assert!(!reached("10.99.0.1"), "the host alone closes it");
    again.repair_uplink(&spec).unwrap();
    assert!(reached("10.99.0.1"));

    again.create_network(&sealed, &[a, b]).unwrap();
    assert!(!reached("10.99.0.1"));
    assert!(seen(&again, &other), "what closes for one network leaves the others as they are");
    again.remove_network(sealed.number).unwrap();
    again.remove_network(other.number).unwrap();
    again.forwarding().restore().unwrap();
    assert_eq!(fixture.host.run("nft list ruleset"), "");
    assert!(!fixture.installation.run_directory().exists());
}
