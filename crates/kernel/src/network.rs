//! One router namespace: its sockets, opened once inside it, and what is known of it.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use warren_model::{InstallationId, MacAddress, MemberNumber, NetworkNumber};

use crate::error::KernelError;
use crate::firewall::rules::{Rules, Seen};
use crate::firewall::{MemberCounters, MemberSpec, Traffic};
use crate::netlink::{Family, Socket, Watch};
use crate::settle::Settler;
use crate::spec::{NetworkSpec, ObservedLink, ObservedNetwork};
use crate::wiring::Wiring;
use crate::{gateway, member, names, namespace, peer, tunnel};

/// `RTNLGRP_LINK`, `_NEIGH`, `_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV6_IFADDR`, `_IPV6_ROUTE`, `_IPV4_NETCONF`,
/// `_IPV6_NETCONF`, each as a bit.
const ROUTE_GROUPS: u32 = 1 | 1 << 2 | 1 << 4 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 23 | 1 << 24;
/// `NFNLGRP_NFTABLES` as a bit.
const RULE_GROUPS: u32 = 1 << 6;

pub(crate) struct Network {
    pub(crate) number: NetworkNumber,
    installation: InstallationId,
    path: PathBuf,
    namespace: OwnedFd,
    /// Links, addresses and routes; then rules.
    watches: [Watch; 2],
    settler: Arc<Settler>,
    state: Mutex<State>,
}

pub(crate) struct State {
    pub(crate) route: Socket,
    pub(crate) rules: Rules,
    /// While no notification has come since, of anything but what was noted in it.
    wiring: Option<Wiring>,
    /// The last full observation, while the wiring is as it was then.
    observed: Option<(NetworkSpec, ObservedNetwork)>,
    /// It was said that flows could be remembered, and nobody came yet.
    asked: bool,
}

/// The network while one caller works on it. What is reported meanwhile is that caller's doing.
pub(crate) struct Operation<'a> {
    network: &'a Network,
    state: MutexGuard<'a, State>,
    /// Everything that was changed in the wiring is noted in it.
    is_noted: bool,
}

impl Network {
    /// Opens the sockets inside the namespace.
    pub(crate) fn open(
        installation: &InstallationId,
        number: NetworkNumber,
        namespace: OwnedFd,
        settler: Arc<Settler>,
    ) -> Result<Self, KernelError> {
        let sockets = || -> Result<_, Errno> {
            let watches = [Watch::open(Family::Route, ROUTE_GROUPS)?, Watch::open(Family::Netfilter, RULE_GROUPS)?];
            Ok((Socket::open(Family::Route)?, Socket::open(Family::Netfilter)?, watches))
        };
        let (route, nft, watches) = namespace::enter(namespace.as_fd(), sockets)
            .and_then(|opened| opened)
            .map_err(refused(number, "open a socket"))?;
        let rules = Rules::new(installation.clone(), number, nft);
        Ok(Self {
            number,
            installation: installation.clone(),
            path: names::namespace_path(installation, number),
            namespace,
            watches,
            settler,
            state: Mutex::new(State { route, rules, wiring: None, observed: None, asked: false }),
        })
    }

    pub(crate) fn is_pinned(&self) -> bool {
        namespace::is_pinned(&self.path, self.namespace.as_fd())
    }

    pub(crate) fn inside(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    pub(crate) fn watched(&self) -> [BorrowedFd<'_>; 2] {
        [self.watches[0].as_fd(), self.watches[1].as_fd()]
    }

    pub(crate) fn operate(&self) -> Operation<'_> {
        let mut state = self.lock();
        self.notice(&mut state);
        Operation { network: self, state, is_noted: false }
    }

    /// Whether something changed that none of our own operations did.
    pub(crate) fn changed(&self) -> bool {
        let mut state = self.lock();
        self.notice(&mut state)
    }

    /// The generation of rules under which flows could be remembered and are not. Later ones are asked for anew.
    pub(crate) fn unsettled(&self) -> Option<u32> {
        let mut state = self.lock();
        state.asked = false;
        state.rules.unsettled()
    }

    /// What is wanted of the network, compared with what is there. Without changes since the last time, the answer is
    /// remembered.
    pub(crate) fn observe(
        &self,
        spec: &NetworkSpec,
        uplink: impl FnOnce(&mut Socket) -> Result<bool, KernelError>,
    ) -> Result<ObservedNetwork, KernelError> {
        let mut state = self.lock();
        self.notice(&mut state);
        let seen = state.rules.observe(spec)?;
        self.ask_to_settle(&mut state);
        let uplink = uplink(&mut state.route)?;
        if let Some((of, before)) = &state.observed
            && of == spec
            && before.admitted == seen.admitted
        {
            return Ok(ObservedNetwork { rules: seen.state, policy: seen.policy, uplink, ..before.clone() });
        }
        let observed = self.look(&mut state, spec, seen, uplink).map_err(self.refused("list its links"))?;
        state.observed = Some((spec.clone(), observed.clone()));
        Ok(observed)
    }

