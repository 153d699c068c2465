//! Which records a domain has: written and removed together, whoever does it.
//!
//! Names below the preview suffix belong together by the label directly below it: `domain-label/{label}` names the account
//! that has all of them, is written with every name that is taken, and goes with the last one.

use std::collections::HashSet;

use warren_model::domain::Domain;
use warren_model::policy::HostName;
use warren_model::{AccountId, DomainId, MachineId};

use crate::{Store, StoreError, TxnBuilder, Typed, Versioned, schema};

/// How many names one read takes while those below a name are looked through, and how many records one transaction of
/// [`complete`] writes.
const CHUNK: usize = 1000;

/// Writes a domain, new or changed. Who takes one below the preview suffix writes [`schema::domain_label`] too.
///
/// # Errors
/// When a record cannot be written.
pub fn put(txn: TxnBuilder, domain: &Domain) -> Result<TxnBuilder, StoreError> {
    txn.put(&schema::domain(&domain.host), domain)?
        .put(&schema::domain_id(domain.id), &domain.host)?
        .put(&schema::domain_tree(&domain.host), &domain.account)?
        .put(&schema::domain_of(domain.account, &domain.host), &())?
        .put(&schema::domain_at(domain.machine, &domain.host), &())
}

/// Writes a domain that leads somewhere else, or otherwise. The transaction fails where it has changed since it was read.
///
/// # Errors
/// When a record cannot be written.
pub fn replace(txn: TxnBuilder, read: &Versioned<Domain>, domain: &Domain) -> Result<TxnBuilder, StoreError> {
    put(unlink(txn.unchanged(read), &read.record), domain)
}

/// Removes a domain, and with the last one of its account below a label also that the label is the account's; what the
/// transaction removes already does not count. It fails where the domain has changed since it was read, or another one
/// was taken or removed meanwhile that makes a difference to the label.
///
/// # Errors
/// When the store fails.
pub async fn remove<S: Store + ?Sized>(
    store: &S,
    txn: TxnBuilder,
    read: &Versioned<Domain>,
) -> Result<TxnBuilder, StoreError> {
    let mut txn = unlink(txn.unchanged(read), &read.record);
    // Which of them was a label when the name was taken is not known: the suffix may have been another one.
    for label in upwards(&read.record.host) {
        let key = schema::domain_label(&label);
        let account = read.record.account;
        txn = match store.read(&key).await? {
            None => txn.absent(&key),
            Some(held) if held.record != account => txn,
            Some(held) => {
                let other = {
                    let leaving: HashSet<&str> = txn.deleted().collect();
                    let stays = |mark: &Versioned<AccountId>| mark.record == account && !leaving.contains(&*mark.key);
                    find_in_tree(store, &label, stays).await?
                };
                match other {
                    Some(other) => txn.unchanged(&other),
                    // Whoever takes a name below it writes it again.
                    None => txn.unchanged(&held).delete(&key),
                }
            }
        };
    }
    Ok(txn)
}

/// The first name for which this is so, of a name and all below it.
///
/// # Errors
/// When the store fails.
pub async fn find_in_tree<S: Store + ?Sized>(
    store: &S,
    host: &HostName,
    wanted: impl Fn(&Versioned<AccountId>) -> bool + Send,
) -> Result<Option<Versioned<AccountId>>, StoreError> {
    if let Some(own) = store.read(&schema::domain_tree(host)).await?.filter(&wanted) {
        return Ok(Some(own));
    }
    let mut after = None;
    loop {
        let (page, more) = store.list_page(&schema::domains_below(host), after, CHUNK).await?;
        after = page.last().map(|last| last.key.clone());
        if let Some(found) = page.into_iter().find(&wanted) {
            return Ok(Some(found));
        }
        if !more {
            return Ok(None);
        }
    }
}

/// A name and all above it, the nearest first.
pub fn upwards(host: &HostName) -> impl Iterator<Item = HostName> + Send + use<> {
    let above = |name: &HostName| name.as_str().split_once('.')?.1.parse().ok();
    std::iter::successors(Some(host.clone()), above)
}

