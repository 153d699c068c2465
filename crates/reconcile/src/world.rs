//! Everything a worker needs, in one place.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex as AsyncMutex;
use warren_edge::{NetworkView, SpawnConfig};
use warren_kernel::{Kernel, MemberSpec, NetworkSpec};
use warren_model::policy::{Group, PrivateRanges};
use warren_model::record::{Installation, Machine, MachineStatus, Network, NetworkProblem};
use warren_model::session::Session;
use warren_model::{Access, AccountId, MachineId, NetworkId};
use warren_plan::machine::Container;
use warren_plan::network::{Member, ObservedRouter};
use warren_runtime::agent::AgentHub;
use warren_runtime::disk::Pool;
use warren_runtime::driver::{Driver, DriverState};
use warren_store::{Store, Typed, Watch, schema};

use crate::ReconcileError;
use crate::audit::AuditLog;
use crate::denials::Denials;
use crate::desired::{self, SharedDesired};
use crate::edge::EdgeLink;
use crate::facts;
use crate::machine;
use crate::metrics::Metrics;
use crate::names;
use crate::policy::Policies;
use crate::public::{Public, PublicSettings};
use crate::queue::{Item, Queue};
use crate::sessions::{self, Sessions, TunnelSettings};
use crate::sight::Sight;

/// How long changes of a network's members are gathered before its machines are told.
const FACTS_PAUSE: Duration = Duration::from_millis(500);

/// What the reconciler is made of.
pub struct Parts {
    pub installation: Installation,
    pub store: Arc<dyn Store>,
    pub kernel: Kernel,
    pub pool: Arc<Pool>,
    pub driver: Arc<dyn Driver>,
    pub agents: AgentHub,
    pub edge: SpawnConfig,
    pub tunnel: TunnelSettings,
    pub public: PublicSettings,
    /// The host's resolvers, for networks whose egress is open.
    pub resolvers: Vec<SocketAddr>,
    /// What policies may open besides the public internet.
    pub private_ranges: PrivateRanges,
    /// A directory that does not survive a reboot of the host.
    pub run_directory: PathBuf,
    pub audit_log: PathBuf,
    /// Where refusals are logged.
    pub denials_log: PathBuf,
}

/// The parts, and what is known of the host.
pub struct World {
    pub kernel: Kernel,
    pub driver: Arc<dyn Driver>,
    pub metrics: Metrics,
    pub(crate) installation: Installation,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) agents: AgentHub,
    pub(crate) queue: Queue,
    pub(crate) desired: SharedDesired,
    pub(crate) edge: EdgeLink,
    pub(crate) resolvers: Vec<SocketAddr>,
    pub(crate) private_ranges: PrivateRanges,
    pub(crate) audit_log: Arc<AuditLog>,
    /// Whoever moves entries to the log.
    pub(crate) audit_turn: AsyncMutex<()>,
    pub(crate) policies: Policies,
    pub(crate) sessions: Sessions,
    pub(crate) public: Public,
    pub denials: Denials,
    boots: PathBuf,
    machines: Mutex<HashMap<MachineId, KnownMachine>>,
    statuses: Mutex<HashMap<MachineId, MachineStatus>>,
    networks: Mutex<HashMap<NetworkId, Arc<AsyncMutex<KnownNetwork>>>>,
    /// What is shown to be wrong with networks.
    problems: Mutex<HashMap<NetworkId, NetworkProblem>>,
    derived: Mutex<HashMap<NetworkId, Arc<Derived>>>,
    facts_due: Mutex<HashSet<NetworkId>>,
    /// What the machines of networks were last woken for.
    told: Mutex<HashMap<NetworkId, Arc<Derived>>>,
}

/// What is known of a machine on this host.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct KnownMachine {
    pub disk: bool,
    pub root: bool,
    pub container: Container,
    /// Its first process, in the daemon's process namespace.
    pub pid: Option<i32>,
    pub boot: Option<u64>,
    pub agent_open: bool,
    /// A hash of what the agent was last given.
    pub configured: Option<u64>,
}

/// What is known of a network on this host. Its lock is held while the network is changed.
#[derive(Debug, Default)]
pub(crate) struct KnownNetwork {
    pub router: Option<ObservedRouter>,
    /// It was whole once, so what is missing from now on is drift.
    pub settled: bool,
}

