//! What accounts proved about names.

use std::net::SocketAddr;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use jiff::Timestamp;
use serde_json::json;
use warren_model::domain::{DomainClaim, MAX_DOMAINS, is_below, owners};
use warren_model::policy::HostName;
use warren_model::wire::ClaimState;
use warren_model::{AccountId, Code, wire};
use warren_store::{TxnBuilder, TxnOutcome, Typed, Versioned, schema};

use super::{host_name, recheck, room};
use crate::caller::Caller;
use crate::cursor::Paging;
use crate::error::{Answer, ApiError};
use crate::extract::{JsonBody, Named, Query};
use crate::mutation::{ATTEMPTS, Deed, contended};
use crate::places::Holder;
use crate::routes::ListQuery;
use crate::state::{Api, Shared};
use crate::{secret, txt};

/// List claims to host names
#[utoipa::path(get, path = "/v1/domain-claims", operation_id = "list_domain_claims", tag = "domains",
    params(ListQuery), responses((status = 200, body = wire::Page<wire::DomainClaim>)))]
pub(crate) async fn list(
    State(api): State<Shared>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Answer<Json<wire::Page<wire::DomainClaim>>> {
    let paging = Paging::parse("domain-claims", caller.account, query.limit, query.cursor.as_deref())?;
    let prefix = schema::domain_claims(caller.account);
    let (page, more) = api.store.list_page(&prefix, paging.after.clone(), paging.limit).await?;
    let next = page.last().filter(|_| more).map(|last| paging.next(&last.key));
    let items = page.into_iter().filter(|read| !read.record.dropped).map(|read| view(&read.record, None)).collect();
    Ok(Json(wire::Page { items, next }))
}

/// Claim a host name, and prove it
///
/// The first time it answers which TXT record to set. Sent again, it looks for the record, and answers whether it was
/// there. A name that was verified, and every name below it, can be mapped by the account from then on. The record has
/// to stay: it is looked for every week, and three days after it was first missed the claim ends.
#[utoipa::path(post, path = "/v1/domain-claims", operation_id = "claim_domain", tag = "domains",
    request_body = wire::ClaimDomain, responses(
        (status = 201, body = wire::DomainClaim, description = "Claimed: set the record"),
        (status = 200, body = wire::DomainClaim, description = "Claimed before: looked for the record, unless verified")))]
pub(crate) async fn claim(
    State(api): State<Shared>,
    caller: Caller,
    JsonBody { value, .. }: JsonBody<wire::ClaimDomain>,
) -> Answer<Response> {
    let host = host_name(&value.host)?;
    let (claimed, new) = begin(&api, &caller, &host, false).await?;
    if new {
        return Ok((StatusCode::CREATED, Json(view(&claimed.record, None))).into_response());
    }
    let (claimed, missing) = check(&api, &caller, claimed).await?;
    Ok(Json(view(&claimed, missing)).into_response())
}

/// Drop a claim to a host name
///
/// Nothing more can be mapped by it. What was mapped stays mapped, as long as the record stays.
#[utoipa::path(delete, path = "/v1/domain-claims/{domain}", operation_id = "delete_domain_claim", tag = "domains",
    params(("domain" = String, Path, description = "Host name")),
    responses((status = 204, description = "Dropped")))]
pub(crate) async fn delete(State(api): State<Shared>, caller: Caller, Named(given): Named) -> Answer<StatusCode> {
    for _ in 0..ATTEMPTS {
        let read = find(&api, caller.account, &given).await?;
        let host = &read.record.host;
        let (key, txn) = (schema::domain_claim(caller.account, host), TxnBuilder::new().unchanged(&read));
        let txn = match recheck::is_needed(&*api.store, &read.record).await? {
            // Somebody has to go on looking whether what is mapped is still the account's.
            true => txn.put(&key, &DomainClaim { dropped: true, ..read.record.clone() })?,
            false => txn.delete(&key),
        };
        let deed = Deed { caller: &caller, now: Timestamp::now(), action: "domain.disclaim" };
        let txn = deed.record(txn, host, &json!({ "host": host }), None)?;
        if let TxnOutcome::Committed(_) = txn.commit(&*api.store).await? {
            return Ok(StatusCode::NO_CONTENT);
        }
    }
    Err(contended())
}

