//! Examinations of machines that are made up: a fake world carries packets as a data plane would.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use ulid::Ulid;
use warren_audit::matrix::Host;
use warren_audit::report::{Canary, Cell, Party};
use warren_model::audit::Verdict;
use warren_model::policy::{Destination, Directory, Member, NetworkEntry, Policy, Protocol, Sender};
use warren_model::probe::{
    Arrival, Arrivals, Attempt, Attempts, Holder, Listening, Observations, Outcome, Setup, Token,
};
use warren_model::record::Egress;
use warren_model::{Label, MemberId, MemberNumber, NetworkId, NetworkNumber, UlaPrefix};

use super::examine::{Examined, HostSide, Subject, examine};
use super::prober::{Probe, ProbeFailure, Prober};
use crate::world::lock;

const FREE_TCP: u16 = 40_001;
const FREE_UDP: u16 = 40_002;

/// What is wrong with the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Everything gets through, whatever policy says.
    Open,
    /// Nothing gets through, not even what policy allows.
    Closed,
    /// The targets' listeners are dead.
    Deaf,
    /// The senders' links are dead.
    Mute,
    /// What policy refuses is lost, and not counted.
    Lost,
    /// One machine cannot be probed.
    Unprobed,
    /// One machine's probe ends before it tells what came in.
    Forgetful,
}

struct FakeWorld {
    policy: Policy,
    directory: Directory,
    fault: Fault,
    arrivals: Mutex<HashMap<MemberId, Arrivals>>,
    refused: Mutex<BTreeMap<MemberId, u64>>,
}

impl FakeWorld {
    fn carry(&self, from: &Member, attempt: &Attempt) -> Outcome {
        let (to, protocol, port, token) = match attempt {
            Attempt::Lookup { name, .. } if self.fault == Fault::Mute => {
                let _ = name;
                return Outcome::Silent;
            }
            Attempt::Lookup { name, .. } if name.ends_with(".internal") => {
                return Outcome::Addresses { addresses: vec![from.ipv4.into()] };
            }
            Attempt::Lookup { .. } => return Outcome::NoAddress { code: 3, extended: Some(18) },
            Attempt::Tcp { to, token } => (to.ip(), Protocol::Tcp, Some(to.port()), token),
            Attempt::Udp { to, token } => (to.ip(), Protocol::Udp, Some(to.port()), token),
            Attempt::Icmp { to, token } => (*to, Protocol::Icmp, None, token),
        };
        let target = self.directory.members.iter().find(|member| member.has(to));
        let itself = target.is_some_and(|target| target.id == from.id);
        let policy = Sender::new(&self.policy, &self.directory, from, jiff::Timestamp::UNIX_EPOCH);
        let allowed = itself
            || match self.fault {
                Fault::Open => true,
                Fault::Closed => false,
                _ => policy.judge(Destination::Address(to), protocol, port).allowed,
            };
        if !allowed || self.fault == Fault::Mute && !itself {
            if self.fault != Fault::Lost && self.fault != Fault::Mute {
                *lock(&self.refused).entry(from.id).or_default() += 1;
            }
            return if self.fault == Fault::Lost { Outcome::Silent } else { Outcome::Prohibited { by: None } };
        }
        match target {
            Some(target) if self.fault != Fault::Deaf => {
                let mut arrivals = lock(&self.arrivals);
                let arrivals = &mut arrivals.entry(target.id).or_default().arrivals;
                arrivals.insert(token.clone(), Arrival { from: from.ipv4.into(), port });
                Outcome::Echoed
            }
            _ => Outcome::Silent,
        }
    }
}

struct FakeProber(Arc<FakeWorld>);

struct FakeProbe {
    world: Arc<FakeWorld>,
    member: Member,
}

#[async_trait]
impl Prober for FakeProber {
    async fn start(&self, machine: MemberId, setup: &Setup) -> Result<(Listening, Box<dyn Probe>), ProbeFailure> {
        let member = self.0.directory.members.iter().find(|member| member.id == machine).unwrap().clone();
        if self.0.fault == Fault::Unprobed && member.name.as_str() == "db" {
            return Err(ProbeFailure("its agent is older than the audit".to_owned()));
        }
        let probe = |ports: &BTreeSet<u16>| ports.iter().map(|port| (*port, Holder::Probe)).collect();
        let listening = Listening {
            free_tcp: Some(FREE_TCP),
            free_udp: Some(FREE_UDP),
            tcp: probe(&setup.tcp),
            udp: probe(&setup.udp),
            sees_all: true,
            problems: Vec::new(),
        };
        Ok((listening, Box::new(FakeProbe { world: Arc::clone(&self.0), member })))
    }
}

