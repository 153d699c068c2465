//! What the tests of the edge share. They run as root and touch no network but loopback and their own namespaces.
#![allow(dead_code)]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, sockopt};
use nix::unistd::Pid;
use ulid::Ulid;
use warren_edge::{EdgeClient, EdgeLog, NameRecord, NetworkView, PROXY_PORT, Sockets, SpawnConfig, TRANSPARENT_PORT};
use warren_model::policy::{Group, Member, NameRule};
use warren_model::{AccountId, MachineId, MemberNumber, NetworkId, NetworkNumber};

/// A directory for the control socket, and the edge in it, which ends with the value.
pub struct Edge {
    directory: tempfile::TempDir,
    pub pid: i32,
}

impl Edge {
    pub async fn start() -> (Self, EdgeClient) {
        let directory = tempfile::tempdir().unwrap();
        let mut edge = Self { directory, pid: 0 };
        let client = EdgeClient::spawn(&edge.config()).await.unwrap();
        edge.pid = client.pid();
        (edge, client)
    }

    pub fn config(&self) -> SpawnConfig {
        SpawnConfig {
            executable: env!("CARGO_BIN_EXE_warren-edge").into(),
            arguments: vec![],
            control: self.control(),
            uid: 65534,
            gid: 65534,
            log: EdgeLog::File(self.directory.path().join("edge.log")),
        }
    }

    pub fn control(&self) -> PathBuf {
        self.directory.path().join("edge.sock")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("edge.log")).unwrap()
    }

    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid), signal).unwrap();
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        let is_edge = std::fs::read_to_string(format!("/proc/{}/comm", self.pid))
            .is_ok_and(|name| name.starts_with("warren-edge"));
        if self.pid > 0 && is_edge {
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }
}

pub fn record(name: &str, last: u8) -> NameRecord {
    NameRecord {
        name: name.into(),
        ipv4: Some(Ipv4Addr::new(10, 0, 1, last)),
        ipv6: Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 1, 0, 0, 0, last.into()),
        scope: None,
    }
}

/// A network whose only member is who asks over loopback.
pub fn view(number: u16, generation: u64, names: &[(&str, u8)]) -> NetworkView {
    let ulid = |kind: u128| Ulid::from_parts(number.into(), kind);
    NetworkView {
        account: AccountId::from_ulid(ulid(1)),
        network: NetworkId::from_ulid(ulid(2)),
        number: NetworkNumber::new(number).unwrap(),
        generation,
        names: names.iter().map(|(name, last)| record(name, *last)).collect(),
        members: vec![Member {
            id: MachineId::from_ulid(ulid(3)).into(),
            network: "lab".parse().unwrap(),
            name: "agent".parse().unwrap(),
            number: MemberNumber::FIRST,
            ipv4: Ipv4Addr::LOCALHOST,
            ipv6: Ipv6Addr::LOCALHOST,
            tags: Default::default(),
        }],
        ..warren_edge::fuzz::network()
    }
}

/// The same with these rules for the member: an id, a pattern, and ports.
pub fn with_rules(mut view: NetworkView, rules: &[(&str, &str, &[&str])]) -> NetworkView {
    let rule = |(id, pattern, ports): &(&str, &str, &[&str])| NameRule {
        id: id.parse().unwrap(),
        forbid: id.starts_with("no-"),
        pattern: pattern.parse().unwrap(),
        ports: ports.iter().map(|ports| ports.parse().unwrap()).collect(),
        application: None,
    };
    let addresses = view.members.iter().flat_map(|member| [member.ipv4.into(), member.ipv6.into()]);
    view.groups = addresses.map(|address| (address, Group(9))).collect();
    view.rules = [(Group(9), rules.iter().map(rule).collect())].into();
    view
}

/// Where the sockets of a network answer.
#[derive(Debug, Clone, Copy)]
pub struct At {
    pub udp4: SocketAddr,
    pub udp6: SocketAddr,
    pub tcp4: SocketAddr,
    pub tcp6: SocketAddr,
}

/// Sockets on ports of loopback that the kernel chooses.
pub fn loopback() -> (Sockets, At) {
    let sockets = bind_sockets(Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST, 0);
    let udp = |fd: &OwnedFd| UdpSocket::from(fd.try_clone().unwrap()).local_addr().unwrap();
    let tcp = |fd: &OwnedFd| TcpListener::from(fd.try_clone().unwrap()).local_addr().unwrap();
    let at =
        At { udp4: udp(&sockets.udp4), udp6: udp(&sockets.udp6), tcp4: tcp(&sockets.tcp4), tcp6: tcp(&sockets.tcp6) };
    (sockets, at)
}

