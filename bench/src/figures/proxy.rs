//! The proxy for names outside: what it carries, against other proxies; what it adds to a connection; how soon it cuts
//! one.
//!
//! A machine dials the synthetic address of a name. Its packets take the kernel's real rules to the edge, which resolves
//! the name and dials the server. Both ends share one processor, the proxy has the other one to itself, the same for
//! every proxy. After the first messages of TLS come plain bytes, which no proxy can tell from encrypted ones.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use warren_edge::NetworkView;
use warren_model::policy::compile::compile;
use warren_model::policy::{HostPattern, NetworkRules, Policy, Rule, Subject, Target};

use crate::edge::{self, Edge};
use crate::interrupt;
use crate::namespace::Namespace;
use crate::options::Options;
use crate::outside::{Detour, HOST, Internet, RESOLVER, SERVER};
use crate::proxies::{Kind, Proxy};
use crate::report::{Row, Unit, Wanted};
use crate::stats::{Samples, in_turn};
use crate::traffic::connected;
use crate::wires::{DataPlane, Near, Network, Placement};

/// Connections per sample, of which the median counts.
const CONNECTS: usize = 500;
/// Connections that are cut; the slowest of a hundred counts.
const CUTS: usize = 100;
const GIVE_UP: Duration = Duration::from_secs(5);

/// A network with one machine that may reach one name.
pub struct World {
    // In the order in which they have to go.
    edge: Edge,
    network: Network,
    _plane: DataPlane,
    internet: Internet,
    /// The synthetic address of the name.
    at: SocketAddr,
    view: NetworkView,
    ends_cpu: Option<usize>,
    proxy_cpu: Option<usize>,
}

impl World {
    pub fn new(options: &Options) -> anyhow::Result<Self> {
        let (ends_cpu, proxy_cpu) = Placement::Apart.cpus()?;
        let internet = Internet::new(ends_cpu)?;
        let plane = DataPlane::new()?;
        let mut network = plane.network(1, 1)?;
        let members: Vec<_> = network.members.iter().map(|(member, _)| member.clone()).collect();
        network.spec.rules = Arc::new(rules(&network)?);
        network.kernel.apply_policy(&network.spec, &members)?;
        let view = NetworkView { resolvers: vec![RESOLVER], ..edge::view(&network)? };
        let edge = Edge::start(&options.warren, &network, view.clone(), proxy_cpu)?;
        let gateway = network.spec.gateway4;
        let address =
            network.members[0].1.enter(|| ask(gateway)).context("the machine gets no address for the name")?;
        let at = SocketAddr::new(address.into(), SERVER.port());
        Ok(Self { edge, network, _plane: plane, internet, at, view, ends_cpu, proxy_cpu })
    }

    fn machine(&self) -> &Namespace {
        &self.network.members[0].1
    }

    fn near(&self) -> Near<'_> {
        Near { namespace: self.machine(), cpu: self.ends_cpu, to: self.at, hello: Some(HOST) }
    }
}

/// One stream through Warren's proxy, and through another one.
pub fn measure_throughput(options: &Options, world: &World, kind: Kind) -> anyhow::Result<Row> {
    let (name, against, wanted) = match kind {
        Kind::Relay => ("proxy-relay", "a bare copying proxy", 0.95),
        Kind::Haproxy => ("proxy-haproxy", "HAProxy by SNI", 1.0),
        Kind::Squid => ("proxy-squid", "Squid peek and splice", 1.0),
    };
    eprintln!("throughput through the proxy, against {against}");
    let detour = Detour::new(&world.internet)?;
    let proxy = Proxy::start(kind, &detour, world.proxy_cpu)?;
    let (ours, theirs) = (world.near(), detour.near(proxy.at, world.ends_cpu));
    let sample = options.sample();
    let pairs = in_turn(options.pairs(), || ours.throughput(1, sample), || theirs.throughput(1, sample))?;
    let what = format!("proxied TLS, 1 stream / {against}");
    Ok(Row::compared(name, what, Unit::GigabitsPerSecond, pairs, Wanted::RatioAtLeast(wanted)))
}

