//! Names outside from end to end: a machine asks for a name, dials the address that it is told, and the edge connects
//! it to what the name leads to; and stops when policy does.

mod common;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Edge, addresses, bind_sockets, in_namespace, question, view, with_rules};
use hickory_proto::op::{Message, OpCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
use warren_edge::{EdgeClient, NetworkView, PROXY_PORT};

const MACHINE: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// On the internet of this test, a namespace one link away.
const SERVER: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 34);
const RESOLVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(93, 184, 216, 53)), 53);
const PORT: u16 = 5432;
const PORTS: &[&str] = &["tcp/5432"];
const HOST: &str = "db.example.com";
/// Time in which anything is done, on however busy a machine.
const SOON: Duration = Duration::from_secs(30);

/// A network of one machine that may reach the patterns of these rules.
fn network(generation: u64, rules: &[(&str, &str, &[&str])]) -> NetworkView {
    let mut view = view(1, generation, &[]);
    view.members[0].ipv4 = MACHINE;
    view.resolvers = vec![RESOLVER];
    with_rules(view, rules)
}

/// Says for every name of `example.com` that it is the server, and for `inside.example.com` that it is the gateway.
fn serve_dns(socket: &UdpSocket) {
    let mut buffer = [0; 2048];
    while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
        let query = Message::from_vec(&buffer[..length]).unwrap();
        let question = &query.queries[0];
        let mut answer = Message::response(query.metadata.id, OpCode::Query);
        answer.add_query(question.clone());
        if question.query_type() == RecordType::A {
            let inside = question.name().to_ascii().starts_with("inside");
            let address = if inside { GATEWAY } else { SERVER };
            answer.add_answer(Record::from_rdata(question.name().clone(), 60, RData::A(A(address))));
        }
        socket.send_to(&answer.to_vec().unwrap(), peer).unwrap();
    }
}

/// Sends back what it gets.
fn serve_echo(listener: &TcpListener) {
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        std::thread::spawn(move || {
            let mut reader = stream.try_clone().unwrap();
            let _ = io::copy(&mut reader, &mut stream);
        });
    }
}

/// Connects from the machine's address.
fn dial(to: SocketAddr) -> io::Result<TcpStream> {
    let SocketAddr::V4(to) = to else { panic!("{to}") };
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    use std::os::fd::AsRawFd;
    bind(fd.as_raw_fd(), &SockaddrIn::from(std::net::SocketAddrV4::new(MACHINE, 0)))?;
    connect(fd.as_raw_fd(), &SockaddrIn::from(to))?;
    let stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(SOON))?;
    Ok(stream)
}

fn ask(name: &str) -> Vec<IpAddr> {
    let socket = UdpSocket::bind((MACHINE, 0)).unwrap();
    socket.connect((GATEWAY, 53)).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket.send(&question(name, RecordType::A).to_vec().unwrap()).unwrap();
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer).unwrap();
    addresses(&Message::from_vec(&buffer[..length]).unwrap())
}

/// Waits for the end of a connection on which nothing comes any more.
fn is_cut(stream: &mut TcpStream) {
    match stream.read(&mut [0; 16]) {
        Ok(0) => {}
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => {}
        open => panic!("{open:?}"),
    }
}

fn echoes(stream: &mut TcpStream, text: &str) -> io::Result<()> {
    stream.write_all(text.as_bytes())?;
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back)?;
    assert_eq!(back, text.as_bytes());
    Ok(())
}

/// Asks the proxy on the gateway for a tunnel; returns the stream behind the answer's headers, and its status.
fn tunnel(authority: &str) -> (TcpStream, u16) {
    let mut stream = dial((GATEWAY, PROXY_PORT).into()).unwrap();
    write!(stream, "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n").unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    let text = String::from_utf8(head).unwrap();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    (stream, status.unwrap_or_else(|| panic!("{text}")))
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The internet, in a namespace of its own; returns the path of that, once it serves what asks it over `eth0`.
fn internet() -> String {
    let (send, path) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        run("ip", &["link", "set", "lo", "up"]);
        for address in ["93.184.216.34/32", "93.184.216.53/32"] {
            run("ip", &["address", "add", address, "dev", "lo"]);
        }
        let resolver = UdpSocket::bind(RESOLVER).unwrap();
        let server = TcpListener::bind((SERVER, PORT)).unwrap();
        std::thread::spawn(move || serve_dns(&resolver));
        send.send(format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid())).unwrap();
        serve_echo(&server);
    });
    path.recv().unwrap()
}

