//! The link of a member: a veth from the router namespace into the machine's, with every neighbour fixed, so that
//! nobody needs ARP or neighbour discovery and nothing is learned from what a machine says.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use ipnet::IpNet;
use nix::errno::Errno;
use warren_model::{InstallationId, MacAddress, NetworkNumber};

use crate::error::KernelError;
use crate::firewall::MemberSpec;
use crate::gateway::{LOOPBACK, METRIC, NEXT_HOP_V4, NEXT_HOP_V6};
use crate::names::{MACHINE_LINK, member_link};
use crate::namespace;
use crate::netlink::{Family, Socket};
use crate::route::{self, Link, Neighbour, Route, RouteKind, everything, gone_is_fine, single};

/// Makes the link, or makes good what an existing one lacks; a wrong one is replaced.
pub(crate) fn attach(
    router: &mut Socket,
    installation: &InstallationId,
    network: NetworkNumber,
    member: &MemberSpec,
    machine: BorrowedFd<'_>,
) -> Result<(), KernelError> {
    let failed = |action: &'static str| {
        move |source: Errno| KernelError::Attach { network, member: member.number, action, source }
    };
    let entering = failed("enter the machine's namespace");
    let mut inside =
        namespace::enter(machine, || Socket::open(Family::Route)).map_err(&entering)?.map_err(&entering)?;
    let name = member_link(installation, member.number);

    let (outer, inner) = match existing(router, &mut inside, &name, member).map_err(failed("look at its link"))? {
        Some(pair) => pair,
        None => {
            let mac = MacAddress::of_member(member.number);
            router
                .apply(vec![route::veth(&name, MacAddress::ROUTER, MACHINE_LINK, mac, machine)])
                .map_err(failed("create its link"))?;
            let outer = find(router, &name).map_err(failed("find its link"))?;
            let inner = find(&mut inside, MACHINE_LINK).map_err(failed("find its link in the machine"))?;
            (outer, inner)
        }
    };

    router.apply(vec![route::no_generated_address(outer), route::up(outer)]).map_err(failed("raise its link"))?;
    inside
        .apply(vec![route::up(LOOPBACK), route::no_generated_address(inner), route::up(inner)])
        .map_err(failed("raise its link in the machine"))?;

    let mut messages = vec![route::address(outer, router_address())];
    messages.extend(routes(outer, member).iter().map(route::route));
    messages.extend(neighbours(outer, member).iter().map(route::neighbour));
    router.apply(messages).map_err(failed("route to it"))?;

    let mut messages = Vec::new();
    for (address, via) in [(IpAddr::from(member.ipv4), NEXT_HOP_V4.into()), (member.ipv6.into(), NEXT_HOP_V6.into())] {
        let default =
            Route { kind: RouteKind::Unicast, to: everything(address), via: Some(via), link: inner, metric: METRIC };
        messages.push(route::address(inner, single(address)));
        messages.push(route::neighbour(&Neighbour { link: inner, address: via, mac: MacAddress::ROUTER }));
        messages.push(route::route(&default));
    }
    inside.apply(messages).map_err(failed("give the machine its address"))?;
    route::settle(router, &name).map_err(failed("look at its link"))?;
    route::settle(&mut inside, MACHINE_LINK).map_err(failed("look at its link in the machine"))?;
    route::settle_address(&mut inside, member.ipv6.into()).map_err(failed("see its IPv6 address work"))
}

/// The routes on the router's side.
pub(crate) fn routes(link: u32, member: &MemberSpec) -> [Route; 2] {
    [member.ipv4.into(), member.ipv6.into()].map(|address| Route {
        kind: RouteKind::Unicast,
        to: single(address),
        via: None,
        link,
        metric: METRIC,
    })
}

/// The neighbours on the router's side.
pub(crate) fn neighbours(link: u32, member: &MemberSpec) -> [Neighbour; 2] {
    let mac = MacAddress::of_member(member.number);
    [member.ipv4.into(), member.ipv6.into()].map(|address| Neighbour { link, address, mac })
}

/// What each router's end of a link has.
pub(crate) fn router_address() -> IpNet {
    IpNet::new(NEXT_HOP_V6.into(), 64).unwrap_or_else(|_| single(NEXT_HOP_V6.into()))
}

/// The indices of both ends, if they are each other's and have the right MACs; whatever else is in their place goes.
fn existing(
    router: &mut Socket,
    inside: &mut Socket,
    name: &str,
    member: &MemberSpec,
) -> Result<Option<(u32, u32)>, Errno> {
    let outer = route::link(router, name)?;
    let inner = route::link(inside, MACHINE_LINK)?;
    if let (Some(outer), Some(inner)) = (&outer, &inner)
        && are_ends(outer, inner)
        && outer.mac == Some(MacAddress::ROUTER)
        && inner.mac == Some(MacAddress::of_member(member.number))
    {
        return Ok(Some((outer.index, inner.index)));
    }
    if let Some(outer) = outer {
        gone_is_fine(router.apply(vec![route::delete_link_by_index(outer.index)]))?;
    }
    if let Some(inner) = route::link(inside, MACHINE_LINK)? {
        gone_is_fine(inside.apply(vec![route::delete_link_by_index(inner.index)]))?;
    }
    Ok(None)
}

pub(crate) fn are_ends(one: &Link, other: &Link) -> bool {
    one.peer == Some(other.index) && other.peer == Some(one.index)
}

pub(crate) fn find(socket: &mut Socket, name: &str) -> Result<u32, Errno> {
    route::link(socket, name)?.map(|link| link.index).ok_or(Errno::ENODEV)
}