#[async_trait]
impl Probe for FakeProbe {
    async fn attempt(&mut self, attempts: &Attempts) -> Result<Observations, ProbeFailure> {
        let outcomes = attempts.attempts.iter().map(|attempt| self.world.carry(&self.member, attempt)).collect();
        Ok(Observations { outcomes })
    }

    async fn collect(self: Box<Self>) -> Result<Arrivals, ProbeFailure> {
        if self.world.fault == Fault::Forgetful && self.member.name.as_str() == "db" {
            return Err(ProbeFailure("the connection to its agent broke off".to_owned()));
        }
        Ok(lock(&self.world.arrivals).remove(&self.member.id).unwrap_or_default())
    }
}

struct FakeHostSide(Arc<FakeWorld>);

#[async_trait]
impl HostSide for FakeHostSide {
    fn canaries(&self) -> Vec<SocketAddr> {
        vec!["203.0.113.1:4000".parse().unwrap()]
    }

    async fn control(&self) -> BTreeSet<SocketAddr> {
        self.canaries().into_iter().collect()
    }

    fn arrivals(&self) -> BTreeSet<Token> {
        BTreeSet::new()
    }

    async fn refusals(&self, machines: &[MemberId]) -> BTreeMap<MemberId, u64> {
        let refused = lock(&self.0.refused);
        machines.iter().map(|machine| (*machine, refused.get(machine).copied().unwrap_or(0))).collect()
    }

    async fn api(&self) -> Option<(u16, bool)> {
        Some((7070, true))
    }
}

fn member(directory: &mut Directory, network: &str, name: &str, number: u32, tag: &str) {
    let entry = &directory.networks[&network.parse::<Label>().unwrap()];
    let four = u32::from(entry.cidr.gateway()) + 0x100 + number;
    let member = Member {
        id: warren_model::MachineId::from_ulid(Ulid::from_parts(u64::from(number), u128::from(entry.number.get())))
            .into(),
        network: network.parse().unwrap(),
        name: name.parse().unwrap(),
        number: MemberNumber::new(number).unwrap(),
        ipv4: four.into(),
        ipv6: std::net::Ipv6Addr::from(u128::from(entry.cidr6.network()) | u128::from(number)),
        tags: BTreeSet::from([tag.parse().unwrap()]),
    };
    directory.members.push(member);
}

fn directory() -> Directory {
    let ula = UlaPrefix::from_random([7; 5]);
    let mut directory = Directory::default();
    // Both have the same IPv4 range, as networks may.
    for (name, number) in [("dev", 1u16), ("prod", 2)] {
        let number = NetworkNumber::new(number).unwrap();
        let entry = NetworkEntry {
            id: NetworkId::from_ulid(Ulid::from_parts(1, u128::from(number.get()))),
            number,
            cidr: "10.0.0.0/16".parse().unwrap(),
            cidr6: ula.network(number),
            egress: Egress::Deny,
        };
        directory.networks.insert(name.parse().unwrap(), entry);
    }
    member(&mut directory, "dev", "agent", 20, "agent");
    member(&mut directory, "dev", "db", 21, "db");
    member(&mut directory, "prod", "billing", 22, "db");
    directory
}

fn policy() -> Policy {
    let text = r#"{
        "networks": {"dev": {"intra": "deny"}, "prod": {"intra": "deny"}},
        "allow": [{"id": "agent-db", "from": "dev/tag:agent", "to": "dev/tag:db", "ports": ["tcp/5432"]}]
    }"#;
    serde_json::from_str(text).unwrap()
}

async fn examined(fault: Fault) -> (Examined, usize) {
    let (policy, directory) = (policy(), directory());
    let world = Arc::new(FakeWorld {
        policy: policy.clone(),
        directory: directory.clone(),
        fault,
        arrivals: Mutex::default(),
        refused: Mutex::default(),
    });
    let hosts = directory
        .members
        .iter()
        .map(|member| Host { member: member.clone(), ports: Vec::new(), sends: true, listening: None })
        .collect();
    let subject = Subject {
        policy: &policy,
        directory: &directory,
        now: jiff::Timestamp::UNIX_EPOCH,
        hosts,
        foreign: Vec::new(),
        outside: Vec::new(),
        host_named: true,
    };
    let mut count = 0u128;
    let token = move || {
        count += 1;
        Token::from_random(count)
    };
    let told = Mutex::new(0);
    let examined =
        examine(&FakeProber(Arc::clone(&world)), &FakeHostSide(Arc::clone(&world)), subject, token, &|_, fraction| {
            assert!((0.0..=1.0).contains(&fraction));
            *lock(&told) += 1;
        })
        .await;
    let told = *lock(&told);
    (examined, told)
}

fn verdicts(cells: &[Cell], of: impl Fn(&Cell) -> bool) -> BTreeSet<Verdict> {
    cells.iter().filter(|cell| of(cell)).map(|cell| cell.verdict).collect()
}

