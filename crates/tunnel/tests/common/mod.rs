//! A host with a gateway, a laptop on the same wire, and networks behind the gateway.
#![allow(dead_code, reason = "every test uses a part")]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use warren_lab::{Lab, Namespace};
use warren_tunnel::{
    Device, DeviceKind, Gateway, Limits, Mac, NetworkKey, Peer, PeerId, PrivateKey, PublicKey, Sockets, keep_device,
    open_device,
};

pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const LAPTOP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The gateway's port.
pub const PORT: u16 = 51820;
/// What is behind the gateway, in every network.
pub const SERVER4: &str = "10.0.0.1";
pub const SERVER6: &str = "fd00:1::1";

/// The device's own address where it is a TAP device.
pub const ROUTER: Mac = Mac([2, 0, 0, 0, 0, 1]);

/// Time in which anything is done, on however busy a machine.
pub const SOON: Duration = Duration::from_secs(40);

/// A transfer in which nothing comes for so long does not go on.
const STALLED: Duration = SOON;

pub struct World {
    pub lab: Lab,
    pub host: Namespace,
    pub laptop: Namespace,
    pub gateway: Gateway,
}

/// An end that calls the gateway.
pub struct Operator {
    pub gateway: Gateway,
    pub key: PublicKey,
}

impl World {
    pub fn new() -> Self {
        Self::with(Limits::default())
    }

