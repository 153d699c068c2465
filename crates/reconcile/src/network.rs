//! One network: observe, plan, execute.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_kernel::RulesState;
use warren_model::record::{Network, NetworkProblem, Power};
use warren_model::{MemberNumber, NetworkId, NetworkNumber};
use warren_plan::machine::Container;
use warren_plan::network::{DesiredNetwork, NetworkStep, ObservedNetwork, ObservedRouter, Rules, plan};
use warren_store::{Range, TxnBuilder, TxnOutcome, Typed, schema};

use crate::ReconcileError;
use crate::crash;
use crate::names;
use crate::queue::Item;
use crate::status;
use crate::world::{KnownNetwork, World, blocking, member_of, member_specs};

/// How often the edge is asked, and how long it has in between.
const PUBLISH_ATTEMPTS: u32 = 4;
const PUBLISH_PAUSE: Duration = Duration::from_millis(150);

pub(crate) async fn reconcile(world: &World, id: NetworkId) -> Result<(), ReconcileError> {
    let Some(network) = world.desired.read().network(id) else {
        world.forget_network(id);
        return Ok(());
    };
    let known = world.known_network(id);
    let mut known = known.lock().await;
    reconcile_locked(world, &network, &mut known).await?;
    match world.edge.held(network.number).map_or(0, |held| held.refused.len()) {
        0 => Ok(()),
        some => Err(ReconcileError::OperatorsRefused(some)),
    }
}

/// Does the same for a caller that already holds the network's lock.
pub(crate) async fn reconcile_locked(
    world: &World,
    network: &Network,
    known: &mut KnownNetwork,
) -> Result<(), ReconcileError> {
    // Before anything is looked at: what is done below holds for this version at least.
    let version = world.policy(network.account).version;
    let sessions: BTreeSet<_> = world.desired.read().sessions_in(network.id).map(|session| session.id).collect();
    let desired = desired_of(world, network);
    known.router = observe_router(world, network).await?;
    let observed = ObservedNetwork {
        router: known.router.clone(),
        published: is_published(world, network),
        at_edge: world.edge.may_have(network.number),
    };
    let steps = plan(&desired, &observed);
    let (mut mended, mut unpublished) = (Vec::new(), None);
    for step in &steps {
        let began = Instant::now();
        crash::point("before", "network-", step.as_str());
        match execute(world, network, &desired, known, step).await {
            // What the edge does not take keeps nothing open in the kernel.
            Err(error) if *step == NetworkStep::Publish => {
                close_names(world, network).await;
                unpublished = Some(error);
                continue;
            }
            outcome => outcome?,
        }
        crash::point("after", "network-", step.as_str());
        world.metrics.network_step(step.as_str(), began.elapsed());
        if step.repairs() && known.settled {
            mended.push(step.to_string());
        }
    }
    if !mended.is_empty() {
        known.router = observe_router(world, network).await?;
        status::repaired(world, network.id, None, format!("{}: {}", network.name, mended.join(", "))).await?;
    }
    if let Some(error) = unpublished {
        return Err(error);
    }
    known.settled = !network.deleting;
    world.policies.is_enforced(network.id, version);
    // While a network waits for its machines to go, they publish it.
    if !network.deleting || is_published(world, network) || !world.edge.may_have(network.number) {
        world.sessions.settled(network.id, world.edge.inside(network.number, sessions));
    }
    if !network.deleting {
        world.has_published(network.id, world.derived(network));
    }
    wake_machines_without_link(world, network, known);
    if network.deleting {
        return Ok(());
    }
    status::show_problem(world, network, world.policy(network.account).problem(network.id)).await
}

/// Tells that the network could not be brought to what it should be, again and again.
pub(crate) async fn failed(world: &World, id: NetworkId, error: &ReconcileError) {
    let Some(network) = world.desired.read().network(id) else { return };
    let problem = NetworkProblem { closed: false, failure: error.failure() };
    if let Err(error) = status::show_problem(world, &network, Some(problem)).await {
        tracing::warn!(network = %network.name, error = %error.chain(), "what is wrong with it is not among the events");
    }
}

/// Makes the edge answer with what the records say now. The caller holds the network's lock.
///
/// An edge that has just ended is started anew by the next attempt, so it costs a moment and not what was asked for.
pub(crate) async fn publish(world: &World, network: &Network) -> Result<(), ReconcileError> {
    for _ in 1..PUBLISH_ATTEMPTS {
        match publish_once(world, network).await {
            Err(ReconcileError::Edge(error)) if error.is_broken() => {
                tracing::warn!(network = %network.name, %error, "the edge is asked again");
                tokio::time::sleep(PUBLISH_PAUSE).await;
            }
            outcome => return outcome,
        }
    }
    publish_once(world, network).await
}

