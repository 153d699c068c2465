//! One flow, one verdict.
//!
//! The order: what is built in and cannot be lifted; rules that forbid; what this host keeps closed; members of one
//! network among each other; the public internet where egress is open; rules that allow; no.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use jiff::Timestamp;

use super::link::{self, Link, links};
use super::protect::{as_sent, protection};
use super::{
    Directory, HostName, Intra, Member, NetworkEntry, Policy, Protocol, Rule, RuleId, Subject, Target, is_global,
};
use crate::name::Label;
use crate::record::Egress;

/// A flow that a member begins.
#[derive(Debug, Clone, Copy)]
pub struct Flow<'a> {
    pub from: &'a Member,
    pub to: Destination<'a>,
    pub protocol: Protocol,
    /// `None` for protocols without ports; with TCP or UDP it asks whether any port is allowed.
    pub port: Option<u16>,
}

/// Where a flow goes.
#[derive(Debug, Clone, Copy)]
pub enum Destination<'a> {
    /// A member of the same network or of another one.
    Member(&'a Member),
    /// An address as the sender sees it. One that a member has is judged like the member.
    Address(IpAddr),
    Name(&'a HostName),
}

/// `network/machine`, the address or the name.
impl fmt::Display for Destination<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member(member) => f.write_str(&member.full_name()),
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// What policy says about a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub allowed: bool,
    /// The rule that decided; `None` when none did and the answer is no.
    pub rule: Option<RuleId>,
    /// A sentence for a person.
    pub reason: String,
}

/// Judges one flow at this instant.
pub fn evaluate(policy: &Policy, directory: &Directory, flow: &Flow<'_>, now: Timestamp) -> Verdict {
    Sender::new(policy, directory, flow.from, now).judge(flow.to, flow.protocol, flow.port)
}

/// The rules that are about one member as the sender: to judge many of its flows.
#[derive(Debug)]
pub struct Sender<'a> {
    directory: &'a Directory,
    from: &'a Member,
    network: Option<&'a NetworkEntry>,
    intra: Intra,
    forbid: Vec<&'a Rule>,
    allow: Vec<&'a Rule>,
    policy: &'a Policy,
    now: Timestamp,
    /// Found when an address is looked up.
    links: OnceCell<BTreeMap<&'a Label, Link<'a>>>,
}

