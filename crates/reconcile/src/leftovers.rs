//! Removes what is on the host under this installation's name and nothing desires.

use warren_model::MachineId;
use warren_plan::host::{self, DesiredHost, HostStep, ObservedHost};

use crate::ReconcileError;
use crate::network;
use crate::world::{World, blocking};

/// Looks at the whole host once. Goes on after an error; what could not be removed is tried at the next start.
pub(crate) async fn remove(world: &World) -> Result<(), ReconcileError> {
    let desired = {
        let desired = world.desired.read();
        DesiredHost {
            machines: desired.machine_ids(),
            networks: desired.networks().map(|network| network.number).collect(),
        }
    };
    let kernel = world.kernel.clone();
    // The first question to the edge also starts it.
    let edge = world.edge.status().await?.networks.keys().copied().collect();
    let observed = ObservedHost {
        containers: world.driver.observe().await?.keys().copied().collect(),
        roots: world.pool.mounted().await?,
        disks: world.pool.disks().await?,
        agents: world.agents.directories()?,
        networks: blocking(move || kernel.networks()).await?,
        edge,
    };
    for step in host::plan(&desired, &observed) {
        tracing::info!(?step, "removes a leftover");
        if let Err(error) = execute(world, step).await {
            tracing::warn!(?step, error = %error.chain(), "a leftover stays");
        }
    }
    Ok(())
}

/// Removes whatever is left of a machine without a record.
pub(crate) async fn remove_machine(world: &World, id: MachineId) -> Result<(), ReconcileError> {
    let known = world.known_machine(id);
    if known.container != warren_plan::machine::Container::Absent {
        execute(world, HostStep::RemoveContainer(id)).await?;
    }
    if known.agent_open {
        execute(world, HostStep::CloseAgent(id)).await?;
    }
    if known.root {
        execute(world, HostStep::UnmountRoot(id)).await?;
    }
    if known.disk {
        execute(world, HostStep::RemoveDisk(id)).await?;
    }
    world.forget_machine(id);
    Ok(())
}

async fn execute(world: &World, step: HostStep) -> Result<(), ReconcileError> {
    match step {
        HostStep::RemoveContainer(id) => {
            world.driver.remove(id).await?;
            world.forget_boot(id);
        }
        HostStep::CloseAgent(id) => world.agents.close(id).await,
        HostStep::UnmountRoot(id) => world.pool.unmount_root(id).await?,
        HostStep::RemoveDisk(id) => world.pool.remove_disk(id).await?,
        HostStep::WithdrawNetwork(number) => world.edge.remove(number).await?,
        HostStep::RemoveNetwork(number) => network::remove_stray(world, number).await?,
    }
    Ok(())
}
