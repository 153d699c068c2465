//! Links, addresses, routes and neighbours: the messages that make them, and what a dump says about them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::errno::Errno;
use warren_model::MacAddress;

use crate::netlink::{Attributes, CREATE, EXCLUSIVE, Message, REPLACE, Reply, Socket, native32, text};

/// The device group of every link that Warren makes (`"wa"`), the same in all installations.
pub(crate) const LINK_GROUP: u32 = 0x7761;

/// `IFF_UP` and `IFF_LOWER_UP` (`linux/if.h`).
const UP: u32 = 1;
const LOWER_UP: u32 = 1 << 16;

const INET: u8 = 2;
const INET6: u8 = 10;

/// Sizes of `ifinfomsg`, `ifaddrmsg`, `rtmsg`, `ndmsg`, `netconfmsg`.
const LINK: usize = 16;
const ADDRESS: usize = 8;
const ROUTE: usize = 12;
const NEIGHBOUR: usize = 12;
const NETCONF: usize = 4;

/// `RT_TABLE_MAIN`, `RTPROT_STATIC`, `NUD_PERMANENT`, `IFA_F_NODAD`, `RTNH_F_ONLINK`.
const MAIN: u8 = 254;
const STATIC: u8 = 4;
const PERMANENT: u16 = 0x80;
const NODAD: u8 = 0x02;
const ONLINK: u32 = 4;

/// The kinds of routes (`RTN_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum RouteKind {
    Unicast = 1,
    /// What goes there is for the namespace itself.
    Local = 2,
    Unreachable = 7,
    Prohibit = 8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) kind: RouteKind,
    pub(crate) to: IpNet,
    pub(crate) via: Option<IpAddr>,
    /// The link's index; for unreachable and prohibit routes 0, for local ones that of `lo`.
    pub(crate) link: u32,
    /// 0 leaves it to the kernel (IPv6: 1024).
    pub(crate) metric: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Neighbour {
    pub(crate) link: u32,
    pub(crate) address: IpAddr,
    pub(crate) mac: MacAddress,
}

#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Option<MacAddress>,
    /// The other end's index, in the other end's namespace.
    pub(crate) peer: Option<u32>,
    pub(crate) admin_up: bool,
    /// Both ends are up.
    pub(crate) carrier: bool,
    /// `IF_OPER_UP`: the kernel has taken note of the carrier, and sends.
    sends: bool,
}

/// A veth whose other end is put into another namespace at once; both ends start down.
pub(crate) fn veth(name: &str, mac: MacAddress, peer: &str, peer_mac: MacAddress, into: BorrowedFd<'_>) -> Message {
    Message::new(16, CREATE | EXCLUSIVE, &[0; LINK])
        .put_text(3, name)
        .put(1, &mac.octets())
        .put(27, &LINK_GROUP.to_ne_bytes())
        .nest(18, |info| {
            info.put_text(1, "veth").nest(2, |data| {
                data.nest_after(1, &[0; LINK], |other| {
                    other
                        .put_text(3, peer)
                        .put(1, &peer_mac.octets())
                        .put(27, &LINK_GROUP.to_ne_bytes())
                        .put(28, &into.as_raw_fd().to_ne_bytes())
                })
            })
        })
}

/// No link-local address by itself (`IN6_ADDR_GEN_MODE_NONE`); to be sent before the link goes up.
pub(crate) fn no_generated_address(index: u32) -> Message {
    Message::new(19, 0, &link_header(index, 0, 0))
        .nest(26, |families| families.nest(u16::from(INET6), |inet6| inet6.put(8, &[1])))
}

/// A link that somebody else's call made gets Warren's group, this MAC and this MTU, in bytes.
pub(crate) fn dressed(index: u32, mac: MacAddress, mtu: u16) -> Message {
    Message::new(16, 0, &link_header(index, 0, 0))
        .put(1, &mac.octets())
        .put(4, &u32::from(mtu).to_ne_bytes())
        .put(27, &LINK_GROUP.to_ne_bytes())
}

pub(crate) fn up(index: u32) -> Message {
    Message::new(16, 0, &link_header(index, UP, UP))
}

pub(crate) fn delete_link(name: &str) -> Message {
    Message::new(17, 0, &[0; LINK]).put_text(3, name)
}

pub(crate) fn delete_link_by_index(index: u32) -> Message {
    Message::new(17, 0, &link_header(index, 0, 0))
}

