//! What policy allows passes, what it does not is refused, and a change is there with the next packet.

mod common;

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::Fixture;
use common::trio::{Connection, DATABASES, OTHERS, SOON, Trio, WORKERS, any, bound, raw};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recv, sendto, socket,
};
use warren_kernel::RulesState;
use warren_lab::{Internet, Lab, PUBLIC_V4, PUBLIC_V6, fetch};
use warren_model::policy::compile::{Carrier, Default, Exception, OUTSIDE};
use warren_model::policy::{Group, PortRange};
use warren_model::record::Egress;

const CLASS: Group = Group(0x14);

fn listed(from: Group, to: Group, carrier: Carrier, first: u16, last: u16) -> Exception {
    Exception { from, to, carrier, ports: PortRange { first, last } }
}

fn port(from: Group, to: Group, carrier: Carrier, port: u16) -> Exception {
    listed(from, to, carrier, port, port)
}

fn all(from: Group, to: Group, carrier: Carrier) -> Exception {
    listed(from, to, carrier, 0, u16::MAX)
}

const YES: [bool; 2] = [true, true];
const NO: [bool; 2] = [false, false];

#[test]
fn where_nothing_is_allowed_by_itself_only_what_a_rule_allows_passes() {
    let trio = Trio::new(
        Default::Refuse,
        &[
            port(WORKERS, DATABASES, Carrier::Tcp, 5432),
            listed(WORKERS, DATABASES, Carrier::Tcp, 50_000, 50_010),
            listed(WORKERS, DATABASES, Carrier::Udp, 5000, 5010),
            all(WORKERS, DATABASES, Carrier::Icmp),
            all(OTHERS, WORKERS, Carrier::Tcp),
        ],
    );
    assert_eq!(trio.tcp(0, 1, 5432), YES);
    for port in [50_000, 50_005, 50_010] {
        assert_eq!(trio.tcp(0, 1, port), YES, "{port}");
    }
    for port in [22, 5431, 5433, 49_999, 50_011, 53] {
        assert_eq!(trio.tcp(0, 1, port), NO, "{port}");
    }
    assert_eq!(trio.tcp(1, 0, 5432), NO, "nobody may begin in the other direction");
    assert_eq!(trio.tcp(2, 1, 5432), NO, "nobody else may");
    for port in [1, 22, 65_535] {
        assert_eq!(trio.tcp(2, 0, port), YES, "{port}");
    }
    assert_eq!([trio.udp(0, 1, 5000, 10), trio.udp(0, 1, 5010, 10)], [YES, YES]);
    assert_eq!([trio.udp(0, 1, 4999, 10), trio.udp(0, 1, 5011, 10), trio.udp(1, 0, 5000, 10)], [NO, NO, NO]);
    assert_eq!([trio.ping(0, 1), trio.ping(1, 0), trio.ping(2, 0)], [YES, NO, NO]);
    assert_eq!(trio.udp(0, 1, 5001, 5000), YES, "also in fragments");
    assert_eq!(trio.udp(0, 1, 6001, 5000), NO, "also in fragments");
}

#[test]
fn where_everything_is_allowed_by_itself_what_a_rule_forbids_is_refused() {
    let trio = Trio::new(
        Default::Accept,
        &[
            port(WORKERS, DATABASES, Carrier::Tcp, 22),
            all(WORKERS, DATABASES, Carrier::Udp),
            all(OTHERS, DATABASES, Carrier::Tcp),
            all(OTHERS, DATABASES, Carrier::Udp),
            all(OTHERS, DATABASES, Carrier::Icmp),
            all(OTHERS, DATABASES, Carrier::Other),
        ],
    );
    assert_eq!([trio.tcp(0, 1, 22), trio.tcp(0, 1, 23), trio.tcp(1, 0, 22)], [NO, YES, YES]);
    assert_eq!([trio.udp(0, 1, 5000, 10), trio.udp(1, 0, 5000, 10)], [NO, YES], "answers pass");
    assert_eq!([trio.tcp(2, 1, 80), trio.udp(2, 1, 80, 3000), trio.ping(2, 1)], [NO, NO, NO]);
    assert_eq!([trio.tcp(1, 2, 80), trio.udp(1, 2, 80, 3000), trio.ping(1, 2)], [YES, YES, YES], "answers pass");
    assert_eq!([trio.tcp(0, 2, 22), trio.tcp(2, 0, 22), trio.ping(0, 1)], [YES, YES, YES]);
}

