//! How many requests may be under way, in total and for one account, so that none can keep the others out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use warren_model::AccountId;

/// One account holds at most one in so many places.
const SHARE: usize = 4;

/// The places of one class of requests.
#[derive(Debug)]
pub(crate) struct Places {
    free: Arc<Semaphore>,
    each: usize,
    held: Mutex<HashMap<AccountId, usize>>,
}

/// A place that is taken; it is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    account: Option<AccountId>,
    _permit: OwnedSemaphorePermit,
}

impl Places {
    pub fn new(total: usize) -> Arc<Self> {
        Arc::new(Self { free: Arc::new(Semaphore::new(total)), each: total.div_ceil(SHARE), held: Mutex::default() })
    }

    /// A place for a request of which nobody knows yet whose it is; `None` when all are taken.
    pub fn take(self: &Arc<Self>) -> Option<Place> {
        let permit = self.free.clone().try_acquire_owned().ok()?;
        Some(Place { places: self.clone(), account: None, _permit: permit })
    }
}

impl Place {
    /// Counts the place for an account; `false` when that has as many as one may have.
    pub fn assign(&mut self, account: AccountId) -> bool {
        let mut held = self.places.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.get(&account).copied().unwrap_or(0);
        if self.account.is_none() && count < self.places.each {
            held.insert(account, count + 1);
            self.account = Some(account);
        }
        self.account == Some(account)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(account) = self.account else { return };
        let mut held = self.places.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&account) {
            *count -= 1;
            if *count == 0 {
                held.remove(&account);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ulid::Ulid;

    #[test]
    fn one_account_cannot_take_all_places_and_gets_its_own_back() {
        let (loud, quiet) =
            (AccountId::from_ulid(Ulid::from_parts(1, 1)), AccountId::from_ulid(Ulid::from_parts(1, 2)));
        let places = Places::new(8);
        let of = |account| places.take().and_then(|mut place| place.assign(account).then_some(place));
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
}
