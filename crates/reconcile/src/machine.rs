//! One machine: observe, plan, execute.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use warren_model::MachineId;
use warren_model::allocate::REST;
use warren_model::record::{AddressHold, Machine, MachineState, MachineStatus, Network, Power};
use warren_plan::machine::{
    Container, DesiredMachine, Link, MachineStep, ObservedMachine, keeps_running, plan, transition,
};
use warren_runtime::agent::GuestConfig;
use warren_runtime::driver::MachineSpec;
use warren_store::{TxnBuilder, TxnOutcome, Typed, schema};

use crate::ReconcileError;
use crate::crash;
use crate::leftovers;
use crate::names;
use crate::network;
use crate::queue::Item;
use crate::status;
use crate::world::{World, blocking, member_spec};

/// How long a machine has to dial after it was started.
const AGENT_WITHIN: Duration = Duration::from_secs(30);
/// How long a machine has to end by itself when it is stopped.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// The shortest time between two starts of a machine that ends by itself.
const LEAST_LIFE: Duration = Duration::from_secs(2);
/// How often a wait looks whether it is still wanted.
const GLANCE: Duration = Duration::from_millis(50);

pub(crate) async fn reconcile(world: &World, id: MachineId) -> Result<(), ReconcileError> {
    let Some(machine) = world.desired.read().machine(id) else {
        return leftovers::remove_machine(world, id).await;
    };
    let Some(network) = world.desired.read().network(machine.network) else {
        return Err(ReconcileError::NetworkMissing(machine.network));
    };
    match drive(world, &machine, &network).await {
        Ok(()) => Ok(()),
        // Whoever changed the record has pushed the machine again.
        Err(ReconcileError::Superseded) => Ok(()),
        Err(error) => {
            let state = if machine.power == Power::Gone { MachineState::Deleting } else { MachineState::Failed };
            status::show(world, &machine, state, Some(error.failure())).await?;
            Err(error)
        }
    }
}

async fn drive(world: &World, machine: &Machine, network: &Network) -> Result<(), ReconcileError> {
    let desired = DesiredMachine { power: machine.power, boot: machine.boot };
    let observed = observe(world, machine, network).await?;
    let steps = plan(desired, &observed);
    let shown = world.shown(machine.id);
    let was_running = shown.as_ref().is_some_and(|s| s.state == MachineState::Running && s.boot == machine.boot);
    let failed_before = shown.as_ref().is_some_and(|s| s.state == MachineState::Failed && s.boot == machine.boot);
    if was_running
        && machine.power == Power::On
        && let Some(pause) = rest_before_restart(&observed, shown.as_ref(), Timestamp::now())
    {
        world.queue.push_later(Item::Machine(machine.id), pause);
        return Ok(());
    }
    // What is mended while the machine runs, and what is tried again after a failure, keeps its state until it is done.
    let quiet = (was_running && keeps_running(&steps)) || (failed_before && machine.power == Power::On);
    if !steps.is_empty() && !quiet {
        let now = shown.as_ref().map_or(MachineState::Creating, |shown| shown.state);
        status::show(world, machine, transition(machine.power, now), None).await?;
    }
    for step in &steps {
        let began = Instant::now();
        crash::point("before", "", step.as_str());
        match execute(world, machine, network, *step).await {
            // It ran, its agent hung up, and only then was its end seen. Whoever saw it has pushed the machine again.
            Err(ReconcileError::EndedWhileStarting) if was_running && keeps_running(&steps) => {
                return Err(ReconcileError::Superseded);
            }
            outcome => outcome?,
        }
        crash::point("after", "", step.as_str());
        world.metrics.machine_step(step.as_str(), began.elapsed());
    }
    if was_running && machine.power == Power::On {
        report_repairs(world, machine, &observed, &steps).await?;
    }
    match machine.power {
        Power::On => status::show(world, machine, MachineState::Running, None).await,
        Power::Off => status::show(world, machine, MachineState::Stopped, None).await,
        Power::Gone => Ok(()),
    }
}

/// A machine whose first process ends again and again is not started more often than [`LEAST_LIFE`] allows.
fn rest_before_restart(observed: &ObservedMachine, shown: Option<&MachineStatus>, now: Timestamp) -> Option<Duration> {
    if matches!(observed.container, Container::Running | Container::Created) {
        return None;
    }
    let lived = now.duration_since(shown?.started_at?);
    let least = SignedDuration::try_from(LEAST_LIFE).ok()?;
    Duration::try_from(least - lived).ok().filter(|rest| !rest.is_zero())
}

async fn observe(world: &World, machine: &Machine, network: &Network) -> Result<ObservedMachine, ReconcileError> {
    let known = world.known_machine(machine.id);
    let shared = world.known_network(network.id);
    let mut router = shared.lock().await;
    if router.router.is_none() && machine.power == Power::On {
        network::reconcile_locked(world, network, &mut router).await?;
    }
    let member = world.member(machine, network);
    let (admitted, link) = router.router.as_ref().map_or((false, Link::Absent), |router| {
        let link = match router.links.get(&machine.member) {
            None => Link::Absent,
            Some(false) => Link::Broken,
            Some(true) => Link::Ready,
        };
        (router.admitted.contains(&member), link)
    });
    drop(router);
    Ok(ObservedMachine {
        disk: known.disk,
        root: known.root,
        container: known.container,
        boot: known.boot,
        link,
        admitted,
        agent_open: known.agent_open,
        agent_connected: world.agents.is_connected(machine.id),
        configured: is_told(world, machine, network),
        published: network::is_published(world, network),
    })
}

