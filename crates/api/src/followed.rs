//! Records that requests need, remembered for as long as a watch keeps them true.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use warren_store::schema::{Key, Prefix};
use warren_store::{Store, StoreError, TxnBuilder};

/// How many records one cache remembers.
const REMEMBERED: usize = 10_000;
/// How often the last use of a secret is written at most.
const USED_EVERY_SECONDS: i64 = 60;
/// How long something that no watch keeps true is believed by whoever holds on to it.
const BELIEVED: Duration = Duration::from_secs(1);

/// What was read, and whether it has changed since.
#[derive(Debug)]
pub(crate) struct Known<V> {
    pub value: V,
    /// Cancelled by a change; `None` where no watch would tell of one.
    changed: Option<CancellationToken>,
    /// When its use was last written, in seconds since 1970.
    used: AtomicI64,
}

impl<V> Known<V> {
    fn new(value: V, changed: Option<CancellationToken>) -> Arc<Self> {
        Arc::new(Self { value, changed, used: AtomicI64::new(0) })
    }

    /// Whoever holds on to it has to look again.
    fn tell(&self) {
        if let Some(changed) = &self.changed {
            changed.cancel();
        }
    }

    pub fn is_stale(&self) -> bool {
        self.changed.as_ref().is_none_or(CancellationToken::is_cancelled)
    }

    /// Until it may be out of date.
    pub async fn stale(&self) {
        match &self.changed {
            Some(changed) => changed.cancelled().await,
            None => tokio::time::sleep(BELIEVED).await,
        }
    }

    /// Writes that it was used, off the request's path and at most once a minute, as long as `of` is there.
    pub fn note_use<T>(&self, store: &Arc<dyn Store>, of: Key<T>, key: Key<Timestamp>, now: Timestamp)
    where
        T: Send + 'static,
    {
        let (before, second) = (self.used.load(Ordering::Relaxed), now.as_second());
        if second - before < USED_EVERY_SECONDS
            || self.used.compare_exchange(before, second, Ordering::Relaxed, Ordering::Relaxed).is_err()
        {
            return;
        }
        let store = store.clone();
        tokio::spawn(async move {
            let written = match TxnBuilder::new().exists(&of).put(&key, &now) {
                Ok(txn) => txn.commit(&*store).await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = written {
                let (key, error) = (key.as_str(), &error as &dyn std::error::Error);
                tracing::warn!(key, error, "the last use was not written");
            }
        });
    }
}

/// Records by name. Holds nothing while no watch keeps it true.
pub(crate) struct Followed<V>(RwLock<Inner<V>>);

struct Inner<V> {
    followed: bool,
    /// Counts invalidations, so that a read that was overtaken by one is not remembered.
    generation: u64,
    known: HashMap<String, Arc<Known<V>>>,
}

impl<V> Default for Followed<V> {
    fn default() -> Self {
        Self(RwLock::new(Inner { followed: false, generation: 0, known: HashMap::new() }))
    }
}

impl<V> Followed<V> {
    /// What has this name: as remembered, else as read now.
    pub async fn find(
        &self,
        name: &str,
        read: impl Future<Output = Result<Option<V>, StoreError>>,
    ) -> Result<Option<Arc<Known<V>>>, StoreError> {
        let generation = {
            let inner = self.0.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = inner.known.get(name) {
                return Ok(Some(known.clone()));
            }
            inner.generation
        };
        let Some(value) = read.await? else { return Ok(None) };
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if !inner.followed || inner.generation != generation {
            return Ok(Some(Known::new(value, None)));
        }
        // Somebody else read it at the same time; whoever holds on to that is told of a change.
        if let Some(known) = inner.known.get(name) {
            return Ok(Some(known.clone()));
        }
        if inner.known.len() >= REMEMBERED
            && let Some(other) = inner.known.keys().next().cloned()
        {
            inner.forget(&other);
        }
        let known = Known::new(value, Some(CancellationToken::new()));
        inner.known.insert(name.to_owned(), known.clone());
        Ok(Some(known))
    }

    pub fn forget(&self, name: &str) {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        inner.generation += 1;
        inner.forget(name);
    }

    fn forget_all(&self, followed: bool) {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        inner.generation += 1;
        inner.followed = followed;
        inner.known.drain().for_each(|(_, known)| known.tell());
    }
}

impl<V> Inner<V> {
    fn forget(&mut self, name: &str) {
        if let Some(known) = self.known.remove(name) {
            known.tell();
        }
    }
}

/// Forgets every record that changes below the prefix, for as long as it is polled. `name` reads a record's name from
/// its key without the prefix.
pub(crate) async fn follow<V, T>(
    cache: Arc<Followed<V>>,
    store: Arc<dyn Store>,
    prefix: Prefix<T>,
    name: fn(&str) -> &str,
) {
    loop {
        let error = follow_once(&cache, &*store, prefix.as_str(), name).await;
        cache.forget_all(false);
        if !matches!(error, StoreError::Closed) {
            let (prefix, error) = (prefix.as_str(), &error as &dyn std::error::Error);
            tracing::warn!(prefix, error, "what requests need is read from the store for now");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn follow_once<V>(cache: &Followed<V>, store: &dyn Store, prefix: &str, name: fn(&str) -> &str) -> StoreError {
    let opened = match store.revision().await {
        Ok(revision) => store.watch(prefix, revision + 1).await,
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
                    cache.forget(name(change.key.strip_prefix(prefix).unwrap_or(&change.key)));
                }
            }
            Err(error) => return error,
        }
    }
}
