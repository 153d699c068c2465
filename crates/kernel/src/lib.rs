//! The data plane of one host: router namespaces, member links, rules, uplinks.
//!
//! Every network is one **router namespace** (`warren-{installation}-n{number}`, visible to `ip netns`). Each member
//! hangs on it by a veth with a routed /32 and /128; there is no bridge, and no ARP or neighbour discovery is needed.
//! The rules (`nft list ruleset` inside it) pin every member to its link, MAC and addresses, and are the same for all
//! members: who is a member is said by set elements only. A sealed network has no route out. An open one has an
//! *uplink*, a veth to the namespace that the daemon runs in.
//!
//! All functions block for as long as the kernel works (tenths of a millisecond to some tens of milliseconds) and may
//! be called from any thread; async callers use `spawn_blocking`. Work on one network is done one call after the
//! other, work on different networks at the same time. Each network keeps five descriptors open, and two more once
//! [`Kernel::denied`] was called.
//!
//! One thread of this crate listens for changes that others make and for refused packets, once [`Kernel::changes`] or
//! [`Kernel::denied`] was called. Another one follows up a change of policy that has come into force: see `settle`.
//!
//! | module | holds |
//! | --- | --- |
//! | [`names`] | what the kernel shows by name |
//! | `namespace` | making, pinning and entering namespaces |
//! | `netlink`, `route` | messages to the kernel, in process |
//! | `gateway`, `member`, `tunnel`, `peer`, `sockets` | what a router namespace consists of |
//! | `wiring` | what is known of its links, addresses, routes and neighbours |
//! | `firewall` | the rules, their members and counters |
//! | [`denied`] | the packets that were refused, as the kernel reports them |
//! | `host` | uplinks, the host's rules and forwarding |
//! | `network` | one router namespace: sockets, knowledge, observation |
//! | `settle` | remembering flows again after a change of policy |
//! | `watch` | hints and reports |
//! | `allocator` | the memory that this process holds |

mod allocator;
pub mod denied;
mod error;
mod firewall;
#[doc(hidden)]
pub mod fuzz;
mod gateway;
mod host;
mod member;
pub mod names;
mod namespace;
mod netlink;
mod network;
mod peer;
mod record;
mod route;
mod settle;
mod sockets;
mod spec;
mod tunnel;
mod watch;
mod wiring;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use nix::errno::Errno;
use tokio::sync::{broadcast, mpsc};
use warren_model::{InstallationId, MemberNumber, NetworkNumber, UlaPrefix};

pub use allocator::return_unused_memory;
pub use denied::{DeniedLosses, DeniedPacket};
pub use error::KernelError;
pub use firewall::{Flow, MemberCounters, MemberSpec, Refusal, RulesState, Traffic, UnknownRefusal};
pub use gateway::{NEXT_HOP_V4, NEXT_HOP_V6};
pub use host::{ForwardingState, HostForwarding};
pub use sockets::{PROXY_PORT, TRANSPARENT_PORT, public_sockets, tunnel_sockets};
pub use spec::{GatewaySockets, NFLOG_GROUP, NetworkSpec, ObservedLink, ObservedNetwork};

use host::Host;
use network::Network;
use record::Record;
use settle::Settler;
use watch::Waker;

/// How many hints may wait for a slow listener; one that lags behind looks at everything.
const HINTS: usize = 1024;

/// A handle on the kernel's network. Cheap to clone.
#[derive(Clone)]
pub struct Kernel {
    inner: Arc<Inner>,
}

struct Inner {
    host: Host,
    networks: Mutex<BTreeMap<NetworkNumber, Arc<Network>>>,
    hints: broadcast::Sender<NetworkNumber>,
    denied: Arc<denied::Sink>,
    waker: Mutex<Option<Waker>>,
    settler: Arc<Settler>,
}

impl Kernel {
    /// The namespace of the calling thread becomes the host's: uplinks end there.
    pub fn new(installation: InstallationId, ula: UlaPrefix) -> Result<Self, KernelError> {
        Ok(Self::of(Host::here(installation, ula)?))
    }

    /// The host's namespace is the one in which this installation has its uplinks and the host's rules, wherever the
    /// caller is: for whoever removes them. Without any it is the calling thread's.
    pub fn of_installation(installation: InstallationId, ula: UlaPrefix) -> Result<Self, KernelError> {
        Ok(Self::of(Host::of_installation(installation, ula)?))
    }

    fn of(host: Host) -> Self {
        let (hints, _) = broadcast::channel(HINTS);
        let inner = Arc::new_cyclic(|inner| Inner {
            host,
            networks: Mutex::default(),
            hints,
            denied: Arc::default(),
            waker: Mutex::default(),
            settler: Arc::new(Settler::new(inner.clone())),
        });
        Self { inner }
    }

