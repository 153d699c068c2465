//! Probes over loopback: what arrives is what was sent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use warren_model::probe::{Holder, Listening};

use super::*;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn listening(tcp: BTreeSet<u16>, addresses: Vec<IpAddr>) -> (Listening, Seen) {
    let seen = Seen::default();
    let setup = Setup { addresses, tcp, udp: BTreeSet::new(), lifetime_ms: 1000 };
    let mut problems = Vec::new();
    let listening = listen::start(&setup, &seen, &mut problems);
    assert!(problems.is_empty(), "{problems:?}");
    (listening, seen)
}

fn token(n: u128) -> Token {
    Token::from_random(n)
}

#[tokio::test]
async fn a_token_over_tcp_and_udp_comes_out_and_back() {
    let (listening, seen) = listening(BTreeSet::new(), vec![HERE]);
    let tcp = (HERE, listening.free_tcp.unwrap()).into();
    let udp = (HERE, listening.free_udp.unwrap()).into();
    let attempts = vec![Attempt::Tcp { to: tcp, token: token(1) }, Attempt::Udp { to: udp, token: token(2) }];
    assert_eq!(try_all(attempts).await, [Outcome::Echoed, Outcome::Echoed]);
    let arrivals = seen.take().arrivals;
    let arrived = |port| Arrival { from: HERE, port };
    assert_eq!(
        arrivals,
        BTreeMap::from([(token(1), arrived(listening.free_tcp)), (token(2), arrived(listening.free_udp))])
    );
}

#[tokio::test]
async fn a_closed_port_is_a_reset_and_a_port_that_is_taken_is_a_services() {
    let taken = std::net::TcpListener::bind((HERE, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let (listening, _) = listening(BTreeSet::from([port]), vec![HERE]);
    assert_eq!(listening.tcp, BTreeMap::from([(port, Holder::Service)]));
    drop(taken);
    let to: SocketAddr = (HERE, port).into();
    assert_eq!(try_one(Attempt::Tcp { to, token: token(1) }).await, Outcome::Reset);
    assert_eq!(try_one(Attempt::Udp { to, token: token(1) }).await, Outcome::Reset);
}

#[tokio::test]
async fn whoever_takes_a_connection_and_says_nothing_is_connected() {
    let quiet = std::net::TcpListener::bind((HERE, 0)).unwrap();
    let to = quiet.local_addr().unwrap();
    let answering = std::thread::spawn(move || drop(quiet.accept()));
    assert_eq!(try_one(Attempt::Tcp { to, token: token(1) }).await, Outcome::Connected);
    answering.join().unwrap();
}

#[tokio::test]
async fn a_free_port_is_the_same_on_both_families() {
    let both = vec![HERE, Ipv6Addr::LOCALHOST.into()];
    if std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        return;
    }
    let (listening, _) = listening(BTreeSet::new(), both.clone());
    for (n, address) in (1..).zip(both) {
        let to = (address, listening.free_tcp.unwrap()).into();
        assert_eq!(try_one(Attempt::Tcp { to, token: token(n) }).await, Outcome::Echoed);
    }
}

/// Needs CAP_NET_RAW, as a machine's root has it.
#[tokio::test]
async fn raw_sockets_see_datagrams_and_echo_requests_that_nobody_listens_for() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let seen = Seen::default();
    watch::start(&seen).unwrap();
    let port = {
        let socket = std::net::UdpSocket::bind((HERE, 0)).unwrap();
        socket.local_addr().unwrap().port()
    };
    let (datagram, echo) = (token(3), token(4));
    try_one(Attempt::Udp { to: (HERE, port).into(), token: datagram.clone() }).await;
    let echoed = try_one(Attempt::Icmp { to: HERE, token: echo.clone() }).await;
    let mut arrivals = BTreeMap::new();
    let was_echoed = !matches!(echoed, Outcome::NotTried { .. });
    let all = async {
        while !(arrivals.contains_key(&datagram) && (arrivals.contains_key(&echo) || !was_echoed)) {
            tokio::time::sleep(Duration::from_millis(50)).await;
            arrivals.extend(seen.take().arrivals);
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("what was sent was seen");
    assert_eq!(arrivals.get(&datagram), Some(&Arrival { from: HERE, port: Some(port) }));
    // Whether ping works without a raw socket is a setting of the namespace (icmp(7)); machines have it on.
    match echoed {
        Outcome::NotTried { .. } => assert_eq!(arrivals.get(&echo), None),
        outcome => {
            assert_eq!(outcome, Outcome::Echoed);
            assert_eq!(arrivals.get(&echo), Some(&Arrival { from: HERE, port: None }));
        }
    }
}
