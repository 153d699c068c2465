//! One router namespace: its sockets, opened once inside it, and what is known of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use warren_model::record::Egress;
use warren_model::{InstallationId, MacAddress, MemberNumber, NetworkNumber};

use crate::error::KernelError;
use crate::firewall::elements::{self, Listing};
use crate::firewall::text::{self, Kept};
use crate::firewall::{MemberCounters, MemberSpec, RulesState, Traffic, digest, process};
use crate::netlink::{BatchError, Family, Socket, Watch};
use crate::record::Record;
use crate::spec::{NetworkSpec, ObservedLink, ObservedNetwork};
use crate::{gateway, member, names, namespace, route};

/// `RTNLGRP_LINK`, `_NEIGH`, `_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV6_IFADDR`, `_IPV6_ROUTE`, `_IPV4_NETCONF`,
/// `_IPV6_NETCONF`, each as a bit.
const ROUTE_GROUPS: u32 = 1 | 1 << 2 | 1 << 4 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 23 | 1 << 24;
/// `NFNLGRP_NFTABLES` as a bit.
const RULE_GROUPS: u32 = 1 << 6;

/// What nobody answered is forgotten soon, in seconds (the kernel's `nf_conntrack-sysctl.rst`).
const TRACKING: [(&str, &str); 1] = [("netfilter/nf_conntrack_udp_timeout", "10")];

pub(crate) struct Network {
    pub(crate) number: NetworkNumber,
    installation: InstallationId,
    path: PathBuf,
    namespace: OwnedFd,
    /// Links, addresses and routes; then rules.
    watches: [Watch; 2],
    state: Mutex<State>,
}

pub(crate) struct State {
    pub(crate) route: Socket,
    nft: Socket,
    rules: Option<Known>,
    /// The last full observation, while no notification has come since.
    observed: Option<(NetworkSpec, ObservedNetwork)>,
}

/// What the rules are as long as their generation is this one.
struct Known {
    generation: u32,
    record: Record,
    admitted: BTreeSet<MemberSpec>,
}

/// Adds or deletes the members' elements, if the generation is still the given one.
type ElementChange = fn(&mut Socket, &InstallationId, Egress, &[MemberSpec], Option<u32>) -> Result<(), BatchError>;

/// The network while one caller works on it. What is reported meanwhile is that caller's doing.
pub(crate) struct Operation<'a> {
    network: &'a Network,
    state: MutexGuard<'a, State>,
}