/// The whole of it: a namespace with the machine and the edge, a link away from the internet; `body` gets the edge.
fn in_lab(rules: &[(&str, &str, &[&str])], body: impl AsyncFnOnce(&Edge, EdgeClient) + Send) {
    in_namespace(&["10.0.0.1/32", "10.0.1.2/32", "fd12:3456:789a:1::1/128"], || {
        let internet = internet();
        run("ip", &["link", "add", "wan0", "type", "veth", "peer", "name", "eth0", "netns", &internet]);
        run("ip", &["address", "add", "10.255.0.1/30", "dev", "wan0"]);
        run("ip", &["link", "set", "wan0", "up"]);
        run("nsenter", &[&format!("--net={internet}"), "ip", "address", "add", "10.255.0.2/30", "dev", "eth0"]);
        run("nsenter", &[&format!("--net={internet}"), "ip", "link", "set", "eth0", "up"]);
        run("ip", &["route", "add", "93.184.216.0/24", "via", "10.255.0.2"]);
        // What the router does with what goes to a synthetic address.
        run("ip", &["route", "add", "local", "198.18.0.0/15", "dev", "lo"]);
        let tproxy = "add table ip lab { chain in { type filter hook prerouting priority mangle; \
                      ip daddr 198.18.0.0/15 meta l4proto tcp tproxy to :3129 accept; }; }";
        run("nft", &[tproxy]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (edge, client) = Edge::start().await;
            let sockets = bind_sockets(GATEWAY, "fd12:3456:789a:1::1".parse().unwrap(), 53);
            client.put_network(&network(1, rules), Some(sockets), None).await.unwrap();
            body(&edge, client).await;
        });
    });
}

#[test]
fn a_machine_reaches_an_allowed_name_until_the_rule_is_revoked_and_the_other_goes_on() {
    let both: &[(&str, &str, &[&str])] = &[("db", HOST, PORTS), ("log", "log.example.com", PORTS)];
    in_lab(both, async |_, client| {
        let [db] = ask(HOST)[..] else { panic!("no address") };
        let [log] = ask("log.example.com")[..] else { panic!("no address") };
        assert_ne!(db, log);
        let mut first = dial((db, PORT).into()).unwrap();
        let mut second = dial((log, PORT).into()).unwrap();
        for stream in [&mut first, &mut second] {
            echoes(stream, "through the edge").unwrap();
        }
        // Bytes are counted once they have been passed on, so a moment after they arrive.
        let counted = async |rule: &str| {
            let flows = client.flow_counters(network(1, both).number).await.unwrap();
            let flow = flows.iter().find(|flow| flow.rule.as_str() == rule).unwrap();
            (flow.open, flow.opened, flow.sent, flow.received)
        };
        let deadline = Instant::now() + SOON;
        while (counted("db").await, counted("log").await) != ((1, 1, 16, 16), (1, 1, 16, 16)) {
            assert!(Instant::now() < deadline, "{:?} {:?}", counted("db").await, counted("log").await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }

        let begun = Instant::now();
        client.put_network(&network(2, &both[1..]), None, None).await.unwrap();
        is_cut(&mut first);
        let took = begun.elapsed();
        assert!(took < SOON / 4, "{took:?}");
        echoes(&mut second, "undisturbed").unwrap();
        assert!(ask(HOST).is_empty());
        let denials = client.take_denials(0).await.unwrap().denials;
        assert!(denials.iter().any(|denial| denial.name.as_deref() == Some(HOST)), "{denials:?}");
    });
}

#[test]
fn the_proxy_on_the_gateway_follows_the_same_rules() {
    in_lab(&[("db", "*.example.com", PORTS)], async |_, client| {
        let (mut stream, status) = tunnel(&format!("{HOST}:{PORT}"));
        assert_eq!(status, 200);
        echoes(&mut stream, "through the proxy").unwrap();
        for refused in [format!("evil.example:{PORT}"), format!("{HOST}:25"), "93.184.216.34:443".into()] {
            assert_eq!(tunnel(&refused).1, 403, "{refused}");
        }
        let (_, status) = tunnel(&format!("inside.example.com:{PORT}"));
        assert_eq!(status, 403, "it leads to an address that is not public");
        let denials = client.take_denials(0).await.unwrap().denials;
        assert_eq!(denials.len(), 4, "{denials:?}");
        let names = (0..70).map(|index| format!("n{index}.example.com:{PORT}"));
        let refused = names.filter(|authority| tunnel(authority).1 == 403).count();
        assert_eq!(refused, 12, "58 more were new within the minute");
    });
}

#[test]
fn a_network_that_is_removed_takes_its_connections_along() {
    in_lab(&[("db", HOST, PORTS)], async |_, client| {
        let [db] = ask(HOST)[..] else { panic!("no address") };
        let mut stream = dial((db, PORT).into()).unwrap();
        echoes(&mut stream, "still there").unwrap();
        client.remove_network(network(1, &[]).number).await.unwrap();
        is_cut(&mut stream);
        // A listener is there until the last process has closed it, and one that is being started has it until its exec.
        let late = dial((db, PORT).into()).and_then(|mut stream| echoes(&mut stream, "too late"));
        assert!(late.is_err());
    });
}

#[test]
fn an_open_connection_outlives_the_daemon_and_is_still_cut_by_the_next_one() {
    in_lab(&[("db", HOST, PORTS)], async |edge, client| {
        let [db] = ask(HOST)[..] else { panic!("no address") };
        let mut stream = dial((db, PORT).into()).unwrap();
        echoes(&mut stream, "with a daemon").unwrap();
        drop(client);
        echoes(&mut stream, "without a daemon").unwrap();
        let client = EdgeClient::connect(&edge.control()).await.unwrap().expect("the edge is still there");
        client.put_network(&network(2, &[("db", HOST, PORTS)]), None, None).await.unwrap();
        echoes(&mut stream, "with the next one").unwrap();
        client.put_network(&network(3, &[]), None, None).await.unwrap();
        is_cut(&mut stream);
    });
}
