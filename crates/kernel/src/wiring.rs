//! The wiring of a router namespace: its links, addresses, routes and fixed neighbours, and what of it leads by one link.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use nix::errno::Errno;

use crate::netlink::{Message, Socket};
use crate::route::{self, Link, Neighbour, Route, gone_is_fine};

/// What the kernel said, and what was changed here since.
pub(crate) struct Wiring {
    pub(crate) links: Vec<Link>,
    /// Each with its link's index.
    pub(crate) addresses: BTreeSet<(u32, IpNet)>,
    pub(crate) routes: BTreeSet<Route>,
    pub(crate) neighbours: BTreeSet<Neighbour>,
}

/// What leads by one link: to which addresses, and under which MACs they are found there.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Ways {
    pub(crate) routes: BTreeSet<Route>,
    pub(crate) neighbours: BTreeSet<Neighbour>,
}

impl Wiring {
    /// Lists all of it.
    pub(crate) fn read(socket: &mut Socket) -> Result<Self, Errno> {
        Ok(Self {
            links: route::links(socket)?,
            addresses: route::addresses(socket)?.into_iter().collect(),
            routes: route::routes(socket)?.into_iter().collect(),
            neighbours: route::neighbours(socket)?.into_iter().collect(),
        })
    }

    pub(crate) fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    pub(crate) fn ways(&self, link: u32) -> Ways {
        Ways::among(link, self.routes.iter().copied(), self.neighbours.iter().copied())
    }

    /// Makes the link lead where it is wanted to, and nowhere else. What is right is not touched.
    ///
    /// # Errors
    /// Then the wiring may be another one than this says.
    pub(crate) fn lead(&mut self, socket: &mut Socket, link: u32, wanted: Ways) -> Result<(), Errno> {
        let there = self.ways(link);
        there.change_to(socket, &wanted)?;
        self.routes.retain(|route| !there.routes.contains(route));
        self.neighbours.retain(|neighbour| neighbour.link != link);
        self.routes.extend(wanted.routes);
        self.neighbours.extend(wanted.neighbours);
        Ok(())
    }
}

impl Ways {
    /// Those that there are by a link.
    pub(crate) fn read(socket: &mut Socket, link: u32) -> Result<Self, Errno> {
        Ok(Self::among(link, route::routes(socket)?, route::neighbours(socket)?))
    }

    fn among(
        link: u32,
        routes: impl IntoIterator<Item = Route>,
        neighbours: impl IntoIterator<Item = Neighbour>,
    ) -> Self {
        Self {
            routes: routes.into_iter().filter(|route| route.link == link && !is_of_the_link_itself(route)).collect(),
            neighbours: neighbours.into_iter().filter(|neighbour| neighbour.link == link).collect(),
        }
    }

    /// Makes these, which are there, the wanted ones: deletes the others, and adds what is missing.
    pub(crate) fn change_to(&self, socket: &mut Socket, wanted: &Self) -> Result<(), Errno> {
        let mut stale: Vec<Message> = self.routes.difference(&wanted.routes).map(route::delete_route).collect();
        stale.extend(self.neighbours.difference(&wanted.neighbours).map(route::delete_neighbour));
        for outcome in socket.request(stale)? {
            gone_is_fine(outcome)?;
        }
        let mut missing: Vec<Message> = wanted.neighbours.difference(&self.neighbours).map(route::neighbour).collect();
        missing.extend(wanted.routes.difference(&self.routes).map(route::route));
        socket.apply(missing)
    }
}

/// The kernel itself routes link-local addresses by every link that has one.
fn is_of_the_link_itself(route: &Route) -> bool {
    matches!(route.to.addr(), IpAddr::V6(six) if six.is_unicast_link_local())
}
