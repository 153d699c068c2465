//! Identities.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};
use warren_model::wire;
use warren_store::{Typed, schema};

use super::error::Answer;
use crate::caller::Caller;
use crate::extract::{Named, Query};
use crate::idempotency::Idempotency;
use crate::routes::identities;
use crate::state::Shared;

/// A part of a list, as the client asks for it.
#[derive(Debug, Deserialize)]
pub(crate) struct Part {
    pub limit: Option<usize>,
    pub offset: Option<usize>,
}

impl Part {
    const USUAL: usize = 100;
    const MOST: usize = 1000;

    /// The part of a list, where it begins, and how many there are.
    pub fn of<T>(&self, all: Vec<T>) -> (Vec<T>, usize, usize) {
        let (total, offset) = (all.len(), self.offset.unwrap_or(0));
        let limit = self.limit.unwrap_or(Self::USUAL).min(Self::MOST);
        (all.into_iter().skip(offset).take(limit).collect(), offset, total)
    }
}

/// List identities
#[utoipa::path(get, path = "/compat/freestyle/identity/v1/identities", responses((status = 200)))]
pub(crate) async fn list(State(api): State<Shared>, caller: Caller, Query(part): Query<Part>) -> Answer<Json<Value>> {
    let (entries, _) = api.store.list_all(&schema::identities_of(caller.account)).await?;
    let ids: Vec<_> = entries.iter().filter_map(|entry| schema::identity_in(&entry.key)).collect();
    let (ids, offset, total) = part.of(ids);
    let identities: Vec<_> = ids.iter().map(|id| json!({ "id": id.to_string(), "managed": false })).collect();
    Ok(Json(json!({ "identities": identities, "offset": offset, "total": total })))
}

/// Create an identity
#[utoipa::path(post, path = "/compat/freestyle/identity/v1/identities", responses((status = 200)))]
pub(crate) async fn create(State(api): State<Shared>, caller: Caller) -> Answer<Json<Value>> {
    let asked = wire::CreateIdentity::default();
    let made = identities::make(&api, &caller, &Idempotency::none(), &asked, &[]).await?;
    Ok(Json(json!({ "id": made.thing().id, "managed": false })))
}

/// Delete an identity
#[utoipa::path(delete, path = "/compat/freestyle/identity/v1/identities/{identity}", responses((status = 200)))]
pub(crate) async fn delete(State(api): State<Shared>, caller: Caller, Named(given): Named) -> Answer<Json<Value>> {
    identities::delete(State(api), caller, Named(given)).await?;
    Ok(Json(json!({})))
}
