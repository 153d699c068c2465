use tempfile::TempDir;

use super::*;

fn limits(kept: u64, slack: u64, step: usize) -> Limits {
    Limits { history: HistoryLimit { kept, slack, step }, ..tight() }
}

fn rows(path: &Path) -> u64 {
    let connection = Connection::open(path).unwrap();
    connection.query_row("SELECT count(*) FROM change", [], |row| row.get::<_, i64>(0)).unwrap() as u64
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} never happens");
}

#[tokio::test]
async fn the_history_is_shortened_by_itself_but_never_below_what_is_promised() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("store.db");
    let store = SqliteStore::open_with(&path, limits(100, 20, 7)).unwrap();
    for index in 0..500 {
        let revision = commit(&store, vec![put(&format!("k/{}", index % 9), "1")]).await;
        let oldest = store.head.borrow().oldest;
        assert!(oldest == 1 || revision - oldest + 1 >= 100, "only {oldest} to {revision} are kept");
    }
    until("the history is short", || rows(&path) <= 120).await;
    assert!(rows(&path) >= 100);
    let newest = store.revision().await.unwrap();
    assert!(matches!(store.watch("", 1).await, Err(StoreError::Compacted { asked: 1, .. })));
    let mut watch = store.watch("", newest - 99).await.unwrap();
    for revision in newest - 99..=newest {
        assert_eq!(watch.next().await.unwrap()[0].revision, revision);
    }
    assert_eq!(list(&store, "k/").await.len(), 9);
    drop((store, watch));
    check_tables(&path);
}

#[tokio::test]
async fn a_revision_larger_than_a_step_is_forgotten_whole() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("store.db");
    let store = SqliteStore::open_with(&path, limits(50, 5, 7)).unwrap();
    let large = commit(&store, (0..300).map(|index| put(&format!("large/{index}"), "1")).collect()).await;
    let mut watch = store.watch("", large).await.unwrap();
    assert_eq!(watch.next().await.unwrap().len(), 300, "the newest revision is kept, whatever its size");
    for _ in 0..60 {
        commit(&store, vec![put("small", "1")]).await;
    }
    until("the large revision is deleted", || rows(&path) <= 60).await;
    assert!(matches!(store.watch("", large).await, Err(StoreError::Compacted { .. })));
    assert!(store.watch("", large + 11).await.is_ok());
    drop((store, watch));
    check_tables(&path);
}

#[tokio::test]
async fn an_interrupted_shortening_goes_on_after_a_restart() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("store.db");
    let store = SqliteStore::open(&path).unwrap();
    for _ in 0..300 {
        commit(&store, vec![put("a", "1")]).await;
    }
    drop(store);
    Connection::open(&path).unwrap().execute_batch("UPDATE ledger SET oldest = 290").unwrap();
    let store = SqliteStore::open_with(&path, limits(1000, 0, 5)).unwrap();
    until("the forgotten changes are deleted", || rows(&path) == 11).await;
    drop(store);
    check_tables(&path);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_fails_spoils_none_of_those_it_shares_a_commit_with() {
    let directory = TempDir::new().unwrap();
    let store = Arc::new(SqliteStore::open(&directory.path().join("store.db")).unwrap());
    let tasks: Vec<_> = (0..200)
        .map(|index| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let lease = (index % 4 == 0).then_some(LeaseId(999));
                let first = put(&format!("first/{index:03}"), "1");
                let second = Op::Put { key: format!("second/{index:03}"), value: vec![1], lease };
                (index, store.txn(Txn { compares: vec![], ops: vec![first, second] }).await)
            })
        })
        .collect();
    let mut revisions = Vec::new();
    for task in tasks {
        let (index, result) = task.await.unwrap();
        match result {
            Ok(TxnOutcome::Committed(revision)) if index % 4 != 0 => revisions.push(revision),
            Err(StoreError::NoSuchLease(LeaseId(999))) if index % 4 == 0 => {}
            other => panic!("{index}: {other:?}"),
        }
    }
    revisions.sort_unstable();
    assert_eq!(revisions, (1..=150).collect::<Vec<_>>(), "a transaction that failed used a revision");
    assert_eq!(list(&store, "first/").await.len(), 150);
    assert_eq!(list(&store, "second/").await.len(), 150);
}

#[tokio::test]
async fn a_lease_never_lasts_longer_than_its_ttl_after_a_restart_with_a_wrong_clock() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("store.db");
    let store = SqliteStore::open(&path).unwrap();
    let lease = store.grant(Duration::from_secs(3)).await.unwrap();
    let ops = vec![Op::Put { key: "a".into(), value: vec![1], lease: Some(lease) }];
    commit(&store, ops).await;
    drop(store);
    // As if the clock had been set back by a day while the process was away.
    Connection::open(&path).unwrap().execute_batch("UPDATE lease SET ends_at_ms = ends_at_ms + 86400000").unwrap();
    let store = SqliteStore::open(&path).unwrap();
    assert!(store.get("a").await.unwrap().is_some());
    let mut watch = store.watch("a", 2).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(30), watch.next()).await.expect("the lease never ends");
    assert_eq!(ended.unwrap(), [Change { revision: 2, key: "a".into(), value: None }]);
}

#[tokio::test]
async fn hundreds_of_leases_that_end_at_once_all_end() {
    let directory = TempDir::new().unwrap();
    let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
    for index in 0..300 {
        let lease = store.grant(Duration::from_secs(2)).await.unwrap();
        let key = format!("l/{index}");
        commit(&store, vec![Op::Put { key, value: vec![1], lease: Some(lease) }]).await;
    }
    // The first ones may end before the last ones are there.
    let mut watch = store.watch("l/", 1).await.unwrap();
    let mut ended = 0;
    while ended < 300 {
        let changes = tokio::time::timeout(Duration::from_secs(30), watch.next()).await.expect("a lease never ends");
        let [change] = &changes.unwrap()[..] else { panic!("two keys in one revision") };
        ended += usize::from(change.value.is_none());
    }
    assert_eq!(list(&store, "").await, []);
}