#[test]
fn protocols_without_ports_and_odd_packets_pass_just_where_all_is_allowed() {
    let everything = [Carrier::Tcp, Carrier::Udp, Carrier::Icmp, Carrier::Other].map(|one| all(WORKERS, OTHERS, one));
    let tcp = all(WORKERS, DATABASES, Carrier::Tcp);
    for (inside, exceptions, to, passes) in [
        (Default::Refuse, vec![tcp], 1, false),
        (Default::Refuse, everything.to_vec(), 2, true),
        (Default::Accept, vec![tcp], 1, true),
        (Default::Accept, everything.to_vec(), 2, false),
    ] {
        let trio = Trio::new(inside, &exceptions);
        let received = |index: usize| {
            let counters = trio.fixture.kernel.counters(trio.spec.number).unwrap();
            counters[&trio.members[index].number].private.received.packets
        };
        // SCTP, GRE, ESP, one that nobody knows, and of IPv6 no protocol at all.
        for protocol in [132, 47, 50, 253, 59] {
            let before = received(to);
            let sent = trio.machines[0].enter(|| raw(trio.addresses(to), protocol));
            let arrived = received(to) - before;
            assert_eq!(arrived, if passes { sent } else { 0 }, "{inside:?} {protocol}");
        }
    }
}

#[test]
fn a_revoked_flow_is_cut_in_both_directions_and_another_one_goes_on() {
    let (allow, other) = (port(WORKERS, DATABASES, Carrier::Tcp, 5432), port(WORKERS, DATABASES, Carrier::Tcp, 80));
    let back = all(DATABASES, WORKERS, Carrier::Tcp);
    for back in [None, Some(back)] {
        let mut trio = Trio::new(Default::Refuse, &[allow, other]);
        trio.apply(|rules| rules.exceptions.extend(back));
        for address in trio.addresses(1) {
            let open = |port| {
                Connection::open(&trio.machines[0], &trio.machines[1], SocketAddr::new(address, port), 0).unwrap()
            };
            let (mut revoked, mut kept) = (open(5432), open(80));
            assert!(revoked.carries() && kept.carries());
            trio.apply(|rules| rules.exceptions.retain(|one| *one != allow));
            assert!(revoked.is_cut(), "{address}, the other direction allowed: {}", back.is_some());
            assert!(kept.carries());
            assert_eq!(trio.tcp(0, 1, 5432), NO);
            trio.apply(|rules| rules.exceptions.extend([allow]));
            assert_eq!(trio.tcp(0, 1, 5432), YES);
            assert!(kept.carries());
        }
    }
}

#[test]
fn a_flow_that_is_newly_forbidden_is_cut_where_everything_else_is_allowed() {
    let mut trio = Trio::new(Default::Accept, &[port(OTHERS, DATABASES, Carrier::Tcp, 1)]);
    for address in trio.addresses(1) {
        let open =
            |port| Connection::open(&trio.machines[0], &trio.machines[1], SocketAddr::new(address, port), 0).unwrap();
        let (mut revoked, mut kept) = (open(5432), open(80));
        // A server whose port is one that systems choose from.
        let mut high = open(0);
        assert!(revoked.carries() && kept.carries() && high.carries());
        let high_port = high.server.local_addr().unwrap().port();
        let forbidden = [5432, high_port].map(|one| port(WORKERS, DATABASES, Carrier::Tcp, one));
        trio.apply(|rules| rules.exceptions.extend(forbidden));
        assert!(revoked.is_cut() && high.is_cut(), "{address}");
        assert!(kept.carries());
        trio.apply(|rules| rules.exceptions.retain(|one| !forbidden.contains(one)));
        assert!(kept.carries());
    }
}

