//! Private networks.

use std::collections::HashSet;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::time::Instant;
use warren_model::policy::{Policy, Rule, Subject, Target};
use warren_model::record::{Egress, EventKind, Network, Power};
use warren_model::session::Session;
use warren_model::{AccountId, Code, Label, NetworkCidr, NetworkId, wire};
use warren_store::session::{self, Why};
use warren_store::{Revision, TxnBuilder, TxnOutcome, Typed, Versioned, schema};

use super::domains::map;
use super::policy::enforce;
use super::sessions::end;
use super::{ListQuery, Made, views, wanted};
use crate::caller::Caller;
use crate::cursor::Paging;
use crate::error::{Answer, ApiError};
use crate::extract::{JsonBody, Named, Query};
use crate::idempotency::{self, Created, Draft, Idempotency};
use crate::mutation::{ATTEMPTS, Deed, News, contended};
use crate::state::{Api, Shared};
use crate::wait::{self, TooLate};
use crate::{bootstrap, directory, numbers, policies, resolve, secret};

/// List networks
#[utoipa::path(get, path = "/v1/networks", operation_id = "list_networks", tag = "networks",
    params(ListQuery), responses((status = 200, body = wire::Page<wire::Network>)))]
pub(crate) async fn list(
    State(api): State<Shared>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Answer<Json<wire::Page<wire::Network>>> {
    let paging = Paging::parse("networks", caller.account, query.limit, query.cursor.as_deref())?;
    let (records, next) = page(&api, &caller, &paging).await?;
    let mut items = Vec::with_capacity(records.len());
    for record in &records {
        items.push(views::network(&api, record).await?);
    }
    Ok(Json(wire::Page { items, next }))
}

/// One page of the account's networks, by name.
pub(super) async fn page(api: &Api, caller: &Caller, paging: &Paging) -> Answer<(Vec<Network>, Option<String>)> {
    let names = schema::network_names(caller.account);
    let (page, more) = api.store.list_page(&names, paging.after.clone(), paging.limit).await?;
    let next = page.last().filter(|_| more).map(|last| paging.next(&last.key));
    let mut records = Vec::with_capacity(page.len());
    for name in page {
        records.extend(api.store.read(&schema::network(name.record)).await?.map(|read| read.record));
    }
    Ok((records, next))
}

/// Create a network
#[utoipa::path(post, path = "/v1/networks", operation_id = "create_network", tag = "networks",
    request_body = wire::CreateNetwork, responses(
        (status = 201, body = wire::Network, description = "Created"),
        (status = 200, body = wire::Network, description = "Created before with this Idempotency-Key")))]
pub(crate) async fn create(
    State(api): State<Shared>,
    caller: Caller,
    idempotency: Idempotency,
    JsonBody { value, bytes }: JsonBody<wire::CreateNetwork>,
) -> Answer<Response> {
    let made = make(&api, &caller, &idempotency, &value, &bytes).await?;
    Ok(made.respond(|network| format!("/v1/networks/{}", network.id)))
}

/// Makes a network, unless the request's idempotency key has made one already.
pub(crate) async fn make(
    api: &Api,
    caller: &Caller,
    idempotency: &Idempotency,
    value: &wire::CreateNetwork,
    bytes: &[u8],
) -> Answer<Made<wire::Network>> {
    let name: Label = value.name.parse().map_err(wanted::bad_name)?;
    let cidr = value.cidr.as_deref().map(str::parse::<NetworkCidr>).transpose();
    let cidr = cidr.map_err(|error| ApiError::new(error.code(), error.to_string()))?;
    let created = idempotency.create(api, caller, bytes, |now| draft(api, caller, value, &name, cidr, now)).await?;
    match created {
        Created::Now { thing, .. } => Ok(Made::Now(views::network_with_warnings(api, &thing).await?)),
        Created::Before(id) => {
            let network = resolve::network(api, caller.account, &id).await.map_err(idempotency::gone("network"))?;
            Ok(Made::Before(views::network_with_warnings(api, &network.record).await?))
        }
    }
}

async fn draft(
    api: &Api,
    caller: &Caller,
    value: &wire::CreateNetwork,
    name: &Label,
    cidr: Option<NetworkCidr>,
    now: Timestamp,
) -> Answer<Draft<Network>> {
    refuse_taken_name(api, caller.account, name).await?;
    let quota = api.config.networks_per_account;
    if api.store.count(schema::network_names(caller.account).as_str()).await? >= quota {
        return Err(ApiError::new(
            Code::QuotaExceeded,
            format!("an account has at most {quota} networks: delete one that is not needed"),
        ));
    }
    let egress = value.egress.unwrap_or_default();
    if egress == Egress::Open && !api.host.forwarding() {
        return Err(ApiError::new(
            Code::ForwardingRequired,
            "this host does not forward, so nothing may leave a network: start the server with --forwarding, or \
             create the network with egress \"deny\"",
        ));
    }
    let cidr = match cidr {
        Some(cidr) => cidr,
        // The account's own one is the same whenever it is made.
        None if name.as_str() == bootstrap::DEFAULT => NetworkCidr::default_range(),
        None => derive_cidr(api, caller.account).await?,
    };
    let number = numbers::choose(api).await?;
    let network = Network {
        id: NetworkId::from_ulid(secret::ulid(now)?),
        account: caller.account,
        name: name.clone(),
        number: number.number,
        cidr,
        egress,
        created_at: now,
        deleting: false,
    };
    let policy = policies::in_force(api, caller.account).await?;
    refuse_unfit(api, &policy.edition.policy, &network, now).await?;
    let txn = policy.same(TxnBuilder::new(), caller.account);
    let txn = number.put(bootstrap::put_network(txn, &network)?)?;
    let deed = Deed { caller, now, action: "network.create" };
    let message = format!("network {name} was created with {cidr}");
    let txn = deed.record(txn, network.id, value, [news(&network, EventKind::NetworkCreated, message)])?;
    Ok(Draft { id: network.id.to_string(), thing: network, txn })
}

