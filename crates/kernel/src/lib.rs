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
//! other, work on different networks at the same time. Each network keeps five descriptors open.
//!
//! The one thread of this crate listens for changes that others make, once [`Kernel::changes`] was called.
//!
//! | module | holds |
//! | --- | --- |
//! | [`names`] | what the kernel shows by name |
//! | `namespace` | making, pinning and entering namespaces |
//! | `netlink`, `route` | messages to the kernel, in process |
//! | `gateway`, `member`, `sockets` | what a router namespace consists of |
//! | `firewall` | the rules, their members and counters |
//! | `host` | uplinks, the host's rules and forwarding |
//! | `network` | one router namespace: sockets, knowledge, observation |

mod error;
mod firewall;
mod gateway;
mod host;
mod member;
pub mod names;
mod namespace;
mod netlink;
mod network;
mod record;
mod route;
mod sockets;
mod spec;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use nix::errno::Errno;
use tokio::sync::broadcast;
use warren_model::record::Egress;
use warren_model::{InstallationId, MemberNumber, NetworkNumber, UlaPrefix};

pub use error::KernelError;
pub use firewall::{Flow, MemberCounters, MemberSpec, RulesState, Traffic};
pub use gateway::{NEXT_HOP_V4, NEXT_HOP_V6};
pub use host::{ForwardingState, HostForwarding};
pub use spec::{GatewaySockets, NetworkSpec, ObservedLink, ObservedNetwork};

use host::Host;
use network::Network;
use record::Record;
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
    waker: Mutex<Option<Waker>>,
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
        let networks = Mutex::new(BTreeMap::new());
        Self { inner: Arc::new(Inner { host, networks, hints, waker: Mutex::new(None) }) }
    }

    /// The networks of this installation that have a namespace, also half-made ones.
    pub fn networks(&self) -> Result<BTreeSet<NetworkNumber>, KernelError> {
        let installation = self.inner.installation();
        let names = namespace::pinned()?;
        Ok(names.iter().filter_map(|name| names::parse_namespace(installation, name)).collect())
    }

    /// Makes the network, or completes a half-made one: afterwards exactly these members are admitted, and the uplink
    /// is there just if egress is open. What is as wanted is not touched.
    pub fn create_network(&self, spec: &NetworkSpec, members: &[MemberSpec]) -> Result<(), KernelError> {
        let path = names::namespace_path(self.inner.installation(), spec.number);
        namespace::ensure(&path)?;
        let network = self.network(spec.number)?;
        let mut operation = network.operate();
        gateway::apply(&mut operation.route, network.inside(), spec)?;
        let wanted: BTreeSet<MemberSpec> = members.iter().cloned().collect();
        let (rules, admitted) = operation.rules(spec)?;
        if rules != RulesState::Intact {
            operation.load_rules(spec, members)?;
        } else {
            let stale: Vec<_> = admitted.difference(&wanted).cloned().collect();
            let new: Vec<_> = wanted.difference(&admitted).cloned().collect();
            operation.expel(&stale)?;
            operation.admit(&new)?;
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
                errors.extend(member::gone_is_fine(gone).map_err(network::refused(number, "remove its links")).err());
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
        let observed = network.observe(spec, |router| match spec.egress {
            Egress::Open => host.is_connected(router, spec.number),
            Egress::Deny => host.has_uplink(spec.number),
        })?;
        Ok(Some(observed))
    }

    /// Makes good the gateway's addresses, routes and settings.
    pub fn repair_gateway(&self, spec: &NetworkSpec) -> Result<(), KernelError> {
        let network = self.network(spec.number)?;
        let mut operation = network.operate();
        gateway::apply(&mut operation.route, network.inside(), spec)
    }

    /// Makes good the uplink of an open network, or removes that of a sealed one.
    ///
    /// # Errors
    /// [`KernelError::ForwardingOff`] for an open network on a host that does not forward.
    pub fn repair_uplink(&self, spec: &NetworkSpec) -> Result<(), KernelError> {
        self.fit_uplink(&mut self.network(spec.number)?.operate().route, spec)
    }

    /// Replaces all rules and members in one transaction: no packet meets a state in between. Counters go on; only what
    /// passes in the milliseconds that the replacement takes is counted for nobody.
    pub fn load_rules(&self, spec: &NetworkSpec, members: &[MemberSpec]) -> Result<(), KernelError> {
        self.network(spec.number)?.operate().load_rules(spec, members)
    }

    /// Lets the members' packets pass, all at once. Members that are admitted keep their counters.
    pub fn admit(&self, number: NetworkNumber, members: &[MemberSpec]) -> Result<(), KernelError> {
        self.network(number)?.operate().admit(members)
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

    /// Opens sockets on port 53 of the gateway. Only one set can be open at a time.
    pub fn gateway_sockets(&self, spec: &NetworkSpec) -> Result<GatewaySockets, KernelError> {
        sockets::open(self.network(spec.number)?.inside(), spec)
    }

    /// What each admitted member sent and received since it was admitted.
    pub fn counters(&self, number: NetworkNumber) -> Result<BTreeMap<MemberNumber, MemberCounters>, KernelError> {
        self.network(number)?.operate().counters()
    }

    /// What was dropped because its sender was not who it said it was (IP, ARP and neighbour discovery).
    pub fn spoofed(&self, number: NetworkNumber) -> Result<Traffic, KernelError> {
        self.network(number)?.operate().spoofed()
    }

    /// Hints that somebody else changed a link, address, route or rule of a network. A hint may be superfluous, and
    /// one may be lost while an operation of our own runs: observe now and then without one, too.
    pub fn changes(&self) -> Result<broadcast::Receiver<NetworkNumber>, KernelError> {
        let hints = self.inner.hints.subscribe();
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
        Ok(hints)
    }

    /// IP forwarding of the host, which open networks need.
    pub fn forwarding(&self) -> HostForwarding<'_> {
        HostForwarding { host: &self.inner.host }
    }

    /// The ranges that the calling thread's namespace has routes to, without default and link-local ones.
    pub fn host_routes() -> Result<Vec<IpNet>, KernelError> {
        host::routes_here()
    }

    fn fit_uplink(&self, router: &mut netlink::Socket, spec: &NetworkSpec) -> Result<(), KernelError> {
        match spec.egress {
            Egress::Open => self.inner.host.connect(router, spec.number),
            Egress::Deny => self.inner.host.disconnect(spec.number),
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
        let network = Arc::new(Network::open(installation, number, namespace)?);
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
