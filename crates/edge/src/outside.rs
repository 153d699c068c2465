//! What a network's policy says about names outside: an immutable snapshot.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use warren_model::policy::{
    self, Application, Destination, Flow, Group, HostName, HostPattern, Member, NameRule, Ports, Protocol, Rule, RuleId,
};
use warren_model::{AccountId, Label, MemberId, NetworkId, NetworkNumber};

use crate::change::NetworkChange;
use crate::denials::Refusal;
use crate::view::NetworkView;

/// The most labels that a name may have in front of what a wildcard names.
const WILDCARD_LABELS: usize = 8;
/// The longest name that a wildcard matches, in bytes.
const WILDCARD_LENGTH: usize = 128;

/// The built-in rule of these bounds.
const WILDCARD_LIMIT: &str = "wildcard-limit";

/// Who is in a network, and what each of them may reach by name.
#[derive(Debug)]
#[cfg_attr(test, derive(PartialEq))]
pub(crate) struct Outside {
    pub account: AccountId,
    pub network: NetworkId,
    pub number: NetworkNumber,
    pub name: Label,
    /// Names are looked up as they are and reached through the kernel; only `forbid` rules matter.
    pub open: bool,
    /// Who is asked for names that a rule allows, in order of preference.
    pub resolvers: Arc<[SocketAddr]>,
    gateways: [IpAddr; 2],
    members: HashMap<IpAddr, Arc<Member>>,
    machines: HashSet<MemberId>,
    groups: HashMap<IpAddr, Group>,
    rules: Arc<HashMap<Group, Rules>>,
}

/// The rules of one group, found by the name that a pattern ends in: however many there are, a name is compared with few.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(PartialEq))]
struct Rules(HashMap<String, Listed>);

/// Rules whose patterns end in the same name, in the order of the policy.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(PartialEq))]
struct Listed {
    /// The place of each among all the group's rules.
    places: Vec<usize>,
    rules: Vec<NameRule>,
}

/// What policy says about one connection, or about a name as such.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decision {
    pub allowed: bool,
    /// The rule that decided; `None` when none did and the answer is no.
    pub rule: Option<RuleId>,
    /// What is to be spoken; of no meaning in a refusal.
    pub application: Application,
    /// A sentence for a person.
    pub reason: String,
}

impl Outside {
    pub fn build(view: &NetworkView) -> Self {
        let mut members = HashMap::with_capacity(view.members.len() * 2);
        for member in &view.members {
            let member = Arc::new(member.clone());
            members.insert(IpAddr::V4(member.ipv4), member.clone());
            members.insert(IpAddr::V6(member.ipv6), member);
        }
        Self {
            account: view.account,
            network: view.network,
            number: view.number,
            name: view.name.clone(),
            open: !view.forward.is_empty(),
            resolvers: view.resolvers.as_slice().into(),
            gateways: [view.gateway4.into(), view.gateway6.into()],
            members,
            machines: view.members.iter().map(|member| member.id).collect(),
            groups: view.groups.iter().map(|(address, group)| (*address, *group)).collect(),
            rules: Arc::new(view.rules.iter().map(|(group, rules)| (*group, Rules::index(rules))).collect()),
        }
    }

    /// The same network after a change of who is in it.
    pub fn changed(&self, change: &NetworkChange) -> Self {
        let (mut members, mut machines, mut groups) =
            (self.members.clone(), self.machines.clone(), self.groups.clone());
        for left in &change.left {
            members.remove(&IpAddr::V4(left.ipv4));
            members.remove(&IpAddr::V6(left.ipv6));
            machines.remove(&left.id);
        }
        for member in &change.joined {
            let member = Arc::new(member.clone());
            machines.insert(member.id);
            members.insert(IpAddr::V4(member.ipv4), member.clone());
            members.insert(IpAddr::V6(member.ipv6), member);
        }
        for (address, group) in &change.groups {
            match group {
                Some(group) => groups.insert(*address, *group),
                None => groups.remove(address),
            };
        }
        Self {
            name: self.name.clone(),
            resolvers: self.resolvers.clone(),
            rules: self.rules.clone(),
            members,
            machines,
            groups,
            ..*self
        }
    }

    /// The member with this address.
    pub fn member(&self, source: IpAddr) -> Option<&Member> {
        self.members.get(&source.to_canonical()).map(AsRef::as_ref)
    }

    pub fn is_member(&self, machine: MemberId) -> bool {
        self.machines.contains(&machine)
    }

    /// Everybody who is in the network.
    pub fn machines(&self) -> impl Iterator<Item = MemberId> {
        self.machines.iter().copied()
    }

    /// Whether the resolver answers this address: a member's, or the gateway's own, which only somebody on the host
    /// can have.
    pub fn may_ask(&self, source: IpAddr) -> bool {
        let source = source.to_canonical();
        self.members.contains_key(&source) || self.gateways.contains(&source)
    }

