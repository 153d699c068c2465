//! What the policy of a network is as elements of sets, and what of it a new policy changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use warren_model::InstallationId;
use warren_model::policy::compile::{Carrier, Exception, Group};
use warren_model::policy::{NetworkRules, PortRange};

use super::elements::{Change, Listing};
use super::item::{Entry, Field, Item};
use super::sets::Set;
use super::shape::Shape;
use crate::names;

/// ICMP and ICMPv6, TCP, UDP, in the IANA registry of protocol numbers.
const ICMP: [u8; 2] = [1, 58];
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Groups by address: what changes as members come and go, beside the rules.
pub(crate) type Groups = BTreeMap<IpAddr, Group>;

/// Everything that the rules of this shape take from the policy, set by set.
pub(crate) fn items(installation: &InstallationId, shape: Shape, rules: &NetworkRules) -> Vec<(Set, Item)> {
    let mut all: Vec<(Set, Item)> = Vec::new();
    if shape.has_groups() {
        all.extend(rules.groups.iter().flat_map(|(address, group)| of_group(*address, *group)));
        all.extend(rules.exceptions.iter().flat_map(of_exception));
    }
    if shape.has_classes() {
        all.extend(rules.classes.iter().map(|(range, class)| of_class(range, *class)));
    }
    if shape.links {
        all.extend(rules.links.iter().flat_map(|(number, ranges)| {
            let link = names::peer_link(installation, *number);
            ranges.iter().flat_map(move |range| of_link(&link, range))
        }));
    }
    if shape.outside.is_some() {
        all.extend(rules.private_exits.iter().map(|range| {
            let set = if range.addr().is_ipv4() { Set::Private4 } else { Set::Private6 };
            (set, Item::new([Field::Family(*range), Field::Range(*range)]))
        }));
    }
    all
}

/// The same as the kernel lists it.
pub(crate) fn entries(all: &[(Set, Item)]) -> BTreeMap<Set, BTreeSet<Entry>> {
    let mut sets: BTreeMap<Set, BTreeSet<Entry>> = BTreeMap::new();
    for (set, item) in all {
        sets.entry(*set).or_default().insert(item.entry(set.is_of_ranges()));
    }
    sets
}

/// From one policy to another one of the same shape. What both say is not touched.
pub(crate) fn between(
    installation: &InstallationId,
    shape: Shape,
    (old, old_groups): (&NetworkRules, &Groups),
    new: &NetworkRules,
) -> Vec<Change> {
    let difference = |one: &NetworkRules, groups: &Groups, other: &NetworkRules, others: &Groups| {
        let part = NetworkRules {
            groups: without(groups, others),
            classes: without(&one.classes, &other.classes),
            exceptions: one.exceptions.difference(&other.exceptions).copied().collect(),
            links: without(&one.links, &other.links),
            private_exits: one.private_exits.difference(&other.private_exits).copied().collect(),
            names: BTreeMap::new(),
            ..*one
        };
        entries(&items(installation, shape, &part))
    };
    let gone = difference(old, old_groups, new, &new.groups);
    let come = difference(new, &new.groups, old, old_groups);
    let mut changes: Vec<Change> = gone.into_iter().map(|(set, entries)| Change::delete(set, entries)).collect();
    changes.extend(come.into_iter().map(|(set, entries)| Change::add(set, entries)));
    changes
}

/// From what the kernel lists to what the policy says.
pub(crate) fn from_listing(shape: Shape, there: &Listing, wanted: &BTreeMap<Set, BTreeSet<Entry>>) -> Vec<Change> {
    let (mut gone, mut come) = (Vec::new(), Vec::new());
    let none = BTreeSet::new();
    for set in Set::of_policy(shape) {
        let wanted = wanted.get(&set).unwrap_or(&none);
        let found: BTreeSet<&Entry> = there.of(set).collect();
        gone.push(Change::delete(set, found.iter().filter(|entry| !wanted.contains(**entry)).map(|e| (*e).clone())));
        come.push(Change::add(set, wanted.iter().filter(|entry| !found.contains(entry)).cloned()));
    }
    gone.into_iter().chain(come).collect()
}

/// Whether the kernel lists just this, for all sets of the policy.
pub(crate) fn is_listed(shape: Shape, there: &Listing, wanted: &BTreeMap<Set, BTreeSet<Entry>>) -> bool {
    from_listing(shape, there, wanted).iter().all(Change::is_empty)
}

/// The elements of these addresses' groups.
pub(crate) fn group_changes(groups: impl IntoIterator<Item = (IpAddr, Group)>) -> Vec<Change> {
    let all: Vec<_> = groups.into_iter().flat_map(|(address, group)| of_group(address, group)).collect();
    entries(&all).into_iter().map(|(set, entries)| Change::delete(set, entries)).collect()
}

/// Whether two policies are the same for the kernel, groups aside.
pub(crate) fn are_alike(one: &NetworkRules, other: &NetworkRules) -> bool {
    one.inside == other.inside
        && one.outside == other.outside
        && one.exits == other.exits
        && one.classes == other.classes
        && one.exceptions == other.exceptions
        && one.links == other.links
        && one.private_exits == other.private_exits
}

fn without<K: Ord + Clone, V: PartialEq + Clone>(one: &BTreeMap<K, V>, other: &BTreeMap<K, V>) -> BTreeMap<K, V> {
    one.iter()
        .filter(|(key, value)| other.get(key) != Some(value))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn of_group(address: IpAddr, group: Group) -> [(Set, Item); 2] {
    let (sources, targets) =
        if address.is_ipv4() { (Set::Sources4, Set::Targets4) } else { (Set::Sources6, Set::Targets6) };
    [
        (sources, Item::mapped([Field::Address(address)], Field::Mark(group.0))),
        (targets, Item::mapped([Field::Address(address)], Field::Class(group.0))),
    ]
}

fn of_class(range: &IpNet, class: Group) -> (Set, Item) {
    let set = if range.addr().is_ipv4() { Set::Classes4 } else { Set::Classes6 };
    (set, Item::mapped([Field::Family(*range), Field::Range(*range)], Field::Class(class.0)))
}

fn of_link(link: &str, range: &IpNet) -> [(Set, Item); 2] {
    let (linked, beyond) =
        if range.addr().is_ipv4() { (Set::Linked4, Set::Beyond4) } else { (Set::Linked6, Set::Beyond6) };
    [
        (linked, Item::new([Field::Link(link.to_owned()), Field::Range(*range)])),
        (beyond, Item::new([Field::Family(*range), Field::Range(*range)])),
    ]
}

fn of_exception(exception: &Exception) -> Vec<(Set, Item)> {
    let Exception { from, to, carrier, ports } = exception;
    let (from, to) = (Field::Mark(from.0), Field::Class(to.0));
    let whole = |protocol| (Set::Talk, Item::new([from.clone(), to.clone(), Field::Protocol(protocol)]));
    let protocol = match carrier {
        Carrier::Other => return vec![(Set::TalkOther, Item::new([from, to]))],
        Carrier::Icmp => return ICMP.map(whole).into(),
        Carrier::Tcp => TCP,
        Carrier::Udp => UDP,
    };
    // A single port is found faster where no range is.
    let (set, ports) = match *ports {
        PortRange::ALL => return vec![whole(protocol)],
        PortRange { first, last } if first == last => (Set::TalkPorts, Field::Port(first)),
        range => (Set::TalkRanges, Field::Ports(range)),
    };
    vec![(set, Item::new([from, to, Field::Protocol(protocol), ports]))]
}
