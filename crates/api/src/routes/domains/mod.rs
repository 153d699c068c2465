//! Domains: host names that lead from the public internet to one port of one machine.
//!
//! A port is public exactly while a [`Domain`] leads to it. Mapping ([`map`]), which names there is [`room`] for, and what
//! was proved about names ([`claims`]) are apart: a proof is asked for when a name is mapped, and [`recheck`] looks
//! whether it still stands.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header;
use warren_model::domain::{self, Domain, DomainCertificate, DomainStatus};
use warren_model::policy::HostName;
use warren_model::{AccountId, Code, DomainId, wire};
use warren_store::{Typed, Versioned, domain as records, schema};

use super::ListQuery;
use crate::caller::Caller;
use crate::cursor::Paging;
use crate::error::{Answer, ApiError};
use crate::extract::{Named, Query};
use crate::publisher::PublicInfo;
use crate::state::{Api, Shared};

pub(crate) mod claims;
pub(crate) mod map;
pub(crate) mod recheck;
pub(crate) mod room;

/// List domains
///
/// Everything that the account has public.
#[utoipa::path(get, path = "/v1/domains", operation_id = "list_domains", tag = "domains",
    params(ListQuery), responses((status = 200, body = wire::Page<wire::Domain>)))]
pub(crate) async fn list(
    State(api): State<Shared>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Answer<Json<wire::Page<wire::Domain>>> {
    let paging = Paging::parse("domains", caller.account, query.limit, query.cursor.as_deref())?;
    let prefix = schema::domains_of(caller.account);
    let (page, more) = api.store.list_page(&prefix, paging.after.clone(), paging.limit).await?;
    let next = page.last().filter(|_| more).map(|last| paging.next(&last.key));
    let mut domains = Vec::with_capacity(page.len());
    for host in page.iter().filter_map(|mark| schema::host_in(&mark.key)) {
        domains.extend(api.store.read(&schema::domain(&host)).await?.map(|read| read.record));
    }
    Ok(Json(wire::Page { items: views(&api, domains).await?, next }))
}

/// Show a domain
#[utoipa::path(get, path = "/v1/domains/{domain}", operation_id = "show_domain", tag = "domains",
    params(("domain" = String, Path, description = "Id or host name")),
    responses((status = 200, body = wire::Domain)))]
pub(crate) async fn show(State(api): State<Shared>, caller: Caller, Named(given): Named) -> Answer<Json<wire::Domain>> {
    let read = find(&api, caller.account, &given).await?;
    Ok(Json(view(&api, read.record).await?))
}

/// Show the root certificate of the server's own authority
///
/// As PEM, for clients that are to trust domains of a server without certificates of a public authority.
#[utoipa::path(get, path = "/v1/domains/authority", operation_id = "show_authority", tag = "domains",
    responses((status = 200, body = String, content_type = "application/pem-certificate-chain")))]
pub(crate) async fn authority(State(api): State<Shared>) -> Answer<Response> {
    let pem = api.publisher.authority_pem().ok_or_else(|| {
        ApiError::new(
            Code::NotFound,
            "this server's certificates do not come from an authority of its own: there is nothing to trust besides \
             what clients trust already",
        )
    })?;
    // RFC 8555 §9.1.
    Ok(([(header::CONTENT_TYPE, "application/pem-certificate-chain")], pem).into_response())
}

/// A domain of the account, by its id or host name.
pub(crate) async fn find(api: &Api, account: AccountId, given: &str) -> Answer<Versioned<Domain>> {
    let found = match (given.parse::<DomainId>(), given.parse::<HostName>()) {
        (Ok(id), _) => records::by_id(&*api.store, id).await?,
        (_, Ok(host)) => api.store.read(&schema::domain(&host)).await?,
        _ => None,
    };
    found
        .filter(|read| read.record.account == account)
        .ok_or_else(|| ApiError::not_found("domain", given, "/v1/domains"))
}

