//! How two policies differ for the members that there are: what one opens and closes against the other.
//!
//! Members that no rule of either policy tells apart are looked at once, and only where something that changed is
//! about them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use warren_model::Label;
use warren_model::policy::{
    Destination, Directory, HostName, HostPattern, Member, Policy, Rule, Subject, Target, following,
};
use warren_model::wire::{Passage, Passages, PolicyChange};

use super::pieces::{self, Piece, View};
use super::{Limit, TooLong};

/// How many passages of each list are shown.
const SHOWN: usize = 200;

/// What the new policy opens and closes against the old one.
pub(super) fn compare(
    old: &Policy,
    new: &Policy,
    directory: &Directory,
    now: Timestamp,
) -> Result<PolicyChange, TooLong> {
    let limit = Limit::new();
    let difference = Difference::new(old, new, now);
    let mut change = PolicyChange::default();
    if difference.is_none() {
        return Ok(change);
    }
    let classes = classes(&[old, new], directory.members.iter());
    for senders in &classes {
        let from = senders[0];
        let rules: Vec<_> = difference.rules.iter().copied().filter(|rule| from.is_meant_by(&rule.from)).collect();
        let inside = difference.networks.contains(&from.network);
        if rules.is_empty() && !inside {
            continue;
        }
        let sides = [old, new].map(|policy| View::new(policy, directory, from, now));
        let mut weigh = |to: Destination, pairs: Pairs| {
            let [opened, closed] = differing(&sides, to);
            for (pieces, passages) in [(opened, &mut change.opens), (closed, &mut change.closes)] {
                if !pieces.is_empty() {
                    pairs.add(&pieces::texts(&pieces), passages);
                }
            }
        };
        for receivers in &classes {
            limit.check()?;
            // A machine's way to itself leads through no network.
            let Some(to) = receivers.iter().copied().find(|member| member.id != from.id) else { continue };
            let touched = inside && to.network == from.network
                || rules.iter().any(|rule| matches!(&rule.to, Target::Inside(subject) if to.is_meant_by(subject)));
            if touched {
                weigh(Destination::Member(to), Pairs::Members(senders, receivers));
            }
        }
        if rules.iter().any(|rule| matches!(rule.to, Target::Outside(_))) {
            for pattern in patterns(&sides) {
                let Some(name) = example(pattern) else { continue };
                weigh(Destination::Name(&name), Pairs::Outside(senders, pattern.to_string()));
            }
        }
        if rules.iter().any(|rule| matches!(rule.to, Target::Inside(Subject::Range(..)))) {
            let ranges = ranges(&sides);
            for range in &ranges {
                let own = directory.networks.get(&from.network);
                let Some(address) = lone_address(*range, &ranges) else { continue };
                if own.is_some_and(|own| {
                    [IpNet::V4(own.cidr.net()), IpNet::V6(own.cidr6)].iter().any(|range| range.contains(&address))
                }) {
                    continue;
                }
                weigh(Destination::Address(address), Pairs::Outside(senders, range.to_string()));
            }
        }
    }
    Ok(change)
}

/// What is not the same in both policies.
struct Difference<'a> {
    rules: Vec<&'a Rule>,
    /// Networks whose members reach each other in one and not in the other.
    networks: BTreeSet<Label>,
}

impl<'a> Difference<'a> {
    fn new(old: &'a Policy, new: &'a Policy, now: Timestamp) -> Self {
        let by_id = |policy: &'a Policy| -> BTreeMap<&'a str, (&'a Rule, bool)> {
            let rules = policy.rules().filter(|(rule, _)| rule.is_in_force(now));
            rules.map(|(rule, forbids)| (rule.id.as_str(), (rule, forbids))).collect()
        };
        let (before, after) = (by_id(old), by_id(new));
        let same = |one: &(&Rule, bool), other: &(&Rule, bool)| {
            one.1 == other.1
                && (&one.0.from, &one.0.to, &one.0.ports, one.0.application)
                    == (&other.0.from, &other.0.to, &other.0.ports, other.0.application)
        };
        let only = |these: &BTreeMap<&'a str, (&'a Rule, bool)>, those: &BTreeMap<&'a str, (&'a Rule, bool)>| {
            let differ = these.iter().filter(|(id, rule)| those.get(**id).is_none_or(|other| !same(rule, other)));
            differ.map(|(_, (rule, _))| *rule).collect::<Vec<_>>()
        };
        let rules = [only(&before, &after), only(&after, &before)].concat();
        let named = old.networks.keys().chain(new.networks.keys());
        let networks = named.filter(|network| old.intra(network) != new.intra(network)).cloned().collect();
        Self { rules, networks }
    }

    fn is_none(&self) -> bool {
        self.rules.is_empty() && self.networks.is_empty()
    }
}

