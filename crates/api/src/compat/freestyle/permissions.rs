//! What identities may do with machines: everything but stop them and take them away, as certain users or as all.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use warren_model::grant::GrantTarget;
use warren_model::record::Grant;
use warren_model::{Code, IdentityId, MachineId, wire};
use warren_store::{Typed, schema};

use super::code::Said;
use super::error::{Answer, Refusal, Saying};
use super::extract::Body;
use super::identities::Part;
use crate::caller::Caller;
use crate::extract::{Named, NamedPair, Query};
use crate::resolve;
use crate::routes::grants::{self, About, Expect};
use crate::state::{Api, Shared};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Permit {
    /// Linux users; every one when absent.
    allowed_users: Option<BTreeSet<String>>,
}

/// List what an identity may do
#[utoipa::path(get, path = "/compat/freestyle/identity/v1/identities/{identity}/permissions/vm",
    responses((status = 200)))]
pub(crate) async fn list(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
    Query(part): Query<Part>,
) -> Answer<Json<Value>> {
    let identity = resolve::identity(&api, caller.account, &given).await?.record.id;
    let (grants, _) = api.store.list_all(&schema::grants_of(identity)).await?;
    let permissions: Vec<_> = grants.iter().filter_map(|grant| record(&grant.record)).collect();
    let (permissions, offset, total) = part.of(permissions);
    Ok(Json(json!({ "permissions": permissions, "offset": offset, "total": total })))
}

/// Show what an identity may do with a machine
#[utoipa::path(get, path = "/compat/freestyle/identity/v1/identities/{identity}/permissions/vm/{machine}",
    responses((status = 200)))]
pub(crate) async fn show(
    State(api): State<Shared>,
    caller: Caller,
    NamedPair(identity, machine): NamedPair,
) -> Answer<Json<Value>> {
    let (identity, about) = both(&api, &caller, &identity, &machine).await?;
    read(&api, identity, about.target).await
}

/// Permit an identity to operate a machine
#[utoipa::path(post, path = "/compat/freestyle/identity/v1/identities/{identity}/permissions/vm/{machine}",
    responses((status = 200)))]
pub(crate) async fn grant(
    State(api): State<Shared>,
    caller: Caller,
    NamedPair(identity, machine): NamedPair,
    Body { value, .. }: Body<Permit>,
) -> Answer<Json<Value>> {
    let exists = || {
        Refusal::new(
            Code::InvalidRequest,
            Said::PermissionAlreadyExists,
            "the identity may operate this machine already: update or revoke that permission",
        )
    };
    let about = both(&api, &caller, &identity, &machine).await?;
    put(&api, &caller, about, value, Expect::Nothing).await?.ok_or_else(exists)
}

/// Change as whom an identity may operate a machine
///
/// What it may do stays as it was granted; but files go where `root` does.
#[utoipa::path(put, path = "/compat/freestyle/identity/v1/identities/{identity}/permissions/vm/{machine}",
    responses((status = 200)))]
pub(crate) async fn update(
    State(api): State<Shared>,
    caller: Caller,
    NamedPair(identity, machine): NamedPair,
    Body { value, .. }: Body<Permit>,
) -> Answer<Json<Value>> {
    let about = both(&api, &caller, &identity, &machine).await?;
    put(&api, &caller, about, value, Expect::Verbs).await?.ok_or_else(none)
}

/// Take a permission back
#[utoipa::path(delete, path = "/compat/freestyle/identity/v1/identities/{identity}/permissions/vm/{machine}",
    responses((status = 200)))]
pub(crate) async fn revoke(
    State(api): State<Shared>,
    caller: Caller,
    NamedPair(identity, machine): NamedPair,
) -> Answer<Json<Value>> {
    let (identity, about) = both(&api, &caller, &identity, &machine).await?;
    match grants::take_back(&api, &caller, &identity.to_string(), about).await? {
        true => Ok(Json(json!({}))),
        false => Err(none()),
    }
}

async fn both(api: &Api, caller: &Caller, identity: &str, machine: &str) -> Answer<(IdentityId, About)> {
    let identity = resolve::identity(api, caller.account, identity).await?.record.id;
    Ok((identity, About::machine(api, caller, machine).await.not_found_as(Said::VmNotFound)?))
}

/// `None` when something else had been granted before than was expected.
async fn put(
    api: &Api,
    caller: &Caller,
    (identity, about): (IdentityId, About),
    asked: Permit,
    expected: Expect,
) -> Answer<Option<Json<Value>>> {
    let target = about.target;
    let asked = wire::GrantAccess { verbs: None, users: asked.allowed_users };
    match grants::grant(api, caller, &identity.to_string(), about, asked, expected).await? {
        Some(_) => Ok(Some(read(api, identity, target).await?)),
        None => Ok(None),
    }
}

async fn read(api: &Api, identity: IdentityId, target: GrantTarget) -> Answer<Json<Value>> {
    let found = api.store.read(&schema::grant(identity, target)).await?;
    found.and_then(|grant| record(&grant.record)).map(Json).ok_or_else(none)
}

/// `None` for what was granted on a network.
fn record(grant: &Grant) -> Option<Value> {
    let GrantTarget::Machine(machine) = grant.target else { return None };
    Some(json!({
        "id": id(grant.identity, machine),
        "vmId": machine.to_string(),
        "identityId": grant.identity.to_string(),
        "allowedUsers": grant.permission.users(),
        "grantedAt": grant.granted_at,
        "grantedBy": grant.granted_by.to_string(),
    }))
}

/// A permission has no id of its own: this one is always the same for the two that it is about.
fn id(identity: IdentityId, machine: MachineId) -> String {
    let hash = blake3::hash(format!("{identity} {machine}").as_bytes());
    format!("prm_{}", &hash.to_hex()[..26])
}

fn none() -> Refusal {
    Refusal::new(Code::NotFound, Said::VmPermissionNotFound, "the identity has no permission for this machine")
}