/// Every domain of an account, by host name.
pub(crate) async fn of(api: &Api, account: AccountId) -> Answer<Vec<Versioned<Domain>>> {
    let (marks, _) = api.store.list_all(&schema::domains_of(account)).await?;
    let mut domains = Vec::with_capacity(marks.len());
    for host in marks.iter().filter_map(|mark| schema::host_in(&mark.key)) {
        domains.extend(api.store.read(&schema::domain(&host)).await?);
    }
    Ok(domains)
}

/// Reads a host name that is to be mapped or claimed.
pub(crate) fn host_name(text: &str) -> Answer<HostName> {
    domain::host_name(text).map_err(|error| ApiError::new(Code::DomainInvalid, error.to_string()))
}

/// One domain as its owner sees it.
pub(crate) async fn view(api: &Api, domain: Domain) -> Answer<wire::Domain> {
    views(api, vec![domain]).await?.pop().ok_or_else(ApiError::internal)
}

async fn views(api: &Api, domains: Vec<Domain>) -> Answer<Vec<wire::Domain>> {
    let hosts: Vec<_> = domains.iter().map(|domain| domain.host.clone()).collect();
    let mut known = if hosts.is_empty() { BTreeMap::new() } else { api.publisher.status(&hosts).await };
    let info = api.publisher.info();
    let (mut machines, mut networks) = (BTreeMap::new(), BTreeMap::new());
    let mut views = Vec::with_capacity(domains.len());
    for domain in domains {
        if let std::collections::btree_map::Entry::Vacant(unknown) = machines.entry(domain.machine) {
            let name = api.store.read(&schema::machine(domain.machine)).await?.map(|read| read.record.name.to_string());
            unknown.insert(name.unwrap_or_default());
        }
        if let std::collections::btree_map::Entry::Vacant(unknown) = networks.entry(domain.network) {
            let name = api.store.read(&schema::network(domain.network)).await?.map(|read| read.record.name.to_string());
            unknown.insert(name.unwrap_or_default());
        }
        let status = known.remove(&domain.host);
        let hindrance = hindrance(&info, status.as_ref());
        let DomainStatus { certificate, traffic } = status.unwrap_or_else(|| DomainStatus {
            certificate: DomainCertificate { detail: hindrance.clone(), ..DomainCertificate::default() },
            ..DomainStatus::default()
        });
        views.push(wire::Domain {
            id: domain.id.to_string(),
            url: info.url(&domain.host),
            machine: wire::Reference {
                id: domain.machine.to_string(),
                name: machines.get(&domain.machine).cloned().unwrap_or_default(),
            },
            network: wire::Reference {
                id: domain.network.to_string(),
                name: networks.get(&domain.network).cloned().unwrap_or_default(),
            },
            port: domain.port,
            auth: domain.auth.as_ref().map(|auth| auth.as_str().to_owned()),
            limits: domain.limits,
            proof: domain.proof,
            certificate,
            hindrance,
            traffic,
            created_at: domain.created_at,
            created_by: domain.created_by.to_string(),
            host: domain.host.to_string(),
        });
    }
    Ok(views)
}

/// Why nobody reaches a domain of which the edge says this.
fn hindrance(info: &PublicInfo, status: Option<&DomainStatus>) -> Option<String> {
    match (info.can_publish(), status) {
        (false, _) => Some(no_listener(info)),
        (true, None) => Some("the edge does not know it yet".to_owned()),
        (true, Some(_)) => None,
    }
}

const NO_LISTENER: &str = "this server publishes nothing: start it with --https-listen ADDR:PORT, such as 0.0.0.0:443, or \
                           with --http-listen for plain HTTP";

/// What the server publishes with, if it does.
pub(crate) fn publishing(api: &Api) -> Answer<PublicInfo> {
    let info = api.publisher.info();
    if info.can_publish() { Ok(info) } else { Err(ApiError::new(Code::IngressUnavailable, no_listener(&info))) }
}

fn no_listener(info: &PublicInfo) -> String {
    match &info.hindrance {
        Some(reason) => format!(
            "this server publishes nothing for now: {reason}; it tries again by itself: free a port that is taken, or start \
             it with another --https-listen or --http-listen"
        ),
        None => NO_LISTENER.to_owned(),
    }
}
