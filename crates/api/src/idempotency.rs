//! `Idempotency-Key`: the same request twice creates once.

use axum::extract::FromRequestParts;
use http::request::Parts;
use jiff::{SignedDuration, Timestamp};
use warren_model::Code;
use warren_model::record::IdempotencyRecord;
use warren_store::schema::{self, Key};
use warren_store::{TxnBuilder, Typed, Versioned};

use crate::caller::Caller;
use crate::error::{Answer, ApiError};
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
    /// Nothing: go on, and put this into the transaction.
    New(Claim),
    /// It created this.
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
    pub fn put(&self, txn: TxnBuilder, created: impl ToString) -> Answer<TxnBuilder> {
        let Some(pending) = &self.0 else { return Ok(txn) };
        let record = IdempotencyRecord {
            fingerprint: pending.fingerprint.clone(),
            created: created.to_string(),
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

/// What a key created is gone.
pub(crate) fn gone(what: &str) -> ApiError {
    ApiError::new(
        Code::NotFound,
        format!("the {what} that this Idempotency-Key created is gone: choose a new key to create another"),
    )
}
