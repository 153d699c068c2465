//! Three members in groups of their own, and flows between them.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_kernel::{MemberSpec, NetworkSpec, RulesState};
use warren_lab::{Namespace, eventually};
use warren_model::policy::compile::{Default, Exception};
use warren_model::policy::{Group, NetworkRules};
use warren_model::record::Egress;

use super::Fixture;

pub const WORKERS: Group = Group(0x7fff_0011);
pub const DATABASES: Group = Group(0x12);
pub const OTHERS: Group = Group(0x13);
/// How long is waited for what may be refused without a word.
const PATIENCE: Duration = Duration::from_millis(300);
/// Time in which anything is done, on however busy a machine.
pub const SOON: Duration = Duration::from_secs(20);
/// After so long a connection is asked for again (RFC 6298, section 2.1).
const AGAIN: Duration = Duration::from_secs(1);

/// Three members, each in a group of its own: a worker, a database, another one.
pub struct Trio {
    pub fixture: Fixture,
    pub spec: NetworkSpec,
    pub members: [MemberSpec; 3],
    pub machines: [Namespace; 3],
}

impl Trio {
    pub fn new(inside: Default, exceptions: &[Exception]) -> Self {
        Self::on(Fixture::new(), |rules| {
            rules.inside = inside;
            rules.exceptions = exceptions.iter().copied().collect();
        })
    }

    pub fn on(fixture: Fixture, change: impl FnOnce(&mut NetworkRules)) -> Self {
        let mut spec = fixture.spec(1, "10.0.0.0/16", Egress::Deny);
        let members = [2, 3, 4].map(|number| fixture.member(&spec, number));
        let rules = Arc::make_mut(&mut spec.rules);
        for (member, group) in members.iter().zip([WORKERS, DATABASES, OTHERS]) {
            rules.groups.extend([(IpAddr::from(member.ipv4), group), (IpAddr::from(member.ipv6), group)]);
        }
        change(rules);
        fixture.kernel.create_network(&spec, &members).unwrap();
        let machines = [0, 1, 2].map(|index: usize| fixture.machine(&spec, &members[index]));
        Self { fixture, spec, members, machines }
    }

    /// Other rules for the same members.
    pub fn apply(&mut self, change: impl FnOnce(&mut NetworkRules)) {
        change(Arc::make_mut(&mut self.spec.rules));
        self.fixture.kernel.apply_policy(&self.spec, &self.members).unwrap();
        let seen = self.fixture.kernel.observe(&self.spec).unwrap().unwrap();
        assert!(seen.policy && seen.rules == RulesState::Intact, "{seen:?}");
    }

    /// The mark of flows that need not be looked up again, which is there soon.
    pub fn remembering(&self) -> u32 {
        let mut number = None;
        eventually("that flows are remembered", || {
            number = self.current();
            number.is_some()
        });
        number.unwrap()
    }

    /// The mark of flows that need not be looked up again.
    pub fn current(&self) -> Option<u32> {
        let listed = self.fixture.in_router(&self.spec, "nft list set inet warren current");
        let number = listed.split("0x").nth(1)?;
        Some(u32::from_str_radix(&number[..8], 16).unwrap())
    }

    pub fn addresses(&self, index: usize) -> [IpAddr; 2] {
        [self.members[index].ipv4.into(), self.members[index].ipv6.into()]
    }

    pub fn refused(&self, index: usize) -> u64 {
        self.fixture.kernel.refused(self.spec.number).unwrap()[&self.members[index].number].packets
    }

