//! The namespace that the daemon runs in: it carries what open networks send out, and nothing else.

pub(crate) mod exits;
mod forwarding;
mod place;
pub(crate) mod transit;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use ipnet::IpNet;
use nix::errno::Errno;
use warren_model::{InstallationId, NetworkNumber, UlaPrefix};

use exits::Exits;
use forwarding::Switched;
pub use forwarding::{ForwardingState, HostForwarding};
use place::Place;

use crate::error::KernelError;
use crate::firewall::shape::Shape;
use crate::firewall::{digest, process, text};
use crate::gateway::METRIC;
use crate::member::{are_ends, find};
use crate::names;
use crate::namespace;
use crate::netlink::{Family, Message, Socket};
use crate::record::Record;
use crate::route::{self, Neighbour, Route, RouteKind, everything, gone_is_fine, single};

/// Lower than the routes that refuse.
const UPLINK_METRIC: u32 = 100;

pub(crate) struct Host {
    pub(crate) installation: InstallationId,
    pub(crate) ula: UlaPrefix,
    namespace: OwnedFd,
    state: Mutex<State>,
}

struct State {
    route: Socket,
    nft: Socket,
    /// The generation at which the host's table was last seen to be as loaded.
    intact_at: Option<u32>,
    /// Forwarding may be switched on.
    consent: bool,
}

impl Host {
    /// The namespace of the calling thread.
    pub(crate) fn here(installation: InstallationId, ula: UlaPrefix) -> Result<Self, KernelError> {
        Self::at(installation, ula, namespace::current()?)
    }

    /// The namespace in which the installation has its uplinks and rules; without any, that of the calling thread.
    pub(crate) fn of_installation(installation: InstallationId, ula: UlaPrefix) -> Result<Self, KernelError> {
        let here = namespace::current()?;
        match Place::recorded(&installation)? {
            Some(place) if place != Place::of(here.as_fd())? => match place.open() {
                Some(there) => Self::at(installation, ula, there),
                // It is gone, and everything with it.
                None => Self::at(installation, ula, here),
            },
            _ => Self::at(installation, ula, here),
        }
    }

    fn at(installation: InstallationId, ula: UlaPrefix, namespace: OwnedFd) -> Result<Self, KernelError> {
        let opened = |family| {
            namespace::enter(namespace.as_fd(), || Socket::open(family)).flatten().map_err(refused("open a socket"))
        };
        let (route, nft) = (opened(Family::Route)?, opened(Family::Netfilter)?);
        let state = Mutex::new(State { route, nft, intact_at: None, consent: false });
        Ok(Self { installation, ula, namespace, state })
    }

    /// Makes the uplink of a network from which something may leave, or makes good what it lacks. The rules come first.
    /// `private` are the ranges that it may reach although they are not the public internet.
    pub(crate) fn connect(
        &self,
        router: &mut Socket,
        network: NetworkNumber,
        private: &BTreeSet<IpNet>,
    ) -> Result<(), KernelError> {
        let mut state = self.lock();
        let (four, six) = route::forwarding(&mut state.route).map_err(refused("say whether it forwards"))?;
        match forwarding::refuse_unless_on(four, six) {
            Err(_) if state.consent => self.forward(&mut state)?,
            outcome => outcome?,
        }
        self.open_private(&mut state, network, private)?;
        self.ensure_rules(&mut state)?;
        self.make_uplink(&mut state, router, network).map_err(refused("make an uplink"))
    }

    /// Removes the uplink, and the rules with the last one. Fine if absent.
    pub(crate) fn disconnect(&self, network: NetworkNumber) -> Result<(), KernelError> {
        let mut state = self.lock();
        let name = names::uplink(&self.installation, network);
        if route::link(&mut state.route, &name).map_err(refused("find an uplink"))?.is_some() {
            gone_is_fine(state.route.apply(vec![route::delete_link(&name)])).map_err(refused("remove an uplink"))?;
        }
        let closed = self.open_private(&mut state, network, &BTreeSet::new())?;
        // The link may have gone by itself, with its other end.
        if !self.record_path().exists() {
            return Ok(());
        }
        self.remove_unused_rules(&mut state)?;
        if closed && self.record_path().exists() && self.is_recorded_place()? {
            self.ensure_rules(&mut state)?;
        }
        Ok(())
    }

