//! Rules about names, per group.

use std::collections::{BTreeMap, BTreeSet};

use super::{CompileError, Draft, Group, MAX_EXCEPTIONS, NameRule, Scene, Work};
use crate::policy::{Application, HostName, Protocol, RuleId, Target};

/// What rules about names say of one connection or question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameDecision {
    pub allowed: bool,
    /// The rule that decided; `None` when no rule is about it.
    pub rule: Option<RuleId>,
    /// What the rule says is spoken; `None` when it leaves that to the port.
    pub application: Option<Application>,
}

impl NameRule {
    /// Judges a TCP connection to a name; without a port, a question for the name: whether any port is allowed.
    pub fn decide(rules: &[NameRule], host: &HostName, port: Option<u16>) -> NameDecision {
        let about: Vec<&NameRule> = rules.iter().filter(|rule| rule.pattern.matches(host)).collect();
        if let Some(port) = port {
            return at_port(&about, port);
        }
        // The answer changes at the edges of ranges only.
        let ranges = about.iter().flat_map(|rule| &rule.ports).map(|ports| ports.range);
        let edges = ranges.flat_map(|range| [Some(range.first), range.last.checked_add(1)]).flatten();
        let ports: BTreeSet<u16> = std::iter::once(1).chain(edges.filter(|port| *port > 0)).collect();
        let mut refused = None;
        for port in ports {
            let decision = at_port(&about, port);
            if decision.allowed {
                return decision;
            }
            if decision.rule.is_some() {
                refused.get_or_insert(decision);
            }
        }
        refused.unwrap_or_else(NameDecision::nothing)
    }

    fn covers(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.iter().any(|ports| ports.cover(Protocol::Tcp, Some(port)))
    }
}

impl NameDecision {
    fn nothing() -> Self {
        Self { allowed: false, rule: None, application: None }
    }

    fn by(rule: &NameRule) -> Self {
        Self { allowed: !rule.forbid, rule: Some(rule.id.clone()), application: rule.application }
    }
}

/// The rules of each group of the network, the forbidding ones first. Where egress is open nothing needs to be allowed,
/// so that only forbidding rules are there.
pub(super) fn compile<'a>(
    scene: &Scene<'a>,
    draft: &Draft<'a>,
    work: &mut Work<'a>,
) -> Result<BTreeMap<Group, Vec<NameRule>>, CompileError> {
    let mut names: BTreeMap<Group, Vec<NameRule>> = BTreeMap::new();
    let mut count = 0;
    for ruling in &draft.rules {
        let Target::Outside(pattern) = &ruling.rule.to else { continue };
        if scene.outside == super::Default::Accept && !ruling.forbid {
            continue;
        }
        work.expands(&ruling.rule.id, ruling.from.own.len())?;
        count += ruling.from.own.len();
        if count > MAX_EXCEPTIONS {
            return Err(work.too_many());
        }
        for group in &ruling.from.own {
            names.entry(draft.groups[*group as usize].number).or_default().push(NameRule {
                id: ruling.rule.id.clone(),
                forbid: ruling.forbid,
                pattern: pattern.clone(),
                ports: ruling.rule.ports.clone(),
                application: ruling.rule.application,
            });
        }
    }
    Ok(names)
}

fn at_port(about: &[&NameRule], port: u16) -> NameDecision {
    let covers = |rule: &&&NameRule| rule.covers(port);
    let forbids = about.iter().filter(|rule| rule.forbid).find(covers);
    let decides = forbids.or_else(|| about.iter().filter(|rule| !rule.forbid).find(covers));
    decides.map_or_else(NameDecision::nothing, |rule| NameDecision::by(rule))
}
