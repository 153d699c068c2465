//! The tests of a policy.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::Ipv6Addr;

use ipnet::IpNet;
use jiff::Timestamp;

use super::link::{Link, links, may_mean};
use super::people::People;
use super::protect::protection;
use super::{
    Destination, Directory, Expect, Member, NetworkEntry, Policy, RuleId, Sender, Subject, Test, TestTarget, Verdict,
    edges,
};
use crate::address::MemberNumber;
use crate::id::MachineId;
use crate::name::Label;

/// How much may be looked at to judge the tests of a policy: one step for each flow, and for each rule, port range,
/// member or network that is compared with it. Keeps the time bounded, at some seconds.
const MAX_STEPS: usize = 100_000_000;

/// What became of one test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestOutcome {
    /// Its place in the policy's list, from 0.
    pub index: usize,
    pub passed: bool,
    pub expected: Expect,
    /// The rule that has to decide, where the test says so.
    pub by: Option<RuleId>,
    /// Who was judged: for a test that fails the first flow that is not as expected, else the last one.
    pub from: String,
    pub to: String,
    /// Like `tcp/5432`.
    pub port: String,
    pub found: Verdict,
}

/// Judges every test. One that means several members holds for each pair of them; where nobody is meant, it is judged
/// for somebody who would be.
pub fn run_tests(policy: &Policy, directory: &Directory, now: Timestamp) -> Vec<TestOutcome> {
    if policy.tests.is_empty() {
        return Vec::new();
    }
    let people = People::new(directory.members.iter());
    let rules = policy.rules().filter(|(rule, _)| rule.is_in_force(now));
    let of_rules = rules.flat_map(|(rule, _)| rule.subjects());
    let of_tests = policy.tests.iter().flat_map(|test| test.subjects());
    let subjects: HashSet<&Subject> = of_rules.chain(of_tests).collect();
    let mut subjects: Vec<&Subject> = subjects.into_iter().collect();
    subjects.sort_unstable();
    let kinds = people.kinds(subjects.into_iter());
    let mut kind_of = vec![0u32; people.members.len()];
    for (index, kind) in (0u32..).zip(&kinds) {
        kind.iter().for_each(|member| kind_of[*member as usize] = index);
    }
    let (links, left) = (RefCell::default(), Cell::new(MAX_STEPS));
    let bench = Bench { policy, directory, now, people, kind_of, links, left };
    policy.tests.iter().enumerate().map(|(index, test)| bench.run(index, test)).collect()
}

struct Bench<'a> {
    policy: &'a Policy,
    directory: &'a Directory,
    now: Timestamp,
    people: People<'a>,
    /// For each member the kind that it is of. Nothing tells members of a kind apart: one pair stands for all.
    kind_of: Vec<u32>,
    links: RefCell<HashMap<Label, Links<'a>>>,
    left: Cell<usize>,
}

type Links<'a> = BTreeMap<&'a Label, Link<'a>>;

/// The tests together take more than [`MAX_STEPS`].
struct TooMuch;

impl<'a> Bench<'a> {
    fn run(&self, index: usize, test: &Test) -> TestOutcome {
        self.judge(index, test).unwrap_or_else(|TooMuch| {
            let reason = format!(
                "the tests take more than {MAX_STEPS} steps to judge, one for each flow and each rule about its sender: \
                 name fewer members in them"
            );
            unjudged(index, test, reason)
        })
    }

    fn judge(&self, index: usize, test: &Test) -> Result<TestOutcome, TooMuch> {
        let outcome = |passed: bool, from: String, to: String, port: String, found: Verdict| TestOutcome {
            index,
            passed,
            expected: test.expect,
            by: test.by.clone(),
            from,
            to,
            port,
            found,
        };
        let senders = self.representatives(&test.from)?;
        let invented = if senders.is_empty() { invent(&test.from, self.directory, None) } else { None };
        let senders: Vec<&Member> = senders.iter().map(|kind| kind[0]).chain(&invented).collect();
        if senders.is_empty() {
            return Ok(unjudged(index, test, format!("{} means nobody in any network", test.from)));
        }
        let receivers = match &test.to {
            TestTarget::Inside(to) => self.representatives(to)?,
            TestTarget::Outside(_) => Vec::new(),
        };
        let mut last = None;
        for from in senders {
            self.spend(self.policy.forbid.len() + self.policy.allow.len())?;
            let sender = Sender::new(self.policy, self.directory, from, self.now);
            let steps = sender.steps();
            self.spend(steps)?;
            let ports: Vec<Option<u16>> = if test.port.protocol.has_ports() {
                let range = test.port.range;
                sender.ports_to_try(test.port.protocol, range.first.max(1), range.last).into_iter().map(Some).collect()
            } else {
                vec![None]
            };
            let mut invented = None;
            let goals = match &test.to {
                TestTarget::Outside(name) => vec![Destination::Name(name)],
                TestTarget::Inside(to) => {
                    let mut goals = self.goals(to, from, &sender, &receivers)?;
                    if goals.is_empty() {
                        invented = invent(to, self.directory, Some(from));
                        goals.extend(invented.iter().map(Destination::Member));
                    }
                    goals
                }
            };
            for goal in &goals {
                let looked_up = if matches!(goal, Destination::Address(_)) { self.places() } else { 0 };
                for port in &ports {
                    self.spend(1 + steps + looked_up)?;
                    let found = sender.judge(*goal, test.port.protocol, *port);
                    let as_expected = found.allowed == (test.expect == Expect::Allow);
                    let by_rule = test.by.as_ref().is_none_or(|by| found.rule.as_ref() == Some(by));
                    if !(as_expected && by_rule) {
                        let shown = shown(test, *port);
                        return Ok(outcome(false, from.full_name(), goal.to_string(), shown, found));
                    }
                    last = Some((from, goal.to_string(), *port, found));
                }
            }
            drop(goals);
            drop(invented);
        }
        Ok(match last {
            Some((from, to, port, found)) => outcome(true, from.full_name(), to, shown(test, port), found),
            None => unjudged(index, test, format!("{} means nobody and no address outside", test.to)),
        })
    }