    pub fn with(limits: Limits) -> Self {
        let lab = Lab::new();
        let (host, laptop) = (lab.namespace("host"), lab.namespace("laptop"));
        lab.connect(&host, "eth0", &laptop, "eth0");
        host.run(&format!("ip address add {HOST}/24 dev eth0"));
        laptop.run(&format!("ip address add {LAPTOP}/24 dev eth0"));
        let sockets = host.enter(|| Sockets::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT)).unwrap());
        let gateway = Gateway::start(sockets, PrivateKey::generate().unwrap(), limits).unwrap();
        Self { lab, host, laptop, gateway }
    }

    /// A network's router, with the gateway's TUN device in it.
    pub fn network(&self, number: u128) -> Namespace {
        self.network_with(number, Device::Tun { mtu: 1420 })
    }

    /// One with a TAP device that is kept, where the router knows the peers 2 and 3 and who is who by MAC and address.
    pub fn tap_network(&self, number: u128) -> Namespace {
        let router = self.network_with(number, Device::Tap { mtu: 1420, router: ROUTER });
        for peer in [2, 3] {
            for address in [format!("10.0.9.{peer}"), format!("fd00:9::{peer}")] {
                router.run(&format!("ip neigh replace {address} lladdr {} dev wg0 nud permanent", mac(peer)));
            }
        }
        for line in [
            "nft add table inet pins",
            "nft add chain inet pins from { type filter hook prerouting priority -300 ; }",
            &format!("nft add rule inet pins from iifname wg0 ether daddr != {ROUTER} counter drop"),
        ] {
            router.run(line);
        }
        for (family, addresses) in [("ip", "10.0.9."), ("ip6", "fd00:9::")] {
            let (mac2, mac3) = (mac(2), mac(3));
            router.run(&format!(
                "nft add rule inet pins from iifname wg0 ether saddr . {family} saddr \
                 {{ {mac2} . {addresses}2 , {mac3} . {addresses}3 }} accept"
            ));
        }
        router.run("nft add rule inet pins from iifname wg0 counter drop");
        router
    }

    fn network_with(&self, number: u128, kind: Device) -> Namespace {
        let router = self.lab.namespace(&format!("net{number}"));
        let device = router.enter(|| open_device("wg0", kind.kind()).unwrap());
        if let Device::Tap { router: mac, .. } = kind {
            keep_device(device.as_fd(), true).unwrap();
            router.run(&format!("ip link set wg0 address {mac}"));
        }
        for line in [
            &format!("ip address add {SERVER4}/32 dev wg0"),
            &format!("ip address add {SERVER6}/128 dev wg0 nodad"),
            "ip link set wg0 up mtu 1420",
            "ip route add 10.0.9.0/24 dev wg0",
            "ip route add fd00:9::/64 dev wg0",
        ] {
            router.run(line);
        }
        self.gateway.add_network(NetworkKey(number), device, kind).unwrap();
        router
    }

    /// Peer `number` of network 1, whose addresses end with that number.
    pub fn peer(&self, number: u128, public_key: PublicKey) -> Peer {
        Peer {
            id: PeerId(number),
            network: NetworkKey(1),
            public_key,
            preshared_key: None,
            addresses: vec![
                format!("10.0.9.{number}/32").parse().unwrap(),
                format!("fd00:9::{number}/128").parse().unwrap(),
            ],
            mac: Some(mac(number as u8)),
            only: None,
            reachable: true,
            endpoint: None,
            expires: None,
            idle_limit: None,
            keepalive: None,
        }
    }

    /// An end in this namespace, with these addresses, that calls the gateway there.
    pub fn operator(&self, at: &Namespace, number: u128, key: PrivateKey, endpoint: SocketAddr) -> Operator {
        // One that just went may still be open in a process that is being started.
        let mut device = None;
        eventually("a device", || {
            device = at.enter(|| open_device("wg0", DeviceKind::Tun).ok());
            device.is_some()
        });
        let device = device.unwrap();
        for line in [
            &format!("ip address add 10.0.9.{number}/32 dev wg0"),
            &format!("ip address add fd00:9::{number}/128 dev wg0 nodad"),
            "ip link set wg0 up mtu 1420",
            "ip route add 10.0.0.0/20 dev wg0",
            "ip route add fd00::/28 dev wg0",
        ] {
            at.run(line);
        }
        let sockets = at.enter(|| Sockets::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)).unwrap());
        let public = key.public_key();
        let gateway = Gateway::start(sockets, key, Limits::default()).unwrap();
        gateway.add_network(NetworkKey(0), device, Device::Tun { mtu: 1420 }).unwrap();
        let peer = Peer {
            id: PeerId(0),
            network: NetworkKey(0),
            addresses: vec!["10.0.0.0/20".parse().unwrap(), "fd00::/28".parse().unwrap()],
            endpoint: Some(endpoint),
            ..self.peer(0, self.gateway.public_key())
        };
        gateway.add_peer(&peer).unwrap();
        Operator { gateway, key: public }
    }

    /// The laptop as peer 2 of network 1.
    pub fn join(&self) -> Operator {
        let key = PrivateKey::generate().unwrap();
        self.gateway.add_peer(&self.peer(2, key.public_key())).unwrap();
        self.operator(&self.laptop, 2, key, at_host())
    }

    /// The same behind a translator.
    pub fn join_behind(&self) -> (Relay, Operator) {
        let key = PrivateKey::generate().unwrap();
        self.gateway.add_peer(&self.peer(2, key.public_key())).unwrap();
        let relay = Relay::new(&self.laptop);
        let operator = self.operator(&self.laptop, 2, key, relay.at);
        (relay, operator)
    }
}

/// Of peer `number`.
pub fn mac(number: u8) -> Mac {
    Mac([2, 0, 0, 0, 9, number])
}

pub fn at_host() -> SocketAddr {
    (HOST, PORT).into()
}

/// Sends this many bytes over TCP and checks each that arrives.
pub fn carries(from: &Namespace, to: &Namespace, address: &str, length: usize) {
    carries_to_port(from, to, address, 0, length);
}

/// The same to this port, or to any when it is 0.
pub fn carries_to_port(from: &Namespace, to: &Namespace, address: &str, port: u16, length: usize) {
    let address: IpAddr = address.parse().unwrap();
    let listener = to.listen((address, port).into()).unwrap();
    let at = listener.local_addr().unwrap();
    let expected: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
    let sent = expected.clone();
    let taker = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(STALLED)).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        got
    });
    from.enter(move || {
        let mut stream = TcpStream::connect_timeout(&at, SOON).unwrap();
        stream.set_write_timeout(Some(STALLED)).unwrap();
        stream.write_all(&sent).unwrap();
    });
    assert!(taker.join().unwrap() == expected, "other bytes arrived than were sent");
}

