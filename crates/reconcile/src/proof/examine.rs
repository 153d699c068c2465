//! One examination: probes up in all machines, then all attempts, then what came in.
//!
//! No attempt is made before every listener is there, and nothing is collected before the last attempt is over, so that
//! whatever does not arrive was refused and is not just late.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use futures::{FutureExt as _, StreamExt as _, stream};
use jiff::Timestamp;
use warren_audit::findings::{self, Findings};
use warren_audit::matrix::{self, Foreign, Host, Matrix, Outside, Setting};
use warren_audit::report::Cell;
use warren_model::MemberId;
use warren_model::policy::{Directory, Policy};
use warren_model::probe::{Arrivals, Attempts, Outcome, Setup, Token};

use super::prober::{Probe, ProbeFailure, Prober};

/// How many machines are started, asked and heard at once.
const AT_ONCE: usize = 24;
/// A probe ends by itself after this, in milliseconds.
const LIFETIME_MS: u64 = 240_000;
/// What was sent last may still be on its way.
const LAST: Duration = Duration::from_millis(250);

/// The host's part: canaries of its own, and what it reaches itself.
#[async_trait]
pub(crate) trait HostSide: Send + Sync {
    /// Addresses and ports at which the host's canaries listen.
    fn canaries(&self) -> Vec<SocketAddr>;
    /// Reaches its own canaries, once: which of them worked.
    async fn control(&self) -> BTreeSet<SocketAddr>;
    /// The tokens that came in since.
    fn arrivals(&self) -> BTreeSet<Token>;
    /// Refusals counted so far for each of these machines; absent where none are counted.
    async fn refusals(&self, machines: &[MemberId]) -> BTreeMap<MemberId, u64>;
    /// Whether the host's own API answers at its port.
    async fn api(&self) -> Option<(u16, bool)>;
}

/// What is to be examined.
pub(crate) struct Subject<'a> {
    pub policy: &'a Policy,
    pub directory: &'a Directory,
    pub now: Timestamp,
    /// The machines that can be probed; without listeners yet.
    pub hosts: Vec<Host>,
    pub foreign: Vec<Foreign>,
    pub outside: Vec<Outside>,
    /// The report may say the host's addresses.
    pub host_named: bool,
}

/// What came of it.
pub(crate) struct Examined {
    pub cells: Vec<Cell>,
    pub gaps: Vec<String>,
    /// Machines whose probe did not work, and why.
    pub failures: BTreeMap<MemberId, String>,
    /// How many flows were tried.
    pub attempts: usize,
}

/// Examines. `told` hears how far it has come.
pub(crate) async fn examine(
    prober: &dyn Prober,
    host_side: &dyn HostSide,
    mut subject: Subject<'_>,
    mut token: impl FnMut() -> Token + Send,
    told: &(dyn Fn(String, f32) + Send + Sync),
) -> Examined {
    let mut failures = BTreeMap::new();
    let mut probes = start(prober, &mut subject, &mut failures, told).await;

    let api = host_side.api().await;
    let canaries = host_side.canaries();
    let Matrix { checks, controls, gaps } = matrix::matrix(
        &Setting {
            policy: subject.policy,
            directory: subject.directory,
            now: subject.now,
            hosts: &subject.hosts,
            foreign: &subject.foreign,
            host_canaries: &canaries,
            host_named: subject.host_named,
            api_port: api.map(|(port, _)| port),
            outside: &subject.outside,
        },
        &mut token,
    );
    let mut wanted: BTreeMap<MemberId, (Attempts, usize)> = BTreeMap::new();
    for control in &controls {
        let (attempts, of_controls) = wanted.entry(control.machine).or_default();
        attempts.attempts.push(control.attempt.clone());
        *of_controls += 1;
    }
    for check in &checks {
        wanted.entry(check.sender).or_default().0.attempts.push(check.attempt.clone());
    }
    let senders: Vec<MemberId> = wanted.keys().copied().collect();

    let mut found = Findings {
        host_reached: host_side.control().await,
        api_reached: api.is_some_and(|(_, reached)| reached),
        outside_reached: subject.outside.iter().filter(|outside| outside.reached).map(|outside| outside.at).collect(),
        ..Findings::default()
    };
    let before = host_side.refusals(&senders).await;
    attempt(&mut probes, &wanted, &mut found, &mut failures, told).await;
    tokio::time::sleep(LAST).await;
    let after = host_side.refusals(&senders).await;
    for (machine, before) in before {
        if let Some(after) = after.get(&machine) {
            found.refusals.insert(machine, (before, *after));
        }
    }
    collect(probes, &mut found, &mut failures, told).await;
    found.host_arrivals = host_side.arrivals();
    told("judging what was seen".to_owned(), 0.95);
    let cells = findings::cells(&checks, &controls, &found);
    let attempts = wanted.values().map(|(attempts, _)| attempts.attempts.len()).sum();
    Examined { cells, gaps, failures, attempts }
}

