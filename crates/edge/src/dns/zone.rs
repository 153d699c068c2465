//! What one network's resolver knows: an immutable snapshot.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};
use warren_model::policy::Group;

use crate::change::NetworkChange;
use crate::dns::wire;
use crate::view::{NOBODY, NetworkView};

/// `internal` in wire form.
pub const INTERNAL: &[u8] = b"\x08internal\0";
/// `gateway.internal` in wire form: the resolver's own name.
pub const GATEWAY: &[u8] = b"\x07gateway\x08internal\0";

/// Why a view is not one that can be answered from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ZoneError {
    #[error("{0:?} is not a name inside .internal")]
    NotInternal(String),
    #[error("{0:?} is given twice")]
    Twice(String),
}

/// The addresses behind a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    pub ipv4: Option<Ipv4Addr>,
    pub ipv6: Ipv6Addr,
}

/// What `.internal` holds under one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    Host(Addresses),
    /// No record, but names below it; it exists all the same (RFC 8020).
    Between,
    Missing,
}

/// Names as the daemon handed them over, indexed for answering. Keys are names in wire form and lower case.
///
/// A name with a scope is there for some askers only. A name between exists for everybody: it is one of those that every
/// member's own name has, and says nothing of who else is below it.
#[derive(Debug, Clone)]
#[cfg_attr(test, derive(PartialEq))]
pub struct Zone {
    /// Of the first view that has these names.
    pub generation: u64,
    pub cidr: Ipv4Net,
    pub cidr6: Ipv6Net,
    pub forward: Arc<[SocketAddr]>,
    index: Arc<Index>,
    /// Who sees which scopes; `None` where every name is there for everybody.
    sight: Option<Sight>,
}

#[derive(Debug)]
#[cfg_attr(test, derive(PartialEq))]
struct Index {
    hosts: HashMap<Arc<[u8]>, Host>,
    /// Names with a host below them; they may have no record of their own.
    between: HashSet<Arc<[u8]>>,
    by_ipv4: HashMap<Ipv4Addr, Arc<[u8]>>,
    by_ipv6: HashMap<Ipv6Addr, Arc<[u8]>>,
}

#[derive(Debug, Clone, Copy)]
#[cfg_attr(test, derive(PartialEq))]
struct Host {
    addresses: Addresses,
    scope: Option<Group>,
}

#[derive(Debug, Clone)]
#[cfg_attr(test, derive(PartialEq))]
struct Sight {
    /// The gateway's own addresses, which only somebody on the host can have, see everything.
    gateways: [IpAddr; 2],
    groups: HashMap<IpAddr, Group>,
    scopes: Arc<HashMap<Group, BTreeSet<Group>>>,
}

impl Zone {
    pub fn build(view: &NetworkView) -> Result<Self, ZoneError> {
        let mut index = Index {
            hosts: HashMap::with_capacity(view.names.len() + 1),
            between: HashSet::new(),
            by_ipv4: HashMap::with_capacity(view.names.len() + 1),
            by_ipv6: HashMap::with_capacity(view.names.len() + 1),
        };
        let gateway = Addresses { ipv4: Some(view.gateway4), ipv6: view.gateway6 };
        index.add(GATEWAY, Host { addresses: gateway, scope: None });
        for record in &view.names {
            let name = key(&record.name)?;
            if *name == *GATEWAY {
                continue;
            }
            if index.hosts.contains_key(&*name) {
                return Err(ZoneError::Twice(record.name.clone()));
            }
            let addresses = Addresses { ipv4: record.ipv4, ipv6: record.ipv6 };
            index.add(&name, Host { addresses, scope: record.scope });
        }
        Ok(Self {
            generation: view.generation,
            cidr: view.cidr.net(),
            cidr6: view.cidr6.trunc(),
            forward: view.forward.as_slice().into(),
            index: Arc::new(index),
            sight: view.names.iter().any(|record| record.scope.is_some()).then(|| Sight::of(view)),
        })
    }

    /// The same names after a change of who is in the network; `None` where everybody sees what they saw.
    pub fn changed(&self, change: &NetworkChange) -> Option<Self> {
        let sight = self.sight.as_ref().filter(|_| !change.groups.is_empty())?;
        let mut groups = sight.groups.clone();
        for (address, group) in &change.groups {
            match group {
                Some(group) => groups.insert(*address, *group),
                None => groups.remove(address),
            };
        }
        Some(Self { sight: Some(Sight { groups, ..sight.clone() }), ..self.clone() })
    }