/// A new connection until the first byte of the server's answer, through the proxy and directly.
pub fn measure_connect(options: &Options, world: &World) -> anyhow::Result<Row> {
    eprintln!("connecting through the proxy");
    let detour = Detour::new(&world.internet)?;
    let (ours, theirs) = (world.near(), detour.near(SERVER, world.ends_cpu));
    let count = options.many(CONNECTS);
    let (mut slow, mut slow_direct) = (Vec::new(), Vec::new());
    let pairs =
        in_turn(options.pairs(), || sample(&ours, count, &mut slow), || sample(&theirs, count, &mut slow_direct))?;
    let note = format!(
        "p99: {:.0} us / {:.0} us (medians of the samples)",
        Samples::new(slow)?.median(),
        Samples::new(slow_direct)?.median()
    );
    let what = "connect and first byte through the proxy / direct";
    Ok(Row::compared("proxy-connect", what, Unit::Microseconds, pairs, Wanted::MoreAtMost(400.0)).note([note]))
}

fn sample(near: &Near<'_>, count: usize, slow: &mut Vec<f64>) -> anyhow::Result<f64> {
    let taken = near.connects(count)?;
    slow.push(taken.p99);
    Ok(taken.p50)
}

/// An open connection, from the snapshot without its rule until the machine's end fails.
pub fn measure_revocation(options: &Options, world: &World) -> anyhow::Result<Row> {
    eprintln!("cutting proxied connections");
    let mut taken = Vec::new();
    let mut view = world.view.clone();
    for turn in 0..=options.many(CUTS) {
        interrupt::check()?;
        let mut open = world.machine().enter(|| connected(world.at, Some(HOST), GIVE_UP))?;
        view.generation += 1;
        view.rules = BTreeMap::new();
        let began = Instant::now();
        world.edge.put(&view)?;
        // Its end, or a reset; a timeout is neither.
        let cut = open.read(&mut [0]);
        let took = began.elapsed();
        ensure!(!matches!(cut, Ok(1..)) && took < GIVE_UP, "a connection goes on after its rule is gone");
        view.generation += 1;
        view.rules.clone_from(&world.view.rules);
        world.edge.put(&view)?;
        if turn > 0 {
            taken.push(took.as_secs_f64() * 1e3);
        }
    }
    let what = "an open proxied flow after its rule is gone, until it is cut";
    let samples = Samples::new(taken)?;
    let note = format!("p99 {:.2} ms of {}", samples.percentile(99.0), samples.len());
    Ok(Row::alone("proxy-revocation", what, Unit::Milliseconds, samples, Wanted::P99AtMost(500.0)).note([note]))
}

/// The machine may reach the server by its name.
fn rules(network: &Network) -> anyhow::Result<NetworkRules> {
    let members: Vec<_> = network.members.iter().map(|(member, _)| member.clone()).collect();
    let directory = edge::directory(network, &members)?;
    let machine = &directory.members[0];
    let pattern: HostPattern = HOST.parse()?;
    let rule = Rule {
        id: "www".parse()?,
        from: Subject::Machine(machine.network.clone(), machine.name.clone()),
        to: Target::Outside(pattern),
        ports: vec!["tcp/443".parse()?],
        application: None,
        owner: None,
        expires: None,
        reason: None,
    };
    let policy = Policy { allow: vec![rule], ..Policy::default() };
    Ok(compile(&policy, &directory, &edge::network_name()?, jiff::Timestamp::now())?)
}

/// The address of the name, as the network's resolver tells it (RFC 1035 §4.1).
fn ask(gateway: Ipv4Addr) -> anyhow::Result<Ipv4Addr> {
    const HEADER: [u8; 12] = [0x1d, 0x0c, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let mut question = HEADER.to_vec();
    for label in HOST.split('.') {
        question.push(u8::try_from(label.len())?);
        question.extend_from_slice(label.as_bytes());
    }
    // The root; type A, class IN.
    question.extend_from_slice(&[0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.connect((IpAddr::V4(gateway), 53))?;
    let mut answer = [0; 512];
    let deadline = Instant::now() + GIVE_UP;
    while Instant::now() < deadline {
        // Refused while nobody listens.
        if socket.send(&question).is_ok()
            && let Ok(length) = socket.recv(&mut answer)
        {
            let answer = &answer[..length];
            // One answer, and nothing behind it: what it ends with is the address.
            ensure!(
                answer.get(6..12) == Some(&[0, 1, 0, 0, 0, 0]) && length > question.len(),
                "the answer has no address"
            );
            let octets: [u8; 4] = answer[length - 4..].try_into()?;
            return Ok(octets.into());
        }
    }
    bail!("no answer within {GIVE_UP:?}")
}
