//! The edge connects to machines from the gateway; no machine connects to the gateway for that.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use common::Fixture;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, connect, listen, sendto, socket,
};
use warren_kernel::{MemberSpec, NetworkSpec};
use warren_lab::Namespace;
use warren_model::policy::compile::Default;
use warren_model::policy::{Group, NetworkRules};
use warren_model::record::Egress;

/// Connects with a socket of the network's, wherever it is called.
fn dial(socket: OwnedFd, to: SocketAddrV4) -> Result<TcpStream, nix::Error> {
    fcntl(&socket, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    connect(stream.as_raw_fd(), &SockaddrIn::from(to))?;
    Ok(stream)
}

const SYN: u8 = 2;

/// Sends one segment without any content.
fn send(from: Ipv4Addr, port: u16, to: Ipv4Addr, flags: u8) {
    let mut segment = [0; 20];
    segment[..2].copy_from_slice(&40_000u16.to_be_bytes());
    segment[2..4].copy_from_slice(&port.to_be_bytes());
    segment[4..8].copy_from_slice(&7u32.to_be_bytes());
    segment[12..16].copy_from_slice(&[5 << 4, flags, 0xff, 0xff]);
    let pseudo = [&from.octets()[..], &to.octets(), &[0, 6, 0, 20], &segment].concat();
    let sum: u32 = pseudo.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    segment[16..18].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp).unwrap();
    let to = SockaddrIn::from(SocketAddrV4::new(to, 0));
    assert_eq!(sendto(raw.as_raw_fd(), &segment, &to, MsgFlags::empty()), Ok(20));
}

fn answers(fixture: &Fixture, spec: &NetworkSpec, member: &MemberSpec, machine: &Namespace) -> bool {
    let to = SocketAddrV4::new(member.ipv4, 8080);
    let listener = machine.listen(to.into()).unwrap();
    let mut sockets = fixture.kernel.dialers(spec, 2).unwrap();
    let Ok(mut stream) = dial(sockets.pop().unwrap(), to) else { return false };
    assert_eq!(stream.local_addr().unwrap().ip(), spec.gateway4);
    let (mut other, from) = listener.accept().unwrap();
    assert_eq!(from.ip(), spec.gateway4);
    stream.write_all(b"there").unwrap();
    let mut heard = [0; 5];
    other.read_exact(&mut heard).unwrap();
    other.write_all(&heard).unwrap();
    stream.read_exact(&mut heard).unwrap();
    drop(other);
    assert_eq!((&heard, stream.read(&mut [0]).unwrap()), (b"there", 0));
    true
}

#[test]
fn machines_answer_what_the_gateway_dials_whatever_policy_says_and_whichever_network_it_is() {
    let fixture = Fixture::new();
    let [one, other] = [1, 2].map(|number| fixture.spec(number, "10.0.0.0/16", Egress::Deny));
    let [(a, first), _] = fixture.pair(&one);
    let [(b, second), _] = fixture.pair(&other);
    assert_eq!(a.ipv4, b.ipv4);
    assert!(answers(&fixture, &one, &a, &first));
    assert!(answers(&fixture, &other, &b, &second));
    // The same address in two networks: each socket reaches its own.
    let to = SocketAddrV4::new(a.ipv4, 8081);
    let _listener = first.listen(to.into()).unwrap();
    let sockets = [&one, &other].map(|spec| fixture.kernel.dialers(spec, 1).unwrap().pop().unwrap());
    let [reached, refused] = sockets.map(|socket| dial(socket, to).map(drop));
    assert_eq!((reached, refused), (Ok(()), Err(nix::Error::ECONNREFUSED)));

    // Where policy looks at every packet among members, too.
    let spec = fixture.spec(3, "10.3.0.0/16", Egress::Deny);
    let mut rules = NetworkRules::unrestricted(Egress::Deny);
    rules.inside = Default::Refuse;
    rules.groups = [2, 3].map(|number| (fixture.member(&spec, number).ipv4.into(), Group(number))).into();
    let spec = NetworkSpec { rules: Arc::new(rules), ..spec };
    let [(c, third), _] = fixture.pair(&spec);
    assert!(answers(&fixture, &spec, &c, &third));
}

#[test]
fn no_connection_of_a_machines_begins_at_the_gateways_own_ports() {
    let fixture = Fixture::new();
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Deny);
    let [(a, machine), _] = fixture.pair(&spec);
    // Whoever listens in the router's namespace by mistake.
    let sockets = fixture.kernel.dialers(&spec, 3).unwrap();
    let listeners: Vec<TcpListener> = sockets
        .into_iter()
        .map(|socket| {
            listen(&socket, Backlog::new(8).unwrap()).unwrap();
            fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
            socket.into()
        })
        .collect();
    for listener in &listeners {
        let at = listener.local_addr().unwrap();
        assert!(at.port() >= 32768, "{at}");
        let refused = machine.enter(|| TcpStream::connect_timeout(&at, Duration::from_secs(5))).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{at}");
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "{at}");
        // SYN with every flag beside it that does not make it an answer: FIN, RST, PSH, URG, ECE and CWR.
        for beside in [0, 1, 4, 8, 0x20, 0x40, 0x80] {
            let before = fixture.kernel.refused(spec.number).unwrap()[&a.number].packets;
            machine.enter(|| send(a.ipv4, at.port(), spec.gateway4, SYN | beside));
            let counted = || fixture.kernel.refused(spec.number).unwrap()[&a.number].packets > before;
            warren_lab::eventually("it is refused", counted);
            assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "{at} {beside:#x}");
        }
    }
    let below = machine
        .enter(|| TcpStream::connect_timeout(&SocketAddr::new(spec.gateway4.into(), 32767), Duration::from_secs(5)));
    assert_eq!(below.unwrap_err().kind(), ErrorKind::ConnectionRefused);
}