/// What follows from the records of a network and its members.
pub(crate) struct Derived {
    /// Of the network and of its account.
    versions: (u64, u64),
    pub view: Arc<NetworkView>,
    sight: Sight,
    /// By group, made when they are first asked for: there may be as many groups as members.
    facts: Mutex<HashMap<Group, Arc<str>>>,
}

impl Derived {
    /// Whether all that the network's machines are told is the same.
    fn tells_the_same(&self, other: &Self) -> bool {
        self.view.name == other.view.name && self.sight.tells_the_same(&other.sight)
    }
}

impl World {
    pub(crate) async fn load(parts: Parts) -> Result<(Self, Box<dyn Watch>), ReconcileError> {
        let (desired, changes) = desired::load(parts.store.as_ref()).await?;
        let (statuses, _) = parts.store.list_all(&schema::statuses()).await?;
        let statuses: HashMap<MachineId, MachineStatus> =
            statuses.into_iter().filter_map(|status| Some((schema::machine_of(&status.key)?, status.record))).collect();
        let (problems, _) = parts.store.list_all(&schema::network_problems()).await?;
        let problems = problems
            .into_iter()
            .filter_map(|problem| Some((schema::network_of_problem(&problem.key)?, problem.record)))
            .collect();
        let metrics = Metrics::default();
        statuses.iter().for_each(|(id, status)| metrics.state(*id, Some(status.state)));
        let boots = parts.run_directory.join("boots");
        std::fs::create_dir_all(&boots).map_err(|source| ReconcileError::File {
            action: "making a directory",
            path: boots.clone(),
            source,
        })?;
        let world = Self {
            installation: parts.installation,
            store: parts.store,
            kernel: parts.kernel,
            pool: parts.pool,
            driver: parts.driver,
            agents: parts.agents,
            queue: Queue::default(),
            desired,
            metrics,
            edge: EdgeLink::new(parts.edge),
            resolvers: parts.resolvers,
            private_ranges: parts.private_ranges,
            audit_log: Arc::new(AuditLog::new(parts.audit_log)),
            audit_turn: AsyncMutex::default(),
            policies: Policies::default(),
            sessions: Sessions::new(parts.tunnel),
            public: Public::new(parts.public),
            denials: Denials::open(parts.denials_log)?,
            boots,
            machines: Mutex::default(),
            statuses: Mutex::new(statuses),
            networks: Mutex::default(),
            problems: Mutex::new(problems),
            derived: Mutex::default(),
            facts_due: Mutex::default(),
            told: Mutex::default(),
        };
        Ok((world, changes))
    }

    /// Takes over what an earlier daemon left on the host.
    pub(crate) async fn adopt(&self) -> Result<(), ReconcileError> {
        let disks = self.pool.disks().await?;
        let roots = self.pool.mounted().await?;
        let containers = self.driver.observe().await?;
        let ids: BTreeSet<MachineId> = disks.iter().chain(&roots).chain(containers.keys()).copied().collect();
        for id in ids {
            let state = containers.get(&id).copied();
            let pid = match state {
                Some(DriverState::Created { pid } | DriverState::Running { pid }) => Some(pid),
                _ => None,
            };
            let known = KnownMachine {
                pid,
                disk: disks.contains(&id),
                root: roots.contains(&id),
                container: container_of(state),
                boot: self.recorded_boot(id),
                agent_open: false,
                configured: None,
            };
            lock(&self.machines).insert(id, known);
            let machine = self.desired.read().machine(id);
            if let (Some(machine), Some(_)) = (machine, pid)
                && let Err(error) = machine::open_agent(self, &machine).await
            {
                // One machine must not keep the server from starting; its worker tries again and reports it.
                tracing::warn!(machine = %id, error = %error.chain(), "its agent cannot be let in yet");
            }
        }
        // Nobody dials through what is left of an earlier daemon's machines, so their plans do not see it.
        for id in self.agents.directories()? {
            if self.known_machine(id).pid.is_none() {
                self.agents.close(id).await;
            }
        }
        Ok(())
    }

    pub(crate) fn enqueue_everything(&self) {
        let desired = self.desired.read();
        desired.networks().for_each(|network| self.queue.push(Item::Network(network.id)));
        desired.machines().for_each(|machine| self.queue.push(Item::Machine(machine.id)));
    }

    pub(crate) fn enqueue_networks_of(&self, account: AccountId) {
        let desired = self.desired.read();
        desired.networks_of(account).for_each(|network| self.queue.push(Item::Network(network.id)));
    }

