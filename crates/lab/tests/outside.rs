//! The internet of the boundary tests answers as it says, and sees everything.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use warren_lab::outside::{Answer, Outside, RESOLVERS, SSH_ON_443, UDP_ECHO};
use warren_lab::{Lab, Namespace};

const PATIENCE: Duration = Duration::from_secs(20);

/// Says something to an address, and hears until the other end stops or a moment is over.
fn say(host: &Namespace, to: &str, text: &str) -> String {
    host.enter(|| {
        let to: SocketAddr = to.parse().unwrap();
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap_or_else(|error| panic!("{to}: {error}"));
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard);
        String::from_utf8_lossy(&heard).into_owned()
    })
}

fn lookup(host: &Namespace, name: &str, kind: RecordType) -> Message {
    let mut query = Message::new(7, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    let answer = host.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send_to(&query.to_vec().unwrap(), (RESOLVERS[0], 53)).unwrap();
        let mut buffer = [0; 2048];
        let length = socket.recv(&mut buffer).unwrap();
        buffer[..length].to_vec()
    });
    Message::from_vec(&answer).unwrap()
}

fn addresses(answer: &Message) -> Vec<IpAddr> {
    let address = |data: &RData| match data {
        RData::A(v4) => Some(IpAddr::V4(v4.0)),
        RData::AAAA(v6) => Some(IpAddr::V6(v6.0)),
        _ => None,
    };
    answer.answers.iter().filter_map(|record| address(&record.data)).collect()
}

#[test]
fn every_address_answers_and_is_seen() {
    let lab = Lab::new();
    let (outside, host) = Outside::new(&lab);
    let mark = outside.log.mark();
    assert!(say(&host, "8.8.4.4:80", "GET /x HTTP/1.1\r\nHost: a.example\r\n\r\n").ends_with("8.8.4.4 a.example /x\n"));
    assert!(
        say(&host, "[2a04:4e42::7]:80", "GET / HTTP/1.1\r\nHost: b.example\r\n\r\n").contains("2a04:4e42::7 b.exa")
    );
    assert_eq!(say(&host, "10.99.0.1:4711", "hello"), "hello");
    assert!(say(&host, "140.82.112.4:22", "").starts_with("SSH-2.0-"));
    assert!(say(&host, &format!("{SSH_ON_443}:443"), "").starts_with("SSH-2.0-"));
    for (address, port) in [("8.8.4.4", 80), ("2a04:4e42::7", 80), ("10.99.0.1", 4711), ("140.82.112.4", 22)] {
        let packets = outside.log.packets_to(mark, address.parse().unwrap());
        assert_eq!(packets.iter().map(|packet| packet.port).collect::<Vec<_>>(), [Some(port)], "{address}");
    }
    assert!(outside.log.heard(mark, "hello"));
    assert_eq!(outside.log.requests(mark).len(), 2);
    assert!(host.pings("9.9.9.9") && outside.log.packets_to(mark, "9.9.9.9".parse().unwrap())[0].protocol == 1);
    for address in UDP_ECHO {
        let echoed = host.enter(|| {
            let socket = UdpSocket::bind(if address.contains(':') { "[::]:0" } else { "0.0.0.0:0" }).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.connect((address, 7)).unwrap();
            socket.send(b"echo").unwrap();
            socket.recv(&mut [0; 16]).unwrap()
        });
        assert_eq!(echoed, 4, "{address}");
    }
}

#[test]
fn names_lead_where_the_test_says() {
    let lab = Lab::new();
    let (outside, host) = Outside::new(&lab);
    outside.names.addresses("a.example", &["1.2.3.4", "2a00::4"]);
    outside.names.set("alias.example", Answer::Alias("a.example".to_owned()));
    let turns = ["1.2.3.4", "10.0.0.1"].map(|address| vec![address.parse().unwrap()]);
    outside.names.set("turns.example", Answer::InTurn(turns.into()));
    outside.names.addresses("*.wild.example", &["1.2.3.5"]);
    outside.names.set("ech.example", Answer::WithEch(Vec::new()));
    let v4 =
        |name: &str| addresses(&lookup(&host, name, RecordType::A)).iter().map(IpAddr::to_string).collect::<Vec<_>>();
    let mark = outside.log.mark();
    assert_eq!(v4("A.example."), ["1.2.3.4"]);
    assert_eq!(v4("alias.example."), ["1.2.3.4"]);
    assert_eq!(
        [v4("turns.example."), v4("turns.example."), v4("turns.example.")].concat(),
        ["1.2.3.4", "10.0.0.1", "1.2.3.4"]
    );
    assert_eq!(v4("any.wild.example."), ["1.2.3.5"]);
    assert_eq!(v4("missing.example."), Vec::<String>::new());
    assert_eq!(addresses(&lookup(&host, "a.example.", RecordType::AAAA))[0].to_string(), "2a00::4");
    assert_eq!(lookup(&host, "ech.example.", RecordType::HTTPS).answers.len(), 1);
    assert_eq!(outside.log.queries(mark)[..2], ["a.example", "alias.example"]);
}

#[test]
fn downloads_come_at_their_rate_and_have_the_sum_that_is_told() {
    let lab = Lab::new();
    let (_outside, host) = Outside::new(&lab);
    let start = Instant::now();
    let output = host.enter(|| {
        let fetch = "curl -sS http://1.2.3.4/bytes?count=1000000\\&rate=2000000 | sha256sum";
        std::process::Command::new("sh").args(["-c", fetch]).output().unwrap()
    });
    assert_eq!(String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap(), Outside::sha256_of(1_000_000));
    assert!(start.elapsed() > Duration::from_millis(400));
}

#[test]
fn certificates_are_made_for_every_name_and_http_2_is_spoken() {
    let lab = Lab::new();
    let (outside, host) = Outside::new(&lab);
    let file = std::env::temp_dir().join(format!("{}-ca.pem", lab.prefix()));
    std::fs::write(&file, outside.certificate()).unwrap();
    let mark = outside.log.mark();
    for version in ["1.1", "2"] {
        let line = format!(
            "curl -sS --http{version} --cacert {} --resolve any.name.example:443:1.2.3.4 https://any.name.example/page",
            file.display()
        );
        assert_eq!(host.run(&line), "1.2.3.4 any.name.example /page\n", "HTTP/{version}");
    }
    std::fs::remove_file(&file).unwrap();
    assert_eq!(outside.log.server_names(mark), ["any.name.example"; 2]);
    assert!(outside.log.requests(mark)[1].contains("HTTP/2"));
}
