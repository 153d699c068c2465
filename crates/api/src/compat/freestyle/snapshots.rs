//! Snapshots, which Warren does not have: none is listed and none is found.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use warren_model::Code;

use super::code::Said;
use super::error::{Answer, Refusal};
use super::machines;
use crate::caller::Caller;
use crate::extract::Named;
use crate::state::Shared;

const ADVICE: &str = "Warren takes no snapshots: import an image with what machines need, and create them from it";

/// List snapshots
#[utoipa::path(get, path = "/compat/freestyle/v1/vms/snapshots", responses((status = 200)))]
pub(crate) async fn list() -> Json<Value> {
    Json(json!({ "snapshots": [] }))
}

/// Build a snapshot
#[utoipa::path(post, path = "/compat/freestyle/v1/vms/snapshots", responses((status = 400)))]
pub(crate) async fn create() -> Answer<Json<Value>> {
    Err(Refusal::unsupported(Said::CreateSnapshotBadRequest, ADVICE))
}

/// Take a snapshot of a machine
#[utoipa::path(post, path = "/compat/freestyle/v1/vms/{machine}/snapshot", responses((status = 400)))]
pub(crate) async fn of_machine(State(api): State<Shared>, caller: Caller, Named(given): Named) -> Answer<Json<Value>> {
    machines::refuse(&api, &caller, &given, Said::SnapshotVmBadRequest, ADVICE).await
}

/// Show a snapshot
#[utoipa::path(get, path = "/compat/freestyle/v1/vms/snapshots/{snapshot}", responses((status = 404)))]
pub(crate) async fn show(Named(_): Named) -> Answer<Json<Value>> {
    Err(none())
}

/// Rename a snapshot
#[utoipa::path(patch, path = "/compat/freestyle/v1/vms/snapshots/{snapshot}", responses((status = 404)))]
pub(crate) async fn rename(Named(_): Named) -> Answer<Json<Value>> {
    Err(none())
}

/// Delete a snapshot
#[utoipa::path(delete, path = "/compat/freestyle/v1/vms/snapshots/{snapshot}", responses((status = 404)))]
pub(crate) async fn delete(Named(_): Named) -> Answer<Json<Value>> {
    Err(none())
}

pub(super) fn none() -> Refusal {
    Refusal::new(Code::NotFound, Said::SnapshotNotFound, ADVICE)
}
