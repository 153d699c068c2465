//! The server itself.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header;
use serde::Serialize;
use warren_model::{Code, wire};
use warren_store::{Typed, schema};

use crate::caller::Caller;
use crate::error::{Answer, ApiError};
use crate::state::Shared;

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Health {
    /// `ok`
    status: &'static str,
}

const OK: Json<Health> = Json(Health { status: "ok" });

/// Whether the server is alive
#[utoipa::path(get, path = "/healthz", operation_id = "healthz", tag = "server",
    responses((status = 200, body = Health)))]
pub(crate) async fn healthz() -> Json<Health> {
    OK
}

/// Whether the server can do its work
#[utoipa::path(get, path = "/readyz", operation_id = "readyz", tag = "server",
    responses((status = 200, body = Health)))]
pub(crate) async fn readyz(State(api): State<Shared>) -> Answer<Json<Health>> {
    api.store.revision().await?;
    match tokio::time::timeout(api.config.request_timeout, api.host.readiness()).await {
        Ok(Ok(())) => Ok(OK),
        Ok(Err(reason)) => Err(ApiError::new(Code::NotReady, reason)),
        Err(_) => Err(ApiError::new(Code::NotReady, "the host does not answer: see the server's log")),
    }
}

/// This document
#[utoipa::path(get, path = "/openapi.json", operation_id = "openapi", tag = "server",
    responses((status = 200, body = Object)))]
pub(crate) async fn document() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], crate::openapi::text()).into_response()
}

/// OpenMetrics text
///
/// For the root key: a scraper sends it as a bearer token.
#[utoipa::path(get, path = "/metrics", operation_id = "metrics", tag = "server",
    responses((status = 200, content_type = "application/openmetrics-text", body = String)))]
pub(crate) async fn metrics(State(api): State<Shared>) -> Answer<Response> {
    let text = api.metrics.text(&api.host.metrics()).map_err(|_| ApiError::internal())?;
    let media_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, media_type)], text).into_response())
}

/// The server, and who asks
#[utoipa::path(get, path = "/v1/whoami", operation_id = "whoami", tag = "server",
    responses((status = 200, body = wire::ServerInfo)))]
pub(crate) async fn whoami(State(api): State<Shared>, caller: Caller) -> Answer<Json<wire::ServerInfo>> {
    let account = api.store.read(&schema::account(caller.account)).await?.ok_or_else(ApiError::internal)?.record;
    Ok(Json(wire::ServerInfo {
        version: api.config.version.clone(),
        installation: api.config.installation.id.to_string(),
        account: wire::Reference { id: account.id.to_string(), name: account.name.to_string() },
        key: caller.key().map(|key| key.to_string()),
        root: caller.root,
        identity: caller.token().map(|(_, identity)| identity.to_string()),
        token: caller.token().map(|(token, _)| token.to_string()),
    }))
}