/// Binds a gateway's sockets in the network namespace of the calling thread.
///
/// `port` is where DNS is answered. Port 0 lets the kernel choose one for each socket, and puts the transparent listeners
/// on the gateway's addresses.
pub fn bind_sockets(gateway4: Ipv4Addr, gateway6: Ipv6Addr, port: u16) -> Sockets {
    let (v4, v6) = (IpAddr::V4(gateway4), IpAddr::V6(gateway6));
    let (any4, any6, transparent, proxy) = match port {
        0 => (v4, v6, 0, 0),
        _ => (Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into(), TRANSPARENT_PORT, PROXY_PORT),
    };
    let udp = |address: IpAddr| UdpSocket::bind((address, port)).unwrap().into();
    let tcp = |address: IpAddr, port| TcpListener::bind((address, port)).unwrap().into();
    Sockets {
        udp4: udp(v4),
        udp6: udp(v6),
        tcp4: tcp(v4, port),
        tcp6: tcp(v6, port),
        transparent4: bind_transparent(any4, transparent).unwrap(),
        transparent6: bind_transparent(any6, transparent).unwrap(),
        proxy4: tcp(v4, proxy),
        proxy6: tcp(v6, proxy),
    }
}

/// A listener whose connections keep the address that was dialled (ip(7), `IP_TRANSPARENT`). The option of the IPv4
/// level counts for IPv6 sockets, too: it is one flag of the socket.
fn bind_transparent(address: IpAddr, port: u16) -> nix::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    socket::setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    socket::setsockopt(&fd, sockopt::IpTransparent, &true)?;
    if address.is_ipv6() {
        socket::setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(address, port)))?;
    socket::listen(&fd, Backlog::new(1024)?)?;
    Ok(fd)
}

pub fn question(name: &str, record_type: RecordType) -> Message {
    let mut message = Message::new(0x4242, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), record_type));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.set_edns(edns);
    message
}

/// Asks once over UDP; an error when nothing comes back within the time.
pub fn try_udp(server: SocketAddr, message: &Message, time: Duration) -> std::io::Result<Message> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(time))?;
    socket.send(&message.to_vec().unwrap())?;
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer)?;
    Ok(Message::from_vec(&buffer[..length]).unwrap())
}

pub fn udp(server: SocketAddr, name: &str, record_type: RecordType) -> Message {
    try_udp(server, &question(name, record_type), Duration::from_secs(20)).unwrap()
}

pub fn tcp_exchange(stream: &mut TcpStream, message: &Message) -> std::io::Result<Message> {
    let bytes = message.to_vec().unwrap();
    stream.write_all(&[&(bytes.len() as u16).to_be_bytes(), bytes.as_slice()].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut answer)?;
    Ok(Message::from_vec(&answer).unwrap())
}

pub fn addresses(message: &Message) -> Vec<IpAddr> {
    message
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(address) => Some(IpAddr::V4(address.0)),
            RData::AAAA(address) => Some(IpAddr::V6(address.0)),
            _ => None,
        })
        .collect()
}

/// The extended DNS error of an answer, as text.
pub fn error_text(message: &Message) -> String {
    use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
    match message.edns.as_ref().and_then(|edns| edns.option(EdnsCode::Unknown(15))) {
        Some(EdnsOption::Unknown(_, octets)) => {
            format!("{} {}", u16::from_be_bytes([octets[0], octets[1]]), String::from_utf8_lossy(&octets[2..]))
        }
        _ => String::new(),
    }
}

/// Runs `body` on a thread that is in a network namespace of its own, with these addresses on its loopback.
pub fn in_namespace<R: Send>(addresses: &[&str], body: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            ip(&["link", "set", "lo", "up"]);
            for address in addresses {
                let mut arguments = vec!["address", "add", address, "dev", "lo"];
                if address.contains(':') {
                    arguments.push("nodad");
                }
                ip(&arguments);
            }
            body()
        });
        thread.join().unwrap()
    })
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

pub fn dig(arguments: &[&str]) -> String {
    let output = Command::new("dig").args(["+tries=1", "+time=20"]).args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}
