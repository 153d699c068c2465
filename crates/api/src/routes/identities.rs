//! Identities of the caller's account: who may operate machines without a key of it.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use jiff::Timestamp;
use warren_model::record::{EventKind, Identity};
use warren_model::{Code, IdentityId, Label, LabelKey, LabelValue, wire};
use warren_store::{TxnBuilder, TxnOutcome, Typed, schema};

use super::{ListQuery, Made, tokens, wanted};
use crate::caller::Caller;
use crate::cursor::Paging;
use crate::error::{Answer, ApiError};
use crate::extract::{JsonBody, Named, Query};
use crate::idempotency::{self, Created, Draft, Idempotency};
use crate::mutation::{ATTEMPTS, Deed, News, contended};
use crate::state::{Api, Shared};
use crate::{resolve, secret};

/// Identities per account.
const IDENTITIES: usize = 10_000;
/// Entries of metadata per identity.
const METADATA: usize = 64;

/// List identities
#[utoipa::path(get, path = "/v1/identities", operation_id = "list_identities", tag = "identities",
    params(ListQuery), responses((status = 200, body = wire::Page<wire::Identity>)))]
pub(crate) async fn list(
    State(api): State<Shared>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Answer<Json<wire::Page<wire::Identity>>> {
    let paging = Paging::parse("identities", caller.account, query.limit, query.cursor.as_deref())?;
    let prefix = schema::identities_of(caller.account);
    let (page, more) = api.store.list_page(&prefix, paging.after.clone(), paging.limit).await?;
    let next = page.last().filter(|_| more).map(|last| paging.next(&last.key));
    let mut items = Vec::with_capacity(page.len());
    for id in page.iter().filter_map(|entry| schema::identity_in(&entry.key)) {
        items.extend(api.store.read(&schema::identity(id)).await?.map(|read| view(read.record)));
    }
    Ok(Json(wire::Page { items, next }))
}

/// Create an identity
///
/// It may do nothing until something is granted to it.
#[utoipa::path(post, path = "/v1/identities", operation_id = "create_identity", tag = "identities",
    request_body = wire::CreateIdentity, responses(
        (status = 201, body = wire::Identity, description = "Created"),
        (status = 200, body = wire::Identity, description = "Created before with this Idempotency-Key")))]
pub(crate) async fn create(
    State(api): State<Shared>,
    caller: Caller,
    idempotency: Idempotency,
    JsonBody { value, bytes }: JsonBody<wire::CreateIdentity>,
) -> Answer<Response> {
    let made = make(&api, &caller, &idempotency, &value, &bytes).await?;
    Ok(made.respond(|identity| format!("/v1/identities/{}", identity.id)))
}

/// Makes an identity, unless the request's idempotency key has made one already.
pub(crate) async fn make(
    api: &Api,
    caller: &Caller,
    idempotency: &Idempotency,
    value: &wire::CreateIdentity,
    bytes: &[u8],
) -> Answer<Made<wire::Identity>> {
    let name = value.name.as_deref().map(str::parse::<Label>).transpose().map_err(wanted::bad_name)?;
    let metadata = metadata(&value.metadata)?;
    let created =
        idempotency.create(api, caller, bytes, |now| draft(api, caller, value, name.as_ref(), &metadata, now)).await?;
    match created {
        Created::Now { thing, .. } => Ok(Made::Now(view(thing))),
        Created::Before(id) => {
            let found = resolve::identity(api, caller.account, &id).await;
            Ok(Made::Before(view(found.map_err(idempotency::gone("identity"))?.record)))
        }
    }
}

async fn draft(
    api: &Api,
    caller: &Caller,
    value: &wire::CreateIdentity,
    name: Option<&Label>,
    metadata: &BTreeMap<LabelKey, LabelValue>,
    now: Timestamp,
) -> Answer<Draft<Identity>> {
    if api.store.count(schema::identities_of(caller.account).as_str()).await? >= IDENTITIES {
        return Err(ApiError::new(
            Code::QuotaExceeded,
            format!("an account has at most {IDENTITIES} identities: delete one that is not needed"),
        ));
    }
    let identity = Identity {
        id: IdentityId::from_ulid(secret::ulid(now)?),
        account: caller.account,
        name: name.cloned(),
        metadata: metadata.clone(),
        created_at: now,
    };
    let mut txn = TxnBuilder::new()
        .put(&schema::identity(identity.id), &identity)?
        .put(&schema::identity_of(caller.account, identity.id), &())?;
    if let Some(name) = name {
        txn = take_name(api, txn, &identity, name).await?;
    }
    let deed = Deed { caller, now, action: "identity.create" };
    let txn = deed.record(txn, identity.id, value, [news(&identity, EventKind::IdentityCreated, "was created")])?;
    Ok(Draft { id: identity.id.to_string(), thing: identity, txn })
}

/// Show an identity
#[utoipa::path(get, path = "/v1/identities/{identity}", operation_id = "show_identity", tag = "identities",
    params(("identity" = String, Path, description = "Id or name")),
    responses((status = 200, body = wire::Identity)))]
