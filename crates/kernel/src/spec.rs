//! What a network should be on this host, and what it was found to be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ipnet::Ipv6Net;
use warren_model::policy::NetworkRules;
use warren_model::record::Egress;
use warren_model::{MemberNumber, NetworkCidr, NetworkNumber};

use crate::firewall::{MemberSpec, RulesState};

/// The group of `nfnetlink_log` to which the rules of every router namespace log what they refuse.
pub const NFLOG_GROUP: u16 = 5;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSpec {
    pub number: NetworkNumber,
    pub gateway4: Ipv4Addr,
    pub gateway6: Ipv6Addr,
    pub cidr: NetworkCidr,
    pub cidr6: Ipv6Net,
    pub egress: Egress,
    /// What may talk to what, as of the policy in force.
    pub rules: Arc<NetworkRules>,
    /// The addresses that stand for names outside, `UlaPrefix::names(number)`. Those of IPv4 are the same everywhere.
    pub names6: Ipv6Net,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedNetwork {
    /// The gateway's addresses, the router's fixed routes and forwarding are as wanted.
    pub gateway_intact: bool,
    pub rules: RulesState,
    /// The rules and their elements say what the wanted policy says.
    pub policy: bool,
    /// The members whose elements are complete.
    pub admitted: BTreeSet<MemberSpec>,
    /// By the names of the links that are there.
    pub links: BTreeMap<MemberNumber, ObservedLink>,
    /// Whether the operators' device is up and leads to just the admitted members that come by it, by routes and
    /// neighbours; `None` when there is none.
    pub tunnel: Option<bool>,
    /// The networks to whose routers there is a link, and whether this end of it is up and leads to just the ranges
    /// that the rules list; `false` also for one that the rules do not list.
    pub peers: BTreeMap<NetworkNumber, bool>,
    /// Where something may leave: the uplink and the host's rules are whole. In a sealed network: something of an uplink
    /// is there. So it is as wanted when it equals `rules.exits`.
    pub uplink: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedLink {
    /// Both ends are up.
    pub up: bool,
    /// The routes and neighbours on the router's side are there and lead to an admitted member. What the machine did
    /// to its own side is not looked at.
    pub routed: bool,
}

/// Sockets in the router namespace, nonblocking, TCP listening: on port 53 of the gateway, on [`PROXY_PORT`] of the
/// gateway, and transparent ones on [`TRANSPARENT_PORT`], whose connections have the synthetic address as their own.
///
/// They keep the namespace of the network alive until they are closed.
///
/// [`PROXY_PORT`]: crate::PROXY_PORT
/// [`TRANSPARENT_PORT`]: crate::TRANSPARENT_PORT
#[derive(Debug)]
pub struct GatewaySockets {
    pub udp4: OwnedFd,
    pub udp6: OwnedFd,
    pub tcp4: OwnedFd,
    pub tcp6: OwnedFd,
    pub transparent4: OwnedFd,
    pub transparent6: OwnedFd,
    pub proxy4: OwnedFd,
    pub proxy6: OwnedFd,
}
