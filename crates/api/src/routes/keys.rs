//! The keys of the caller's account.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;
use warren_model::record::{ApiKey, EventKind};
use warren_model::{Code, KeyId, Label, wire};
use warren_store::session::{self, Why};
use warren_store::{Store, StoreError, TxnBuilder, TxnOutcome, Typed, Versioned, schema};

use super::sessions::end;
use super::{ListQuery, SECRET_NOT_REPEATED, created, replayed};
use crate::bootstrap;
use crate::caller::Caller;
use crate::cursor::Paging;
use crate::error::{Answer, ApiError};
use crate::extract::{JsonBody, Named, Query};
use crate::idempotency::{self, Created, Draft, Idempotency};
use crate::mutation::{ATTEMPTS, Deed, News, contended};
use crate::state::{Api, Shared};

/// Seconds that a key may live when it is to expire.
const LIFETIME: std::ops::RangeInclusive<u64> = 60..=31_536_000;
/// Keys that are not revoked, per account.
const KEYS_PER_ACCOUNT: usize = 1000;

/// List keys
///
/// Without their secrets; revoked ones included.
#[utoipa::path(get, path = "/v1/keys", operation_id = "list_keys", tag = "keys",
    params(ListQuery), responses((status = 200, body = wire::Page<wire::Key>)))]
pub(crate) async fn list(
    State(api): State<Shared>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Answer<Json<wire::Page<wire::Key>>> {
    let paging = Paging::parse("keys", caller.account, query.limit, query.cursor.as_deref())?;
    let hashes = schema::api_key_hashes(caller.account);
    let (page, more) = api.store.list_page(&hashes, paging.after.clone(), paging.limit).await?;
    let next = page.last().filter(|_| more).map(|last| paging.next(&last.key));
    let mut items = Vec::with_capacity(page.len());
    for hash in page {
        if let Some(key) = api.store.read(&schema::api_key(&hash.record)).await?
            && may_see(&caller, &key.record)
        {
            items.push(view(&*api.store, &key.record).await?);
        }
    }
    Ok(Json(wire::Page { items, next }))
}

/// Create a key
///
/// Its secret is only in this answer.
#[utoipa::path(post, path = "/v1/keys", operation_id = "create_key", tag = "keys",
    request_body = wire::CreateKey, responses(
        (status = 201, body = wire::Key, description = "Created"),
        (status = 200, body = wire::Key, description = "Created before with this Idempotency-Key")))]
pub(crate) async fn create(
    State(api): State<Shared>,
    caller: Caller,
    idempotency: Idempotency,
    JsonBody { value, bytes }: JsonBody<wire::CreateKey>,
) -> Answer<Response> {
    let name = value.name.as_deref().map(str::parse).transpose().map_err(super::wanted::bad_name)?;
    if let Some(seconds) = value.expires_in_seconds.filter(|seconds| !LIFETIME.contains(seconds)) {
        return Err(ApiError::invalid(format!(
            "expires_in_seconds is {} to {}, not {seconds}; leave it out for a key that does not expire",
            LIFETIME.start(),
            LIFETIME.end()
        )));
    }
    let made = idempotency.create(&api, &caller, &bytes, |now| draft(&api, &caller, &value, name.as_ref(), now));
    match made.await? {
        Created::Now { thing: (key, secret), .. } => {
            let mut answer = view(&*api.store, &key).await?;
            answer.key = Some(secret);
            Ok(created(format!("/v1/keys/{}", answer.id), &answer))
        }
        Created::Before(id) => again(&api, &caller, &id).await,
    }
}

/// A key, and its secret.
async fn draft(
    api: &Api,
    caller: &Caller,
    value: &wire::CreateKey,
    name: Option<&Label>,
    now: Timestamp,
) -> Answer<Draft<(ApiKey, String)>> {
    let live = bootstrap::keys(&*api.store, caller.account).await?;
    if live.iter().filter(|key| key.record.revoked_at.is_none()).count() >= KEYS_PER_ACCOUNT {
        return Err(ApiError::new(
            Code::QuotaExceeded,
            format!("an account has at most {KEYS_PER_ACCOUNT} keys: revoke one that is not needed"),
        ));
    }
    let (secret, mut key) = bootstrap::new_key(caller.account, false, now)?;
    key.name = name.cloned();
    key.expires_at = value
        .expires_in_seconds
        .and_then(|seconds| i64::try_from(seconds).ok())
        .and_then(|seconds| now.checked_add(SignedDuration::from_secs(seconds)).ok());
    let txn = bootstrap::put_key(TxnBuilder::new(), &key)?;
    let deed = Deed { caller, now, action: "key.create" };
    let txn = deed.record(txn, key.id, value, [news(&key, EventKind::KeyCreated, "was created")])?;
    Ok(Draft { id: key.id.to_string(), thing: (key, secret), txn })
}

