//! What one network's resolver knows: an immutable snapshot.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};

use crate::dns::wire;
use crate::view::NetworkView;

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

/// The two addresses behind a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    pub ipv4: Ipv4Addr,
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
#[derive(Debug, Clone)]
pub struct Zone {
    pub generation: u64,
    pub cidr: Ipv4Net,
    pub cidr6: Ipv6Net,
    pub forward: Arc<[SocketAddr]>,
    hosts: HashMap<Arc<[u8]>, Addresses>,
    /// Names with a host below them; they may have no record of their own.
    between: HashSet<Arc<[u8]>>,
    by_ipv4: HashMap<Ipv4Addr, Arc<[u8]>>,
    by_ipv6: HashMap<Ipv6Addr, Arc<[u8]>>,
}

impl Zone {
    pub fn build(view: &NetworkView) -> Result<Self, ZoneError> {
        let mut zone = Self {
            generation: view.generation,
            cidr: view.cidr.net(),
            cidr6: view.cidr6.trunc(),
            forward: view.forward.as_slice().into(),
            hosts: HashMap::with_capacity(view.names.len() + 1),
            between: HashSet::new(),
            by_ipv4: HashMap::with_capacity(view.names.len() + 1),
            by_ipv6: HashMap::with_capacity(view.names.len() + 1),
        };
        zone.add(GATEWAY, Addresses { ipv4: view.gateway4, ipv6: view.gateway6 });
        for record in &view.names {
            let name = key(&record.name)?;
            if *name == *GATEWAY {
                continue;
            }
            if zone.hosts.contains_key(&*name) {
                return Err(ZoneError::Twice(record.name.clone()));
            }
            zone.add(&name, Addresses { ipv4: record.ipv4, ipv6: record.ipv6 });
        }
        Ok(zone)
    }

    /// Looks up a name inside `.internal`, in wire form and lower case.
    pub fn lookup(&self, name: &[u8]) -> Entry {
        match self.hosts.get(name) {
            Some(addresses) => Entry::Host(*addresses),
            None if name == INTERNAL || self.between.contains(name) => Entry::Between,
            None => Entry::Missing,
        }
    }

    /// The name, in wire form, of the member with this address.
    pub fn name_of_ipv4(&self, address: Ipv4Addr) -> Option<&[u8]> {
        self.by_ipv4.get(&address).map(AsRef::as_ref)
    }

    /// The name, in wire form, of the member with this address.
    pub fn name_of_ipv6(&self, address: Ipv6Addr) -> Option<&[u8]> {
        self.by_ipv6.get(&address).map(AsRef::as_ref)
    }

    fn add(&mut self, name: &[u8], addresses: Addresses) {
        let name: Arc<[u8]> = name.into();
        self.between.extend(parents(&name).map(Arc::from));
        // Where two names share an address, the reverse name is the one that came first.
        self.by_ipv4.entry(addresses.ipv4).or_insert_with(|| name.clone());
        self.by_ipv6.entry(addresses.ipv6).or_insert_with(|| name.clone());
        self.hosts.insert(name, addresses);
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
            ipv4: Ipv4Addr::new(10, 0, 1, last),
            ipv6: Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, last.into()),
        }
    }

    fn view(names: Vec<NameRecord>) -> NetworkView {
        NetworkView { names, ..crate::view::tests::network_view() }
    }

    fn wire(name: &str) -> Box<[u8]> {
        wire::encode(name).unwrap()
    }

    #[test]
    fn a_name_between_exists_where_something_is_below_it() {
        let zone = Zone::build(&view(vec![record("a.vm.internal", 10), record("b.vm.internal", 11)])).unwrap();
        assert_eq!(zone.lookup(&wire("vm.internal")), Entry::Between);
        let none = Zone::build(&view(vec![])).unwrap();
        assert_eq!(none.lookup(&wire("vm.internal")), Entry::Missing);
        assert_eq!(none.lookup(INTERNAL), Entry::Between);
    }

    #[test]
    fn an_address_with_two_names_has_the_reverse_name_of_the_first() {
        let zone = Zone::build(&view(vec![record("a.internal", 10), record("b.internal", 10)])).unwrap();
        assert_eq!(zone.name_of_ipv4(Ipv4Addr::new(10, 0, 1, 10)), Some(&*wire("a.internal")));
    }

    #[test]
    fn the_gateway_keeps_its_name() {
        let zone = Zone::build(&view(vec![record("gateway.internal", 66)])).unwrap();
        let Entry::Host(addresses) = zone.lookup(GATEWAY) else { panic!("the gateway has no address") };
        assert_eq!(addresses.ipv4, Ipv4Addr::new(10, 0, 0, 1));
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
}