/// Refuses a network with which the policy in force could not be enforced, or would open more than is permitted.
async fn refuse_unfit(api: &Api, policy: &Policy, network: &Network, now: Timestamp) -> Answer<()> {
    let by_range = |rule: &Rule| matches!(rule.to, Target::Inside(Subject::Range(None, _)));
    let by_name = network.egress == Egress::Open && !policy.forbid.is_empty();
    if !by_name && !policy.allow.iter().any(by_range) {
        return Ok(());
    }
    let mut directory = directory::census(api, network.account).await?.directory;
    directory.networks.insert(network.name.clone(), directory::entry(network, api.config.installation.ula));
    enforce::fits(api, policy, directory, &network.name, now).await
}

async fn refuse_taken_name(api: &Api, account: AccountId, name: &Label) -> Answer<()> {
    match api.store.read(&schema::network_name(account, name)).await? {
        None => Ok(()),
        Some(_) => Err(ApiError::new(
            Code::NameInUse,
            format!("this account has a network named {name} already: choose another name, or delete that one first"),
        )),
    }
}

/// The first 10.N.0.0/16 that neither the account's networks nor the host's routes use.
async fn derive_cidr(api: &Api, account: AccountId) -> Answer<NetworkCidr> {
    let (ids, _) = api.store.list_all(&schema::network_names(account)).await?;
    let mut used = Vec::with_capacity(ids.len());
    for id in ids {
        used.extend(api.store.read(&schema::network(id.record)).await?.map(|read| read.record.cidr));
    }
    (1..=255)
        .filter_map(|n| format!("10.{n}.0.0/16").parse::<NetworkCidr>().ok())
        .filter(|candidate| used.iter().all(|cidr| !cidr.overlaps(candidate.net())))
        .find(|candidate| api.host.overlapping_routes(*candidate).is_empty())
        .ok_or_else(|| {
            ApiError::new(
                Code::CidrRequired,
                "every 10.N.0.0/16 is used by a network of this account or a route of the host: name a cidr yourself; \
                 it may be one that another network has",
            )
        })
}

/// Show a network
#[utoipa::path(get, path = "/v1/networks/{network}", operation_id = "show_network", tag = "networks",
    params(("network" = String, Path, description = "Id or name")), responses((status = 200, body = wire::Network)))]
pub(crate) async fn show(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
) -> Answer<Json<wire::Network>> {
    let network = resolve::network(&api, caller.account, &given).await?;
    Ok(Json(views::network_with_warnings(&api, &network.record).await?))
}

/// Rename a network
#[utoipa::path(patch, path = "/v1/networks/{network}", operation_id = "rename_network", tag = "networks",
    params(("network" = String, Path, description = "Id or name")),
    request_body = wire::Rename, responses((status = 200, body = wire::Network)))]
pub(crate) async fn rename(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
    JsonBody { value, .. }: JsonBody<wire::Rename>,
) -> Answer<Json<wire::Network>> {
    let name: Label = value.name.parse().map_err(wanted::bad_name)?;
    let id = resolve::network(&api, caller.account, &given).await?.record.id.to_string();
    for _ in 0..ATTEMPTS {
        let now = Timestamp::now();
        let read = resolve::network(&api, caller.account, &id).await?;
        let before = read.record.name.clone();
        let mut network = read.record.clone();
        network.name = name.clone();
        if before != name {
            refuse_taken_name(&api, caller.account, &name).await?;
            let policy = policies::in_force(&api, caller.account).await?;
            policies::refuse_named(&policy.edition.policy, &before, "")?;
            let txn = policy
                .same(TxnBuilder::new(), caller.account)
                .unchanged(&read)
                .absent(&schema::network_name(caller.account, &name))
                .delete(&schema::network_name(caller.account, &before))
                .put(&schema::network_name(caller.account, &name), &network.id)?
                .put(&schema::network(network.id), &network)?;
            let deed = Deed { caller: &caller, now, action: "network.rename" };
            let message = format!("network {before} is now named {name}");
            let txn = deed.record(txn, network.id, &value, [news(&network, EventKind::NetworkRenamed, message)])?;
            if !matches!(txn.commit(&*api.store).await?, TxnOutcome::Committed(_)) {
                continue;
            }
        }
        return Ok(Json(views::network_with_warnings(&api, &network).await?));
    }
    Err(contended())
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct DeleteQuery {
    /// Delete the machines in it too, close the sessions, and leave rules of the policy that name it without effect.
    force: Option<bool>,
}

/// Delete a network
///
/// Refused while something is in it or the policy names it, unless forced. Answers when nothing of it is left on the
/// host.
#[utoipa::path(delete, path = "/v1/networks/{network}", operation_id = "delete_network", tag = "networks",
    params(("network" = String, Path, description = "Id or name"), DeleteQuery),
    responses((status = 204, description = "Deleted")))]