    /// Wakes the members of a network that were told something else than what is so now.
    pub(crate) fn tell_members(&self, network: NetworkId) {
        let desired = self.desired.read();
        let Some(network) = desired.network(network) else { return };
        let members: Vec<Arc<Machine>> = desired.members(network.id).map(Arc::clone).collect();
        drop(desired);
        let due = members.iter().filter(|machine| !machine::is_told(self, machine, &network));
        due.for_each(|machine| self.queue.push(Item::Machine(machine.id)));
    }

    /// Who is in a network has changed, which networks that policy links to it have in their rules.
    pub(crate) fn wake_linked_networks(&self, network: NetworkId) {
        let network = self.desired.read().network(network);
        if let Some(network) = network
            && self.desired.read().policy(network.account).is_some()
        {
            self.enqueue_networks_of(network.account);
        }
    }

    /// The same of machines, of which others may be told.
    pub(crate) fn linked_networks_changed(&self, network: NetworkId) {
        self.wake_linked_networks(network);
        let desired = self.desired.read();
        let account = desired.network(network).map(|network| network.account);
        if let Some(account) = account.filter(|account| desired.policy(*account).is_some()) {
            lock(&self.facts_due).extend(desired.networks_of(account).map(|network| network.id));
        }
    }

    /// What this network's members can see is this now, whatever changed it: a member, the policy, or the time. Nothing is
    /// due where all of them are told the same, as when an operator came or went.
    pub(crate) fn has_published(&self, network: NetworkId, derived: Arc<Derived>) {
        let before = lock(&self.told).insert(network, Arc::clone(&derived));
        let alike = before.is_some_and(|before| Arc::ptr_eq(&before, &derived) || before.tells_the_same(&derived));
        if !alike {
            lock(&self.facts_due).insert(network);
        }
    }

    /// The members of a network can see something new of each other.
    pub(crate) fn members_changed(&self, network: NetworkId) {
        self.queue.push(Item::Network(network));
        lock(&self.facts_due).insert(network);
    }

    /// Networks whose machines are to be told new facts; asked for by a task of its own, so that a burst of changes
    /// is told once.
    pub(crate) async fn facts_due(&self) -> Vec<NetworkId> {
        tokio::time::sleep(FACTS_PAUSE).await;
        lock(&self.facts_due).drain().collect()
    }

    pub(crate) fn known_machine(&self, id: MachineId) -> KnownMachine {
        lock(&self.machines).get(&id).copied().unwrap_or_default()
    }

    pub(crate) fn update_machine(&self, id: MachineId, change: impl FnOnce(&mut KnownMachine)) {
        change(lock(&self.machines).entry(id).or_default());
    }

    pub(crate) fn forget_machine(&self, id: MachineId) {
        lock(&self.machines).remove(&id);
        lock(&self.statuses).remove(&id);
    }

    pub(crate) fn known_machines(&self) -> Vec<(MachineId, KnownMachine)> {
        lock(&self.machines).iter().map(|(id, known)| (*id, *known)).collect()
    }

    pub(crate) fn known_network(&self, id: NetworkId) -> Arc<AsyncMutex<KnownNetwork>> {
        Arc::clone(lock(&self.networks).entry(id).or_default())
    }

    pub(crate) fn forget_network(&self, id: NetworkId) {
        lock(&self.networks).remove(&id);
        lock(&self.problems).remove(&id);
        lock(&self.derived).remove(&id);
        lock(&self.told).remove(&id);
        self.policies.forget(id);
        // Nothing of it passes any more.
        self.sessions.settled(id, BTreeSet::new());
    }

    pub(crate) fn shown(&self, id: MachineId) -> Option<MachineStatus> {
        lock(&self.statuses).get(&id).cloned()
    }

    pub(crate) fn remember_status(&self, id: MachineId, status: MachineStatus) {
        lock(&self.statuses).insert(id, status);
    }

    pub(crate) fn problem(&self, id: NetworkId) -> Option<NetworkProblem> {
        lock(&self.problems).get(&id).cloned()
    }

    pub(crate) fn remember_problem(&self, id: NetworkId, problem: Option<NetworkProblem>) {
        let mut problems = lock(&self.problems);
        match problem {
            Some(problem) => drop(problems.insert(id, problem)),
            None => drop(problems.remove(&id)),
        }
    }

