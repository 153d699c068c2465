//! Names in `.internal`, against dnsmasq with the same names, both one veth away from who asks.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use tempfile::TempDir;
use warren_edge::NameRecord;

use crate::edge::{self, Edge};
use crate::load::{self, Load, LoadReport};
use crate::namespace::Namespace;
use crate::options::Options;
use crate::process::{self, Owned};
use crate::report::{Row, Unit, Wanted};
use crate::stats::in_turn;
use crate::wires::{Network, RawPair};

const PORT: u16 = 53;
/// Questions under way at the same time.
const IN_FLIGHT: usize = 64;
const START: Duration = Duration::from_secs(10);

pub fn measure(options: &Options, network: &Network) -> anyhow::Result<Row> {
    eprintln!(".internal queries");
    let names = records(network);
    let asked: Vec<String> = names.iter().map(|record| record.name.clone()).collect();
    let mut view = edge::view(network)?;
    view.names.clone_from(&names);
    let _edge = Edge::start(&options.warren, network, view, None)?;
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
            for address in record.ipv4.map(IpAddr::V4).into_iter().chain([IpAddr::V6(record.ipv6)]) {
                // Writing to a String cannot fail.
                let _ = writeln!(hosts, "{address} {}", record.name);
            }
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
