//! What wakes workers besides the store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::broadcast::error::RecvError;
use warren_plan::machine::Container;

use crate::queue::Item;
use crate::world::{World, container_of};

/// How often containers and a few networks are looked at even when nothing was heard of them.
const INTERVAL: Duration = Duration::from_secs(2);
/// About what it takes to look at a network in which nothing has changed.
const LOOK: Duration = Duration::from_micros(300);
/// Looking at networks takes at most one part in so many of a processor; of many networks, each is looked at less often.
const SHARE: u32 = 50;

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
    let mut networks_due = Instant::now();
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                look_at_containers(&world).await;
                if networks_due <= Instant::now() {
                    networks_due = Instant::now() + look_at_networks(&world);
                }
            }
            due = world.facts_due() => due.into_iter().for_each(|network| world.tell_members(network)),
        }
    }
}

/// Answers when they are to be looked at again.
fn look_at_networks(world: &World) -> Duration {
    let desired = world.desired.read();
    let networks = desired.networks().map(|network| world.queue.push(Item::Network(network.id))).count();
    interval(networks)
}

fn interval(networks: usize) -> Duration {
    let whole = LOOK * SHARE;
    whole.saturating_mul(u32::try_from(networks).unwrap_or(u32::MAX)).max(INTERVAL)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_at_many_networks_takes_no_more_of_a_processor_than_at_some() {
        for networks in [0, 1, 133] {
            assert_eq!(interval(networks), INTERVAL);
        }
        for networks in [1_000, 65_535] {
            let busy = LOOK * u32::try_from(networks).unwrap();
            assert!(busy * SHARE <= interval(networks), "{networks}: {:?}", interval(networks));
        }
    }
}