    pub(crate) fn derived(&self, network: &Network) -> Arc<Derived> {
        let policy = self.policy(network.account);
        // Compiled before the records are held: that may take its time.
        let rules = policy.rules(network.id);
        let desired = self.desired.read();
        let versions = (desired.version(network.id), policy.compiled_at());
        if let Some(derived) = lock(&self.derived).get(&network.id).filter(|derived| derived.versions == versions) {
            return Arc::clone(derived);
        }
        let ula = self.installation.ula;
        let sight =
            Sight::of(network, ula, rules, &policy.directory, desired.members(network.id), |id| desired.machine(id));
        let operators = sessions::operators(network, ula, desired.sessions_in(network.id), |id| desired.machine(id));
        let view = names::network_view(network, ula, &sight, &policy, operators, &self.resolvers);
        let derived = Arc::new(Derived { versions, view: Arc::new(view), sight, facts: Mutex::default() });
        lock(&self.derived).insert(network.id, Arc::clone(&derived));
        derived
    }

    /// The facts of one of the network's machines, but for what is about itself.
    pub(crate) fn facts(&self, machine: &Machine, network: &Network) -> Arc<str> {
        let derived = self.derived(network);
        let group = derived.sight.group(machine.ipv4);
        let mut known = lock(&derived.facts);
        let made = known
            .entry(group)
            .or_insert_with(|| facts::of_group(network, self.installation.ula, &derived.sight, group).into());
        Arc::clone(made)
    }

    /// Whether the edge does its work.
    pub async fn edge_answers(&self) -> Result<(), ReconcileError> {
        self.edge.status().await.map(drop)
    }

    pub(crate) fn network_spec(&self, network: &Network) -> NetworkSpec {
        let ula = self.installation.ula;
        NetworkSpec {
            number: network.number,
            gateway4: network.cidr.gateway(),
            gateway6: ula.gateway(network.number),
            cidr: network.cidr,
            cidr6: ula.network(network.number),
            egress: network.egress,
            rules: self.policy(network.account).rules(network.id),
            names6: ula.names(network.number),
        }
    }

    pub(crate) fn member(&self, machine: &Machine, network: &Network) -> Member {
        Member {
            number: machine.member,
            access: Access::Link,
            ipv4: machine.ipv4,
            ipv6: machine.ipv6(self.installation.ula, network.number),
        }
    }

    pub(crate) fn operator(&self, session: &Session, network: &Network) -> Member {
        Member {
            number: session.member,
            access: Access::Tunnel,
            ipv4: session.ipv4,
            ipv6: session.ipv6(self.installation.ula, network.number),
        }
    }

    /// The boot that a container on this host belongs to, written before it is made.
    fn recorded_boot(&self, id: MachineId) -> Option<u64> {
        std::fs::read_to_string(self.boots.join(id.bare())).ok()?.trim().parse().ok()
    }

    pub(crate) fn record_boot(&self, id: MachineId, boot: u64) -> Result<(), ReconcileError> {
        let path = self.boots.join(id.bare());
        std::fs::write(&path, boot.to_string()).map_err(|source| ReconcileError::File {
            action: "recording the boot",
            path,
            source,
        })
    }

    pub(crate) fn forget_boot(&self, id: MachineId) {
        // It may never have been written.
        let _ = std::fs::remove_file(self.boots.join(id.bare()));
    }
}

pub(crate) fn container_of(state: Option<DriverState>) -> Container {
    match state {
        None => Container::Absent,
        Some(DriverState::Created { .. }) => Container::Created,
        Some(DriverState::Running { .. }) => Container::Running,
        Some(DriverState::Dead) => Container::Dead,
    }
}

pub(crate) fn member_spec(member: &Member) -> MemberSpec {
    MemberSpec { number: member.number, access: member.access, ipv4: member.ipv4, ipv6: member.ipv6 }
}

pub(crate) fn member_specs<'a>(members: impl IntoIterator<Item = &'a Member>) -> Vec<MemberSpec> {
    members.into_iter().map(member_spec).collect()
}

pub(crate) fn member_of(spec: &MemberSpec) -> Member {
    Member { number: spec.number, access: spec.access, ipv4: spec.ipv4, ipv6: spec.ipv6 }
}

/// Runs a blocking call of the kernel crate on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static, E: Into<ReconcileError> + Send + 'static>(
    call: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, ReconcileError> {
    tokio::task::spawn_blocking(call).await?.map_err(Into::into)
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each map is whole between any two statements, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