    /// The networks of this installation that have a namespace, also half-made ones.
    pub fn networks(&self) -> Result<BTreeSet<NetworkNumber>, KernelError> {
        let installation = self.inner.installation();
        let names = namespace::pinned()?;
        Ok(names.iter().filter_map(|name| names::parse_namespace(installation, name)).collect())
    }

    /// Makes the network, or completes a half-made one: afterwards exactly these members are admitted, and the uplink
    /// is there just if something may leave. What is as wanted is not touched.
    pub fn create_network(&self, spec: &NetworkSpec, members: &[MemberSpec]) -> Result<(), KernelError> {
        let path = names::namespace_path(self.inner.installation(), spec.number);
        namespace::ensure(&path)?;
        let network = self.network(spec.number)?;
        let mut operation = network.operate();
        gateway::apply(&mut operation.route, network.inside(), spec)?;
        let wanted: BTreeSet<MemberSpec> = members.iter().cloned().collect();
        let seen = operation.see(spec)?;
        if seen.state != RulesState::Intact {
            operation.load_rules(spec, members)?;
        } else {
            let stale: Vec<_> = seen.admitted.difference(&wanted).cloned().collect();
            let new: Vec<_> = wanted.difference(&seen.admitted).cloned().collect();
            if !stale.is_empty() {
                operation.expel(&stale)?;
            }
            // What the policy says, too.
            operation.admit(spec, &new)?;
        }
        self.fit_uplink(&mut operation.route, spec)
    }

    /// Removes the network with all that belongs to it. Goes on after errors and reports them all; fine if absent.
    pub fn remove_network(&self, number: NetworkNumber) -> Result<(), KernelError> {
        let installation = self.inner.installation();
        let mut errors = Vec::new();
        match self.network(number) {
            // Explicitly, since sockets that others hold keep the namespace, and with it its links, alive.
            Ok(network) => {
                let gone = network.operate().route.apply(vec![route::delete_all_links()]);
                errors.extend(route::gone_is_fine(gone).map_err(network::refused(number, "remove its links")).err());
            }
            Err(KernelError::NoNetwork(_)) => {}
            Err(error) => errors.push(error),
        }
        errors.extend(self.inner.host.disconnect(number).err());
        self.inner.forget(number);
        errors.extend(namespace::remove(&names::namespace_path(installation, number)).err());
        errors.extend(Record::remove(&network::record_path(installation, number)).err());
        if errors.is_empty() { Ok(()) } else { Err(KernelError::Removal { network: number, errors }) }
    }

    /// What the network is, `None` if it has no namespace. Cheap while nothing changes.
    pub fn observe(&self, spec: &NetworkSpec) -> Result<Option<ObservedNetwork>, KernelError> {
        let network = match self.network(spec.number) {
            Err(KernelError::NoNetwork(_)) => return Ok(None),
            other => other?,
        };
        let host = &self.inner.host;
        let observed = network.observe(spec, |router| match spec.rules.exits {
            true => host.is_connected(router, spec.number, &spec.rules.private_exits),
            false => host.has_uplink(spec.number),
        })?;
        Ok(Some(observed))
    }

    /// Makes good the gateway's addresses, routes and settings.
    pub fn repair_gateway(&self, spec: &NetworkSpec) -> Result<(), KernelError> {
        let network = self.network(spec.number)?;
        let mut operation = network.operate();
        gateway::apply(&mut operation.route, network.inside(), spec)
    }

    /// Makes good the uplink of a network from which something may leave, or removes that of a sealed one.
    ///
    /// # Errors
    /// [`KernelError::ForwardingOff`] for the former on a host that does not forward.
    pub fn repair_uplink(&self, spec: &NetworkSpec) -> Result<(), KernelError> {
        self.fit_uplink(&mut self.network(spec.number)?.operate().route, spec)
    }

    /// Replaces all rules and members in one transaction: no packet meets a state in between. Counters go on; only what
    /// passes in the milliseconds that the replacement takes is counted for nobody.
    pub fn load_rules(&self, spec: &NetworkSpec, members: &[MemberSpec]) -> Result<(), KernelError> {
        self.network(spec.number)?.operate().load_rules(spec, members)
    }

    /// Makes the rules say what the specification says, at once for every packet. Where only who and what is named in
    /// them changed, those elements are changed and nothing else; otherwise all rules are replaced, with these members.
    pub fn apply_policy(&self, spec: &NetworkSpec, members: &[MemberSpec]) -> Result<(), KernelError> {
        self.network(spec.number)?.operate().apply_policy(spec, members)
    }

