//! Creating a VM.
//!
//! The client repeats a create whose connection dropped, without saying that it is the same. Where it asked for an
//! address, the machine that has it tells: one that the same key asked for in the same words a moment ago is the answer,
//! once it runs and has its files.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::time::Instant;
use warren_model::access::WriteOptions;
use warren_model::record::{Machine, MachineState, Power};
use warren_model::{Code, MachineId, wire};
use warren_store::{TxnBuilder, TxnOutcome, Typed, schema};

use super::code::Said;
use super::error::{Answer, Refusal};
use super::extract::Body;
use super::layer::{GivenDomain, Layer};
use super::wanted::{NAME_LABEL, NewFile, Wanted};
use super::{domains, name};
use crate::caller::Caller;
use crate::error::ApiError;
use crate::extract::Named;
use crate::idempotency::Idempotency;
use crate::mutation::{ATTEMPTS, Deed, contended};
use crate::resolve;
use crate::routes::{create, power, views};
use crate::state::{Api, Shared};
use crate::wait::{self, TooLate};

/// Names the request that a machine was created by.
const REQUEST_LABEL: &str = "freestyle/request";
/// Says that a machine has all files that it was created with.
const FILLED_LABEL: &str = "freestyle/filled";
/// How long a create may be repeated: the client's transport gives up after five minutes, and then tries again.
const REPEATED: SignedDuration = SignedDuration::from_mins(10);
/// How many times as large as other bodies one with files may be.
const WITH_FILES: usize = 16;
/// How long all files of a machine may take together.
const FILL_LIMIT: Duration = Duration::from_secs(120);

/// Lets one request at a time fill a machine and make it public, so that no other is answered, or fails, meanwhile.
#[derive(Default)]
pub(crate) struct Filling(Mutex<HashMap<MachineId, Arc<tokio::sync::Mutex<()>>>>);

impl Filling {
    async fn take(&self, machine: MachineId) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            turns.entry(machine).or_default().clone()
        };
        turn.lock_owned().await
    }
}

/// Create a machine
#[utoipa::path(post, path = "/compat/freestyle/v1/vms", responses((status = 200)))]
pub(crate) async fn create(
    State(api): State<Shared>,
    caller: Caller,
    Body { value, bytes, place }: Body<Layer, WITH_FILES>,
) -> Answer<Json<Value>> {
    let Wanted { mut machine, files, domains } = Wanted::parse(value)?;
    domains::check(&api, &caller, &domains, machine.private_ip.is_some()).await?;
    let fingerprint = fingerprint(&caller, &bytes)?;
    drop(bytes);
    machine.labels.insert(REQUEST_LABEL.to_owned(), fingerprint.clone());
    let id = make(&api, &caller, &mut machine, &fingerprint).await?;
    let _turn = api.freestyle.filling.take(id).await;
    fill(&api, &caller, id, files).await?;
    drop(place);
    let hosts = publish(&api, &caller, id, &domains).await?;
    Ok(Json(json!({ "id": id.to_string(), "domains": hosts, "snapshotId": null })))
}