/// The account's claim to this very name.
pub(crate) async fn find(api: &Api, account: AccountId, given: &str) -> Answer<Versioned<DomainClaim>> {
    let found = match given.parse::<HostName>() {
        Ok(host) => api.store.read(&schema::domain_claim(account, &host)).await?,
        Err(_) => None,
    };
    found.filter(|read| !read.record.dropped).ok_or_else(|| ApiError::not_found("claim to", given, "/v1/domain-claims"))
}

/// Whether the account has proved that this name, or a parent of it, is its own.
pub(super) async fn covered(api: &Api, account: AccountId, host: &HostName) -> Answer<bool> {
    Ok(covering(api, account, host).await?.is_some())
}

/// The nearest verified claim that a name is covered by.
pub(crate) async fn covering(api: &Api, account: AccountId, host: &HostName) -> Answer<Option<DomainClaim>> {
    for owner in owners(host) {
        let claim = api.store.read(&schema::domain_claim(account, &owner)).await?;
        if let Some(claim) = claim.filter(|claim| claim.record.verified_at.is_some() && !claim.record.dropped) {
            return Ok(Some(claim.record));
        }
    }
    Ok(None)
}

/// The account's claim, and whether it is new. `freestyle`: the record may also have the name that clients of
/// Freestyle's tell.
pub(crate) async fn begin(
    api: &Api,
    caller: &Caller,
    host: &HostName,
    freestyle: bool,
) -> Answer<(Versioned<DomainClaim>, bool)> {
    if let Some(suffix) =
        api.publisher.info().suffix.filter(|suffix| is_below(host, suffix) && !room::is_kept(api, host, suffix))
    {
        return Err(ApiError::new(
            Code::DomainInvalid,
            format!("every name below {suffix} is free to take: map {host} without proving anything"),
        ));
    }
    let _turn = api.turns.take(caller.account).await;
    let key = schema::domain_claim(caller.account, host);
    for _ in 0..ATTEMPTS {
        let now = Timestamp::now();
        let read = api.store.read(&key).await?;
        let dropped = read.as_ref().is_some_and(|read| read.record.dropped);
        let claim = match &read {
            Some(read) if dropped => {
                let freestyle = freestyle || read.record.freestyle;
                DomainClaim { freestyle, dropped: false, ..read.record.clone() }
            }
            Some(read) if read.record.freestyle || !freestyle => return Ok((read.clone(), false)),
            Some(read) => DomainClaim { freestyle: true, ..read.record.clone() },
            None => {
                let count = api.store.count(schema::domain_claims(caller.account).as_str()).await?;
                if count >= MAX_DOMAINS {
                    return Err(ApiError::new(
                        Code::QuotaExceeded,
                        format!("an account has at most {MAX_DOMAINS} claims to names: drop one that is not needed"),
                    ));
                }
                let code = secret::random::<16>()?.iter().map(|byte| format!("{byte:02x}")).collect();
                DomainClaim {
                    account: caller.account,
                    host: host.clone(),
                    code,
                    freestyle,
                    created_at: now,
                    verified_at: None,
                    recheck_at: None,
                    missing_since: None,
                    dropped: false,
                }
            }
        };
        let txn = TxnBuilder::new().same(&key, read.as_ref()).put(&key, &claim)?;
        let deed = Deed { caller, now, action: "domain.claim" };
        let txn = deed.record(txn, host, &json!({ "host": host }), None)?;
        if let TxnOutcome::Committed(modified) = txn.commit(&*api.store).await? {
            let key = key.as_str().to_owned();
            return Ok((Versioned { key, record: claim, modified }, read.is_none() || dropped));
        }
    }
    Err(contended())
}

