//! Refused packets are reported with what they were.

mod common;

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Fixture, talks};
use tokio::sync::mpsc::Receiver;
use warren_kernel::{DeniedPacket, NetworkSpec, Refusal, names};
use warren_lab::{Namespace, eventually};
use warren_model::MacAddress;
use warren_model::policy::compile::Default;
use warren_model::record::Egress;

/// Ends what goes on until then, also where an assertion fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A network in which nobody may talk to anybody.
fn closed(fixture: &Fixture, number: u16) -> NetworkSpec {
    let mut spec = fixture.spec(number, "10.0.0.0/16", Egress::Deny);
    Arc::make_mut(&mut spec.rules).inside = Default::Refuse;
    spec
}

fn dial(from: &Namespace, to: SocketAddr) {
    assert!(from.enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(1))).is_err(), "{to}");
}

/// The first report that is as wanted. The refusal is provoked again and again, since reports of a member are limited.
fn next(
    packets: &mut Receiver<DeniedPacket>,
    mut provoke: impl FnMut(),
    wanted: impl Fn(&DeniedPacket) -> bool,
) -> DeniedPacket {
    let mut found = None;
    eventually("the report of a refused packet", || {
        provoke();
        std::thread::sleep(Duration::from_millis(50));
        while let Ok(packet) = packets.try_recv() {
            if wanted(&packet) {
                found = Some(packet);
            }
        }
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn a_refused_packet_is_reported_with_its_addresses_ports_and_link() {
    let fixture = Fixture::new();
    let mut packets = fixture.kernel.denied().unwrap();
    let spec = closed(&fixture, 1);
    let [(a, machine), (b, _other)] = fixture.pair(&spec);
    let link = names::member_link(&fixture.installation, a.number);
    for (from, to) in [(IpAddr::from(a.ipv4), IpAddr::from(b.ipv4)), (a.ipv6.into(), b.ipv6.into())] {
        let udp = machine.enter(|| UdpSocket::bind((if to.is_ipv4() { "0.0.0.0" } else { "::" }, 0))).unwrap();
        let port = udp.local_addr().unwrap().port();
        let send = || assert_eq!(udp.send_to(b"x", (to, 5432)).unwrap(), 1);
        let packet = next(&mut packets, send, |packet| packet.protocol == 17 && packet.source == from);
        let expected = DeniedPacket {
            network: spec.number,
            kind: Refusal::Network,
            source: from,
            destination: to,
            protocol: 17,
            source_port: Some(port),
            destination_port: Some(5432),
            inbound: Some(link.clone()),
            mac: Some(MacAddress::of_member(a.number)),
        };
        assert_eq!(packet, expected);
        let connect = || dial(&machine, SocketAddr::new(to, 443));
        let packet = next(&mut packets, connect, |packet| packet.protocol == 6 && packet.source == from);
        assert!(packet.source_port.is_some());
        assert_eq!(
            DeniedPacket { source_port: None, ..packet },
            DeniedPacket { protocol: 6, source_port: None, destination_port: Some(443), ..expected.clone() }
        );
        let (ping, icmp) = (|| assert!(!machine.pings(&to.to_string())), if to.is_ipv4() { 1 } else { 58 });
        let packet = next(&mut packets, ping, |packet| packet.protocol == icmp && packet.source == from);
        assert_eq!(packet, DeniedPacket { protocol: icmp, source_port: None, destination_port: None, ..expected });
    }
    assert_eq!(fixture.kernel.denied_losses(), warren_kernel::DeniedLosses::default());
}

#[test]
fn one_daemon_reads_at_a_time_and_the_next_one_takes_over() {
    let fixture = Fixture::new();
    let spec = closed(&fixture, 1);
    let [(_, machine), (b, _other)] = fixture.pair(&spec);
    let to = SocketAddr::new(b.ipv4.into(), 9);
    let mut packets = fixture.kernel.denied().unwrap();
    next(&mut packets, || dial(&machine, to), |_| true);
    let again = fixture.restarted();
    let mut later = again.denied().unwrap();
    eventually("that the second daemon says what it cannot read", || {
        again.denied_losses().unread.get(&spec.number).is_some_and(|why| why.contains("another process"))
    });
    next(&mut packets, || dial(&machine, to), |packet| packet.destination_port == Some(9));
    assert!(later.try_recv().is_err());
    drop(packets);
    // Whoever lost its receiver notices with the next report at the latest.
    next(&mut later, || dial(&machine, to), |packet| packet.destination_port == Some(9));
    assert!(again.denied_losses().unread.is_empty());
}

#[test]
fn a_network_that_is_made_anew_is_read_again() {
    let fixture = Fixture::new();
    let mut packets = fixture.kernel.denied().unwrap();
    let spec = closed(&fixture, 1);
    for round in 0..2 {
        let [(a, machine), (b, _other)] = fixture.pair(&spec);
        let refused = || dial(&machine, SocketAddr::new(b.ipv4.into(), 100 + round));
        let packet = next(&mut packets, refused, |packet| packet.destination_port == Some(100 + round));
        assert_eq!(packet.inbound, Some(names::member_link(&fixture.installation, a.number)));
        fixture.kernel.remove_network(spec.number).unwrap();
    }
}

#[test]
fn a_flood_of_refusals_neither_starves_hints_nor_other_networks() {
    let fixture = Fixture::new();
    let (spec, other) = (closed(&fixture, 1), closed(&fixture, 2));
    let [(a, flooding), (b, _b)] = fixture.pair(&spec);
    let [(_, machine), (d, _d)] = fixture.pair(&other);
    // The rules limit what is logged; so that this is a flood, somebody logs everything.
    let link = names::member_link(&fixture.installation, a.number);
    fixture.in_router(
        &spec,
        &format!("nft insert rule inet warren arriving iifname {link} udp dport 7 log prefix names group 5"),
    );
    let mut hints = fixture.kernel.changes().unwrap();
    let mut packets = fixture.kernel.denied().unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            flooding.enter(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                while !over.load(Ordering::Relaxed) {
                    let _ = socket.send_to(b"x", (b.ipv4, 7));
                }
            })
        });
        let _over = End(&over);
        eventually("a report of the flood", || packets.try_recv().is_ok_and(|packet| packet.kind == Refusal::Names));
        let refused = || dial(&machine, SocketAddr::new(d.ipv4.into(), 9));
        next(&mut packets, refused, |packet| packet.network == other.number);
        while hints.try_recv().is_ok() {}
        fixture.in_router(&other, "nft add table inet intruder");
        eventually("a hint", || hints.try_recv() == Ok(other.number));
        eventually("that not all of the flood is read", || {
            let losses = fixture.kernel.denied_losses();
            losses.dropped + losses.overrun > 0
        });
    });
    assert!(!talks(&machine, &flooding, a.ipv4.into()));
}