    /// Whether a connection from one to the other carries bytes both ways. What is refused is refused at once.
    pub fn tcp(&self, from: usize, to: usize, port: u16) -> [bool; 2] {
        self.addresses(to).map(|address| {
            let start = Instant::now();
            match Connection::open(&self.machines[from], &self.machines[to], SocketAddr::new(address, port), 0) {
                Ok(mut connection) => connection.carries(),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{address}: {error}");
                    assert!(start.elapsed() < AGAIN, "{address} was refused late");
                    false
                }
            }
        })
    }

    /// Whether a datagram arrives, and its answer.
    pub fn udp(&self, from: usize, to: usize, port: u16, size: usize) -> [bool; 2] {
        self.addresses(to).map(|address| {
            let server = bound(&self.machines[to], SocketAddr::new(address, port));
            let client = bound(&self.machines[from], any(address));
            client.connect((address, port)).unwrap();
            let mut buffer = vec![0; 65_000];
            client.send(&vec![7; size]).unwrap();
            let Ok((length, back)) = server.recv_from(&mut buffer) else { return false };
            assert_eq!(length, size);
            server.send_to(&buffer[..length], back).unwrap();
            client.recv(&mut buffer).is_ok()
        })
    }

    pub fn ping(&self, from: usize, to: usize) -> [bool; 2] {
        self.addresses(to).map(|address| self.machines[from].pings(&address.to_string()))
    }
}

pub struct Connection {
    pub client: TcpStream,
    pub server: TcpStream,
}

impl Connection {
    /// From a port of the client's own choice, or from this one.
    pub fn open(from: &Namespace, to: &Namespace, target: SocketAddr, port: u16) -> std::io::Result<Self> {
        let listener = to.listen(target)?;
        listener.set_nonblocking(true)?;
        let target = listener.local_addr()?;
        let client = from.enter(|| if port == 0 { dial(target) } else { dial_from(port, target) })?;
        let (server, _) = listener.accept()?;
        server.set_nonblocking(false)?;
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(SOON))?;
            stream.set_nodelay(true)?;
        }
        Ok(Self { client, server })
    }

    pub fn carries(&mut self) -> bool {
        pass(&mut self.client, &mut self.server) && pass(&mut self.server, &mut self.client)
    }

    /// Both directions are closed by now, the one as well as the other.
    pub fn is_cut(&mut self) -> bool {
        let patient = |connection: &Self, time| {
            for stream in [&connection.client, &connection.server] {
                stream.set_read_timeout(Some(time)).unwrap();
            }
        };
        patient(self, PATIENCE);
        let cut = !pass(&mut self.server, &mut self.client) && !pass(&mut self.client, &mut self.server);
        patient(self, SOON);
        cut
    }
}

fn pass(from: &mut TcpStream, to: &mut TcpStream) -> bool {
    let mut byte = [0];
    from.write_all(b"x").is_ok() && matches!(to.read(&mut byte), Ok(1))
}

fn dial(target: SocketAddr) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&target, Duration::from_secs(1))
}

/// From a port that was chosen: below those that the system chooses from.
fn dial_from(port: u16, target: SocketAddr) -> std::io::Result<TcpStream> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket};
    use std::os::fd::AsRawFd;
    let family = if target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, SockFlag::empty(), None)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any(target.ip()).ip(), port)))?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(target))?;
    Ok(fd.into())
}

pub fn any(like: IpAddr) -> SocketAddr {
    let unspecified = if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    SocketAddr::new(unspecified, 0)
}

pub fn bound(inside: &Namespace, address: SocketAddr) -> UdpSocket {
    let socket = inside.enter(|| UdpSocket::bind(address)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends an IPv4 and an IPv6 packet of this protocol, and says how many left.
pub fn raw(addresses: [IpAddr; 2], protocol: i32) -> u64 {
    use nix::libc;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    let mut sent = 0;
    for address in addresses {
        let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        // SAFETY: a plain system call without pointers.
        let fd = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
        assert!(fd >= 0);
        // SAFETY: the descriptor was just made and is nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let to = nix::sys::socket::SockaddrStorage::from(SocketAddr::new(address, 0));
        let flags = nix::sys::socket::MsgFlags::empty();
        sent += u64::from(nix::sys::socket::sendto(fd.as_raw_fd(), &[0x11; 40], &to, flags).is_ok());
    }
    sent
}
