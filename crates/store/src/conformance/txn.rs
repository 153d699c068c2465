//! Transactions and single keys.

use super::*;

pub(super) async fn a_value_comes_back_as_it_was_put(subject: Subject) {
    let store = subject.store();
    let large: Vec<u8> = (0..512 * 1024).map(|index: u32| (index % 251) as u8).collect();
    let values = [Vec::new(), vec![0], vec![0, 255, 0, 10, 13], "grün".into(), large];
    for (index, value) in values.iter().enumerate() {
        let key = format!("value/{index}");
        commit(&*store, vec![Op::Put { key: key.clone(), value: value.clone(), lease: None }]).await;
        assert_eq!(get(&*store, &key).await.unwrap().value, *value);
    }
    assert_eq!(get(&*store, "value/9").await, None);
    assert_eq!(get(&*store, "value/").await, None);
    assert_eq!(get(&*store, "VALUE/0").await, None);
}

pub(super) async fn an_entry_knows_what_made_and_last_changed_it(subject: Subject) {
    let store = subject.store();
    let created = put(&*store, "a", "1").await;
    put(&*store, "b", "1").await;
    let modified = put(&*store, "a", "2").await;
    let expected = Entry { key: "a".into(), value: "2".into(), created, modified };
    assert_eq!(get(&*store, "a").await, Some(expected.clone()));
    assert_eq!(everything(&*store, "a").await, [expected]);

    commit(&*store, vec![delete_op("a")]).await;
    let again = put(&*store, "a", "3").await;
    let entry = get(&*store, "a").await.unwrap();
    assert_eq!((entry.created, entry.modified), (again, again), "a deleted key starts anew");
}

pub(super) async fn revisions_grow_with_every_change(subject: Subject) {
    let store = subject.store();
    let mut last = store.revision().await.unwrap();
    for _ in 0..5 {
        for ops in [vec![put_op("a", "same")], vec![put_op("b", "1"), put_op("c", "1")], vec![delete_op("b")]] {
            let revision = commit(&*store, ops).await;
            assert!(revision > last, "{revision} after {last}");
            assert_eq!(store.revision().await.unwrap(), revision);
            last = revision;
        }
    }
}

pub(super) async fn a_transaction_that_changes_nothing_has_no_revision(subject: Subject) {
    let store = subject.store();
    let revision = put(&*store, "a", "1").await;
    assert_eq!(commit(&*store, vec![]).await, revision);
    assert_eq!(commit(&*store, vec![delete_op("missing")]).await, revision);
    let holds = vec![Compare::Exists { key: "a".into() }];
    assert_eq!(attempt(&*store, holds, vec![]).await, TxnOutcome::Committed(revision));
    let fails = vec![Compare::Absent { key: "a".into() }];
    assert_eq!(attempt(&*store, fails, vec![put_op("b", "1")]).await, TxnOutcome::Conflict(vec![0]));
    assert_eq!(store.revision().await.unwrap(), revision);
    let mut watch = store.watch("", revision + 1).await.unwrap();
    nothing_comes(&mut *watch).await;
}

pub(super) async fn each_compare_holds_exactly_when_it_should(subject: Subject) {
    let store = subject.store();
    let first = put(&*store, "there", "1").await;
    let modified = put(&*store, "there", "2").await;
    let below = put(&*store, "dir/child", "1").await;
    let key = |key: &str| key.to_owned();
    let cases = [
        (Compare::Absent { key: key("missing") }, true),
        (Compare::Absent { key: key("there") }, false),
        (Compare::Absent { key: key("dir/") }, true),
        (Compare::Exists { key: key("there") }, true),
        (Compare::Exists { key: key("missing") }, false),
        (Compare::Exists { key: key("dir/") }, false),
        (Compare::Unchanged { key: key("there"), modified }, true),
        (Compare::Unchanged { key: key("there"), modified: first }, false),
        (Compare::Unchanged { key: key("there"), modified: modified + 1 }, false),
        (Compare::Unchanged { key: key("missing"), modified }, false),
        (Compare::Unchanged { key: key("missing"), modified: 0 }, false),
        (Compare::Unchanged { key: key("dir/child"), modified: below }, true),
        (Compare::EmptyPrefix { prefix: key("none/") }, true),
        (Compare::EmptyPrefix { prefix: key("dir/") }, false),
        (Compare::EmptyPrefix { prefix: key("dir") }, false),
        (Compare::EmptyPrefix { prefix: key("dir/child") }, false),
        (Compare::EmptyPrefix { prefix: key("dir/child/") }, true),
        (Compare::EmptyPrefix { prefix: key("di/") }, true),
        (Compare::EmptyPrefix { prefix: key("") }, false),
    ];
    for (compare, holds) in cases {
        let outcome = attempt(&*store, vec![compare.clone()], vec![]).await;
        assert_eq!(matches!(outcome, TxnOutcome::Committed(_)), holds, "{compare:?}");
    }
    commit(&*store, vec![delete_op("dir/child")]).await;
    let empty = vec![Compare::EmptyPrefix { prefix: key("dir/") }, Compare::Absent { key: key("dir/child") }];
    assert!(matches!(attempt(&*store, empty, vec![]).await, TxnOutcome::Committed(_)));
}