async fn execute(world: &World, machine: &Machine, network: &Network, step: MachineStep) -> Result<(), ReconcileError> {
    let id = machine.id;
    match step {
        MachineStep::CreateDisk => {
            world.pool.create_disk(id, &machine.image, machine.uid_base(), machine.limits.disk_gib).await?;
            world.update_machine(id, |known| known.disk = true);
        }
        MachineStep::MountRoot => {
            world.pool.mount_root(id, machine.uid_base()).await?;
            world.update_machine(id, |known| known.root = true);
        }
        MachineStep::OpenAgent => {
            open_agent(world, machine).await?;
        }
        MachineStep::CreateContainer => create_container(world, machine).await?,
        MachineStep::StartContainer => {
            world.driver.start(id).await?;
            world.update_machine(id, |known| known.container = Container::Running);
        }
        MachineStep::AwaitAgent => await_agent(world, machine).await?,
        MachineStep::Configure => {
            let config = config(world, machine, network);
            world.agents.configure(id, &config).await?;
            world.update_machine(id, |known| known.configured = Some(fingerprint(&config)));
        }
        MachineStep::StopContainer => {
            world.driver.stop(id, STOP_GRACE).await?;
            container_is_gone(world, id);
        }
        MachineStep::RemoveContainer => {
            world.driver.remove(id).await?;
            container_is_gone(world, id);
        }
        MachineStep::CloseAgent => {
            world.agents.close(id).await;
            world.update_machine(id, |known| {
                known.agent_open = false;
                known.configured = None;
            });
        }
        MachineStep::UnmountRoot => {
            world.pool.unmount_root(id).await?;
            world.update_machine(id, |known| known.root = false);
        }
        MachineStep::RemoveDisk => {
            world.pool.remove_disk(id).await?;
            world.update_machine(id, |known| known.disk = false);
        }
        MachineStep::Admit
        | MachineStep::AttachLink
        | MachineStep::Publish
        | MachineStep::DetachLink
        | MachineStep::Expel => execute_on_network(world, machine, network, step).await?,
        MachineStep::Forget => forget(world, machine).await?,
    }
    Ok(())
}

/// Steps that change the network hold its lock.
async fn execute_on_network(
    world: &World,
    machine: &Machine,
    network: &Network,
    step: MachineStep,
) -> Result<(), ReconcileError> {
    let shared = world.known_network(network.id);
    let mut known = shared.lock().await;
    let kernel = world.kernel.clone();
    let (number, member) = (network.number, world.member(machine, network));
    let spec = member_spec(&member);
    match step {
        MachineStep::Admit => {
            if known.router.is_none() {
                return Err(ReconcileError::NetworkMissing(network.id));
            }
            let network_spec = world.network_spec(network);
            blocking(move || kernel.admit(&network_spec, &[spec])).await?;
            if let Some(router) = &mut known.router {
                router.admitted.insert(member);
            }
        }
        MachineStep::AttachLink => {
            let namespace = world.driver.network_namespace(machine.id)?;
            let network_spec = world.network_spec(network);
            blocking(move || kernel.attach(&network_spec, &spec, namespace.as_fd())).await?;
            if let Some(router) = &mut known.router {
                router.links.insert(machine.member, true);
            }
        }
        MachineStep::DetachLink => {
            let member = machine.member;
            blocking(move || kernel.detach(number, member)).await?;
            if let Some(router) = &mut known.router {
                router.links.remove(&machine.member);
            }
        }
        MachineStep::Expel => {
            blocking(move || kernel.expel(number, &[spec])).await?;
            if let Some(router) = &mut known.router {
                router.admitted.remove(&member);
            }
        }
        _ => network::publish(world, network).await?,
    }
    Ok(())
}

async fn create_container(world: &World, machine: &Machine) -> Result<(), ReconcileError> {
    // Both are idempotent and answer with the paths.
    let root = world.pool.mount_root(machine.id, machine.uid_base()).await?;
    let agent_directory = world.agents.open(machine.id, machine.uid_base()).await?;
    world.record_boot(machine.id, machine.boot)?;
    let created = world
        .driver
        .create(&MachineSpec {
            id: machine.id,
            hostname: machine.name.to_string(),
            uid_base: machine.uid_base(),
            limits: machine.limits,
            root,
            agent_directory,
        })
        .await?;
    world.agents.accept_from(machine.id, created.pid);
    world.update_machine(machine.id, |known| {
        known.container = Container::Created;
        known.pid = Some(created.pid);
        known.boot = Some(machine.boot);
        known.configured = None;
    });
    Ok(())
}