/// A destination, looked up.
#[derive(Debug, Clone, Copy)]
enum Place<'a> {
    Member(&'a Member),
    Gateway,
    /// In a range of a network, but no member has it.
    Nobody(IpAddr),
    Outside(IpAddr),
    Name(&'a HostName),
}

impl<'a> Sender<'a> {
    pub fn new(policy: &'a Policy, directory: &'a Directory, from: &'a Member, now: Timestamp) -> Self {
        let about = |rules: &'a [Rule]| {
            rules.iter().filter(|rule| rule.is_in_force(now) && from.is_meant_by(&rule.from)).collect()
        };
        Self {
            directory,
            from,
            network: directory.networks.get(&from.network),
            intra: policy.intra(&from.network),
            forbid: about(&policy.forbid),
            allow: about(&policy.allow),
            policy,
            now,
            links: OnceCell::new(),
        }
    }

    /// Judges a flow from this member. Without a port, TCP and UDP ask whether any port is allowed.
    pub fn judge(&self, to: Destination<'_>, protocol: Protocol, port: Option<u16>) -> Verdict {
        if let Destination::Address(address) = to
            && let Some(rule) = protection(address)
        {
            let reason = format!("{address} is closed to every machine, whatever the policy says");
            return Verdict { allowed: false, rule: Some(rule), reason };
        }
        let place = self.place(to);
        let about = |rule: &&&Rule| self.is_about(rule, place);
        let forbid: Vec<&Rule> = self.forbid.iter().filter(about).copied().collect();
        let allow: Vec<&Rule> = self.allow.iter().filter(about).copied().collect();
        if port.is_some() || !protocol.has_ports() {
            return self.decide(place, &forbid, &allow, protocol, port);
        }
        let mut refused = None;
        for port in ports_that_differ(forbid.iter().chain(&allow).copied(), protocol, 1, u16::MAX) {
            let verdict = self.decide(place, &forbid, &allow, protocol, Some(port));
            if verdict.allowed {
                return verdict;
            }
            refused.get_or_insert(verdict);
        }
        refused.unwrap_or_else(|| self.decide(place, &forbid, &allow, protocol, None))
    }

    /// The ports in a range at which the answer may change: to judge each is to judge the range.
    pub fn ports_to_try(&self, protocol: Protocol, first: u16, last: u16) -> BTreeSet<u16> {
        ports_that_differ(self.forbid.iter().chain(&self.allow).copied(), protocol, first, last)
    }

    /// The networks that this member's has traffic with, when they are known already.
    pub(super) fn know_links(&self, found: BTreeMap<&'a Label, Link<'a>>) {
        self.links.get_or_init(|| found);
    }

    /// How much is compared to judge one flow of this member: the rules about it, and their port ranges.
    pub(super) fn steps(&self) -> usize {
        self.forbid.iter().chain(&self.allow).map(|rule| 1 + rule.ports.len()).sum()
    }

    fn decide(
        &self,
        place: Place<'_>,
        forbid: &[&Rule],
        allow: &[&Rule],
        protocol: Protocol,
        port: Option<u16>,
    ) -> Verdict {
        let refuse = |rule: Option<RuleId>, reason: String| Verdict { allowed: false, rule, reason };
        let accept = |rule: RuleId, reason: String| Verdict { allowed: true, rule: Some(rule), reason };
        if matches!(place, Place::Name(_)) && protocol != Protocol::Tcp {
            return refuse(None, "a name outside is reached over TCP only".to_owned());
        }
        if let Some(rule) = forbid.iter().find(|rule| rule.covers(protocol, port)) {
            return refuse(Some(rule.id.clone()), said(rule, "forbids"));
        }
        if let Place::Outside(address) = place
            && let Some((rule, reason)) = self.directory.host.closes(address)
        {
            return refuse(Some(rule), reason);
        }
        let own = &self.from.network;
        let open = self.network.is_some_and(|network| network.egress == Egress::Open);
        match place {
            Place::Member(to) if to.network == *own && self.intra == Intra::Allow => {
                return accept(RuleId::builtin("intra"), format!("members of {own} reach each other"));
            }
            Place::Outside(address) if open && is_global(address) => {
                return accept(RuleId::builtin("open-egress"), format!("{own} may reach the public internet"));
            }
            Place::Name(_) if open => {
                return accept(RuleId::builtin("open-egress"), format!("{own} may reach the public internet"));
            }
            Place::Gateway => {
                let served = match protocol {
                    Protocol::Tcp => matches!(port, Some(53 | 3128)),
                    Protocol::Udp => port == Some(53),
                    Protocol::Icmp => true,
                    Protocol::Other => false,
                };
                return if served {
                    accept(RuleId::builtin("gateway"), "the gateway answers names, the proxy and pings".to_owned())
                } else {
                    refuse(
                        Some(RuleId::builtin("host")),
                        "the gateway is the host's: it answers names, the proxy and pings only".to_owned(),
                    )
                };
            }
            Place::Nobody(address) => return refuse(None, format!("no member that {own} reaches has {address}")),
            _ => {}
        }
        if let Some(rule) = allow.iter().find(|rule| rule.covers(protocol, port)) {
            return accept(rule.id.clone(), said(rule, "allows"));
        }
        let place = match place {
            Place::Member(to) => to.full_name(),
            Place::Outside(address) => address.to_string(),
            Place::Name(name) => name.to_string(),
            Place::Gateway => "the gateway".to_owned(),
            Place::Nobody(address) => address.to_string(),
        };
        let port = port.map(|port| format!("/{port}")).unwrap_or_default();
        refuse(None, format!("no rule allows {} to reach {place} on {protocol}{port}", self.from.full_name()))
    }

    /// Whether a rule's `to` means this destination, for this sender.
    pub fn is_meant(&self, to: Destination<'_>, rule: &Rule) -> bool {
        self.is_about(rule, self.place(to))
    }

    /// Whether an address is neither of a network, nor protected, nor the host's own.
    pub(super) fn is_outside(&self, address: IpAddr) -> bool {
        let address = as_sent(address);
        protection(address).is_none()
            && !self.directory.host.is_own(address)
            && matches!(self.find(address), Place::Outside(_))
    }

    /// Whether an address is in a range of a network that this member reaches, and no member has it.
    pub fn is_vacant(&self, address: IpAddr) -> bool {
        protection(address).is_none() && matches!(self.find(as_sent(address)), Place::Gateway | Place::Nobody(_))
    }

    fn place<'d>(&self, to: Destination<'d>) -> Place<'d>
    where
        'a: 'd,
    {
        match to {
            Destination::Member(member) => Place::Member(member),
            Destination::Name(name) => Place::Name(name),
            Destination::Address(address) => self.find(as_sent(address)),
        }
    }

    /// Who is at an address that is not protected, as this sender sees it.
    fn find(&self, address: IpAddr) -> Place<'a> {
        let Some(network) = self.network else { return Place::Outside(address) };
        if let Some(member) = self.directory.at(&self.from.network, address) {
            return Place::Member(member);
        }
        match address {
            IpAddr::V4(four) => {
                if four == network.cidr.gateway() {
                    return Place::Gateway;
                }
                let links = self.links.get_or_init(|| links(self.policy, self.directory, &self.from.network, self.now));
                let link = links.iter().find(|(_, link)| link.ipv4 && link.entry.cidr.contains(four));
                match link {
                    _ if network.cidr.contains(four) => Place::Nobody(address),
                    Some((name, _)) => self.directory.at(name, address).map_or(Place::Nobody(address), Place::Member),
                    None => Place::Outside(address),
                }
            }
            IpAddr::V6(six) => {
                if six == gateway6(network) {
                    return Place::Gateway;
                }
                if let Some(member) = self.directory.members.iter().find(|member| member.ipv6 == six) {
                    return Place::Member(member);
                }
                let inside = link::installation(network).contains(&six)
                    || self.directory.networks.values().any(|entry| entry.cidr6.contains(&six));
                if inside { Place::Nobody(address) } else { Place::Outside(address) }
            }
        }
    }

    fn is_about(&self, rule: &Rule, place: Place<'_>) -> bool {
        match (&rule.to, place) {
            (Target::Inside(subject), Place::Member(member)) => self.means(subject, member),
            (Target::Inside(Subject::Range(None, range)), Place::Outside(address) | Place::Nobody(address)) => {
                range.contains(&address)
            }
            (Target::Outside(pattern), Place::Name(name)) => pattern.matches(name),
            _ => false,
        }
    }

    /// Whether a subject as destination means this member.
    pub(super) fn means(&self, subject: &Subject, member: &Member) -> bool {
        if member.network != self.from.network
            && let (Some(here), Some(there)) = (self.network, self.directory.networks.get(&member.network))
            && link::is_hidden(subject, there, here)
        {
            return false;
        }
        member.is_meant_by(subject)
    }
}

/// The gateway's IPv6 address: member number 1 of the network's range.
fn gateway6(network: &NetworkEntry) -> std::net::Ipv6Addr {
    std::net::Ipv6Addr::from(u128::from(network.cidr6.network()) | 1)
}

fn said(rule: &Rule, verb: &str) -> String {
    match &rule.reason {
        Some(reason) => format!("rule {} {verb} it: {reason}", rule.id),
        None => format!("rule {} {verb} it", rule.id),
    }
}

fn ports_that_differ<'a>(
    rules: impl Iterator<Item = &'a Rule>,
    protocol: Protocol,
    first: u16,
    last: u16,
) -> BTreeSet<u16> {
    let ranges = rules.flat_map(|rule| &rule.ports).filter(|ports| ports.protocol == protocol).map(|ports| ports.range);
    let edges = ranges.flat_map(|range| [Some(range.first), range.last.checked_add(1)]).flatten();
    std::iter::once(first).chain(edges.filter(|port| (first..=last).contains(port))).collect()
}