impl Network {
    /// Opens the sockets inside the namespace.
    pub(crate) fn open(
        installation: &InstallationId,
        number: NetworkNumber,
        namespace: OwnedFd,
    ) -> Result<Self, KernelError> {
        let sockets = || -> Result<_, Errno> {
            let watches = [Watch::open(Family::Route, ROUTE_GROUPS)?, Watch::open(Family::Netfilter, RULE_GROUPS)?];
            Ok((Socket::open(Family::Route)?, Socket::open(Family::Netfilter)?, watches))
        };
        let (route, nft, watches) = namespace::enter(namespace.as_fd(), sockets)
            .and_then(|opened| opened)
            .map_err(refused(number, "open a socket"))?;
        Ok(Self {
            number,
            installation: installation.clone(),
            path: names::namespace_path(installation, number),
            namespace,
            watches,
            state: Mutex::new(State { route, nft, rules: None, observed: None }),
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
        Operation { network: self, state }
    }

    /// Whether something changed that none of our own operations did.
    pub(crate) fn changed(&self) -> bool {
        let mut state = self.lock();
        self.notice(&mut state)
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
        let (rules, admitted) = self.rules(&mut state, spec)?;
        let uplink = uplink(&mut state.route)?;
        if let Some((of, seen)) = &state.observed
            && of == spec
            && seen.admitted == admitted
        {
            return Ok(ObservedNetwork { rules, uplink, ..seen.clone() });
        }
        let seen = self.look(&mut state, spec, rules, admitted, uplink).map_err(self.refused("list its links"))?;
        state.observed = Some((spec.clone(), seen.clone()));
        Ok(seen)
    }

    fn look(
        &self,
        state: &mut State,
        spec: &NetworkSpec,
        rules: RulesState,
        admitted: BTreeSet<MemberSpec>,
        uplink: bool,
    ) -> Result<ObservedNetwork, Errno> {
        let links = route::links(&mut state.route)?;
        let addresses = route::addresses(&mut state.route)?;
        let routes = route::routes(&mut state.route)?;
        let neighbours: BTreeSet<_> = route::neighbours(&mut state.route)?.into_iter().collect();
        let gateway_intact = gateway::is_intact(&mut state.route, spec, &addresses, &routes)?;
        let addresses: BTreeSet<_> = addresses.into_iter().collect();
        let routes: BTreeSet<_> = routes.into_iter().collect();
        let members: BTreeMap<MemberNumber, &MemberSpec> =
            admitted.iter().map(|member| (member.number, member)).collect();
        let links = links
            .iter()
            .filter_map(|link| {
                let number = names::parse_member_link(&self.installation, &link.name)?;
                let routed = link.mac == Some(MacAddress::ROUTER)
                    && addresses.contains(&(link.index, member::router_address()))
                    && members.get(&number).is_some_and(|member| {
                        member::routes(link.index, member).iter().all(|route| routes.contains(route))
                            && member::neighbours(link.index, member).iter().all(|one| neighbours.contains(one))
                    });
                Some((number, ObservedLink { up: link.carrier, routed }))
            })
            .collect();
        Ok(ObservedNetwork { gateway_intact, rules, admitted, links, uplink })
    }

    /// The rules' state and the admitted members; without a new generation, as remembered.
    fn rules(&self, state: &mut State, spec: &NetworkSpec) -> Result<(RulesState, BTreeSet<MemberSpec>), KernelError> {
        let wanted = text::router(&self.installation, spec, &[], &Kept::default());
        let judge = |record: &Record| if record.is_of(&wanted) { RulesState::Intact } else { RulesState::Altered };
        let failed = self.refused("show its rules");
        let generation = digest::generation(&mut state.nft).map_err(&failed)?;
        if let Some(known) = &state.rules
            && known.generation == generation
        {
            return Ok((judge(&known.record), known.admitted.clone()));
        }
        state.rules = None;
        let listing = Listing::read(&mut state.nft, spec.egress).map_err(&failed)?;
        let (admitted, stray) = listing.members(&self.installation, spec.egress);
        let Some(kernel) = digest::digest(&mut state.nft, None).map_err(&failed)? else {
            return Ok((RulesState::Missing, admitted));
        };
        let as_loaded = Record::new(&wanted, kernel, spec.egress);
        if stray || Record::read(&self.record_path()).as_ref() != Some(&as_loaded) {
            return Ok((RulesState::Altered, admitted));
        }
        state.rules = Some(Known { generation, record: as_loaded, admitted: admitted.clone() });
        Ok((RulesState::Intact, admitted))
    }

    fn record_path(&self) -> PathBuf {
        record_path(&self.installation, self.number)
    }

    fn refused(&self, action: &'static str) -> impl Fn(Errno) -> KernelError + use<> {
        refused(self.number, action)
    }

    fn notice(&self, state: &mut State) -> bool {
        let changed = self.watches[0].drain();
        if changed {
            state.observed = None;
        }
        self.watches[1].drain() || changed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A holder that panicked leaves sockets, whose stray answers are passed over, and knowledge that the
        // generation confirms.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Operation<'_> {
    pub(crate) fn rules(&mut self, spec: &NetworkSpec) -> Result<(RulesState, BTreeSet<MemberSpec>), KernelError> {
        self.network.rules(&mut self.state, spec)
    }

    /// Replaces all rules in one transaction. Counters go on from where they are.
    pub(crate) fn load_rules(&mut self, spec: &NetworkSpec, members: &[MemberSpec]) -> Result<(), KernelError> {
        let network = self.network;
        let failed = network.refused("show its rules");
        let place = format!("network {}", network.number);
        let state = &mut *self.state;
        state.rules = None;
        // Somebody may change the rules between loading and reading back: then what is read is not what was loaded.
        for _ in 0..3 {
            let before = digest::generation(&mut state.nft).map_err(&failed)?;
            let [spoofed, arp_spoofed] = spoofed(&mut state.nft).map_err(&failed)?;
            let flooded = elements::named_counter(&mut state.nft, elements::INET, names::TABLE, "flooded");
            let flooded = flooded.map_err(&failed)?;
            let elements = Listing::read(&mut state.nft, Egress::Open).map_err(&failed)?;
            let there = digest::digest(&mut state.nft, None).map_err(&failed)?;
            let skeleton = Record::read(&network.record_path())
                .filter(|record| there.as_ref().is_some_and(|there| record.has_skeleton(there)))
                .map(|record| record.egress);
            let kept = Kept { skeleton, elements, spoofed, flooded, arp_spoofed };
            let rules = text::router(&network.installation, spec, members, &kept);
            process::load(network.inside(), &place, &rules)?;
            if spec.egress == Egress::Open {
                // Only now: a kernel whose connection tracking is a module has its settings from the first rule on.
                namespace::set_sysctls(network.inside(), &place, &TRACKING)?;
            }
            let kernel = digest::digest(&mut state.nft, None).map_err(&failed)?;
            let generation = digest::generation(&mut state.nft).map_err(&failed)?;
            if let Some(kernel) = kernel
                && generation == following(before)
            {
                let wanted = text::router(&network.installation, spec, &[], &Kept::default());
                let record = Record::new(&wanted, kernel, spec.egress);
                record.write(&network.record_path())?;
                let admitted = members.iter().cloned().collect();
                state.rules = Some(Known { generation, record, admitted });
                return Ok(());
            }
        }
        Record::remove(&network.record_path())
    }

    pub(crate) fn admit(&mut self, members: &[MemberSpec]) -> Result<(), KernelError> {
        self.change(members, elements::add, |admitted| admitted.extend(members.iter().cloned()))
    }

    pub(crate) fn expel(&mut self, members: &[MemberSpec]) -> Result<(), KernelError> {
        self.change(members, elements::delete, |admitted| {
            for member in members {
                admitted.remove(member);
            }
        })
    }

    pub(crate) fn counters(&mut self) -> Result<BTreeMap<MemberNumber, MemberCounters>, KernelError> {
        let installation = &self.network.installation;
        let listing =
            Listing::read(&mut self.state.nft, Egress::Open).map_err(self.network.refused("show its counters"))?;
        let (members, _) = listing.members(installation, Egress::Deny);
        Ok(members.iter().map(|member| (member.number, listing.counters(installation, member))).collect())
    }

    pub(crate) fn spoofed(&mut self) -> Result<Traffic, KernelError> {
        let [ip, arp] = spoofed(&mut self.state.nft).map_err(self.network.refused("show its counters"))?;
        Ok(Traffic { packets: ip.packets + arp.packets, bytes: ip.bytes + arp.bytes })
    }

    /// Changes elements as one transaction. If nobody else changed the rules meanwhile, they are still known after.
    fn change(
        &mut self,
        members: &[MemberSpec],
        apply: ElementChange,
        remember: impl FnOnce(&mut BTreeSet<MemberSpec>),
    ) -> Result<(), KernelError> {
        let network = self.network;
        let failed = network.refused("change the members in its rules");
        let state = &mut *self.state;
        if let Some(mut known) = state.rules.take() {
            let expected = Some(known.generation);
            match apply(&mut state.nft, &network.installation, known.record.egress, members, expected) {
                Ok(()) => {
                    let generation = digest::generation(&mut state.nft).map_err(&failed)?;
                    if generation == known.generation || generation == following(known.generation) {
                        remember(&mut known.admitted);
                        state.rules = Some(Known { generation, ..known });
                    }
                    return Ok(());
                }
                Err(BatchError::Whole(Errno::ERESTART)) => {}
                Err(error) => return Err(failed(first(error))),
            }
        }
        let open = elements::is_open(&mut state.nft).map_err(&failed)?;
        let egress = if open { Egress::Open } else { Egress::Deny };
        apply(&mut state.nft, &network.installation, egress, members, None).map_err(first).map_err(failed)
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
        self.network.notice(&mut self.state);
    }
}

pub(crate) fn record_path(installation: &InstallationId, number: NetworkNumber) -> PathBuf {
    installation.run_directory().join(format!("rules-{number}"))
}

pub(crate) fn refused(number: NetworkNumber, action: &'static str) -> impl Fn(Errno) -> KernelError + use<> {
    move |source| KernelError::Refused { action, place: format!("network {number}"), source }
}

fn spoofed(socket: &mut Socket) -> Result<[Traffic; 2], Errno> {
    Ok([
        elements::named_counter(socket, elements::INET, names::TABLE, "spoofed")?,
        elements::named_counter(socket, elements::ARP, names::TABLE, "spoofed")?,
    ])
}

fn first(error: BatchError) -> Errno {
    match error {
        BatchError::Whole(errno) => errno,
        BatchError::Refused(refused) => refused.first().map_or(Errno::EINVAL, |(_, errno)| *errno),
    }
}

/// Generations leave out zero (`nf_tables_commit`).
fn following(generation: u32) -> u32 {
    generation.checked_add(1).unwrap_or(1)
}
