//! Public domains: mappings are Warren's domains, verifications its claims.
//!
//! A mapping names a port that the client has no other way to declare, so it is declared by being mapped.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};
use warren_model::domain::{Domain, DomainClaim, DomainProof};
use warren_model::policy::HostName;
use warren_model::{Code, MachineId, wire};
use warren_store::{Typed, domain as records, schema};

use super::code::Said;
use super::error::{Answer, Refusal, Saying};
use super::extract::Body;
use super::identities::Part;
use super::layer::GivenDomain;
use crate::caller::Caller;
use crate::error::ApiError;
use crate::extract::{Named, Query};
use crate::idempotency::Idempotency;
use crate::routes::domains::map::Undeclared;
use crate::routes::domains::{self, claims, map as native, publishing, room};
use crate::state::{Api, Shared};

/// The port that a mapping leads to when it names none.
const USUAL_PORT: u16 = 443;

/// List the names that the account has verified
#[utoipa::path(get, path = "/compat/freestyle/domains/v1/domains", responses((status = 200)))]
pub(crate) async fn list(State(api): State<Shared>, caller: Caller, Query(part): Query<Part>) -> Answer<Json<Value>> {
    let all = all_claims(&api, &caller).await?;
    let verified = all.into_iter().filter(|claim| claim.verified_at.is_some());
    let owned = verified.map(|claim| {
        json!({
            "id": claim.host,
            "domain": claim.host,
            "accountId": claim.account,
            "createdAt": claim.created_at,
            "verifiedDns": true,
            "implicitlyOwned": false,
            "deployToDomain": true,
            "deployToSubdomains": true,
            "manageDns": false,
        })
    });
    Ok(Json(part.of(owned.collect()).0.into()))
}

/// Which mappings are asked for, and what part of them.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WhichMappings {
    domain: Option<String>,
    domain_ownership: Option<String>,
    limit: Option<usize>,
    offset: Option<usize>,
}

/// List mappings
#[utoipa::path(get, path = "/compat/freestyle/domains/v1/mappings", responses((status = 200)))]
pub(crate) async fn list_mappings(
    State(api): State<Shared>,
    caller: Caller,
    Query(which): Query<WhichMappings>,
) -> Answer<Json<Value>> {
    let mut mappings = Vec::new();
    for read in domains::of(&api, caller.account).await? {
        let ownership = ownership(&api, &read.record).await?;
        let same = |asked: &Option<String>, found: &str| asked.as_deref().is_none_or(|asked| asked == found);
        if same(&which.domain, read.record.host.as_str()) && same(&which.domain_ownership, &ownership) {
            mappings.push(mapping(&read.record, &ownership));
        }
    }
    let part = Part { limit: which.limit, offset: which.offset };
    Ok(Json(part.of(mappings).0.into()))
}

/// Where a name is to lead.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Target {
    domain: Option<String>,
    vm_id: Option<String>,
    vm_port: Option<u16>,
    deployment_id: Option<String>,
}

/// Map a domain to a machine
#[utoipa::path(post, path = "/compat/freestyle/domains/v1/mappings/{domain}", responses((status = 200)))]
pub(crate) async fn map(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
    Body { value, .. }: Body<Target>,
) -> Answer<Json<Value>> {
    if value.domain.is_some_and(|domain| domain != given) {
        return Err(invalid("the domain in the body is not the one in the path"));
    }
    let (None, Some(machine)) = (value.deployment_id, value.vm_id) else {
        return Err(invalid("a domain leads to a VM here: give 'vmId', and no 'deploymentId'"));
    };
    let port = value.vm_port.unwrap_or(USUAL_PORT);
    let made = put(&api, &caller, given, machine, port).await.not_found_as(Said::VmNotFound)?;
    let domain = domains::find(&api, caller.account, &made).await?.record;
    let ownership = ownership(&api, &domain).await?;
    Ok(Json(mapping(&domain, &ownership)))
}

