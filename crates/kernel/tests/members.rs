//! Members of a network meet each other, and nobody else.

mod common;

use std::os::fd::AsRawFd;

use common::{Fixture, talks};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, socket};
use warren_model::record::Egress;

#[test]
fn members_meet_over_ipv4_and_ipv6_and_are_counted() {
    let fixture = Fixture::new();
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Deny);
    let [(a, machine_a), (b, machine_b)] = fixture.pair(&spec);
    for (from, to, target) in [(&machine_a, &machine_b, &b), (&machine_b, &machine_a, &a)] {
        assert!(from.pings(&target.ipv4.to_string()));
        assert!(from.pings(&target.ipv6.to_string()));
        assert!(talks(from, to, target.ipv4.into()));
        assert!(talks(from, to, target.ipv6.into()));
    }
    let counters = fixture.kernel.counters(spec.number).unwrap();
    for member in [&a, &b] {
        let counted = counters[&member.number];
        assert!(counted.private.sent.packets >= 8, "{counted:?}");
        assert!(counted.private.received.packets >= 8, "{counted:?}");
        assert_eq!(counted.egress, Default::default());
    }
    assert_eq!(fixture.kernel.spoofed(spec.number).unwrap().packets, 0);
}

#[test]
fn networks_with_the_same_range_never_meet() {
    let fixture = Fixture::new();
    let one = fixture.spec(1, "10.0.0.0/16", Egress::Deny);
    let other = fixture.spec(2, "10.0.0.0/16", Egress::Deny);
    let [(a, machine_a), (_, _machine_b)] = fixture.pair(&one);
    let lonely = fixture.member(&other, 7);
    fixture.kernel.create_network(&other, std::slice::from_ref(&lonely)).unwrap();
    let machine = fixture.machine(&other, &lonely);
    assert!(!machine.pings(&a.ipv4.to_string()), "an equal address of another network answered");
    assert!(!machine.pings(&a.ipv6.to_string()), "an address of another network answered");
    assert!(!machine_a.pings(&lonely.ipv4.to_string()));
    assert!(!machine_a.pings(&lonely.ipv6.to_string()));
}

#[test]
fn a_sealed_network_says_that_the_outside_is_prohibited() {
    let fixture = Fixture::new();
    let spec = fixture.spec(1, "192.168.10.0/24", Egress::Deny);
    let [(_, machine), _] = fixture.pair(&spec);
    let nobody = machine.attempt("ping -n -c 1 -W 1 192.168.10.99").stdout;
    assert!(nobody.contains("Unreachable"), "{nobody}");
    for outside in
        ["1.1.1.1", "2606:4700::1111", "169.254.169.254", "10.0.0.1", "8.8.8.8", "9.9.9.9", "4.4.4.4", "1.0.0.1"]
    {
        let refused = machine.attempt(&format!("ping -n -c 1 -W 1 {outside}"));
        let said = refused.stdout.to_lowercase();
        assert!(said.contains("filtered") || said.contains("prohibited"), "{outside}: {said}");
    }
    assert!(!fixture.in_router(&spec, "ip route").contains("default via"));
}

#[test]
fn the_gateway_answers_on_port_53_and_to_echo_only() {
    let fixture = Fixture::new();
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Deny);
    let [(_, machine), _] = fixture.pair(&spec);
    let sockets = fixture.kernel.gateway_sockets(&spec).unwrap();
    for gateway in [std::net::IpAddr::from(spec.gateway4), spec.gateway6.into()] {
        assert!(machine.pings(&gateway.to_string()));
        let connect = |port| {
            let target = std::net::SocketAddr::new(gateway, port);
            machine.enter(|| std::net::TcpStream::connect_timeout(&target, std::time::Duration::from_secs(5)))
        };
        assert!(connect(53).is_ok());
        assert_eq!(connect(22).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
        let udp = if gateway.is_ipv4() { &sockets.udp4 } else { &sockets.udp6 };
        machine.enter(|| {
            let any: std::net::IpAddr = if gateway.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
            let socket = std::net::UdpSocket::bind((any, 0)).unwrap();
            socket.send_to(b"question", (gateway, 53)).unwrap();
        });
        let socket = std::net::UdpSocket::from(udp.try_clone().unwrap());
        let mut bytes = [0u8; 16];
        warren_lab::eventually("the question arrives", || socket.recv_from(&mut bytes).is_ok());
    }
    assert!(!machine.pings("169.254.1.1"));
}

