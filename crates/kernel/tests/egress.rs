//! What `open` egress reaches, and what it does not.

mod common;

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::Fixture;
use warren_kernel::{KernelError, RulesState};
use warren_lab::{Internet, Lab, NOT_GLOBAL, PUBLIC_V4, PUBLIC_V6, fetch};
use warren_model::record::Egress;

fn online() -> (Internet, Fixture) {
    let lab = Lab::new();
    let internet = Internet::new(&lab);
    let host = internet.host(&lab, "host");
    (internet, Fixture::on(lab, host))
}

#[test]
fn an_open_network_reaches_the_internet_and_nothing_else() {
    let (_internet, fixture) = online();
    fixture.kernel.forwarding().enable(true).unwrap();
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Open);
    let other = fixture.spec(2, "10.0.0.0/16", Egress::Open);
    let [(a, machine), (b, neighbour)] = fixture.pair(&spec);
    let [(c, elsewhere), _] = fixture.pair(&other);

    assert_eq!(machine.enter(|| fetch(PUBLIC_V4)), Some([93, 184, 216, 2].into()), "masqueraded twice");
    assert_eq!(machine.enter(|| fetch(PUBLIC_V6)), Some("2606:2800:220::2".parse().unwrap()));
    assert!(elsewhere.enter(|| fetch(PUBLIC_V4)).is_some());
    assert!(common::talks(&machine, &neighbour, b.ipv4.into()));
    assert!(common::talks(&machine, &neighbour, b.ipv6.into()));

    for private in NOT_GLOBAL {
        assert!(fixture.host.enter(|| fetch(private)).is_some(), "{private} is there for the host");
        assert_eq!(machine.enter(|| fetch(private)), None, "{private} was reached");
    }
    fixture.host.run("ip addr add 10.55.0.1/32 dev lo");
    for own in ["93.184.216.2", "2606:2800:220::2", "10.55.0.1"] {
        assert!(!machine.pings(own), "the host's own {own} was reached");
    }
    let c4 = fixture.host.run(&format!("ip netns exec {} ip -4 -o addr show", fixture.router(&other)));
    let transit = c4.split_whitespace().find(|word| word.starts_with("24") || word.starts_with("25")).unwrap();
    for elsewhere in [c.ipv6.to_string(), transit.trim_end_matches("/32").to_owned()] {
        assert!(!machine.pings(&elsewhere), "{elsewhere} of another network was reached");
    }

    let counters = fixture.kernel.counters(spec.number).unwrap()[&a.number];
    assert!(counters.egress.sent.packets >= 8 && counters.egress.received.bytes > 100, "{counters:?}");
    assert!(counters.private.sent.packets >= 4, "{counters:?}");
    let seen = fixture.kernel.observe(&spec).unwrap().unwrap();
    assert!(seen.uplink && seen.gateway_intact, "{seen:?}");
    assert!(
        !fixture.in_router(&spec, "cat /proc/net/nf_conntrack").contains("dst=10.0.0.3"),
        "members are not tracked"
    );
}

#[test]
fn a_network_can_be_opened_and_sealed_again() {
    let (_internet, fixture) = online();
    fixture.kernel.forwarding().enable(true).unwrap();
    let sealed = fixture.spec(1, "10.0.0.0/16", Egress::Deny);
    let open = fixture.spec(1, "10.0.0.0/16", Egress::Open);
    let [(a, machine), (b, _other)] = fixture.pair(&sealed);
    assert_eq!(machine.enter(|| fetch(PUBLIC_V4)), None);
    fixture.kernel.create_network(&open, &[a.clone(), b.clone()]).unwrap();
    assert!(machine.enter(|| fetch(PUBLIC_V4)).is_some());
    fixture.kernel.create_network(&sealed, &[a, b]).unwrap();
    assert_eq!(machine.enter(|| fetch(PUBLIC_V4)), None);
    let seen = fixture.kernel.observe(&sealed).unwrap().unwrap();
    assert!(!seen.uplink);
    assert!(!fixture.host.run("ip -o link").contains(&warren_kernel::names::uplink_prefix(&fixture.installation)));
}

#[test]
fn without_consent_forwarding_stays_off_and_open_egress_is_refused() {
    let (_internet, fixture) = online();
    let state = || fixture.kernel.forwarding().state().unwrap();
    // A new namespace may start with what the root namespace has.
    fixture.host.enter(|| {
        std::fs::write("/proc/sys/net/ipv4/conf/all/forwarding", "0").unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "0").unwrap();
    });
    assert!(matches!(fixture.kernel.forwarding().enable(false), Err(KernelError::ForwardingOff { .. })));
    assert!(!state().ipv4 && !state().ipv6);
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Open);
    assert!(matches!(fixture.kernel.create_network(&spec, &[]), Err(KernelError::ForwardingOff { .. })));

    fixture.host.run("sysctl -qw net.ipv6.conf.wan0.accept_ra=1");
    fixture.kernel.forwarding().enable(true).unwrap();
    assert!(state().ipv4 && state().ipv6);
    assert_eq!(fixture.host.run("sysctl -n net.ipv6.conf.wan0.accept_ra").trim(), "2");
    fixture.kernel.create_network(&spec, &[]).unwrap();
    fixture.kernel.remove_network(spec.number).unwrap();
    fixture.kernel.forwarding().restore().unwrap();
    assert!(!state().ipv4 && !state().ipv6);
    assert_eq!(fixture.host.run("nft list ruleset"), "");
}

