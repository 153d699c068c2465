//! Operators in a network: what passes, what does not, and when that ends.

mod common;

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use common::{Chatter, LAPTOP, SERVER4, SERVER6, World, answers, at_host, carries, eventually, received};
use warren_lab::Namespace;
use warren_tunnel::{Ended, NetworkKey, Peer, PeerError, PeerId, PresharedKey, PrivateKey};

#[test]
fn an_operator_reaches_the_network_over_both_versions_of_ip_and_is_counted() {
    let begun = SystemTime::now();
    let world = World::new();
    let router = world.network(1);
    let operator = world.join();
    answers(&world.laptop, SERVER4);
    // The kernel takes up to a second to find a new device ready for IPv6.
    answers(&world.laptop, SERVER6);
    carries(&world.laptop, &router, SERVER4, 20 << 20);
    carries(&world.laptop, &router, SERVER6, 20 << 20);
    carries(&router, &world.laptop, "10.0.9.2", 20 << 20);
    carries(&router, &world.laptop, "fd00:9::2", 20 << 20);
    let status = world.gateway.peer(PeerId(2)).unwrap();
    assert_eq!(status.public_key, operator.key);
    assert_eq!(status.endpoint.map(|at| at.ip()), Some(LAPTOP.into()));
    assert!(status.received.bytes > 40 << 20 && status.sent.bytes > 40 << 20, "{status:?}");
    assert!(status.received.packets > 30_000 && status.refused == 0, "{status:?}");
    let (handshake, packet) = (status.last_handshake.unwrap(), status.last_packet.unwrap());
    assert!(begun < handshake && handshake < packet && packet < SystemTime::now(), "{status:?}");
    assert_eq!(status.ended, None);
    // Keys are made anew every two minutes.
    if begun.elapsed().unwrap() < Duration::from_secs(100) {
        assert_eq!(world.gateway.status().handshakes, 1);
    }
}

#[test]
fn an_operator_calls_over_ipv6_and_is_answered_from_the_address_it_called() {
    let world = World::new();
    let router = world.network(1);
    // Whichever the kernel would answer from, the other one is called, too.
    for address in ["fd00:77::1/64", "fd00:77::9/64"] {
        world.host.run(&format!("ip address add {address} dev eth0 nodad"));
    }
    world.laptop.run("ip address add fd00:77::2/64 dev eth0 nodad");
    for called in ["fd00:77::1", "fd00:77::9"] {
        let key = PrivateKey::generate().unwrap();
        world.gateway.add_peer(&world.peer(2, key.public_key())).unwrap();
        let operator = world.operator(&world.laptop, 2, key, format!("[{called}]:51820").parse().unwrap());
        answers(&world.laptop, SERVER4);
        carries(&world.laptop, &router, SERVER4, 1 << 20);
        assert_eq!(
            world.gateway.peer(PeerId(2)).unwrap().endpoint.unwrap().ip(),
            "fd00:77::2".parse::<IpAddr>().unwrap()
        );
        let answered = operator.gateway.peer(PeerId(0)).unwrap().endpoint.unwrap().ip();
        assert_eq!(answered, called.parse::<IpAddr>().unwrap());
        world.gateway.remove_peer(PeerId(2)).unwrap();
    }
}

#[test]
fn a_way_that_is_too_narrow_for_whole_packets_carries_their_parts() {
    let world = World::new();
    let router = world.network(1);
    let _operator = world.join();
    for (namespace, mtu) in [(&world.host, 1300), (&world.laptop, 1300)] {
        namespace.run(&format!("ip link set eth0 mtu {mtu}"));
    }
    carries(&world.laptop, &router, SERVER4, 2 << 20);
    carries(&router, &world.laptop, "fd00:9::2", 2 << 20);
}

#[test]
fn networks_with_the_same_range_are_kept_apart() {
    let world = World::new();
    let (one, other) = (world.network(1), world.network(2));
    let second = world.lab.namespace("laptop2");
    world.lab.connect(&world.host, "eth1", &second, "eth0");
    world.host.run("ip address add 198.51.100.1/24 dev eth1");
    second.run("ip address add 198.51.100.2/24 dev eth0");
    let _first = world.join();
    let key = PrivateKey::generate().unwrap();
    // The same addresses as the first one's.
    let peer = Peer { id: PeerId(3), network: NetworkKey(2), ..world.peer(2, key.public_key()) };
    world.gateway.add_peer(&peer).unwrap();
    let _second = world.operator(&second, 2, key, "198.51.100.1:51820".parse().unwrap());
    let (before_one, before_other) = (received(&one, "wg0"), received(&other, "wg0"));
    answers(&world.laptop, SERVER4);
    assert!(received(&one, "wg0") > before_one && received(&other, "wg0") == before_other);
    let before_one = received(&one, "wg0");
    answers(&second, SERVER4);
    assert!(received(&one, "wg0") == before_one && received(&other, "wg0") > before_other);
}