    /// Whether a TCP connection from this address to this name and port is allowed; without a port, whether one to any
    /// port could be.
    pub fn decide(&self, source: IpAddr, host: &HostName, port: Option<u16>) -> Decision {
        let Some(member) = self.member(source) else {
            return Decision::refused(None, format!("{source} is not a member of {}", self.name));
        };
        let rules = self.rules_about(source, host);
        let mut decision = NameRule::decide(&rules, host, port);
        if self.open && port.is_none() {
            // Where nothing needs to be allowed, a name is out of reach only when it is forbidden on every port.
            decision.rule = rules.iter().find(|rule| forbids_every_port(rule, host)).map(|rule| rule.id.clone());
        }
        if let (false, Some(rule)) = (decision.allowed, decision.rule.as_ref()) {
            return Decision::refused(Some(rule.clone()), format!("rule {rule} forbids it"));
        }
        if self.open {
            return Decision {
                allowed: true,
                rule: Some(RuleId::builtin("open-egress")),
                application: Application::Tcp,
                reason: format!("{} may reach the public internet", self.name),
            };
        }
        let Some(rule) = decision.rule.filter(|_| decision.allowed) else {
            let from = format!("{}/{}", self.name, member.name);
            let port = port.map(|port| format!(" on tcp/{port}")).unwrap_or_default();
            return Decision::refused(None, format!("no rule allows {from} to reach {host}{port}"));
        };
        if let Some(pattern) = only_wildcard(&rules, host) {
            let below = host.labels().count().saturating_sub(pattern.name().labels().count());
            if host.as_str().len() > WILDCARD_LENGTH || below > WILDCARD_LABELS {
                let reason = format!(
                    "{pattern} of rule {rule} is about names of at most {WILDCARD_LENGTH} bytes with at most \
                     {WILDCARD_LABELS} more labels"
                );
                return Decision::refused(Some(RuleId::builtin(WILDCARD_LIMIT)), reason);
            }
        }
        let by_port = || port.map_or(Application::Tcp, Application::by_port);
        Decision {
            allowed: true,
            reason: format!("rule {rule} allows it"),
            rule: Some(rule),
            application: decision.application.unwrap_or_else(by_port),
        }
    }

    /// Whether a wildcard allows this name and no rule names it: then what a machine could say by choosing names is
    /// bounded.
    pub fn is_by_wildcard(&self, source: IpAddr, host: &HostName) -> bool {
        only_wildcard(&self.rules_about(source, host), host).is_some()
    }

    /// The same network without members and rules: nobody may do anything.
    pub fn emptied(&self) -> Self {
        Self {
            name: self.name.clone(),
            open: false,
            resolvers: Arc::default(),
            members: HashMap::new(),
            machines: HashSet::new(),
            groups: HashMap::new(),
            rules: Arc::default(),
            ..*self
        }
    }

    /// Whether there is any rule about names for this address.
    pub fn has_rules(&self, source: IpAddr) -> bool {
        self.rules_of(source).is_some_and(|rules| !rules.0.is_empty())
    }

    fn rules_of(&self, source: IpAddr) -> Option<&Rules> {
        self.rules.get(self.groups.get(&source.to_canonical())?)
    }

    fn rules_about(&self, source: IpAddr, host: &HostName) -> Cow<'_, [NameRule]> {
        self.rules_of(source).map_or(Cow::Borrowed(&[]), |rules| rules.about(host))
    }

    /// The rule that would allow what was refused; `None` where no rule can: what a rule forbids, and what is built in
    /// except the bounds of wildcards, which do not hold for a name that a rule names.
    pub fn suggest(&self, refusal: &Refusal) -> Option<Rule> {
        let from = self.member(refusal.source)?;
        let can_help = |rule: &RuleId| *rule == RuleId::builtin(WILDCARD_LIMIT);
        if !refusal.rule.as_ref().is_none_or(can_help) {
            return None;
        }
        let name = refusal.name.as_ref().and_then(|name| name.parse::<HostName>().ok());
        let to = match (&name, refusal.to) {
            (Some(name), _) => Destination::Name(name),
            (None, Some(address)) if refusal.name.is_none() => Destination::Address(address),
            _ => return None,
        };
        policy::suggest(&Flow { from, to, protocol: Protocol::Tcp, port: refusal.port })
    }
}

impl Rules {
    fn index(rules: &[NameRule]) -> Self {
        let mut by_name: HashMap<String, Listed> = HashMap::new();
        for (place, rule) in rules.iter().enumerate() {
            let listed = by_name.entry(rule.pattern.name().as_str().to_owned()).or_default();
            listed.places.push(place);
            listed.rules.push(rule.clone());
        }
        Self(by_name)
    }

    /// At least the rules whose pattern matches this name, in the order of the policy.
    fn about(&self, host: &HostName) -> Cow<'_, [NameRule]> {
        let parents = std::iter::successors(Some(host.as_str()), |name| Some(name.split_once('.')?.1));
        let found: Vec<&Listed> = parents.filter_map(|name| self.0.get(name)).collect();
        match found[..] {
            [] => Cow::Borrowed(&[]),
            [one] => Cow::Borrowed(&one.rules),
            _ => {
                let all = found.iter().flat_map(|listed| listed.places.iter().zip(&listed.rules));
                let mut all: Vec<_> = all.collect();
                all.sort_unstable_by_key(|(place, _)| **place);
                all.into_iter().map(|(_, rule)| rule.clone()).collect()
            }
        }
    }
}

/// The wildcard that allows a name, when no rule names it.
fn only_wildcard<'a>(rules: &'a [NameRule], host: &HostName) -> Option<&'a HostPattern> {
    let allowing = || rules.iter().filter(|rule| !rule.forbid && rule.pattern.matches(host));
    let named = allowing().any(|rule| !rule.pattern.is_wildcard());
    allowing().map(|rule| &rule.pattern).find(|_| !named)
}

fn forbids_every_port(rule: &NameRule, host: &HostName) -> bool {
    let whole =
        |ports: &Ports| ports.protocol == Protocol::Tcp && ports.range.first <= 1 && ports.range.last == u16::MAX;
    rule.forbid && rule.pattern.matches(host) && (rule.ports.is_empty() || rule.ports.iter().any(whole))
}

impl Decision {
    pub fn refused(rule: Option<RuleId>, reason: String) -> Self {
        Self { allowed: false, rule, application: Application::Tcp, reason }
    }
}

#[cfg(test)]
#[path = "outside_tests.rs"]
mod tests;
