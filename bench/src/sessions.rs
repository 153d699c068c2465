//! An operator's machine, one link away from a server, and operators on it that join by Warren's own WireGuard.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use warren_model::session::TUNNEL_MTU;
use warren_model::wire;
use warren_tunnel::{
    Device, DeviceKind, Gateway, Limits, NetworkKey, Peer, PeerId, PrivateKey, PublicKey, Sockets, open_device,
};

use crate::namespace::Namespace;
use crate::outside::link;
use crate::server::Server;

/// Where the server's WireGuard is, as it has to be told.
pub const ENDPOINT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)), 51820);
/// The link's addresses, the laptop's first.
const LINK: [&str; 2] = ["203.0.113.2", "203.0.113.1"];
/// As `wg-quick` files of sessions have it.
const KEEPALIVE: Duration = Duration::from_secs(25);

/// Outside of every network.
pub struct Laptop {
    pub namespace: Namespace,
}

/// An operator with a key and a device, who has no session yet.
pub struct Operator<'l> {
    laptop: &'l Laptop,
    gateway: Gateway,
    device: String,
    pub key: PublicKey,
}

impl Laptop {
    /// One for a server.
    pub fn new(server: &Server) -> anyhow::Result<Self> {
        let namespace = Namespace::new()?;
        link((&namespace, "eth0"), (&server.namespace, "wan0"), LINK)?;
        Ok(Self { namespace })
    }

    /// One of any number: a device that just went may not be gone, so that each has a name of its own.
    pub fn operator(&self, number: usize) -> anyhow::Result<Operator<'_>> {
        let device = format!("op{number}");
        let key = PrivateKey::generate()?;
        let public = key.public_key();
        let gateway = self.namespace.enter(|| {
            let opened = open_device(&device, DeviceKind::Tun).context("cannot make a device")?;
            let sockets = Sockets::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))?;
            let gateway = Gateway::start(sockets, key, Limits::default())?;
            gateway.add_network(NetworkKey(0), opened, Device::Tun { mtu: TUNNEL_MTU })?;
            Ok(gateway)
        })?;
        Ok(Operator { laptop: self, gateway, device, key: public })
    }
}

impl Operator<'_> {
    /// Does what `wg-quick` does with a session: the peer, addresses and routes.
    pub fn join(&self, opened: &wire::OpenedSession) -> anyhow::Result<()> {
        self.gateway.add_peer(&Peer {
            id: PeerId(0),
            network: NetworkKey(0),
            public_key: PublicKey::from_bytes(*opened.server_public_key.as_bytes()),
            preshared_key: None,
            addresses: opened.allowed_ips.clone(),
            mac: None,
            only: None,
            reachable: true,
            endpoint: Some(opened.endpoint.to_string().parse()?),
            expires: None,
            idle_limit: None,
            keepalive: Some(KEEPALIVE),
        })?;
        let device = &self.device;
        let mut lines = format!("link set {device} up mtu {TUNNEL_MTU}\n");
        for address in &opened.addresses {
            lines.push_str(&format!("address add {address} dev {device}\n"));
        }
        for range in &opened.allowed_ips {
            lines.push_str(&format!("route add {range} dev {device}\n"));
        }
        self.laptop.namespace.enter(|| batch(&lines))
    }
}

/// Runs `ip` where the calling thread is, once for all of these lines.
fn batch(lines: &str) -> anyhow::Result<()> {
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run ip")?;
    ip.stdin.take().context("ip has no stdin")?.write_all(lines.as_bytes())?;
    let output = ip.wait_with_output()?;
    ensure!(output.status.success(), "ip failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
