//! The audit: what policy promises, against what real packets do.
//!
//! ```text
//! run ── probes in machines, canaries on the host ── examine ── warren_audit ── report ── signed, kept, answered
//!  ▲
//!  └─ schedule: now and then, and an event when something differs or fails
//! ```
//!
//! | module | holds |
//! | --- | --- |
//! | `examine` | the order of things: listen everywhere, try everything, collect |
//! | `prober` | a probe in a machine, over its agent |
//! | `host_side` | canaries on the host, counters of the kernel |
//! | `evidence` | inventory, policy, live rules, refusals |
//! | `kept` | the key and the reports on the host |
//! | `places` | who runs and who waits |
//! | `schedule` | audits that run by themselves |

mod evidence;
mod examine;
mod host_side;
mod kept;
mod places;
mod prober;
mod schedule;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream::{self, BoxStream};
use jiff::Timestamp;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::sync::{Mutex, mpsc};
use warren_audit::matrix::{Foreign, Host, MOST_OUTSIDE, Outside};
use warren_audit::report::{Counts, FORMAT, Installation, Inventory, Link, Named, Report, Scope, result};
use warren_audit::{bundle, compare, log, sign, standards};
use warren_model::access::{AccessError, MachineAccess};
use warren_model::audit::{AuditKey, AuditPlace, AuditProgress, AuditScope, Audits, SignedReport};
use warren_model::policy::{Directory, Policy, Protocol, Subject as PolicySubject, Target, protection};
use warren_model::probe::{Listening, Token};
use warren_model::record::{Account, MachineState};
use warren_model::{AccountId, Code, Label};
use warren_store::{Typed, schema};

use crate::audit as mutations;
use crate::policy::AccountPolicy;
use crate::world::World;
use evidence::state;
use examine::{Examined, Subject, examine};
pub use host_side::host_addresses;
use host_side::{LiveHostSide, reaches};
use kept::{Kept, KeptError};
use places::Places;
use prober::InMachines;

/// How many machines of each other account are targets, and of all of them together.
const FOREIGN_EACH: usize = 2;
const FOREIGN_ALL: usize = 8;
/// The longest line of the log that is told.
const LONGEST_LINE: usize = 16 << 20;

/// What an auditor is made of.
#[derive(Debug, Clone)]
pub struct AuditSettings {
    /// Where its key and its reports are kept.
    pub directory: PathBuf,
    /// Where the API listens.
    pub api: SocketAddr,
    /// Of Warren.
    pub version: &'static str,
}

/// Makes reports.
pub struct Auditor {
    world: Arc<World>,
    access: Arc<dyn MachineAccess>,
    kept: Kept,
    settings: AuditSettings,
    /// One audit at a time.
    turn: Mutex<()>,
    /// Who waits for it.
    places: Places,
    making_key: Mutex<()>,
}

impl Auditor {
    pub fn new(world: Arc<World>, settings: AuditSettings) -> Arc<Self> {
        let access: Arc<dyn MachineAccess> = Arc::new(world.agents.clone());
        let kept = Kept::new(settings.directory.clone());
        let (turn, places, making_key) = (Mutex::default(), Places::default(), Mutex::default());
        Arc::new(Self { world, access, kept, settings, turn, places, making_key })
    }

    /// Runs scheduled audits, for ever.
    pub async fn keep_schedules(self: Arc<Self>) {
        schedule::keep(self).await;
    }