/// Flows between machines, by an address that means the target.
fn between(cell: &Cell) -> bool {
    matches!(cell.to, Party::Machine { .. }) && cell.evidence.canary == Canary::Token
}

#[tokio::test]
async fn a_data_plane_that_does_what_policy_says_passes_everywhere() {
    let (examined, told) = examined(Fault::None).await;
    let bad: Vec<_> = examined.cells.iter().filter(|cell| cell.verdict != Verdict::Pass).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    assert!(examined.failures.is_empty() && examined.gaps.is_empty());
    let allowed: Vec<_> = examined.cells.iter().filter(|cell| cell.expected.allowed).collect();
    assert_eq!(allowed.len(), 1, "{allowed:#?}");
    assert_eq!((allowed[0].port, allowed[0].expected.rule.as_deref()), (Some(5432), Some("agent-db")));
    let across = examined.cells.iter().filter(|cell| cell.to.label() == "prod/billing").count();
    assert!(across >= 4 && told > 5);
}

#[tokio::test]
async fn an_address_that_two_networks_have_is_judged_by_the_token_alone() {
    let (examined, _) = examined(Fault::None).await;
    let twice: Vec<_> = examined.cells.iter().filter(|cell| cell.evidence.canary == Canary::TokenOnly).collect();
    assert!(!twice.is_empty());
    assert!(twice.iter().all(|cell| !cell.expected.allowed && !cell.evidence.token_seen));
}

#[tokio::test]
async fn what_gets_through_against_the_policy_fails() {
    let (examined, _) = examined(Fault::Open).await;
    let refused = verdicts(&examined.cells, |cell| between(cell) && !cell.expected.allowed);
    assert_eq!(refused, BTreeSet::from([Verdict::Fail]));
}

#[tokio::test]
async fn what_is_closed_against_the_policy_fails() {
    let (examined, _) = examined(Fault::Closed).await;
    let allowed = verdicts(&examined.cells, |cell| cell.expected.allowed);
    assert_eq!(allowed, BTreeSet::from([Verdict::Fail]));
}

#[tokio::test]
async fn without_its_positive_no_negative_passes() {
    for fault in [Fault::Deaf, Fault::Mute, Fault::Lost] {
        let (examined, _) = examined(fault).await;
        let refused = verdicts(&examined.cells, |cell| between(cell) && !cell.expected.allowed);
        assert_eq!(refused, BTreeSet::from([Verdict::Inconclusive]), "{fault:?}");
    }
}

#[tokio::test]
async fn a_machine_that_cannot_be_probed_is_named_and_nothing_about_it_passes() {
    let (examined, _) = examined(Fault::Unprobed).await;
    assert_eq!(examined.failures.len(), 1);
    assert!(examined.cells.iter().all(|cell| cell.from.label() != "dev/db" && cell.to.label() != "dev/db"));
}

#[tokio::test]
async fn what_arrived_and_was_not_told_passes_nothing() {
    let (examined, _) = examined(Fault::Forgetful).await;
    assert_eq!(examined.failures.len(), 1);
    let about = verdicts(&examined.cells, |cell| between(cell) && cell.to.label() == "dev/db");
    assert_eq!(about, BTreeSet::from([Verdict::Inconclusive]));
}

#[test]
fn the_host_connects_only_to_what_a_rule_in_force_opens_for_machines() {
    let rule = |id: &str, to: &str, more: &str| {
        format!(r#"{{"id": "{id}", "from": "net:dev", "to": "{to}", "ports": ["tcp/22"]{more}}}"#)
    };
    let rules = [
        rule("outside", "9.9.9.9/32", ""),
        rule("private", "192.168.7.7/32", ""),
        rule("expired", "8.8.8.8/32", r#", "expires": "2020-01-01T00:00:00Z""#),
        rule("loopback", "127.0.0.1/32", ""),
        rule("loopback6", "::1/128", ""),
        rule("metadata", "169.254.169.254/32", ""),
        rule("own", "1.2.3.4/32", ""),
        rule("member", "10.0.1.20/32", ""),
        rule("wide", "9.9.9.0/24", ""),
    ];
    let policy: Policy = serde_json::from_str(&format!(r#"{{"allow": [{}]}}"#, rules.join(","))).unwrap();
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    let own: std::net::IpAddr = "1.2.3.4".parse().unwrap();
    let found = super::ruled(&policy, &directory(), now, |address| address == own);
    let found: Vec<String> = found.into_iter().map(|(at, what)| format!("{at} {what}")).collect();
    assert_eq!(found, ["9.9.9.9:22 named by rule outside", "192.168.7.7:22 named by rule private"]);
}