/// A machine that runs: a new one, or the one that this request made before.
async fn make(api: &Api, caller: &Caller, machine: &mut wire::CreateMachine, fingerprint: &str) -> Answer<MachineId> {
    for _ in 0..ATTEMPTS {
        // A request that was granted before is not refused for what it has used up itself.
        if let Some(first) = before(api, caller, machine, fingerprint).await? {
            return settled(api, first).await;
        }
        match create::make(api, caller, &Idempotency::none(), machine, &[]).await {
            Ok(made) => return Ok(resolve::machine(api, caller, &made.thing().id).await?.record.id),
            Err(error) if error.problem.code == Code::NameInUse => rename(machine)?,
            Err(error) if matches!(error.problem.code, Code::AddressTaken | Code::QuotaExceeded) => {
                return match before(api, caller, machine, fingerprint).await? {
                    Some(first) => settled(api, first).await,
                    None => Err(error.into()),
                };
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(contended().into())
}

/// The client's names are not unique: the machine gets one like it, and keeps what was asked for beside it.
fn rename(machine: &mut wire::CreateMachine) -> Result<(), ApiError> {
    let taken = machine.name.take().ok_or_else(ApiError::internal)?;
    machine.name = Some(name::another(&taken)?);
    machine.labels.entry(NAME_LABEL.to_owned()).or_insert(taken);
    Ok(())
}

fn fingerprint(caller: &Caller, body: &[u8]) -> Answer<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(caller.must_be_key()?.to_string().as_bytes()).update(&[0]).update(body);
    Ok(hasher.finalize().to_hex()[..32].to_owned())
}

/// The machine that this very request created a moment ago, if it has the address that was asked for.
async fn before(
    api: &Api,
    caller: &Caller,
    wanted: &wire::CreateMachine,
    fingerprint: &str,
) -> Answer<Option<Machine>> {
    let (Some(network), Some(address)) = (&wanted.network, &wanted.private_ip) else { return Ok(None) };
    let (network, Ok(address)) = (resolve::network(api, caller.account, network).await?, address.parse()) else {
        return Ok(None);
    };
    let hold = api.store.read(&schema::address(network.record.id, address)).await?;
    let Some(holder) = hold.and_then(|hold| hold.record.holder?.machine()) else { return Ok(None) };
    let Some(machine) = api.store.read(&schema::machine(holder)).await? else { return Ok(None) };
    let machine = machine.record;
    let asked = machine.labels.get(REQUEST_LABEL).is_some_and(|request| request.as_str() == fingerprint);
    let lately = Timestamp::now().duration_since(machine.created_at) < REPEATED;
    Ok((asked && lately && machine.account == caller.account).then_some(machine))
}

/// Waits until the machine that was made before runs.
async fn settled(api: &Api, first: Machine) -> Answer<MachineId> {
    let since = api.store.revision().await?;
    let deadline = Instant::now() + api.config.operation_deadline;
    let state = wait::machine(api, first.id, since, deadline, |seen| {
        let Some(machine) = seen.machine else { return Some(MachineState::Deleting) };
        match views::state(&machine.record, seen.status.as_ref().map(|status| &status.record)) {
            MachineState::Creating | MachineState::Starting => None,
            state => Some(state),
        }
    });
    match state.await? {
        Ok(MachineState::Running) => Ok(first.id),
        Ok(state) => Err(ended(&first, state)),
        Err(TooLate) => Err(ApiError::new(
            Code::DeadlineExceeded,
            format!("machine {} was made by this request before, and is still being started", first.name),
        )
        .into()),
    }
}

fn ended(first: &Machine, state: MachineState) -> Refusal {
    Refusal::new(
        Code::MachineFailed,
        Said::VmExitDuringStart,
        format!("machine {} was made by this request before, and does not run: it is {}", first.name, state.as_str()),
    )
}

/// Writes files into a machine that does not have them yet. One that cannot be filled is taken away again. The caller
/// has the machine's turn.
async fn fill(api: &Shared, caller: &Caller, id: MachineId, files: Vec<NewFile>) -> Answer<()> {
    if files.is_empty() {
        return Ok(());
    }
    let found = api.store.read(&schema::machine(id)).await?.map(|read| read.record);
    let Some(machine) = found.filter(|machine| machine.power != Power::Gone) else {
        let detail = "the machine was removed before it had its files: see whether they can be written";
        return Err(Refusal::new(Code::MachineFailed, Said::VmExitDuringStart, detail));
    };
    if machine.labels.contains_key(FILLED_LABEL) {
        return Ok(());
    }
    let deadline = Instant::now() + FILL_LIMIT;
    for NewFile { path, content, mode } in files {
        let options = WriteOptions { mode: Some(mode), parents: true };
        let content = futures::stream::iter([Ok(content)]).boxed();
        let written = api.access.write_file(id, &path, options, content);
        let error = match tokio::time::timeout_at(deadline, written).await {
            Ok(Ok(_)) => continue,
            Ok(Err(error)) => ApiError::from(error),
            Err(_) => ApiError::new(
                Code::DeadlineExceeded,
                format!("its files were not all written within {} seconds", FILL_LIMIT.as_secs()),
            ),
        };
        take_away(api, caller, id).await;
        let detail = format!("{path} could not be written, and the machine was removed: {}", error.problem.detail);
        return Err(ApiError::new(error.problem.code, detail).into());
    }
    mark(api, caller, id).await
}

/// Makes a machine public under the names that were asked for. One that cannot be is taken away again. The caller has
/// the machine's turn.
async fn publish(api: &Shared, caller: &Caller, id: MachineId, asked: &[GivenDomain]) -> Answer<Vec<String>> {
    let mapped = domains::map_all(api, caller, id, asked).await;
    if mapped.is_err() {
        take_away(api, caller, id).await;
    }
    mapped
}

async fn take_away(api: &Shared, caller: &Caller, id: MachineId) {
    if let Err(left) = power::delete(State(api.clone()), caller.clone(), Named(id.to_string())).await {
        let code = left.problem.code.as_str();
        tracing::warn!(machine = %id, code, "a machine that could not be made as asked for is still being removed");
    }
}

/// Notes that a machine has its files, for whoever asks again.
async fn mark(api: &Api, caller: &Caller, id: MachineId) -> Answer<()> {
    let (key, value) = (FILLED_LABEL.parse(), "true".parse());
    let (Ok(key), Ok(value)) = (key, value) else { return Err(ApiError::internal().into()) };
    for _ in 0..ATTEMPTS {
        let Some(read) = api.store.read(&schema::machine(id)).await? else { return Ok(()) };
        let mut machine = read.record.clone();
        machine.labels.insert(Clone::clone(&key), Clone::clone(&value));
        let txn = TxnBuilder::new().unchanged(&read).put(&schema::machine(id), &machine)?;
        let deed = Deed { caller, now: Timestamp::now(), action: "machine.fill" };
        if let TxnOutcome::Committed(_) = deed.record(txn, id, &(), None)?.commit(&*api.store).await? {
            return Ok(());
        }
    }
    Err(contended().into())
}
