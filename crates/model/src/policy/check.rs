//! Whether a policy fits who is there, and whether it says what it claims.

use std::collections::{BTreeSet, HashMap, HashSet};

use jiff::Timestamp;

use super::claim::run_tests;
use super::link::may_mean;
use super::near::nearest;
use super::{
    Directory, Expect, HostPattern, Policy, PortRange, Ports, Protocol, Rule, RuleId, Subject, Target, TestTarget,
};
use crate::name::{Label, Tag};
use crate::record::Egress;
use crate::session::OPERATOR_TAG;

/// Something that is wrong with a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where, as a JSON pointer (RFC 6901) into the document: `/allow/3/from`, `/networks/dev`, `/tagOwners/db/platform`.
    pub pointer: String,
    pub message: String,
}

/// Refused with everything that is wrong: unknown networks, tags, owners and rules; rules that contradict each other or
/// cannot be enforced; and, when nothing else is wrong, tests that fail.
pub fn check(
    policy: &Policy,
    directory: &Directory,
    known_keys: &BTreeSet<Label>,
    now: Timestamp,
) -> Result<(), Vec<Finding>> {
    let mut check = Check { policy, directory, tags: tags(policy, directory), findings: Vec::new() };
    check.names(known_keys);
    check.rules(now);
    check.contradictions(now);
    check.tests();
    if check.findings.is_empty() {
        check.claims(now);
    }
    if check.findings.is_empty() { Ok(()) } else { Err(check.findings) }
}

struct Check<'a> {
    policy: &'a Policy,
    directory: &'a Directory,
    /// Tags that somebody has or that have owners.
    tags: HashSet<&'a Tag>,
    findings: Vec<Finding>,
}

impl<'a> Check<'a> {
    fn find(&mut self, pointer: String, message: String) {
        self.findings.push(Finding { pointer, message });
    }

    fn names(&mut self, known_keys: &BTreeSet<Label>) {
        for network in self.policy.networks.keys() {
            self.network(network, || format!("/networks/{network}"));
        }
        for (tag, owners) in &self.policy.tag_owners {
            for owner in owners.iter().filter(|owner| !known_keys.contains(*owner)) {
                let hint = hint(owner.as_str(), known_keys.iter().map(Label::as_str));
                self.find(
                    format!("/tagOwners/{tag}/{owner}"),
                    format!("there is no key {owner} in this account{hint}"),
                );
            }
        }
    }

    fn network(&mut self, network: &Label, pointer: impl FnOnce() -> String) {
        if !self.directory.networks.contains_key(network) {
            let hint = hint(network.as_str(), self.directory.networks.keys().map(Label::as_str));
            self.find(pointer(), format!("there is no network {network}{hint}"));
        }
    }

    fn subject(&mut self, subject: &Subject, pointer: impl Fn() -> String) {
        if let Some(network) = subject.network() {
            self.network(network, &pointer);
        }
        if let Subject::Tag(_, tag) = subject
            && !self.tags.contains(tag)
            && tag.as_str() != OPERATOR_TAG
        {
            let hint = hint(tag.as_str(), self.tags.iter().map(|tag| tag.as_str()));
            self.find(pointer(), format!("nobody has the tag {tag}, and tagOwners does not list it{hint}"));
        }
    }

    fn rules(&mut self, now: Timestamp) {
        let mut ids: HashSet<&RuleId> = HashSet::new();
        let policy = self.policy;
        for (list, rules) in [("forbid", &policy.forbid), ("allow", &policy.allow)] {
            for (index, rule) in rules.iter().enumerate() {
                if !ids.insert(&rule.id) {
                    self.find(format!("/{list}/{index}/id"), format!("rule {} is there twice", rule.id));
                }
                self.subject(&rule.from, || format!("/{list}/{index}/from"));
                match &rule.to {
                    Target::Inside(subject) => self.subject(subject, || format!("/{list}/{index}/to")),
                    Target::Outside(pattern) if list == "forbid" && rule.is_in_force(now) => {
                        let open =
                            self.directory.networks.iter().find(|(name, entry)| {
                                entry.egress == Egress::Open && may_mean(&rule.from, name, entry)
                            });
                        if let Some((network, _)) = open {
                            let message = format!(
                                "forbidding {pattern} cannot be enforced: {network} has open egress, where every address \
                                 is reached without its name; close its egress, or forbid the addresses"
                            );
                            self.find(format!("/{list}/{index}/to"), message);
                        }
                    }
                    Target::Outside(_) => {}
                }
            }
        }
    }