    async fn report(
        &self,
        scope: &AuditScope,
        told: &mpsc::Sender<AuditProgress>,
    ) -> Result<SignedReport, AccessError> {
        let world = self.world.as_ref();
        let tell = |stage: String, fraction: f32| {
            // Whoever listens slowly misses some of it.
            let _ = told.try_send(AuditProgress { stage, fraction });
        };
        tell("reading the policy and the live rules".to_owned(), 0.01);
        let started_at = Timestamp::now();
        let key = self.key().await?;
        let account = scope.account;
        let before = self.blocking(move |kept| kept.newest(account)).await?;
        let record = world.store.read(&schema::account(account)).await.map_err(internal)?;
        let record = record.ok_or_else(|| AccessError::new(Code::NotFound, "the account is gone"))?.record;
        let policy = world.policy(account);
        let network = match scope.network {
            None => None,
            Some(id) => {
                let found = policy.directory.networks.iter().find(|(_, entry)| entry.id == id);
                let gone = || AccessError::new(Code::NotFound, "the network is gone");
                Some(found.map(|(name, _)| name.clone()).ok_or_else(gone)?)
            }
        };
        let in_scope = |name: &Label| network.as_ref().is_none_or(|wanted| wanted == name);

        let mut tokens = Tokens::new()?;
        let live = evidence::live(world, account).await;
        // What the host is called and where it is, and who else is on it, is for root alone.
        let host_named = scope.across_accounts;
        let outside = outside(world, &policy, host_named, started_at).await;
        let unreached: Vec<String> = outside.iter().filter(|outside| !outside.reached).map(name_of).collect();
        let host_side = LiveHostSide::open(world, Some(self.settings.api), &mut || tokens.next()).await;
        let canaries = examine::HostSide::canaries(&host_side).len();
        let subject = Subject {
            policy: &policy.policy,
            directory: &policy.directory,
            now: started_at,
            hosts: hosts(world, &policy, in_scope),
            foreign: if scope.across_accounts { foreign(world, account).await? } else { Vec::new() },
            outside,
            host_named,
        };
        let across = subject.foreign.len();
        let prober = InMachines(Arc::clone(&self.access));
        let Examined { cells, gaps, failures, attempts } =
            examine(&prober, &host_side, subject, move || tokens.next(), &tell).await;
        drop(host_side);

        tell("writing the report".to_owned(), 0.97);
        // A machine that came or went meanwhile is not the one that was probed.
        let mut gaps = gaps;
        if world.policy(account).compiled_at() != policy.compiled_at() {
            gaps.push("the policy, or who is there, changed while the audit ran".to_owned());
        }
        let denials = evidence::denials(world, account, Timestamp::now()).await;
        while mutations::move_batch(world).await.map_err(|error| failed(error.chain()))? > 0 {}
        let saw = before.as_ref().and_then(|before| before.report.as_ref()?.log.clone());
        let log = Arc::clone(&world.audit_log);
        let log = self
            .blocking(move |_| {
                let at = |source| KeptError::File { path: log.path().to_owned(), source };
                log.examine(saw.as_ref()).map_err(at)
            })
            .await?;
        let (log, log_problem) = log.map_or((None, None), |found| (Some(found.head), found.problem));
        let seen = before.as_ref().and_then(|before| before.report.as_ref()).map(|report| report.policy.version);
        let (policy_evidence, left_out) =
            evidence::policy(world, account, &policy, seen, started_at).await.map_err(|error| failed(error.chain()))?;
        let mut notes = notes(scope, across, canaries, &unreached);
        if left_out > 0 {
            notes.push(format!(
                "Of the policy's versions since the report before, {left_out} are not listed: too many, or not kept."
            ));
        }
        let inventory = Inventory {
            networks: evidence::networks(&policy),
            machines: evidence::machines(world, &policy, &failures, in_scope),
            gaps,
            notes,
        };
        let (verdict, reasons) = result(&cells, &inventory, &live, log.as_ref());
        let mut report = Report {
            format: FORMAT,
            result: verdict,
            reasons,
            number: before.as_ref().map_or(1, |before| before.link.number + 1),
            previous: before.as_ref().map(|before| Link { ..before.link.clone() }),
            installation: installation(world, self.settings.version, &key, host_named),
            scope: self.scope(scope, &record, network.as_ref(), &policy),
            started_at,
            finished_at: Timestamp::now(),
            policy: policy_evidence,
            counts: Counts::of(&cells, &inventory),
            inventory,
            live,
            cells,
            denials,
            log,
            differences: Vec::new(),
            standards: standards::table(),
            page_sha256: String::new(),
        };
        match &before {
            Some(kept::Before { report: Some(before), .. }) => {
                report.differences = compare::differences(before, &report)
            }
            Some(kept::Before { link, report: None }) => {
                report.differences = vec![format!("report {} has another format, and is not compared", link.number)];
            }
            None => {}
        }
        report.differences.extend(log_problem);
        let signed = bundle::seal(report, &key).map_err(|error| failed(error.to_string()))?;
        let kept_report = signed.clone();
        self.blocking(move |kept| kept.keep(account, &kept_report)).await?;
        tracing::info!(account = %record.name, attempts, "{}", signed.summary);
        Ok(signed)
    }

    fn scope(&self, scope: &AuditScope, account: &Account, network: Option<&Label>, policy: &AccountPolicy) -> Scope {
        let network = network.and_then(|name| {
            let entry = policy.directory.networks.get(name)?;
            Some(Named { id: entry.id.to_string(), name: name.to_string() })
        });
        Scope {
            account: Named { id: account.id.to_string(), name: account.name.to_string() },
            network,
            across_accounts: scope.across_accounts,
            asked_by: scope.by.clone(),
        }
    }

