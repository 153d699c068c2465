//! Records over a real store.

use std::collections::BTreeSet;

use tempfile::TempDir;
use warren_model::MachineId;
use warren_store::{Op, SqliteStore, Store, StoreError, Txn, TxnBuilder, TxnOutcome, Typed, Versioned, schema};

fn open() -> (TempDir, SqliteStore) {
    let directory = TempDir::new().unwrap();
    let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
    (directory, store)
}

fn machine(number: u16) -> MachineId {
    MachineId::from_bare(&format!("{number:026}")).unwrap()
}

fn committed(outcome: TxnOutcome) -> bool {
    matches!(outcome, TxnOutcome::Committed(_))
}

#[tokio::test]
async fn a_record_changes_only_while_it_is_the_one_that_was_read() {
    let (_directory, store) = open();
    let key = schema::uid_slot(7);
    assert_eq!(store.read(&key).await.unwrap(), None);
    let write = async |read: Option<&Versioned<MachineId>>, number| {
        let txn = TxnBuilder::new().same(&key, read).put(&key, &machine(number)).unwrap();
        committed(txn.commit(&store).await.unwrap())
    };
    assert!(write(None, 1).await);
    assert!(!write(None, 2).await, "it is no longer absent");
    let first = store.read(&key).await.unwrap().unwrap();
    assert_eq!(first.record, machine(1));
    assert!(write(Some(&first), 3).await);
    assert!(!write(Some(&first), 4).await, "it was changed since");
    assert_eq!(store.read(&key).await.unwrap().unwrap().record, machine(3));
    let delete = TxnBuilder::new().exists(&key).delete(&key);
    assert!(committed(delete.commit(&store as &dyn Store).await.unwrap()));
    let again = TxnBuilder::new().exists(&key).delete(&key);
    assert_eq!(again.commit(&store).await.unwrap(), TxnOutcome::Conflict(vec![0]));
}

#[tokio::test]
async fn a_list_of_all_goes_on_where_a_page_ends() {
    let (_directory, store) = open();
    let mut txn = TxnBuilder::new();
    for slot in 0..2345 {
        txn = txn
            .put(&schema::network_number(warren_model::NetworkNumber::new(slot + 1).unwrap()), &network(slot))
            .unwrap();
    }
    let TxnOutcome::Committed(written) = txn.commit(&store).await.unwrap() else { panic!("a conflict") };
    let (records, revision) = store.list_all(&schema::network_numbers()).await.unwrap();
    assert_eq!(revision, written);
    let seen: BTreeSet<_> = records.iter().map(|read| read.record).collect();
    assert_eq!(seen, (0..2345).map(network).collect());
    let (page, more) = store.list_page(&schema::network_numbers(), None, 2345).await.unwrap();
    assert!(page == records && !more);
}

fn network(number: u16) -> warren_model::NetworkId {
    warren_model::NetworkId::from_bare(&format!("{number:026}")).unwrap()
}

#[tokio::test]
async fn bytes_that_are_no_record_are_reported_with_their_key() {
    let (_directory, store) = open();
    let key = schema::uid_slot(1);
    let ops = vec![Op::Put { key: key.as_str().into(), value: b"{".to_vec(), lease: None }];
    store.txn(Txn { compares: vec![], ops }).await.unwrap();
    match store.read(&key).await {
        Err(StoreError::Corrupt { key: named, .. }) => assert_eq!(named, key.as_str()),
        other => panic!("{other:?}"),
    }
}
