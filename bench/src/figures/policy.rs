//! A policy of 10,000 rules: what it costs a packet, and how soon a change of one rule is enforced.
//!
//! The network has 1,000 members and lets nobody reach anybody by itself. Every rule names two machines and a port, so
//! that no two members are alike to it and none of the rules can be folded into another.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use warren_kernel::MemberSpec;
use warren_model::policy::compile::compile;
use warren_model::policy::{Directory, Intra, Member, NetworkRules, NetworkSettings, Policy, Rule, Subject, Target};

use crate::edge::{directory, network_name};
use crate::interrupt;
use crate::options::Options;
use crate::report::{Row, Unit, Wanted};
use crate::stats::{Samples, in_turn};
use crate::traffic::connected;
use crate::wires::{Far, Network, Placement, Wire};

const RULES: usize = 10_000;
/// Round trips per sample, of which the median counts.
const TRIPS: usize = 20_000;
/// Changes of one rule; the slowest of a hundred counts.
const CHANGES: usize = 100;
const GIVE_UP: Duration = Duration::from_secs(2);

/// Throughput, with the rules against without any.
pub fn measure_throughput(options: &Options, with: &Network, without: &Network) -> anyhow::Result<Row> {
    eprintln!("throughput under {RULES} rules");
    let (ours, theirs) = (wire(with, Placement::Apart)?, wire(without, Placement::Apart)?);
    let sample = options.sample();
    let pairs = in_turn(options.pairs(), || ours.throughput(1, sample), || theirs.throughput(1, sample))?;
    let what = format!("1 TCP stream, {RULES} rules and {} members / none", with.members.len());
    Ok(Row::compared("policy-throughput", what, Unit::GigabitsPerSecond, pairs, Wanted::RatioAtLeast(0.95)))
}

/// A round trip, with the rules against without any.
pub fn measure_round_trip(options: &Options, with: &Network, without: &Network) -> anyhow::Result<Row> {
    eprintln!("1-byte round trip under {RULES} rules");
    let (ours, theirs) = (wire(with, Placement::Together)?, wire(without, Placement::Together)?);
    let trips = options.many(TRIPS);
    let pairs =
        in_turn(2 * options.pairs(), || Ok(ours.round_trips(trips)?.p50), || Ok(theirs.round_trips(trips)?.p50))?;
    let what = format!("1-byte round trip, {RULES} rules and {} members / none", with.members.len());
    Ok(Row::compared("policy-round-trip", what, Unit::Microseconds, pairs, Wanted::RatioAtMost(1.1)))
}

/// One rule more or less, from the policy to the kernel, until a connection shows it.
pub fn measure_change(options: &Options, network: &mut Network) -> anyhow::Result<Vec<Row>> {
    eprintln!("changing one of {RULES} rules");
    let members: Vec<MemberSpec> = network.members.iter().map(|(member, _)| member.clone()).collect();
    let directory = directory(network, &members)?;
    let (from, to) = (1, members.len() - 2);
    let echo = Far::serve(&network.members[to].1, members[to].ipv4.into(), None)?;
    let label = network_name()?;
    let without = policy(&directory, members.len())?;
    let mut with = without.clone();
    with.allow.push(rule(RULES, &directory.members[from], &directory.members[to], &format!("tcp/{}", echo.at.port()))?);

    let (mut whole, mut compiled, mut applied, mut cut) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for turn in 0..=options.many(CHANGES) {
        interrupt::check()?;
        let began = Instant::now();
        network.spec.rules = Arc::new(compile(&with, &directory, &label, jiff::Timestamp::now())?);
        let after_compile = Instant::now();
        network.kernel.apply_policy(&network.spec, &members)?;
        let after_apply = Instant::now();
        let mut open = network.members[from].1.enter(|| connected(echo.at, None, GIVE_UP))?;
        let end = Instant::now();
        network.spec.rules = Arc::new(compile(&without, &directory, &label, jiff::Timestamp::now())?);
        let revoked = Instant::now();
        network.kernel.apply_policy(&network.spec, &members)?;
        ensure!(is_cut(&mut open)?, "a flow goes on after its rule is gone");
        if turn > 0 {
            whole.push(milliseconds(end - began));
            compiled.push(milliseconds(after_compile - began));
            applied.push(milliseconds(after_apply - after_compile));
            cut.push(milliseconds(revoked.elapsed()));
        }
    }
    let part = |what: &str, samples: Vec<f64>| -> anyhow::Result<String> {
        let samples = Samples::new(samples)?;
        Ok(format!("{what:<12} {:.2} ms, p99 {:.2} ms", samples.median(), samples.percentile(99.0)))
    };
    let notes = [part("compiling", compiled)?, part("kernel", applied)?];
    let what = format!("one rule of {RULES} more, until a connection passes");
    let change = Row::alone("policy-change", what, Unit::Milliseconds, Samples::new(whole)?, Wanted::P99AtMost(50.0));
    let what = "an open flow after its rule is gone, until nothing passes";
    let revocation = Row::alone("revocation", what, Unit::Milliseconds, Samples::new(cut)?, Wanted::P99AtMost(500.0));
    Ok(vec![change.note(notes), revocation])
}

/// The rules of a network with this many members, in which the first reaches the last and the other rules are spread
/// over everybody.
pub fn rules(network: &Network, members: &[MemberSpec]) -> anyhow::Result<NetworkRules> {
    let directory = directory(network, members)?;
    let mut policy = policy(&directory, members.len())?;
    let (first, last) = (&directory.members[0], &directory.members[members.len() - 1]);
    policy.allow.push(rule(RULES + 1, first, last, "tcp")?);
    Ok(compile(&policy, &directory, &network_name()?, jiff::Timestamp::now())?)
}

fn wire(network: &Network, placement: Placement) -> anyhow::Result<Wire<'_>> {
    let (near, far, address) = network.ends()?;
    Wire::new(near, far, address, placement)
}

fn policy(directory: &Directory, members: usize) -> anyhow::Result<Policy> {
    let mut policy = Policy::default();
    policy.networks.insert(network_name()?, NetworkSettings { join: None, intra: Intra::Deny });
    for index in 0..RULES {
        // Ten rules for each machine, to ten others.
        let from = index % members;
        let to = (from + 1 + 37 * (index / members + 1)) % members;
        let port = format!("tcp/{}", 1000 + index % 500);
        policy.allow.push(rule(index, &directory.members[from], &directory.members[to], &port)?);
    }
    Ok(policy)
}

fn rule(index: usize, from: &Member, to: &Member, ports: &str) -> anyhow::Result<Rule> {
    let subject = |member: &Member| Subject::Machine(member.network.clone(), member.name.clone());
    Ok(Rule {
        id: format!("r{index}").parse()?,
        from: subject(from),
        to: Target::Inside(subject(to)),
        ports: vec![ports.parse()?],
        application: None,
        owner: None,
        expires: None,
        reason: None,
    })
}

/// Whether a byte no longer comes back.
fn is_cut(stream: &mut TcpStream) -> anyhow::Result<bool> {
    stream.set_read_timeout(Some(Duration::from_millis(20)))?;
    if stream.write_all(b"?").is_err() {
        return Ok(true);
    }
    match stream.read(&mut [0]) {
        Ok(0) | Err(_) => Ok(true),
        Ok(_) => Ok(false),
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
