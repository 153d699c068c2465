//! Tokens of identities.

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde_json::{Value, json};
use warren_model::{Code, wire};

use super::code::Said;
use super::error::{Answer, Refusal, Saying};
use crate::caller::Caller;
use crate::error::ApiError;
use crate::extract::{Named, NamedPair};
use crate::idempotency::Idempotency;
use crate::resolve;
use crate::routes::tokens;
use crate::state::Shared;

/// Seconds that a token lives: the client cannot say, and knows no end.
const LIFETIME: u64 = 30 * 24 * 3600;

/// List tokens that are valid
#[utoipa::path(get, path = "/compat/freestyle/identity/v1/identities/{identity}/tokens", responses((status = 200)))]
pub(crate) async fn list(State(api): State<Shared>, caller: Caller, Named(given): Named) -> Answer<Json<Value>> {
    let identity = resolve::identity(&api, caller.account, &given).await?.record.id;
    let now = Timestamp::now();
    let all = tokens::of(&*api.store, identity).await?;
    let valid = all.iter().filter(|token| token.record.is_valid(now));
    let tokens: Vec<_> = valid.map(|token| json!({ "id": token.record.id.to_string() })).collect();
    Ok(Json(json!({ "tokens": tokens })))
}

/// Create a token
#[utoipa::path(post, path = "/compat/freestyle/identity/v1/identities/{identity}/tokens", responses((status = 200)))]
pub(crate) async fn create(State(api): State<Shared>, caller: Caller, Named(given): Named) -> Answer<Json<Value>> {
    let asked = wire::CreateToken { expires_in_seconds: Some(LIFETIME) };
    let token = tokens::make(&api, &caller, &given, &Idempotency::none(), &asked, &[]).await?.thing();
    let secret = token.token.ok_or_else(ApiError::internal)?;
    Ok(Json(json!({ "id": token.id, "token": secret })))
}

/// Revoke a token
#[utoipa::path(delete, path = "/compat/freestyle/identity/v1/identities/{identity}/tokens/{token}",
    responses((status = 200)))]
pub(crate) async fn revoke(
    State(api): State<Shared>,
    caller: Caller,
    NamedPair(identity, token): NamedPair,
) -> Answer<Json<Value>> {
    let identity = resolve::identity(&api, caller.account, &identity).await?.record.id;
    let found = tokens::find(&api, &caller, &token).await.not_found_as(Said::NotFound)?;
    if found.record.identity != identity {
        return Err(Refusal::new(Code::NotFound, Said::NotFound, "the identity has no such token"));
    }
    tokens::revoke(State(api), caller, Named(token)).await?;
    Ok(Json(json!({})))
}
