//! Operators towards whom nothing begins.

mod common;

use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use common::{SERVER4, SERVER6, SOON, World, answers, at_host, carries, eventually};
use warren_lab::Namespace;
use warren_tunnel::{Only, Peer, PeerId, PeerStatus, PrivateKey};

const OPERATOR: [&str; 2] = ["10.0.9.2", "fd00:9::2"];
const PORT: u16 = 8443;

/// The laptop as peer 2 of network 1.
fn join(world: &World, reachable: bool, only: Option<Only>) -> common::Operator {
    let key = PrivateKey::generate().unwrap();
    world.gateway.add_peer(&Peer { reachable, only, ..world.peer(2, key.public_key()) }).unwrap();
    world.operator(&world.laptop, 2, key, at_host())
}

fn status(world: &World) -> PeerStatus {
    world.gateway.peer(PeerId(2)).unwrap()
}

fn connects(from: &Namespace, to: &str, port: u16) -> bool {
    let to = SocketAddr::new(to.parse().unwrap(), port);
    from.enter(|| match TcpStream::connect_timeout(&to, Duration::from_millis(1500)) {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => panic!("{to} was reached"),
        Err(_) => false,
    })
}

fn bind(at: &Namespace, address: &str, port: u16) -> UdpSocket {
    let socket = at.enter(|| UdpSocket::bind((address.parse::<IpAddr>().unwrap(), port)).unwrap());
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket
}

/// Sends a datagram, and whether it comes.
fn hears(socket: &UdpSocket, from: &UdpSocket, length: usize, number: u8) -> bool {
    hears_within(SOON, socket, from, length, number)
}

/// The same where it is not to come.
fn hears_soon(socket: &UdpSocket, from: &UdpSocket, length: usize, number: u8) -> bool {
    hears_within(Duration::from_millis(500), socket, from, length, number)
}

fn hears_within(time: Duration, socket: &UdpSocket, from: &UdpSocket, length: usize, number: u8) -> bool {
    let mut buffer = [0; 5000];
    socket.set_read_timeout(Some(time)).unwrap();
    from.send_to(&vec![number; length], socket.local_addr().unwrap()).unwrap();
    match socket.recv(&mut buffer) {
        Ok(got) => {
            assert_eq!((got, buffer[0]), (length, number));
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            false
        }
    }
}

#[test]
fn an_operator_who_is_not_reachable_gets_answers_and_nothing_else() {
    let world = World::new();
    let router = world.network(1);
    let _operator = join(&world, false, None);
    answers(&world.laptop, SERVER4);
    // The kernel takes up to a second to find a new device ready for IPv6.
    answers(&world.laptop, SERVER6);
    world.laptop.run(&format!("ping -n -c 1 -W 5 -s 4000 {SERVER4}"));
    for address in [SERVER4, SERVER6] {
        carries(&world.laptop, &router, address, 10 << 20);
    }
    // Data in the other direction, of a connection that the operator began.
    let listener = router.listen((SERVER4.parse::<IpAddr>().unwrap(), PORT).into()).unwrap();
    let mut stream = world.laptop.enter(|| TcpStream::connect((SERVER4, PORT)).unwrap());
    let sender = std::thread::spawn(move || {
        std::io::copy(&mut std::io::repeat(7).take(10 << 20), &mut listener.accept().unwrap().0).unwrap()
    });
    assert_eq!(std::io::copy(&mut stream, &mut std::io::sink()).unwrap(), 10 << 20);
    sender.join().unwrap();
    assert_eq!((status(&world).withheld, status(&world).refused), (0, 0));

    for (own, server) in OPERATOR.into_iter().zip([SERVER4, SERVER6]) {
        let _listener = world.laptop.listen((own.parse::<IpAddr>().unwrap(), PORT).into()).unwrap();
        let mut withheld = status(&world).withheld;
        let mut more = |least| {
            eventually("what is withheld is counted", || status(&world).withheld >= withheld + least);
            withheld = status(&world).withheld;
        };
        assert!(!connects(&router, own, PORT));
        more(1);
        assert!(!router.pings(own));
        more(1);
        let (client, [asked, stranger]) =
            (bind(&world.laptop, own, PORT), [PORT, PORT + 1].map(|port| bind(&router, server, port)));
        // Whole, and in three fragments.
        assert!(!hears_soon(&client, &asked, 100, 1) && !hears_soon(&client, &asked, 4000, 2));
        more(4);
        for length in [100, 4000] {
            client.send_to(&vec![3; length], (server, PORT)).unwrap();
            let (got, from) = asked.recv_from(&mut [0; 5000]).unwrap();
            assert_eq!((got, from), (length, client.local_addr().unwrap()));
        }
        assert!(hears(&client, &asked, 100, 4) && hears(&client, &asked, 4000, 5));
        assert!(!hears_soon(&client, &stranger, 100, 6) && !hears_soon(&client, &stranger, 4000, 7));
        more(4);
        assert!(hears(&client, &asked, 100, 8));
        more(0);
    }
    assert_eq!((status(&world).refused, status(&world).lost), (0, 0));
}

#[test]
fn an_operator_who_is_reachable_can_be_called() {
    let world = World::new();
    let router = world.tap_network(1);
    let _operator = join(&world, true, None);
    answers(&world.laptop, SERVER4);
    for own in OPERATOR {
        answers(&router, own);
        carries(&router, &world.laptop, own, 1 << 20);
    }
    assert!(hears(&bind(&world.laptop, OPERATOR[0], PORT), &bind(&router, SERVER4, PORT), 100, 1));
    assert_eq!(status(&world).withheld, 0);
}

#[test]
fn an_answer_passes_only_from_where_the_operator_may_reach() {
    let world = World::new();
    let router = world.network(1);
    router.run("ip address add 10.0.0.7/32 dev lo");
    let only = Only { addresses: vec![SERVER4.parse().unwrap()], port: Some(PORT) };
    let _operator = join(&world, false, Some(only));
    let client = bind(&world.laptop, OPERATOR[0], PORT);
    let [asked, other, elsewhere] =
        [(SERVER4, PORT), (SERVER4, PORT + 1), ("10.0.0.7", PORT)].map(|(at, port)| bind(&router, at, port));
    assert!(!hears_soon(&client, &asked, 10, 1), "from within its scope, but no answer");
    for at in [&asked, &other, &elsewhere] {
        client.send_to(b"question", at.local_addr().unwrap()).unwrap();
    }
    asked.recv(&mut [0; 100]).unwrap();
    assert!(hears(&client, &asked, 10, 2));
    assert!(!hears_soon(&client, &other, 10, 3) && !hears_soon(&client, &elsewhere, 10, 4));
    eventually("all of it is counted", || (status(&world).withheld, status(&world).refused) == (3, 2));
}
