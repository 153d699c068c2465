//! VMs: Warren's machines, but for their creation.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::time::Instant;
use warren_model::record::MachineState;
use warren_model::{Code, wire};

use super::code::Said;
use super::domains;
use super::error::{Answer, Refusal};
use super::extract::Body;
use super::wanted::NAME_LABEL;
use crate::caller::Caller;
use crate::extract::{Named, Query};
use crate::resolve;
use crate::routes::machines::MachineQuery;
use crate::routes::{machines, power};
use crate::state::{Api, Shared};
use crate::wait::{self, TooLate};

/// How long a machine's end is waited for: the client's own transport gives up after 300 seconds.
const WAIT_LIMIT: Duration = Duration::from_secs(280);
/// Machines that are read at once.
const PAGE: usize = 1000;

/// List machines
#[utoipa::path(get, path = "/compat/freestyle/v1/vms", responses((status = 200)))]
pub(crate) async fn list(State(api): State<Shared>, caller: Caller) -> Answer<Json<Value>> {
    let mut all: Vec<wire::Machine> = Vec::new();
    let mut cursor = None;
    loop {
        let query = MachineQuery { limit: Some(PAGE), cursor, ..MachineQuery::default() };
        let page = machines::list(State(api.clone()), caller.clone(), Query(query)).await?.0;
        all.extend(page.items);
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    let count = |wanted: &str| all.iter().filter(|machine| state(machine.state) == wanted).count();
    Ok(Json(json!({
        "vms": all.iter().map(listed).collect::<Vec<_>>(),
        "totalCount": all.len(),
        "buildingCount": 0,
        "runningCount": count("running"),
        "startingCount": count("starting"),
        "suspendingCount": 0,
        "suspendedCount": 0,
        "stoppedCount": count("stopped"),
        "lostCount": 0,
        "userId": caller.account.to_string(),
    })))
}

fn listed(machine: &wire::Machine) -> Value {
    json!({
        "id": machine.id,
        "name": called(machine),
        "state": state(machine.state),
        "createdAt": machine.created_at,
        "lastNetworkActivity": null,
        "cpuTimeSeconds": null,
        "persistence": { "type": "persistent" },
        "snapshotId": null,
        "deleted": machine.state == MachineState::Deleting,
        "sizing": {
            "vcpuCount": machine.cpus.ceil(),
            "memSizeMib": machine.memory_mib,
            "rootfsSizeMb": machine.disk_gib.unwrap_or(0) * 1024,
        },
    })
}

/// Show a machine
#[utoipa::path(get, path = "/compat/freestyle/v1/vms/{machine}", responses((status = 200)))]
pub(crate) async fn show(State(api): State<Shared>, caller: Caller, Named(given): Named) -> Answer<Json<Value>> {
    let machine = machines::show(State(api.clone()), caller.clone(), Named(given)).await?.0;
    Ok(Json(json!({
        "id": machine.id,
        "name": called(&machine),
        "recreate": false,
        "vmInstanceId": instance(&api, &caller, &machine.id).await?,
        "lastNetworkActivity": null,
        "state": state(machine.state),
        "cpuTimeSeconds": null,
        "buildId": null,
    })))
}

/// What a start may ask for. A machine that has started is ready, and it is not stopped for being idle.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "accepted, and without a meaning here")]
pub(crate) struct Start {
    idle_timeout_seconds: Option<IgnoredAny>,
    ready_signal_timeout_seconds: Option<IgnoredAny>,
    wait_for_ready_signal: Option<IgnoredAny>,
    activity_threshold_bytes: Option<IgnoredAny>,
}

/// Start a machine
#[utoipa::path(post, path = "/compat/freestyle/v1/vms/{machine}/start", responses((status = 200)))]
pub(crate) async fn start(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
    Body { .. }: Body<Start>,
) -> Answer<Json<Value>> {
    let id = resolve::machine(&api, &caller, &given).await?.record.id;
    let machine = power::start(State(api.clone()), caller, Named(given)).await?.0;
    let domains = domains::hosts_at(&api, id).await?;
    Ok(Json(json!({ "id": machine.id, "domains": domains, "console_url": null })))
}

/// Stop a machine
#[utoipa::path(post, path = "/compat/freestyle/v1/vms/{machine}/stop", responses((status = 200)))]
pub(crate) async fn stop(State(api): State<Shared>, caller: Caller, Named(given): Named) -> Answer<Json<Value>> {
    let machine = power::stop(State(api.clone()), caller.clone(), Named(given)).await?.0;
    let instance = instance(&api, &caller, &machine.id).await?;
    Ok(Json(json!({ "vmId": machine.id, "vmInstanceId": instance })))
}

/// Stop a machine, asked for in another way
#[utoipa::path(post, path = "/compat/freestyle/v1/vms/{machine}/kill", responses((status = 200)))]
pub(crate) async fn kill(State(api): State<Shared>, caller: Caller, Named(given): Named) -> Answer<Json<Value>> {
    let machine = power::stop(State(api), caller, Named(given)).await?.0;
    Ok(Json(json!({ "id": machine.id })))
}

/// Delete a machine
#[utoipa::path(delete, path = "/compat/freestyle/v1/vms/{machine}", responses((status = 200)))]
pub(crate) async fn delete(State(api): State<Shared>, caller: Caller, Named(given): Named) -> Answer<Json<Value>> {
    let id = resolve::machine(&api, &caller, &given).await?.record.id.to_string();
    power::delete(State(api), caller, Named(id.clone())).await?;
    Ok(Json(json!({ "id": id, "recreate": false })))
}

/// Wait until a machine does not run any more
#[utoipa::path(post, path = "/compat/freestyle/v1/vms/{machine}/await", responses((status = 200)))]
pub(crate) async fn wait_for_exit(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
) -> Answer<Json<Value>> {
    let id = resolve::machine(&api, &caller, &given).await?.record.id;
    let since = api.store.revision().await?;
    let end = wait::machine(&api, id, since, Instant::now() + WAIT_LIMIT, |seen| {
        match seen.status.filter(|_| seen.machine.is_some()).map(|status| status.record.state) {
            None | Some(MachineState::Deleting) => Some("deleted"),
            Some(MachineState::Stopped) => Some("stopped"),
            Some(MachineState::Failed) => Some("failed"),
            Some(_) => None,
        }
    });
    match end.await? {
        Ok(status) => Ok(Json(json!({ "id": id.to_string(), "exitStatus": status }))),
        Err(TooLate) => Err(Refusal::new(
            Code::DeadlineExceeded,
            Said::TimeoutLimitExceeded,
            format!("the machine still runs after {} seconds: wait again", WAIT_LIMIT.as_secs()),
        )),
    }
}

/// Compact a machine
///
/// Its disk and memory are never larger than what is in them.
#[utoipa::path(post, path = "/compat/freestyle/v1/vms/{machine}/optimize", responses((status = 200)))]
pub(crate) async fn optimize(State(api): State<Shared>, caller: Caller, Named(given): Named) -> Answer<Json<Value>> {
    resolve::machine(&api, &caller, &given).await?;
    Ok(Json(json!({})))
}

/// Suspend a machine
#[utoipa::path(post, path = "/compat/freestyle/v1/vms/{machine}/suspend", responses((status = 500)))]
pub(crate) async fn suspend(State(api): State<Shared>, caller: Caller, Named(given): Named) -> Answer<Json<Value>> {
    let advice = "Warren does not suspend machines, and this one was left as it is: stop it, which keeps its disk";
    refuse(&api, &caller, &given, Said::SuspendFailedVmResumed, advice).await
}

/// Resize a machine
#[utoipa::path(post, path = "/compat/freestyle/v1/vms/{machine}/resize", responses((status = 500)))]
pub(crate) async fn resize(State(api): State<Shared>, caller: Caller, Named(given): Named) -> Answer<Json<Value>> {
    let advice = "Warren does not resize machines: give the size when the machine is created";
    refuse(&api, &caller, &given, Said::ResizeFailed, advice).await
}

/// Fork a machine
#[utoipa::path(post, path = "/compat/freestyle/v1/vms/{machine}/fork", responses((status = 400)))]
pub(crate) async fn fork(State(api): State<Shared>, caller: Caller, Named(given): Named) -> Answer<Json<Value>> {
    let advice = "Warren does not fork machines: every one is in a private network";
    refuse(&api, &caller, &given, Said::VpcForkUnsupported, advice).await
}

/// Refuses what Warren does not do with a machine that is there.
pub(super) async fn refuse(api: &Api, caller: &Caller, given: &str, said: Said, advice: &str) -> Answer<Json<Value>> {
    resolve::machine(api, caller, given).await?;
    Err(Refusal::unsupported(said, advice))
}

/// Names one boot of a machine.
async fn instance(api: &Api, caller: &Caller, id: &str) -> Answer<String> {
    let machine = resolve::machine(api, caller, id).await?.record;
    Ok(format!("{}-{}", machine.id, machine.boot))
}

/// The name that was asked for, else the machine's own.
fn called(machine: &wire::Machine) -> &str {
    machine.labels.get(NAME_LABEL).unwrap_or(&machine.name)
}

/// The client knows no state for a machine that failed; it can be started again like one that was stopped.
fn state(state: MachineState) -> &'static str {
    match state {
        MachineState::Creating | MachineState::Starting => "starting",
        MachineState::Running => "running",
        MachineState::Stopping | MachineState::Stopped | MachineState::Failed | MachineState::Deleting => "stopped",
    }
}