#[test]
fn flows_of_the_fast_path_go_on_where_the_first_rules_allow_them_and_end_where_not() {
    let allowed =
        [port(WORKERS, DATABASES, Carrier::Tcp, 5432), listed(WORKERS, DATABASES, Carrier::Tcp, 40_000, 65_535)];
    let forbidden = port(WORKERS, DATABASES, Carrier::Tcp, 22);
    for (inside, exceptions) in [(Default::Refuse, allowed.to_vec()), (Default::Accept, vec![forbidden])] {
        for family in [0, 1] {
            let mut trio = Trio::new(Default::Accept, &[]);
            let target = |port| SocketAddr::new(trio.addresses(1)[family], port);
            let open = |port, from| Connection::open(&trio.machines[0], &trio.machines[1], target(port), from).unwrap();
            let (mut kept, mut high, mut ended, mut odd) = (open(5432, 0), open(40_001, 0), open(22, 0), open(22, 999));
            assert!(kept.carries() && high.carries() && ended.carries() && odd.carries());
            trio.apply(|rules| {
                rules.inside = inside;
                rules.exceptions = exceptions.iter().copied().collect();
            });
            assert!(kept.carries() && high.carries(), "{inside:?}");
            assert!(ended.is_cut() && odd.is_cut(), "{inside:?}");
            trio.apply(|rules| {
                rules.inside = Default::Accept;
                rules.exceptions.clear();
            });
            assert!(kept.carries() && high.carries(), "and back");
        }
    }
}

#[test]
fn an_answer_is_none_of_a_flow_of_its_own() {
    let rules = [listed(WORKERS, DATABASES, Carrier::Udp, 5000, 5010), port(WORKERS, DATABASES, Carrier::Tcp, 5432)];
    let mut trio = Trio::new(Default::Refuse, &rules);
    for (here, there) in trio.addresses(0).into_iter().zip(trio.addresses(1)) {
        let client = bound(&trio.machines[0], SocketAddr::new(here, 7000));
        let server = bound(&trio.machines[1], SocketAddr::new(there, 5000));
        let mut buffer = [0; 10];
        server.send_to(b"first", (here, 7000)).unwrap();
        assert!(client.recv(&mut buffer).is_err(), "the server began");
        client.send_to(b"question", (there, 5000)).unwrap();
        assert_eq!(server.recv(&mut buffer).unwrap(), 8);
        server.send_to(b"answer", (here, 7000)).unwrap();
        assert_eq!(client.recv(&mut buffer).unwrap(), 6);
        server.send_to(b"another", (here, 7001)).unwrap();
        // Somebody tells the sender that nobody is there: about what is allowed, the member itself.
        let probe = bound(&trio.machines[0], SocketAddr::new(here, 7002));
        probe.connect((there, 5005)).unwrap();
        probe.send(b"anybody?").unwrap();
        assert_eq!(probe.recv(&mut buffer).unwrap_err().kind(), ErrorKind::ConnectionRefused);

        trio.apply(|rules| rules.exceptions.clear());
        server.send_to(b"answer", (here, 7000)).unwrap();
        assert!(client.recv(&mut buffer).is_err(), "what was asked before is not allowed any more");
        trio.apply(|kept| kept.exceptions = rules.into());
    }
}

#[test]
fn refusals_are_counted_exactly_and_receivers_count_only_what_passes() {
    let trio = Trio::new(Default::Refuse, &[port(WORKERS, DATABASES, Carrier::Udp, 53)]);
    for (address, so_far) in trio.addresses(1).into_iter().zip([0, 500]) {
        let socket = bound(&trio.machines[0], any(address));
        for _ in 0..500 {
            // A refusal of an earlier one is told by the next call, which then sends nothing.
            while socket.send_to(b"refused", (address, 5000)).is_err() {}
        }
        for _ in 0..100 {
            while socket.send_to(b"passes", (address, 53)).is_err() {}
        }
        warren_lab::eventually("all of them are counted", || trio.refused(0) == so_far + 500);
    }
    let counters = trio.fixture.kernel.counters(trio.spec.number).unwrap();
    assert_eq!(counters[&trio.members[1].number].private.received.packets, 200);
    assert!(counters[&trio.members[0].number].private.sent.packets >= 1200);
    assert_eq!(trio.refused(2), 0);
    // To the outside, to the gateway, and to a synthetic address.
    for (index, target) in ["1.1.1.1:53", "10.0.0.1:22", "198.18.0.1:443"].iter().enumerate() {
        let target: SocketAddr = target.parse().unwrap();
        let socket = bound(&trio.machines[2], any(target.ip()));
        socket.send_to(b"x", target).unwrap();
        assert_eq!(trio.refused(2), 1 + index as u64, "{target}");
    }
    // A load keeps what was counted.
    trio.fixture.kernel.load_rules(&trio.spec, &trio.members).unwrap();
    assert_eq!((trio.refused(0), trio.refused(2)), (1000, 3));
}