#[test]
fn consented_forwarding_serves_no_other_links_of_the_host() {
    let (internet, fixture) = online();
    let guest = fixture.lab.namespace("guest");
    fixture.lab.connect(&fixture.host, "lan0", &guest, "eth0");
    fixture.host.run("ip addr add 198.51.100.1/24 dev lan0");
    guest.run("ip addr add 198.51.100.2/24 dev eth0");
    guest.run("ip route add default via 198.51.100.1");
    internet.namespace.run("ip route add 198.51.100.0/24 via 93.184.216.2");
    fixture.host.enter(|| std::fs::write("/proc/sys/net/ipv4/conf/all/forwarding", "0").unwrap());
    fixture.kernel.forwarding().enable(true).unwrap();
    assert!(!guest.pings(PUBLIC_V4), "Warren's forwarding opened another link");
    fixture.kernel.forwarding().restore().unwrap();
    fixture.host.enter(|| {
        std::fs::write("/proc/sys/net/ipv4/conf/all/forwarding", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
    });
    fixture.kernel.forwarding().enable(false).unwrap();
    fixture.kernel.create_network(&fixture.spec(1, "10.0.0.0/16", Egress::Open), &[]).unwrap();
    assert!(guest.pings(PUBLIC_V4), "what was forwarded before goes on");
    fixture.kernel.remove_network(warren_model::NetworkNumber::FIRST).unwrap();
    assert_eq!(fixture.host.run("nft list ruleset"), "");
    assert!(!fixture.installation.run_directory().exists());
}

#[test]
fn a_server_that_moves_to_another_namespace_leaves_the_old_one_as_it_was() {
    let (_internet, fixture) = online();
    let off = |namespace: &warren_lab::Namespace| {
        for setting in ["ipv4.conf.all.forwarding=0", "ipv6.conf.all.forwarding=0", "ipv4.conf.all.accept_redirects=0"]
        {
            namespace.run(&format!("sysctl -qw net.{setting}"));
        }
        namespace.run("sysctl -qw net.ipv4.conf.lo.forwarding=1");
    };
    let settings = |namespace: &warren_lab::Namespace| {
        let links = if namespace.name() == fixture.host.name() { "ip -o link show" } else { "ip -o link show dev lo" };
        namespace.run("sysctl net.ipv4.conf net.ipv6.conf") + &namespace.run("nft list ruleset") + &namespace.run(links)
    };
    off(&fixture.host);
    let before = settings(&fixture.host);
    fixture.kernel.forwarding().enable(true).unwrap();
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Open);
    fixture.kernel.create_network(&spec, &[]).unwrap();
    assert_ne!(settings(&fixture.host), before);

    let elsewhere = fixture.lab.namespace("elsewhere");
    off(&elsewhere);
    let before_elsewhere = settings(&elsewhere);
    let (installation, ula) = (fixture.installation.clone(), fixture.ula);
    let moved = elsewhere.enter(|| warren_kernel::Kernel::new(installation, ula)).unwrap();
    moved.forwarding().enable(true).unwrap();
    moved.create_network(&spec, &[]).unwrap();
    assert_eq!(settings(&fixture.host), before);
    assert!(moved.observe(&spec).unwrap().unwrap().uplink);

    // Whoever removes it finds the place by itself.
    let remover = warren_kernel::Kernel::of_installation(fixture.installation.clone(), fixture.ula).unwrap();
    remover.remove_network(spec.number).unwrap();
    remover.forwarding().restore().unwrap();
    assert_eq!(settings(&elsewhere), before_elsewhere);
    assert!(!fixture.installation.run_directory().exists());
}

