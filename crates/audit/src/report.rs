//! What a report says.
//!
//! It is written for somebody who was not there: nothing refers to what only the installation knows, everything that was
//! not examined is listed with the reason, and whatever could not be decided is `inconclusive`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use warren_model::audit::Verdict;
use warren_model::policy::{Ports, Protocol};
use warren_model::probe::Outcome;

use crate::standards::Standard;

/// The version of this format.
pub const FORMAT: u32 = 1;

/// A whole report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// [`FORMAT`].
    pub format: u32,
    pub result: Verdict,
    /// Why the result is not `pass`, each in a sentence; empty when it is.
    pub reasons: Vec<String>,
    /// Counts up with every report of the account, from 1.
    pub number: u64,
    /// The report before; `None` for the first.
    pub previous: Option<Link>,
    pub installation: Installation,
    pub scope: Scope,
    pub started_at: Timestamp,
    pub finished_at: Timestamp,
    pub policy: PolicyEvidence,
    pub inventory: Inventory,
    /// The rules in the kernel and at the edge, against the policy.
    pub live: Vec<LiveRules>,
    pub counts: Counts,
    pub cells: Vec<Cell>,
    pub denials: Denials,
    /// Where the log of mutations stood: a later log has to go on from here.
    pub log: Option<LogHead>,
    /// What differs from the report before, each in a sentence.
    pub differences: Vec<String>,
    pub standards: Vec<Standard>,
    /// SHA-256 of `report.html` in hex: the page that belongs to this report.
    pub page_sha256: String,
}

/// The report before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    pub number: u64,
    /// SHA-256 of its `report.json` in hex.
    pub sha256: String,
}

/// Where it was made, and by what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Installation {
    pub id: String,
    /// The host's name; only root's reports have it.
    pub host: Option<String>,
    pub kernel: String,
    pub warren: String,
    /// Of the key that signed it.
    pub key_id: String,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scope {
    pub account: Named,
    /// Only flows from machines of this network; `None` for all of the account.
    pub network: Option<Named>,
    /// Machines of other accounts were targets, too.
    pub across_accounts: bool,
    /// Who asked: the id of a key, or `schedule`.
    pub asked_by: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    pub id: String,
    pub name: String,
}

/// The policy in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyEvidence {
    /// 0 is the empty policy, which nobody applied.
    pub version: u64,
    pub hash: String,
    /// As it was written.
    pub text: String,
    pub approved: Option<Approval>,
    /// The versions that came into force since the report before, the newest last.
    pub since_previous: Vec<Applied>,
    /// The rules that open something, with who answers for each and until when.
    pub exceptions: Vec<ExceptionRule>,
}

/// Who applied a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    pub key: String,
    /// The key's name, where it has one.
    pub key_name: Option<String>,
    pub at: Timestamp,
}

/// A version of the policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Applied {
    pub version: u64,
    pub hash: String,
    pub approved: Approval,
}

/// A rule that opens something that would be closed without it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExceptionRule {
    pub id: String,
    pub from: String,
    pub to: String,
    pub ports: Vec<Ports>,
    pub owner: Option<String>,
    pub expires: Option<Timestamp>,
    pub expired: bool,
    pub reason: Option<String>,
}

/// What there is, and what of it was probed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inventory {
    pub networks: Vec<NetworkItem>,
    pub machines: Vec<MachineItem>,
    /// What else could not be examined. Anything here keeps the result from `pass`.
    pub gaps: Vec<String>,
    /// What an audit of this kind does not examine, for the reader to know.
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkItem {
    pub id: String,
    pub name: String,
    pub cidr: String,
    pub cidr6: String,
    /// `deny` or `open`.
    pub egress: String,
    /// `allow` or `deny`: whether members reach each other without a rule.
    pub intra: String,
    pub machines: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineItem {
    pub id: String,
    pub name: String,
    pub network: String,
    pub ipv4: IpAddr,
    pub ipv6: IpAddr,
    pub tags: Vec<String>,
    pub state: String,
    pub probed: Probed,
}

/// Whether a probe ran in a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "probed", rename_all = "snake_case", deny_unknown_fields)]
pub enum Probed {
    Yes,
    /// It is a target only: outside the scope that was asked for.
    OutOfScope,
    /// It was not, and so nothing is known about it: it is stopped, or its probe did not work.
    No {
        why: String,
    },
}

/// The rules of one network as they are, against what the policy compiles to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LiveRules {
    pub network: Named,
    pub reconciled: bool,
    /// What differs, or how it was compared.
    pub detail: String,
}

/// How many cells there are of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    pub cells: usize,
    pub pass: usize,
    pub fail: usize,
    pub inconclusive: usize,
    pub expected_allow: usize,
    pub expected_deny: usize,
    pub machines: usize,
    pub machines_probed: usize,
}

impl Counts {
    pub fn of(cells: &[Cell], inventory: &Inventory) -> Self {
        let verdicts = |verdict| cells.iter().filter(|cell| cell.verdict == verdict).count();
        let allowed = cells.iter().filter(|cell| cell.expected.allowed).count();
        Self {
            cells: cells.len(),
            pass: verdicts(Verdict::Pass),
            fail: verdicts(Verdict::Fail),
            inconclusive: verdicts(Verdict::Inconclusive),
            expected_allow: allowed,
            expected_deny: cells.len() - allowed,
            machines: inventory.machines.len(),
            machines_probed: inventory.machines.iter().filter(|machine| machine.probed == Probed::Yes).count(),
        }
    }
}

