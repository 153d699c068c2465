//! Operators are members like any other, but that their packets come by one device.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use common::{Fixture, talks};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use warren_kernel::{Access, MemberSpec, NetworkSpec};
use warren_lab::Namespace;
use warren_model::MacAddress;
use warren_model::record::Egress;

/// Of the virtio and the Ethernet header.
const HEAD: usize = 10 + 14;

struct Device(File);

impl Device {
    fn open(fixture: &Fixture, spec: &NetworkSpec) -> Self {
        let device = File::from(fixture.kernel.tunnel_device(spec.number).unwrap());
        fcntl(&device, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        Self(device)
    }

    /// Sends an echo request of this station, and tells whether the answer came back to it.
    fn pings(&mut self, mac: MacAddress, from: Ipv4Addr, to: Ipv4Addr) -> bool {
        self.drain();
        self.0.write_all(&echo_request(mac, from, to)).unwrap();
        let deadline = Instant::now() + Duration::from_millis(500);
        let mut frame = [0; 2048];
        while Instant::now() < deadline {
            match self.0.read(&mut frame) {
                Ok(length) if is_reply(&frame[..length], mac, to, from) => return true,
                Ok(_) => {}
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        false
    }

    fn drain(&mut self) {
        while self.0.read(&mut [0; 2048]).is_ok() {}
    }
}

fn echo_request(mac: MacAddress, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 28, 0, 1, 0, 0, 64, 1, 0, 0];
    ip.extend(from.octets());
    ip.extend(to.octets());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    let mut echo = vec![8, 0, 0, 0, 0, 7, 0, 1];
    let sum = checksum(&echo);
    echo[2..4].copy_from_slice(&sum);
    let ethernet = [&MacAddress::ROUTER.octets()[..], &mac.octets(), &[8, 0]].concat();
    [&[0; 10][..], &ethernet, &ip, &echo].concat()
}

fn is_reply(frame: &[u8], mac: MacAddress, from: Ipv4Addr, to: Ipv4Addr) -> bool {
    frame.len() >= HEAD + 28
        && frame[10..16] == mac.octets()
        && frame[HEAD + 12..HEAD + 16] == from.octets()
        && frame[HEAD + 16..HEAD + 20] == to.octets()
        && frame[HEAD + 20] == 0
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
    assert!(device.pings(mac(&one), one.ipv4, machine.ipv4));
    assert!(device.pings(mac(&other), other.ipv4, machine.ipv4));
    let before = fixture.kernel.spoofed(spec.number).unwrap().packets;
    for (what, from, by) in [
        ("another operator's address", other.ipv4, mac(&one)),
        ("a machine's address", machine.ipv4, mac(&one)),
        ("a machine's MAC", one.ipv4, mac(&machine)),
        ("nobody's address", Ipv4Addr::new(10, 0, 7, 7), mac(&one)),
    ] {
        assert!(!device.pings(by, from, machine.ipv4), "{what}");
    }
    assert_eq!(fixture.kernel.spoofed(spec.number).unwrap().packets, before + 4);
    let counted = &fixture.kernel.counters(spec.number).unwrap()[&one.number];
    assert!(counted.private.sent.packets >= 1 && counted.private.received.packets >= 1, "{counted:?}");
}

#[test]
fn an_operator_that_is_expelled_passes_nothing_more_and_the_others_go_on() {
    let fixture = Fixture::new();
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Deny);
    let (machine, namespace, [one, other]) = world(&fixture, &spec);
    let mut device = Device::open(&fixture, &spec);
    assert!(device.pings(mac(&one), one.ipv4, machine.ipv4));
    fixture.kernel.expel(spec.number, std::slice::from_ref(&one)).unwrap();
    fixture.kernel.fit_tunnel(&spec, &[machine.clone(), other.clone()]).unwrap();
    assert!(!device.pings(mac(&one), one.ipv4, machine.ipv4));
    assert!(device.pings(mac(&other), other.ipv4, machine.ipv4));
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
    assert!(Device::open(&fixture, &spec).pings(mac(&operators[0]), operators[0].ipv4, machine.ipv4));
}

#[test]
fn a_network_without_operators_has_no_device_and_members_talk_as_before() {
    let fixture = Fixture::new();
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Deny);
    let [(_, one), (b, other)] = fixture.pair(&spec);
    assert_eq!(fixture.kernel.observe(&spec).unwrap().unwrap().tunnel, None);
    assert!(talks(&one, &other, b.ipv4.into()));
}
