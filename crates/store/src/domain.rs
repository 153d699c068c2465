//! Which records a domain has: written and removed together, whoever does it.

use warren_model::MachineId;
use warren_model::domain::Domain;

use crate::{Store, StoreError, TxnBuilder, Typed, Versioned, schema};

/// Writes a domain, new or changed.
///
/// # Errors
/// When a record cannot be written.
pub fn put(txn: TxnBuilder, domain: &Domain) -> Result<TxnBuilder, StoreError> {
    txn.put(&schema::domain(&domain.host), domain)?
        .put(&schema::domain_of(domain.account, &domain.host), &())?
        .put(&schema::domain_at(domain.machine, &domain.host), &())
}

/// Removes a domain. The transaction fails where it has changed since it was read.
pub fn remove(txn: TxnBuilder, read: &Versioned<Domain>) -> TxnBuilder {
    let domain = &read.record;
    txn.unchanged(read)
        .delete(&schema::domain(&domain.host))
        .delete(&schema::domain_of(domain.account, &domain.host))
        .delete(&schema::domain_at(domain.machine, &domain.host))
}

/// Every domain that leads to a machine. None is added while the machine's record stays as it is, for whoever maps one
/// writes that record again.
///
/// # Errors
/// When the store fails.
pub async fn at<S: Store + ?Sized>(store: &S, machine: MachineId) -> Result<Vec<Versioned<Domain>>, StoreError> {
    let (marks, _) = store.list_all(&schema::domains_at(machine)).await?;
    let mut domains = Vec::with_capacity(marks.len());
    for host in marks.iter().filter_map(|mark| schema::host_in(&mark.key)) {
        domains.extend(store.read(&schema::domain(&host)).await?.filter(|read| read.record.machine == machine));
    }
    Ok(domains)
}