/// Every link of Warren's group in the namespace, in one go.
pub(crate) fn delete_all_links() -> Message {
    Message::new(17, 0, &[0; LINK]).put(27, &LINK_GROUP.to_ne_bytes())
}

pub(crate) fn address(link: u32, address: IpNet) -> Message {
    let flags = if address.addr().is_ipv6() { NODAD } else { 0 };
    let mut fixed = [0u8; ADDRESS];
    fixed[..4].copy_from_slice(&[family(address.addr()), address.prefix_len(), flags, 0]);
    fixed[4..].copy_from_slice(&link.to_ne_bytes());
    let octets = octets(address.addr());
    Message::new(20, CREATE | REPLACE, &fixed).put(2, &octets).put(1, &octets)
}

pub(crate) fn route(route: &Route) -> Message {
    // RT_SCOPE_HOST, RT_SCOPE_LINK, RT_SCOPE_UNIVERSE; IPv6 has none.
    let scope = match route.kind {
        _ if route.to.addr().is_ipv6() => 0,
        RouteKind::Local => 254,
        _ if route.via.is_none() && route.link != 0 => 253,
        _ => 0,
    };
    route_message(24, CREATE | REPLACE, route, STATIC, scope)
}

/// Deletes the route, whoever made it.
pub(crate) fn delete_route(route: &Route) -> Message {
    // RTPROT_UNSPEC and RT_SCOPE_NOWHERE match every protocol and scope.
    route_message(25, 0, route, 0, 255)
}

fn route_message(kind: u16, flags: u16, route: &Route, protocol: u8, scope: u8) -> Message {
    let to = route.to;
    let mut fixed = [family(to.addr()), to.prefix_len(), 0, 0, MAIN, protocol, scope, route.kind as u8, 0, 0, 0, 0];
    if route.via.is_some() {
        fixed[8..].copy_from_slice(&ONLINK.to_ne_bytes());
    }
    let mut message = Message::new(kind, flags, &fixed);
    if to.prefix_len() > 0 {
        message = message.put(1, &octets(to.addr()));
    }
    if let Some(via) = route.via {
        message = message.put(5, &octets(via));
    }
    if route.link != 0 {
        message = message.put(4, &route.link.to_ne_bytes());
    }
    if route.metric != 0 {
        message = message.put(6, &route.metric.to_ne_bytes());
    }
    message
}

pub(crate) fn neighbour(neighbour: &Neighbour) -> Message {
    neighbour_message(28, CREATE | REPLACE, neighbour).put(2, &neighbour.mac.octets())
}

pub(crate) fn delete_neighbour(neighbour: &Neighbour) -> Message {
    neighbour_message(29, 0, neighbour)
}

fn neighbour_message(kind: u16, flags: u16, neighbour: &Neighbour) -> Message {
    let mut fixed = [0u8; NEIGHBOUR];
    fixed[0] = family(neighbour.address);
    fixed[4..8].copy_from_slice(&neighbour.link.to_ne_bytes());
    fixed[8..10].copy_from_slice(&PERMANENT.to_ne_bytes());
    Message::new(kind, flags, &fixed).put(1, &octets(neighbour.address))
}

/// What was deleted may have gone before: a link (`ENODEV`), a route (`ESRCH`) or a neighbour (`ENOENT`).
pub(crate) fn gone_is_fine(outcome: Result<(), Errno>) -> Result<(), Errno> {
    match outcome {
        Err(Errno::ENODEV | Errno::ESRCH | Errno::ENOENT) => Ok(()),
        other => other,
    }
}

