//! The store's networks, machines, sessions and domains in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use warren_model::domain::Domain;
use warren_model::policy::HostName;
use warren_model::record::{Machine, Network, PolicyVersion, Power};
use warren_model::session::Session;
use warren_model::{AccountId, MachineId, NetworkId, NetworkNumber, SessionId};
use warren_store::schema::{self, Record};
use warren_store::{Change, Revision, Store, StoreError, Typed, Watch, decode};

use crate::queue::Item;
use crate::world::World;

/// What the records say, as of the last change that was seen.
#[derive(Debug, Default)]
pub struct Desired {
    networks: HashMap<NetworkId, Arc<Network>>,
    machines: HashMap<MachineId, Arc<Machine>>,
    members: HashMap<NetworkId, BTreeMap<MachineId, Arc<Machine>>>,
    sessions: HashMap<SessionId, Arc<Session>>,
    operators: HashMap<NetworkId, BTreeMap<SessionId, Arc<Session>>>,
    policies: HashMap<AccountId, Arc<PolicyVersion>>,
    domains: BTreeMap<HostName, Arc<Domain>>,
    /// Counts what a network's members can see of each other.
    versions: HashMap<NetworkId, u64>,
    /// Counts what policy can tell apart in an account: its policy, its networks, who is in them.
    account_versions: HashMap<AccountId, u64>,
}

impl Desired {
    pub fn network(&self, id: NetworkId) -> Option<Arc<Network>> {
        self.networks.get(&id).cloned()
    }

    pub fn machine(&self, id: MachineId) -> Option<Arc<Machine>> {
        self.machines.get(&id).cloned()
    }

    pub fn networks(&self) -> impl Iterator<Item = &Arc<Network>> {
        self.networks.values()
    }

    pub fn machines(&self) -> impl Iterator<Item = &Arc<Machine>> {
        self.machines.values()
    }

    pub fn machine_ids(&self) -> BTreeSet<MachineId> {
        self.machines.keys().copied().collect()
    }

    pub fn network_by_number(&self, number: NetworkNumber) -> Option<Arc<Network>> {
        self.networks.values().find(|network| network.number == number).cloned()
    }

    /// Every machine of the network, in the order in which they were made.
    pub fn members(&self, network: NetworkId) -> impl Iterator<Item = &Arc<Machine>> + Clone {
        self.members.get(&network).into_iter().flat_map(BTreeMap::values)
    }

    /// Every operator session in the network, in the order in which they were opened.
    pub fn sessions_in(&self, network: NetworkId) -> impl Iterator<Item = &Arc<Session>> + Clone {
        self.operators.get(&network).into_iter().flat_map(BTreeMap::values)
    }

    pub fn sessions(&self) -> impl Iterator<Item = &Arc<Session>> {
        self.sessions.values()
    }

    pub fn session(&self, id: SessionId) -> Option<Arc<Session>> {
        self.sessions.get(&id).cloned()
    }

    /// What is public, by host name.
    pub fn domains(&self) -> impl Iterator<Item = &Arc<Domain>> + Clone {
        self.domains.values()
    }

    /// Changes whenever the network or what its members can see of each other changes.
    pub fn version(&self, network: NetworkId) -> u64 {
        self.versions.get(&network).copied().unwrap_or(0)
    }

    pub fn networks_of(&self, account: AccountId) -> impl Iterator<Item = &Arc<Network>> {
        self.networks.values().filter(move |network| network.account == account)
    }

    /// The policy that the account applied last; `None` when it never did.
    pub fn policy(&self, account: AccountId) -> Option<Arc<PolicyVersion>> {
        self.policies.get(&account).cloned()
    }

    /// Changes whenever the account's policy, or anything that it can speak of, changes.
    pub fn account_version(&self, account: AccountId) -> u64 {
        self.account_versions.get(&account).copied().unwrap_or(0)
    }

    /// Versions only grow: the highest is in force.
    pub fn insert_policy(&mut self, account: AccountId, policy: PolicyVersion) {
        if self.policies.get(&account).is_none_or(|known| known.version < policy.version) {
            self.policies.insert(account, Arc::new(policy));
            self.touch_account(account);
        }
    }

