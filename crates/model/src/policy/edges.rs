//! The addresses at which answers may change.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::global::not_global;
use super::link::installation;
use super::{Directory, Policy, Subject, Target, protected_ranges};

/// The addresses in a range at which the answer may change, whoever sends and as far as it is nobody's address: to judge
/// each is to judge the range. The first address of the range is among them.
pub fn edges(policy: &Policy, directory: &Directory, range: IpNet) -> BTreeSet<IpAddr> {
    let named = policy.rules().filter_map(|(rule, _)| match &rule.to {
        Target::Inside(Subject::Range(None, named)) => Some(*named),
        _ => None,
    });
    let networks = directory.networks.values();
    let networks = networks
        .flat_map(|entry| [IpNet::V4(entry.cidr.net()), IpNet::V6(entry.cidr6), IpNet::V6(installation(entry))]);
    let protected = protected_ranges().iter().map(|(range, _)| *range);
    let special = protected.chain(not_global().iter().copied()).chain(directory.host.parts());
    let parts = named.chain(networks).chain(special).filter(|part| range.contains(part));
    let edges = parts.flat_map(|part| [Some(part.network()), following(part.broadcast())]).flatten();
    std::iter::once(range.network()).chain(edges).filter(|address| range.contains(address)).collect()
}

/// The next address.
pub fn following(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(four) => u32::from(four).checked_add(1).map(|next| IpAddr::V4(Ipv4Addr::from(next))),
        IpAddr::V6(six) => u128::from(six).checked_add(1).map(|next| IpAddr::V6(Ipv6Addr::from(next))),
    }
}
