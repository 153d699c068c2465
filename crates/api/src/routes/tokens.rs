//! Tokens of identities.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use warren_model::record::{EventKind, Identity, Token};
use warren_model::{Code, IdentityId, TokenId, wire};
use warren_store::{Store, StoreError, TxnBuilder, TxnOutcome, Typed, Versioned, schema};

use super::{ListQuery, Made, SECRET_NOT_REPEATED, identities};
use crate::caller::Caller;
use crate::cursor::Paging;
use crate::error::{Answer, ApiError};
use crate::extract::{JsonBody, Named, Query};
use crate::idempotency::{self, Created, Draft, Idempotency};
use crate::mutation::{ATTEMPTS, Deed, News, contended};
use crate::state::{Api, Shared};
use crate::{resolve, secret};

/// Seconds that a token lives.
const LIFETIME: std::ops::RangeInclusive<u64> = 1..=31_536_000;
const USUAL_LIFETIME: u64 = 86_400;
/// Tokens of one identity that are valid.
const TOKENS: usize = 1000;
/// How long a token that is no longer valid can still be listed, unless there are too many.
const KEPT: SignedDuration = SignedDuration::from_hours(24);

/// List an identity's tokens
///
/// Without their secrets. One that was revoked or has expired is listed for a day, or until there are a thousand.
#[utoipa::path(get, path = "/v1/identities/{identity}/tokens", operation_id = "list_tokens", tag = "identities",
    params(("identity" = String, Path, description = "Id or name"), ListQuery),
    responses((status = 200, body = wire::Page<wire::Token>)))]
pub(crate) async fn list(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
    Query(query): Query<ListQuery>,
) -> Answer<Json<wire::Page<wire::Token>>> {
    let identity = resolve::identity(&api, caller.account, &given).await?.record.id;
    let scope = format!("tokens {identity}");
    let paging = Paging::parse(&scope, caller.account, query.limit, query.cursor.as_deref())?;
    let (page, more) = api.store.list_page(&schema::tokens_of(identity), paging.after.clone(), paging.limit).await?;
    let next = page.last().filter(|_| more).map(|last| paging.next(&last.key));
    let mut items = Vec::with_capacity(page.len());
    for hash in page {
        if let Some(token) = api.store.read(&schema::token(&hash.record)).await? {
            items.push(view(&*api.store, &token.record).await?);
        }
    }
    Ok(Json(wire::Page { items, next }))
}

/// Create a token
///
/// Its secret is only in this answer. A client sends it like a key; a browser's WebSocket sends it as the protocol
/// `warren.secret.TOKEN` beside `warren`.
#[utoipa::path(post, path = "/v1/identities/{identity}/tokens", operation_id = "create_token", tag = "identities",
    params(("identity" = String, Path, description = "Id or name")),
    request_body = wire::CreateToken, responses(
        (status = 201, body = wire::Token, description = "Created"),
        (status = 200, body = wire::Token, description = "Created before with this Idempotency-Key")))]
pub(crate) async fn create(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
    idempotency: Idempotency,
    JsonBody { value, bytes }: JsonBody<wire::CreateToken>,
) -> Answer<Response> {
    let made = make(&api, &caller, &given, &idempotency, &value, &bytes).await?;
    Ok(made.respond(|token| format!("/v1/identities/{}/tokens", token.identity)))
}

/// Makes a token of an identity, unless the request's idempotency key has made one already.
pub(crate) async fn make(
    api: &Api,
    caller: &Caller,
    identity: &str,
    idempotency: &Idempotency,
    value: &wire::CreateToken,
    bytes: &[u8],
) -> Answer<Made<wire::Token>> {
    let seconds = value.expires_in_seconds.unwrap_or(USUAL_LIFETIME);
    if !LIFETIME.contains(&seconds) {
        return Err(ApiError::invalid(format!(
            "expires_in_seconds is {} to {}, not {seconds}",
            LIFETIME.start(),
            LIFETIME.end()
        )));
    }
    resolve::identity(api, caller.account, identity).await?;
    let created =
        idempotency.create(api, caller, bytes, |now| draft(api, caller, identity, value, seconds, now)).await?;
    match created {
        Created::Now { thing: (token, secret), .. } => {
            let mut answer = view(&*api.store, &token).await?;
            answer.token = Some(secret);
            Ok(Made::Now(answer))
        }
        Created::Before(id) => again(api, caller, &id).await,
    }
}

/// A token, and its secret.
async fn draft(
    api: &Api,
    caller: &Caller,
    identity: &str,
    value: &wire::CreateToken,
    seconds: u64,
    now: Timestamp,
) -> Answer<Draft<(Token, String)>> {
    let identity = resolve::identity(api, caller.account, identity).await?;
    let over = make_room(api, identity.record.id, now).await?;
    let expires_at = i64::try_from(seconds).ok().map(SignedDuration::from_secs);
    let expires_at = expires_at.and_then(|life| now.checked_add(life).ok()).ok_or_else(ApiError::internal)?;
    let secret = secret::new_secret(secret::TOKEN)?;
    let token = Token {
        id: TokenId::from_ulid(secret::ulid(now)?),
        account: caller.account,
        identity: identity.record.id,
        hash: secret::hash(&secret),
        created_at: now,
        expires_at,
        revoked_at: None,
    };
    let mut txn = TxnBuilder::new()
        // Written as it was, so that it cannot be deleted at the same time.
        .unchanged(&identity)
        .put(&schema::identity(token.identity), &identity.record)?
        .put(&schema::token(&token.hash), &token)?
        .put(&schema::token_hash(token.account, token.id), &token.hash)?
        .put(&schema::token_of(token.identity, token.id), &token.hash)?;
    for old in over {
        txn = remove(txn, &old);
    }
    let deed = Deed { caller, now, action: "token.create" };
    let news = [news(&identity.record, &token, EventKind::TokenCreated, "was created")];
    let txn = deed.record(txn, token.id, value, news)?;
    Ok(Draft { id: token.id.to_string(), thing: (token, secret), txn })
}