    pub fn insert_network(&mut self, network: Network) {
        self.touch(network.id);
        self.touch_account(network.account);
        self.networks.insert(network.id, Arc::new(network));
    }

    pub fn insert_machine(&mut self, machine: Machine) {
        let visible = |m: &Machine| (m.name.clone(), m.ports.clone(), m.tags.clone(), m.power == Power::Gone);
        let seen_alike = self.machines.get(&machine.id).is_some_and(|old| visible(old) == visible(&machine));
        if !seen_alike {
            self.touch(machine.network);
            self.touch_account(machine.account);
        }
        let machine = Arc::new(machine);
        self.members.entry(machine.network).or_default().insert(machine.id, Arc::clone(&machine));
        self.machines.insert(machine.id, machine);
    }

    pub fn remove_network(&mut self, id: NetworkId) {
        if let Some(network) = self.networks.remove(&id) {
            self.touch_account(network.account);
        }
        self.members.remove(&id);
        self.operators.remove(&id);
        self.versions.remove(&id);
    }

    /// The network that it was in.
    pub fn remove_machine(&mut self, id: MachineId) -> Option<NetworkId> {
        let machine = self.machines.remove(&id)?;
        if let Some(members) = self.members.get_mut(&machine.network) {
            members.remove(&id);
        }
        self.touch(machine.network);
        self.touch_account(machine.account);
        Some(machine.network)
    }

    pub fn insert_session(&mut self, session: Session) {
        self.touch(session.network);
        self.touch_account(session.account);
        let session = Arc::new(session);
        self.operators.entry(session.network).or_default().insert(session.id, Arc::clone(&session));
        self.sessions.insert(session.id, session);
    }

    /// The network that it was in.
    pub fn remove_session(&mut self, id: SessionId) -> Option<NetworkId> {
        let session = self.sessions.remove(&id)?;
        if let Some(operators) = self.operators.get_mut(&session.network) {
            operators.remove(&id);
        }
        self.touch(session.network);
        self.touch_account(session.account);
        Some(session.network)
    }

    pub fn insert_domain(&mut self, domain: Domain) {
        self.domains.insert(domain.host.clone(), Arc::new(domain));
    }

    pub fn remove_domain(&mut self, host: &HostName) {
        self.domains.remove(host);
    }

    fn touch_account(&mut self, account: AccountId) {
        *self.account_versions.entry(account).or_insert(0) += 1;
    }

    fn touch(&mut self, network: NetworkId) {
        *self.versions.entry(network).or_insert(0) += 1;
    }
}

/// [`Desired`] behind a lock that is held for moments only.
#[derive(Debug, Default)]
pub struct SharedDesired(RwLock<Desired>);