    /// Allowing rules that forbidding ones leave nothing of.
    fn contradictions(&mut self, now: Timestamp) {
        let mut by_from: HashMap<&Subject, Vec<&Rule>> = HashMap::new();
        let mut by_range: Vec<&Rule> = Vec::new();
        for rule in self.policy.forbid.iter().filter(|rule| rule.is_in_force(now)) {
            match rule.from {
                Subject::Range(..) => by_range.push(rule),
                _ => by_from.entry(&rule.from).or_default().push(rule),
            }
        }
        if by_from.is_empty() && by_range.is_empty() {
            return;
        }
        for (index, allow) in self.policy.allow.iter().enumerate().filter(|(_, rule)| rule.is_in_force(now)) {
            let whole = allow.from.network().map(|network| Subject::Network(network.clone()));
            let same = by_from.get(&allow.from).into_iter().flatten();
            let wider = whole.iter().filter(|whole| **whole != allow.from);
            let wider = wider.filter_map(|whole| by_from.get(whole)).flatten();
            let ranges = by_range.iter().filter(|rule| holds(&rule.from, &allow.from));
            let outlives = |rule: &Rule| match (rule.expires, allow.expires) {
                (None, _) => true,
                (Some(forbidden), Some(allowed)) => forbidden >= allowed,
                (Some(_), None) => false,
            };
            let over: Vec<&Rule> = same
                .chain(wider)
                .chain(ranges)
                .copied()
                .filter(|rule| target_holds(&rule.to, &allow.to) && outlives(rule))
                .collect();
            if over.is_empty() {
                continue;
            }
            if Protocol::ALL.into_iter().all(|protocol| nothing_left(allow, &over, protocol)) {
                let names: Vec<&str> = over.iter().take(3).map(|rule| rule.id.as_str()).collect();
                let message = format!("rule {} allows nothing: {} forbids all of it", allow.id, names.join(" with "));
                self.findings.push(Finding { pointer: format!("/allow/{index}"), message });
            }
        }
    }

    fn tests(&mut self) {
        let policy = self.policy;
        let ids: HashSet<&RuleId> = policy.rules().map(|(rule, _)| &rule.id).collect();
        for (index, test) in policy.tests.iter().enumerate() {
            self.subject(&test.from, || format!("/tests/{index}/from"));
            if let TestTarget::Inside(subject) = &test.to {
                self.subject(subject, || format!("/tests/{index}/to"));
            }
            if let Some(by) = test.by.as_ref().filter(|by| !by.is_builtin() && !ids.contains(by)) {
                let hint = hint(by.as_str(), ids.iter().map(|id| id.as_str()));
                self.find(format!("/tests/{index}/by"), format!("there is no rule {by}{hint}"));
            }
        }
    }

    fn claims(&mut self, now: Timestamp) {
        for outcome in run_tests(self.policy, self.directory, now).into_iter().filter(|outcome| !outcome.passed) {
            let expected = match outcome.expected {
                Expect::Allow => "allow",
                Expect::Deny => "deny",
            };
            let by = outcome.by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
            let found = match (&outcome.found.rule, outcome.found.allowed) {
                (Some(rule), true) => format!("allowed by {rule}"),
                (Some(rule), false) => format!("denied by {rule}"),
                (None, true) => "allowed".to_owned(),
                (None, false) => "denied".to_owned(),
            };
            let (from, to, port) = (&outcome.from, &outcome.to, &outcome.port);
            let message = format!(
                "test fails: from {from} to {to} on {port} should be {expected}{by}, and is {found} ({})",
                outcome.found.reason
            );
            self.find(format!("/tests/{}", outcome.index), message);
        }
    }
}

fn tags<'a>(policy: &'a Policy, directory: &'a Directory) -> HashSet<&'a Tag> {
    directory.members.iter().flat_map(|member| &member.tags).chain(policy.tag_owners.keys()).collect()
}

/// Whether one subject means everybody that the other can mean.
fn holds(wide: &Subject, narrow: &Subject) -> bool {
    match (wide, narrow) {
        (Subject::Network(network), _) => narrow.network() == Some(network),
        (Subject::Range(None, wide), Subject::Range(_, narrow)) => wide.contains(narrow),
        (Subject::Range(Some(one), wide), Subject::Range(Some(other), narrow)) => one == other && wide.contains(narrow),
        _ => wide == narrow,
    }
}

fn target_holds(wide: &Target, narrow: &Target) -> bool {
    match (wide, narrow) {
        // By which of its addresses a member is meant differs between the two.
        (Target::Inside(Subject::Range(None, _)), Target::Inside(Subject::Range(Some(_), _))) => false,
        (Target::Inside(wide), Target::Inside(narrow)) => holds(wide, narrow),
        (Target::Outside(wide), Target::Outside(narrow)) => match (wide, narrow) {
            (_, HostPattern::Exact(name)) => wide.matches(name),
            (HostPattern::AnyDepth(above), HostPattern::OneLabel(name) | HostPattern::AnyDepth(name)) => {
                above == name || wide.matches(name)
            }
            _ => wide == narrow,
        },
        _ => false,
    }
}

/// Whether the forbidding rules together cover every port of a protocol that the allowing one is about.
fn nothing_left(allow: &Rule, over: &[&Rule], protocol: Protocol) -> bool {
    if over.iter().any(|rule| rule.ports.is_empty()) {
        return true;
    }
    let ranges = |rule: &Rule| -> Vec<PortRange> {
        if rule.ports.is_empty() {
            return vec![PortRange::ALL];
        }
        rule.ports.iter().filter(|ports| ports.protocol == protocol).map(|ports: &Ports| ports.range).collect()
    };
    let mut forbidden: Vec<PortRange> = over.iter().flat_map(|rule| ranges(rule)).collect();
    forbidden.sort_unstable();
    ranges(allow).into_iter().all(|allowed| {
        // Every port in front of this one is forbidden.
        let mut next = u32::from(allowed.first);
        for range in &forbidden {
            if u32::from(range.first) <= next {
                next = next.max(u32::from(range.last) + 1);
            }
        }
        next > u32::from(allowed.last)
    })
}

fn hint<'k>(text: &str, known: impl Iterator<Item = &'k str>) -> String {
    nearest(text, known).map(|near| format!("; did you mean {near}?")).unwrap_or_default()
}
