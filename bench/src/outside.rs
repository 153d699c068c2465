//! An internet of one server, and the way there without Warren: a client, a router on which another proxy may run, and
//! the internet, with a raw veth pair in between each.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Stdio;

use anyhow::Context as _;

use crate::namespace::Namespace;
use crate::process::{Owned, on_processor};
use crate::wires::{Far, Near};

/// The name of the server.
pub const HOST: &str = "www.example.com";
/// Public addresses, so that the checks for such are the real ones; nothing leaves the namespaces.
pub const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(93, 184, 216, 34)), 443);
pub const RESOLVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(93, 184, 216, 53)), 53);
const RANGE: &str = "93.184.216.0/24";

/// Link networks, the nearer end first.
const TO_INTERNET: [&str; 2] = ["10.255.0.1", "10.255.0.2"];
const TO_ROUTER: [&str; 2] = ["10.254.0.1", "10.254.0.2"];
const ROUTER_TO_INTERNET: [&str; 2] = ["10.255.1.1", "10.255.1.2"];
/// The benchmark's own end of the link to the internet.
const LINK: &str = "wan0";

/// One link away from the namespace of the calling thread.
pub struct Internet {
    own: Namespace,
    pub namespace: Namespace,
    _server: Far,
    _resolver: Owned,
}

impl Internet {
    pub fn new(server_cpu: Option<usize>) -> anyhow::Result<Self> {
        let (own, namespace) = (Namespace::own()?, Namespace::new()?);
        own.ip(&["link", "set", "lo", "up"])?;
        link((&own, LINK), (&namespace, "eth0"), TO_INTERNET)?;
        own.ip(&["route", "add", RANGE, "via", TO_INTERNET[1]])?;
        for address in [SERVER.ip(), RESOLVER.ip()] {
            namespace.ip(&["address", "add", &format!("{address}/32"), "dev", "lo"])?;
        }
        let server = Far::serve_tls(&namespace, SERVER, server_cpu)?;
        let mut dnsmasq = namespace.command("dnsmasq")?;
        dnsmasq
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root"])
            .args(["--bind-interfaces", "--pid-file=", "--local=/example.com/", "--local-ttl=300"])
            .arg(format!("--listen-address={}", RESOLVER.ip()))
            .arg(format!("--host-record={HOST},{}", SERVER.ip()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let resolver = Owned::spawn(&mut dnsmasq)?;
        Ok(Self { own, namespace, _server: server, _resolver: resolver })
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        // The link goes with the namespace at the latest; the next figure may be quicker than the kernel.
        if let Err(error) = self.own.ip(&["link", "delete", LINK]) {
            eprintln!("the benchmark's link to its internet could not be removed: {error:#}");
        }
    }
}

/// The way to the internet without Warren.
pub struct Detour {
    pub client: Namespace,
    pub router: Namespace,
}

impl Detour {
    /// The router's address, as the client sees it.
    pub const ROUTER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 254, 0, 2));

    /// One at a time.
    pub fn new(internet: &Internet) -> anyhow::Result<Self> {
        let (client, router) = (Namespace::new()?, Namespace::new()?);
        link((&client, "eth0"), (&router, "client0"), TO_ROUTER)?;
        link((&router, "wan0"), (&internet.namespace, "detour0"), ROUTER_TO_INTERNET)?;
        client.ip(&["route", "add", "default", "via", TO_ROUTER[1]])?;
        router.ip(&["route", "add", RANGE, "via", ROUTER_TO_INTERNET[1]])?;
        internet.namespace.ip(&["route", "replace", TO_ROUTER[0], "via", ROUTER_TO_INTERNET[0]])?;
        router.enter(|| {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("the benchmark's router does not forward")
        })?;
        Ok(Self { client, router })
    }

    /// Makes measurements through what is dialled there.
    pub fn near(&self, to: SocketAddr, cpu: Option<usize>) -> Near<'_> {
        Near { namespace: &self.client, cpu, to, hello: Some(HOST) }
    }

    /// A program on the router.
    pub fn run(&self, program: &str, arguments: &[&str], cpu: Option<usize>) -> anyhow::Result<Owned> {
        let mut command = self.router.command(program)?;
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        on_processor(cpu, || Owned::spawn(&mut command))
    }
}

impl Drop for Detour {
    fn drop(&mut self) {
        // As above: the next one has the same names and addresses.
        if let Err(error) = self.router.ip(&["link", "delete", "wan0"]) {
            eprintln!("the benchmark's link from a router could not be removed: {error:#}");
        }
    }
}

/// A raw veth pair, up, with these addresses.
pub fn link(near: (&Namespace, &str), far: (&Namespace, &str), addresses: [&str; 2]) -> anyhow::Result<()> {
    let path = far.0.path();
    let path = path.to_str().context("the path of a namespace is text")?;
    near.0.ip(&["link", "add", near.1, "type", "veth", "peer", "name", far.1, "netns", path])?;
    for ((namespace, name), address) in [near, far].into_iter().zip(addresses) {
        namespace.ip(&["address", "add", &format!("{address}/30"), "dev", name])?;
        namespace.ip(&["link", "set", name, "up"])?;
    }
    Ok(())
}
