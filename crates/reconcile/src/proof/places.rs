//! Who runs an audit and who waits for one: of each account one, and of all together a bounded number.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use warren_model::access::AccessError;
use warren_model::{AccountId, Code};

use crate::world::lock;

/// The most that run and wait, of all accounts together.
const MOST: usize = 32;

#[derive(Debug, Default)]
pub(crate) struct Places {
    taken: Arc<Mutex<BTreeSet<AccountId>>>,
}

/// Given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    taken: Arc<Mutex<BTreeSet<AccountId>>>,
    account: AccountId,
}

impl Places {
    /// Takes the account's place.
    ///
    /// # Errors
    /// [`Code::AuditRunning`] when it is taken, and [`Code::ServerBusy`] when too many are.
    pub fn take(&self, account: AccountId) -> Result<Place, AccessError> {
        let mut taken = lock(&self.taken);
        if taken.contains(&account) {
            let detail = "an audit of this account runs or waits for its turn: wait until it has ended";
            return Err(AccessError::new(Code::AuditRunning, detail));
        }
        if taken.len() == MOST {
            let detail = format!("{MOST} audits of other accounts run and wait: try again in a minute");
            return Err(AccessError::new(Code::ServerBusy, detail));
        }
        taken.insert(account);
        Ok(Place { taken: Arc::clone(&self.taken), account })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.taken).remove(&self.account);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(n: u64) -> AccountId {
        AccountId::from_ulid(ulid::Ulid::from_parts(n, 1))
    }

    #[test]
    fn an_account_has_one_place_until_its_audit_has_ended() {
        let places = Places::default();
        let first = places.take(account(1)).unwrap();
        assert_eq!(places.take(account(1)).unwrap_err().code, Code::AuditRunning);
        let _other = places.take(account(2)).unwrap();
        drop(first);
        places.take(account(1)).unwrap();
    }

    #[test]
    fn all_accounts_together_have_so_many_places() {
        let places = Places::default();
        let mut taken: Vec<Place> = (0..MOST as u64).map(|n| places.take(account(n)).unwrap()).collect();
        assert_eq!(places.take(account(99)).unwrap_err().code, Code::ServerBusy);
        taken.pop();
        places.take(account(99)).unwrap();
    }
}
