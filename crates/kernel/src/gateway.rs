//! What a router namespace has before any member: the gateway's addresses and the routes that end there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use ipnet::{IpNet, Ipv4Net};
use nix::errno::Errno;

use crate::error::KernelError;
use crate::namespace;
use crate::netlink::Socket;
use crate::route::{self, Route, RouteKind, everything, single};
use crate::spec::NetworkSpec;
use crate::wiring::Wiring;

/// The next hop of every member: on every link the same, and never on a wire of anybody else (RFC 3927).
pub const NEXT_HOP_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The same for IPv6; each router's end of a link has it.
pub const NEXT_HOP_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// `lo` has index 1 in every namespace.
pub(crate) const LOOPBACK: u32 = 1;
/// Of routes to members and into the networks; what IPv6 takes by itself.
pub(crate) const METRIC: u32 = 1024;
/// Of the routes that refuse what has no other way.
const LAST: u32 = 1_000_000;

/// [`warren_model::policy::NAMES_V4`].
const NAMES_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 18, 0, 0), 15);

/// Forwarding; no redirects, source routes, router advertisements or addresses that the kernel makes up. Reverse path
/// filtering is off: every source is pinned to its link by the rules, more strictly and in one lookup. Every refusal is
/// answered, not only one a second: the answer goes back over the link that the packet came from.
const SETTINGS: [(&str, &str); 21] = [
    ("ipv4/conf/all/forwarding", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    ("ipv4/conf/all/accept_source_route", "0"),
    ("ipv4/conf/default/accept_source_route", "0"),
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/all/accept_ra", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/all/accept_redirects", "0"),
    ("ipv6/conf/default/accept_redirects", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/addr_gen_mode", "1"),
    ("ipv6/conf/default/router_solicitations", "0"),
    ("ipv4/icmp_ratelimit", "0"),
    ("ipv6/icmp/ratelimit", "0"),
];

/// Makes the gateway what it should be; nothing that is right is interrupted.
pub(crate) fn apply(socket: &mut Socket, inside: BorrowedFd<'_>, spec: &NetworkSpec) -> Result<(), KernelError> {
    let place = format!("network {}", spec.number);
    namespace::set_sysctls(inside, &place, &SETTINGS)?;
    let mut messages = vec![route::up(LOOPBACK)];
    messages.extend(addresses(spec).map(|address| route::address(LOOPBACK, address)));
    messages.extend(routes(spec).iter().map(route::route));
    socket.apply(messages).map_err(|source| KernelError::Refused { action: "set up the gateway", place, source })
}

/// Whether the gateway is as it should be.
pub(crate) fn is_intact(socket: &mut Socket, spec: &NetworkSpec, wiring: &Wiring) -> Result<bool, Errno> {
    let up = wiring.link("lo").is_some_and(|lo| lo.admin_up);
    let addressed = addresses(spec).all(|address| wiring.addresses.contains(&(LOOPBACK, address)));
    let routed = routes(spec).iter().all(|route| wiring.routes.contains(route));
    Ok(up && addressed && routed && route::forwarding(socket)? == (true, true))
}

fn addresses(spec: &NetworkSpec) -> impl Iterator<Item = IpNet> {
    [IpAddr::from(spec.gateway4), NEXT_HOP_V4.into(), spec.gateway6.into()].into_iter().map(single)
}

/// An address of the network that nobody has is unreachable; everything else without a way is prohibited. The addresses
/// that stand for names outside are the router's own, so that its proxy can have them.
fn routes(spec: &NetworkSpec) -> [Route; 6] {
    let nobody = |to: IpNet| Route { kind: RouteKind::Unreachable, to, via: None, link: 0, metric: METRIC };
    let outside =
        |family: IpAddr| Route { kind: RouteKind::Prohibit, to: everything(family), via: None, link: 0, metric: LAST };
    let local = |to: IpNet| Route { kind: RouteKind::Local, to, via: None, link: LOOPBACK, metric: METRIC };
    [
        local(NAMES_V4.into()),
        local(spec.names6.into()),
        nobody(spec.cidr.net().into()),
        nobody(spec.cidr6.into()),
        outside(spec.gateway4.into()),
        outside(spec.gateway6.into()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_of_names_is_that_of_the_policy() {
        assert_eq!(NAMES_V4.to_string(), warren_model::policy::NAMES_V4);
    }
}
