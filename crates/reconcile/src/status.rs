//! Statuses and events, each pair in one transaction.

use jiff::Timestamp;
use ulid::Ulid;
use warren_model::record::{Event, EventKind, Failure, Machine, MachineState, MachineStatus, Network, NetworkProblem};
use warren_model::{EventId, MachineId, NetworkId};
use warren_store::{Store, StoreError, TxnBuilder, TxnOutcome, schema};

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

/// Shows what is wrong with a network, or that nothing is any more; nothing is written when that is already shown.
pub(crate) async fn show_problem(
    world: &World,
    network: &Network,
    problem: Option<NetworkProblem>,
) -> Result<(), ReconcileError> {
    let shown = world.problem(network.id);
    if shown == problem {
        return Ok(());
    }
    if record_problem(world.store.as_ref(), network, shown.as_ref(), problem.as_ref()).await? {
        world.remember_problem(network.id, problem);
    }
    Ok(())
}

/// Whether it was recorded: a network without a record has no problem.
async fn record_problem(
    store: &dyn Store,
    network: &Network,
    shown: Option<&NetworkProblem>,
    problem: Option<&NetworkProblem>,
) -> Result<bool, StoreError> {
    let key = schema::network_problem(network.id);
    let txn = TxnBuilder::new().exists(&schema::network(network.id));
    let mut txn = match problem {
        Some(problem) => txn.put(&key, problem)?,
        None => txn.delete(&key),
    };
    let kind = |problem: &NetworkProblem| (problem.closed, problem.failure.code);
    // The same in other words is no news.
    if shown.map(kind) != problem.map(kind) {
        let (kind, what) = match problem {
            Some(problem) => (EventKind::NetworkFailed, problem.to_string()),
            None => (EventKind::NetworkRecovered, "is as wanted again".to_owned()),
        };
        let event = event(kind, network, None, format!("{} {what}", network.name));
        tracing::warn!(network = %network.id, "{}", event.message);
        txn = txn.put(&schema::event(event.id), &event)?;
    }
    Ok(matches!(txn.commit(store).await?, TxnOutcome::Committed(_)))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;
    use warren_model::Code;
    use warren_model::record::Egress;
    use warren_store::{SqliteStore, Typed};

    async fn store(network: &Network) -> (tempfile::TempDir, SqliteStore) {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
        TxnBuilder::new().put(&schema::network(network.id), network).unwrap().commit(&store).await.unwrap();
        (directory, store)
    }

    fn problem(code: Code, detail: &str) -> NetworkProblem {
        NetworkProblem { closed: true, failure: Failure { code, detail: detail.to_owned() } }
    }

    #[tokio::test]
    async fn a_network_that_is_closed_and_opens_again_is_told_each_time_once() {
        let network = samples::network(Egress::Deny);
        let (_directory, store) = store(&network).await;
        let steps = [
            None,
            Some(problem(Code::PolicyInvalid, "too many entries: 3")),
            Some(problem(Code::PolicyInvalid, "too many entries: 4")),
            None,
        ];
        for step in steps.windows(2) {
            assert!(record_problem(&store, &network, step[0].as_ref(), step[1].as_ref()).await.unwrap());
            let shown = store.read(&schema::network_problem(network.id)).await.unwrap().map(|read| read.record);
            assert_eq!(shown, step[1]);
        }
        let (mut events, _) = store.list_all(&schema::events()).await.unwrap();
        // Ids of one millisecond have no order.
        events.sort_by_key(|event| event.modified);
        let told: Vec<_> = events.iter().map(|event| (event.record.kind, event.record.message.as_str())).collect();
        let failed = (EventKind::NetworkFailed, "lab is closed: too many entries: 3");
        let recovered = (EventKind::NetworkRecovered, "lab is as wanted again");
        assert_eq!(told, [failed, recovered]);
        assert!(events.iter().all(|event| event.record.network == Some(network.id)));
    }

    #[tokio::test]
    async fn a_network_that_is_gone_has_no_problem() {
        let network = samples::network(Egress::Deny);
        let (_directory, store) = store(&network).await;
        TxnBuilder::new().delete(&schema::network(network.id)).commit(&store).await.unwrap();
        let problem = problem(Code::Internal, "something");
        assert!(!record_problem(&store, &network, None, Some(&problem)).await.unwrap());
        assert_eq!(store.read(&schema::network_problem(network.id)).await.unwrap(), None);
        assert!(store.list_all(&schema::events()).await.unwrap().0.is_empty());
    }
}
