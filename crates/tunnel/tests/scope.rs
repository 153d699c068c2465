//! Operators who may reach only a part of a network.

mod common;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use common::{SERVER4, SERVER6, SOON, World, answers, at_host, carries_to_port, eventually};
use warren_lab::Namespace;
use warren_tunnel::{Only, Peer, PeerId, PrivateKey};

const PORT: u16 = 8443;

/// The laptop as peer 2 of network 1, with this scope.
fn join(world: &World, addresses: &[&str], port: Option<u16>) -> common::Operator {
    let key = PrivateKey::generate().unwrap();
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    let only = Some(Only { addresses, port });
    world.gateway.add_peer(&Peer { only, ..world.peer(2, key.public_key()) }).unwrap();
    world.operator(&world.laptop, 2, key, at_host())
}

fn connects(from: &Namespace, to: &str, port: u16) -> bool {
    let to = SocketAddr::new(to.parse().unwrap(), port);
    from.enter(|| match TcpStream::connect_timeout(&to, Duration::from_millis(1500)) {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => panic!("{to} was reached"),
        Err(_) => false,
    })
}

#[test]
fn an_operator_with_one_port_reaches_it_and_nothing_else() {
    let world = World::new();
    let router = world.network(1);
    let _operator = join(&world, &[SERVER4, SERVER6], Some(PORT));
    router.run("ip address add 10.0.0.7/32 dev lo");
    // The kernel takes up to a second to find a new device ready for IPv6.
    eventually("the port", || {
        let _listener = router.listen((SERVER6.parse::<IpAddr>().unwrap(), PORT).into()).unwrap();
        connects(&world.laptop, SERVER6, PORT)
    });
    for address in [SERVER4, SERVER6] {
        carries_to_port(&world.laptop, &router, address, PORT, 10 << 20);
    }
    let status = || world.gateway.peer(PeerId(2)).unwrap();
    assert_eq!((status().refused, status().withheld), (0, 0));
    let listeners: Vec<_> = [SERVER4, SERVER6, "10.0.0.7"]
        .into_iter()
        .flat_map(|address| [PORT, PORT + 1].map(|port| SocketAddr::new(address.parse().unwrap(), port)))
        .map(|at| router.enter(|| TcpListener::bind(at).unwrap()))
        .collect();
    let mut refused = 0;
    for (address, port) in [(SERVER4, PORT + 1), (SERVER6, PORT + 1), ("10.0.0.7", PORT), ("10.0.0.7", PORT + 1)] {
        assert!(!connects(&world.laptop, address, port), "{address} {port}");
        eventually("it is counted", || status().refused > refused);
        refused = status().refused;
    }
    assert!(!world.laptop.pings(SERVER4) && !world.laptop.pings(SERVER6));
    eventually("both are counted", || status().refused >= refused + 2);
    for address in [SERVER4, SERVER6] {
        eventually("the port", || connects(&world.laptop, address, PORT));
    }
    // Inwards, too.
    assert_eq!(status().withheld, 0);
    let _listener = world.laptop.enter(|| TcpListener::bind("10.0.9.2:80").unwrap());
    assert!(!connects(&router, "10.0.9.2", 80) && !router.pings("fd00:9::2"));
    eventually("both are counted", || status().withheld >= 2);
    assert_eq!(status().lost, 0);
    drop(listeners);
}

#[test]
fn datagrams_pass_to_and_from_the_port_and_no_other() {
    let world = World::new();
    let router = world.network(1);
    let _operator = join(&world, &[SERVER4], Some(PORT));
    let [server, other] = [PORT, PORT + 1]
        .map(|port| router.enter(|| UdpSocket::bind((SERVER4.parse::<IpAddr>().unwrap(), port)).unwrap()));
    let client = world.laptop.enter(|| UdpSocket::bind("10.0.9.2:0").unwrap());
    for socket in [&server, &other, &client] {
        socket.set_read_timeout(Some(SOON)).unwrap();
    }
    let mut buffer = [0; 100];
    client.send_to(b"question", (SERVER4, PORT)).unwrap();
    let (length, from) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"question");
    // The wrong one first: it would come first.
    other.send_to(b"intrusion", from).unwrap();
    server.send_to(b"answer", from).unwrap();
    let length = client.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"answer");
    assert_eq!(world.gateway.peer(PeerId(2)).unwrap().withheld, 1);
}

#[test]
fn an_operator_with_one_address_reaches_all_of_it_and_nothing_else() {
    let world = World::new();
    let router = world.tap_network(1);
    let _operator = join(&world, &[SERVER4], None);
    router.run("ip address add 10.0.0.7/32 dev lo");
    answers(&world.laptop, SERVER4);
    // In fragments, of which only the first has ports.
    world.laptop.run(&format!("ping -n -c 1 -W 5 -s 4000 {SERVER4}"));
    carries_to_port(&world.laptop, &router, SERVER4, 0, 1 << 20);
    assert!(!world.laptop.pings("10.0.0.7") && !world.laptop.pings(SERVER6));
    let status = || world.gateway.peer(PeerId(2)).unwrap();
    eventually("both are counted", || (status().refused, status().withheld) == (2, 0));
}

#[test]
fn a_router_on_the_way_that_may_not_be_reached_still_tells_what_is_too_big() {
    let world = World::new();
    let router = world.network(1);
    let server = world.lab.namespace("server");
    world.lab.connect(&router, "eth1", &server, "eth0");
    for line in ["sysctl -qw net.ipv4.ip_forward=1", "ip link set eth1 mtu 1300", "ip route add 10.0.0.50/32 dev eth1"]
    {
        router.run(line);
    }
    server.run("ip address add 10.0.0.50/32 dev eth0");
    server.run("ip route add default via 10.0.0.1 dev eth0 onlink");
    let _operator = join(&world, &["10.0.0.50"], Some(PORT));
    carries_to_port(&world.laptop, &server, "10.0.0.50", PORT, 2 << 20);
    let learned = world.laptop.run("ip route get 10.0.0.50");
    assert!(learned.contains("mtu 1300"), "{learned}");
    assert!(!world.laptop.pings(SERVER4));
    let status = || world.gateway.peer(PeerId(2)).unwrap();
    eventually("it is counted", || (status().refused, status().withheld) == (1, 0));
}
