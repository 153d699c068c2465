//! Which networks traffic is allowed between, and by which addresses.

use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv6Net};
use jiff::Timestamp;

use super::{Directory, NetworkEntry, Policy, Subject, Target};
use crate::name::Label;

/// Another network with which traffic is allowed in one direction at least.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link<'a> {
    pub entry: &'a NetworkEntry,
    /// It is reached by its IPv4 range, too: that overlaps neither with this network's nor with another link's.
    pub ipv4: bool,
}

/// The networks with which this one has traffic, as far as rules alone say: who is a member makes no difference.
pub(super) fn links<'a>(
    policy: &Policy,
    directory: &'a Directory,
    network: &Label,
    now: Timestamp,
) -> BTreeMap<&'a Label, Link<'a>> {
    let Some(own) = directory.networks.get(network) else { return BTreeMap::new() };
    let mut found: BTreeMap<&Label, &NetworkEntry> = BTreeMap::new();
    for rule in policy.allow.iter().filter(|rule| rule.is_in_force(now)) {
        let Target::Inside(to) = &rule.to else { continue };
        let out = may_mean(&rule.from, network, own);
        let comes = may_mean(to, network, own);
        if !out && !comes {
            continue;
        }
        let mut consider = |name: &'a Label, entry: &'a NetworkEntry| {
            let there = out && may_be_reached(to, name, entry, own);
            let back = comes && may_mean(&rule.from, name, entry) && may_be_reached(to, network, own, entry);
            if name != network && (there || back) {
                found.insert(name, entry);
            }
        };
        // A rule that names its networks is about those alone.
        match (named(&rule.from), named(to)) {
            (Some(from), Some(to)) => {
                for name in [from, to] {
                    if let Some((name, entry)) = directory.networks.get_key_value(name) {
                        consider(name, entry);
                    }
                }
            }
            _ => directory.networks.iter().for_each(|(name, entry)| consider(name, entry)),
        }
    }
    found
        .iter()
        .map(|(name, entry)| {
            let others = found.iter().filter(|(other, _)| *other != name).map(|(_, entry)| *entry);
            let ipv4 = !std::iter::once(own).chain(others).any(|other| overlap(entry, other));
            (*name, Link { entry, ipv4 })
        })
        .collect()
}

/// Whether two networks share an IPv4 address.
pub(super) fn overlap(one: &NetworkEntry, other: &NetworkEntry) -> bool {
    one.cidr.overlaps(other.cidr.net())
}

/// Whether a subject can mean a member of this network.
pub(super) fn may_mean(subject: &Subject, name: &Label, entry: &NetworkEntry) -> bool {
    match subject {
        Subject::Network(network) | Subject::Tag(network, _) | Subject::Machine(network, _) => network == name,
        Subject::Range(network, range) => {
            network.as_ref().is_none_or(|network| network == name)
                && (intersect(*range, IpNet::V4(entry.cidr.net())) || intersect(*range, IpNet::V6(entry.cidr6)))
        }
    }
}

/// The network that a subject names; `None` for a range in whatever network.
pub(super) fn named(subject: &Subject) -> Option<&Label> {
    match subject {
        Subject::Network(network) | Subject::Tag(network, _) | Subject::Machine(network, _) => Some(network),
        Subject::Range(network, _) => network.as_ref(),
    }
}

/// Whether a range as destination means a member of another network by its IPv4 address: not where the sender has that
/// range itself.
pub(super) fn is_hidden(subject: &Subject, there: &NetworkEntry, sender: &NetworkEntry) -> bool {
    matches!(subject, Subject::Range(None, IpNet::V4(_))) && overlap(there, sender)
}

/// The installation's whole range (RFC 4193 /48) that a network's IPv6 range is a part of.
pub(super) fn installation(entry: &NetworkEntry) -> Ipv6Net {
    let prefix = entry.cidr6.prefix_len().min(48);
    Ipv6Net::new(entry.cidr6.network(), prefix).map(|range| range.trunc()).unwrap_or(entry.cidr6)
}

pub(super) fn intersect(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}

fn may_be_reached(to: &Subject, name: &Label, entry: &NetworkEntry, sender: &NetworkEntry) -> bool {
    may_mean(to, name, entry) && !is_hidden(to, entry, sender)
}