impl SharedDesired {
    pub fn read(&self) -> RwLockReadGuard<'_, Desired> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Desired> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads everything, and opens a watch that goes on from there.
pub(crate) async fn load(store: &dyn Store) -> Result<(SharedDesired, Box<dyn Watch>), StoreError> {
    let desired = SharedDesired::default();
    let watch = refill(store, &desired).await?;
    Ok((desired, watch))
}

async fn refill(store: &dyn Store, desired: &SharedDesired) -> Result<Box<dyn Watch>, StoreError> {
    let (networks, from): (_, Revision) = store.list_all(&schema::networks()).await?;
    let (machines, _) = store.list_all(&schema::machines()).await?;
    let (sessions, _) = store.list_all(&schema::sessions()).await?;
    let (domains, _) = store.list_all(&schema::domains()).await?;
    let policies = policies(store).await?;
    let mut fresh = Desired::default();
    networks.into_iter().for_each(|network| fresh.insert_network(network.record));
    machines.into_iter().for_each(|machine| fresh.insert_machine(machine.record));
    sessions.into_iter().for_each(|session| fresh.insert_session(session.record));
    domains.into_iter().for_each(|domain| fresh.insert_domain(domain.record));
    policies.into_iter().for_each(|(account, policy)| fresh.insert_policy(account, policy));
    {
        let mut now = desired.write();
        // Versions must not repeat, or a view made before would pass for one made after.
        let highest = now.versions.values().copied().max().unwrap_or(0);
        fresh.versions.values_mut().for_each(|version| *version += highest);
        let highest = now.account_versions.values().copied().max().unwrap_or(0);
        fresh.account_versions.values_mut().for_each(|version| *version += highest);
        *now = fresh;
    }
    store.watch("", from + 1).await
}

/// The policy in force of every account.
async fn policies(store: &dyn Store) -> Result<Vec<(AccountId, PolicyVersion)>, StoreError> {
    let (current, _) = store.list_all(&schema::policies_now()).await?;
    let mut policies = Vec::new();
    for now in current {
        let Some(account) = schema::account_of(&now.key) else { continue };
        // Without it the account would be as if it had no policy, which allows more.
        let key = schema::policy(account, now.record);
        let policy = store.read(&key).await?.ok_or_else(|| StoreError::Missing { key: key.as_str().to_owned() })?;
        policies.push((account, policy.record));
    }
    Ok(policies)
}

/// Applies changes for ever and wakes the workers they concern.
pub(crate) async fn follow(world: Arc<World>, mut watch: Box<dyn Watch>) {
    loop {
        match watch.next().await {
            Ok(changes) => changes.iter().for_each(|change| apply(&world, change)),
            Err(StoreError::Closed) => return,
            Err(error) => {
                tracing::warn!(%error, "reads the whole store again");
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                if let Ok(fresh) = refill(world.store.as_ref(), &world.desired).await {
                    watch = fresh;
                    world.enqueue_everything();
                    world.sessions.changed();
                    world.public.changed();
                }
            }
        }
    }
}

fn apply(world: &World, change: &Change) {
    if change.key.starts_with(schema::networks().as_str()) {
        let Some(id) = change.key.rsplit('/').next().and_then(|id| id.parse().ok()) else { return };
        match parse::<Network>(change) {
            Some(network) => world.desired.write().insert_network(network),
            None => world.desired.write().remove_network(id),
        }
        world.queue.push(Item::Network(id));
    } else if change.key.starts_with(schema::machines().as_str()) {
        let Some(id) = schema::machine_of(&change.key) else { return };
        let network = match parse::<Machine>(change) {
            Some(machine) => {
                let network = machine.network;
                let before = world.desired.read().version(network);
                world.desired.write().insert_machine(machine);
                (world.desired.read().version(network) != before).then_some(network)
            }
            None => world.desired.write().remove_machine(id),
        };
        world.queue.push(Item::Machine(id));
        if world.desired.read().domains().any(|domain| domain.machine == id) {
            world.public.changed();
        }
        if let Some(network) = network {
            world.members_changed(network);
            world.linked_networks_changed(network);
        }
    } else if change.key.starts_with(schema::sessions().as_str()) {
        let Some(id) = schema::session_in(&change.key) else { return };
        let network = match parse::<Session>(change) {
            Some(session) => {
                let network = session.network;
                world.desired.write().insert_session(session);
                Some(network)
            }
            None => world.desired.write().remove_session(id),
        };
        if let Some(network) = network {
            world.queue.push(Item::Network(network));
            world.wake_linked_networks(network);
            world.sessions.changed();
        }
    } else if change.key.starts_with(schema::domains().as_str()) {
        let Some(host) = schema::host_in(&change.key) else { return };
        match parse::<Domain>(change) {
            Some(domain) => world.desired.write().insert_domain(domain),
            None => world.desired.write().remove_domain(&host),
        }
        world.public.changed();
    } else if let Some(account) = schema::account_of_policy(&change.key)
        && let Some(policy) = parse::<PolicyVersion>(change)
    {
        world.desired.write().insert_policy(account, policy);
        world.enqueue_networks_of(account);
    }
}

fn parse<T: Record>(change: &Change) -> Option<T> {
    let value = change.value.as_deref()?;
    match decode(&change.key, value) {
        Ok(record) => Some(record),
        Err(error) => {
            tracing::error!(%error, key = change.key, "a record cannot be read");
            None
        }
    }
}