/// Closes every name outside at an edge that does not take what it should have: what it has from before may open more
/// than the policy does now. Names of members are answered as before.
async fn close_names(world: &World, network: &Network) {
    let Some(held) = world.edge.held(network.number) else { return };
    let closed = names::closed_view(&world.derived(network).view);
    if held.generation == closed.generation || world.edge.put(&Arc::new(closed), None, None).await.is_ok() {
        return;
    }
    if let Err(error) = world.edge.remove(network.number).await {
        tracing::error!(network = %network.name, error = %error.chain(), "what the edge has of it could not be taken back");
    }
}

async fn publish_once(world: &World, network: &Network) -> Result<(), ReconcileError> {
    // Without a connection nobody knows what the edge has: sockets that it does not need would replace those in use.
    world.edge.client().await?;
    let derived = world.derived(network);
    if world.edge.has_whole(&derived.view) {
        return Ok(());
    }
    let held = world.edge.held(network.number);
    let has_device = held.as_ref().is_some_and(|held| held.device);
    let needs_device = !derived.view.operators.is_empty() && !has_device;
    let sockets = match held {
        Some(_) => None,
        None => {
            let (kernel, spec) = (world.kernel.clone(), world.network_spec(network));
            Some(blocking(move || kernel.gateway_sockets(&spec)).await?)
        }
    };
    let device = match needs_device {
        false => None,
        true => {
            let (kernel, number) = (world.kernel.clone(), network.number);
            Some(blocking(move || kernel.tunnel_device(number)).await?)
        }
    };
    world.edge.put(&derived.view, sockets, device).await
}

pub(crate) fn is_published(world: &World, network: &Network) -> bool {
    world.edge.has_whole(&world.derived(network).view)
}

pub(crate) fn desired_of(world: &World, network: &Network) -> DesiredNetwork {
    let rules = world.policy(network.account).rules(network.id);
    let desired = world.desired.read();
    let select = |gone: bool| {
        let machines = desired.members(network.id).filter(move |machine| (machine.power == Power::Gone) == gone);
        machines.map(|machine| world.member(machine, network))
    };
    let operators = desired.sessions_in(network.id).map(|session| world.operator(session, network));
    DesiredNetwork {
        deleting: network.deleting,
        members: select(false).chain(operators).collect(),
        leaving: select(true).collect(),
        exits: rules.exits,
        peers: rules.links.keys().copied().collect(),
    }
}

pub(crate) async fn observe_router(world: &World, network: &Network) -> Result<Option<ObservedRouter>, ReconcileError> {
    let (kernel, spec) = (world.kernel.clone(), world.network_spec(network));
    let observed = blocking(move || kernel.observe(&spec)).await?;
    Ok(observed.map(|router| ObservedRouter {
        gateway: router.gateway_intact,
        rules: match router.rules {
            RulesState::Intact => Rules::Intact,
            RulesState::Altered => Rules::Altered,
            RulesState::Missing => Rules::Missing,
        },
        admitted: router.admitted.iter().map(member_of).collect(),
        links: router.links.iter().map(|(number, link)| (*number, link.up && link.routed)).collect(),
        policy: router.policy,
        uplink: router.uplink,
        tunnel: router.tunnel,
        peers: router.peers,
    }))
}

