//! Networks whose device is a TAP device, which all operators of the network share.

mod common;

use std::net::UdpSocket;
use std::os::fd::{AsFd as _, OwnedFd};

use common::{Operator, ROUTER, SERVER4, SERVER6, World, answers, carries, eventually, mac, received};
use warren_lab::Namespace;
use warren_tunnel::{
    Device, DeviceKind, Mac, NetworkError, NetworkKey, Peer, PeerError, PeerId, PrivateKey, keep_device, open_device,
};

const TAP: Device = Device::Tap { mtu: 1420, router: ROUTER };

/// Another operator's machine, on a wire of its own.
fn second(world: &World) -> Namespace {
    let laptop = world.lab.namespace("laptop2");
    world.lab.connect(&world.host, "eth1", &laptop, "eth0");
    world.host.run("ip address add 198.51.100.1/24 dev eth1");
    laptop.run("ip address add 198.51.100.2/24 dev eth0");
    laptop
}

/// It as peer 3, with this MAC address.
fn join(world: &World, laptop: &Namespace, mac: Mac) -> Operator {
    let key = PrivateKey::generate().unwrap();
    world.gateway.add_peer(&Peer { mac: Some(mac), ..world.peer(3, key.public_key()) }).unwrap();
    world.operator(laptop, 3, key, "198.51.100.1:51820".parse().unwrap())
}

#[test]
fn an_operator_reaches_the_network_over_both_versions_of_ip_in_large_frames() {
    let world = World::new();
    let router = world.tap_network(1);
    let _operator = world.join();
    answers(&world.laptop, SERVER4);
    answers(&world.laptop, SERVER6);
    answers(&router, "10.0.9.2");
    answers(&router, "fd00:9::2");
    for address in [SERVER4, SERVER6] {
        let before = received(&router, "wg0");
        carries(&world.laptop, &router, address, 20 << 20);
        let frames = received(&router, "wg0") - before;
        // One for each segment would be more than 15,000.
        assert!(frames < 7_500, "{frames} frames");
    }
    carries(&router, &world.laptop, "10.0.9.2", 20 << 20);
    carries(&router, &world.laptop, "fd00:9::2", 20 << 20);
    let status = world.gateway.peer(PeerId(2)).unwrap();
    assert!(status.received.bytes > 40 << 20 && status.sent.bytes > 40 << 20, "{status:?}");
    assert_eq!((status.refused, status.withheld), (0, 0));
    assert_eq!(world.gateway.status().undelivered, 0);
}

#[test]
fn operators_reach_each_other_through_the_router() {
    let world = World::new();
    let router = world.tap_network(1);
    for setting in ["ipv4.ip_forward=1", "ipv4.conf.all.send_redirects=0", "ipv4.conf.wg0.send_redirects=0"] {
        router.run(&format!("sysctl -qw net.{setting}"));
    }
    router.run("sysctl -qw net.ipv6.conf.all.forwarding=1");
    let _operator = world.join();
    let other = second(&world);
    let _other = join(&world, &other, mac(3));
    // Only now the gateway knows where it is.
    answers(&other, SERVER4);
    // The router has the kernel's word for where checksums begin, and the far end checks them.
    for address in ["10.0.9.3", "fd00:9::3"] {
        answers(&world.laptop, address);
        carries(&world.laptop, &other, address, 5 << 20);
    }
    carries(&other, &world.laptop, "fd00:9::2", 5 << 20);
}

#[test]
fn each_peer_has_its_own_mac_by_which_the_kernel_knows_it() {
    let world = World::new();
    let _router = world.tap_network(1);
    let _operator = world.join();
    answers(&world.laptop, SERVER4);
    // The right address, from the device of all, with the MAC address of another one.
    let other = second(&world);
    let operator = join(&world, &other, mac(2));
    assert!(!other.pings(SERVER4));
    let sent = || world.gateway.peer(PeerId(3)).unwrap().received.packets > 0;
    eventually("its packet at the gateway", sent);
    drop(operator);
    world.gateway.remove_peer(PeerId(3)).unwrap();
    let _operator = join(&world, &other, mac(3));
    answers(&other, SERVER4);
}

