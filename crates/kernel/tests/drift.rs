//! What others change is seen and made good; what a crash leaves is completed; what is removed is gone.

mod common;

use std::time::{Duration, Instant};

use common::{Fixture, talks};
use warren_kernel::{KernelError, ObservedNetwork, RulesState, Traffic, names};
use warren_model::record::Egress;

fn is_whole(seen: &ObservedNetwork, members: usize) -> bool {
    seen.gateway_intact
        && seen.rules == RulesState::Intact
        && seen.policy
        && seen.admitted.len() == members
        && seen.links.len() == members
        && seen.links.values().all(|link| link.up && link.routed)
        && !seen.uplink
}

#[test]
fn drift_is_observed_and_repaired() {
    let fixture = Fixture::new();
    let kernel = &fixture.kernel;
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Deny);
    let [(a, machine_a), (b, machine_b)] = fixture.pair(&spec);
    let members = [a.clone(), b.clone()];
    let look = || kernel.observe(&spec).unwrap().unwrap();
    let whole = || {
        let seen = look();
        assert!(is_whole(&seen, 2), "{seen:?}");
        assert!(is_whole(&look(), 2), "also when asked again");
        assert!(talks(&machine_a, &machine_b, b.ipv4.into()) && talks(&machine_a, &machine_b, b.ipv6.into()));
    };
    whole();

    fixture.in_router(&spec, "nft flush ruleset");
    assert_eq!(look().rules, RulesState::Missing);
    kernel.load_rules(&spec, &members).unwrap();
    whole();

    fixture.in_router(&spec, "nft insert rule inet warren between accept");
    assert_eq!(look().rules, RulesState::Altered);
    kernel.load_rules(&spec, &members).unwrap();
    whole();

    fixture.in_router(&spec, "nft add element inet warren receivers4 { 10.0.77.77 }");
    assert_eq!(look().rules, RulesState::Altered);
    kernel.load_rules(&spec, &members).unwrap();
    whole();

    fixture.in_router(&spec, "nft add table inet intruder");
    assert_eq!(look().rules, RulesState::Altered);
    kernel.load_rules(&spec, &members).unwrap();
    whole();

    fixture.in_router(&spec, &format!("nft delete element inet warren receivers4 {{ {} }}", b.ipv4));
    let seen = look();
    assert!(!seen.admitted.contains(&b) && seen.rules == RulesState::Altered, "{seen:?}");
    kernel.load_rules(&spec, &members).unwrap();
    whole();

    let link = names::member_link(&fixture.installation, b.number);
    fixture.in_router(&spec, &format!("ip route del {}/32", b.ipv4));
    assert!(!look().links[&b.number].routed);
    kernel.attach(&spec, &b, machine_b.fd()).unwrap();
    whole();
    fixture.in_router(&spec, &format!("ip neigh del {} dev {link}", b.ipv6));
    assert!(!look().links[&b.number].routed);
    kernel.attach(&spec, &b, machine_b.fd()).unwrap();
    whole();
    fixture.in_router(&spec, &format!("ip link set {link} down"));
    assert!(!look().links[&b.number].up);
    kernel.attach(&spec, &b, machine_b.fd()).unwrap();
    whole();
    machine_b.run("ip link del eth0");
    assert!(!look().links.contains_key(&b.number));
    kernel.attach(&spec, &b, machine_b.fd()).unwrap();
    whole();
    machine_b.run("ip link add eth9 type veth peer name eth8");
    machine_b.run("ip link del eth0");
    machine_b.run("ip link set eth9 name eth0");
    kernel.attach(&spec, &b, machine_b.fd()).unwrap();
    whole();

    fixture.in_router(&spec, &format!("ip addr del {}/32 dev lo", spec.gateway4));
    assert!(!look().gateway_intact);
    kernel.repair_gateway(&spec).unwrap();
    whole();
    fixture.in_router(&spec, "ip -6 route del prohibit default metric 1000000");
    assert!(!look().gateway_intact);
    kernel.repair_gateway(&spec).unwrap();
    whole();
    fixture.in_router(&spec, "sysctl -qw net.ipv4.ip_forward=0");
    assert!(!look().gateway_intact);
    kernel.repair_gateway(&spec).unwrap();
    whole();
}