/// One flow: what policy says about it, and what real packets did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    pub from: Party,
    pub to: Party,
    pub protocol: Protocol,
    pub port: Option<u16>,
    /// The port was chosen for this audit and is another one each time: no rule and no machine speaks of it.
    pub free_port: bool,
    pub expected: Expected,
    pub observed: Observed,
    pub verdict: Verdict,
    /// Why the verdict is what it is.
    pub because: String,
    pub evidence: Evidence,
}

/// An end of a flow.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Party {
    Machine {
        id: String,
        name: String,
        network: String,
        address: IpAddr,
    },
    /// A machine of another account, by the account's name only.
    Foreign {
        account: String,
        address: IpAddr,
    },
    /// One of the host's own addresses.
    Host {
        address: IpAddr,
    },
    /// An address that no member has.
    Address {
        address: IpAddr,
        what: String,
    },
    /// An address of the host, or of what the host uses, in a report for somebody who is not to know it.
    Unnamed {
        what: String,
    },
    Name {
        name: String,
    },
}

impl Party {
    /// For a table: `agents/worker`, `169.254.169.254 (cloud metadata)`.
    pub fn label(&self) -> String {
        match self {
            Self::Machine { name, network, .. } => format!("{network}/{name}"),
            Self::Foreign { account, .. } => format!("a machine of account {account}"),
            Self::Host { address } => format!("{address} (the host)"),
            Self::Address { address, what } => format!("{address} ({what})"),
            Self::Unnamed { what } => what.clone(),
            Self::Name { name } => name.clone(),
        }
    }

    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Machine { address, .. }
            | Self::Foreign { address, .. }
            | Self::Host { address }
            | Self::Address { address, .. } => Some(*address),
            Self::Unnamed { .. } | Self::Name { .. } => None,
        }
    }
}

/// What policy says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    pub allowed: bool,
    pub rule: Option<String>,
    pub reason: String,
}

/// What was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Observed {
    Reached,
    NotReached,
    /// Nobody saw anything.
    Unknown,
}

/// What a verdict rests on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// What is at the far end and can tell that it was reached.
    pub canary: Canary,
    /// What the sender saw; `None` when its probe said nothing about it.
    pub outcome: Option<Outcome>,
    /// The token that was sent came out at the canary.
    pub token_seen: bool,
    /// The positive control of the far end.
    pub canary_control: Control,
    /// The positive control of the sender: a flow that is always allowed.
    pub sender_control: Control,
    /// What the enforcing layer counted for this sender, where it counts.
    pub counter: Option<Counter>,
}

/// What tells that a flow arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Canary {
    /// The probe in the target saw the token, or did not.
    Token,
    /// The probe in the target saw the token, or did not; at this address somebody nearer may have answered the sender.
    TokenOnly,
    /// A service of the target holds the port: its handshake tells.
    Service,
    /// A place outside whose handshake tells.
    Outside,
    /// The network's resolver, whose answer tells.
    Resolver,
    /// Nothing can be put there. Only the refusal itself tells.
    Refusal,
}

/// Something that has to work, so that a refusal elsewhere means something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    pub reached: bool,
    pub what: String,
}

/// A counter of refusals, before all attempts and after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counter {
    pub before: u64,
    pub after: u64,
    /// How many packets of this sender it had to count, at least.
    pub attempts: u64,
}

impl Counter {
    pub fn moved(&self) -> u64 {
        self.after.saturating_sub(self.before)
    }

    pub fn moved_enough(&self) -> bool {
        self.attempts > 0 && self.moved() >= self.attempts
    }
}

/// What was refused in the day before the audit, its own attempts included.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Denials {
    /// How many refusals are on record.
    pub total: u64,
    pub by_layer: BTreeMap<String, u64>,
    /// By the name of the machine or session, the most refused first; at most 50.
    pub by_machine: Vec<(String, u64)>,
}

/// The end of the log of mutations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogHead {
    /// The number of its last line.
    pub number: u64,
    /// SHA-256 of that line in hex.
    pub sha256: String,
    /// The whole chain was checked and holds.
    pub intact: bool,
}

/// The result that these findings add up to, and why it is not `pass`.
///
/// Anything that failed is `fail`. Anything undecided, unprobed or missing is `inconclusive`.
pub fn result(
    cells: &[Cell],
    inventory: &Inventory,
    live: &[LiveRules],
    log: Option<&LogHead>,
) -> (Verdict, Vec<String>) {
    let (mut failed, mut open) = (Vec::new(), Vec::new());
    let count = |verdict| cells.iter().filter(|cell| cell.verdict == verdict).count();
    match count(Verdict::Fail) {
        0 => {}
        1 => failed.push("1 flow does not do what policy says".to_owned()),
        n => failed.push(format!("{n} flows do not do what policy says")),
    }
    for rules in live.iter().filter(|rules| !rules.reconciled) {
        failed
            .push(format!("the live rules of network {} differ from the policy: {}", rules.network.name, rules.detail));
    }
    if log.is_some_and(|log| !log.intact) {
        failed.push("the chain of the log of mutations is broken, or lines are missing from it".to_owned());
    }
    match count(Verdict::Inconclusive) {
        0 => {}
        1 => open.push("1 flow is inconclusive".to_owned()),
        n => open.push(format!("{n} flows are inconclusive")),
    }
    for machine in &inventory.machines {
        if let Probed::No { why } = &machine.probed {
            open.push(format!("machine {}/{} was not probed: {why}", machine.network, machine.name));
        }
    }
    open.extend(inventory.gaps.iter().cloned());
    if cells.is_empty() {
        open.push("nothing was probed".to_owned());
    }
    let verdict = match (failed.is_empty(), open.is_empty()) {
        (false, _) => Verdict::Fail,
        (true, false) => Verdict::Inconclusive,
        (true, true) => Verdict::Pass,
    };
    failed.append(&mut open);
    (verdict, failed)
}