    /// Looks up a name inside `.internal`, in wire form and lower case, for who has this address.
    pub fn lookup(&self, name: &[u8], asker: IpAddr) -> Entry {
        match self.index.hosts.get(name) {
            Some(host) if self.is_there(host, asker) => Entry::Host(host.addresses),
            _ if name == INTERNAL || self.index.between.contains(name) => Entry::Between,
            _ => Entry::Missing,
        }
    }

    /// The name, in wire form, of who has this address, for who has the other.
    pub fn name_of(&self, address: IpAddr, asker: IpAddr) -> Option<&[u8]> {
        let name = match address {
            IpAddr::V4(address) => self.index.by_ipv4.get(&address),
            IpAddr::V6(address) => self.index.by_ipv6.get(&address),
        }?;
        let is_there =
            self.sight.is_none() || self.index.hosts.get(name).is_some_and(|host| self.is_there(host, asker));
        is_there.then_some(name)
    }

    fn is_there(&self, host: &Host, asker: IpAddr) -> bool {
        match (host.scope, &self.sight) {
            (Some(scope), Some(sight)) => {
                Some(asker) == host.addresses.ipv4.map(IpAddr::V4)
                    || asker == host.addresses.ipv6
                    || sight.reaches(asker, scope)
            }
            _ => true,
        }
    }
}

impl Index {
    fn add(&mut self, name: &[u8], host: Host) {
        let name: Arc<[u8]> = name.into();
        self.between.extend(parents(&name).map(Arc::from));
        // Where two names share an address, the reverse name is the one that came first.
        if let Some(ipv4) = host.addresses.ipv4 {
            self.by_ipv4.entry(ipv4).or_insert_with(|| name.clone());
        }
        self.by_ipv6.entry(host.addresses.ipv6).or_insert_with(|| name.clone());
        self.hosts.insert(name, host);
    }
}

impl Sight {
    fn of(view: &NetworkView) -> Self {
        Self {
            gateways: [view.gateway4.into(), view.gateway6.into()],
            groups: view.groups.iter().map(|(address, group)| (*address, *group)).collect(),
            scopes: Arc::new(view.sight.iter().map(|(group, scopes)| (*group, scopes.clone())).collect()),
        }
    }

    fn reaches(&self, asker: IpAddr, scope: Group) -> bool {
        if self.gateways.contains(&asker) {
            return true;
        }
        let scopes = self.groups.get(&asker).and_then(|group| self.scopes.get(group));
        scope != NOBODY && scopes.is_some_and(|scopes| scopes.contains(&scope))
    }
}

fn key(name: &str) -> Result<Box<[u8]>, ZoneError> {
    wire::encode(name)
        .filter(|octets| octets.ends_with(INTERNAL) && octets.len() > INTERNAL.len())
        .filter(|_| name.len() > ".internal".len() && name.as_bytes()[name.len() - ".internal".len()] == b'.')
        .ok_or_else(|| ZoneError::NotInternal(name.chars().take(wire::MAX_NAME).collect()))
}

/// The names between this one and `internal`, both excluded.
fn parents(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::successors(above(name), |parent| above(parent)).take_while(|parent| *parent != INTERNAL)
}