    /// Whether everything that the uplink needs is there, on both sides.
    pub(crate) fn is_connected(
        &self,
        router: &mut Socket,
        network: NetworkNumber,
        private: &BTreeSet<IpNet>,
    ) -> Result<bool, KernelError> {
        let mut state = self.lock();
        let whole = self.uplink_is_whole(&mut state, router, network).map_err(refused("show an uplink"))?;
        Ok(whole && self.rules_are_intact(&mut state)? && Exits::read(&self.installation)?.are(network, private))
    }

    /// Whether there is anything of an uplink on the host's side.
    pub(crate) fn has_uplink(&self, network: NetworkNumber) -> Result<bool, KernelError> {
        let name = names::uplink(&self.installation, network);
        Ok(route::link(&mut self.lock().route, &name).map_err(refused("find an uplink"))?.is_some())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What a panicking holder leaves is sockets and a hint: the next answer may be an old one and is passed over.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make_uplink(&self, state: &mut State, router: &mut Socket, network: NetworkNumber) -> Result<(), Errno> {
        let name = names::uplink(&self.installation, network);
        let (router_mac, host_mac) = transit::macs(network);
        let outer = route::link(router, &name)?;
        let inner = route::link(&mut state.route, &name)?;
        let whole = matches!((&outer, &inner), (Some(outer), Some(inner)) if are_ends(outer, inner)
            && outer.mac == Some(router_mac) && inner.mac == Some(host_mac));
        if !whole {
            if outer.is_some() {
                gone_is_fine(router.apply(vec![route::delete_link(&name)]))?;
            }
            gone_is_fine(state.route.apply(vec![route::delete_link(&name)]))?;
            router.apply(vec![route::veth(&name, router_mac, &name, host_mac, self.namespace.as_fd())])?;
        }
        let outer = find(router, &name)?;
        let inner = find(&mut state.route, &name)?;
        router.apply(vec![route::no_generated_address(outer), route::up(outer)])?;
        state.route.apply(vec![route::no_generated_address(inner), route::up(inner)])?;

        let wanted = self.wanted(network, outer, inner);
        let mut messages: Vec<Message> =
            wanted.addresses.iter().map(|address| route::address(outer, single(*address))).collect();
        messages.extend(wanted.router_neighbours.iter().map(route::neighbour));
        messages.extend(wanted.router_routes.iter().map(route::route));
        router.apply(messages)?;
        let mut messages: Vec<Message> = wanted.host_neighbours.iter().map(route::neighbour).collect();
        messages.extend(wanted.host_routes.iter().map(route::route));
        state.route.apply(messages)?;
        route::settle(router, &name)?;
        route::settle(&mut state.route, &name)
    }

    fn uplink_is_whole(&self, state: &mut State, router: &mut Socket, network: NetworkNumber) -> Result<bool, Errno> {
        let name = names::uplink(&self.installation, network);
        let (Some(outer), Some(inner)) = (route::link(router, &name)?, route::link(&mut state.route, &name)?) else {
            return Ok(false);
        };
        if !are_ends(&outer, &inner) || !outer.carrier || !inner.carrier {
            return Ok(false);
        }
        let wanted = self.wanted(network, outer.index, inner.index);
        let addresses = route::addresses(router)?;
        let routes = route::routes(router)?;
        let neighbours = route::neighbours(router)?;
        let mut whole = wanted.addresses.iter().all(|address| addresses.contains(&(outer.index, single(*address))))
            && wanted.router_routes.iter().all(|route| routes.contains(route))
            && wanted.router_neighbours.iter().all(|neighbour| neighbours.contains(neighbour))
            && route::forwarding(&mut state.route)? == (true, true);
        for route in &wanted.host_routes {
            whole = whole && route::link_of_route(&mut state.route, route.to.addr())? == Some(inner.index);
        }
        for neighbour in &wanted.host_neighbours {
            whole = whole && route::has_neighbour(&mut state.route, neighbour)?;
        }
        Ok(whole)
    }

    fn wanted(&self, network: NetworkNumber, outer: u32, inner: u32) -> Wanted {
        let (router_mac, host_mac) = transit::macs(network);
        let addresses: [IpAddr; 2] =
            [transit::address4(&self.installation, network).into(), transit::address6(&self.ula, network).into()];
        let hosts: [IpAddr; 2] = [transit::HOST_V4.into(), transit::HOST_V6.into()];
        Wanted {
            addresses,
            router_neighbours: hosts.map(|address| Neighbour { link: outer, address, mac: host_mac }),
            router_routes: hosts.map(|via| Route {
                kind: RouteKind::Unicast,
                to: everything(via),
                via: Some(via),
                link: outer,
                metric: UPLINK_METRIC,
            }),
            host_neighbours: addresses.map(|address| Neighbour { link: inner, address, mac: router_mac }),
            host_routes: addresses.map(|address| Route {
                kind: RouteKind::Unicast,
                to: single(address),
                via: None,
                link: inner,
                metric: METRIC,
            }),
        }
    }

    /// Writes down which private ranges the network may reach; whether that is something else than before.
    fn open_private(
        &self,
        state: &mut State,
        network: NetworkNumber,
        private: &BTreeSet<IpNet>,
    ) -> Result<bool, KernelError> {
        let mut exits = Exits::read(&self.installation)?;
        if exits.are(network, private) {
            return Ok(false);
        }
        exits.set(network, private);
        exits.write(&self.installation)?;
        state.intact_at = None;
        Ok(true)
    }

    fn rules_text(&self) -> Result<String, KernelError> {
        let switched = Switched::read(&self.installation)?;
        let exits = Exits::read(&self.installation)?;
        let closed = [switched.ipv4, switched.ipv6];
        Ok(text::host(&self.installation, &self.ula, closed, &exits, counts_flows()?))
    }

    fn record_path(&self) -> PathBuf {
        self.installation.run_directory().join("rules-host")
    }

    fn ensure_rules(&self, state: &mut State) -> Result<(), KernelError> {
        if self.rules_are_intact(state)? {
            return Ok(());
        }
        self.settle_here()?;
        let rules = self.rules_text()?;
        process::load(self.namespace.as_fd(), "the host", &rules)?;
        let generation = digest::generation(&mut state.nft).map_err(refused("show its rules"))?;
        let table = names::host_table(&self.installation);
        if let Some(kernel) = digest::digest(&mut state.nft, Some(&table)).map_err(refused("show its rules"))? {
            Record::new("host", &rules, kernel, Shape::BARE).write(&self.record_path())?;
            state.intact_at = Some(generation);
        }
        Ok(())
    }

    fn rules_are_intact(&self, state: &mut State) -> Result<bool, KernelError> {
        let generation = digest::generation(&mut state.nft).map_err(refused("show its rules"))?;
        if state.intact_at == Some(generation) {
            return Ok(true);
        }
        let table = names::host_table(&self.installation);
        let kernel = digest::digest(&mut state.nft, Some(&table)).map_err(refused("show its rules"))?;
        let known = Record::read(&self.record_path());
        let intact = match (kernel, known) {
            (Some(kernel), Some(known)) => known == Record::new("host", &self.rules_text()?, kernel, Shape::BARE),
            _ => false,
        };
        state.intact_at = intact.then_some(generation);
        Ok(intact)
    }

    /// While Warren's consented forwarding is on, the rules that close it to others stay.
    fn remove_unused_rules(&self, state: &mut State) -> Result<(), KernelError> {
        let links = route::links(&mut state.route).map_err(refused("list its links"))?;
        let used = links.iter().any(|link| names::parse_uplink(&self.installation, &link.name).is_some());
        if used {
            return Ok(());
        }
        Exits::default().write(&self.installation)?;
        if Switched::read(&self.installation)? != Switched::default() || !self.is_recorded_place()? {
            return Ok(());
        }
        self.delete_rules(state)?;
        Place::forget(&self.installation)
    }

    /// Writes down that things are made here from now on. What an earlier server made in another namespace is undone.
    fn settle_here(&self) -> Result<(), KernelError> {
        let here = Place::of(self.namespace.as_fd())?;
        match Place::recorded(&self.installation)? {
            Some(place) if place == here => return Ok(()),
            Some(place) => {
                if let Some(there) = place.open() {
                    let elsewhere = Self::at(self.installation.clone(), self.ula, there)?;
                    let mut state = elsewhere.lock();
                    let links = route::links(&mut state.route).map_err(refused("list its links"))?;
                    for link in
                        links.iter().filter(|link| names::parse_uplink(&self.installation, &link.name).is_some())
                    {
                        gone_is_fine(state.route.apply(vec![route::delete_link(&link.name)]))
                            .map_err(refused("remove an uplink"))?;
                    }
                    drop(state);
                    HostForwarding { host: &elsewhere }.restore()?;
                }
                Switched::default().write(&self.installation)?;
            }
            None => {}
        }
        here.record(&self.installation)
    }

    fn is_recorded_place(&self) -> Result<bool, KernelError> {
        Ok(Place::recorded(&self.installation)? == Some(Place::of(self.namespace.as_fd())?))
    }

    fn delete_rules(&self, state: &mut State) -> Result<(), KernelError> {
        let table = names::host_table(&self.installation);
        state.intact_at = None;
        process::load(
            self.namespace.as_fd(),
            "the host",
            &format!("table inet {table} {{}}\ndelete table inet {table}\n"),
        )?;
        Record::remove(&self.record_path())
    }
}

/// Whether this kernel can count flows. Asked once, in a namespace of its own.
fn counts_flows() -> Result<bool, KernelError> {
    static COUNTS: OnceLock<bool> = OnceLock::new();
    if let Some(counts) = COUNTS.get() {
        return Ok(*counts);
    }
    let counts = match process::load(namespace::fresh()?.as_fd(), "a namespace of its own", &text::host::counting()) {
        Ok(()) => true,
        Err(KernelError::Rules { .. }) => false,
        Err(error) => return Err(error),
    };
    Ok(*COUNTS.get_or_init(|| counts))
}

struct Wanted {
    addresses: [IpAddr; 2],
    router_neighbours: [Neighbour; 2],
    router_routes: [Route; 2],
    host_neighbours: [Neighbour; 2],
    host_routes: [Route; 2],
}

/// The ranges that the calling thread's namespace has routes to, default routes and link-local ranges left out.
pub(crate) fn routes_here() -> Result<Vec<IpNet>, KernelError> {
    let mut socket = Socket::open(Family::Route).map_err(refused("open a socket"))?;
    let routes = route::routes(&mut socket).map_err(refused("list its routes"))?;
    let mut ranges: Vec<IpNet> = routes
        .into_iter()
        .filter(|route| route.kind == RouteKind::Unicast && route.to.prefix_len() > 0)
        .map(|route| route.to)
        .filter(|range| match range {
            IpNet::V4(four) => !four.addr().is_link_local(),
            IpNet::V6(six) => !six.addr().is_unicast_link_local() && !six.addr().is_multicast(),
        })
        .collect();
    ranges.sort();
    ranges.dedup();
    Ok(ranges)
}

fn refused(action: &'static str) -> impl Fn(Errno) -> KernelError {
    move |source| KernelError::Refused { action, place: "the host's namespace".to_owned(), source }
}