    /// Lets the members' packets pass, all at once and together with what the policy says about them. Members that are
    /// admitted keep their counters.
    pub fn admit(&self, spec: &NetworkSpec, members: &[MemberSpec]) -> Result<(), KernelError> {
        self.network(spec.number)?.operate().admit(spec, members)
    }

    /// Stops the members' packets, all at once. Fine for those that are not admitted.
    pub fn expel(&self, number: NetworkNumber, members: &[MemberSpec]) -> Result<(), KernelError> {
        self.network(number)?.operate().expel(members)
    }

    /// Links the machine to the network, with its addresses and routes on both sides. An existing link is made good, a
    /// wrong one replaced.
    pub fn attach(
        &self,
        spec: &NetworkSpec,
        member: &MemberSpec,
        machine_netns: BorrowedFd<'_>,
    ) -> Result<(), KernelError> {
        let network = self.network(spec.number)?;
        let mut operation = network.operate();
        member::attach(&mut operation.route, self.inner.installation(), spec.number, member, machine_netns)
    }

    /// Removes the member's link on both sides. Fine if absent.
    pub fn detach(&self, number: NetworkNumber, member: MemberNumber) -> Result<(), KernelError> {
        let network = match self.network(number) {
            Err(KernelError::NoNetwork(_)) => return Ok(()),
            other => other?,
        };
        let name = names::member_link(self.inner.installation(), member);
        let gone = network.operate().route.apply(vec![route::delete_link(&name)]);
        match gone {
            // Which one depends on the kernel's age.
            Ok(()) | Err(Errno::ENODEV | Errno::EINVAL) => Ok(()),
            Err(source) => Err(KernelError::Attach { network: number, member, action: "remove its link", source }),
        }
    }

    /// Links the routers of two networks, with routes to the ranges that the rules of each list for the other. An
    /// existing link is made good, a wrong one replaced; what is right is not touched.
    ///
    /// # Errors
    /// [`KernelError::NoNetwork`] with the number of a network that is not made yet: to be tried again when it is.
    pub fn link_networks(&self, one: &NetworkSpec, other: &NetworkSpec) -> Result<(), KernelError> {
        let failed = network::refused(one.number, "link it to another network");
        // In the same order whoever calls, so that two calls never wait for each other.
        let (one, other) = match one.number.cmp(&other.number) {
            Ordering::Less => (one, other),
            Ordering::Greater => (other, one),
            Ordering::Equal => return Err(failed(Errno::ELOOP)),
        };
        let (network, peer) = (self.network(one.number)?, self.network(other.number)?);
        let (mut router, mut other_router) = (network.operate(), peer.operate());
        let ranges = |of: &'_ NetworkSpec, to: NetworkNumber| of.rules.links.get(&to).cloned().unwrap_or_default();
        let (ranges, other_ranges) = (ranges(one, other.number), ranges(other, one.number));
        let mut here =
            peer::End { number: one.number, router: &mut router.route, inside: network.inside(), ranges: &ranges };
        let mut there = peer::End {
            number: other.number,
            router: &mut other_router.route,
            inside: peer.inside(),
            ranges: &other_ranges,
        };
        peer::link(self.inner.installation(), &mut here, &mut there).map_err(failed)
    }

    /// Removes the link between two networks, whichever of them are there. Fine if absent.
    pub fn unlink_networks(&self, one: NetworkNumber, other: NetworkNumber) -> Result<(), KernelError> {
        for (number, to) in [(one, other), (other, one)] {
            let network = match self.network(number) {
                Err(KernelError::NoNetwork(_)) => continue,
                other => other?,
            };
            let name = names::peer_link(self.inner.installation(), to);
            peer::remove(&mut network.operate().route, &name)
                .map_err(network::refused(number, "remove its link to another network"))?;
        }
        Ok(())
    }

    /// Opens the device by which operators' packets come and go, and makes it where there is none. One descriptor can
    /// be open at a time.
    pub fn tunnel_device(&self, number: NetworkNumber) -> Result<OwnedFd, KernelError> {
        let network = self.network(number)?;
        let mut operation = network.operate();
        tunnel::open(&mut operation.route, network.inside(), self.inner.installation(), number)
    }

    /// Makes the operators' device lead to just those of the members that come by it; who it leads to already is not
    /// touched. `true` where there was none and it was made: whoever had one open has one that is gone.
    pub fn fit_tunnel(&self, spec: &NetworkSpec, members: &[MemberSpec]) -> Result<bool, KernelError> {
        let network = self.network(spec.number)?;
        network.operate().fit_tunnel(members)
    }