    async fn key(&self) -> Result<sign::SigningKey, AccessError> {
        // Two that make the first key at once would each make one. Apart, so that whoever asks waits for no audit.
        let _making = self.making_key.lock().await;
        self.blocking(|kept| kept.key()).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Kept) -> Result<T, KeptError> + Send + 'static,
    ) -> Result<T, AccessError> {
        let kept = self.kept.clone();
        let outcome = tokio::task::spawn_blocking(move || work(&kept)).await;
        outcome.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
    }
}

#[async_trait]
impl Audits for Auditor {
    fn place(&self, account: AccountId) -> Result<AuditPlace, AccessError> {
        Ok(Box::new(self.places.take(account)?))
    }

    async fn run(
        &self,
        place: AuditPlace,
        scope: AuditScope,
        progress: mpsc::Sender<AuditProgress>,
    ) -> Result<SignedReport, AccessError> {
        let _place = place;
        let _turn = match self.turn.try_lock() {
            Ok(turn) => turn,
            Err(_) => {
                let stage = "waiting for another audit".to_owned();
                let _ = progress.try_send(AuditProgress { stage, fraction: 0.0 });
                self.turn.lock().await
            }
        };
        self.report(&scope, &progress).await
    }

    async fn public_key(&self) -> Result<AuditKey, AccessError> {
        let public = self.key().await?.public();
        Ok(AuditKey { id: public.id(), key: public.to_string() })
    }

    async fn log(&self, after: u64) -> Result<BoxStream<'static, std::io::Result<Bytes>>, AccessError> {
        while mutations::move_batch(&self.world).await.map_err(|error| failed(error.chain()))? > 0 {}
        let path = self.world.audit_log.path().to_owned();
        let file = match tokio::fs::File::open(&path).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(stream::empty().boxed()),
            other => other.map_err(|error| failed(format!("{}: {error}", path.display())))?,
        };
        let lines = stream::try_unfold(BufReader::new(file), move |mut file| async move {
            loop {
                let mut line = Vec::new();
                file.read_until(b'\n', &mut line).await?;
                // What has no end yet is being written.
                if line.last() != Some(&b'\n') || line.len() > LONGEST_LINE {
                    return Ok(None);
                }
                if after == 0 || log::number_of(&line).is_some_and(|number| number > after) {
                    return Ok(Some((Bytes::from(line), file)));
                }
            }
        });
        Ok(lines.boxed())
    }
}

fn failed(detail: String) -> AccessError {
    tracing::error!(%detail, "the audit failed");
    AccessError::new(Code::Internal, format!("the audit failed: {detail}"))
}

fn internal(error: warren_store::StoreError) -> AccessError {
    failed(error.to_string())
}

/// The running machines of the account.
fn hosts(world: &World, policy: &AccountPolicy, in_scope: impl Fn(&Label) -> bool) -> Vec<Host> {
    let desired = world.desired.read();
    let runs = |id| state(world, id) == MachineState::Running;
    let members = policy.directory.members.iter();
    // Operators' own machines are not ours to probe.
    let running = members.filter_map(|member| Some((member, member.id.machine().filter(|id| runs(*id))?)));
    running
        .map(|(member, id)| Host {
            member: member.clone(),
            ports: desired.machine(id).map(|machine| machine.ports.clone()).unwrap_or_default(),
            sends: in_scope(&member.network),
            listening: None,
        })
        .collect()
}

/// A few running machines of other accounts.
async fn foreign(world: &World, account: AccountId) -> Result<Vec<Foreign>, AccessError> {
    let (accounts, _) = world.store.list_all(&schema::accounts()).await.map_err(internal)?;
    let names: BTreeMap<AccountId, String> =
        accounts.into_iter().map(|account| (account.record.id, account.record.name.to_string())).collect();
    let desired = world.desired.read();
    let mut found = Vec::new();
    let mut of_account: BTreeMap<AccountId, usize> = BTreeMap::new();
    let mut machines: Vec<_> = desired.machines().filter(|machine| machine.account != account).collect();
    machines.sort_by_key(|machine| machine.id);
    for machine in machines {
        let Some(network) = desired.network(machine.network) else { continue };
        let count = of_account.entry(machine.account).or_default();
        if *count == FOREIGN_EACH || found.len() == FOREIGN_ALL || state(world, machine.id) != MachineState::Running {
            continue;
        }
        *count += 1;
        found.push(Foreign {
            account: names.get(&machine.account).cloned().unwrap_or_else(|| machine.account.to_string()),
            machine: machine.id.into(),
            addresses: vec![machine.ipv4.into(), machine.ipv6(world.installation.ula, network.number).into()],
            gateway: network.cidr.gateway().into(),
            name: machine.name.to_string(),
            listening: Listening::default(),
        });
    }
    Ok(found)
}

