//! Operators are members like any other, but that their packets come by one device.

mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::time::Duration;

use common::{Fixture, talks};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use warren_kernel::{MemberSpec, NetworkSpec, Refusal};
use warren_lab::{Namespace, eventually};
use warren_model::record::Egress;
use warren_model::{Access, MacAddress};

/// Of the virtio and the Ethernet header.
const HEAD: usize = 10 + 14;

/// The device as the edge has it, with what was sent by it.
struct Device {
    file: File,
    /// The number of the last echo request.
    sent: u16,
}

/// An answer to an echo request, and the station that it is for.
#[derive(Debug, PartialEq, Eq)]
struct Reply {
    mac: [u8; 6],
    from: Ipv4Addr,
    to: Ipv4Addr,
    number: u16,
}

impl Device {
    fn open(fixture: &Fixture, spec: &NetworkSpec) -> Self {
        let file = File::from(fixture.kernel.tunnel_device(spec.number).unwrap());
        fcntl(&file, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        Self { file, sent: 0 }
    }

    /// Sends echo requests of this station until one that it has sent now is answered to it.
    fn is_answered(&mut self, mac: MacAddress, from: Ipv4Addr, to: Ipv4Addr) {
        let before = self.sent;
        eventually("the answer to a ping", || {
            self.send(mac, from, to);
            std::thread::sleep(Duration::from_millis(10));
            let to_it = |reply: &Reply| (reply.mac, reply.from, reply.to) == (mac.octets(), to, from);
            self.replies().iter().any(|reply| reply.number > before && to_it(reply))
        });
    }

    /// Sends an echo request of this station, which is counted as forged and answered to nobody.
    fn is_dropped(&mut self, (fixture, spec): (&Fixture, &NetworkSpec), mac: MacAddress, from: Ipv4Addr, to: Ipv4Addr) {
        let spoofed = || fixture.kernel.spoofed(spec.number).unwrap().packets;
        let before = spoofed();
        let number = self.send(mac, from, to);
        eventually("that a forged packet is counted", || spoofed() > before);
        assert_eq!(spoofed(), before + 1);
        assert!(self.replies().iter().all(|reply| reply.number != number), "{mac} {from}");
    }

    fn send(&mut self, mac: MacAddress, from: Ipv4Addr, to: Ipv4Addr) -> u16 {
        self.sent += 1;
        self.file.write_all(&echo_request(mac, from, to, self.sent)).unwrap();
        self.sent
    }

    /// The answers that wait.
    fn replies(&mut self) -> Vec<Reply> {
        let mut frame = [0; 2048];
        let mut replies = Vec::new();
        while let Ok(length) = self.file.read(&mut frame) {
            replies.extend(reply(&frame[..length]));
        }
        replies
    }
}

fn echo_request(mac: MacAddress, from: Ipv4Addr, to: Ipv4Addr, number: u16) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 28, 0, 1, 0, 0, 64, 1, 0, 0];
    ip.extend(from.octets());
    ip.extend(to.octets());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    let mut echo = vec![8, 0, 0, 0, 0, 7];
    echo.extend(number.to_be_bytes());
    let sum = checksum(&echo);
    echo[2..4].copy_from_slice(&sum);
    let ethernet = [&MacAddress::ROUTER.octets()[..], &mac.octets(), &[8, 0]].concat();
    [&[0; 10][..], &ethernet, &ip, &echo].concat()
}

