//! The rules of one network in the form that the kernel and the edge take. Independent of nftables.
//!
//! Members that no rule tells apart are one *group*; a group has a number that follows from what the rules say about
//! it, so that an unrelated change leaves it as it is. Ranges outside are cut into disjoint pieces, each in a *class*.
//! What is compiled are the **exceptions** from what the network does by itself.

mod group;
mod inside;
mod names;
mod outside;
mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use self::group::{Draft, Ruling};
pub use self::names::NameDecision;
use self::traffic::Traffic;
use super::link::{self, Link, links};
use super::{Application, Directory, HostPattern, Intra, NetworkEntry, Policy, PortRange, Ports, RuleId};
use crate::address::NetworkNumber;
use crate::name::Label;
use crate::record::Egress;

/// Members, or addresses outside, that no rule tells apart. Never 0: that is who is in no group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Group(pub u32);

/// What the network's rules do with a flow that no exception is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Default {
    Accept,
    Refuse,
}

/// IP protocols that the rules tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Carrier {
    Tcp,
    Udp,
    /// ICMP and ICMPv6.
    Icmp,
    /// Every other protocol.
    Other,
}

/// A flow that is not treated by default. Exceptions of the same groups and carrier never overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Exception {
    pub from: Group,
    pub to: Group,
    pub carrier: Carrier,
    /// All ports for a carrier without ports.
    pub ports: PortRange,
}

/// Everything that the data plane of one network needs to know of the policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRules {
    /// What members do among each other; `Accept` without exceptions and without links is the fast path.
    pub inside: Default,
    /// What goes to the public internet by address; `Accept` when egress is open.
    pub outside: Default,
    /// The groups of this network's members, and of members of linked networks, by each of their addresses.
    pub groups: BTreeMap<IpAddr, Group>,
    /// Disjoint ranges outside that rules name. What is in none of them is in [`OUTSIDE`].
    pub classes: BTreeMap<IpNet, Group>,
    /// From a member's group to a member's group: the opposite of `inside`. To a class: the opposite of `outside`. To a
    /// group of another network: always allowed, since nothing is by default.
    pub exceptions: BTreeSet<Exception>,
    /// Networks with which traffic is allowed in either direction, and the ranges by which they are reached: without
    /// the IPv4 range where it overlaps with this network's or another link's, or this network's with another link of
    /// theirs.
    pub links: BTreeMap<NetworkNumber, Vec<IpNet>>,
    /// Something may leave through the kernel: egress is open, or a rule allows a range outside.
    pub exits: bool,
    /// Ranges outside that are not the public internet and that a rule allows all the same.
    pub private_exits: BTreeSet<IpNet>,
    /// What each group may reach by name. A group without names is absent.
    pub names: BTreeMap<Group, Vec<NameRule>>,
}

impl NetworkRules {
    /// What a network does of which no policy says anything: members reach each other, and the public internet if
    /// egress is open.
    pub fn unrestricted(egress: crate::record::Egress) -> Self {
        let open = egress == crate::record::Egress::Open;
        Self {
            inside: Default::Accept,
            outside: if open { Default::Accept } else { Default::Refuse },
            groups: BTreeMap::new(),
            classes: BTreeMap::new(),
            exceptions: BTreeSet::new(),
            links: BTreeMap::new(),
            exits: open,
            private_exits: BTreeSet::new(),
            names: BTreeMap::new(),
        }
    }
}

/// The class of every address outside that no rule names.
pub const OUTSIDE: Group = Group(1);

/// A rule about a name outside, allowing or forbidding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameRule {
    pub id: RuleId,
    pub forbid: bool,
    pub pattern: HostPattern,
    /// Empty: every TCP port.
    pub ports: Vec<Ports>,
    pub application: Option<Application>,
}

/// How many exceptions one network may have, and how many rules about names its groups may have together.
pub const MAX_EXCEPTIONS: usize = 200_000;

/// How much may be looked at before the rules count as too many: keeps the time of a compilation bounded.
const MAX_STEPS: usize = 20_000_000;