/// Members that no rule tells apart, together.
pub(super) fn classes<'a>(policies: &[&Policy], members: impl Iterator<Item = &'a Member>) -> Vec<Vec<&'a Member>> {
    let rules = policies.iter().flat_map(|policy| policy.rules());
    let mut subjects: Vec<&Subject> = rules.flat_map(|(rule, _)| rule.subjects()).collect();
    subjects.sort();
    subjects.dedup();
    let mut classes: BTreeMap<(&Label, Vec<usize>), Vec<&Member>> = BTreeMap::new();
    for member in members {
        let meant = subjects.iter().enumerate().filter(|(_, subject)| member.is_meant_by(subject));
        let key = (&member.network, meant.map(|(index, _)| index).collect());
        classes.entry(key).or_default().push(member);
    }
    classes.into_values().collect()
}

/// What only the second, and what only the first side allows.
fn differing(sides: &[View; 2], to: Destination) -> [Vec<Piece>; 2] {
    let [old, new] = sides;
    let (mut opened, mut closed) = (Vec::new(), Vec::new());
    for piece in pieces::pieces(old.toward(to).chain(new.toward(to))) {
        match (old.judge(to, &piece).allowed, new.judge(to, &piece).allowed) {
            (false, true) => opened.push(piece),
            (true, false) => closed.push(piece),
            _ => {}
        }
    }
    [opened, closed]
}

/// Pairs of senders and destinations for which the same holds.
enum Pairs<'a> {
    Members(&'a [&'a Member], &'a [&'a Member]),
    Outside(&'a [&'a Member], String),
}

impl Pairs<'_> {
    fn add(&self, ports: &[String], passages: &mut Passages) {
        let mut add = |from: &Member, to: String| {
            if passages.items.len() < SHOWN {
                passages.items.push(Passage { from: from.full_name(), to, ports: ports.to_vec() });
            } else {
                passages.more += 1;
            }
        };
        match self {
            Self::Members(senders, receivers) => {
                for from in *senders {
                    for to in receivers.iter().filter(|to| to.id != from.id) {
                        add(from, to.full_name());
                    }
                }
            }
            Self::Outside(senders, to) => senders.iter().for_each(|from| add(from, to.clone())),
        }
    }
}

fn targets<'a>(sides: &[View<'a>; 2]) -> impl Iterator<Item = &'a Target> {
    sides.iter().flat_map(|view| view.rules().map(|rule| &rule.to))
}

fn patterns<'a>(sides: &[View<'a>; 2]) -> BTreeSet<&'a HostPattern> {
    let patterns = targets(sides).filter_map(|target| match target {
        Target::Outside(pattern) => Some(pattern),
        Target::Inside(_) => None,
    });
    patterns.collect()
}

fn ranges(sides: &[View; 2]) -> BTreeSet<IpNet> {
    let ranges = targets(sides).filter_map(|target| match target {
        Target::Inside(Subject::Range(None, range)) => Some(*range),
        _ => None,
    });
    ranges.collect()
}

/// A name that the pattern means and that hardly a narrower rule is about.
pub(super) fn example(pattern: &HostPattern) -> Option<HostName> {
    let front = match pattern {
        HostPattern::Exact(name) => return Some(name.clone()),
        HostPattern::OneLabel(_) => "warren-any",
        HostPattern::AnyDepth(_) => "warren-any.warren-any",
    };
    // Not for a name that is nearly as long as names can be.
    format!("{front}.{}", pattern.name()).parse().ok()
}

/// An address of the range that is in none of the narrower ranges.
pub(super) fn lone_address(range: IpNet, all: &BTreeSet<IpNet>) -> Option<IpAddr> {
    let narrower: Vec<_> = all.iter().filter(|other| **other != range && range.contains(*other)).collect();
    let after = narrower.iter().filter_map(|other| following(other.broadcast()));
    let mut candidates = std::iter::once(range.network()).chain(after);
    candidates.find(|address| range.contains(address) && !narrower.iter().any(|other| other.contains(address)))
}