/// One link by name, `None` when there is none.
pub(crate) fn link(socket: &mut Socket, name: &str) -> Result<Option<Link>, Errno> {
    match socket.get(Message::new(18, 0, &[0; LINK]).put_text(3, name)) {
        Ok(reply) => Ok(parse_link(&reply)),
        Err(Errno::ENODEV) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// One link by its index, `None` when there is none.
pub(crate) fn link_by_index(socket: &mut Socket, index: u32) -> Result<Option<Link>, Errno> {
    match socket.get(Message::new(18, 0, &link_header(index, 0, 0))) {
        Ok(reply) => Ok(parse_link(&reply)),
        Err(Errno::ENODEV) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Waits until the links send. The end of a veth that was raised first takes note of the other one by a work item of
/// the kernel (`net/core/link_watch.c`), and until then drops what it should send. Asking for a link makes new kernels
/// run it at once.
pub(crate) fn settle(socket: &mut Socket, name: &str) -> Result<(), Errno> {
    // One that its machine lowers meanwhile never does, and must not hold up the network; the next observation tells.
    patiently(Duration::from_millis(500), || Ok(link(socket, name)?.is_none_or(|link| link.sends))).map(drop)
}

/// Waits until the namespace takes packets to this address of its own. The kernel puts the local route of an IPv6
/// address in place by a work item (`addrconf_dad_work`), also where nothing is probed.
pub(crate) fn settle_address(socket: &mut Socket, address: IpAddr) -> Result<(), Errno> {
    /// `RTN_LOCAL`.
    const LOCAL: u8 = 2;
    let mut fixed = [0u8; ROUTE];
    fixed[0] = family(address);
    fixed[1] = if address.is_ipv4() { 32 } else { 128 };
    let settled = patiently(Duration::from_secs(2), || {
        let answer = socket.get(Message::new(26, 0, &fixed).put(1, &octets(address)));
        Ok(answer.is_ok_and(|reply| reply.payload.get(7) == Some(&LOCAL)))
    })?;
    if settled { Ok(()) } else { Err(Errno::ETIMEDOUT) }
}

/// Asks until the answer is yes, and tells whether it was in the end. The kernel's work items wait for its routing
/// lock, for seconds on a host that is removing many namespaces, so the pauses grow and the patience is long.
fn patiently(within: Duration, mut done: impl FnMut() -> Result<bool, Errno>) -> Result<bool, Errno> {
    let deadline = Instant::now() + within;
    let mut pause = Duration::from_micros(50);
    while !done()? {
        if Instant::now() > deadline {
            return Ok(false);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
    Ok(true)
}

pub(crate) fn links(socket: &mut Socket) -> Result<Vec<Link>, Errno> {
    Ok(socket.dump(Message::new(18, 0, &[0; LINK]))?.iter().filter_map(parse_link).collect())
}

/// All addresses, each with its link's index.
pub(crate) fn addresses(socket: &mut Socket) -> Result<Vec<(u32, IpNet)>, Errno> {
    let replies = socket.dump(Message::new(22, 0, &[0; ADDRESS]))?;
    Ok(replies
        .iter()
        .filter_map(|reply| {
            let attributes = reply.attributes(ADDRESS);
            let link = native32(reply.payload.get(4..8)?)?;
            let address = ip(attributes.find(2).or_else(|| attributes.find(1))?)?;
            Some((link, IpNet::new(address, *reply.payload.get(1)?).ok()?))
        })
        .collect())
}

/// The unicast, local, unreachable and prohibit routes of the main table.
pub(crate) fn routes(socket: &mut Socket) -> Result<Vec<Route>, Errno> {
    let mut fixed = [0u8; ROUTE];
    fixed[4] = MAIN;
    Ok(socket.dump(Message::new(26, 0, &fixed))?.iter().filter_map(parse_route).collect())
}

/// The link that the main table's exact route to this destination leaves by.
pub(crate) fn link_of_route(socket: &mut Socket, to: IpAddr) -> Result<Option<u32>, Errno> {
    // RTM_F_FIB_MATCH: answer with the matching route itself.
    const FIB_MATCH: u32 = 0x2000;
    let length = if to.is_ipv4() { 32 } else { 128 };
    let mut fixed = [0u8; ROUTE];
    fixed[0] = family(to);
    fixed[1] = length;
    fixed[8..].copy_from_slice(&FIB_MATCH.to_ne_bytes());
    match socket.get(Message::new(26, 0, &fixed).put(1, &octets(to))) {
        Ok(reply) => Ok(parse_route(&reply).filter(|found| found.to.prefix_len() == length).map(|found| found.link)),
        Err(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::ENODATA) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// The permanent neighbours.
pub(crate) fn neighbours(socket: &mut Socket) -> Result<Vec<Neighbour>, Errno> {
    Ok(socket.dump(Message::new(30, 0, &[0; NEIGHBOUR]))?.iter().filter_map(parse_neighbour).collect())
}

/// Whether a permanent neighbour is as given.
pub(crate) fn has_neighbour(socket: &mut Socket, wanted: &Neighbour) -> Result<bool, Errno> {
    let mut fixed = [0u8; NEIGHBOUR];
    fixed[0] = family(wanted.address);
    fixed[4..8].copy_from_slice(&wanted.link.to_ne_bytes());
    match socket.get(Message::new(30, 0, &fixed).put(1, &octets(wanted.address))) {
        Ok(reply) => Ok(parse_neighbour(&reply).as_ref() == Some(wanted)),
        Err(Errno::ENOENT | Errno::ENODEV) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Whether the namespace forwards IPv4 and IPv6, as its `all` settings say.
pub(crate) fn forwarding(socket: &mut Socket) -> Result<(bool, bool), Errno> {
    /// `NETCONFA_IFINDEX`, `NETCONFA_FORWARDING`, `NETCONFA_IFINDEX_ALL`.
    const IFINDEX: u16 = 1;
    const FORWARDING: u16 = 2;
    const ALL: i32 = -1;
    let mut one = |family: u8| -> Result<bool, Errno> {
        let mut fixed = [0u8; NETCONF];
        fixed[0] = family;
        let reply = socket.get(Message::new(82, 0, &fixed[..]).put(IFINDEX, &ALL.to_ne_bytes()))?;
        Ok(reply.attributes(NETCONF).find(FORWARDING).and_then(native32).is_some_and(|value| value != 0))
    };
    Ok((one(INET)?, one(INET6)?))
}

pub(crate) fn everything(family_of: IpAddr) -> IpNet {
    match family_of {
        IpAddr::V4(_) => host_net(Ipv4Addr::UNSPECIFIED.into(), 0),
        IpAddr::V6(_) => host_net(Ipv6Addr::UNSPECIFIED.into(), 0),
    }
}

/// The net that is just this address.
pub(crate) fn single(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

fn host_net(address: IpAddr, length: u8) -> IpNet {
    IpNet::new(address, length).unwrap_or_else(|_| IpNet::from(address))
}

fn parse_link(reply: &Reply) -> Option<Link> {
    let attributes = reply.attributes(LINK);
    let flags = native32(reply.payload.get(8..12)?)?;
    Some(Link {
        index: native32(reply.payload.get(4..8)?)?,
        name: attributes.find(3).and_then(text)?.to_owned(),
        mac: attributes.find(1).and_then(mac),
        peer: attributes.find(5).and_then(native32),
        admin_up: flags & UP != 0,
        carrier: flags & (UP | LOWER_UP) == UP | LOWER_UP,
        sends: attributes.find(16).and_then(|state| state.first()) == Some(&6),
    })
}

fn parse_route(reply: &Reply) -> Option<Route> {
    let attributes = reply.attributes(ROUTE);
    let fixed = reply.payload.get(..ROUTE)?;
    if table(fixed[4], attributes) != u32::from(MAIN) {
        return None;
    }
    let kind = match fixed[7] {
        1 => RouteKind::Unicast,
        2 => RouteKind::Local,
        7 => RouteKind::Unreachable,
        8 => RouteKind::Prohibit,
        _ => return None,
    };
    let any = if fixed[0] == INET {
        everything(Ipv4Addr::UNSPECIFIED.into())
    } else {
        everything(Ipv6Addr::UNSPECIFIED.into())
    };
    let to = match attributes.find(1).and_then(ip) {
        Some(address) => IpNet::new(address, fixed[1]).ok()?,
        None => any,
    };
    let link = match kind {
        RouteKind::Unicast | RouteKind::Local => attributes.find(4).and_then(native32).unwrap_or(0),
        RouteKind::Unreachable | RouteKind::Prohibit => 0,
    };
    Some(Route {
        kind,
        to,
        via: attributes.find(5).and_then(ip),
        link,
        metric: attributes.find(6).and_then(native32).unwrap_or(0),
    })
}

fn parse_neighbour(reply: &Reply) -> Option<Neighbour> {
    let attributes = reply.attributes(NEIGHBOUR);
    let state = u16::from_ne_bytes(reply.payload.get(8..10)?.try_into().ok()?);
    (state & PERMANENT != 0).then_some(())?;
    Some(Neighbour {
        link: native32(reply.payload.get(4..8)?)?,
        address: attributes.find(1).and_then(ip)?,
        mac: attributes.find(2).and_then(mac)?,
    })
}

fn table(short: u8, attributes: Attributes<'_>) -> u32 {
    attributes.find(15).and_then(native32).unwrap_or(u32::from(short))
}

fn link_header(index: u32, flags: u32, change: u32) -> [u8; LINK] {
    let mut fixed = [0u8; LINK];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&change.to_ne_bytes());
    fixed
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { INET } else { INET6 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn ip(payload: &[u8]) -> Option<IpAddr> {
    match payload.len() {
        4 => <[u8; 4]>::try_from(payload).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(payload).ok().map(IpAddr::from),
        _ => None,
    }
}

fn mac(payload: &[u8]) -> Option<MacAddress> {
    payload.try_into().ok().map(MacAddress::from_octets)
}
