//! The rules of one network in the form that the kernel and the edge take. Independent of nftables.
//!
//! Members that no rule tells apart are one *group*; a group has a number that follows from what the rules say about
//! it, so that an unrelated change leaves it as it is. Ranges outside are cut into disjoint pieces, each in a *class*.
//! What is compiled are the **exceptions** from what the network does by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Application, Directory, HostPattern, PortRange, Policy, Ports, RuleId};
use crate::address::NetworkNumber;
use crate::name::Label;

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
    /// the IPv4 range where it overlaps with this network's or another link's.
    pub links: BTreeMap<NetworkNumber, Vec<IpNet>>,
    /// Something may leave through the kernel: egress is open, or a rule allows a range outside.
    pub exits: bool,
    /// Ranges outside that are not the public internet and that a rule allows all the same.
    pub private_exits: BTreeSet<IpNet>,
    /// What each group may reach by name. A group without names is absent.
    pub names: BTreeMap<Group, Vec<NameRule>>,
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