/// Why the rules of a network cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    #[error("there is no network {0}")]
    UnknownNetwork(Label),
    #[error(
        "the rules of network {network} come to more than {MAX_EXCEPTIONS} entries: {rule} alone stands for {count} of \
         them; name machines by tag instead of one by one, or narrow that rule"
    )]
    TooMany {
        network: Label,
        /// The rule that expands most.
        rule: RuleId,
        /// How many pairs of groups, or pieces of ranges, it stands for.
        count: usize,
    },
}

/// Compiles what the policy says about one network at this instant.
pub fn compile(
    policy: &Policy,
    directory: &Directory,
    network: &Label,
    now: Timestamp,
) -> Result<NetworkRules, CompileError> {
    let own = directory.networks.get(network).ok_or_else(|| CompileError::UnknownNetwork(network.clone()))?;
    let links = links(policy, directory, network, now);
    let inside = match policy.intra(network) {
        Intra::Allow => Default::Accept,
        Intra::Deny => Default::Refuse,
    };
    let outside = match own.egress {
        Egress::Open => Default::Accept,
        Egress::Deny => Default::Refuse,
    };
    let mut work = Work::new(network);
    let scene = Scene { policy, directory, network, own, links, inside, outside, now };
    let mut draft = Draft::new(&scene, &mut work)?;
    let mut exceptions = Exceptions::default();
    inside::compile(&scene, &draft, &mut exceptions, &mut work)?;
    let cut = outside::compile(&scene, &mut draft, &mut exceptions, &mut work)?;
    let names = names::compile(&scene, &draft, &mut work)?;
    let bare = exceptions.all.is_empty() && names.is_empty();
    Ok(NetworkRules {
        inside,
        outside,
        groups: if bare { BTreeMap::new() } else { draft.addresses(&scene) },
        classes: cut.classes,
        exceptions: exceptions.all,
        links: scene
            .links
            .values()
            .map(|link| {
                let four = link.ipv4.then(|| IpNet::V4(link.entry.cidr.net()));
                (link.entry.number, four.into_iter().chain([IpNet::V6(link.entry.cidr6)]).collect())
            })
            .collect(),
        exits: outside == Default::Accept || cut.exits,
        private_exits: cut.private_exits,
        names,
    })
}

/// What is compiled, and for whom.
struct Scene<'a> {
    policy: &'a Policy,
    directory: &'a Directory,
    network: &'a Label,
    own: &'a NetworkEntry,
    links: BTreeMap<&'a Label, Link<'a>>,
    inside: Default,
    outside: Default,
    now: Timestamp,
}

#[derive(std::default::Default)]
struct Exceptions {
    all: BTreeSet<Exception>,
}

impl Exceptions {
    fn add(&mut self, from: Group, to: Group, traffic: &Traffic, work: &Work<'_>) -> Result<(), CompileError> {
        self.all.extend(traffic.ranges().map(|(carrier, ports)| Exception { from, to, carrier, ports }));
        if self.all.len() > MAX_EXCEPTIONS { Err(work.too_many()) } else { Ok(()) }
    }
}

/// Counts what was done, and for which rule most.
struct Work<'a> {
    network: &'a Label,
    left: usize,
    widest: Option<(usize, &'a RuleId)>,
}

impl<'a> Work<'a> {
    fn new(network: &'a Label) -> Self {
        Self { network, left: MAX_STEPS, widest: None }
    }

    /// A rule stands for this many pairs of groups.
    fn expands(&mut self, rule: &'a RuleId, pairs: usize) -> Result<(), CompileError> {
        if self.widest.is_none_or(|(most, _)| pairs > most) {
            self.widest = Some((pairs, rule));
        }
        self.spend(pairs)
    }

    fn spend(&mut self, steps: usize) -> Result<(), CompileError> {
        match self.left.checked_sub(steps) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(self.too_many()),
        }
    }

    fn too_many(&self) -> CompileError {
        let (count, rule) = match self.widest {
            Some((count, rule)) => (count, rule.clone()),
            None => (0, RuleId::builtin("policy")),
        };
        CompileError::TooMany { network: self.network.clone(), rule, count }
    }
}
