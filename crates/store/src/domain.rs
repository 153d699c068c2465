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
        .put(&schema::domain_tree(&domain.host), &domain.account)?
        .put(&schema::domain_of(domain.account, &domain.host), &())?
        .put(&schema::domain_at(domain.machine, &domain.host), &())
}

/// Removes a domain. The transaction fails where it has changed since it was read.
pub fn remove(txn: TxnBuilder, read: &Versioned<Domain>) -> TxnBuilder {
    let domain = &read.record;
    txn.unchanged(read)
        .delete(&schema::domain(&domain.host))
        .delete(&schema::domain_tree(&domain.host))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SqliteStore;
    use warren_model::AccountId;
    use warren_model::policy::HostName;

    #[tokio::test]
    async fn below_a_name_are_those_with_more_labels_in_front() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
        let host = |text: &str| text.parse::<HostName>().unwrap();
        let account = AccountId::from_ulid(ulid::Ulid::nil());
        let mut txn = TxnBuilder::new();
        for name in ["app.a.example", "x.app.a.example", "z.y.app.a.example", "xapp.a.example", "app.b.example"] {
            txn = txn.put(&schema::domain_tree(&host(name)), &account).unwrap();
        }
        txn.commit(&store).await.unwrap();
        for (name, below) in [("app.a.example", 2), ("y.app.a.example", 1), ("a.example", 4), ("pp.a.example", 0)] {
            assert_eq!(store.count(schema::domains_below(&host(name)).as_str()).await.unwrap(), below, "{name}");
        }
    }
}
