//! Statuses and events, each pair in one transaction.

use jiff::Timestamp;
use ulid::Ulid;
use warren_model::record::{Event, EventKind, Failure, Machine, MachineState, MachineStatus, Network};
use warren_model::{EventId, MachineId, NetworkId};
use warren_store::{TxnBuilder, schema};

use crate::ReconcileError;
use crate::crash;
use crate::world::World;

/// An event about a machine, or about its network when there is none.
pub(crate) fn event(
    kind: EventKind,
    network: &Network,
    machine: Option<MachineId>,
    message: impl Into<String>,
) -> Event {
    Event {
        id: EventId::from_ulid(Ulid::generate()),
        time: Timestamp::now(),
        kind,
        account: Some(network.account),
        network: Some(network.id),
        machine,
        message: message.into(),
    }
}

/// Shows a state of a machine; nothing is written when it is already shown.
pub(crate) async fn show(
    world: &World,
    machine: &Machine,
    state: MachineState,
    failure: Option<Failure>,
) -> Result<(), ReconcileError> {
    let shown = world.shown(machine.id);
    let same = match &shown {
        Some(shown) => shown.state == state && shown.boot == machine.boot && shown.failure == failure,
        // The API writes this one together with the machine.
        None => state == MachineState::Creating && failure.is_none(),
    };
    if same {
        world.metrics.state(machine.id, Some(state));
        return Ok(());
    }
    let started_at = match state {
        MachineState::Running => Some(Timestamp::now()),
        _ => None,
    };
    let status = MachineStatus { state, boot: machine.boot, failure, started_at };
    let mut txn = TxnBuilder::new().exists(&schema::machine(machine.id)).put(&schema::status(machine.id), &status)?;
    if let Some(event) = state_event(world, machine, &status) {
        txn = txn.put(&schema::event(event.id), &event)?;
    }
    crash::point("before", "", "status");
    txn.commit(world.store.as_ref()).await?;
    crash::point("after", "", "status");
    world.metrics.state(machine.id, Some(state));
    world.remember_status(machine.id, status);
    Ok(())
}

/// Tells that the server has taken its host over.
pub(crate) async fn server_started(world: &World) -> Result<(), ReconcileError> {
    let event = Event {
        id: EventId::from_ulid(Ulid::generate()),
        time: Timestamp::now(),
        kind: EventKind::ServerStarted,
        account: None,
        network: None,
        machine: None,
        message: "the server has started".to_owned(),
    };
    TxnBuilder::new().put(&schema::event(event.id), &event)?.commit(world.store.as_ref()).await?;
    Ok(())
}

/// Tells that something was put right that somebody else had changed.
pub(crate) async fn repaired(
    world: &World,
    network: NetworkId,
    machine: Option<MachineId>,
    message: String,
) -> Result<(), ReconcileError> {
    let Some(network) = world.desired.read().network(network) else { return Ok(()) };
    tracing::warn!(network = %network.name, machine = machine.map(|id| id.to_string()), "repaired: {message}");
    world.metrics.repairs.inc();
    let event = event(EventKind::DriftRepaired, &network, machine, message);
    TxnBuilder::new().put(&schema::event(event.id), &event)?.commit(world.store.as_ref()).await?;
    Ok(())
}

fn state_event(world: &World, machine: &Machine, status: &MachineStatus) -> Option<Event> {
    let network = world.desired.read().network(machine.network)?;
    let (kind, message) = match status.state {
        MachineState::Running => (EventKind::MachineRunning, format!("{} runs at {}", machine.name, machine.ipv4)),
        MachineState::Stopped => (EventKind::MachineStopped, format!("{} is stopped", machine.name)),
        MachineState::Failed => {
            let why = status.failure.as_ref().map_or("for no known reason", |failure| failure.detail.as_str());
            (EventKind::MachineFailed, format!("{} failed: {why}", machine.name))
        }
        _ => return None,
    };
    Some(event(kind, &network, Some(machine.id), message))
}