#[test]
fn an_uplink_that_lost_something_is_observed_and_repaired() {
    let fixture = Fixture::new();
    fixture.kernel.forwarding().enable(true).unwrap();
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Open);
    fixture.kernel.create_network(&spec, &[]).unwrap();
    let uplink = names::uplink(&fixture.installation, spec.number);
    let table = names::host_table(&fixture.installation);
    for damage in [
        format!("ip link del {uplink}"),
        format!("ip link set {uplink} down"),
        format!("nft flush table inet {table}"),
        format!("nft delete table inet {table}"),
        format!("ip netns exec {} ip route del default via 169.254.1.2", fixture.router(&spec)),
        format!("ip -6 route flush dev {uplink}"),
        format!("ip neigh flush dev {uplink} nud permanent"),
    ] {
        assert!(fixture.kernel.observe(&spec).unwrap().unwrap().uplink, "before {damage}");
        fixture.host.run(&damage);
        assert!(!fixture.kernel.observe(&spec).unwrap().unwrap().uplink, "after {damage}");
        fixture.kernel.repair_uplink(&spec).unwrap();
    }
}

#[test]
fn a_restarted_daemon_finds_everything_as_it_was() {
    let fixture = Fixture::new();
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Deny);
    let [(a, machine_a), (b, machine_b)] = fixture.pair(&spec);
    let again = fixture.restarted();
    assert_eq!(again.networks().unwrap().into_iter().collect::<Vec<_>>(), [spec.number]);
    let seen = again.observe(&spec).unwrap().unwrap();
    assert!(is_whole(&seen, 2), "{seen:?}");
    let third = fixture.member(&spec, 9);
    again.admit(&spec, std::slice::from_ref(&third)).unwrap();
    assert_eq!(again.observe(&spec).unwrap().unwrap().rules, RulesState::Intact);
    let seen = fixture.kernel.observe(&spec).unwrap().unwrap();
    assert!(seen.rules == RulesState::Intact && seen.admitted.contains(&third), "{seen:?}");
    assert!(talks(&machine_a, &machine_b, b.ipv4.into()));

    let open = fixture.spec(1, "10.0.0.0/16", Egress::Open);
    let seen = again.observe(&open).unwrap().unwrap();
    assert!(seen.rules == RulesState::Intact && !seen.policy, "another policy is wanted: {seen:?}");
    let elsewhere = fixture.spec(1, "10.1.0.0/16", Egress::Deny);
    assert_eq!(again.observe(&elsewhere).unwrap().unwrap().rules, RulesState::Altered, "another network is wanted");
    again.create_network(&spec, &[a, b]).unwrap();
    assert!(is_whole(&again.observe(&spec).unwrap().unwrap(), 2), "who is not wanted is expelled");
}

#[test]
fn a_reload_keeps_counters_and_open_connections() {
    let fixture = Fixture::new();
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Deny);
    let [(a, machine_a), (b, _machine_b)] = fixture.pair(&spec);
    let ping = machine_a.spawn(&format!("ping -n -i 0.002 -c 200 -W 1 {}", b.ipv4));
    let mut reloads = 0;
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(500) {
        fixture.kernel.load_rules(&spec, &[a.clone(), b.clone()]).unwrap();
        reloads += 1;
    }
    let said = ping.finish();
    assert!(said.contains("200 received"), "{reloads} reloads: {said}");
    assert!(machine_a.pings(&b.ipv4.to_string()));
    let before = fixture.kernel.counters(spec.number).unwrap();
    assert!(before[&a.number].private.sent != Traffic::default());
    fixture.kernel.load_rules(&spec, &[a, b]).unwrap();
    assert_eq!(fixture.kernel.counters(spec.number).unwrap(), before);
}