#[test]
fn frames_that_carry_no_ip_or_are_for_all_go_nowhere() {
    let world = World::new();
    let router = world.tap_network(1);
    let _operator = world.join();
    answers(&world.laptop, SERVER4);
    let (before, counted) = (received(&world.laptop, "wg0"), world.gateway.status().unrouted);
    // Nobody says who has this address.
    assert!(!router.pings("10.0.9.200"));
    let asked = world.gateway.status().unrouted;
    assert!(asked > counted, "questions of ARP are counted");
    router.run("ip route add 239.0.0.0/8 dev wg0");
    router.run("ip route add broadcast 10.0.9.255 dev wg0 table local");
    let socket = router.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.set_broadcast(true).unwrap();
    for to in ["239.1.2.3:9", "10.0.9.255:9", "255.255.255.255:9"] {
        // The last one has no route but through this device where it has an address.
        let _ = socket.send_to(&[0; 100], to);
    }
    // A peer's IP address at everybody's MAC address.
    router.run("ip neigh replace 10.0.9.2 lladdr ff:ff:ff:ff:ff:ff dev wg0 nud permanent");
    socket.send_to(&[0; 100], "10.0.9.2:9").unwrap();
    let all = || world.gateway.status().unrouted >= asked + 3;
    eventually("all of them at the gateway", all);
    assert_eq!(received(&world.laptop, "wg0"), before);
    router.run(&format!("ip neigh replace 10.0.9.2 lladdr {} dev wg0 nud permanent", mac(2)));
    answers(&world.laptop, SERVER4);
    assert_eq!(world.gateway.peer(PeerId(2)).unwrap().ended, None);
}

#[test]
fn a_peer_without_a_mac_of_its_own_is_refused() {
    let world = World::new();
    let _router = world.tap_network(1);
    let peer = world.peer(2, PrivateKey::generate().unwrap().public_key());
    // None; a group's; everybody's; nobody's; the router's.
    for mac in [None, Some(Mac([3, 0, 0, 0, 9, 2])), Some(Mac([0xff; 6])), Some(Mac([0; 6])), Some(ROUTER)] {
        let refused = world.gateway.add_peer(&Peer { mac, ..peer.clone() });
        assert_eq!(refused, Err(PeerError::NoMac), "{mac:?}");
    }
    assert!(world.gateway.peers().is_empty());
    world.gateway.add_peer(&peer).unwrap();
}

#[test]
fn a_device_of_another_kind_is_refused() {
    let world = World::new();
    let router = world.lab.namespace("router");
    let invalid =
        |descriptor: OwnedFd, device: Device| match world.gateway.add_network(NetworkKey(1), descriptor, device) {
            Err(NetworkError::Device(error)) => error.kind() == std::io::ErrorKind::InvalidInput,
            _ => false,
        };
    let open = |name, kind| router.enter(|| open_device(name, kind).unwrap());
    assert!(invalid(open("wg0", DeviceKind::Tun), TAP));
    assert!(invalid(open("wg1", DeviceKind::Tap), Device::Tun { mtu: 1420 }));
    assert!(invalid(open("wg2", DeviceKind::Tap), Device::Tap { mtu: 1420, router: Mac([0xff; 6]) }));
    world.gateway.add_network(NetworkKey(1), open("wg3", DeviceKind::Tap), TAP).unwrap();
}

#[test]
fn a_device_that_is_kept_stays_without_a_gateway_and_is_attached_to_again() {
    let world = World::new();
    let router = world.lab.namespace("router");
    let open = |kind| router.enter(|| open_device("wg0", kind));
    for kind in [DeviceKind::Tap, DeviceKind::Tun] {
        let device = open(kind).unwrap();
        keep_device(device.as_fd(), true).unwrap();
        router.run("ip address add 10.0.0.1/32 dev wg0");
        let index = || router.run("ip -o link show wg0").split(':').next().unwrap().to_owned();
        let before = index();
        assert!(open(kind).is_err(), "it is in use");
        drop(device);
        let other = if kind == DeviceKind::Tap { DeviceKind::Tun } else { DeviceKind::Tap };
        assert!(open(other).is_err(), "it is of another kind");
        // One that was closed may still be open in a process that is being started.
        let mut device = None;
        eventually("its end", || {
            device = open(kind).ok();
            device.is_some()
        });
        assert_eq!(index(), before);
        assert!(router.run("ip address show dev wg0").contains("10.0.0.1"));
        keep_device(device.as_ref().unwrap().as_fd(), false).unwrap();
        drop(device);
        eventually("the end", || !router.attempt("ip link show wg0").success);
    }
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    assert!(keep_device(socket.as_fd(), true).is_err());
}

#[test]
fn a_network_goes_on_with_a_device_that_was_kept() {
    let world = World::new();
    let router = world.tap_network(1);
    let operator = world.join();
    answers(&world.laptop, SERVER4);
    drop(operator);
    // As when the process that has it ends: nobody takes anything down.
    assert!(world.gateway.remove_network(NetworkKey(1)));
    let mut device = None;
    eventually("the device", || {
        device = router.enter(|| open_device("wg0", DeviceKind::Tap).ok());
        device.is_some()
    });
    world.gateway.add_network(NetworkKey(1), device.unwrap(), TAP).unwrap();
    let _operator = world.join();
    answers(&world.laptop, SERVER4);
    carries(&world.laptop, &router, SERVER6, 1 << 20);
}