async fn execute(
    world: &World,
    network: &Network,
    desired: &DesiredNetwork,
    known: &mut KnownNetwork,
    step: &NetworkStep,
) -> Result<(), ReconcileError> {
    let kernel = world.kernel.clone();
    let spec = world.network_spec(network);
    let number = network.number;
    match step {
        NetworkStep::Create => {
            // The edge's sockets, if it has any, are in a namespace that is gone but for them.
            if known.router.is_none() && world.edge.may_have(number) {
                world.edge.remove(number).await?;
            }
            let members = member_specs(desired.members.union(&desired.leaving));
            blocking(move || kernel.create_network(&spec, &members)).await?;
            known.router = observe_router(world, network).await?;
            Ok(())
        }
        NetworkStep::RepairGateway => blocking(move || kernel.repair_gateway(&spec)).await,
        NetworkStep::LoadRules => {
            let members = member_specs(desired.members.union(&desired.leaving));
            blocking(move || kernel.load_rules(&spec, &members)).await
        }
        NetworkStep::ApplyPolicy => {
            let members = member_specs(desired.members.union(&desired.leaving));
            let way_out = known.router.as_ref().is_some_and(|router| router.uplink);
            let changes_way_out = way_out != spec.rules.exits;
            blocking(move || match changes_way_out {
                true => kernel.create_network(&spec, &members),
                false => kernel.apply_policy(&spec, &members),
            })
            .await?;
            known.router = observe_router(world, network).await?;
            Ok(())
        }
        NetworkStep::Link(peer) => {
            let Some(other) = world.desired.read().network_by_number(*peer) else { return Ok(()) };
            let other = world.network_spec(&other);
            blocking(move || kernel.link_networks(&spec, &other)).await
        }
        NetworkStep::Unlink(peer) => {
            let peer = *peer;
            blocking(move || kernel.unlink_networks(number, peer)).await
        }
        NetworkStep::Admit(members) => {
            let specs = member_specs(members);
            blocking(move || kernel.admit(&spec, &specs)).await?;
            if let Some(router) = &mut known.router {
                router.admitted.extend(members);
            }
            Ok(())
        }
        NetworkStep::Expel(members) => {
            let specs = member_specs(members);
            blocking(move || kernel.expel(number, &specs)).await?;
            if let Some(router) = &mut known.router {
                router.admitted.retain(|member| !members.contains(member));
            }
            Ok(())
        }
        NetworkStep::FitTunnel => {
            let members = member_specs(&desired.members);
            let was_made = blocking(move || kernel.fit_tunnel(&spec, &members)).await?;
            if was_made && world.edge.held(number).is_some_and(|held| held.device) {
                // What the edge has is a device that somebody deleted.
                world.edge.lost_device(number);
                publish(world, network).await?;
            }
            Ok(())
        }
        NetworkStep::DetachStray(member) => {
            let member: MemberNumber = *member;
            blocking(move || kernel.detach(number, member)).await
        }
        NetworkStep::Publish => publish(world, network).await,
        NetworkStep::Withdraw => world.edge.remove(number).await,
        NetworkStep::Remove => {
            blocking(move || kernel.remove_network(number)).await?;
            known.router = None;
            Ok(())
        }
        NetworkStep::Forget => forget(world, network).await,
    }
}

/// Removes every record of the network in one transaction.
async fn forget(world: &World, network: &Network) -> Result<(), ReconcileError> {
    let store = world.store.as_ref();
    let key = schema::network(network.id);
    loop {
        let Some(read) = store.read(&key).await? else { return Ok(()) };
        let name = store.read(&schema::network_name(network.account, &read.record.name)).await?;
        let mut txn = TxnBuilder::new()
            .unchanged(&read)
            .empty(&schema::members(network.id))
            .delete(&key)
            .delete(&schema::network_problem(network.id))
            .delete(&schema::network_number(network.number))
            .delete(&schema::next_member(network.id));
        if let Some(name) = name.filter(|name| name.record == network.id) {
            txn = txn.unchanged(&name).delete(&schema::network_name(network.account, &read.record.name));
        }
        let holds = Range { prefix: schema::addresses(network.id).as_str().to_owned(), after: None, limit: usize::MAX };
        let mut txn = txn.build();
        txn.ops.extend(
            store.list(holds).await?.entries.into_iter().map(|hold| warren_store::Op::Delete { key: hold.key }),
        );
        match store.txn(txn).await? {
            TxnOutcome::Committed(_) => {
                tracing::info!(network = %network.name, id = %network.id, "network removed");
                return Ok(());
            }
            TxnOutcome::Conflict(_) => continue,
        }
    }
}

/// A link that vanished is the machine's to mend. A machine that does not run has none, and its own pace.
fn wake_machines_without_link(world: &World, network: &Network, known: &KnownNetwork) {
    let Some(router) = &known.router else { return };
    let desired = world.desired.read();
    for machine in desired.members(network.id).filter(|machine| machine.power == Power::On) {
        let runs = world.known_machine(machine.id).container == Container::Running;
        if runs && router.links.get(&machine.member) != Some(&true) {
            world.queue.push(Item::Machine(machine.id));
        }
    }
}

/// Removes a network that no record names.
pub(crate) async fn remove_stray(world: &World, number: NetworkNumber) -> Result<(), ReconcileError> {
    let kernel = world.kernel.clone();
    blocking(move || kernel.remove_network(number)).await
}
