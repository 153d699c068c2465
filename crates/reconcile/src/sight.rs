//! Who is there for whom. Pure.
//!
//! Where members of a network do not reach each other by themselves, one is there for another only if policy allows
//! traffic between them, in either direction and on any port. Members of other networks are there in the same way,
//! whatever the network's own members do among each other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use warren_edge::NOBODY;
use warren_model::policy::compile::{Carrier, Default as Treatment, Exception};
use warren_model::policy::{Directory, Group, NetworkEntry, NetworkRules, PortRange};
use warren_model::record::{Machine, Network, Power};
use warren_model::{Label, MachineId, UlaPrefix};

/// What the members of one network may know of each other, and of members of other networks.
#[derive(Debug)]
pub(crate) struct Sight {
    pub rules: Arc<NetworkRules>,
    /// The network's own members are there for each other only as far as `pairs` says.
    pub scoped: bool,
    /// Which groups have traffic with each of the network's own.
    pub pairs: BTreeMap<Group, BTreeSet<Group>>,
    /// The network's own members, in the order in which they were made.
    pub own: Vec<Known>,
    /// Members of other networks that are there for somebody in this one.
    pub linked: Vec<Known>,
    /// The places of those whose group matters, in `own` and then in `linked`.
    by_group: BTreeMap<Group, Vec<usize>>,
}

/// A member, and how it is reached.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub machine: Arc<Machine>,
    /// `None`: the two networks are not joined by IPv4.
    pub ipv4: Option<Ipv4Addr>,
    pub ipv6: Ipv6Addr,
    pub group: Group,
    /// Its network, where that is another one.
    pub network: Option<Label>,
}

/// Whether the same can be said of them.
impl PartialEq for Known {
    fn eq(&self, other: &Self) -> bool {
        let Self { machine, ipv4, ipv6, group, network } = self;
        let same =
            |one: &Machine, other: &Machine| (one.id, &one.name, &one.ports) == (other.id, &other.name, &other.ports);
        (Arc::ptr_eq(machine, &other.machine) || same(machine, &other.machine))
            && (ipv4, ipv6, group, network) == (&other.ipv4, &other.ipv6, &other.group, &other.network)
    }
}

impl Sight {
    /// `own` are the records of the network's members; `machine` finds any of the account's.
    pub fn of<'a>(
        network: &Network,
        ula: UlaPrefix,
        rules: Arc<NetworkRules>,
        directory: &Directory,
        own: impl Iterator<Item = &'a Arc<Machine>>,
        machine: impl Fn(MachineId) -> Option<Arc<Machine>>,
    ) -> Self {
        let scoped = rules.inside == Treatment::Refuse;
        let group = |address: Ipv6Addr| rules.groups.get(&IpAddr::V6(address)).copied().unwrap_or(NOBODY);
        let there = own.filter(|machine| machine.power != Power::Gone);
        let own: Vec<Known> = there
            .map(|machine| {
                let ipv6 = machine.ipv6(ula, network.number);
                let ipv4 = Some(machine.ipv4);
                Known { machine: Arc::clone(machine), ipv4, ipv6, group: group(ipv6), network: None }
            })
            .collect();
        let ours: BTreeSet<Group> = own.iter().map(|known| known.group).filter(|group| *group != NOBODY).collect();

        let members = directory.members.iter().filter(|member| member.network != network.name);
        let mut linked = Vec::new();
        for member in members {
            let entry = directory.networks.get(&member.network);
            let ranges = entry.and_then(|entry: &NetworkEntry| rules.links.get(&entry.number));
            let (Some(ranges), group @ Group(1..)) = (ranges, group(member.ipv6)) else { continue };
            let by_ipv4 = ranges.iter().any(|range| range.contains(&IpAddr::V4(member.ipv4)));
            if let Some(machine) = member.id.machine().and_then(&machine) {
                let (ipv4, ipv6) = (by_ipv4.then_some(member.ipv4), member.ipv6);
                linked.push(Known { machine, ipv4, ipv6, group, network: Some(member.network.clone()) });
            }
        }
        let theirs: BTreeSet<Group> = linked.iter().map(|known| known.group).collect();

        let mut pairs: BTreeMap<Group, BTreeSet<Group>> = BTreeMap::new();
        let mut see = |one: Group, other: Group| {
            let among = scoped && ours.contains(&other);
            if ours.contains(&one) && (among || theirs.contains(&other)) {
                pairs.entry(one).or_default().insert(other);
            }
        };
        let mut last = None;
        for exception in &rules.exceptions {
            let pair = (exception.from, exception.to);
            if last.replace(pair) != Some(pair) {
                see(pair.0, pair.1);
                see(pair.1, pair.0);
            }
        }
        let seen: BTreeSet<Group> = pairs.values().flatten().copied().collect();
        linked.retain(|known| seen.contains(&known.group));
        let mut by_group: BTreeMap<Group, Vec<usize>> = BTreeMap::new();
        for (place, known) in own.iter().chain(&linked).enumerate().filter(|(_, known)| seen.contains(&known.group)) {
            by_group.entry(known.group).or_default().push(place);
        }
        Self { rules, scoped, pairs, own, linked, by_group }
    }

    /// The group of one of the network's own members, by its address.
    pub fn group(&self, address: Ipv4Addr) -> Group {
        self.rules.groups.get(&IpAddr::V4(address)).copied().unwrap_or(NOBODY)
    }

    /// Who is there for this group, first in the network itself; at most so many of them, and how many there are.
    pub fn seen_by(&self, group: Group, most: usize) -> (Vec<&Known>, usize) {
        let none = BTreeSet::new();
        let groups = self.pairs.get(&group).unwrap_or(&none);
        let places = groups.iter().filter_map(|group| self.by_group.get(group)).flatten().copied();
        let mut places: Vec<usize> = places.filter(|place| self.scoped || *place >= self.own.len()).collect();
        places.sort_unstable();
        let everybody = if self.scoped { 0 } else { self.own.len() };
        let found = self.own[..everybody].iter().chain(places.iter().filter_map(|place| self.at(*place)));
        (found.take(most).collect(), everybody + places.len())
    }

    /// On what one group may reach another; nothing where it may not.
    pub fn open(&self, from: Group, to: Group) -> impl Iterator<Item = (Carrier, PortRange)> + '_ {
        let at = |carrier, ports| Exception { from, to, carrier, ports };
        let first = at(Carrier::Tcp, PortRange { first: 0, last: 0 });
        let last = at(Carrier::Other, PortRange { first: u16::MAX, last: u16::MAX });
        self.rules.exceptions.range(first..=last).map(|exception| (exception.carrier, exception.ports))
    }

    /// Whether all that the network's machines are told of others is the same: the groups of operators are of no interest to
    /// them.
    pub fn tells_the_same(&self, other: &Self) -> bool {
        let (one, another) = (&self.rules, &other.rules);
        let alike = Arc::ptr_eq(one, another)
            || (one.outside == another.outside
                && one.names == another.names
                && one.classes == another.classes
                && one.exceptions == another.exceptions);
        alike
            && self.scoped == other.scoped
            && self.pairs == other.pairs
            && self.own == other.own
            && self.linked == other.linked
    }

    fn at(&self, place: usize) -> Option<&Known> {
        self.own.get(place).or_else(|| self.linked.get(place - self.own.len()))
    }
}