/// Packets that a device got.
pub fn received(namespace: &Namespace, device: &str) -> u64 {
    let text = namespace.run(&format!("ip -s -j link show dev {device}"));
    let at = text.find("\"rx\":").unwrap();
    let text = &text[at + text[at..].find("\"packets\":").unwrap() + 10..];
    text[..text.find(|c: char| !c.is_ascii_digit()).unwrap()].parse().unwrap()
}

/// Sends datagrams into a tunnel until it is dropped.
pub struct Chatter(Arc<AtomicBool>, Option<JoinHandle<()>>);

impl Chatter {
    pub fn new(from: &Namespace, to: &str) -> Self {
        let to: SocketAddr = (to.parse::<IpAddr>().unwrap(), 9).into();
        let socket = from.enter(|| UdpSocket::bind(if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" }).unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Relaxed) {
                let _ = socket.send_to(&[0; 100], to);
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        Self(stop, Some(thread))
    }
}

impl Drop for Chatter {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
        self.1.take().unwrap().join().unwrap();
    }
}

/// A translator between the operator and the gateway, that remembers what it carried.
pub struct Relay {
    /// Where the operator finds the gateway.
    pub at: SocketAddr,
    pub carried: Arc<Mutex<Vec<Vec<u8>>>>,
    back: Arc<Mutex<UdpSocket>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    pub generation: Arc<AtomicU64>,
}

impl Relay {
    pub fn new(laptop: &Namespace) -> Self {
        let front = Arc::new(laptop.enter(|| UdpSocket::bind("127.0.0.1:0").unwrap()));
        front.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let back = Arc::new(Mutex::new(Self::outside(laptop)));
        let (stop, carried) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let operator = Arc::new(Mutex::new(None::<SocketAddr>));
        let at = front.local_addr().unwrap();
        let there = {
            let (front, back, stop, carried, operator) =
                (Arc::clone(&front), Arc::clone(&back), Arc::clone(&stop), Arc::clone(&carried), Arc::clone(&operator));
            std::thread::spawn(move || {
                let mut buffer = [0; 2000];
                while !stop.load(Relaxed) {
                    let Ok((length, from)) = front.recv_from(&mut buffer) else { continue };
                    *operator.lock().unwrap() = Some(from);
                    carried.lock().unwrap().push(buffer[..length].to_vec());
                    let _ = back.lock().unwrap().send(&buffer[..length]);
                }
            })
        };
        let again = {
            let (back, stop) = (Arc::clone(&back), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut buffer = [0; 2000];
                while !stop.load(Relaxed) {
                    let socket = back.lock().unwrap().try_clone().unwrap();
                    let Ok(length) = socket.recv(&mut buffer) else { continue };
                    if let Some(to) = *operator.lock().unwrap() {
                        let _ = front.send_to(&buffer[..length], to);
                    }
                }
            })
        };
        Self { at, carried, back, stop, threads: vec![there, again], generation: Arc::default() }
    }

    fn outside(laptop: &Namespace) -> UdpSocket {
        let socket = laptop.enter(|| UdpSocket::bind((LAPTOP, 0)).unwrap());
        socket.connect(at_host()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        socket
    }

    /// From now on, from another port. The new one.
    pub fn move_on(&self, laptop: &Namespace) -> SocketAddr {
        let socket = Self::outside(laptop);
        let from = socket.local_addr().unwrap();
        *self.back.lock().unwrap() = socket;
        from
    }

    /// Says something to the gateway from where it is.
    pub fn say(&self, datagram: &[u8]) {
        let _ = self.back.lock().unwrap().send(datagram);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

/// Echo requests are answered, within what a busy machine may take for the first.
pub fn answers(from: &Namespace, to: &str) {
    eventually(&format!("an answer of {to}"), || from.pings(to));
}

/// Waits until something is so.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < SOON, "{what} did not happen within {SOON:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
