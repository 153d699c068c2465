//! What is on the host under this installation's name that nothing desires.

use std::collections::BTreeSet;

use warren_model::{MachineId, NetworkNumber};

/// What the records name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DesiredHost {
    pub machines: BTreeSet<MachineId>,
    pub networks: BTreeSet<NetworkNumber>,
}

/// What the host has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObservedHost {
    pub containers: BTreeSet<MachineId>,
    pub roots: BTreeSet<MachineId>,
    pub disks: BTreeSet<MachineId>,
    pub agents: BTreeSet<MachineId>,
    pub networks: BTreeSet<NetworkNumber>,
    /// Networks that the edge answers for.
    pub edge: BTreeSet<NetworkNumber>,
}

/// One leftover to remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostStep {
    RemoveContainer(MachineId),
    CloseAgent(MachineId),
    UnmountRoot(MachineId),
    RemoveDisk(MachineId),
    WithdrawNetwork(NetworkNumber),
    RemoveNetwork(NetworkNumber),
}

/// Leftovers in an order in which each can be removed: what runs first, what it stands on last.
pub fn plan(desired: &DesiredHost, observed: &ObservedHost) -> Vec<HostStep> {
    fn stray<T: Ord + Copy>(there: &BTreeSet<T>, wanted: &BTreeSet<T>, step: fn(T) -> HostStep) -> Vec<HostStep> {
        there.difference(wanted).copied().map(step).collect()
    }
    [
        stray(&observed.containers, &desired.machines, HostStep::RemoveContainer),
        stray(&observed.agents, &desired.machines, HostStep::CloseAgent),
        stray(&observed.roots, &desired.machines, HostStep::UnmountRoot),
        stray(&observed.disks, &desired.machines, HostStep::RemoveDisk),
        stray(&observed.edge, &desired.networks, HostStep::WithdrawNetwork),
        stray(&observed.networks, &desired.networks, HostStep::RemoveNetwork),
    ]
    .concat()
}