/// Take a mapping back
#[utoipa::path(delete, path = "/compat/freestyle/domains/v1/mappings/{domain}", responses((status = 200)))]
pub(crate) async fn unmap(State(api): State<Shared>, caller: Caller, Named(given): Named) -> Answer<Json<Value>> {
    native::delete(State(api), caller, Named(given)).await?;
    Ok(Json(json!({})))
}

/// List verifications that are under way
#[utoipa::path(get, path = "/compat/freestyle/domains/v1/verifications", responses((status = 200)))]
pub(crate) async fn list_verifications(State(api): State<Shared>, caller: Caller) -> Answer<Json<Value>> {
    let all = all_claims(&api, &caller).await?;
    let pending = all.iter().filter(|claim| claim.verified_at.is_none()).map(verification);
    Ok(Json(Value::Array(pending.collect())))
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct ThisDomain {
    domain: String,
}

/// Begin to verify a domain
#[utoipa::path(post, path = "/compat/freestyle/domains/v1/verifications", responses((status = 200)))]
pub(crate) async fn begin_verification(
    State(api): State<Shared>,
    caller: Caller,
    Body { value, .. }: Body<ThisDomain>,
) -> Answer<Json<Value>> {
    let cannot = |error: ApiError| match error.problem.code {
        Code::DomainInvalid => Refusal::unsupported(Said::FailedToCreateVerificationCode, error.problem.detail),
        _ => error.into(),
    };
    let host = domains::host_name(&value.domain).map_err(cannot)?;
    let claim = claims::begin(&api, &caller, &host, true).await.map_err(cannot)?.0.record;
    Ok(Json(verification(&claim)))
}

/// A verification by what is verified or by its id, which is the same here.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct ThisVerification {
    #[serde(alias = "id")]
    domain: String,
}