/// Tokens that are no longer valid and have to go for one more.
async fn make_room(api: &Api, identity: IdentityId, now: Timestamp) -> Answer<Vec<Token>> {
    let prefix = schema::tokens_of(identity);
    let Some(too_many) = (api.store.count(prefix.as_str()).await? + 1).checked_sub(TOKENS) else {
        return Ok(Vec::new());
    };
    let tokens = of(&*api.store, identity).await?.into_iter().map(|read| read.record);
    let over: Vec<_> = tokens.filter(|token| !token.is_valid(now)).take(too_many).collect();
    if over.len() < too_many {
        return Err(ApiError::new(
            Code::QuotaExceeded,
            format!("an identity has at most {TOKENS} valid tokens: revoke one that is not needed"),
        ));
    }
    Ok(over)
}

async fn again(api: &Api, caller: &Caller, id: &str) -> Answer<Made<wire::Token>> {
    let token = find(api, caller, id).await.map_err(idempotency::gone("token"))?;
    let mut answer = view(&*api.store, &token.record).await?;
    answer.detail = Some(SECRET_NOT_REPEATED.to_owned());
    Ok(Made::Before(answer))
}

/// Revoke a token
///
/// It stops working at once, in streams that are open too. Revoking it again is no error.
#[utoipa::path(delete, path = "/v1/tokens/{token}", operation_id = "revoke_token", tag = "identities",
    params(("token" = String, Path, description = "Id")), responses((status = 204, description = "Revoked")))]
pub(crate) async fn revoke(State(api): State<Shared>, caller: Caller, Named(given): Named) -> Answer<StatusCode> {
    for _ in 0..ATTEMPTS {
        let now = Timestamp::now();
        let read = find(&api, &caller, &given).await?;
        if read.record.revoked_at.is_some() {
            return Ok(StatusCode::NO_CONTENT);
        }
        let mut token = read.record.clone();
        token.revoked_at = Some(now);
        let txn = TxnBuilder::new().unchanged(&read).put(&schema::token(&token.hash), &token)?;
        let identity = api.store.read(&schema::identity(token.identity)).await?;
        let news = identity.map(|identity| news(&identity.record, &token, EventKind::TokenRevoked, "was revoked"));
        let deed = Deed { caller: &caller, now, action: "token.revoke" };
        if let TxnOutcome::Committed(_) = deed.record(txn, token.id, &(), news)?.commit(&*api.store).await? {
            api.credentials.forget_token(&token.hash);
            return Ok(StatusCode::NO_CONTENT);
        }
    }
    Err(contended())
}

pub(crate) async fn find(api: &Api, caller: &Caller, given: &str) -> Answer<Versioned<Token>> {
    let none = || ApiError::not_found("token", given, "/v1/identities/{identity}/tokens");
    let id = given.parse::<TokenId>().map_err(|_| none())?;
    let hash = api.store.read(&schema::token_hash(caller.account, id)).await?.ok_or_else(none)?;
    api.store.read(&schema::token(&hash.record)).await?.ok_or_else(none)
}

/// Every token of an identity, the oldest first.
pub(crate) async fn of(store: &dyn Store, identity: IdentityId) -> Result<Vec<Versioned<Token>>, StoreError> {
    let (hashes, _) = store.list_all(&schema::tokens_of(identity)).await?;
    let mut tokens = Vec::with_capacity(hashes.len());
    for hash in hashes {
        tokens.extend(store.read(&schema::token(&hash.record)).await?);
    }
    Ok(tokens)
}

/// Everything that is stored about a token goes.
pub(crate) fn remove(txn: TxnBuilder, token: &Token) -> TxnBuilder {
    txn.delete(&schema::token(&token.hash))
        .delete(&schema::token_hash(token.account, token.id))
        .delete(&schema::token_of(token.identity, token.id))
        .delete(&schema::token_used(token.id))
}

/// Whether it has not been valid for so long that it is not listed any more.
pub(crate) fn is_forgotten(token: &Token, now: Timestamp) -> bool {
    token.end().saturating_add(KEPT).is_ok_and(|until| until <= now)
}

fn news(identity: &Identity, token: &Token, kind: EventKind, what: &str) -> News {
    let message = format!("token {} of identity {} {what}", token.id, identities::called(identity));
    News { kind, account: token.account, network: None, machine: None, message }
}

async fn view(store: &dyn Store, token: &Token) -> Result<wire::Token, StoreError> {
    let used = store.read(&schema::token_used(token.id)).await?;
    Ok(wire::Token {
        id: token.id.to_string(),
        identity: token.identity.to_string(),
        created_at: token.created_at,
        expires_at: token.expires_at,
        last_used_at: used.map(|used| used.record),
        revoked_at: token.revoked_at,
        token: None,
        detail: None,
    })
}