type Probes = HashMap<MemberId, Box<dyn Probe>>;

async fn start(
    prober: &dyn Prober,
    subject: &mut Subject<'_>,
    failures: &mut BTreeMap<MemberId, String>,
    told: &(dyn Fn(String, f32) + Send + Sync),
) -> Probes {
    let mut setups: Vec<(MemberId, Setup)> =
        subject.hosts.iter().map(|host| (host.member.id, matrix::setup(subject.policy, host, LIFETIME_MS))).collect();
    setups.extend(subject.foreign.iter().map(|foreign| {
        let setup = Setup {
            addresses: foreign.addresses.clone(),
            tcp: BTreeSet::new(),
            udp: BTreeSet::new(),
            lifetime_ms: LIFETIME_MS,
        };
        (foreign.machine, setup)
    }));
    let total = setups.len();
    let mut to_start = Vec::with_capacity(total);
    for (machine, setup) in setups {
        to_start.push(async move { (machine, prober.start(machine, &setup).await) }.boxed());
    }
    let mut starting = stream::iter(to_start).buffer_unordered(AT_ONCE);
    let (mut probes, mut listening, mut done) = (Probes::new(), HashMap::new(), 0);
    while let Some((machine, outcome)) = starting.next().await {
        done += 1;
        told(format!("probes started in {done} of {total} machines"), 0.05 + 0.35 * share(done, total));
        match outcome {
            Ok((heard, probe)) => {
                listening.insert(machine, heard);
                probes.insert(machine, probe);
            }
            Err(ProbeFailure(why)) => drop(failures.insert(machine, why)),
        }
    }
    drop(starting);
    for host in &mut subject.hosts {
        host.listening = listening.remove(&host.member.id);
    }
    subject.foreign.retain_mut(|foreign| match listening.remove(&foreign.machine) {
        Some(heard) => {
            foreign.listening = heard;
            true
        }
        None => false,
    });
    probes
}

async fn attempt(
    probes: &mut Probes,
    wanted: &BTreeMap<MemberId, (Attempts, usize)>,
    found: &mut Findings,
    failures: &mut BTreeMap<MemberId, String>,
    told: &(dyn Fn(String, f32) + Send + Sync),
) {
    let flows: usize = wanted.values().map(|(attempts, _)| attempts.attempts.len()).sum();
    let mut trying = Vec::with_capacity(probes.len());
    for (machine, probe) in probes {
        if let Some((attempts, of_controls)) = wanted.get(machine) {
            trying.push(async move { (*machine, *of_controls, probe.attempt(attempts).await) }.boxed());
        }
    }
    let total = trying.len();
    let mut trying = stream::iter(trying).buffer_unordered(AT_ONCE);
    let mut done = 0;
    while let Some((machine, of_controls, outcome)) = trying.next().await {
        done += 1;
        told(
            format!("{done} of {total} machines have tried their part of {flows} flows"),
            0.4 + 0.45 * share(done, total),
        );
        match outcome {
            Ok(observations) => {
                let mut controls: Vec<Outcome> = observations.outcomes;
                let outcomes = controls.split_off(of_controls.min(controls.len()));
                found.controls.insert(machine, controls);
                found.outcomes.insert(machine, outcomes);
            }
            Err(ProbeFailure(why)) => drop(failures.insert(machine, why)),
        }
    }
}

async fn collect(
    probes: Probes,
    found: &mut Findings,
    failures: &mut BTreeMap<MemberId, String>,
    told: &(dyn Fn(String, f32) + Send + Sync),
) {
    told("collecting what arrived".to_owned(), 0.87);
    let mut ending = Vec::with_capacity(probes.len());
    for (machine, probe) in probes {
        ending.push(async move { (machine, probe.collect().await) }.boxed());
    }
    let mut collecting = stream::iter(ending).buffer_unordered(AT_ONCE);
    while let Some((machine, outcome)) = collecting.next().await {
        let arrivals: Arrivals = match outcome {
            Ok(arrivals) => arrivals,
            Err(ProbeFailure(why)) => {
                failures.entry(machine).or_insert(why);
                continue;
            }
        };
        found.arrivals.insert(machine, arrivals);
    }
}

fn share(done: usize, total: usize) -> f32 {
    done as f32 / total.max(1) as f32
}
