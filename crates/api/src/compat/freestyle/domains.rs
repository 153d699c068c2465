//! Public domains, which Warren does not have: none is mapped, and none can be.

use axum::Json;
use serde_json::{Value, json};
use warren_model::Code;

use super::code::Said;
use super::error::{Answer, Refusal};
use crate::extract::Named;

const ADVICE: &str = "this server publishes nothing: reach the machine by its private address";

/// List domains
#[utoipa::path(get, path = "/compat/freestyle/domains/v1/domains", responses((status = 200)))]
pub(crate) async fn list() -> Json<Value> {
    Json(json!([]))
}

/// List mappings
#[utoipa::path(get, path = "/compat/freestyle/domains/v1/mappings", responses((status = 200)))]
pub(crate) async fn list_mappings() -> Json<Value> {
    Json(json!([]))
}

/// Map a domain to a machine
#[utoipa::path(post, path = "/compat/freestyle/domains/v1/mappings/{domain}", responses((status = 400)))]
pub(crate) async fn map(Named(_): Named) -> Answer<Json<Value>> {
    Err(Refusal::unsupported(Said::InvalidDomain, ADVICE))
}

/// Take a mapping back
#[utoipa::path(delete, path = "/compat/freestyle/domains/v1/mappings/{domain}", responses((status = 404)))]
pub(crate) async fn unmap(Named(_): Named) -> Answer<Json<Value>> {
    Err(Refusal::new(Code::NotFound, Said::NotFound, ADVICE))
}

/// List verifications
#[utoipa::path(get, path = "/compat/freestyle/domains/v1/verifications", responses((status = 200)))]
pub(crate) async fn list_verifications() -> Json<Value> {
    Json(json!([]))
}

/// Begin to verify a domain
#[utoipa::path(post, path = "/compat/freestyle/domains/v1/verifications", responses((status = 400)))]
pub(crate) async fn begin_verification() -> Answer<Json<Value>> {
    Err(Refusal::unsupported(Said::FailedToCreateVerificationCode, ADVICE))
}

/// Verify a domain
#[utoipa::path(put, path = "/compat/freestyle/domains/v1/verifications", responses((status = 404)))]
pub(crate) async fn verify() -> Answer<Json<Value>> {
    Err(Refusal::new(Code::NotFound, Said::VerificationNotFound, ADVICE))
}

/// Drop a verification
#[utoipa::path(delete, path = "/compat/freestyle/domains/v1/verifications", responses((status = 404)))]
pub(crate) async fn end_verification() -> Answer<Json<Value>> {
    Err(Refusal::new(Code::NotFound, Said::VerificationNotFound, ADVICE))
}

/// Get a certificate
#[utoipa::path(post, path = "/compat/freestyle/domains/v1/certs/{domain}/wildcard", responses((status = 422)))]
pub(crate) async fn certify(Named(_): Named) -> Answer<Json<Value>> {
    Err(Refusal::unsupported(Said::FailedToProvisionCertificate, ADVICE))
}
