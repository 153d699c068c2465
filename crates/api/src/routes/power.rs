//! Start, stop, restart and delete: write what is wanted and wait until it is so.

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use jiff::Timestamp;
use tokio::time::Instant;
use warren_model::record::{EventKind, Failure, Machine, MachineState, MachineStatus, Power};
use warren_model::{AccountId, Code, Label, MachineId, SessionId, wire};
use warren_store::{Revision, TxnBuilder, TxnOutcome, Typed, Versioned, schema};

use super::domains::map;
use super::sessions::end;
use super::views;
use crate::caller::Caller;
use crate::error::{Answer, ApiError};
use crate::extract::Named;
use crate::mutation::{ATTEMPTS, Deed, News, contended};
use crate::resolve;
use crate::state::{Api, Shared};
use crate::wait::{self, TooLate};

#[derive(Clone, Copy)]
enum Wish {
    Start,
    Stop,
    Restart,
}

/// Start a machine
///
/// Answers when commands can be run in it. A machine that runs is left alone.
#[utoipa::path(post, path = "/v1/machines/{machine}/start", operation_id = "start_machine", tag = "machines",
    params(("machine" = String, Path, description = "Id or name")), responses((status = 200, body = wire::Machine)))]
pub(crate) async fn start(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
) -> Answer<Json<wire::Machine>> {
    fulfil(&api, &caller, &given, Wish::Start).await
}

/// Stop a machine
///
/// It keeps its disk and address and loses its memory. Answers when it has stopped.
#[utoipa::path(post, path = "/v1/machines/{machine}/stop", operation_id = "stop_machine", tag = "machines",
    params(("machine" = String, Path, description = "Id or name")), responses((status = 200, body = wire::Machine)))]
pub(crate) async fn stop(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
) -> Answer<Json<wire::Machine>> {
    fulfil(&api, &caller, &given, Wish::Stop).await
}

/// Restart a machine
///
/// Answers when commands can be run in it again.
#[utoipa::path(post, path = "/v1/machines/{machine}/restart", operation_id = "restart_machine", tag = "machines",
    params(("machine" = String, Path, description = "Id or name")), responses((status = 200, body = wire::Machine)))]
pub(crate) async fn restart(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
) -> Answer<Json<wire::Machine>> {
    fulfil(&api, &caller, &given, Wish::Restart).await
}

/// Delete a machine
///
/// With its disk, its domains and the sessions that reach nothing else. Answers when nothing of it is left; its name is
/// free then, and its address rests for ten minutes.
#[utoipa::path(delete, path = "/v1/machines/{machine}", operation_id = "delete_machine", tag = "machines",
    params(("machine" = String, Path, description = "Id or name")),
    responses((status = 204, description = "Deleted")))]
pub(crate) async fn delete(State(api): State<Shared>, caller: Caller, Named(given): Named) -> Answer<StatusCode> {
    let deadline = Instant::now() + api.config.operation_deadline;
    let machine = resolve::machine(&api, &caller, &given).await?.record;
    let Some((since, sessions)) = ask_to_delete(&api, &caller, machine.id).await? else {
        return Ok(StatusCode::NO_CONTENT);
    };
    match wait_until_gone(&api, machine.id, since, deadline).await? {
        Ok(()) => {
            end::cut(&api, &sessions, deadline).await?;
            Ok(StatusCode::NO_CONTENT)
        }
        Err(TooLate) => Err(ApiError::new(
            Code::DeadlineExceeded,
            format!(
                "machine {} is still being deleted, and that goes on: GET /v1/machines/{} answers not_found once it is \
                 gone",
                machine.name, machine.id
            ),
        )),
    }
}

/// When it was written, and the sessions that it closed. `None` when it is gone already.
async fn ask_to_delete(api: &Api, caller: &Caller, id: MachineId) -> Answer<Option<(Revision, Vec<SessionId>)>> {
    for _ in 0..ATTEMPTS {
        let since = api.store.revision().await?;
        let Some(read) = api.store.read(&schema::machine(id)).await? else { return Ok(None) };
        if read.record.power == Power::Gone {
            return Ok(Some((since, Vec::new())));
        }
        let mut machine = read.record.clone();
        machine.power = Power::Gone;
        let now = Timestamp::now();
        let txn = TxnBuilder::new().unchanged(&read).put(&schema::machine(id), &machine)?;
        let txn = map::withdraw_all(&*api.store, txn, caller, now, id).await?;
        let (txn, sessions) = end::close_only_for(api, txn, caller, now, id).await?;
        let deed = Deed { caller, now, action: "machine.delete" };
        let txn = deed.record(txn, id, &(), [deleted(&machine)])?;
        if let TxnOutcome::Committed(revision) = txn.commit(&*api.store).await? {
            return Ok(Some((revision, sessions)));
        }
    }
    Err(contended())
}

pub(super) fn deleted(machine: &Machine) -> News {
    News {
        kind: EventKind::MachineDeleted,
        account: machine.account,
        network: Some(machine.network),
        machine: Some(machine.id),
        message: format!("machine {} is being deleted", machine.name),
    }
}

pub(super) async fn wait_until_gone(
    api: &Api,
    id: MachineId,
    since: Revision,
    deadline: Instant,
) -> Answer<Result<(), TooLate>> {
    wait::machine(api, id, since, deadline, |seen| seen.machine.is_none().then_some(())).await
}

