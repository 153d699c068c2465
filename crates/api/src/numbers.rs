//! Which number a new network gets.

use std::collections::BTreeSet;

use warren_model::{Code, NetworkNumber};
use warren_store::{TxnBuilder, Typed, Versioned, schema};

use crate::error::{Answer, ApiError};
use crate::state::Api;

/// A number that was free, and what makes the transaction fail if it is no longer.
pub(crate) struct Chosen {
    pub number: NetworkNumber,
    pointer: Option<Versioned<NetworkNumber>>,
}

/// Numbers rise, and only when the last one has been given do they begin again with the lowest free: member numbers
/// begin again with the network, so a number should rest as long as it can.
pub(crate) async fn choose(api: &Api) -> Answer<Chosen> {
    let pointer = api.store.read(&schema::next_network()).await?;
    let start = pointer.as_ref().map_or(NetworkNumber::FIRST, |pointer| pointer.record);
    if api.store.read(&schema::network_number(start)).await?.is_none() {
        return Ok(Chosen { number: start, pointer });
    }
    let (taken, _) = api.store.list_all(&schema::network_numbers()).await?;
    let taken = taken.iter().filter_map(|read| read.key.rsplit('/').next()?.parse().ok()).collect();
    let number =
        lowest_free(start.get(), &taken).and_then(|number| NetworkNumber::new(number).ok()).ok_or_else(|| {
            ApiError::new(
                Code::NetworksExhausted,
                "this installation has 65,535 networks: delete one that is not needed",
            )
        })?;
    Ok(Chosen { number, pointer })
}

fn lowest_free(start: u16, taken: &BTreeSet<u16>) -> Option<u16> {
    (start..=u16::MAX).chain(1..start).find(|number| !taken.contains(number))
}

impl Chosen {
    /// Moves the pointer on. Whoever puts the network also compares its number's key absent.
    pub fn put(&self, txn: TxnBuilder) -> Answer<TxnBuilder> {
        let next = self.number.next().unwrap_or(NetworkNumber::FIRST);
        let key = schema::next_network();
        Ok(txn.same(&key, self.pointer.as_ref()).put(&key, &next)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_rise_and_wrap_only_when_exhausted() {
        assert_eq!(lowest_free(5, &BTreeSet::from([5, 6])), Some(7));
        assert_eq!(lowest_free(u16::MAX, &BTreeSet::from([1, u16::MAX])), Some(2));
        assert_eq!(lowest_free(9, &(1..=u16::MAX).collect()), None);
        assert_eq!(lowest_free(9, &(1..=u16::MAX).filter(|n| *n != 4).collect()), Some(4));
    }
}