fn reply(frame: &[u8]) -> Option<Reply> {
    let (mac, packet) = (frame.get(10..16)?, frame.get(HEAD..)?);
    let [0x45, _, _, _, _, _, _, _, _, 1, _, _, a, b, c, d, e, f, g, h, 0, _, _, _, 0, 7, high, low, ..] = *packet
    else {
        return None;
    };
    Some(Reply {
        mac: mac.try_into().ok()?,
        from: [a, b, c, d].into(),
        to: [e, f, g, h].into(),
        number: u16::from_be_bytes([high, low]),
    })
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    (!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes()
}

fn operator(fixture: &Fixture, spec: &NetworkSpec, number: u32) -> MemberSpec {
    MemberSpec { access: Access::Tunnel, ..fixture.member(spec, number) }
}

fn mac(member: &MemberSpec) -> MacAddress {
    MacAddress::of_member(member.number)
}

/// A machine that answers, and two operators.
fn world(fixture: &Fixture, spec: &NetworkSpec) -> (MemberSpec, Namespace, [MemberSpec; 2]) {
    let machine = fixture.member(spec, 2);
    let operators = [8, 9].map(|number| operator(fixture, spec, number));
    let all = [std::slice::from_ref(&machine), &operators].concat();
    fixture.kernel.create_network(spec, &all).unwrap();
    let namespace = fixture.machine(spec, &machine);
    fixture.kernel.fit_tunnel(spec, &all).unwrap();
    (machine, namespace, operators)
}

#[test]
fn an_operator_reaches_machines_under_its_own_address_only() {
    let fixture = Fixture::new();
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Deny);
    let (machine, _namespace, [one, other]) = world(&fixture, &spec);
    let mut device = Device::open(&fixture, &spec);
    device.is_answered(mac(&one), one.ipv4, machine.ipv4);
    device.is_answered(mac(&other), other.ipv4, machine.ipv4);
    // Another operator's address, a machine's, a machine's MAC, nobody's address.
    let nobody = Ipv4Addr::new(10, 0, 7, 7);
    for (from, by) in [(other.ipv4, &one), (machine.ipv4, &one), (one.ipv4, &machine), (nobody, &one)] {
        device.is_dropped((&fixture, &spec), mac(by), from, machine.ipv4);
    }
    let counted = &fixture.kernel.counters(spec.number).unwrap()[&one.number];
    assert!(counted.private.sent.packets >= 1 && counted.private.received.packets >= 1, "{counted:?}");
}

#[test]
fn an_operator_that_is_expelled_passes_nothing_more_and_the_others_go_on() {
    let fixture = Fixture::new();
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Deny);
    let (machine, namespace, [one, other]) = world(&fixture, &spec);
    let mut device = Device::open(&fixture, &spec);
    device.is_answered(mac(&one), one.ipv4, machine.ipv4);
    fixture.kernel.expel(spec.number, std::slice::from_ref(&one)).unwrap();
    fixture.kernel.fit_tunnel(&spec, &[machine.clone(), other.clone()]).unwrap();
    device.is_dropped((&fixture, &spec), mac(&one), one.ipv4, machine.ipv4);
    device.is_answered(mac(&other), other.ipv4, machine.ipv4);
    let to_nobody = namespace.attempt(&format!("ping -n -c 1 -W 1 {}", one.ipv4)).stdout;
    assert!(to_nobody.contains("Unreachable"), "{to_nobody}");
    let listed = fixture.in_router(&spec, "ip neigh show nud permanent");
    assert!(!listed.contains(&one.ipv4.to_string()) && listed.contains(&other.ipv4.to_string()), "{listed}");
}

#[test]
fn the_device_stays_when_nobody_has_it_open_and_is_seen_when_it_is_altered() {
    let fixture = Fixture::new();
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Deny);
    let (machine, _namespace, operators) = world(&fixture, &spec);
    let tunnel = || fixture.kernel.observe(&spec).unwrap().unwrap().tunnel;
    let all = [std::slice::from_ref(&machine), &operators].concat();
    assert_eq!(tunnel(), Some(true));
    drop(Device::open(&fixture, &spec));
    assert_eq!(tunnel(), Some(true));
    assert_eq!(fixture.restarted().observe(&spec).unwrap().unwrap().tunnel, Some(true));

    let link = warren_kernel::names::tunnel_link(&fixture.installation);
    fixture.in_router(&spec, &format!("ip route del {}", operators[0].ipv4));
    assert_eq!(tunnel(), Some(false));
    fixture.kernel.fit_tunnel(&spec, &all).unwrap();
    assert_eq!(tunnel(), Some(true));
    fixture.in_router(&spec, &format!("ip route add 10.9.9.9 dev {link}"));
    assert_eq!(tunnel(), Some(false));
    fixture.kernel.fit_tunnel(&spec, &all).unwrap();
    assert_eq!(tunnel(), Some(true));
    fixture.in_router(&spec, &format!("ip link del {link}"));
    assert_eq!(tunnel(), None);
    fixture.kernel.fit_tunnel(&spec, &all).unwrap();
    Device::open(&fixture, &spec).is_answered(mac(&operators[0]), operators[0].ipv4, machine.ipv4);
}