    fn look(
        &self,
        state: &mut State,
        spec: &NetworkSpec,
        Seen { state: rules, policy, admitted }: Seen,
        uplink: bool,
    ) -> Result<ObservedNetwork, Errno> {
        let wiring = state.take_wiring()?;
        let gateway_intact = gateway::is_intact(&mut state.route, spec, &wiring)?;
        let peers = wiring
            .links
            .iter()
            .filter_map(|link| {
                let other = names::parse_peer_link(&self.installation, &link.name)?;
                let ranges = spec.rules.links.get(&other);
                let whole = ranges.is_some_and(|ranges| peer::is_whole(self.number, other, link, ranges, &wiring));
                Some((other, whole))
            })
            .collect();
        let tunnel =
            wiring.link(&names::tunnel_link(&self.installation)).map(|link| tunnel::is_whole(link, &admitted, &wiring));
        let members: BTreeMap<MemberNumber, &MemberSpec> =
            admitted.iter().map(|member| (member.number, member)).collect();
        let links = wiring
            .links
            .iter()
            .filter_map(|link| {
                let number = names::parse_member_link(&self.installation, &link.name)?;
                let routed = link.mac == Some(MacAddress::ROUTER)
                    && wiring.addresses.contains(&(link.index, member::router_address()))
                    && members.get(&number).is_some_and(|member| {
                        member::routes(link.index, member).iter().all(|route| wiring.routes.contains(route))
                            && member::neighbours(link.index, member).iter().all(|one| wiring.neighbours.contains(one))
                    });
                Some((number, ObservedLink { up: link.carrier, routed }))
            })
            .collect();
        state.wiring = Some(wiring);
        Ok(ObservedNetwork { gateway_intact, rules, policy, admitted, links, tunnel, peers, uplink })
    }

    fn refused(&self, action: &'static str) -> impl Fn(Errno) -> KernelError + use<> {
        refused(self.number, action)
    }

    fn notice(&self, state: &mut State) -> bool {
        let wiring = self.watches[0].drain(state.route.port()).any;
        if wiring {
            state.forget();
        }
        // What is known of the rules is bound to their generation.
        self.watches[1].drain(0).any || wiring
    }

    fn ask_to_settle(&self, state: &mut State) {
        if !state.asked && state.rules.unsettled().is_some() {
            state.asked = self.settler.ask(self.number);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A holder that panicked leaves sockets, whose stray answers are passed over, and knowledge that the
        // generation confirms.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What is known of the wiring, read anew where nothing is. Whoever takes it puts it back while it is true.
    fn take_wiring(&mut self) -> Result<Wiring, Errno> {
        match self.wiring.take() {
            Some(wiring) => Ok(wiring),
            None => Wiring::read(&mut self.route),
        }
    }

    fn forget(&mut self) {
        self.wiring = None;
        self.observed = None;
    }
}

impl Operation<'_> {
    /// Makes the operators' device lead to just those of the members that come by it; whether it had to be made.
    pub(crate) fn fit_tunnel(&mut self, members: &[MemberSpec]) -> Result<bool, KernelError> {
        let Network { number, installation, .. } = self.network;
        let mut wiring = self.state.take_wiring().map_err(refused(*number, "list its links"))?;
        self.state.observed = None;
        let router = &mut self.state.route;
        let was_made = tunnel::fit(router, self.network.inside(), installation, *number, &mut wiring, members)?;
        self.state.wiring = Some(wiring);
        self.is_noted = true;
        Ok(was_made)
    }

    pub(crate) fn see(&mut self, spec: &NetworkSpec) -> Result<Seen, KernelError> {
        self.state.rules.observe(spec)
    }

    pub(crate) fn load_rules(&mut self, spec: &NetworkSpec, members: &[MemberSpec]) -> Result<(), KernelError> {
        self.state.rules.load(self.network.inside(), spec, members)
    }

    pub(crate) fn apply_policy(&mut self, spec: &NetworkSpec, members: &[MemberSpec]) -> Result<(), KernelError> {
        self.state.rules.apply_policy(self.network.inside(), spec, members)
    }

    pub(crate) fn admit(&mut self, spec: &NetworkSpec, members: &[MemberSpec]) -> Result<(), KernelError> {
        self.state.rules.admit(self.network.inside(), spec, members)
    }

    pub(crate) fn expel(&mut self, members: &[MemberSpec]) -> Result<(), KernelError> {
        self.state.rules.expel(members)
    }

    pub(crate) fn settle(&mut self, generation: u32) -> Result<(), KernelError> {
        self.state.rules.settle(generation)
    }

    pub(crate) fn counters(&mut self) -> Result<BTreeMap<MemberNumber, MemberCounters>, KernelError> {
        self.state.rules.counters()
    }

    pub(crate) fn refused(&mut self) -> Result<BTreeMap<MemberNumber, Traffic>, KernelError> {
        self.state.rules.refused()
    }

    pub(crate) fn spoofed(&mut self) -> Result<Traffic, KernelError> {
        self.state.rules.spoofed()
    }
}

impl Deref for Operation<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Operation<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        let reported = self.network.watches[0].drain(self.state.route.port());
        if reported.by_others || (reported.any && !self.is_noted) {
            self.state.forget();
        }
        self.network.watches[1].drain(0);
        self.network.ask_to_settle(&mut self.state);
    }
}

pub(crate) fn record_path(installation: &InstallationId, number: NetworkNumber) -> PathBuf {
    installation.run_directory().join(format!("rules-{number}"))
}

pub(crate) fn refused(number: NetworkNumber, action: &'static str) -> impl Fn(Errno) -> KernelError + use<> {
    move |source| KernelError::Refused { action, place: format!("network {number}"), source }
}

#[cfg(test)]
mod tests;
