//! The public side of the edge as a process: it serves what it was given, over the sockets that it was given.

mod common;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use common::{Edge, loopback, view};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt::IpBindAddressNoPort,
};
use warren_edge::{EdgeClient, EdgeError, PoolStatus, PublicGeneration, RefusalCode};
use warren_ingress::{Kind, Site, SiteLimits, Snapshot};
use warren_model::NetworkNumber;

const HOST: &str = "app.preview.example";
/// Time in which anything is done, on however busy a machine.
const SOON: Duration = Duration::from_secs(30);
const OTHER: &str = "other.preview.example";

fn number(number: u16) -> NetworkNumber {
    NetworkNumber::new(number).unwrap()
}

/// As the daemon makes them in a network's namespace.
fn dialers(count: usize) -> Vec<OwnedFd> {
    let dialer = || {
        let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        setsockopt(&fd, IpBindAddressNoPort, &true).unwrap();
        let address = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));
        bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &address).unwrap();
        fd
    };
    (0..count).map(|_| dialer()).collect()
}

/// A machine that says its word to everybody, once a connection.
fn generation(content: u64) -> PublicGeneration {
    PublicGeneration { content, challenges: 0 }
}

fn machine(word: &'static str) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.read(&mut [0; 4096]);
            let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", word.len());
            let _ = stream.write_all(format!("{head}{word}").as_bytes());
        }
    });
    port
}

/// A machine that keeps its connections open, and takes its time to answer.
fn lasting_machine() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            std::thread::spawn(move || {
                while stream.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {
                    std::thread::sleep(Duration::from_millis(100));
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlong");
                }
            });
        }
    });
    port
}

fn site(host: &str, network: u16, port: u16) -> Site {
    Site {
        host: host.parse().unwrap(),
        id: host.to_owned(),
        network: number(network),
        addresses: vec![Ipv4Addr::LOCALHOST.into()],
        port,
        auth: None,
        limits: SiteLimits::default(),
    }
}

fn snapshot(network: u16, port: u16) -> Snapshot {
    Snapshot { sites: vec![site(HOST, network, port)], ..Snapshot::default() }
}

async fn listen(client: &EdgeClient) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    client.listen_public(Kind::Http, vec![listener]).await.unwrap();
    at
}

/// The status and the body.
fn get(at: SocketAddr) -> Option<(u16, String)> {
    get_of(at, HOST)
}