async fn again(api: &Api, caller: &Caller, id: &str) -> Answer<Response> {
    let key = find(api, caller, id).await.map_err(idempotency::gone("key"))?;
    let mut answer = view(&*api.store, &key.record).await?;
    answer.detail = Some(SECRET_NOT_REPEATED.to_owned());
    Ok(replayed(&answer))
}

/// Revoke a key
///
/// It stops working at once, and the sessions that it opened are closed. Revoking it again is no error.
#[utoipa::path(delete, path = "/v1/keys/{key}", operation_id = "revoke_key", tag = "keys",
    params(("key" = String, Path, description = "Id, or a name that only one key has")),
    responses((status = 204, description = "Revoked")))]
pub(crate) async fn revoke(State(api): State<Shared>, caller: Caller, Named(given): Named) -> Answer<StatusCode> {
    let deadline = Instant::now() + api.config.operation_deadline;
    for _ in 0..ATTEMPTS {
        let now = Timestamp::now();
        let read = find(&api, &caller, &given).await?;
        if read.record.root {
            return Err(ApiError::new(
                Code::Forbidden,
                "the root key cannot be revoked through the API: remove root.key on the server and restart it, which \
                 makes a new one and revokes this one",
            ));
        }
        if read.record.revoked_at.is_some() {
            return Ok(StatusCode::NO_CONTENT);
        }
        let mut key = read.record.clone();
        key.revoked_at = Some(now);
        let place = api.store.read(&schema::api_key_hash(key.account, key.id)).await?;
        let place = place.ok_or_else(|| ApiError::not_found("key", &given, "/v1/keys"))?;
        let txn = TxnBuilder::new().unchanged(&read).unchanged(&place).put(&schema::api_key(&key.hash), &key)?;
        // Whoever opens another one writes the key's place, so none can slip in.
        let sessions = session::opened_by(&*api.store, key.id).await?;
        let (txn, mut told, ids) = end::put_closed(&api, txn, sessions, &Why::KeyRevoked, now).await?;
        told.push(news(&key, EventKind::KeyRevoked, "was revoked"));
        let deed = Deed { caller: &caller, now, action: "key.revoke" };
        let txn = deed.record(txn, key.id, &(), told)?;
        if let TxnOutcome::Committed(_) = txn.commit(&*api.store).await? {
            api.credentials.forget_key(&key.hash);
            end::cut(&api, &ids, deadline).await?;
            return Ok(StatusCode::NO_CONTENT);
        }
    }
    Err(contended())
}

/// The root key is only shown to itself.
fn may_see(caller: &Caller, key: &ApiKey) -> bool {
    caller.root || !key.root
}

async fn find(api: &Api, caller: &Caller, given: &str) -> Answer<Versioned<ApiKey>> {
    let none = || ApiError::not_found("key", given, "/v1/keys");
    if let Ok(id) = given.parse::<KeyId>() {
        let hash = api.store.read(&schema::api_key_hash(caller.account, id)).await?.ok_or_else(none)?;
        let key = api.store.read(&schema::api_key(&hash.record)).await?;
        return key.filter(|key| may_see(caller, &key.record)).ok_or_else(none);
    }
    let mut named: Vec<_> = bootstrap::keys(&*api.store, caller.account).await?;
    named.retain(|key| may_see(caller, &key.record) && name(&key.record) == Some(given));
    if named.iter().any(|key| key.record.revoked_at.is_none()) {
        named.retain(|key| key.record.revoked_at.is_none());
    }
    match named.len() {
        0 | 1 => named.pop().ok_or_else(none),
        several => Err(ApiError::invalid(format!("{several} keys are named {given}: use the id of the one you mean"))),
    }
}

/// What a key is called; the root key of an installation has no name of its own.
fn name(key: &ApiKey) -> Option<&str> {
    key.name.as_ref().map(|name| name.as_str()).or(key.root.then_some("root"))
}

fn news(key: &ApiKey, kind: EventKind, what: &str) -> News {
    let name = key.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
    News { kind, account: key.account, network: None, machine: None, message: format!("key{name} {} {what}", key.id) }
}

async fn view(store: &dyn Store, key: &ApiKey) -> Result<wire::Key, StoreError> {
    let used = store.read(&schema::api_key_used(key.id)).await?;
    Ok(wire::Key {
        id: key.id.to_string(),
        name: name(key).map(str::to_owned),
        created_at: key.created_at,
        expires_at: key.expires_at,
        last_used_at: used.map(|used| used.record),
        revoked_at: key.revoked_at,
        key: None,
        detail: None,
    })
}