#[test]
fn ranges_outside_are_reached_as_the_rules_allow_and_a_revoked_flow_ends() {
    let lab = Lab::new();
    let internet = Internet::new(&lab);
    let host = internet.host(&lab, "host");
    let fixture = Fixture::on(lab, host);
    fixture.kernel.forwarding().enable(true).unwrap();
    internet.namespace.run("ip addr add 8.8.8.8 dev lo");
    let web = port(WORKERS, CLASS, Carrier::Tcp, 80);
    let mut trio = Trio::on(fixture, |rules| {
        rules.exits = true;
        for range in ["1.1.1.0/24", "2606:4700::/32"] {
            rules.classes.insert(range.parse().unwrap(), CLASS);
        }
        rules.exceptions.insert(web);
        rules.exceptions.insert(port(DATABASES, OUTSIDE, Carrier::Tcp, 80));
    });
    let reaches = |trio: &Trio, index: usize| {
        [PUBLIC_V4, PUBLIC_V6, "8.8.8.8"].map(|to| trio.machines[index].enter(|| fetch(to)).is_some())
    };
    assert_eq!(reaches(&trio, 0), [true, true, false]);
    assert_eq!(reaches(&trio, 1), [false, false, true]);
    assert_eq!(reaches(&trio, 2), [false, false, false]);
    assert!(!trio.machines[0].pings(PUBLIC_V4), "only what is allowed");
    assert_eq!([trio.tcp(2, 0, 80), trio.udp(2, 0, 80, 10)], [YES, YES], "members are among themselves");
    assert!(trio.refused(2) > 0);

    for address in [PUBLIC_V4, PUBLIC_V6] {
        trio.apply(|rules| rules.exceptions = [all(WORKERS, CLASS, Carrier::Tcp)].into());
        let target: SocketAddr = SocketAddr::new(address.parse().unwrap(), 4000);
        let mut flow = Connection::open(&trio.machines[0], &internet.namespace, target, 0).unwrap();
        assert!(flow.carries());
        trio.apply(|rules| rules.exceptions.extend([port(WORKERS, OUTSIDE, Carrier::Tcp, 80)]));
        assert!(flow.carries(), "a rule about something else");
        trio.apply(|rules| rules.exceptions.retain(|one| *one != all(WORKERS, CLASS, Carrier::Tcp)));
        assert!(flow.is_cut(), "{address}");
    }

    // Open, but for something.
    trio.apply(|rules| {
        rules.outside = Default::Accept;
        rules.exceptions = [web].into();
    });
    assert_eq!(reaches(&trio, 0), [false, false, true]);
    assert_eq!(reaches(&trio, 2), [true, true, true]);
    assert!(trio.machines[0].pings(PUBLIC_V4));
    trio.apply(|rules| {
        rules.classes.clear();
        rules.exceptions.clear();
    });
    assert_eq!(reaches(&trio, 0), [true, true, true]);
}

#[test]
fn what_others_change_in_the_policys_elements_is_seen_and_made_good() {
    let rules = [port(WORKERS, DATABASES, Carrier::Tcp, 5432), listed(WORKERS, DATABASES, Carrier::Tcp, 6000, 6010)];
    let trio = Trio::new(Default::Refuse, &rules);
    let kernel = &trio.fixture.kernel;
    for damage in [
        "flush set inet warren talk_ports",
        "flush set inet warren talk_ranges",
        "add element inet warren talk { 0x13 . 0:12 . 6 }",
        "delete element inet warren sources4 { 10.0.0.2 }",
        "add element inet warren targets4 { 10.0.0.77 : 0:12 }",
        "add rule inet warren inside accept",
        "add element inet warren current { 5 }",
    ] {
        for again in [None, Some(trio.fixture.restarted())] {
            assert!(kernel.observe(&trio.spec).unwrap().unwrap().policy, "before {damage}");
            // As one word for each argument, without a shell.
            trio.fixture.in_router(&trio.spec, &format!("nft {damage}"));
            let kernel = again.as_ref().unwrap_or(kernel);
            assert!(!kernel.observe(&trio.spec).unwrap().unwrap().policy, "after {damage}");
            kernel.apply_policy(&trio.spec, &trio.members).unwrap();
            let seen = kernel.observe(&trio.spec).unwrap().unwrap();
            assert!(seen.policy && seen.rules == RulesState::Intact, "{damage}: {seen:?}");
            // Else this would be a change, too, and the next damage come in between.
            trio.remembering();
            assert_eq!([trio.tcp(0, 1, 5432), trio.tcp(0, 1, 6005), trio.tcp(2, 1, 5432)], [YES, YES, NO]);
        }
    }
}

