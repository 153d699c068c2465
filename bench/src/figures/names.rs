//! Names in `.internal`, against dnsmasq with the same names, both one veth away from who asks.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use ulid::Ulid;
use warren_edge::load::{self, Load, LoadReport};
use warren_edge::{EdgeClient, EdgeLog, NameRecord, NetworkView, Sockets, SpawnConfig};
use warren_model::policy::Member;
use warren_model::{AccountId, MachineId, NetworkId};

use crate::namespace::Namespace;
use crate::options::Options;
use crate::process::{self, Owned};
use crate::report::{Row, Unit, Wanted};
use crate::stats::in_turn;
use crate::wires::{Network, RawPair};

const PORT: u16 = 53;
/// Questions under way at the same time.
const IN_FLIGHT: usize = 64;
/// Debian's `nobody`.
const UNPRIVILEGED: u32 = 65_534;
const START: Duration = Duration::from_secs(10);

pub fn measure(options: &Options, network: &Network) -> anyhow::Result<Row> {
    eprintln!(".internal queries");
    let names = records(network);
    let asked: Vec<String> = names.iter().map(|record| record.name.clone()).collect();
    let _edge = Edge::start(&options.warren, network, names.clone())?;
    let dnsmasq = Dnsmasq::start(&names)?;
    let (near, _, _) = network.ends()?;
    let ours = SocketAddr::new(network.spec.gateway4.into(), PORT);
    let theirs = SocketAddr::new(RawPair::FAR, PORT);
    await_answers(near, ours, &asked).context("the edge does not answer")?;
    await_answers(&dnsmasq.pair.near, theirs, &asked)
        .context("dnsmasq does not answer; it may have to be installed: apt-get install dnsmasq-base")?;

    let sample = options.sample();
    let rate = |namespace: &Namespace, server| {
        let report = ask(namespace, server, &asked, sample)?;
        ensure!(report.wrong == 0, "{} of {} answers were wrong", report.wrong, report.answered);
        Ok(report.per_second())
    };
    let pairs = in_turn(options.pairs(), || rate(near, ours), || rate(&dnsmasq.pair.near, theirs))?;
    let what = format!(".internal queries, {} names / dnsmasq", asked.len());
    Ok(Row::compared("names", what, Unit::PerSecond, pairs, Wanted::RatioAtLeast(1.0)))
}

fn records(network: &Network) -> Vec<NameRecord> {
    let record = |(index, (member, _)): (usize, &(warren_kernel::MemberSpec, Namespace))| NameRecord {
        name: format!("worker-{index}.vm.internal"),
        ipv4: Some(member.ipv4),
        ipv6: member.ipv6,
        scope: None,
    };
    network.members.iter().enumerate().map(record).collect()
}

fn members(network: &Network) -> anyhow::Result<Vec<Member>> {
    let member = |(index, (member, _)): (usize, &(warren_kernel::MemberSpec, Namespace))| {
        Ok(Member {
            machine: MachineId::from_ulid(Ulid::from_parts(1, index as u128)),
            network: "bench".parse()?,
            name: format!("worker-{index}").parse()?,
            number: member.number,
            ipv4: member.ipv4,
            ipv6: member.ipv6,
            tags: BTreeSet::new(),
        })
    };
    network.members.iter().enumerate().map(member).collect()
}

fn ask(namespace: &Namespace, server: SocketAddr, names: &[String], duration: Duration) -> anyhow::Result<LoadReport> {
    namespace.enter(|| {
        // Whoever asks has one processor; whoever answers takes what it finds.
        if let Some(cpu) = process::processors()?.first() {
            process::pin(*cpu)?;
        }
        let load = Load { server, names: names.to_vec(), in_flight: IN_FLIGHT, duration };
        Ok(load::measure(&load)?)
    })
}