/// Places outside at which something should answer: this host's resolvers, and single addresses that rules allow.
async fn outside(world: &World, policy: &AccountPolicy, host_named: bool, now: Timestamp) -> Vec<Outside> {
    let place = |at, what, named| Outside { at, what, named, reached: false };
    let ruled = ruled(&policy.policy, &policy.directory, now, host_side::is_own);
    let mut wanted: Vec<Outside> = ruled.into_iter().map(|(at, what)| place(at, what, true)).collect();
    let resolvers = world.resolvers.iter().filter(|resolver| !resolver.ip().is_loopback()).zip(1..);
    wanted.extend(resolvers.map(|(at, n)| place(*at, format!("resolver {n} of this host"), host_named)));
    let mut seen = BTreeSet::new();
    wanted.retain(|outside| seen.insert(outside.at));
    wanted.truncate(MOST_OUTSIDE);
    join_all(wanted.iter_mut().map(|outside| async { outside.reached = reaches(outside.at).await })).await;
    wanted
}

/// A place outside, as the report may call it.
fn name_of(outside: &Outside) -> String {
    if outside.named { outside.at.to_string() } else { outside.what.clone() }
}

/// The single addresses outside that rules in force allow, each with its first TCP port.
///
/// The host itself connects to them, from where more is reachable than from any machine. So only what such a rule opens for
/// machines is among them: nothing that is closed whatever the policy says, and none of the host's own addresses.
fn ruled(
    policy: &Policy,
    directory: &Directory,
    now: Timestamp,
    is_own: impl Fn(IpAddr) -> bool,
) -> Vec<(SocketAddr, String)> {
    let mut found = Vec::new();
    for rule in policy.allow.iter().filter(|rule| rule.is_in_force(now)) {
        let Target::Inside(PolicySubject::Range(None, range)) = &rule.to else { continue };
        let address: IpAddr = range.addr();
        let single = range.prefix_len() == range.max_prefix_len();
        let inside = directory.networks.values().any(|network| match address {
            IpAddr::V4(four) => network.cidr.contains(four),
            IpAddr::V6(six) => network.cidr6.contains(&six),
        });
        if !single || inside || protection(address).is_some() || is_own(address) {
            continue;
        }
        if let Some(ports) = rule.ports.iter().find(|ports| ports.protocol == Protocol::Tcp) {
            found.push((SocketAddr::new(address, ports.range.first.max(1)), format!("named by rule {}", rule.id)));
        }
    }
    found
}

fn notes(scope: &AuditScope, across: usize, canaries: usize, unreached: &[String]) -> Vec<String> {
    let mut notes = vec![
        "Protocols other than TCP, UDP and ICMP are not tried.".to_owned(),
        "Of a rule for a range of ports, its first port is tried.".to_owned(),
        "Names are looked up; that a connection by name goes nowhere else is the proxy's part and is not tried.".to_owned(),
        "A machine's root could hinder the probe in that machine; that makes flows inconclusive or fail, but two machines \
         that lie together about a flow between them are not found out."
            .to_owned(),
    ];
    notes.push(match (scope.across_accounts, across) {
        (false, _) => {
            "Machines of other accounts were not targets, and the host's name, its addresses and its resolvers are not \
                       told: only the root key's audits have them."
                .to_owned()
        }
        (true, 0) => "No other account has a running machine.".to_owned(),
        (true, _) => format!("Of other accounts, {across} machines were targets."),
    });
    if canaries == 0 {
        notes.push("The host has no address beside loopback, so that none of its own was tried.".to_owned());
    }
    for at in unreached {
        notes.push(format!(
            "The host itself does not reach {at}; sealed networks were not tried against it, nor any if it is a resolver \
             that they may reach."
        ));
    }
    notes
}

fn installation(world: &World, version: &str, key: &sign::SigningKey, host_named: bool) -> Installation {
    let read = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
        text.trim().to_owned()
    };
    Installation {
        id: world.installation.id.to_string(),
        host: host_named.then(|| read("hostname")),
        kernel: read("osrelease"),
        warren: version.to_owned(),
        key_id: key.public().id(),
    }
}

/// Tokens that nobody can guess: SHA-256 over a secret of this audit and a counter.
struct Tokens {
    secret: [u8; 32],
    count: u64,
}

impl Tokens {
    fn new() -> Result<Self, AccessError> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|error| failed(format!("no random numbers: {error}")))?;
        Ok(Self { secret, count: 0 })
    }

    fn next(&mut self) -> Token {
        self.count += 1;
        let digest = sign::sha256(&[self.secret.as_slice(), &self.count.to_be_bytes()].concat());
        // The first 32 of 64 hexadecimal digits are a number of 128 bits.
        Token::from_random(u128::from_str_radix(&digest[..Token::LENGTH], 16).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests;