pub(super) async fn a_conflict_names_every_compare_that_failed_and_changes_nothing(subject: Subject) {
    let store = subject.store();
    let revision = put(&*store, "a", "1").await;
    let compares = vec![
        Compare::Exists { key: "a".into() },
        Compare::Absent { key: "a".into() },
        Compare::Unchanged { key: "a".into(), modified: revision },
        Compare::EmptyPrefix { prefix: "a".into() },
        Compare::Exists { key: "b".into() },
    ];
    let ops = vec![put_op("a", "2"), put_op("b", "2"), delete_op("a")];
    assert_eq!(attempt(&*store, compares, ops).await, TxnOutcome::Conflict(vec![1, 3, 4]));
    assert_eq!(get(&*store, "a").await.unwrap().value, b"1");
    assert_eq!(keys(&*store, "").await, ["a"]);
    assert_eq!(store.revision().await.unwrap(), revision);
}

pub(super) async fn all_ops_of_a_transaction_share_its_revision(subject: Subject) {
    let store = subject.store();
    put(&*store, "old", "1").await;
    let revision =
        commit(&*store, vec![put_op("new/1", "1"), delete_op("old"), put_op("new/2", "2"), delete_op("never")]).await;
    let mut watch = store.watch("", revision).await.unwrap();
    let expected =
        [changed(revision, "new/1", Some("1")), changed(revision, "new/2", Some("2")), changed(revision, "old", None)];
    assert_eq!(next(&mut *watch).await, expected);
    for entry in everything(&*store, "").await {
        assert_eq!((entry.created, entry.modified), (revision, revision));
    }
}

pub(super) async fn the_last_op_on_a_key_counts(subject: Subject) {
    let store = subject.store();
    let revision = commit(
        &*store,
        vec![put_op("a", "1"), put_op("a", "2"), put_op("b", "1"), delete_op("b"), delete_op("c"), put_op("c", "1")],
    )
    .await;
    assert_eq!(get(&*store, "a").await.unwrap().value, b"2");
    assert_eq!(keys(&*store, "").await, ["a", "c"]);
    let mut watch = store.watch("", revision).await.unwrap();
    assert_eq!(next(&mut *watch).await, [changed(revision, "a", Some("2")), changed(revision, "c", Some("1"))]);
}

pub(super) async fn no_update_of_concurrent_counters_is_lost(subject: Subject) {
    const TASKS: usize = 8;
    const STEPS: usize = 25;
    let store = subject.store();
    put(&*store, "counter", "0").await;
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for _ in 0..STEPS {
                    loop {
                        let entry = get(&*store, "counter").await.unwrap();
                        let count: usize = String::from_utf8(entry.value).unwrap().parse().unwrap();
                        let unchanged = vec![Compare::Unchanged { key: "counter".into(), modified: entry.modified }];
                        let ops = vec![put_op("counter", &(count + 1).to_string())];
                        if let TxnOutcome::Committed(revision) = attempt(&*store, unchanged, ops).await {
                            assert!(get(&*store, "counter").await.unwrap().modified >= revision, "a read went back");
                            break;
                        }
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(get(&*store, "counter").await.unwrap().value, (TASKS * STEPS).to_string().as_bytes());
}

pub(super) async fn only_one_of_many_concurrent_creates_wins(subject: Subject) {
    let store = subject.store();
    for round in 0..10 {
        let tasks: Vec<_> = (0..16)
            .map(|task: usize| {
                let store = Arc::clone(&store);
                tokio::spawn(async move {
                    let key = format!("address/{round}");
                    let absent = vec![Compare::Absent { key: key.clone() }];
                    let own = format!("holder/{round}/{task}");
                    let outcome = attempt(&*store, absent, vec![put_op(&key, &own), put_op(&own, "1")]).await;
                    matches!(outcome, TxnOutcome::Committed(_)).then_some(own)
                })
            })
            .collect();
        let mut winners = Vec::new();
        for task in tasks {
            winners.extend(task.await.unwrap());
        }
        assert_eq!(winners.len(), 1, "{winners:?}");
        assert_eq!(keys(&*store, &format!("holder/{round}/")).await, winners);
        assert_eq!(get(&*store, &format!("address/{round}")).await.unwrap().value, winners[0].as_bytes());
    }
}