#[test]
fn a_removed_peer_is_cut_in_both_directions_when_the_call_returns() {
    let world = World::new();
    let router = world.network(1);
    let _operator = world.join();
    answers(&world.laptop, SERVER4);
    let (_there, _back) = (Chatter::new(&world.laptop, SERVER4), Chatter::new(&router, "10.0.9.2"));
    let flows = |namespace: &Namespace| {
        let before = received(namespace, "wg0");
        std::thread::sleep(Duration::from_millis(200));
        received(namespace, "wg0") - before
    };
    eventually("packets both ways", || flows(&router) > 50 && flows(&world.laptop) > 50);
    let counted = world.gateway.remove_peer(PeerId(2)).unwrap();
    let before = received(&router, "wg0");
    assert!(counted.received.packets > 50 && counted.sent.packets > 50);
    // What was sent to the laptop before may still wait there.
    eventually("silence at the laptop", || flows(&world.laptop) == 0);
    assert_eq!(received(&router, "wg0"), before, "something passed after the peer was removed");
    assert!(world.gateway.remove_peer(PeerId(2)).is_none() && world.gateway.peers().is_empty());
    assert!(!world.laptop.pings(SERVER4));
}

#[test]
fn a_network_that_is_removed_takes_its_peers_along_and_can_come_back() {
    let world = World::new();
    let router = world.network(1);
    let operator = world.join();
    answers(&world.laptop, SERVER4);
    assert!(world.gateway.remove_network(NetworkKey(1)) && !world.gateway.remove_network(NetworkKey(1)));
    assert!(world.gateway.peers().is_empty());
    // The device goes with its descriptor.
    eventually("the end of the device", || !router.attempt("ip link show wg0").success);
    assert_eq!(world.gateway.add_peer(&world.peer(2, operator.key)), Err(PeerError::NoNetwork));
}

#[test]
fn a_session_ends_at_its_time_and_when_its_operator_is_idle() {
    let world = World::new();
    let router = world.network(1);
    for (number, why) in [(2, Ended::Expired), (3, Ended::Idle)] {
        let key = PrivateKey::generate().unwrap();
        let laptop = world.lab.namespace(&format!("laptop{number}"));
        world.lab.connect(&world.host, &format!("eth{number}"), &laptop, "eth0");
        world.host.run(&format!("ip address add 198.51.{number}.1/24 dev eth{number}"));
        laptop.run(&format!("ip address add 198.51.{number}.2/24 dev eth0"));
        let peer = Peer {
            expires: (why == Ended::Expired).then(|| SystemTime::now() + Duration::from_secs(8)),
            idle_limit: (why == Ended::Idle).then(|| Duration::from_secs(8)),
            ..world.peer(number, key.public_key())
        };
        world.gateway.add_peer(&peer).unwrap();
        let _operator = world.operator(&laptop, number, key, format!("198.51.{number}.1:51820").parse().unwrap());
        answers(&laptop, SERVER4);
        // What others send it does not keep it from being idle, as long as it does not say that nobody listens.
        let _listens = laptop.enter(|| std::net::UdpSocket::bind("0.0.0.0:9").unwrap());
        let _chatter = Chatter::new(&router, &format!("10.0.9.{number}"));
        let ended = || world.gateway.peer(PeerId(number)).unwrap().ended == Some(why);
        eventually("the end", ended);
        assert!(!laptop.pings(SERVER4));
        let before = received(&laptop, "wg0");
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(received(&laptop, "wg0"), before);
    }
}

#[test]
fn an_operator_whose_address_changes_goes_on() {
    let world = World::new();
    let router = world.network(1);
    let (relay, _operator) = world.join_behind();
    answers(&world.laptop, SERVER4);
    let before = world.gateway.peer(PeerId(2)).unwrap().endpoint;
    let moved = relay.move_on(&world.laptop);
    answers(&world.laptop, SERVER4);
    answers(&router, "10.0.9.2");
    let after = world.gateway.peer(PeerId(2)).unwrap().endpoint;
    assert!(before != after && after == Some(moved), "{before:?} {after:?}");
    assert_eq!(world.gateway.status().handshakes, 1, "the session is the same");
}