    /// Opens the sockets on which the edge serves the network. Only one set can be open at a time.
    pub fn gateway_sockets(&self, spec: &NetworkSpec) -> Result<GatewaySockets, KernelError> {
        sockets::open(self.network(spec.number)?.inside(), spec)
    }

    /// Opens sockets by which the edge connects to the network's machines, from the gateway's address. A network may
    /// have as many as are wanted.
    pub fn dialers(&self, spec: &NetworkSpec, count: usize) -> Result<Vec<OwnedFd>, KernelError> {
        sockets::dialers(self.network(spec.number)?.inside(), spec, count)
    }

    /// What each admitted member sent and received since it was admitted.
    pub fn counters(&self, number: NetworkNumber) -> Result<BTreeMap<MemberNumber, MemberCounters>, KernelError> {
        self.network(number)?.operate().counters()
    }

    /// The packets of each admitted member that were refused since it was admitted, whatever for.
    pub fn refused(&self, number: NetworkNumber) -> Result<BTreeMap<MemberNumber, Traffic>, KernelError> {
        self.network(number)?.operate().refused()
    }

    /// What was dropped because its sender was not who it said it was (IP, ARP and neighbour discovery).
    pub fn spoofed(&self, number: NetworkNumber) -> Result<Traffic, KernelError> {
        self.network(number)?.operate().spoofed()
    }

    /// Hints that somebody else changed a link, address, route or rule of a network. A hint may be superfluous, and
    /// one may be lost while an operation of our own runs: observe now and then without one, too.
    pub fn changes(&self) -> Result<broadcast::Receiver<NetworkNumber>, KernelError> {
        let hints = self.inner.hints.subscribe();
        self.watch()?;
        Ok(hints)
    }

    /// The packets that the rules refused, of all networks, from now on; an earlier receiver gets nothing more. Whoever
    /// is slow misses some; [`Kernel::denied_losses`] counts them. The rules' own counters miss nothing.
    pub fn denied(&self) -> Result<mpsc::Receiver<DeniedPacket>, KernelError> {
        let packets = self.inner.denied.open();
        self.watch()?;
        self.inner.wake();
        Ok(packets)
    }

    /// What [`Kernel::denied`] did not report, and which networks it cannot read.
    pub fn denied_losses(&self) -> DeniedLosses {
        self.inner.denied.losses()
    }

    /// IP forwarding of the host, which open networks need.
    pub fn forwarding(&self) -> HostForwarding<'_> {
        HostForwarding { host: &self.inner.host }
    }

    /// The ranges that the calling thread's namespace has routes to, without default and link-local ones.
    pub fn host_routes() -> Result<Vec<IpNet>, KernelError> {
        host::routes_here()
    }

    /// Starts the thread that listens, unless it runs, and opens all networks for it.
    fn watch(&self) -> Result<(), KernelError> {
        {
            let mut waker = self.inner.waker.lock().unwrap_or_else(PoisonError::into_inner);
            if waker.is_none() {
                *waker = Some(watch::start(Arc::downgrade(&self.inner), self.inner.hints.clone())?);
            }
        }
        for number in self.networks()? {
            match self.network(number) {
                Ok(_) | Err(KernelError::NoNetwork(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn fit_uplink(&self, router: &mut netlink::Socket, spec: &NetworkSpec) -> Result<(), KernelError> {
        match spec.rules.exits {
            true => self.inner.host.connect(router, spec.number, &spec.rules.private_exits),
            false => self.inner.host.disconnect(spec.number),
        }
    }

    /// The network's handle, opened anew when its namespace is another one than before.
    fn network(&self, number: NetworkNumber) -> Result<Arc<Network>, KernelError> {
        let mut networks = self.inner.lock();
        if let Some(network) = networks.get(&number)
            && network.is_pinned()
        {
            return Ok(network.clone());
        }
        networks.remove(&number);
        let installation = self.inner.installation();
        let opened = namespace::open(&names::namespace_path(installation, number))?;
        let namespace = opened.ok_or(KernelError::NoNetwork(number))?;
        let network = Arc::new(Network::open(installation, number, namespace, self.inner.settler.clone())?);
        networks.insert(number, network.clone());
        drop(networks);
        self.inner.wake();
        Ok(network)
    }
}

impl Inner {
    fn installation(&self) -> &InstallationId {
        &self.host.installation
    }

    fn known(&self) -> Vec<Arc<Network>> {
        self.lock().values().cloned().collect()
    }

    fn forget(&self, number: NetworkNumber) {
        self.lock().remove(&number);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.lock().unwrap_or_else(PoisonError::into_inner) {
            waker.wake();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<NetworkNumber, Arc<Network>>> {
        // The map is changed by single insertions and removals, so that it is whole after a panic, too.
        self.networks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.wake();
    }
}
