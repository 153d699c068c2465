//! What goes to the addresses that stand for names, and to the proxy on the gateway.

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use common::Fixture;
use warren_kernel::{NetworkSpec, PROXY_PORT, TRANSPARENT_PORT};
use warren_lab::{Namespace, eventually};
use warren_model::policy::compile::Default;
use warren_model::record::Egress;

const PATIENCE: Duration = Duration::from_secs(2);

fn synthetic(spec: &NetworkSpec) -> [SocketAddr; 2] {
    let six = u128::from(spec.names6.network()) | 0x0304;
    [SocketAddr::new([198, 18, 3, 4].into(), 5432), SocketAddr::new(std::net::Ipv6Addr::from(six).into(), 5432)]
}

fn connect(from: &Namespace, to: SocketAddr) -> std::io::Result<TcpStream> {
    from.enter(|| TcpStream::connect_timeout(&to, PATIENCE))
}

/// Connects, and takes the connection at the listener.
fn through(listener: &TcpListener, from: &Namespace, to: SocketAddr) -> (TcpStream, TcpStream) {
    let client = connect(from, to).unwrap_or_else(|error| panic!("{to}: {error}"));
    let mut accepted = None;
    eventually("the connection at the listener", || {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    let server = accepted.unwrap().0;
    server.set_nonblocking(false).unwrap();
    (client, server)
}

fn listeners(one: OwnedFd, other: OwnedFd) -> [TcpListener; 2] {
    [one.into(), other.into()]
}

#[test]
fn connections_to_synthetic_addresses_and_to_the_proxy_arrive_as_they_were_meant() {
    let fixture = Fixture::new();
    for (number, egress, inside) in [
        (1, Egress::Deny, Default::Accept),
        (2, Egress::Open, Default::Accept),
        (3, Egress::Deny, Default::Refuse),
        (4, Egress::Open, Default::Refuse),
    ] {
        fixture.kernel.forwarding().enable(true).unwrap();
        let mut spec = fixture.spec(number, "10.0.0.0/16", egress);
        Arc::make_mut(&mut spec.rules).inside = inside;
        let [(a, machine), _] = fixture.pair(&spec);
        let sockets = fixture.kernel.gateway_sockets(&spec).unwrap();
        let own = [IpAddr::from(a.ipv4), a.ipv6.into()];
        let transparent = listeners(sockets.transparent4, sockets.transparent6);
        for ((listener, to), own) in transparent.iter().zip(synthetic(&spec)).zip(own) {
            let (mut client, mut server) = through(listener, &machine, to);
            assert_eq!(server.local_addr().unwrap(), to, "the address that was dialled");
            assert_eq!(server.peer_addr().unwrap().ip(), own, "the member's own address");
            client.write_all(b"there").unwrap();
            let mut bytes = [0u8; 5];
            server.read_exact(&mut bytes).unwrap();
            server.write_all(&bytes).unwrap();
            client.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"there");
        }
        let proxies = listeners(sockets.proxy4, sockets.proxy6);
        let gateways = [IpAddr::from(spec.gateway4), spec.gateway6.into()];
        for ((listener, gateway), own) in proxies.iter().zip(gateways).zip(own) {
            let (_client, server) = through(listener, &machine, SocketAddr::new(gateway, PROXY_PORT));
            assert_eq!(server.peer_addr().unwrap().ip(), own);
            assert!(
                connect(&machine, SocketAddr::new(gateway, TRANSPARENT_PORT)).is_err(),
                "only what was sent to a synthetic address comes to the transparent listener"
            );
        }
        assert!(transparent.iter().all(|listener| listener.accept().is_err()), "nothing else arrived");
        let seen = fixture.kernel.observe(&spec).unwrap().unwrap();
        assert!(seen.gateway_intact, "{seen:?}");
    }
}

#[test]
fn only_tcp_goes_to_synthetic_addresses() {
    let fixture = Fixture::new();
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Deny);
    let [(_, machine), _] = fixture.pair(&spec);
    let _sockets = fixture.kernel.gateway_sockets(&spec).unwrap();
    for to in synthetic(&spec) {
        assert!(!machine.pings(&to.ip().to_string()), "{} answered an echo request", to.ip());
        let refused = machine.enter(|| {
            let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
            let socket = UdpSocket::bind((any, 0)).unwrap();
            socket.connect(to).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.send(b"x").unwrap();
            socket.recv(&mut [0u8; 1]).unwrap_err()
        });
        assert_ne!(refused.kind(), std::io::ErrorKind::WouldBlock, "UDP to {to} is refused, not swallowed");
    }
}

#[test]
fn without_anybody_who_serves_it_a_synthetic_address_is_closed() {
    let fixture = Fixture::new();
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Deny);
    let [(_, machine), _] = fixture.pair(&spec);
    for to in synthetic(&spec) {
        assert!(connect(&machine, to).is_err(), "{to}");
    }
}

#[test]
fn a_lost_route_to_the_synthetic_addresses_is_observed_and_repaired() {
    let fixture = Fixture::new();
    let spec = fixture.spec(1, "10.0.0.0/16", Egress::Deny);
    fixture.kernel.create_network(&spec, &[]).unwrap();
    let intact = || fixture.kernel.observe(&spec).unwrap().unwrap().gateway_intact;
    for route in
        ["ip route del local 198.18.0.0/15 table main", &format!("ip -6 route del local {} table main", spec.names6)]
    {
        assert!(intact(), "before {route}");
        fixture.in_router(&spec, route);
        assert!(!intact(), "after {route}");
        fixture.kernel.repair_gateway(&spec).unwrap();
    }
    assert!(intact());
}