#[test]
fn a_gateway_calls_an_operator_whose_keys_are_gone() {
    let world = World::new();
    let router = world.network(1);
    let key = PrivateKey::generate().unwrap();
    world.gateway.add_peer(&world.peer(2, key.public_key())).unwrap();
    let secret: PrivateKey = key.to_base64().parse().unwrap();
    let first = world.operator(&world.laptop, 2, key, at_host());
    answers(&world.laptop, SERVER4);
    let at = world.gateway.peer(PeerId(2)).unwrap().endpoint.unwrap();
    drop(first);
    // The same operator after a restart: it knows nothing, but listens where it did.
    let peer = Peer { endpoint: Some(at), ..world.peer(2, secret.public_key()) };
    world.gateway.remove_peer(PeerId(2)).unwrap();
    world.gateway.add_peer(&peer).unwrap();
    let _second = world.operator(&world.laptop, 2, secret, at_host());
    answers(&world.laptop, SERVER4);
    answers(&router, "10.0.9.2");
}

#[test]
fn what_an_operator_sends_from_an_address_that_is_not_its_own_does_not_pass() {
    let world = World::new();
    let router = world.network(1);
    let _operator = world.join();
    answers(&world.laptop, SERVER4);
    world.laptop.run("ip address add 10.0.9.77/32 dev wg0");
    let before = received(&router, "wg0");
    assert!(!world.laptop.attempt(&format!("ping -c 3 -i 0.2 -W 1 -I 10.0.9.77 {SERVER4}")).success);
    assert_eq!(received(&router, "wg0"), before);
    eventually("refusal of all of them", || world.gateway.peer(PeerId(2)).unwrap().refused == 3);
    // What goes to an address of nobody stays here, too.
    let before = world.gateway.status().unrouted;
    assert!(!router.pings("10.0.9.50"));
    eventually("its packet at the gateway", || world.gateway.status().unrouted > before);
}

#[test]
fn peers_cannot_take_each_others_places() {
    let world = World::new();
    let _router = world.network(1);
    let key = || PrivateKey::generate().unwrap().public_key();
    let first = world.peer(2, key());
    world.gateway.add_peer(&first).unwrap();
    let add = |peer: Peer| world.gateway.add_peer(&peer).unwrap_err();
    assert_eq!(add(first.clone()), PeerError::Exists);
    assert_eq!(
        add(Peer { id: PeerId(3), addresses: vec!["10.0.9.3/32".parse().unwrap()], ..first.clone() }),
        PeerError::KeyTaken
    );
    let taken = PeerError::AddressTaken("10.0.9.2/32".parse().unwrap());
    assert_eq!(add(Peer { id: PeerId(3), ..world.peer(2, key()) }), taken);
    assert_eq!(add(Peer { addresses: Vec::new(), ..world.peer(3, key()) }), PeerError::NoAddress);
    assert_eq!(add(Peer { network: NetworkKey(9), ..world.peer(3, key()) }), PeerError::NoNetwork);
    let weak = warren_tunnel::PublicKey::from_bytes([0; 32]);
    assert_eq!(add(world.peer(3, weak)), PeerError::WeakKey);
    world.gateway.remove_peer(PeerId(2)).unwrap();
    world.gateway.add_peer(&first).unwrap();
}

#[test]
fn a_wrong_preshared_key_gets_nowhere() {
    let world = World::new();
    let _router = world.network(1);
    let key = PrivateKey::generate().unwrap();
    let preshared_key = Some(PresharedKey::from_bytes(&[7; 32]));
    world.gateway.add_peer(&Peer { preshared_key, ..world.peer(2, key.public_key()) }).unwrap();
    let operator = world.operator(&world.laptop, 2, key, at_host());
    assert!(!world.laptop.pings(SERVER4));
    let right = Peer {
        id: PeerId(0),
        network: NetworkKey(0),
        addresses: vec!["10.0.0.0/24".parse().unwrap()],
        endpoint: Some(at_host()),
        preshared_key: Some(PresharedKey::from_bytes(&[7; 32])),
        ..world.peer(0, world.gateway.public_key())
    };
    operator.gateway.remove_peer(PeerId(0)).unwrap();
    operator.gateway.add_peer(&right).unwrap();
    answers(&world.laptop, SERVER4);
}