#[test]
fn a_member_that_begins_flows_without_end_leaves_room_for_the_others() {
    let (_internet, fixture) = online();
    fixture.kernel.forwarding().enable(true).unwrap();
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Open);
    let [(_, flooding), (b, other)] = fixture.pair(&spec);
    let stop = AtomicBool::new(false);
    let begun = Instant::now();
    let sent = std::thread::scope(|scope| {
        let flood = scope.spawn(|| flooding.enter(|| flood(&stop)));
        for _ in 0..5 {
            assert!(other.enter(|| fetch(PUBLIC_V4)).is_some() && other.enter(|| fetch(PUBLIC_V6)).is_some());
            std::thread::sleep(Duration::from_millis(200));
        }
        stop.store(true, Ordering::Relaxed);
        flood.join().unwrap()
    });
    // Of each family: what one member may begin at once, and then every second.
    let most = 2 * (1000 + 200 * (begun.elapsed().as_secs() + 1)) + 100;
    assert!(sent > 4 * most, "{sent} are no flood");
    const COUNT: &str = "cat /proc/sys/net/netfilter/nf_conntrack_count";
    for count in [fixture.in_router(&spec, COUNT), fixture.host.run(COUNT)] {
        assert!(count.trim().parse::<u64>().unwrap() <= most, "{count} of at most {most} flows are there");
    }
    let dropped = fixture.in_router(&spec, "nft list counter inet warren flooded");
    assert!(!dropped.contains("packets 0 "), "{dropped}");
    let timeout = fixture.in_router(&spec, "cat /proc/sys/net/netfilter/nf_conntrack_udp_timeout");
    assert_eq!(timeout.trim(), "10");

    // One flow may be as fast as it likes, also when nobody answers.
    let before = fixture.kernel.counters(spec.number).unwrap()[&b.number].egress.sent.packets;
    other.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for _ in 0..40 {
            (0..100).for_each(|_| assert_eq!(socket.send_to(b"x", (PUBLIC_V4, 9)).unwrap(), 1));
            // Links keep no more than a thousand for a kernel that is busy.
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let left = || fixture.kernel.counters(spec.number).unwrap()[&b.number].egress.sent.packets - before;
    warren_lab::eventually("that most of 4000 packets leave", || left() >= 3000);

    // Neither that somebody is limited nor a new load of the rules passes for a change by others.
    let observe = |kernel: &warren_kernel::Kernel| kernel.observe(&spec).unwrap().unwrap().rules;
    assert_eq!(observe(&fixture.restarted()), RulesState::Intact);
    let members = [2, 3].map(|number| fixture.member(&spec, number));
    fixture.kernel.load_rules(&spec, &members).unwrap();
    assert_eq!(observe(&fixture.kernel), RulesState::Intact);
    assert_eq!(fixture.in_router(&spec, "nft list counter inet warren flooded"), dropped);
}

#[test]
fn a_network_has_no_more_than_its_share_of_the_connections_that_the_host_tracks() {
    let (_internet, fixture) = online();
    fixture.kernel.forwarding().enable(true).unwrap();
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Open);
    let members: Vec<_> = (2..8).map(|number| fixture.member(&spec, number)).collect();
    fixture.kernel.create_network(&spec, &members).unwrap();
    let [(_, other), _] = fixture.pair(&fixture.spec(2, "10.0.0.0/16", Egress::Open));
    // All of them before the first flow, which is forgotten after ten seconds.
    let machines: Vec<_> = members.iter().map(|member| fixture.machine(&spec, member)).collect();
    for machine in &machines {
        // As many as one member may begin at once.
        machine.enter(|| {
            let (four, six) = (UdpSocket::bind("0.0.0.0:0").unwrap(), UdpSocket::bind("[::]:0").unwrap());
            for port in 1..=1000 {
                four.send_to(b"x", (PUBLIC_V4, port)).unwrap();
                six.send_to(b"x", (PUBLIC_V6, port)).unwrap();
                // Links keep no more than a thousand for a kernel that is busy.
                if port % 100 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
    }
    let count = fixture.host.run("cat /proc/sys/net/netfilter/nf_conntrack_count");
    let count: u32 = count.trim().parse().unwrap();
    // A few of the last tick may still be on their way out.
    assert!(count < 8300, "{count} flows are there");
    let table = warren_kernel::names::host_table(&fixture.installation);
    let crowded = fixture.host.run(&format!("nft list counter inet {table} crowded"));
    assert!(!crowded.contains("packets 0 "), "{crowded}");
    assert!(other.enter(|| fetch(PUBLIC_V4)).is_some() && other.enter(|| fetch(PUBLIC_V6)).is_some());
    assert!(fixture.kernel.observe(&spec).unwrap().unwrap().uplink, "counting passed for a change by others");
}

/// Begins flows to as many ports as there are, of both families, and says how many.
fn flood(stop: &AtomicBool) -> u64 {
    let (four, six) = (UdpSocket::bind("0.0.0.0:0").unwrap(), UdpSocket::bind("[::]:0").unwrap());
    let mut sent = 0;
    for port in 1..=u16::MAX {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        for (socket, address) in [(&four, PUBLIC_V4), (&six, PUBLIC_V6)] {
            // A full buffer is no reason to stop.
            sent += u64::from(socket.send_to(b"x", (address, port)).is_ok());
        }
    }
    sent
}
