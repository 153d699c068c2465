//! How many requests may be under way, in total, for one account and for one identity, so that none can keep the others
//! out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use warren_model::{AccountId, IdentityId};

/// One account holds at most one in so many places, and one identity.
const SHARE: usize = 4;
const IDENTITY_SHARE: usize = 16;

/// Whose a place is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Holder {
    Account(AccountId),
    Identity(IdentityId),
}

/// The places of one class of requests.
#[derive(Debug)]
pub(crate) struct Places {
    free: Arc<Semaphore>,
    total: usize,
    held: Mutex<HashMap<Holder, usize>>,
}

/// A place that is taken; it is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    holders: Vec<Holder>,
    _permit: OwnedSemaphorePermit,
}

impl Places {
    pub fn new(total: usize) -> Arc<Self> {
        Arc::new(Self { free: Arc::new(Semaphore::new(total)), total, held: Mutex::default() })
    }

    /// A place for a request of which nobody knows yet whose it is; `None` when all are taken.
    pub fn take(self: &Arc<Self>) -> Option<Place> {
        let permit = self.free.clone().try_acquire_owned().ok()?;
        Some(Place { places: self.clone(), holders: Vec::new(), _permit: permit })
    }
}

impl Holder {
    fn most(self, total: usize) -> usize {
        match self {
            Self::Account(_) => total.div_ceil(SHARE),
            Self::Identity(_) => total.div_ceil(IDENTITY_SHARE),
        }
    }
}

impl Place {
    /// Counts the place for a holder, beside those that it is counted for already; `false` when that has as many as one
    /// may have.
    pub fn assign(&mut self, holder: Holder) -> bool {
        let mut held = self.places.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.entry(holder).or_default();
        let free = *count < holder.most(self.places.total);
        if free {
            *count += 1;
            self.holders.push(holder);
        }
        free
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.places.held.lock().unwrap_or_else(PoisonError::into_inner);
        for holder in &self.holders {
            if let Some(count) = held.get_mut(holder) {
                *count -= 1;
            }
        }
        held.retain(|_, count| *count > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ulid::Ulid;

    #[test]
    fn one_account_cannot_take_all_places_and_gets_its_own_back() {
        let account = |n| Holder::Account(AccountId::from_ulid(Ulid::from_parts(1, n)));
        let (loud, quiet) = (account(1), account(2));
        let places = Places::new(8);
        let of = |holder| places.take().and_then(|mut place| place.assign(holder).then_some(place));
        let held: Vec<_> = std::iter::from_fn(|| of(loud)).collect();
        assert_eq!(held.len(), 2);
        let other = of(quiet).unwrap();
        drop(held);
        assert!(of(loud).is_some());
        drop(other);
        assert!(places.held.lock().unwrap().is_empty());
        // Whose it is does not count for those that nobody has claimed.
        let unclaimed: Vec<_> = std::iter::from_fn(|| places.take()).collect();
        assert_eq!(unclaimed.len(), 8);
    }

    #[test]
    fn an_identity_leaves_places_to_its_account() {
        let account = Holder::Account(AccountId::from_ulid(Ulid::from_parts(1, 1)));
        let identity = Holder::Identity(IdentityId::from_ulid(Ulid::from_parts(1, 1)));
        let places = Places::new(64);
        let by_identity = || {
            places.take().and_then(|mut place| {
                [account, identity].map(|of| place.assign(of)).iter().all(|ok| *ok).then_some(place)
            })
        };
        let held: Vec<_> = std::iter::from_fn(by_identity).collect();
        assert_eq!(held.len(), 4);
        assert!(places.take().unwrap().assign(account));
    }
}