#[test]
fn a_spoofed_address_or_mac_is_dropped_and_counted() {
    let fixture = Fixture::new();
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Deny);
    let [(a, liar), (b, machine)] = fixture.pair(&spec);
    let other6 = fixture.member(&spec, 9).ipv6;
    let expect = |what: &str, line: &str| {
        let before = fixture.kernel.spoofed(spec.number).unwrap().packets;
        assert!(!liar.attempt(line).success, "{what}");
        assert!(fixture.kernel.spoofed(spec.number).unwrap().packets > before, "{what} was not counted");
    };
    liar.run("ip addr add 10.0.0.9/32 dev eth0");
    liar.run(&format!("ip addr add {other6}/128 dev eth0 nodad"));
    expect("a source of nobody", &format!("ping -n -c 1 -W 1 -I 10.0.0.9 {}", b.ipv4));
    expect("an IPv6 source of nobody", &format!("ping -n -c 1 -W 1 -I {other6} {}", b.ipv6));
    liar.run(&format!("ip addr add {}/32 dev lo", b.ipv4));
    expect("the address of another member", &format!("ping -n -c 1 -W 1 -I {} {}", b.ipv4, spec.gateway4));
    liar.run(&format!("ip addr del {}/32 dev lo", b.ipv4));

    liar.run("ip neigh flush dev eth0 nud all");
    expect("ARP for another address", &format!("ping -n -c 1 -W 1 -I 10.0.0.9 {}", b.ipv4));
    // What still waits for an answer would ask again under the false address.
    liar.run("ip neigh flush dev eth0 nud all");
    assert!(liar.pings(&b.ipv4.to_string()), "ARP under the true address is answered");
    liar.run("ip neigh flush dev eth0 nud all");
    expect("neighbour discovery for another address", &format!("ping -n -c 1 -W 1 -I {other6} {}", b.ipv6));
    liar.run("ip neigh flush dev eth0 nud all");
    assert!(liar.pings(&b.ipv6.to_string()), "neighbour discovery under the true address is answered");

    liar.run("ip link set eth0 address 02:6d:00:00:00:03");
    liar.run("ip neigh replace 169.254.1.1 lladdr 02:77:00:00:00:01 dev eth0 nud permanent");
    expect("a MAC of another member", &format!("ping -n -c 1 -W 1 -I {} {}", a.ipv4, b.ipv4));
    assert!(machine.pings(&spec.gateway4.to_string()), "an honest member does not notice");
}

#[test]
fn router_advertisements_and_redirects_of_a_member_are_dropped_and_counted() {
    let fixture = Fixture::new();
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Deny);
    let [(_, liar), (b, _machine)] = fixture.pair(&spec);
    for kind in [134u8, 136, 137] {
        let before = fixture.kernel.spoofed(spec.number).unwrap().packets;
        liar.enter(|| {
            let fd = socket(AddressFamily::Inet6, SockType::Raw, SockFlag::empty(), SockProtocol::IcmpV6).unwrap();
            let mut message = [0u8; 40];
            message[0] = kind;
            let to = SockaddrIn6::from(std::net::SocketAddrV6::new(b.ipv6, 0, 0, 0));
            sendto(fd.as_raw_fd(), &message, &to, MsgFlags::empty()).unwrap();
        });
        let spoofed = || fixture.kernel.spoofed(spec.number).unwrap().packets;
        warren_lab::eventually("that it is counted", || spoofed() > before);
        assert_eq!(spoofed(), before + 1, "type {kind}");
    }
}

#[test]
fn an_expelled_member_is_cut_off_and_the_others_are_not() {
    let fixture = Fixture::new();
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Deny);
    let [(a, machine_a), (b, machine_b)] = fixture.pair(&spec);
    let third = fixture.member(&spec, 4);
    fixture.kernel.admit(&spec, std::slice::from_ref(&third)).unwrap();
    let machine_c = fixture.machine(&spec, &third);
    assert!(talks(&machine_c, &machine_a, a.ipv4.into()));
    for _ in 0..2 {
        fixture.kernel.expel(spec.number, std::slice::from_ref(&b)).unwrap();
    }
    assert!(!machine_b.pings(&a.ipv4.to_string()));
    assert!(!machine_a.pings(&b.ipv4.to_string()));
    assert!(machine_c.pings(&a.ipv6.to_string()));
    for _ in 0..2 {
        fixture.kernel.admit(&spec, std::slice::from_ref(&b)).unwrap();
    }
    assert!(talks(&machine_b, &machine_a, a.ipv6.into()));
}
