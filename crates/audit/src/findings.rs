//! What the probes saw, put together with what was tried.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use warren_model::MemberId;
use warren_model::probe::{Arrivals, Attempt, Outcome, Token};

use crate::judge::judge;
use crate::matrix::{At, Check, SelfControl};
use crate::report::{Canary, Cell, Control, Counter, Evidence};

/// Everything that was seen.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    /// What became of each machine's checks, in their order; shorter than these where a probe said less.
    pub outcomes: BTreeMap<MemberId, Vec<Outcome>>,
    /// What became of each machine's controls, in their order.
    pub controls: BTreeMap<MemberId, Vec<Outcome>>,
    /// What came in at each machine.
    pub arrivals: BTreeMap<MemberId, Arrivals>,
    /// The tokens that came in at the host's canaries.
    pub host_arrivals: BTreeSet<Token>,
    /// The host's canaries that its own control reached.
    pub host_reached: BTreeSet<SocketAddr>,
    /// Whether the host's API answered the host.
    pub api_reached: bool,
    pub outside_reached: BTreeSet<SocketAddr>,
    /// Refusals that the kernel counted for a machine, before all attempts and after them; absent where it does not count.
    pub refusals: BTreeMap<MemberId, (u64, u64)>,
}

/// Judges every check.
pub fn cells(checks: &[Check], controls: &[SelfControl], findings: &Findings) -> Vec<Cell> {
    let reached = Controls::new(controls, findings);
    let attempts = counted(checks, findings);
    let mut ranks: BTreeMap<MemberId, usize> = BTreeMap::new();
    let mut cells = Vec::with_capacity(checks.len());
    for check in checks {
        let rank = ranks.entry(check.sender).or_default();
        let outcome = findings.outcomes.get(&check.sender).and_then(|outcomes| outcomes.get(*rank)).cloned();
        *rank += 1;
        let counter =
            findings.refusals.get(&check.sender).filter(|_| is_counted(check)).map(|(before, after)| Counter {
                before: *before,
                after: *after,
                attempts: attempts.get(&check.sender).copied().unwrap_or_default(),
            });
        let evidence = Evidence {
            canary: check.canary,
            outcome,
            token_seen: token_seen(check, findings),
            canary_control: reached.of_canary(check, findings),
            sender_control: reached.of_sender(check.sender),
            counter,
        };
        let (observed, verdict, because) = judge(check.expected.allowed, &evidence);
        cells.push(Cell {
            from: check.from.clone(),
            to: check.to.clone(),
            protocol: check.protocol,
            port: check.port,
            free_port: check.free_port,
            expected: check.expected.clone(),
            observed,
            verdict,
            because,
            evidence,
        });
    }
    cells
}

fn token(attempt: &Attempt) -> Option<&Token> {
    match attempt {
        Attempt::Tcp { token, .. } | Attempt::Udp { token, .. } | Attempt::Icmp { token, .. } => Some(token),
        Attempt::Lookup { .. } => None,
    }
}

fn token_seen(check: &Check, findings: &Findings) -> bool {
    let Some(token) = token(&check.attempt) else { return false };
    match &check.at {
        At::Machine(machine, ..) => {
            findings.arrivals.get(machine).is_some_and(|arrivals| arrivals.arrivals.contains_key(token))
        }
        At::Host(_) => findings.host_arrivals.contains(token),
        At::Api | At::Outside(_) | At::Resolver | At::Nowhere => false,
    }
}

/// Whether the kernel's counters of refusals are about this flow: policy refuses it, and it goes to a member by an address
/// that means that one, or to where nobody can be.
fn is_counted(check: &Check) -> bool {
    let between = matches!(check.at, At::Machine(..)) && check.canary != Canary::TokenOnly;
    (between || check.canary == Canary::Refusal) && !check.expected.allowed
}

/// How many packets of each sender had to be counted: what got no answer was sent again.
fn counted(checks: &[Check], findings: &Findings) -> BTreeMap<MemberId, u64> {
    let mut attempts = BTreeMap::new();
    let mut ranks: BTreeMap<MemberId, usize> = BTreeMap::new();
    for check in checks {
        let rank = ranks.entry(check.sender).or_default();
        let outcome = findings.outcomes.get(&check.sender).and_then(|outcomes| outcomes.get(*rank));
        *rank += 1;
        if is_counted(check) {
            let again = match (outcome, &check.attempt) {
                (Some(Outcome::Silent), Attempt::Udp { .. } | Attempt::Icmp { .. }) => 2,
                // After one second (RFC 6298 §2).
                (Some(Outcome::Silent), Attempt::Tcp { .. }) => 1,
                _ => 0,
            };
            *attempts.entry(check.sender).or_default() += 1 + again;
        }
    }
    attempts
}

/// Which positive controls got through.
struct Controls {
    /// Their token came in, and was told of.
    arrived: BTreeSet<At>,
    /// They were answered.
    answered: BTreeSet<At>,
    resolvers: BTreeSet<MemberId>,
}

impl Controls {
    fn new(controls: &[SelfControl], findings: &Findings) -> Self {
        let (mut arrived, mut answered, mut resolvers) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut ranks: BTreeMap<MemberId, usize> = BTreeMap::new();
        for control in controls {
            let rank = ranks.entry(control.machine).or_default();
            let outcome = findings.controls.get(&control.machine).and_then(|outcomes| outcomes.get(*rank));
            *rank += 1;
            let came_in = token(&control.attempt).is_some_and(|token| {
                let arrivals = findings.arrivals.get(&control.machine);
                arrivals.is_some_and(|arrivals| arrivals.arrivals.contains_key(token))
            });
            if came_in {
                arrived.insert(control.at.clone());
            }
            match (&control.at, outcome) {
                (At::Resolver, Some(Outcome::Addresses { .. } | Outcome::NoAddress { .. })) => {
                    resolvers.insert(control.machine);
                }
                (At::Machine(..), Some(Outcome::Echoed | Outcome::Connected)) => {
                    answered.insert(control.at.clone());
                }
                _ => {}
            }
        }
        Self { arrived, answered, resolvers }
    }

    fn of_sender(&self, sender: MemberId) -> Control {
        Control {
            reached: self.resolvers.contains(&sender),
            what: "it asks its network's resolver for its own name".into(),
        }
    }

    fn of_canary(&self, check: &Check, findings: &Findings) -> Control {
        let (reached, what) = match &check.at {
            at @ At::Machine(machine, ..) => {
                // A canary that is to tell of a token has to have told of one.
                let works = match check.canary {
                    Canary::Token | Canary::TokenOnly => self.arrived.contains(at),
                    _ => self.answered.contains(at),
                };
                let what = "the target reaches its own canary, and its network's resolver over its link";
                (works && self.resolvers.contains(machine), what)
            }
            At::Host(canary) => (findings.host_reached.contains(canary), "the host reaches its own canary"),
            At::Api => (findings.api_reached, "the host reaches its own API"),
            At::Outside(outside) => (findings.outside_reached.contains(outside), "the host reaches it"),
            At::Resolver => (self.resolvers.contains(&check.sender), "the resolver answers for a name inside"),
            At::Nowhere => (true, "none is possible: only the refusal itself counts"),
        };
        Control { reached, what: what.to_owned() }
    }
}