    fn spend(&self, steps: usize) -> Result<(), TooMuch> {
        let left = self.left.get().checked_sub(steps);
        self.left.set(left.unwrap_or(0));
        left.map(|_| ()).ok_or(TooMuch)
    }

    /// The networks with which one has traffic, found once for all its members.
    fn links_of(&self, network: &Label) -> Result<Links<'a>, TooMuch> {
        if let Some(found) = self.links.borrow().get(network) {
            self.spend(1 + found.len())?;
            return Ok(found.clone());
        }
        self.spend(self.policy.allow.len().saturating_mul(1 + self.directory.networks.len()))?;
        let found = links(self.policy, self.directory, network, self.now);
        self.links.borrow_mut().insert(network.clone(), found.clone());
        Ok(found)
    }

    /// How many members and networks are looked through for an address.
    fn places(&self) -> usize {
        self.directory.members.len() + self.directory.networks.len()
    }

    /// Up to two members of each kind that a subject means.
    fn representatives(&self, subject: &Subject) -> Result<Vec<Vec<&'_ Member>>, TooMuch> {
        let meant = self.people.meant(subject);
        self.spend(1 + meant.len())?;
        let mut kinds: BTreeMap<u32, Vec<&Member>> = BTreeMap::new();
        for member in meant {
            let kind = kinds.entry(self.kind_of[member as usize]).or_default();
            if kind.len() < 2 {
                kind.push(self.people.members[member as usize]);
            }
        }
        Ok(kinds.into_values().collect())
    }

    /// Whom and what a sender has to be judged with.
    fn goals<'s, 't>(
        &self,
        to: &Subject,
        from: &Member,
        sender: &Sender<'s>,
        receivers: &[Vec<&'t Member>],
    ) -> Result<Vec<Destination<'t>>, TooMuch>
    where
        'a: 's,
    {
        self.spend(receivers.len())?;
        let is_sender =
            |member: &Member| member.id == from.id && member.network == from.network && member.name == from.name;
        let mut goals: Vec<Destination<'t>> = receivers
            .iter()
            .filter_map(|kind| kind.iter().find(|member| !is_sender(member)))
            .filter(|member| sender.means(to, member))
            .map(|member| Destination::Member(member))
            .collect();
        if let Subject::Range(None, range) = to {
            sender.know_links(self.links_of(&from.network)?);
            self.spend(self.policy.forbid.len() + self.policy.allow.len() + self.directory.networks.len())?;
            let edges = edges(self.policy, self.directory, *range);
            self.spend(edges.len().saturating_mul(self.places()))?;
            let outside = edges.into_iter().filter(|address| sender.is_outside(*address));
            goals.extend(outside.map(Destination::Address));
            let first = range.network();
            if goals.is_empty() && (protection(first).is_some() || self.directory.host.is_own(first)) {
                goals.push(Destination::Address(first));
            }
        }
        Ok(goals)
    }
}

fn unjudged(index: usize, test: &Test, reason: String) -> TestOutcome {
    TestOutcome {
        index,
        passed: false,
        expected: test.expect,
        by: test.by.clone(),
        from: test.from.to_string(),
        to: test.to.to_string(),
        port: test.port.to_string(),
        found: Verdict { allowed: test.expect == Expect::Deny, rule: None, reason },
    }
}

fn shown(test: &Test, port: Option<u16>) -> String {
    match port {
        Some(port) => format!("{}/{port}", test.port.protocol),
        None => test.port.protocol.to_string(),
    }
}

/// Somebody whom a subject would mean, in a network that is there; not the one given.
fn invent(subject: &Subject, directory: &Directory, other_than: Option<&Member>) -> Option<Member> {
    let (network, entry) = match subject.network() {
        Some(network) => directory.networks.get_key_value(network)?,
        None => {
            let own = other_than.and_then(|member| directory.networks.get_key_value(&member.network));
            let all = own.into_iter().chain(&directory.networks);
            all.into_iter().find(|(name, entry)| may_mean(subject, name, entry))?
        }
    };
    // The last addresses of a range are no member's.
    let mut member = Member {
        id: MachineId::from_ulid(ulid::Ulid::nil()).into(),
        network: network.clone(),
        name: (if other_than.is_some() { "another" } else { "somebody" }).parse().ok()?,
        number: MemberNumber::new(u32::MAX).ok()?,
        ipv4: entry.cidr.broadcast(),
        ipv6: Ipv6Addr::from(u128::from(entry.cidr6.network()) | u128::from(u32::MAX)),
        tags: Default::default(),
    };
    match subject {
        Subject::Network(_) => {}
        Subject::Tag(_, tag) => {
            member.tags.insert(tag.clone());
        }
        Subject::Machine(_, name) => member.name = name.clone(),
        Subject::Range(_, range) => place(&mut member, *range, entry),
    }
    Some(member)
}

/// Gives a member an address in a range of its network.
fn place(member: &mut Member, range: IpNet, entry: &NetworkEntry) {
    match range {
        IpNet::V4(four) if four.prefix_len() >= entry.cidr.prefix_len() => member.ipv4 = four.network(),
        IpNet::V6(six) if six.prefix_len() >= entry.cidr6.prefix_len() => member.ipv6 = six.network(),
        // A wider range contains the network's, and so the address that the member has already.
        _ => {}
    }
}