fn await_answers(namespace: &Namespace, server: SocketAddr, names: &[String]) -> anyhow::Result<()> {
    let deadline = Instant::now() + START;
    while Instant::now() < deadline {
        // Refused while nothing listens yet.
        if ask(namespace, server, names, Duration::from_millis(20)).is_ok_and(|report| report.answered > 0) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("nothing was answered within {START:?}")
}

/// `warren edge`, started as the daemon starts it and given the gateway's sockets.
struct Edge {
    runtime: Runtime,
    client: EdgeClient,
    _directory: TempDir,
}

impl Edge {
    fn start(warren: &Path, network: &Network, names: Vec<NameRecord>) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("warren-bench-edge-").tempdir_in("/run")?;
        let executable =
            warren.canonicalize().with_context(|| format!("there is no program at {}", warren.display()))?;
        let config = SpawnConfig {
            executable,
            arguments: Vec::new(),
            control: directory.path().join("edge.sock"),
            uid: UNPRIVILEGED,
            gid: UNPRIVILEGED,
            log: EdgeLog::Discard,
        };
        let spec = &network.spec;
        let sockets = network.kernel.gateway_sockets(spec)?;
        let sockets = Sockets {
            udp4: sockets.udp4,
            udp6: sockets.udp6,
            tcp4: sockets.tcp4,
            tcp6: sockets.tcp6,
            transparent4: sockets.transparent4,
            transparent6: sockets.transparent6,
            proxy4: sockets.proxy4,
            proxy6: sockets.proxy6,
        };
        let view = NetworkView {
            account: AccountId::from_ulid(Ulid::from_parts(1, 1)),
            network: NetworkId::from_ulid(Ulid::from_parts(1, 1)),
            name: "bench".parse()?,
            number: spec.number,
            generation: 1,
            gateway4: spec.gateway4,
            gateway6: spec.gateway6,
            cidr: spec.cidr,
            cidr6: spec.cidr6,
            names,
            sight: BTreeMap::new(),
            forward: Vec::new(),
            names6: spec.names6,
            members: members(network)?,
            groups: BTreeMap::new(),
            rules: BTreeMap::new(),
            resolvers: Vec::new(),
            policy: String::new(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(EdgeClient::spawn(&config)).context("the edge did not start")?;
        // From here on the edge is ended also when the next step fails.
        let edge = Self { runtime, client, _directory: directory };
        edge.runtime.block_on(edge.client.put_network(&view, Some(sockets)))?;
        Ok(edge)
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        if let Err(error) = self.runtime.block_on(self.client.shutdown()) {
            eprintln!("the benchmark's edge (process {}) did not end: {error}", self.client.pid());
        }
    }
}

/// dnsmasq with the same names, at the far end of a raw veth pair.
struct Dnsmasq {
    pair: RawPair,
    _process: Owned,
    _directory: TempDir,
}

impl Dnsmasq {
    fn start(names: &[NameRecord]) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("warren-bench-dnsmasq-").tempdir()?;
        let mut hosts = String::new();
        for record in names {
            // Writing to a String cannot fail.
            let addresses = record.ipv4.map(IpAddr::V4).into_iter().chain([IpAddr::V6(record.ipv6)]);
            addresses.for_each(|address| drop(writeln!(hosts, "{address} {}", record.name)));
        }
        let file = directory.path().join("hosts");
        std::fs::write(&file, hosts)?;
        let pair = RawPair::new()?;
        let IpAddr::V4(address) = RawPair::FAR else { bail!("the far end has an IPv4 address") };
        let mut command = pair.far.command("dnsmasq")?;
        command
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root"])
            .args(["--local=/internal/", "--bind-interfaces"])
            .arg(format!("--listen-address={address}"))
            .arg(format!("--port={PORT}"))
            .arg(format!("--addn-hosts={}", file.display()))
            .arg(format!("--pid-file={}", directory.path().join("pid").display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = Owned::spawn(&mut command)?;
        Ok(Self { pair, _process: process, _directory: directory })
    }
}
