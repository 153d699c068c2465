//! A running edge, asked over real sockets.

mod common;

use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use common::{
    Edge, addresses, bind_sockets, dig, error_text, in_namespace, loopback, question, tcp_exchange, try_udp, udp, view,
};
use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use warren_edge::EdgeClient;

const MULTI: &str = "worker.vm.internal";

#[tokio::test(flavor = "multi_thread")]
async fn a_network_answers_over_udp_and_tcp_on_both_families() {
    let (_edge, client) = Edge::start().await;
    let (sockets, at) = loopback();
    client.put_network(&view(1, 1, &[(MULTI, 10)]), Some(sockets), None).await.unwrap();
    for server in [at.udp4, at.udp6] {
        assert_eq!(addresses(&udp(server, MULTI, RecordType::A)), ["10.0.1.10".parse::<std::net::IpAddr>().unwrap()]);
    }
    for server in [at.tcp4, at.tcp6] {
        let mut stream = TcpStream::connect(server).unwrap();
        for _ in 0..100 {
            let answer = tcp_exchange(&mut stream, &question(MULTI, RecordType::AAAA)).unwrap();
            assert_eq!(answer.answers.len(), 1);
        }
    }
    let status = client.status().await.unwrap();
    assert_eq!((status.queries.received, status.queries.answered), (202, 202));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_appear_and_are_gone_at_once() {
    let (_edge, client) = Edge::start().await;
    let (sockets, at) = loopback();
    let number = view(1, 1, &[]).number;
    client.put_network(&view(1, 1, &[]), Some(sockets), None).await.unwrap();
    for generation in 1..50 {
        assert_eq!(udp(at.udp4, MULTI, RecordType::A).metadata.response_code, ResponseCode::NXDomain);
        client.put_network(&view(1, generation * 2, &[(MULTI, 9)]), None, None).await.unwrap();
        assert_eq!(addresses(&udp(at.udp4, MULTI, RecordType::A)).len(), 1);
        client.put_network(&view(1, generation * 2 + 1, &[]), None, None).await.unwrap();
    }
    client.remove_network(number).await.unwrap();
    assert!(try_udp(at.udp4, &question(MULTI, RecordType::A), Duration::from_millis(300)).is_err());
    assert!(client.status().await.unwrap().networks.is_empty());
}

#[test]
fn two_networks_with_the_same_addresses_never_meet() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (edge, _client) = runtime.block_on(Edge::start());
    let gateway = ["10.0.0.1/32", "fd12:3456:789a:1::1/128"];
    std::thread::scope(|scope| {
        for (number, mine, other) in [(1, "a.vm.internal", "b.vm.internal"), (2, "b.vm.internal", "a.vm.internal")] {
            let control = edge.control();
            scope.spawn(move || {
                in_namespace(&gateway, || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(async {
                        let client = EdgeClient::connect(&control).await.unwrap().unwrap();
                        let view = view(number, 1, &[(mine, 10)]);
                        let sockets = bind_sockets(view.gateway4, view.gateway6, 53);
                        client.put_network(&view, Some(sockets), None).await.unwrap();
                    });
                    assert_eq!(dig(&["@10.0.0.1", "+short", mine]), "10.0.1.10\n");
                    assert_eq!(dig(&["@10.0.0.1", "+short", "+tcp", mine]), "10.0.1.10\n");
                    assert_eq!(dig(&["@fd12:3456:789a:1::1", "+short", mine, "AAAA"]), "fd12:3456:789a:1::a\n");
                    assert_eq!(dig(&["@10.0.0.1", "+short", "-x", "10.0.1.10"]), format!("{mine}.\n"));
                    assert_eq!(dig(&["@10.0.0.1", "+short", "-x", "fd12:3456:789a:1::a"]), format!("{mine}.\n"));
                    let missing = dig(&["@10.0.0.1", other]);
                    assert!(missing.contains("status: NXDOMAIN") && missing.contains("SOA"), "{missing}");
                    let denied = dig(&["@10.0.0.1", "x.example"]);
                    let reason = "EDE: 18 (Prohibited): (10.0.0.1 is not a member of this network)";
                    assert!(denied.contains("status: NXDOMAIN") && denied.contains(reason), "{denied}");
                    assert!(denied.contains("AUTHORITY: 0"), "{denied}");
                    for output in [missing, denied] {
                        assert!(!output.contains("WARNING") && !output.contains("malformed"), "{output}");
                    }
                });
            });
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_survived_and_the_next_question_is_answered() {
    let (_edge, client) = Edge::start().await;
    let (sockets, at) = loopback();
    client.put_network(&view(1, 1, &[(MULTI, 10)]), Some(sockets), None).await.unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut state = 0x9e37_79b9_u32;
    for length in 0..3000usize {
        let packet: Vec<u8> = (0..length % 1900)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        socket.send_to(&packet, at.udp4).unwrap();
    }
    // There may be no room for a question behind so much that waits to be read.
    let deadline = Instant::now() + Duration::from_secs(30);
    let answer = loop {
        match try_udp(at.udp4, &question(MULTI, RecordType::A), Duration::from_secs(1)) {
            Err(error) if Instant::now() > deadline => panic!("{error}"),
            Err(_) => {}
            Ok(answer) => break answer,
        }
    };
    assert_eq!(addresses(&answer).len(), 1);
    assert!(client.status().await.unwrap().queries.malformed > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_source_holds_a_bounded_number_of_tcp_connections() {
    let (_edge, client) = Edge::start().await;
    let (sockets, at) = loopback();
    client.put_network(&view(1, 1, &[(MULTI, 10)]), Some(sockets), None).await.unwrap();
    let mut streams: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(at.tcp4).unwrap()).collect();
    let message = question(MULTI, RecordType::A);
    let answered = streams.iter_mut().filter_map(|stream| tcp_exchange(stream, &message).ok()).count();
    assert_eq!(answered, 16);
    drop(streams);
    assert_eq!(addresses(&udp(at.udp4, MULTI, RecordType::A)).len(), 1);
    let deadline = Instant::now() + Duration::from_secs(30);
    while tcp_exchange(&mut TcpStream::connect(at.tcp4).unwrap(), &message).is_err() {
        assert!(Instant::now() < deadline, "closed connections still count");
    }
}

/// A resolver outside: what it says depends on the name it is asked for.
struct Outside {
    address: SocketAddr,
}

impl Outside {
    fn start() -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
            if let Ok(tcp) = std::net::TcpListener::bind(udp.local_addr().unwrap()) {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((length, peer)) = udp.recv_from(&mut buffer) {
                let query = Message::from_vec(&buffer[..length]).unwrap();
                let name = query.queries[0].name().to_ascii();
                if name.starts_with("silent") {
                    continue;
                }
                let mut answer = Self::answer(&query);
                if name.starts_with("big") {
                    answer.metadata.truncation = true;
                    answer.answers.clear();
                }
                if name.starts_with("forged") {
                    let mut forged = answer.clone();
                    forged.metadata.id ^= 1;
                    forged.answers[0].data = RData::A(A::new(6, 6, 6, 6));
                    udp.send_to(&forged.to_vec().unwrap(), peer).unwrap();
                    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
                    forged.metadata.id ^= 1;
                    stranger.send_to(&forged.to_vec().unwrap(), peer).unwrap();
                }
                udp.send_to(&answer.to_vec().unwrap(), peer).unwrap();
            }
        });
        std::thread::spawn(move || {
            use std::io::{Read, Write};
            for stream in tcp.incoming() {
                let mut stream = stream.unwrap();
                let mut length = [0; 2];
                stream.read_exact(&mut length).unwrap();
                let mut packet = vec![0; u16::from_be_bytes(length).into()];
                stream.read_exact(&mut packet).unwrap();
                let answer = Self::answer(&Message::from_vec(&packet).unwrap()).to_vec().unwrap();
                stream.write_all(&[&(answer.len() as u16).to_be_bytes(), answer.as_slice()].concat()).unwrap();
            }
        });
        Self { address }
    }

    fn answer(query: &Message) -> Message {
        let name = query.queries[0].name().clone();
        let mut answer = Message::response(query.metadata.id, OpCode::Query);
        answer.add_query(query.queries[0].clone());
        let (count, address) = match name.to_ascii() {
            text if text.starts_with("rebind") => (1, Ipv4Addr::new(10, 0, 0, 5)),
            text if text.starts_with("big") => (200, Ipv4Addr::new(93, 184, 216, 34)),
            text if text.starts_with("broken") => {
                answer.metadata.response_code = ResponseCode::ServFail;
                (0, Ipv4Addr::UNSPECIFIED)
            }
            _ => (1, Ipv4Addr::new(93, 184, 216, 34)),
        };
        answer.add_answers((0..count).map(|_| Record::from_rdata(name.clone(), 60, RData::A(A(address)))));
        answer
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_network_looks_other_names_up_outside() {
    let (_edge, client) = Edge::start().await;
    let (sockets, at) = loopback();
    let outside = Outside::start();
    let mut open = view(1, 1, &[(MULTI, 10)]);
    // The first resolver is not there; the second is asked instead.
    open.forward = vec!["127.0.0.1:1".parse().unwrap(), outside.address];
    client.put_network(&open, Some(sockets), None).await.unwrap();

    let good = udp(at.udp4, "Good.example.", RecordType::A);
    assert_eq!(addresses(&good), ["93.184.216.34".parse::<std::net::IpAddr>().unwrap()]);
    assert!(!good.metadata.authoritative);
    assert_eq!(good.queries[0].name().to_ascii(), "Good.example.");

    let forged = udp(at.udp4, "forged.example.", RecordType::A);
    assert_eq!(addresses(&forged), ["93.184.216.34".parse::<std::net::IpAddr>().unwrap()]);

    let rebind = udp(at.udp4, "rebind.example.", RecordType::A);
    assert_eq!((rebind.metadata.response_code, rebind.answers.len()), (ResponseCode::NXDomain, 0));
    assert_eq!(error_text(&rebind), "18 rebind.example leads to 10.0.0.5, which is not a public address");

    let big = udp(at.udp4, "big.example.", RecordType::A);
    assert!(big.metadata.truncation && big.answers.is_empty());
    let big =
        tcp_exchange(&mut TcpStream::connect(at.tcp4).unwrap(), &question("big.example.", RecordType::A)).unwrap();
    assert_eq!(big.answers.len(), 200);

    let broken = udp(at.udp4, "broken.example.", RecordType::A);
    assert_eq!(broken.metadata.response_code, ResponseCode::ServFail);
    assert!(error_text(&broken).starts_with("22 broken.example: "), "{}", error_text(&broken));

    // The network's own names never leave it, and are not held up by what waits outside.
    let waiting = std::thread::spawn(move || (Instant::now(), udp(at.udp4, "silent.example.", RecordType::A)));
    assert_eq!(addresses(&udp(at.udp4, MULTI, RecordType::A)).len(), 1);
    let (asked, silent) = waiting.join().unwrap();
    assert_eq!(silent.metadata.response_code, ResponseCode::ServFail);
    // Those outside are given up after 4.5 s.
    assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());

    // Sealed again: from the next question on.
    client.put_network(&view(1, 2, &[(MULTI, 10)]), None, None).await.unwrap();
    let denied = udp(at.udp4, "good.example.", RecordType::A);
    let text = error_text(&denied);
    assert!(
        text.starts_with("18 dny_") && text.ends_with(": no rule allows lab/agent to reach good.example"),
        "{text}"
    );
}
