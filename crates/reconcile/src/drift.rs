//! What wakes workers besides the store.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use warren_plan::machine::Container;

use crate::queue::Item;
use crate::world::{World, container_of};

/// How often everything is looked at even when nothing was heard of it.
const INTERVAL: Duration = Duration::from_secs(2);

/// Somebody changed a link, an address, a route or a rule.
pub(crate) async fn netlink(world: Arc<World>) {
    let mut changes = match world.kernel.changes() {
        Ok(changes) => changes,
        Err(error) => {
            tracing::warn!(%error, "changes in the kernel are only seen by the timer");
            return;
        }
    };
    loop {
        match changes.recv().await {
            Ok(number) => {
                let network = world.desired.read().network_by_number(number);
                if let Some(network) = network {
                    world.queue.push(Item::Network(network.id));
                }
            }
            Err(RecvError::Lagged(_)) => world.enqueue_everything(),
            Err(RecvError::Closed) => return,
        }
    }
}

/// A machine's PID 1 has ended. Which one is looked up: by now another may run in its place.
pub(crate) async fn exits(world: Arc<World>) {
    let mut exits = world.driver.exits();
    while exits.recv().await.is_some() {
        while exits.try_recv().is_ok() {}
        look_at_containers(&world).await;
    }
}

/// A machine's agent hung up.
pub(crate) async fn agents(world: Arc<World>) {
    let mut disconnects = world.agents.disconnects();
    loop {
        match disconnects.recv().await {
            Ok(id) => world.queue.push(Item::Machine(id)),
            Err(RecvError::Lagged(_)) => world.enqueue_everything(),
            Err(RecvError::Closed) => return,
        }
    }
}

/// Looks at everything now and then, and tells machines of new neighbours.
pub(crate) async fn timer(world: Arc<World>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => look(&world).await,
            due = world.facts_due() => due.into_iter().for_each(|network| world.tell_members(network)),
        }
    }
}

async fn look(world: &World) {
    look_at_containers(world).await;
    let desired = world.desired.read();
    desired.networks().for_each(|network| world.queue.push(Item::Network(network.id)));
}

async fn look_at_containers(world: &World) {
    // Known first and seen afterwards: a machine that is started in between is not taken for one that has ended.
    let running = world.known_machines().into_iter().filter(|(_, known)| known.container == Container::Running);
    let running: Vec<_> = running.collect();
    let containers = match world.driver.observe().await {
        Ok(containers) => containers,
        Err(error) => {
            tracing::warn!(%error, "containers cannot be observed");
            return;
        }
    };
    for (id, before) in running {
        let ended = match container_of(containers.get(&id).copied()) {
            Container::Running => continue,
            Container::Absent => Container::Absent,
            Container::Created | Container::Dead => Container::Dead,
        };
        world.update_machine(id, |known| {
            // A container that a worker is making, removing or has replaced is its own affair.
            if known.container == Container::Running && known.pid == before.pid {
                known.container = ended;
            }
        });
        world.queue.push(Item::Machine(id));
    }
}