pub(crate) async fn delete(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
    Query(query): Query<DeleteQuery>,
) -> Answer<StatusCode> {
    let deadline = Instant::now() + api.config.operation_deadline;
    let network = resolve::network(&api, caller.account, &given).await?.record;
    let Some(since) = ask_to_delete(&api, &caller, network.id, query.force.unwrap_or(false)).await? else {
        return Ok(StatusCode::NO_CONTENT);
    };
    match wait::network_gone(&api, &network, since, deadline).await? {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(TooLate) => Err(ApiError::new(
            Code::DeadlineExceeded,
            format!(
                "network {} is still being deleted, and that goes on: GET /v1/networks/{} answers not_found once it is \
                 gone",
                network.name, network.id
            ),
        )),
    }
}

/// `None` when it is gone already.
async fn ask_to_delete(api: &Api, caller: &Caller, id: NetworkId, force: bool) -> Answer<Option<Revision>> {
    for _ in 0..ATTEMPTS {
        let now = Timestamp::now();
        let since = api.store.revision().await?;
        let Some(read) = api.store.read(&schema::network(id)).await? else { return Ok(None) };
        if read.record.deleting && !force {
            return Ok(Some(since));
        }
        let members = members_of(api, id).await?;
        let sessions = session::in_network(&*api.store, caller.account, id).await?;
        let live = sessions.iter().map(|open| &open.session.record).filter(|session| now < session.expires_at);
        let count = members.len() + live.clone().count();
        if !force && count > 0 {
            let machines = members.iter().map(|machine| machine.record.name.clone());
            let names: Vec<_> = machines.chain(live.map(Session::name)).take(3).map(|name| name.to_string()).collect();
            let more = if count > names.len() { " and others" } else { "" };
            return Err(ApiError::new(
                Code::NetworkNotEmpty,
                format!(
                    "network {} has {count} members ({}{more}): delete them first, or add ?force=true (--force) to \
                     delete them with it",
                    read.record.name,
                    names.join(", ")
                ),
            ));
        }
        let mut policy = None;
        if !force {
            let in_force = policies::in_force(api, caller.account).await?;
            let advice = ", or add ?force=true (--force) to leave rules in it that mean nobody";
            policies::refuse_named(&in_force.edition.policy, &read.record.name, advice)?;
            policy = Some(in_force);
        }
        let mut network = read.record.clone();
        network.deleting = true;
        // Whoever makes a machine or opens a session compares the network's record unchanged, so none can slip in.
        let mut txn = TxnBuilder::new().unchanged(&read).put(&schema::network(id), &network)?;
        if members.is_empty() {
            txn = txn.empty(&schema::members(id));
        }
        if let Some(policy) = policy {
            txn = policy.same(txn, caller.account);
        }
        let (mut txn, mut told, _) = end::put_closed(api, txn, sessions, &Why::NetworkDeleted, now).await?;
        if !read.record.deleting {
            let message = format!("network {} is being deleted", network.name);
            told.push(news(&network, EventKind::NetworkDeleted, message));
        }
        for member in members.into_iter().filter(|member| member.record.power != Power::Gone) {
            txn = txn.unchanged(&member);
            let mut machine = member.record;
            machine.power = Power::Gone;
            txn = txn.put(&schema::machine(machine.id), &machine)?;
            txn = map::withdraw_all(&*api.store, txn, caller, now, machine.id).await?;
            told.push(super::power::deleted(&machine));
        }
        let deed = Deed { caller, now, action: "network.delete" };
        txn = deed.record(txn, id, &serde_json::json!({ "force": force }), told)?;
        if let TxnOutcome::Committed(revision) = txn.commit(&*api.store).await? {
            return Ok(Some(revision));
        }
    }
    Err(contended())
}

async fn members_of(api: &Api, id: NetworkId) -> Answer<Vec<Versioned<warren_model::record::Machine>>> {
    let (members, _) = api.store.list_all(&schema::members(id)).await?;
    let ids: HashSet<_> = members.iter().filter_map(|member| schema::machine_of(&member.key)).collect();
    let mut machines = Vec::with_capacity(ids.len());
    for id in ids {
        machines.extend(api.store.read(&schema::machine(id)).await?);
    }
    machines.sort_by(|one, other| one.record.name.cmp(&other.record.name));
    Ok(machines)
}

fn news(network: &Network, kind: EventKind, message: String) -> News {
    News { kind, account: network.account, network: Some(network.id), machine: None, message }
}