fn unlink(txn: TxnBuilder, domain: &Domain) -> TxnBuilder {
    txn.delete(&schema::domain(&domain.host))
        .delete(&schema::domain_id(domain.id))
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

/// The domain with this id.
///
/// # Errors
/// When the store fails.
pub async fn by_id<S: Store + ?Sized>(store: &S, id: DomainId) -> Result<Option<Versioned<Domain>>, StoreError> {
    let Some(host) = store.read(&schema::domain_id(id)).await? else { return Ok(None) };
    // Another one may have taken its name meanwhile.
    Ok(store.read(&schema::domain(&host.record)).await?.filter(|read| read.record.id == id))
}

/// Writes what domains lack that are older than some kind of record by which they are found. Whoever opens a store calls
/// this before anything is looked up in it.
///
/// # Errors
/// When the store fails.
pub async fn complete<S: Store + ?Sized>(store: &S) -> Result<(), StoreError> {
    loop {
        let (domains, _) = store.list_all(&schema::domains()).await?;
        let (ids, _) = store.list_all(&schema::domain_ids()).await?;
        let (trees, _) = store.list_all(&schema::domain_trees()).await?;
        let keys = ids.iter().map(|read| &*read.key).chain(trees.iter().map(|read| &*read.key));
        let keys: HashSet<&str> = keys.collect();
        let is_whole = |Domain { id, host, .. }: &Domain| {
            keys.contains(schema::domain_id(*id).as_str()) && keys.contains(schema::domain_tree(host).as_str())
        };
        let mut txn = TxnBuilder::new();
        let mut older = domains.iter().filter(|read| !is_whole(&read.record)).take(CHUNK).peekable();
        if older.peek().is_none() {
            return Ok(());
        }
        for read in older {
            txn = put(txn.unchanged(read), &read.record)?;
        }
        // What is changed meanwhile is read again.
        txn.commit(store).await?;
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use ulid::Ulid;
    use warren_model::domain::{DomainLimits, DomainProof};
    use warren_model::{DomainId, KeyId, NetworkId};

    use super::*;
    use crate::{SqliteStore, TxnOutcome};

    const LABEL: &str = "a.example.com";

    fn host(text: &str) -> HostName {
        text.parse().unwrap()
    }

    fn domain(name: &str) -> Domain {
        let ulid = |random| Ulid::from_parts(1, random);
        // No two names here have the same.
        let number = name.bytes().fold(0, |number, byte| number * 31 + u128::from(byte));
        Domain {
            id: DomainId::from_ulid(ulid(number)),
            account: AccountId::from_ulid(ulid(2)),
            host: host(name),
            network: NetworkId::from_ulid(ulid(3)),
            machine: MachineId::from_ulid(ulid(4)),
            port: 8080,
            auth: None,
            limits: DomainLimits::default(),
            burst_asked_for: None,
            proof: DomainProof::Suffix,
            created_at: Timestamp::UNIX_EPOCH,
            created_by: KeyId::from_ulid(ulid(5)),
        }
    }

    /// Takes the name as one below [`LABEL`].
    async fn take(store: &SqliteStore, name: &str) {
        let domain = domain(name);
        let txn = put(TxnBuilder::new(), &domain).unwrap();
        txn.put(&schema::domain_label(&host(LABEL)), &domain.account).unwrap().commit(store).await.unwrap();
    }

    async fn removal(store: &SqliteStore, name: &str) -> TxnBuilder {
        let read = store.read(&schema::domain(&host(name))).await.unwrap().unwrap();
        remove(store, TxnBuilder::new(), &read).await.unwrap()
    }

    async fn is_done(store: &SqliteStore, txn: TxnBuilder) -> bool {
        matches!(txn.commit(store).await.unwrap(), TxnOutcome::Committed(_))
    }

    async fn is_held(store: &SqliteStore) -> bool {
        store.read(&schema::domain_label(&host(LABEL))).await.unwrap().is_some()
    }

    #[tokio::test]
    async fn a_label_goes_with_the_last_name_of_it_whichever_that_is() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
        for order in [[LABEL, "y.x.a.example.com"], ["y.x.a.example.com", LABEL]] {
            for name in order {
                take(&store, name).await;
            }
            assert!(is_done(&store, removal(&store, order[0]).await).await && is_held(&store).await, "{order:?}");
            assert!(is_done(&store, removal(&store, order[1]).await).await, "{order:?}");
            assert_eq!(store.count("").await.unwrap(), 0, "{order:?}");
        }
    }

    #[tokio::test]
    async fn a_label_goes_with_all_names_of_it_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
        let mut txn = TxnBuilder::new();
        let names = ["x.a.example.com", "y.a.example.com", "z.y.a.example.com"];
        for name in names {
            take(&store, name).await;
        }
        for name in names {
            let read = store.read(&schema::domain(&host(name))).await.unwrap().unwrap();
            txn = remove(&store, txn, &read).await.unwrap();
        }
        assert!(is_done(&store, txn).await);
        assert_eq!(store.count("").await.unwrap(), 0);
    }

    #[tokio::test]
    async fn of_two_names_that_are_removed_at_once_the_later_takes_the_label_along() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
        take(&store, "x.a.example.com").await;
        take(&store, "y.a.example.com").await;
        let (first, second) = (removal(&store, "x.a.example.com").await, removal(&store, "y.a.example.com").await);
        assert!(is_done(&store, first).await);
        assert!(!is_done(&store, second).await, "it counted on the other name");
        assert!(is_done(&store, removal(&store, "y.a.example.com").await).await);
        assert_eq!(store.count("").await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_label_stays_when_a_name_of_it_is_taken_while_the_last_one_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
        take(&store, "x.a.example.com").await;
        let last = removal(&store, "x.a.example.com").await;
        take(&store, "y.a.example.com").await;
        assert!(!is_done(&store, last).await && is_held(&store).await);
        assert!(is_done(&store, removal(&store, "x.a.example.com").await).await && is_held(&store).await);
    }

    #[tokio::test]
    async fn a_name_without_a_label_leaves_none_that_was_made_while_it_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
        put(TxnBuilder::new(), &domain("x.a.example.com")).unwrap().commit(&store).await.unwrap();
        let older = removal(&store, "x.a.example.com").await;
        take(&store, "y.a.example.com").await;
        assert!(is_done(&store, removal(&store, "y.a.example.com").await).await && is_held(&store).await);
        assert!(!is_done(&store, older).await, "the label would have no name");
        assert!(is_done(&store, removal(&store, "x.a.example.com").await).await);
        assert_eq!(store.count("").await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_domain_is_found_by_its_id_until_it_is_removed_or_has_lost_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
        let (one, other) = (domain("x.a.example.com"), domain("y.a.example.com"));
        for domain in [&one, &other] {
            put(TxnBuilder::new(), domain).unwrap().commit(&store).await.unwrap();
        }
        assert_eq!(by_id(&store, one.id).await.unwrap().unwrap().record, one);
        assert_eq!(by_id(&store, other.id).await.unwrap().unwrap().record, other);
        assert!(is_done(&store, removal(&store, "x.a.example.com").await).await);
        assert_eq!(by_id(&store, one.id).await.unwrap(), None);
        let heir = Domain { id: one.id, ..other.clone() };
        TxnBuilder::new().put(&schema::domain(&heir.host), &heir).unwrap().commit(&store).await.unwrap();
        assert_eq!(by_id(&store, other.id).await.unwrap(), None, "its name is another domain's");
    }

    #[tokio::test]
    async fn domains_that_are_older_than_an_index_are_in_it_once_the_store_is_complete() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
        let names = ["x.a.example.com", "y.a.example.com", "z.a.example.com"];
        for name in names {
            put(TxnBuilder::new(), &domain(name)).unwrap().commit(&store).await.unwrap();
        }
        TxnBuilder::new()
            .delete(&schema::domain_id(domain(names[0]).id))
            .delete(&schema::domain_tree(&host(names[1])))
            .commit(&store)
            .await
            .unwrap();
        assert_eq!(by_id(&store, domain(names[0]).id).await.unwrap(), None);
        complete(&store).await.unwrap();
        for name in names {
            assert_eq!(by_id(&store, domain(name).id).await.unwrap().unwrap().record, domain(name));
        }
        assert_eq!(store.count(schema::domains_below(&host("a.example.com")).as_str()).await.unwrap(), 3);
        let before = store.revision().await.unwrap();
        complete(&store).await.unwrap();
        assert_eq!(store.revision().await.unwrap(), before, "there was nothing left to write");
    }

    #[tokio::test]
    async fn below_a_name_are_those_with_more_labels_in_front() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
        let account = AccountId::from_ulid(Ulid::nil());
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
