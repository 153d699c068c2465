//! Creating a VM.
//!
//! The client repeats a create whose connection dropped, without saying that it is the same. Where it asked for an
//! address, the machine that has it tells: one that the same key asked for in the same words a moment ago is the answer.

use axum::Json;
use axum::extract::State;
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use warren_model::access::WriteOptions;
use warren_model::record::Power;
use warren_model::{Code, wire};
use warren_store::{Typed, schema};

use super::error::Answer;
use super::extract::Body;
use super::name;
use super::wanted::{Fields, NAME_LABEL, NewFile, Wanted};
use crate::caller::Caller;
use crate::error::ApiError;
use crate::extract::Named;
use crate::idempotency::Idempotency;
use crate::mutation::{ATTEMPTS, contended};
use crate::resolve;
use crate::routes::{create, power};
use crate::state::{Api, Shared};

/// Names the request that a machine was created by.
const REQUEST_LABEL: &str = "freestyle/request";
/// How long a create may be repeated: the client's transport gives up after five minutes, and then tries again.
const REPEATED: SignedDuration = SignedDuration::from_mins(10);
/// How many times as large as other bodies one with files may be.
const WITH_FILES: usize = 16;

/// Create a machine
#[utoipa::path(post, path = "/compat/freestyle/v1/vms", responses((status = 200)))]
pub(crate) async fn create(
    State(api): State<Shared>,
    caller: Caller,
    Body { value, bytes, place }: Body<Fields, WITH_FILES>,
) -> Answer<Json<Value>> {
    let Wanted { mut machine, files } = Wanted::parse(value)?;
    let fingerprint = fingerprint(&caller, &bytes)?;
    drop(bytes);
    machine.labels.insert(REQUEST_LABEL.to_owned(), fingerprint.clone());
    for _ in 0..ATTEMPTS {
        let id = match create::make(&api, &caller, &Idempotency::none(), &machine, &[]).await {
            Ok(made) => {
                let id = made.thing().id;
                fill(&api, &caller, &id, files).await?;
                drop(place);
                id
            }
            Err(error) if error.problem.code == Code::NameInUse => {
                rename(&mut machine)?;
                continue;
            }
            Err(error) if error.problem.code == Code::AddressTaken => {
                match before(&api, &caller, &machine, &fingerprint).await? {
                    Some(id) => create::again(&api, &caller, &id).await?.thing().id,
                    None => return Err(error.into()),
                }
            }
            Err(error) => return Err(error.into()),
        };
        return Ok(Json(json!({ "id": id, "domains": [], "snapshotId": null })));
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
async fn before(api: &Api, caller: &Caller, wanted: &wire::CreateMachine, fingerprint: &str) -> Answer<Option<String>> {
    let (Some(network), Some(address)) = (&wanted.network, &wanted.private_ip) else { return Ok(None) };
    let (network, Ok(address)) = (resolve::network(api, caller.account, network).await?, address.parse()) else {
        return Ok(None);
    };
    let hold = api.store.read(&schema::address(network.record.id, address)).await?;
    let Some(holder) = hold.and_then(|hold| hold.record.holder) else { return Ok(None) };
    let Some(machine) = api.store.read(&schema::machine(holder)).await? else { return Ok(None) };
    let machine = machine.record;
    let asked = machine.labels.get(REQUEST_LABEL).is_some_and(|request| request.as_str() == fingerprint);
    let lately = Timestamp::now().duration_since(machine.created_at) < REPEATED;
    let same = asked && lately && machine.account == caller.account && machine.power != Power::Gone;
    Ok(same.then(|| machine.id.to_string()))
}

/// Writes files into a new machine. One that cannot be filled is taken away again.
async fn fill(api: &Shared, caller: &Caller, id: &str, files: Vec<NewFile>) -> Answer<()> {
    let machine = resolve::machine(api, caller, id).await?.record;
    for NewFile { path, content, mode } in files {
        let options = WriteOptions { mode: Some(mode), parents: true };
        let content = futures::stream::iter([Ok(content)]).boxed();
        let written = api.access.write_file(machine.id, &path, options, content);
        let written = tokio::time::timeout(api.config.operation_deadline, written).await;
        let error = match written {
            Ok(Ok(_)) => continue,
            Ok(Err(error)) => ApiError::from(error),
            Err(_) => ApiError::new(Code::DeadlineExceeded, "the machine took too long to write a file"),
        };
        if let Err(left) = power::delete(State(api.clone()), caller.clone(), Named(id.to_owned())).await {
            let code = left.problem.code.as_str();
            tracing::warn!(machine = id, code, "a machine that could not be filled is still being removed");
        }
        let detail = format!("{path} could not be written, and the machine was removed: {}", error.problem.detail);
        return Err(ApiError::new(error.problem.code, detail).into());
    }
    Ok(())
}
