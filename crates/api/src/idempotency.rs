//! What every route that creates does alike: `Idempotency-Key`, by which the same request twice creates once, and another
//! try when something else changed what the first one stood on.

use std::future::Future;

use axum::extract::FromRequestParts;
use http::request::Parts;
use jiff::{SignedDuration, Timestamp};
use warren_model::Code;
use warren_model::record::IdempotencyRecord;
use warren_store::schema::{self, Key};
use warren_store::{Revision, TxnBuilder, TxnOutcome, Typed, Versioned};

use crate::caller::Caller;
use crate::error::{Answer, ApiError};
use crate::mutation::{ATTEMPTS, contended};
use crate::state::{Api, Shared};

/// How long a key is remembered.
const REMEMBERED: SignedDuration = SignedDuration::from_hours(24);
/// Names a request, so that it creates once.
pub(crate) const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Set on an answer that was given before.
pub(crate) const REPLAYED: &str = "idempotency-replayed";

/// The header of a request that creates, and what it was sent to.
pub(crate) struct Idempotency {
    key: Option<String>,
    place: String,
}

/// What is known of a request's idempotency key.
pub(crate) enum Seen {
    /// Nothing: go on.
    New(Claim),
    /// It created this.
    Before(String),
}

/// What a try at creating came to, before it is written.
pub(crate) struct Draft<T> {
    /// The id that the thing gets.
    pub id: String,
    pub thing: T,
    /// Writes it, with the audit entry and the events, and compares what it stands on.
    pub txn: TxnBuilder,
}

/// What became of a request that creates.
pub(crate) enum Created<T> {
    Now {
        thing: T,
        /// The request's idempotency key, to be given back if the thing is.
        claim: Claim,
        /// Of the transaction that wrote it.
        revision: Revision,
    },
    /// The same request created the thing with this id before.
    Before(String),
}

/// What makes the transaction fail if the same key is used at the same time.
pub(crate) struct Claim(Option<Pending>);

struct Pending {
    key: Key<IdempotencyRecord>,
    expired: Option<Versioned<IdempotencyRecord>>,
    fingerprint: String,
    now: Timestamp,
}

impl FromRequestParts<Shared> for Idempotency {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Answer<Self> {
        let mut values = parts.headers.get_all(IDEMPOTENCY_KEY).iter();
        let key = match (values.next(), values.next()) {
            (None, _) => None,
            (Some(value), None) => Some(
                value
                    .to_str()
                    .ok()
                    .filter(|text| (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()))
                    .ok_or_else(invalid)?
                    .to_owned(),
            ),
            (Some(_), Some(_)) => return Err(invalid()),
        };
        Ok(Self { key, place: format!("{} {}", parts.method, parts.uri.path()) })
    }
}

fn invalid() -> ApiError {
    ApiError::new(
        Code::IdempotencyKeyInvalid,
        "send one Idempotency-Key of 1 to 255 visible ASCII characters, such as a UUID",
    )
}

impl Idempotency {
    /// Of a request that has no key.
    pub fn none() -> Self {
        Self { key: None, place: String::new() }
    }

    /// Creates something once, while no other request of the account creates anything. `draft` chooses what it is to be,
    /// from what is in the store at that time; it is called again when another change came first. Nothing is written
    /// where it refuses.
    pub async fn create<T, F>(
        &self,
        api: &Api,
        caller: &Caller,
        body: &[u8],
        draft: impl Fn(Timestamp) -> F,
    ) -> Answer<Created<T>>
    where
        F: Future<Output = Answer<Draft<T>>>,
    {
        let _turn = api.turns.take(caller.account).await;
        for _ in 0..ATTEMPTS {
            let now = Timestamp::now();
            let claim = match self.look(api, caller, body, now).await? {
                Seen::New(claim) => claim,
                Seen::Before(id) => return Ok(Created::Before(id)),
            };
            let Draft { id, thing, txn } = draft(now).await?;
            if let TxnOutcome::Committed(revision) = claim.put(txn, id)?.commit(&*api.store).await? {
                return Ok(Created::Now { thing, claim, revision });
            }
        }
        Err(contended())
    }

    pub async fn look(&self, api: &Api, caller: &Caller, body: &[u8], now: Timestamp) -> Answer<Seen> {
        let Some(text) = &self.key else { return Ok(Seen::New(Claim(None))) };
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.place.as_bytes()).update(&[0]).update(body);
        let fingerprint = hasher.finalize().to_hex().to_string();
        let key = schema::idempotency(caller.account, text);
        let known = api.store.read(&key).await?;
        match known {
            Some(known) if now < known.record.expires_at => {
                if known.record.fingerprint == fingerprint {
                    Ok(Seen::Before(known.record.created))
                } else {
                    Err(ApiError::new(
                        Code::IdempotencyKeyReused,
                        "this Idempotency-Key was sent with another request: choose a new one for this request",
                    ))
                }
            }
            expired => Ok(Seen::New(Claim(Some(Pending { key, expired, fingerprint, now })))),
        }
    }
}

impl Claim {
    /// Adds the record to the transaction that creates.
    fn put(&self, txn: TxnBuilder, created: String) -> Answer<TxnBuilder> {
        let Some(pending) = &self.0 else { return Ok(txn) };
        let record = IdempotencyRecord {
            fingerprint: pending.fingerprint.clone(),
            created,
            expires_at: pending.now.saturating_add(REMEMBERED).map_err(|_| ApiError::internal())?,
        };
        Ok(txn.same(&pending.key, pending.expired.as_ref()).put(&pending.key, &record)?)
    }

    /// Takes the record back, because what was created is being removed again.
    pub fn undo(&self, txn: TxnBuilder) -> TxnBuilder {
        match &self.0 {
            Some(pending) => txn.delete(&pending.key),
            None => txn,
        }
    }
}

/// What to say when that which a key created is not found any more. Every other error stays: who takes it for this one
/// creates a second thing.
pub(crate) fn gone(what: &'static str) -> impl Fn(ApiError) -> ApiError {
    move |error| match error.problem.code {
        Code::NotFound => ApiError::new(
            Code::NotFound,
            format!("the {what} that this Idempotency-Key created is gone: choose a new key to create another"),
        ),
        _ => error,
    }
}