fn get_of(at: SocketAddr, host: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&at, SOON).ok()?;
    stream.set_read_timeout(Some(SOON)).unwrap();
    write!(stream, "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_is_served_over_the_networks_sockets_without_a_daemon_too() {
    let (edge, client) = Edge::start().await;
    let at = listen(&client).await;
    assert_eq!(get(at).unwrap().0, 404, "nothing is published");
    client.put_public(generation(7), snapshot(1, machine("hello"))).await.unwrap();
    assert_eq!(get(at).unwrap().0, 502, "no socket leads to the network");
    client.add_dialers(number(2), dialers(1)).await.unwrap();
    assert_eq!(get(at).unwrap().0, 502, "those of another network are of no use");
    // More than one message carries.
    client.add_dialers(number(1), dialers(150)).await.unwrap();
    assert_eq!(get(at), Some((200, "hello".to_owned())));
    drop(client);
    for _ in 0..200 {
        assert_eq!(get(at), Some((200, "hello".to_owned())), "{}", edge.log());
    }

    let client = EdgeClient::connect(&edge.control()).await.unwrap().expect("the edge is still there");
    let status = client.public().await.unwrap();
    assert_eq!(client.status().await.unwrap().public, status);
    assert_eq!((status.generation, &status.listening[&Kind::Http]), (Some(generation(7)), &vec![at]));
    assert_eq!(status.dialers[&number(1)].sockets, 150);
    assert_eq!(status.dialers[&number(2)], PoolStatus { sockets: 1, most_used: 0 });
    let counters = client.public_counters(None).await.unwrap();
    assert_eq!((counters.sites[0].requests, counters.totals.refused.values().sum::<u64>()), (203, 1));
    let asked = [OTHER, HOST].map(|host| host.parse().unwrap());
    assert_eq!(client.public_counters(Some(&asked)).await.unwrap().sites, counters.sites);
    assert_eq!(client.public_counters(Some(&asked[..1])).await.unwrap().sites, []);

    client.remove_network(number(1)).await.unwrap();
    assert_eq!(get(at).unwrap().0, 502, "its sockets went with it");
    client.listen_public(Kind::Http, Vec::new()).await.unwrap();
    assert_eq!(client.status().await.unwrap().public.listening, Default::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_leaves_what_was_there() {
    let (_edge, client) = Edge::start().await;
    let at = listen(&client).await;
    client.add_dialers(number(1), dialers(2)).await.unwrap();
    client.put_public(generation(1), snapshot(1, machine("hello"))).await.unwrap();
    let refused = |outcome: Result<(), EdgeError>| match outcome {
        Err(EdgeError::Refused(refusal)) => refusal.code,
        other => panic!("{other:?}"),
    };
    let mut twice = snapshot(1, 80);
    twice.sites.extend(twice.sites.clone());
    assert_eq!(refused(client.put_public(generation(2), twice).await), RefusalCode::InvalidPublic);
    let listening = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    assert_eq!(refused(client.add_dialers(number(1), vec![listening.into()]).await), RefusalCode::SocketsUnfit);
    assert_eq!(
        refused(client.listen_public(Kind::Http, dialers(1).into_iter().map(Into::into).collect()).await),
        RefusalCode::SocketsUnfit
    );
    assert_eq!(get(at), Some((200, "hello".to_owned())));
    assert_eq!(client.status().await.unwrap().public.generation, Some(generation(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_every_socket_is_in_use_the_next_request_is_told_to_come_again() {
    let (_edge, client) = Edge::start().await;
    let at = listen(&client).await;
    // A machine that takes connections and says nothing.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    client.put_public(generation(1), snapshot(1, silent.local_addr().unwrap().port())).await.unwrap();
    client.add_dialers(number(1), dialers(1)).await.unwrap();
    let mut first = TcpStream::connect(at).unwrap();
    write!(first, "GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").unwrap();
    let held = silent.accept().unwrap();
    assert_eq!(get(at).unwrap().0, 503);
    // Whoever leaves makes room.
    drop((first, held));
    client.put_public(generation(2), snapshot(1, machine("hello"))).await.unwrap();
    let left = Instant::now();
    let answer = loop {
        match get(at) {
            // The socket is free a moment after it was left.
            Some((503, _)) if left.elapsed() < SOON => {}
            answer => break answer,
        }
    };
    assert_eq!(answer, Some((200, "hello".to_owned())));
}

#[tokio::test(flavor = "multi_thread")]
async fn unused_connections_of_one_site_leave_room_for_the_others_of_its_network() {
    let (_edge, client) = Edge::start().await;
    let at = listen(&client).await;
    let sites = vec![site(HOST, 1, lasting_machine()), site(OTHER, 1, machine("hello"))];
    client.put_public(generation(1), Snapshot { sites, ..Snapshot::default() }).await.unwrap();
    client.add_dialers(number(1), dialers(2)).await.unwrap();
    for _ in 0..3 {
        let both = [(); 2].map(|()| std::thread::spawn(move || get(at)));
        both.into_iter().for_each(|one| assert_eq!(one.join().unwrap(), Some((200, "long".to_owned()))));
        assert_eq!(get_of(at, OTHER), Some((200, "hello".to_owned())));
    }
    assert_eq!(client.public().await.unwrap().dialers[&number(1)], PoolStatus { sockets: 2, most_used: 2 });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_leads_to_a_network_that_was_made_anew_is_gone() {
    let (_edge, client) = Edge::start().await;
    let at = listen(&client).await;
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    client.put_public(generation(1), snapshot(1, silent.local_addr().unwrap().port())).await.unwrap();
    client.add_dialers(number(1), dialers(2)).await.unwrap();
    client.put_network(&view(1, 1, &[]), Some(loopback().0), None).await.unwrap();
    let mut open = TcpStream::connect(at).unwrap();
    write!(open, "GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").unwrap();
    let (mut asked, _) = silent.accept().unwrap();
    client.put_network(&view(1, 2, &[]), None, None).await.unwrap();
    assert_eq!(client.public().await.unwrap().dialers[&number(1)].sockets, 2, "it is the same network still");

    client.put_network(&view(1, 3, &[]), Some(loopback().0), None).await.unwrap();
    assert_eq!(client.public().await.unwrap().dialers, Default::default());
    asked.set_read_timeout(Some(SOON)).unwrap();
    asked.read_to_end(&mut Vec::new()).expect("nothing is open to it");
    assert_eq!(get(at).unwrap().0, 502);
}