#[test]
fn a_member_comes_with_its_group_and_leaves_with_it() {
    let mut trio = Trio::new(Default::Refuse, &[all(WORKERS, DATABASES, Carrier::Tcp)]);
    let fourth = trio.fixture.member(&trio.spec, 9);
    let addresses = [IpAddr::from(fourth.ipv4), fourth.ipv6.into()];
    Arc::make_mut(&mut trio.spec.rules).groups.extend(addresses.map(|address| (address, WORKERS)));
    trio.fixture.kernel.admit(&trio.spec, std::slice::from_ref(&fourth)).unwrap();
    let observe = || trio.fixture.kernel.observe(&trio.spec).unwrap().unwrap();
    assert!(observe().policy && observe().admitted.contains(&fourth));
    let machine = trio.fixture.machine(&trio.spec, &fourth);
    for address in trio.addresses(1) {
        let target = SocketAddr::new(address, 5432);
        assert!(Connection::open(&machine, &trio.machines[1], target, 0).unwrap().carries());
    }
    let groups = |set: &str| trio.fixture.in_router(&trio.spec, &format!("nft list map inet warren {set}"));
    assert!(groups("sources4").contains("10.0.0.9") && groups("targets6").contains(&fourth.ipv6.to_string()));
    trio.fixture.kernel.expel(trio.spec.number, std::slice::from_ref(&fourth)).unwrap();
    for set in ["sources4", "targets4"] {
        assert!(!groups(set).contains("10.0.0.9"), "{set}");
    }
    assert!(!groups("sources6").contains(&fourth.ipv6.to_string()));
    assert!(observe().policy, "a group of nobody who is here does not matter");
    trio.fixture.kernel.admit(&trio.spec, std::slice::from_ref(&fourth)).unwrap();
    assert!(groups("sources4").contains("10.0.0.9"));
    // Also by a daemon that knows nothing yet.
    trio.fixture.restarted().expel(trio.spec.number, std::slice::from_ref(&fourth)).unwrap();
    assert!(!groups("sources4").contains("10.0.0.9") && !observe().admitted.contains(&fourth));
}