fn above(name: &[u8]) -> Option<&[u8]> {
    let (length, rest) = name.split_first()?;
    rest.get(usize::from(*length)..).filter(|rest| !rest.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::NameRecord;

    fn record(name: &str, last: u8) -> NameRecord {
        NameRecord {
            name: name.into(),
            ipv4: Some(Ipv4Addr::new(10, 0, 1, last)),
            ipv6: Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, last.into()),
            scope: None,
        }
    }

    /// Somebody whom no rule tells from others.
    const ANYBODY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 99));

    fn view(names: Vec<NameRecord>) -> NetworkView {
        NetworkView { names, ..crate::view::tests::network_view() }
    }

    fn wire(name: &str) -> Box<[u8]> {
        wire::encode(name).unwrap()
    }

    #[test]
    fn a_name_between_exists_where_something_is_below_it() {
        let zone = Zone::build(&view(vec![record("a.vm.internal", 10), record("b.vm.internal", 11)])).unwrap();
        assert_eq!(zone.lookup(&wire("vm.internal"), ANYBODY), Entry::Between);
        let none = Zone::build(&view(vec![])).unwrap();
        assert_eq!(none.lookup(&wire("vm.internal"), ANYBODY), Entry::Missing);
        assert_eq!(none.lookup(INTERNAL, ANYBODY), Entry::Between);
    }

    #[test]
    fn an_address_with_two_names_has_the_reverse_name_of_the_first() {
        let zone = Zone::build(&view(vec![record("a.internal", 10), record("b.internal", 10)])).unwrap();
        assert_eq!(zone.name_of(IpAddr::V4(Ipv4Addr::new(10, 0, 1, 10)), ANYBODY), Some(&*wire("a.internal")));
    }

    #[test]
    fn the_gateway_keeps_its_name() {
        let zone = Zone::build(&view(vec![record("gateway.internal", 66)])).unwrap();
        let Entry::Host(addresses) = zone.lookup(GATEWAY, ANYBODY) else { panic!("the gateway has no address") };
        assert_eq!(addresses.ipv4, Some(Ipv4Addr::new(10, 0, 0, 1)));
    }

    #[test]
    fn names_outside_internal_are_refused() {
        for bad in [
            "internal",
            "worker",
            "worker.example",
            "",
            ".internal",
            "a..internal",
            "a b.internal",
            "xinternal",
            "é.internal",
        ] {
            assert!(Zone::build(&view(vec![record(bad, 10)])).is_err(), "{bad}");
        }
        let twice = view(vec![record("a.internal", 10), record("A.internal", 11)]);
        assert_eq!(Zone::build(&twice).unwrap_err(), ZoneError::Twice("A.internal".into()));
    }

    /// `a` and `b` in the groups 7 and 8 that see each other, `c` in 9, and `d` in none.
    fn scoped() -> Zone {
        let scopes = [("a", 10, Group(7)), ("b", 11, Group(8)), ("c", 12, Group(9)), ("d", 13, NOBODY)];
        let names = scopes.map(|(name, last, scope)| NameRecord {
            scope: Some(scope),
            ..record(&format!("{name}.vm.internal"), last)
        });
        let addresses = |record: &NameRecord| [Some(record.ipv6.into()), record.ipv4.map(IpAddr::V4)];
        let groups = names.iter().filter(|record| record.scope != Some(NOBODY)).flat_map(|record| {
            addresses(record).into_iter().flatten().filter_map(|address| Some((address, record.scope?)))
        });
        Zone::build(&NetworkView {
            groups: groups.collect(),
            sight: [(Group(7), [Group(8)].into()), (Group(8), [Group(7)].into()), (Group(9), [NOBODY].into())].into(),
            ..view(names.to_vec())
        })
        .unwrap()
    }

    #[test]
    fn a_scoped_name_is_there_for_itself_and_those_who_see_it() {
        let zone = scoped();
        for four in [true, false] {
            let address = |last: u8| match (four, record("x", last)) {
                (true, record) => IpAddr::V4(record.ipv4.unwrap()),
                (false, record) => IpAddr::V6(record.ipv6),
            };
            let seen = |asker: IpAddr| -> String {
                let is_there = |(name, last): &(&str, u8)| {
                    let found = zone.lookup(&wire(&format!("{name}.vm.internal")), asker) != Entry::Missing;
                    assert_eq!(zone.name_of(address(*last), asker).is_some(), found, "{name} for {asker}");
                    found
                };
                [("a", 10), ("b", 11), ("c", 12), ("d", 13)].iter().filter(|name| is_there(name)).map(|n| n.0).collect()
            };
            assert_eq!([10, 11, 12, 13, 99].map(|last| seen(address(last))), ["ab", "ab", "c", "d", ""]);
            assert_eq!(seen(Ipv4Addr::new(10, 0, 0, 1).into()), "abcd", "the host's own");
        }
    }

    #[test]
    fn the_gateway_and_names_between_are_there_for_everybody() {
        let zone = scoped();
        assert!(matches!(zone.lookup(GATEWAY, ANYBODY), Entry::Host(_)));
        assert_eq!(zone.lookup(&wire("vm.internal"), ANYBODY), Entry::Between);
        assert_eq!(zone.name_of(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), ANYBODY), Some(GATEWAY));
    }
}