/// Listens where the machine's agent dials. It dials by itself, again and again; only the machine's first process is
/// let in.
pub(crate) async fn open_agent(world: &World, machine: &Machine) -> Result<(), ReconcileError> {
    world.agents.open(machine.id, machine.uid_base()).await?;
    if let Some(pid) = world.known_machine(machine.id).pid {
        world.agents.accept_from(machine.id, pid);
    }
    world.update_machine(machine.id, |known| known.agent_open = true);
    Ok(())
}

/// Waits until the machine has dialled, it has ended, or something else is wanted.
async fn await_agent(world: &World, machine: &Machine) -> Result<(), ReconcileError> {
    let connected = world.agents.connected(machine.id, AGENT_WITHIN);
    tokio::pin!(connected);
    loop {
        tokio::select! {
            outcome = &mut connected => return Ok(outcome?),
            () = tokio::time::sleep(GLANCE) => {
                if world.known_machine(machine.id).container != Container::Running {
                    return Err(ReconcileError::EndedWhileStarting);
                }
                let wanted = world.desired.read().machine(machine.id);
                if !wanted.is_some_and(|now| now.power == machine.power && now.boot == machine.boot) {
                    return Err(ReconcileError::Superseded);
                }
            }
        }
    }
}

fn container_is_gone(world: &World, id: MachineId) {
    world.forget_boot(id);
    world.update_machine(id, |known| {
        known.container = Container::Absent;
        known.pid = None;
        known.boot = None;
        known.configured = None;
    });
}

/// Removes every record of the machine in one transaction; its address begins to rest.
async fn forget(world: &World, machine: &Machine) -> Result<(), ReconcileError> {
    let store = world.store.as_ref();
    let key = schema::machine(machine.id);
    loop {
        let Some(read) = store.read(&key).await? else { break };
        let name_key = schema::machine_name(machine.account, &read.record.name);
        let name = store.read(&name_key).await?;
        let address_key = schema::address(machine.network, machine.ipv4);
        let address = store.read(&address_key).await?;
        let mut txn = TxnBuilder::new()
            .unchanged(&read)
            .delete(&key)
            .delete(&schema::status(machine.id))
            .delete(&schema::member(machine.network, machine.id))
            .delete(&schema::uid_slot(machine.uid_slot));
        if let Some(name) = name.filter(|name| name.record == machine.id) {
            txn = txn.unchanged(&name).delete(&name_key);
        }
        if let Some(address) = address.filter(|address| address.record.holder == Some(machine.id.into())) {
            let resting =
                AddressHold { kind: address.record.kind, holder: None, resting_until: Some(Timestamp::now() + REST) };
            txn = txn.unchanged(&address).put(&address_key, &resting)?;
        }
        match txn.commit(store).await? {
            TxnOutcome::Committed(_) => break,
            TxnOutcome::Conflict(_) => continue,
        }
    }
    // A crash may have left either of them without a container.
    world.agents.close(machine.id).await;
    world.forget_boot(machine.id);
    world.metrics.state(machine.id, None);
    world.forget_machine(machine.id);
    Ok(())
}

/// Says what had to be mended on a machine that was running.
async fn report_repairs(
    world: &World,
    machine: &Machine,
    observed: &ObservedMachine,
    steps: &[MachineStep],
) -> Result<(), ReconcileError> {
    let what = match observed.container {
        Container::Running if steps.contains(&MachineStep::AttachLink) => "its link was made anew",
        Container::Running if steps.contains(&MachineStep::Admit) => "it was admitted again",
        Container::Running => return Ok(()),
        _ => "it had ended by itself and was started again",
    };
    status::repaired(world, machine.network, Some(machine.id), format!("{}: {what}", machine.name)).await
}

/// Whether the machine's agent was given its present names and facts.
pub(crate) fn is_told(world: &World, machine: &Machine, network: &Network) -> bool {
    world.known_machine(machine.id).configured == Some(fingerprint(&config(world, machine, network)))
}

fn config(world: &World, machine: &Machine, network: &Network) -> GuestConfig {
    names::guest_config(machine, network, world.installation.ula, &world.facts(machine, network))
}

fn fingerprint(config: &GuestConfig) -> u64 {
    let mut hasher = DefaultHasher::new();
    config.hostname.hash(&mut hasher);
    for file in &config.files {
        (&file.path, file.mode, &file.content).hash(&mut hasher);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_ends_at_once_rests_before_it_is_started_again() {
        let dead = ObservedMachine { container: Container::Dead, ..ObservedMachine::default() };
        let alive = ObservedMachine { container: Container::Running, ..ObservedMachine::default() };
        let start = Timestamp::UNIX_EPOCH;
        let shown = MachineStatus { state: MachineState::Running, boot: 1, failure: None, started_at: Some(start) };
        let rest = |observed, milliseconds: i64| {
            rest_before_restart(observed, Some(&shown), start + SignedDuration::from_millis(milliseconds))
        };
        assert_eq!(rest(&dead, 500), Some(Duration::from_millis(1500)));
        assert_eq!(rest(&dead, 2000), None);
        assert_eq!(rest(&dead, 60_000), None);
        assert_eq!(rest(&alive, 500), None);
    }
}
