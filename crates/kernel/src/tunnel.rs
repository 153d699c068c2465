//! The operators' device: a TAP device in the router namespace, by which the packets of all operators come and go. Each
//! operator has a MAC of its own there, so that the rules pin it like any member.
//!
//! The kernel keeps the device when nobody has it open; then what is sent to operators is dropped.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use ipnet::IpNet;
use nix::errno::Errno;
use warren_model::session::TUNNEL_MTU;
use warren_model::{InstallationId, MacAddress, NetworkNumber};
use warren_tunnel::{DeviceKind, keep_device, open_device};

use crate::error::KernelError;
use crate::firewall::{Access, MemberSpec};
use crate::member;
use crate::names::tunnel_link;
use crate::namespace;
use crate::netlink::{Message, Socket};
use crate::network::refused;
use crate::route::{self, Link, Neighbour, Route};

/// Opens the device, and makes it where there is none.
pub(crate) fn open(
    router: &mut Socket,
    inside: BorrowedFd<'_>,
    installation: &InstallationId,
    network: NetworkNumber,
) -> Result<OwnedFd, KernelError> {
    let name = tunnel_link(installation);
    let device = namespace::enter(inside, || {
        let device = open_device(&name, DeviceKind::Tap)?;
        keep_device(device.as_fd(), true)?;
        Ok::<_, io::Error>(device)
    });
    let failed = |source| KernelError::TunnelDevice { network, source };
    let device = device.map_err(|errno| failed(errno.into()))?.map_err(failed)?;
    prepare(router, &name).map_err(refused(network, "set up the operators' device"))?;
    Ok(device)
}

/// Makes the device lead to these members, and to nobody else. Tells whether there was none, and it was made.
pub(crate) fn fit(
    router: &mut Socket,
    inside: BorrowedFd<'_>,
    installation: &InstallationId,
    network: NetworkNumber,
    members: &[MemberSpec],
) -> Result<bool, KernelError> {
    let failed = refused(network, "route to its operators");
    let name = tunnel_link(installation);
    let is_missing = route::link(router, &name).map_err(&failed)?.is_none();
    if is_missing {
        drop(open(router, inside, installation, network)?);
    }
    route_to(router, &name, members).map_err(failed)?;
    Ok(is_missing)
}

/// Whether the device is as it should be, and leads to just those of the members that come by it.
pub(crate) fn is_whole(
    link: &Link,
    members: &BTreeSet<MemberSpec>,
    addresses: &BTreeSet<(u32, IpNet)>,
    routes: &BTreeSet<Route>,
    neighbours: &BTreeSet<Neighbour>,
) -> bool {
    let (wanted_routes, wanted_neighbours) = ways(link.index, members);
    link.admin_up
        && link.mac == Some(MacAddress::ROUTER)
        && addresses.contains(&(link.index, member::router_address()))
        && routes.iter().filter(|route| is_to_operator(route, link.index)).eq(&wanted_routes)
        && wanted_neighbours.is_subset(neighbours)
}

fn prepare(router: &mut Socket, name: &str) -> Result<(), Errno> {
    let link = route::link(router, name)?.ok_or(Errno::ENODEV)?;
    if link.mac != Some(MacAddress::ROUTER) {
        router.apply(vec![route::dressed(link.index, MacAddress::ROUTER, TUNNEL_MTU)])?;
    }
    let address = route::address(link.index, member::router_address());
    router.apply(vec![route::no_generated_address(link.index), route::up(link.index), address])
}

fn route_to(router: &mut Socket, name: &str, members: &[MemberSpec]) -> Result<(), Errno> {
    prepare(router, name)?;
    let link = route::link(router, name)?.ok_or(Errno::ENODEV)?.index;
    let (routes, neighbours) = ways(link, members);
    let there: BTreeSet<Route> =
        route::routes(router)?.into_iter().filter(|route| is_to_operator(route, link)).collect();
    let known: BTreeSet<Neighbour> =
        route::neighbours(router)?.into_iter().filter(|neighbour| neighbour.link == link).collect();
    for stale in there.difference(&routes) {
        gone_is_fine(router.apply(vec![route::delete_route(stale)]))?;
    }
    for stale in known.difference(&neighbours) {
        gone_is_fine(router.apply(vec![route::delete_neighbour(stale)]))?;
    }
    let mut messages: Vec<Message> = neighbours.difference(&known).map(route::neighbour).collect();
    messages.extend(routes.difference(&there).map(route::route));
    if messages.is_empty() { Ok(()) } else { router.apply(messages) }
}

fn ways<'a>(link: u32, members: impl IntoIterator<Item = &'a MemberSpec>) -> (BTreeSet<Route>, BTreeSet<Neighbour>) {
    let operators: Vec<_> = members.into_iter().filter(|member| member.access == Access::Tunnel).collect();
    let routes = operators.iter().flat_map(|member| member::routes(link, member)).collect();
    let neighbours = operators.iter().flat_map(|member| member::neighbours(link, member)).collect();
    (routes, neighbours)
}

/// The kernel itself routes link-local addresses by every link.
fn is_to_operator(route: &Route, link: u32) -> bool {
    let local = matches!(route.to.addr(), IpAddr::V6(six) if six.is_unicast_link_local());
    route.link == link && !local
}

fn gone_is_fine(outcome: Result<(), Errno>) -> Result<(), Errno> {
    match outcome {
        Err(Errno::ESRCH | Errno::ENOENT) => Ok(()),
        other => other,
    }
}