/// Looks for the record of a claim that is not verified yet, or whose record was missed. Answers the claim as it is
/// then, and why it was not verified.
pub(crate) async fn check(
    api: &Api,
    caller: &Caller,
    mut read: Versioned<DomainClaim>,
) -> Answer<(DomainClaim, Option<String>)> {
    if read.record.verified_at.is_some() && read.record.missing_since.is_none() {
        return Ok((read.record, None));
    }
    let mut place = api.lookups.take().ok_or_else(ApiError::busy)?;
    if !place.assign(Holder::Account(caller.account)) {
        return Err(ApiError::busy());
    }
    let key = schema::domain_claim(caller.account, &read.record.host);
    let resolvers = &api.config.resolvers;
    if read.record.verified_at.is_some() {
        recheck::recheck(&*api.store, resolvers, read.clone()).await?;
        let again = find(api, caller.account, read.record.host.as_str()).await?.record;
        let lost = again.verified_at.is_none().then(|| "its record is gone, and it has to be proved again".to_owned());
        return Ok((again, lost));
    }
    if let Err(missing) = look(resolvers, &read.record).await {
        return Ok((read.record, Some(missing.detail)));
    }
    for _ in 0..ATTEMPTS {
        let now = Timestamp::now();
        let claim = DomainClaim { verified_at: Some(now), ..read.record.clone() };
        let txn = TxnBuilder::new().unchanged(&read).put(&key, &claim)?;
        // Together, so that they are looked at also if the server ends, or the caller goes away, right after it.
        let rivals = recheck::rivals(&*api.store, &claim).await?;
        let txn = recheck::make_due(txn, &rivals, now)?;
        let deed = Deed { caller, now, action: "domain.verify" };
        let txn = deed.record(txn, &claim.host, &json!({ "host": claim.host }), None)?;
        if let TxnOutcome::Committed(_) = txn.commit(&*api.store).await? {
            recheck::look_at_first(&*api.store, resolvers, &rivals).await;
            return Ok((claim, None));
        }
        // Only what the record said counts: another code would be another claim.
        read = match api.store.read(&key).await? {
            Some(again) if again.record.code == read.record.code => again,
            _ => return Err(ApiError::not_found("claim to", read.record.host.as_str(), "/v1/domain-claims")),
        };
        if read.record.verified_at.is_some() {
            return Ok((read.record, None));
        }
    }
    Err(contended())
}

/// Why a record was not found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Missing {
    pub detail: String,
    /// DNS says so; else it may be there.
    pub certain: bool,
}

/// Why the record is not there, at each name where it might be.
pub(super) async fn look(resolvers: &[SocketAddr], claim: &DomainClaim) -> Result<(), Missing> {
    let value = claim.record_value();
    let (mut missing, mut certain) = (Vec::new(), true);
    for name in claim.record_names() {
        match txt::look_up(resolvers, &name).await {
            Ok(texts) if texts.iter().any(|text| text.trim_ascii() == value.as_bytes()) => return Ok(()),
            Ok(texts) => missing.push(format!("{name} has {} TXT record(s), and none says {value}", texts.len())),
            Err(error) => {
                certain &= error.is_certain();
                missing.push(error.to_string());
            }
        }
    }
    Err(Missing { detail: missing.join("; "), certain })
}

fn view(claim: &DomainClaim, detail: Option<String>) -> wire::DomainClaim {
    let ends = claim.ends_at().filter(|_| claim.verified_at.is_some());
    let detail = detail
        .or_else(|| ends.map(|end| format!("its record is gone: unless it comes back, the claim ends at {end:.0}")));
    wire::DomainClaim {
        host: claim.host.to_string(),
        state: if claim.verified_at.is_some() { ClaimState::Verified } else { ClaimState::Pending },
        record: wire::TxtRecord { name: claim.record_name(), value: claim.record_value() },
        detail,
        created_at: claim.created_at,
        verified_at: claim.verified_at,
    }
}
