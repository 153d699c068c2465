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
    /// Each is reached from the other by its IPv4 range, too: the two do not overlap, and neither overlaps another
    /// network with which the other one has traffic. Both ends say the same, so what one sends the other one knows.
    pub ipv4: bool,
}

type Named<'a> = (&'a Label, &'a NetworkEntry);

/// The networks with which this one has traffic, as far as rules alone say: who is a member makes no difference.
pub(super) fn links<'a>(
    policy: &Policy,
    directory: &'a Directory,
    network: &Label,
    now: Timestamp,
) -> BTreeMap<&'a Label, Link<'a>> {
    let Some(own) = directory.networks.get_key_value(network) else { return BTreeMap::new() };
    let mut found: BTreeMap<&Label, &NetworkEntry> = BTreeMap::new();
    for (from, to) in among_members(policy, now) {
        let (out, comes) = (may_mean(from, own.0, own.1), may_mean(to, own.0, own.1));
        if !out && !comes {
            continue;
        }
        let mut consider = |other: Named<'a>| {
            let there = out && may_be_reached(to, other, own);
            let back = comes && may_mean(from, other.0, other.1) && may_be_reached(to, own, other);
            if other.0 != network && (there || back) {
                found.insert(other.0, other.1);
            }
        };
        // A rule that names its networks is about those alone.
        match (from.network(), to.network()) {
            (Some(from), Some(to)) => {
                [from, to].into_iter().filter_map(|name| directory.networks.get_key_value(name)).for_each(consider);
            }
            _ => directory.networks.iter().for_each(&mut consider),
        }
    }
    let by_ipv4 = by_ipv4(policy, directory, own, &found, now);
    found.into_iter().map(|(name, entry)| (name, Link { entry, ipv4: by_ipv4.contains_key(name) })).collect()
}

/// Those of the linked networks with which traffic by IPv4 is clear to both ends.
fn by_ipv4<'a>(
    policy: &Policy,
    directory: &'a Directory,
    own: Named<'a>,
    linked: &BTreeMap<&'a Label, &'a NetworkEntry>,
    now: Timestamp,
) -> BTreeMap<&'a Label, &'a NetworkEntry> {
    let clear_here = |name: &Label, entry: &NetworkEntry| {
        let others = linked.iter().filter(|(other, _)| **other != name).map(|(_, entry)| *entry);
        !std::iter::once(own.1).chain(others).any(|other| overlap(entry, other))
    };
    let mut left: BTreeMap<&Label, &NetworkEntry> =
        linked.iter().filter(|(name, entry)| clear_here(name, entry)).map(|(name, entry)| (*name, *entry)).collect();
    // A network with which one of these has traffic, too, and that has this network's addresses.
    let is_twin = |(name, entry): Named<'_>| name != own.0 && overlap(entry, own.1);
    let twins: Vec<Named<'_>> = directory.networks.iter().filter(|entry| is_twin(*entry)).collect();
    if twins.is_empty() {
        return left;
    }
    for (from, to) in among_members(policy, now) {
        if left.is_empty() {
            break;
        }
        if let (Some(one), Some(other)) = (from.network(), to.network()) {
            let meant = |name: &Label, subject: &Subject| {
                directory.networks.get_key_value(name).filter(|(name, entry)| may_mean(subject, name, entry))
            };
            if let (Some(one), Some(other)) = (meant(one, from), meant(other, to)) {
                for (peer, far) in [(one, other), (other, one)] {
                    if is_twin(far) {
                        left.remove(peer.0);
                    }
                }
            }
            continue;
        }
        let meant = |subject: &Subject| -> Vec<Named<'_>> {
            twins.iter().filter(|(name, entry)| may_mean(subject, name, entry)).copied().collect()
        };
        let (senders, receivers) = (meant(from), meant(to));
        left.retain(|name, entry| {
            let peer = (*name, *entry);
            let out = may_mean(from, peer.0, peer.1) && receivers.iter().any(|twin| may_be_reached(to, *twin, peer));
            let comes = senders.iter().any(|twin| may_be_reached(to, peer, *twin));
            !out && !comes
        });
    }
    left
}

/// From whom to whom inside the rules in force allow.
fn among_members(policy: &Policy, now: Timestamp) -> impl Iterator<Item = (&Subject, &Subject)> {
    policy.allow.iter().filter(move |rule| rule.is_in_force(now)).filter_map(|rule| match &rule.to {
        Target::Inside(to) => Some((&rule.from, to)),
        Target::Outside(_) => None,
    })
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

fn may_be_reached(to: &Subject, (name, entry): Named<'_>, (_, sender): Named<'_>) -> bool {
    may_mean(to, name, entry) && !is_hidden(to, entry, sender)
}
