//! Which key a request came with, without a read of the store for each.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use warren_model::record::ApiKey;
use warren_store::{Store, StoreError, TxnBuilder, Typed, schema};

/// How many keys are remembered.
const REMEMBERED: usize = 10_000;
/// How often the last use of a key is written at most.
const USED_EVERY_SECONDS: i64 = 60;

/// A key that is known, and when its use was last written.
pub(crate) struct KnownKey {
    pub key: ApiKey,
    /// Seconds since 1970.
    used: AtomicI64,
}

impl KnownKey {
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.key.revoked_at.is_none() && self.key.expires_at.is_none_or(|until| now < until)
    }

    /// Writes that the key was used, off the request's path and at most once a minute.
    pub fn note_use(&self, store: &Arc<dyn Store>, now: Timestamp) {
        let (before, second) = (self.used.load(Ordering::Relaxed), now.as_second());
        if second - before < USED_EVERY_SECONDS
            || self.used.compare_exchange(before, second, Ordering::Relaxed, Ordering::Relaxed).is_err()
        {
            return;
        }
        let (store, id) = (store.clone(), self.key.id);
        tokio::spawn(async move {
            let written = match TxnBuilder::new().put(&schema::api_key_used(id), &now) {
                Ok(txn) => txn.commit(&*store).await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = written {
                tracing::warn!(key = %id, error = &error as &dyn std::error::Error, "the last use was not written");
            }
        });
    }
}

/// Keys by the hash of their secret. Holds nothing while no watch keeps it true.
#[derive(Default)]
pub(crate) struct KeyCache(RwLock<Inner>);

#[derive(Default)]
struct Inner {
    followed: bool,
    /// Counts invalidations, so that a read that was overtaken by one is not remembered.
    generation: u64,
    keys: HashMap<String, Arc<KnownKey>>,
}

impl KeyCache {
    /// The key with this hash, valid or not.
    pub async fn find(&self, store: &dyn Store, hash: &str) -> Result<Option<Arc<KnownKey>>, StoreError> {
        let generation = {
            let inner = self.0.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = inner.keys.get(hash) {
                return Ok(Some(known.clone()));
            }
            inner.generation
        };
        let Some(read) = store.read(&schema::api_key(hash)).await? else { return Ok(None) };
        let known = Arc::new(KnownKey { key: read.record, used: AtomicI64::new(0) });
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if inner.followed && inner.generation == generation {
            if inner.keys.len() >= REMEMBERED {
                inner.keys.clear();
            }
            inner.keys.insert(hash.to_owned(), known.clone());
        }
        Ok(Some(known))
    }

    pub fn forget(&self, hash: &str) {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        inner.generation += 1;
        inner.keys.remove(hash);
    }

    fn forget_all(&self, followed: bool) {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        inner.generation += 1;
        inner.keys.clear();
        inner.followed = followed;
    }
}

/// Forgets every key that changes in the store, for as long as it is polled.
pub(crate) async fn follow(cache: Arc<KeyCache>, store: Arc<dyn Store>) {
    loop {
        let error = follow_once(&cache, &*store).await;
        cache.forget_all(false);
        if !matches!(error, StoreError::Closed) {
            tracing::warn!(error = &error as &dyn std::error::Error, "keys are read from the store for now");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn follow_once(cache: &KeyCache, store: &dyn Store) -> StoreError {
    let keys = schema::api_keys();
    let opened = match store.revision().await {
        Ok(revision) => store.watch(keys.as_str(), revision + 1).await,
        Err(error) => Err(error),
    };
    let mut watch = match opened {
        Ok(watch) => watch,
        Err(error) => return error,
    };
    cache.forget_all(true);
    loop {
        match watch.next().await {
            Ok(changes) => {
                for change in changes {
                    cache.forget(change.key.strip_prefix(keys.as_str()).unwrap_or(&change.key));
                }
            }
            Err(error) => return error,
        }
    }
}
