//! What a network should be on this host, and what it was found to be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use ipnet::Ipv6Net;
use warren_model::record::Egress;
use warren_model::{MemberNumber, NetworkCidr, NetworkNumber};

use crate::firewall::{MemberSpec, RulesState};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSpec {
    pub number: NetworkNumber,
    pub gateway4: Ipv4Addr,
    pub gateway6: Ipv6Addr,
    pub cidr: NetworkCidr,
    pub cidr6: Ipv6Net,
    pub egress: Egress,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedNetwork {
    /// The gateway's addresses, the router's fixed routes and forwarding are as wanted.
    pub gateway_intact: bool,
    pub rules: RulesState,
    /// The members whose elements are complete.
    pub admitted: BTreeSet<MemberSpec>,
    /// By the names of the links that are there.
    pub links: BTreeMap<MemberNumber, ObservedLink>,
    /// In an open network: the uplink and the host's rules are whole. In a sealed one: something of an uplink is there.
    /// So it is as wanted when it equals `egress == Open`.
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

/// Sockets on port 53 of a gateway, nonblocking, TCP listening.
///
/// They keep the namespace of the network alive until they are closed.
#[derive(Debug)]
pub struct GatewaySockets {
    pub udp4: OwnedFd,
    pub udp6: OwnedFd,
    pub tcp4: OwnedFd,
    pub tcp6: OwnedFd,
}
