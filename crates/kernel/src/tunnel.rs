//! The operators' device: a TAP device in the router namespace, by which the packets of all operators come and go. Each
//! operator has a MAC of its own there, so that the rules pin it like any member.
//!
//! The kernel keeps the device when nobody has it open; then what is sent to operators is dropped.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use warren_model::session::TUNNEL_MTU;
use warren_model::{Access, InstallationId, MacAddress, NetworkNumber};
use warren_tunnel::{DeviceKind, keep_device, open_device};

use crate::error::KernelError;
use crate::firewall::MemberSpec;
use crate::member;
use crate::names::tunnel_link;
use crate::namespace;
use crate::netlink::Socket;
use crate::network::refused;
use crate::route::{self, Link};
use crate::wiring::{Ways, Wiring};

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
///
/// # Errors
/// Then the wiring may be another one than this says.
pub(crate) fn fit(
    router: &mut Socket,
    inside: BorrowedFd<'_>,
    installation: &InstallationId,
    network: NetworkNumber,
    wiring: &mut Wiring,
    members: &[MemberSpec],
) -> Result<bool, KernelError> {
    let failed = refused(network, "route to its operators");
    let name = tunnel_link(installation);
    let link = wiring.link(&name);
    let is_missing = link.is_none();
    if !link.is_some_and(|link| is_prepared(link, wiring)) {
        match is_missing {
            true => drop(open(router, inside, installation, network)?),
            false => prepare(router, &name).map_err(&failed)?,
        }
        *wiring = Wiring::read(router).map_err(&failed)?;
    }
    let link = wiring.link(&name).ok_or(Errno::ENODEV).map_err(&failed)?.index;
    wiring.lead(router, link, ways(link, members)).map_err(failed)?;
    Ok(is_missing)
}

/// Whether the device is as it should be, and leads to just those of the members that come by it.
pub(crate) fn is_whole(link: &Link, members: &BTreeSet<MemberSpec>, wiring: &Wiring) -> bool {
    is_prepared(link, wiring) && wiring.ways(link.index) == ways(link.index, members)
}

/// Whether the device itself is as it should be, wherever it leads.
fn is_prepared(link: &Link, wiring: &Wiring) -> bool {
    link.admin_up
        && link.mac == Some(MacAddress::ROUTER)
        && wiring.addresses.contains(&(link.index, member::router_address()))
}

fn prepare(router: &mut Socket, name: &str) -> Result<(), Errno> {
    let link = route::link(router, name)?.ok_or(Errno::ENODEV)?;
    if link.mac != Some(MacAddress::ROUTER) {
        router.apply(vec![route::dressed(link.index, MacAddress::ROUTER, TUNNEL_MTU)])?;
    }
    let address = route::address(link.index, member::router_address());
    router.apply(vec![route::no_generated_address(link.index), route::up(link.index), address])
}

fn ways<'a>(link: u32, members: impl IntoIterator<Item = &'a MemberSpec>) -> Ways {
    let mut ways = Ways::default();
    for member in members.into_iter().filter(|member| member.access == Access::Tunnel) {
        ways.routes.extend(member::routes(link, member));
        ways.neighbours.extend(member::neighbours(link, member));
    }
    ways
}