#[test]
fn a_neighbour_that_is_left_over_or_lost_is_seen_and_mended() {
    let fixture = Fixture::new();
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Deny);
    let (machine, _namespace, operators) = world(&fixture, &spec);
    let tunnel = || fixture.kernel.observe(&spec).unwrap().unwrap().tunnel;
    let all = [std::slice::from_ref(&machine), &operators].concat();
    let link = warren_kernel::names::tunnel_link(&fixture.installation);
    let permanent = || fixture.in_router(&spec, &format!("ip neigh show dev {link} nud permanent"));
    let before = permanent();
    let stray = format!("ip neigh add 10.9.9.9 lladdr 02:6d:00:00:00:77 dev {link} nud permanent");
    for change in [stray, format!("ip neigh del {} dev {link}", operators[0].ipv4)] {
        assert_eq!(tunnel(), Some(true));
        fixture.in_router(&spec, &change);
        assert_eq!(tunnel(), Some(false), "{change}");
        fixture.kernel.fit_tunnel(&spec, &all).unwrap();
        assert_eq!(tunnel(), Some(true), "{change}");
        let sorted = |listed: &str| listed.lines().map(str::to_owned).collect::<BTreeSet<_>>();
        assert_eq!(sorted(&permanent()), sorted(&before));
    }
}

#[test]
fn as_many_operators_as_there_may_be_get_their_ways_at_once() {
    let fixture = Fixture::new();
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Deny);
    let all: Vec<MemberSpec> = (2..1002).map(|number| operator(&fixture, &spec, number)).collect();
    fixture.kernel.create_network(&spec, &all).unwrap();
    fixture.kernel.fit_tunnel(&spec, &all).unwrap();
    assert_eq!(fixture.kernel.observe(&spec).unwrap().unwrap().tunnel, Some(true));
    fixture.kernel.expel(spec.number, &all).unwrap();
    fixture.kernel.fit_tunnel(&spec, &[]).unwrap();
    assert_eq!(fixture.restarted().observe(&spec).unwrap().unwrap().tunnel, Some(true));
}

#[test]
fn a_packet_that_an_operator_forged_is_reported_with_its_mac() {
    let fixture = Fixture::new();
    let mut packets = fixture.kernel.denied().unwrap();
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Deny);
    let (machine, _namespace, [one, other]) = world(&fixture, &spec);
    let mut device = Device::open(&fixture, &spec);
    let mut found = None;
    // Reports of one sender are limited.
    eventually("the report of a forged packet", || {
        device.send(mac(&one), other.ipv4, machine.ipv4);
        std::thread::sleep(Duration::from_millis(50));
        found = std::iter::from_fn(|| packets.try_recv().ok()).find(|packet| packet.kind == Refusal::Spoofed);
        found.is_some()
    });
    let packet = found.unwrap();
    assert_eq!(packet.inbound, Some(warren_kernel::names::tunnel_link(&fixture.installation)));
    assert_eq!((packet.source, packet.mac), (other.ipv4.into(), Some(mac(&one))));
}

#[test]
fn a_network_without_operators_has_no_device_and_members_talk_as_before() {
    let fixture = Fixture::new();
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Deny);
    let [(_, one), (b, other)] = fixture.pair(&spec);
    assert_eq!(fixture.kernel.observe(&spec).unwrap().unwrap().tunnel, None);
    assert!(talks(&one, &other, b.ipv4.into()));
}