/// Verify a domain
#[utoipa::path(put, path = "/compat/freestyle/domains/v1/verifications", responses((status = 200)))]
pub(crate) async fn verify(
    State(api): State<Shared>,
    caller: Caller,
    Body { value, .. }: Body<ThisVerification>,
) -> Answer<Json<Value>> {
    let found = claims::find(&api, caller.account, &value.domain).await.not_found_as(Said::VerificationNotFound)?;
    match claims::check(&api, &caller, found).await.not_found_as(Said::VerificationNotFound)? {
        (claim, None) => Ok(Json(json!({ "domain": claim.host }))),
        (_, Some(missing)) => Err(Refusal::unsupported(Said::VerificationFailed, missing)),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Cancelled {
    domain: String,
    verification_code: String,
}

/// Drop a verification
#[utoipa::path(delete, path = "/compat/freestyle/domains/v1/verifications", responses((status = 200)))]
pub(crate) async fn end_verification(
    State(api): State<Shared>,
    caller: Caller,
    Body { value, .. }: Body<Cancelled>,
) -> Answer<Json<Value>> {
    let found = claims::find(&api, caller.account, &value.domain).await.not_found_as(Said::VerificationNotFound)?;
    let (host, code) = (found.record.host.to_string(), found.record.record_value());
    if code != value.verification_code {
        let detail = "this is not the code of the verification";
        return Err(Refusal::new(Code::NotFound, Said::VerificationNotFound, detail));
    }
    claims::delete(State(api), caller, Named(host.clone())).await.not_found_as(Said::VerificationNotFound)?;
    Ok(Json(json!({ "domain": host, "verificationCode": code })))
}

/// Get a certificate
#[utoipa::path(post, path = "/compat/freestyle/domains/v1/certs/{domain}/wildcard", responses((status = 422)))]
pub(crate) async fn certify(Named(_): Named) -> Answer<Json<Value>> {
    let advice = "there are no wildcard certificates: every name that is mapped gets one of its own";
    Err(Refusal::unsupported(Said::FailedToProvisionCertificate, advice))
}

/// Refuses domains of a create that this account cannot have, before the machine is made. Those of a create that may
/// have been sent before can be its own already.
pub(super) async fn check(api: &Api, caller: &Caller, asked: &[GivenDomain], may_be_again: bool) -> Answer<()> {
    if asked.is_empty() {
        return Ok(());
    }
    let info = publishing(api).map_err(not_valid)?;
    for GivenDomain { domain, .. } in asked {
        let host = domains::host_name(domain).map_err(not_valid)?;
        let mapped = api.store.read(&schema::domain(&host)).await?;
        if !may_be_again || mapped.is_none_or(|mapped| mapped.record.account != caller.account) {
            room::find(api, caller, &info, &host).await.map_err(not_valid)?;
        }
    }
    Ok(())
}

/// Maps the domains of a create; those that lead to the machine already are left as they are.
pub(super) async fn map_all(
    api: &Api,
    caller: &Caller,
    machine: MachineId,
    asked: &[GivenDomain],
) -> Answer<Vec<String>> {
    let there = hosts_at(api, machine).await?;
    let mut hosts = Vec::with_capacity(asked.len());
    for GivenDomain { domain, vm_port } in asked {
        let host = domains::host_name(domain).map_err(not_valid)?.to_string();
        if !there.contains(&host) {
            let port = vm_port.unwrap_or(USUAL_PORT);
            put(api, caller, host.clone(), machine.to_string(), port).await.map_err(not_valid)?;
        }
        hosts.push(host);
    }
    Ok(hosts)
}

/// The names that lead to a machine.
pub(super) async fn hosts_at(api: &Api, machine: MachineId) -> Answer<Vec<String>> {
    let found = records::at(&*api.store, machine).await?;
    Ok(found.into_iter().map(|read| read.record.host.to_string()).collect())
}

async fn put(api: &Api, caller: &Caller, host: String, machine: String, port: u16) -> crate::error::Answer<String> {
    let asked = wire::CreateDomain { host: Some(host), machine, port, auth: None, limits: None };
    let made = native::make(api, caller, &Idempotency::none(), &asked, &[], Undeclared::Declare).await?;
    Ok(made.thing().host)
}

async fn all_claims(api: &Api, caller: &Caller) -> Answer<Vec<DomainClaim>> {
    let (claims, _) = api.store.list_all(&schema::domain_claims(caller.account)).await?;
    Ok(claims.into_iter().map(|read| read.record).filter(|claim| !claim.dropped).collect())
}

/// What gave the account the name: the name that it verified, else the preview suffix.
async fn ownership(api: &Api, domain: &Domain) -> Answer<String> {
    let owner: Option<HostName> = match domain.proof {
        DomainProof::Suffix => api.publisher.info().suffix,
        DomainProof::Txt => claims::covering(api, domain.account, &domain.host).await?.map(|claim| claim.host),
    };
    Ok(owner.as_ref().unwrap_or(&domain.host).to_string())
}

fn mapping(domain: &Domain, ownership: &str) -> Value {
    json!({
        "id": domain.id,
        "domain": domain.host,
        "deploymentId": null,
        "vmId": domain.machine,
        "vmPort": domain.port,
        "ownershipId": ownership,
        "createdAt": domain.created_at,
        "unmappedAt": null,
    })
}

fn verification(claim: &DomainClaim) -> Value {
    json!({
        "id": claim.host,
        "domain": claim.host,
        "accountId": claim.account,
        "verificationCode": claim.record_value(),
        "createdAt": claim.created_at,
    })
}

fn invalid(detail: &str) -> Refusal {
    Refusal::unsupported(Said::InvalidDomain, detail)
}

/// A create is refused for its domains with one code, whatever is wrong with them; faults stay faults.
fn not_valid(error: ApiError) -> Refusal {
    match error.problem.code {
        code @ (Code::DomainInvalid
        | Code::DomainTaken
        | Code::DomainNotVerified
        | Code::IngressUnavailable
        | Code::InvalidPort
        | Code::QuotaExceeded) => Refusal::new(code, Said::InvalidDomains, error.problem.detail),
        _ => error.into(),
    }
}
