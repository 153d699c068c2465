//! A whole internet in one sealed namespace: every address of the world answers there, and everything that reaches it is
//! written down.
//!
//! ```text
//!   host namespace ── veth ── internet namespace
//!                              tap: the head of every packet that comes in       ┐
//!                              DNS: every question                               ├─▶ Log
//!                              HTTP, TLS, SSH, PostgreSQL, echo: who, and what   ┘
//! ```
//!
//! The namespace takes every destination for its own, so what leaves a host and should not is answered rather than
//! lost. Servers run in a runtime of their own and end with the [`Outside`]. A port without a server of its own says
//! back what it hears.

mod authority;
mod dns;
mod log;
mod names;
mod tap;
mod tcp;
mod web;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;

pub use log::{Entry, Log, Mark, Packet, Seen};
pub use names::{Answer, Names};

use crate::{Lab, Namespace};
use authority::Authority;
use dns::Dns;
use tap::Tap;
use tcp::Speaks;

/// The addresses of the DNS servers.
pub const RESOLVERS: [&str; 2] = ["1.0.0.53", "2606:4700::53"];
/// Where UDP is said back, on port 7.
pub const UDP_ECHO: [&str; 2] = ["45.33.32.9", "2a01:7e00::9"];
/// The host's addresses towards the internet.
pub const HOST: [&str; 2] = ["93.184.216.2", "2606:2800:220::2"];
/// The internet's addresses towards the host.
const GATEWAY: [&str; 2] = ["93.184.216.1", "2606:2800:220::1"];
/// Here a server on port 443 speaks first, and not TLS.
pub const SSH_ON_443: IpAddr = IpAddr::V4(Ipv4Addr::new(140, 82, 112, 36));

/// The port of the server that stands for all ports without one.
const ANY_PORT: u16 = 9;
const SERVERS: [(u16, Speaks); 5] = [
    (80, Speaks::Http),
    (443, Speaks::Tls),
    (22, Speaks::Ssh),
    (5432, Speaks::PostgreSql),
    (ANY_PORT, Speaks::Anything),
];

/// The internet.
pub struct Outside {
    pub namespace: Namespace,
    pub names: Arc<Names>,
    pub log: Arc<Log>,
    authority: Arc<Authority>,
    runtime: Option<Runtime>,
    _tap: Tap,
}

impl Outside {
    /// An internet without names, and a host on it whose default routes lead there.
    pub fn new(lab: &Lab) -> (Self, Namespace) {
        let (namespace, host) = (lab.namespace("outside"), lab.namespace("host"));
        connect(lab, &host, &namespace);
        let (names, log) = (Arc::new(Names::default()), Arc::new(Log::default()));
        let authority = Arc::new(Authority::new());
        let tap = Tap::new(&namespace, "to-host", Arc::clone(&log));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime can be made");
        {
            let _inside = runtime.enter();
            for (port, speaks) in SERVERS {
                let listener = listen(&namespace, &format!("[::]:{port}"));
                tokio::spawn(tcp::listen(listener, speaks, Arc::clone(&authority), Arc::clone(&log)));
            }
            let dns = Dns { names: Arc::clone(&names), log: Arc::clone(&log) };
            tokio::spawn(dns.clone().serve_tcp(listen(&namespace, "[::]:53")));
            for address in RESOLVERS {
                let address: IpAddr = address.parse().expect("an address");
                tokio::spawn(dns.clone().serve_udp(bind(&namespace, address, 53), address));
            }
            for address in UDP_ECHO {
                let socket = bind(&namespace, address.parse().expect("an address"), 7);
                tokio::spawn(async move {
                    let mut buffer = [0; 4096];
                    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                        let _ = socket.send_to(&buffer[..length], from).await;
                    }
                });
            }
        }
        (Self { namespace, names, log, authority, runtime: Some(runtime), _tap: tap }, host)
    }

    /// Also listens on all addresses of another namespace, and writes down who comes there; says back what it hears.
    pub fn listen_in(&self, namespace: &Namespace, port: u16) {
        let Some(runtime) = &self.runtime else { return };
        let _inside = runtime.enter();
        let listener = listen(namespace, &format!("[::]:{port}"));
        tokio::spawn(tcp::listen(listener, Speaks::Anything, Arc::clone(&self.authority), Arc::clone(&self.log)));
    }

    /// The certificate of the authority that signed every certificate here, PEM.
    pub fn certificate(&self) -> &str {
        self.authority.certificate()
    }

    /// The SHA-256 of what `/bytes?count=…` of any server answers, in lower-case hexadecimal.
    pub fn sha256_of(count: u64) -> String {
        let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
        for from in (0..count).step_by(1 << 16) {
            digest.update(&web::pattern(from, (count - from).min(1 << 16) as usize));
        }
        digest.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

/// A link between a host, which gets the addresses [`HOST`] and default routes, and an internet.
pub(crate) fn join(lab: &Lab, host: &Namespace, internet: &Namespace) {
    lab.connect(host, "wan0", internet, "to-host");
    for (namespace, link, addresses) in [(host, "wan0", HOST), (internet, "to-host", GATEWAY)] {
        namespace.run(&format!("ip addr add {}/24 dev {link}", addresses[0]));
        namespace.run(&format!("ip addr add {}/64 dev {link} nodad", addresses[1]));
    }
    for gateway in GATEWAY {
        host.run(&format!("ip route add default via {gateway}"));
    }
}

/// Joins the two, and makes the internet take every address for its own.
fn connect(lab: &Lab, host: &Namespace, internet: &Namespace) {
    join(lab, host, internet);
    for address in RESOLVERS.iter().chain(&UDP_ECHO) {
        internet.run(&format!("ip addr add {address} dev lo"));
    }
    internet.run("ip -4 route add local default dev lo table main");
    internet.run("ip -6 route add local default dev lo table main");
    internet.run("nft add table inet outside");
    internet.run("nft add chain inet outside arriving { type nat hook prerouting priority dstnat ; }");
    let served: Vec<String> = SERVERS.iter().map(|(port, _)| port.to_string()).chain(["53".to_owned()]).collect();
    let rule = format!("tcp dport != {{ {} }} redirect to :{ANY_PORT}", served.join(", "));
    internet.run(&format!("nft add rule inet outside arriving iifname to-host {rule}"));
}

fn listen(namespace: &Namespace, address: &str) -> tokio::net::TcpListener {
    let listener = namespace.enter(|| TcpListener::bind(address)).expect("a port of a new namespace is free");
    listener.set_nonblocking(true).expect("a listener can be nonblocking");
    tokio::net::TcpListener::from_std(listener).expect("a listener can be watched")
}

/// A busy kernel takes a while until a new IPv6 address can be used.
fn bind(namespace: &Namespace, address: IpAddr, port: u16) -> tokio::net::UdpSocket {
    let mut socket = None;
    crate::eventually("an address of the internet can be listened on", || {
        socket = namespace.enter(|| UdpSocket::bind(SocketAddr::new(address, port))).ok();
        socket.is_some()
    });
    let socket = socket.expect("it was bound");
    socket.set_nonblocking(true).expect("a socket can be nonblocking");
    tokio::net::UdpSocket::from_std(socket).expect("a socket can be watched")
}