#[test]
fn half_made_networks_are_completed_and_removal_leaves_nothing() {
    let fixture = Fixture::new();
    let kernel = &fixture.kernel;
    kernel.forwarding().enable(true).unwrap();
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Open);
    let path = names::namespace_path(&fixture.installation, spec.number);
    assert!(kernel.observe(&spec).unwrap().is_none());
    std::fs::write(&path, "").unwrap();
    assert!(kernel.observe(&spec).unwrap().is_none(), "a file is no namespace");
    assert!(kernel.networks().unwrap().contains(&spec.number), "but it is there to be removed");
    kernel.create_network(&spec, &[]).unwrap();
    fixture.in_router(&spec, "nft flush ruleset");
    fixture.in_router(&spec, "ip addr flush dev lo");
    let [(a, machine_a), (b, machine_b)] = fixture.pair(&spec);
    assert!(talks(&machine_a, &machine_b, b.ipv4.into()));

    fixture.host.run(&format!("ip netns delete {}", fixture.router(&spec)));
    assert!(kernel.observe(&spec).unwrap().is_none());
    assert!(matches!(kernel.admit(&spec, std::slice::from_ref(&a)), Err(KernelError::NoNetwork(_))));
    kernel.create_network(&spec, &[a.clone(), b.clone()]).unwrap();
    kernel.attach(&spec, &a, machine_a.fd()).unwrap();
    kernel.attach(&spec, &b, machine_b.fd()).unwrap();
    assert!(talks(&machine_b, &machine_a, a.ipv6.into()));

    let sockets = kernel.gateway_sockets(&spec).unwrap();
    for _ in 0..2 {
        kernel.remove_network(spec.number).unwrap();
    }
    assert!(!path.exists());
    assert!(!machine_a.run("ip -o link").contains("eth0"), "also while somebody holds a socket");
    let prefix = names::uplink_prefix(&fixture.installation);
    assert!(!fixture.host.run("ip -o link").contains(&prefix));
    kernel.forwarding().restore().unwrap();
    assert_eq!(fixture.host.run("nft list ruleset"), "");
    assert!(!fixture.installation.run_directory().exists());
    drop(sockets);
    kernel.detach(spec.number, a.number).unwrap();
}

#[test]
fn changes_of_others_are_hinted_and_own_ones_are_not() {
    let fixture = Fixture::new();
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Deny);
    let [(a, _machine_a), (b, machine_b)] = fixture.pair(&spec);
    let mut hints = fixture.kernel.changes().unwrap();
    // What the kernel tells of a link that was raised it tells up to a second later (`net/core/link_watch.c`).
    warren_lab::eventually("that nothing more is told", || {
        while hints.try_recv().is_ok() {}
        std::thread::sleep(Duration::from_millis(1_200));
        hints.try_recv().is_err()
    });
    fixture.kernel.load_rules(&spec, &[a.clone(), b.clone()]).unwrap();
    fixture.kernel.expel(spec.number, std::slice::from_ref(&b)).unwrap();
    fixture.kernel.admit(&spec, std::slice::from_ref(&b)).unwrap();
    fixture.kernel.repair_gateway(&spec).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert!(hints.try_recv().is_err(), "own changes were hinted at");
    fixture.in_router(&spec, "nft add table inet intruder");
    warren_lab::eventually("a hint at rules", || hints.try_recv() == Ok(spec.number));
    machine_b.run("ip link del eth0");
    warren_lab::eventually("a hint at a link", || hints.try_recv() == Ok(spec.number));
}

#[test]
fn a_thousand_members_and_one_more() {
    let fixture = Fixture::new();
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Deny);
    let members: Vec<_> = (2..1002).map(|number| fixture.member(&spec, number)).collect();
    let timed = |what: &str, work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        println!("{what}: {:.2} ms", start.elapsed().as_secs_f64() * 1000.0);
    };
    timed("create a network of 1,000", &mut || fixture.kernel.create_network(&spec, &members).unwrap());
    timed("load 1,000 again", &mut || fixture.kernel.load_rules(&spec, &members).unwrap());
    let first = fixture.machine(&spec, &members[0]);
    for number in 2000..2005 {
        let member = fixture.member(&spec, number);
        let machine = fixture.lab.namespace(&format!("late{number}"));
        timed("  admit one more", &mut || fixture.kernel.admit(&spec, std::slice::from_ref(&member)).unwrap());
        timed("  attach it", &mut || fixture.kernel.attach(&spec, &member, machine.fd()).unwrap());
        assert!(talks(&machine, &first, members[0].ipv4.into()));
    }
    timed("observe after changes", &mut || {
        assert_eq!(fixture.kernel.observe(&spec).unwrap().unwrap().admitted.len(), 1005);
    });
    timed("observe again", &mut || {
        assert_eq!(fixture.kernel.observe(&spec).unwrap().unwrap().rules, RulesState::Intact);
    });
    let again = fixture.restarted();
    timed("observe after a restart", &mut || {
        assert_eq!(again.observe(&spec).unwrap().unwrap().rules, RulesState::Intact);
    });
    timed("counters", &mut || assert_eq!(fixture.kernel.counters(spec.number).unwrap().len(), 1005));
    timed("expel 500", &mut || fixture.kernel.expel(spec.number, &members[..500]).unwrap());
    timed("remove", &mut || fixture.kernel.remove_network(spec.number).unwrap());
}
