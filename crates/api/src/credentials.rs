//! Who a secret belongs to, and what a token's identity may do. All of it is answered from memory.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use warren_model::IdentityId;
use warren_model::record::{ApiKey, Grant, Token};
use warren_store::schema::{Key, Record};
use warren_store::{Store, StoreError, Typed, schema};

use crate::followed::{Followed, Known, follow};
use crate::secret;

/// How long a stream goes on without a look at the clock.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// A secret that is known, valid when it was looked up.
#[derive(Debug, Clone)]
pub(crate) enum Credential {
    Key(Arc<Known<ApiKey>>),
    Token { token: Arc<Known<Token>>, grants: Arc<Known<Vec<Grant>>> },
}

/// Everything that secrets are checked against.
#[derive(Default)]
pub(crate) struct Credentials {
    keys: Arc<Followed<ApiKey>>,
    tokens: Arc<Followed<Token>>,
    grants: Arc<Followed<Vec<Grant>>>,
}

impl Credentials {
    /// Keeps what is remembered true until it is cancelled.
    pub fn follow(&self, store: &Arc<dyn Store>, until: &CancellationToken) {
        let whole: fn(&str) -> &str = |rest| rest;
        let first: fn(&str) -> &str = |rest| rest.split('/').next().unwrap_or(rest);
        tokio::spawn(until.clone().run_until_cancelled_owned(follow(
            self.keys.clone(),
            store.clone(),
            schema::api_keys(),
            whole,
        )));
        tokio::spawn(until.clone().run_until_cancelled_owned(follow(
            self.tokens.clone(),
            store.clone(),
            schema::tokens(),
            whole,
        )));
        tokio::spawn(until.clone().run_until_cancelled_owned(follow(
            self.grants.clone(),
            store.clone(),
            schema::grants(),
            first,
        )));
    }

    /// Whose secret this is; `None` for one that is not known or not valid.
    pub async fn find(
        &self,
        store: &dyn Store,
        secret: &str,
        now: Timestamp,
    ) -> Result<Option<Credential>, StoreError> {
        self.find_hash(store, secret.starts_with(secret::TOKEN), &secret::hash(secret), now).await
    }

    /// The same credential as it is now; `None` once it is not valid.
    pub async fn renew(
        &self,
        store: &dyn Store,
        old: &Credential,
        now: Timestamp,
    ) -> Result<Option<Credential>, StoreError> {
        match old {
            Credential::Key(key) => self.find_hash(store, false, &key.value.hash, now).await,
            Credential::Token { token, .. } => self.find_hash(store, true, &token.value.hash, now).await,
        }
    }

    async fn find_hash(
        &self,
        store: &dyn Store,
        is_token: bool,
        hash: &str,
        now: Timestamp,
    ) -> Result<Option<Credential>, StoreError> {
        if !is_token {
            let found = self.keys.find(hash, record(store, schema::api_key(hash))).await?;
            return Ok(found.filter(|key| key.value.is_valid(now)).map(Credential::Key));
        }
        let found = self.tokens.find(hash, record(store, schema::token(hash))).await?;
        let Some(token) = found.filter(|token| token.value.is_valid(now)) else { return Ok(None) };
        let grants = self.grants(store, token.value.identity).await?;
        Ok(Some(Credential::Token { token, grants }))
    }

    async fn grants(&self, store: &dyn Store, identity: IdentityId) -> Result<Arc<Known<Vec<Grant>>>, StoreError> {
        let read = async {
            let (grants, _) = store.list_all(&schema::grants_of(identity)).await?;
            Ok(Some(grants.into_iter().map(|read| read.record).collect()))
        };
        let known = self.grants.find(&identity.to_string(), read).await?;
        // Reading a list always gives one.
        known.ok_or(StoreError::Closed)
    }

    pub fn forget_key(&self, hash: &str) {
        self.keys.forget(hash);
    }

    pub fn forget_token(&self, hash: &str) {
        self.tokens.forget(hash);
    }

    pub fn forget_grants(&self, identity: IdentityId) {
        self.grants.forget(&identity.to_string());
    }
}

impl Credential {
    /// Writes that it was used, at most once a minute.
    pub fn note_use(&self, store: &Arc<dyn Store>, now: Timestamp) {
        match self {
            Self::Key(key) => {
                let ApiKey { hash, id, .. } = &key.value;
                key.note_use(store, schema::api_key(hash), schema::api_key_used(*id), now);
            }
            Self::Token { token, .. } => {
                let Token { hash, id, .. } = &token.value;
                token.note_use(store, schema::token(hash), schema::token_used(*id), now);
            }
        }
    }

    /// Whether it has to be looked up again.
    pub fn is_stale(&self, now: Timestamp) -> bool {
        match self {
            Self::Key(key) => key.is_stale() || !key.value.is_valid(now),
            Self::Token { token, grants } => token.is_stale() || grants.is_stale() || !token.value.is_valid(now),
        }
    }

    /// Until it has to be looked up again.
    pub async fn stale(&self) {
        match self {
            Self::Key(key) => tokio::select! {
                () = key.stale() => {}
                () = until(key.value.expires_at) => {}
            },
            Self::Token { token, grants } => tokio::select! {
                () = token.stale() => {}
                () = grants.stale() => {}
                () = until(Some(token.value.expires_at)) => {}
            },
        }
    }
}

async fn until(instant: Option<Timestamp>) {
    match instant {
        None => std::future::pending().await,
        Some(instant) => {
            // The clock may be set, or the host have slept: to look too early costs nothing.
            let left = instant.duration_since(Timestamp::now()).try_into().unwrap_or_default();
            tokio::time::sleep(LONGEST_SLEEP.min(left)).await;
        }
    }
}

async fn record<T: Record>(store: &dyn Store, key: Key<T>) -> Result<Option<T>, StoreError> {
    Ok(store.read(&key).await?.map(|read| read.record))
}