#[test]
fn one_rule_of_ten_thousand_changes_in_milliseconds() {
    let fixture = Fixture::new();
    let mut spec = fixture.spec(1, "10.0.0.0/16", Egress::Deny);
    let members: Vec<_> = (2..1002).map(|number| fixture.member(&spec, number)).collect();
    let rules = Arc::make_mut(&mut spec.rules);
    rules.inside = Default::Refuse;
    for member in &members {
        let group = Group(100 + member.number.get());
        rules.groups.extend([(IpAddr::from(member.ipv4), group), (IpAddr::from(member.ipv6), group)]);
    }
    for number in 0..10_000u32 {
        let (from, to) = (Group(102 + number % 1000), Group(102 + (number / 10 + 7) % 1000));
        let first = 1000 + (number / 1000) as u16 * 20;
        // Some are ranges.
        let last = if number % 10 == 0 { first + 5 } else { first };
        rules.exceptions.insert(listed(from, to, Carrier::Tcp, first, last));
    }
    assert_eq!(rules.exceptions.len(), 10_000);
    let timed = |what: &str, work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        let took = start.elapsed();
        println!("{what}: {:.2} ms", took.as_secs_f64() * 1000.0);
        took
    };
    timed("create", &mut || fixture.kernel.create_network(&spec, &members).unwrap());
    let machines = [0, 1].map(|index: usize| fixture.machine(&spec, &members[index]));
    let target = SocketAddr::new(members[1].ipv4.into(), 5432);
    let one = port(Group(102), Group(103), Carrier::Tcp, 5432);
    let mut times = Vec::new();
    for turn in 0..40 {
        let allow = turn % 2 == 0;
        let rules = Arc::make_mut(&mut spec.rules);
        if allow {
            rules.exceptions.insert(one)
        } else {
            rules.exceptions.remove(&one)
        };
        times.push(timed("apply", &mut || fixture.kernel.apply_policy(&spec, &members).unwrap()));
        assert_eq!(Connection::open(&machines[0], &machines[1], target, 0).is_ok(), allow);
    }
    times.sort();
    println!("median {:?}, worst {:?}", times[20], times[39]);
    // Loading all of them takes far longer each time.
    assert!(times[20] < Duration::from_millis(500), "{times:?}");
    timed("observe", &mut || assert!(fixture.kernel.observe(&spec).unwrap().unwrap().policy));
    timed("observe again", &mut || assert!(fixture.kernel.observe(&spec).unwrap().unwrap().policy));
    let again = fixture.restarted();
    timed("observe after a restart", &mut || assert!(again.observe(&spec).unwrap().unwrap().policy));
    timed("load", &mut || fixture.kernel.load_rules(&spec, &members).unwrap());
    timed("expel", &mut || fixture.kernel.expel(spec.number, &members[5..6]).unwrap());
    timed("admit", &mut || fixture.kernel.admit(&spec, &members[5..6]).unwrap());
    assert!(fixture.kernel.observe(&spec).unwrap().unwrap().policy);
}

#[test]
fn an_icmp_error_passes_only_between_those_whose_flow_it_may_be_about() {
    for (default, exceptions) in [
        (Default::Refuse, vec![port(WORKERS, DATABASES, Carrier::Udp, 5000)]),
        (Default::Accept, vec![all(OTHERS, WORKERS, Carrier::Udp), all(OTHERS, WORKERS, Carrier::Icmp)]),
    ] {
        let trio = Trio::new(default, &exceptions);
        let (worker, database) = (trio.members[0].ipv4, trio.members[1].ipv4);
        // A flow that is allowed, and that everybody may say something about.
        let flow = bound(&trio.machines[0], SocketAddr::new(worker.into(), 44_446));
        let _server = bound(&trio.machines[1], SocketAddr::new(database.into(), 5000));
        flow.send_to(b"x", (database, 5000)).unwrap();
        let error = port_unreachable((worker, 44_446), (database, 5000));
        let heard_from = |index: usize, within: Duration| {
            let listener = trio.machines[0].enter(icmp_socket);
            trio.machines[index].enter(|| {
                let to = SockaddrStorage::from(SocketAddr::new(worker.into(), 0));
                sendto(icmp_socket().as_raw_fd(), &error, &to, MsgFlags::empty()).unwrap();
            });
            let mut buffer = [0; 256];
            let deadline = Instant::now() + within;
            while Instant::now() < deadline {
                let length = recv(listener.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).unwrap_or(0);
                if buffer[..length].ends_with(b"secret") {
                    return true;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            false
        };
        assert!(heard_from(1, SOON), "{default:?}: the other end of the flow is heard");
        assert!(
            !heard_from(2, Duration::from_millis(300)),
            "{default:?}: a third party sent something in an error about a flow of others"
        );
    }
}

fn icmp_socket() -> OwnedFd {
    socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp).unwrap()
}

/// An ICMP error (RFC 792) about a datagram from the one to the other, with more in it than an error needs.
fn port_unreachable(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Vec<u8> {
    let mut packet = vec![3, 3, 0, 0, 0, 0, 0, 0];
    packet.extend([0x45, 0, 0, 34, 0, 1, 0x40, 0, 64, 17, 0, 0]);
    packet.extend(from.0.octets());
    packet.extend(to.0.octets());
    for field in [from.1, to.1, 14, 0] {
        packet.extend(field.to_be_bytes());
    }
    packet.extend(b"secret");
    let sum = packet.chunks(2).fold(0u32, |sum, pair| sum + u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let folded = (sum & 0xffff) + (sum >> 16);
    packet[2..4].copy_from_slice(&(!(folded as u16 + (folded >> 16) as u16)).to_be_bytes());
    packet
}