pub(crate) async fn show(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
) -> Answer<Json<wire::Identity>> {
    Ok(Json(view(resolve::identity(&api, caller.account, &given).await?.record)))
}

/// Rename an identity, or change its metadata
#[utoipa::path(patch, path = "/v1/identities/{identity}", operation_id = "update_identity", tag = "identities",
    params(("identity" = String, Path, description = "Id or name")),
    request_body = wire::UpdateIdentity, responses((status = 200, body = wire::Identity)))]
pub(crate) async fn update(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
    JsonBody { value, .. }: JsonBody<wire::UpdateIdentity>,
) -> Answer<Json<wire::Identity>> {
    let name = value.name.as_deref().map(str::parse::<Label>).transpose().map_err(wanted::bad_name)?;
    let metadata = value.metadata.as_ref().map(metadata).transpose()?;
    for _ in 0..ATTEMPTS {
        let read = resolve::identity(&api, caller.account, &given).await?;
        let mut identity = read.record.clone();
        identity.name = name.clone().or(identity.name);
        identity.metadata = metadata.clone().unwrap_or(identity.metadata);
        if identity == read.record {
            return Ok(Json(view(identity)));
        }
        let mut txn = TxnBuilder::new().unchanged(&read).put(&schema::identity(identity.id), &identity)?;
        if let Some(name) = identity.name.as_ref().filter(|_| identity.name != read.record.name) {
            txn = take_name(&api, txn, &identity, name).await?;
            if let Some(before) = &read.record.name {
                txn = txn.delete(&schema::identity_name(caller.account, before));
            }
        }
        let deed = Deed { caller: &caller, now: Timestamp::now(), action: "identity.update" };
        let txn = deed.record(txn, identity.id, &value, None)?;
        if let TxnOutcome::Committed(_) = txn.commit(&*api.store).await? {
            return Ok(Json(view(identity)));
        }
    }
    Err(contended())
}

/// Delete an identity
///
/// With everything that was granted to it. Its tokens stop working at once.
#[utoipa::path(delete, path = "/v1/identities/{identity}", operation_id = "delete_identity", tag = "identities",
    params(("identity" = String, Path, description = "Id or name")),
    responses((status = 204, description = "Deleted")))]
pub(crate) async fn delete(State(api): State<Shared>, caller: Caller, Named(given): Named) -> Answer<StatusCode> {
    for _ in 0..ATTEMPTS {
        let read = resolve::identity(&api, caller.account, &given).await?;
        let identity = &read.record;
        let mut txn = TxnBuilder::new()
            .unchanged(&read)
            .delete(&schema::identity(identity.id))
            .delete(&schema::identity_of(caller.account, identity.id));
        if let Some(name) = &identity.name {
            txn = txn.delete(&schema::identity_name(caller.account, name));
        }
        let (grants, _) = api.store.list_all(&schema::grants_of(identity.id)).await?;
        for grant in &grants {
            txn = txn.delete(&schema::grant(identity.id, grant.record.target));
        }
        let tokens = tokens::of(&*api.store, identity.id).await?;
        for token in &tokens {
            txn = tokens::remove(txn, &token.record);
        }
        let deed = Deed { caller: &caller, now: Timestamp::now(), action: "identity.delete" };
        let txn = deed.record(txn, identity.id, &(), [news(identity, EventKind::IdentityDeleted, "was deleted")])?;
        if let TxnOutcome::Committed(_) = txn.commit(&*api.store).await? {
            for token in &tokens {
                api.credentials.forget_token(&token.record.hash);
            }
            api.credentials.forget_grants(identity.id);
            return Ok(StatusCode::NO_CONTENT);
        }
    }
    Err(contended())
}

async fn take_name(api: &Api, txn: TxnBuilder, identity: &Identity, name: &Label) -> Answer<TxnBuilder> {
    let key = schema::identity_name(identity.account, name);
    if api.store.read(&key).await?.is_some() {
        return Err(ApiError::new(
            Code::NameInUse,
            format!("this account has an identity named {name} already: choose another name, or delete that one first"),
        ));
    }
    Ok(txn.absent(&key).put(&key, &identity.id)?)
}

fn metadata(given: &BTreeMap<String, String>) -> Answer<BTreeMap<LabelKey, LabelValue>> {
    if given.len() > METADATA {
        return Err(ApiError::invalid(format!("metadata has at most {METADATA} entries, not {}", given.len())));
    }
    wanted::labels(given)
}

/// What an identity is called in a message.
pub(super) fn called(identity: &Identity) -> String {
    identity.name.as_ref().map_or_else(|| identity.id.to_string(), Label::to_string)
}

pub(super) fn news(identity: &Identity, kind: EventKind, what: &str) -> News {
    let message = format!("identity {} {what}", called(identity));
    News { kind, account: identity.account, network: None, machine: None, message }
}

fn view(identity: Identity) -> wire::Identity {
    wire::Identity {
        id: identity.id.to_string(),
        name: identity.name.map(|name| name.to_string()),
        metadata: identity.metadata.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        created_at: identity.created_at,
    }
}