async fn fulfil(api: &Api, caller: &Caller, given: &str, wish: Wish) -> Answer<Json<wire::Machine>> {
    let deadline = Instant::now() + api.config.operation_deadline;
    let id = resolve::machine(api, caller, given).await?.record.id;
    let (machine, since) = ask(api, caller, id, wish).await?;
    let (boot, off) = (machine.boot, matches!(wish, Wish::Stop));
    let end = wait::machine(api, id, since, deadline, |seen| {
        judge(seen.machine.as_ref(), seen.status.as_ref(), boot, off, since)
    });
    match end.await? {
        Ok(End::Reached) => {
            let record = api.store.read(&schema::machine(id)).await?.map_or(machine, |read| read.record);
            Ok(Json(views::read_machine(api, &record).await?))
        }
        Ok(End::Failed(failure)) => Err(ApiError::new(
            failure.code,
            format!("machine {} did not {}: {}", machine.name, verb(wish), failure.detail),
        )),
        Ok(End::Deleted) => Err(being_deleted(&machine)),
        Ok(End::Overtaken) => Err(ApiError::new(
            Code::MachineBusy,
            format!(
                "machine {} was asked for something else meanwhile: GET /v1/machines/{id} says what it does",
                machine.name
            ),
        )),
        Err(TooLate) => Err(ApiError::new(
            Code::DeadlineExceeded,
            format!(
                "machine {} was asked to {} and that goes on: GET /v1/machines/{id} says how far it is",
                machine.name,
                verb(wish)
            ),
        )),
    }
}

/// Writes the wish, unless it is so already.
async fn ask(api: &Api, caller: &Caller, id: MachineId, wish: Wish) -> Answer<(Machine, Revision)> {
    for _ in 0..ATTEMPTS {
        let since = api.store.revision().await?;
        let read = resolve::machine(api, caller, &id.to_string()).await?;
        let status = api.store.read(&schema::status(id)).await?.map(|status| status.record);
        let mut machine = read.record.clone();
        let failed =
            status.as_ref().is_some_and(|status| status.state == MachineState::Failed && status.boot == machine.boot);
        match (machine.power, wish) {
            (Power::Gone, _) => return Err(being_deleted(&machine)),
            (_, Wish::Start | Wish::Restart)
                if status.as_ref().is_none_or(|status| status.state == MachineState::Creating) =>
            {
                return Err(ApiError::new(
                    Code::MachineBusy,
                    format!("machine {} is still being created: try again when it runs", machine.name),
                ));
            }
            (Power::On, Wish::Start) if !failed => return Ok((machine, since)),
            (Power::Off, Wish::Stop) => return Ok((machine, since)),
            (_, Wish::Stop) => machine.power = Power::Off,
            (_, Wish::Start | Wish::Restart) => {
                machine.power = Power::On;
                machine.boot += 1;
            }
        }
        let txn = TxnBuilder::new().unchanged(&read).put(&schema::machine(id), &machine)?;
        let action = match wish {
            Wish::Start => "machine.start",
            Wish::Stop => "machine.stop",
            Wish::Restart => "machine.restart",
        };
        let deed = Deed { caller, now: Timestamp::now(), action };
        if let TxnOutcome::Committed(revision) = deed.record(txn, id, &(), None)?.commit(&*api.store).await? {
            return Ok((machine, revision));
        }
    }
    Err(contended())
}

enum End {
    Reached,
    Failed(Failure),
    Deleted,
    Overtaken,
}

fn judge(
    machine: Option<&Versioned<Machine>>,
    status: Option<&Versioned<MachineStatus>>,
    boot: u64,
    off: bool,
    since: Revision,
) -> Option<End> {
    let (Some(machine), Some(status)) = (machine, status) else { return Some(End::Deleted) };
    match machine.record.power {
        Power::Gone => return Some(End::Deleted),
        Power::On if off => return Some(End::Overtaken),
        Power::Off if !off => return Some(End::Overtaken),
        _ => {}
    }
    let now = &status.record;
    match now.state {
        MachineState::Stopped if off => Some(End::Reached),
        MachineState::Running if !off && now.boot >= boot => Some(End::Reached),
        // An old failure is not one of this boot, or of this stop.
        MachineState::Failed if now.boot >= boot && (!off || status.modified > since) => {
            Some(End::Failed(now.failure.clone().unwrap_or_else(unexplained)))
        }
        _ => None,
    }
}

fn verb(wish: Wish) -> &'static str {
    match wish {
        Wish::Start => "start",
        Wish::Stop => "stop",
        Wish::Restart => "restart",
    }
}

pub(super) fn unexplained() -> Failure {
    Failure { code: Code::MachineFailed, detail: "the server's log says more".to_owned() }
}

pub(super) fn being_deleted(machine: &Machine) -> ApiError {
    ApiError::new(Code::MachineBusy, format!("machine {} is being deleted", machine.name))
}

pub(super) async fn refuse_taken_name(api: &Api, account: AccountId, name: &Label) -> Answer<()> {
    match api.store.read(&schema::machine_name(account, name)).await? {
        None => Ok(()),
        Some(_) => Err(ApiError::new(
            Code::NameInUse,
            format!("this account has a machine named {name} already: choose another name, or delete that one first"),
        )),
    }
}
