//! The link between the routers of two networks of one account that a policy links: a veth between their namespaces.
//!
//! Each router has routes to those ranges of the other network by which it is reached; what of it passes is up to the
//! rules on both sides. As on a member's link every neighbour is fixed: the other router is one next hop, the same on
//! every such link, and nobody asks for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use ipnet::IpNet;
use nix::errno::Errno;
use warren_model::{InstallationId, MacAddress, NetworkNumber};

use crate::gateway::METRIC;
use crate::member::{are_ends, find};
use crate::names;
use crate::netlink::Socket;
use crate::route::{self, Link, Neighbour, Route, RouteKind, gone_is_fine};
use crate::wiring::{Ways, Wiring};

/// The other router, as each router sees it; on no other link.
const NEXT_HOP_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 3);
const NEXT_HOP_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 3);

/// One of the two routers.
pub(crate) struct End<'a> {
    pub(crate) number: NetworkNumber,
    pub(crate) router: &'a mut Socket,
    pub(crate) inside: BorrowedFd<'a>,
    /// The ranges by which the other network is reached from here.
    pub(crate) ranges: &'a [IpNet],
}

/// Makes the link, or makes good what an existing one lacks; a wrong one is replaced. What is right is not touched.
pub(crate) fn link(installation: &InstallationId, one: &mut End<'_>, other: &mut End<'_>) -> Result<(), Errno> {
    let (name, other_name) = (names::peer_link(installation, other.number), names::peer_link(installation, one.number));
    let (mac, other_mac) = (mac(one.number, other.number), mac(other.number, one.number));
    let there = (route::link(one.router, &name)?, route::link(other.router, &other_name)?);
    let whole = matches!(&there, (Some(link), Some(peer))
        if are_ends(link, peer) && link.mac == Some(mac) && peer.mac == Some(other_mac));
    if !whole {
        remove(one.router, &name)?;
        remove(other.router, &other_name)?;
        one.router.apply(vec![route::veth(&name, mac, &other_name, other_mac, other.inside)])?;
    }
    let (link, peer) = (find(one.router, &name)?, find(other.router, &other_name)?);
    one.router.apply(vec![route::no_generated_address(link), route::up(link)])?;
    other.router.apply(vec![route::no_generated_address(peer), route::up(peer)])?;
    one.route_by(link, other_mac)?;
    other.route_by(peer, mac)?;
    route::settle(one.router, &name)?;
    route::settle(other.router, &other_name)
}

/// Removes a router's end, and with it the other one. Fine if absent.
pub(crate) fn remove(router: &mut Socket, name: &str) -> Result<(), Errno> {
    match route::link(router, name)? {
        Some(link) => gone_is_fine(router.apply(vec![route::delete_link_by_index(link.index)])),
        None => Ok(()),
    }
}

/// Whether a router's end of the link is as it should be, and leads to these ranges and to no others.
pub(crate) fn is_whole(
    number: NetworkNumber,
    other: NetworkNumber,
    link: &Link,
    ranges: &[IpNet],
    wiring: &Wiring,
) -> bool {
    link.mac == Some(mac(number, other))
        && link.carrier
        && wiring.ways(link.index) == ways(link.index, ranges, mac(other, number))
}

impl End<'_> {
    /// Routes the ranges, and nothing else, by the link.
    fn route_by(&mut self, link: u32, other_mac: MacAddress) -> Result<(), Errno> {
        Ways::read(self.router, link)?.change_to(self.router, &ways(link, self.ranges, other_mac))
    }
}

fn ways(link: u32, ranges: &[IpNet], other_mac: MacAddress) -> Ways {
    let route = |to: &IpNet| {
        let via = if to.addr().is_ipv4() { IpAddr::from(NEXT_HOP_V4) } else { NEXT_HOP_V6.into() };
        Route { kind: RouteKind::Unicast, to: to.trunc(), via: Some(via), link, metric: METRIC }
    };
    let next_hops = [NEXT_HOP_V4.into(), NEXT_HOP_V6.into()];
    Ways {
        routes: ranges.iter().map(route).collect(),
        neighbours: next_hops.map(|address| Neighbour { link, address, mac: other_mac }).into(),
    }
}

/// The MAC of a network's end of its link to another one: `02`, a byte of its own, and both numbers.
fn mac(of: NetworkNumber, to: NetworkNumber) -> MacAddress {
    let ([a, b], [c, d]) = (of.get().to_be_bytes(), to.get().to_be_bytes());
    MacAddress::from_octets([0x02, 0x70, a, b, c, d])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_end_of_each_link_has_a_mac_of_its_own() {
        let number = |n| NetworkNumber::new(n).unwrap();
        let macs: BTreeSet<MacAddress> =
            [(1, 2), (2, 1), (1, 3), (3, 1), (0x100, 2)].map(|(a, b)| mac(number(a), number(b))).into();
        assert_eq!(macs.len(), 5);
        assert!(macs.iter().all(|mac| mac.octets()[0] & 3 == 2), "administered locally, and of one station");
    }
}
