//! Watches and compaction.

use super::*;

pub(super) async fn the_past_is_replayed_in_order(subject: Subject) {
    let store = subject.store();
    let mut revisions = Vec::new();
    for index in 0..20 {
        revisions.push(put(&*store, &format!("a/{}", index % 3), &index.to_string()).await);
    }
    for start in [0, 1, 7, 19] {
        let mut watch = store.watch("a/", revisions[start]).await.unwrap();
        for (index, revision) in revisions.iter().enumerate().skip(start) {
            let expected = changed(*revision, &format!("a/{}", index % 3), Some(&index.to_string()));
            assert_eq!(next(&mut *watch).await, [expected]);
        }
        nothing_comes(&mut *watch).await;
    }
    for start in [0, 1] {
        let mut watch = store.watch("a/", start).await.unwrap();
        assert_eq!(next(&mut *watch).await[0].revision, revisions[0]);
    }
}

pub(super) async fn what_comes_is_followed(subject: Subject) {
    let store = subject.store();
    let start = store.revision().await.unwrap() + 1;
    let mut watch = store.watch("", start).await.unwrap();
    for index in 0..50 {
        let value = index.to_string();
        let revision = put(&*store, "a", &value).await;
        assert_eq!(next(&mut *watch).await, [changed(revision, "a", Some(&value))]);
    }
    let waiting = tokio::spawn(async move { next(&mut *watch).await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    let revision = put(&*store, "b", "1").await;
    assert_eq!(waiting.await.unwrap(), [changed(revision, "b", Some("1"))]);
}

pub(super) async fn only_changes_below_the_prefix_are_seen(subject: Subject) {
    let store = subject.store();
    let start = store.revision().await.unwrap() + 1;
    let mut following = store.watch("a/", start).await.unwrap();
    put(&*store, "a", "1").await;
    put(&*store, "a0", "1").await;
    let first = commit(&*store, vec![put_op("a/1", "1"), put_op("a.", "1"), put_op("b", "1")]).await;
    put(&*store, "A/1", "1").await;
    let second = put(&*store, "a/", "2").await;
    let mut replaying = store.watch("a/", start).await.unwrap();
    for watch in [&mut following, &mut replaying] {
        assert_eq!(next(&mut **watch).await, [changed(first, "a/1", Some("1"))]);
        assert_eq!(next(&mut **watch).await, [changed(second, "a/", Some("2"))]);
        nothing_comes(&mut **watch).await;
    }
}

pub(super) async fn a_watch_may_begin_in_the_future(subject: Subject) {
    let store = subject.store();
    let from = put(&*store, "a", "0").await + 3;
    let mut watch = store.watch("", from).await.unwrap();
    let mut never = store.watch("", Revision::MAX).await.unwrap();
    let mut expected = Vec::new();
    for _ in 0..6 {
        let revision = put(&*store, "a", "1").await;
        if revision >= from {
            expected.push(revision);
        }
    }
    for revision in expected {
        assert_eq!(next(&mut *watch).await[0].revision, revision);
    }
    nothing_comes(&mut *never).await;
}

pub(super) async fn a_revision_is_never_split(subject: Subject) {
    const SIZE: usize = 300;
    let store = subject.store();
    let start = store.revision().await.unwrap() + 1;
    let mut following = store.watch("many/", start).await.unwrap();
    let mut revisions = Vec::new();
    for round in 0..5 {
        let ops = (0..SIZE).map(|index| put_op(&format!("many/{index}"), &round.to_string())).collect();
        revisions.push(commit(&*store, ops).await);
    }
    let mut replaying = store.watch("many/", start).await.unwrap();
    for watch in [&mut following, &mut replaying] {
        for revision in &revisions {
            let changes = next(&mut **watch).await;
            assert_eq!((changes[0].revision, changes.len()), (*revision, SIZE));
        }
    }
}

pub(super) async fn changes_of_a_revision_come_in_key_order(subject: Subject) {
    let store = subject.store();
    let start = store.revision().await.unwrap() + 1;
    let mut following = store.watch("", start).await.unwrap();
    put(&*store, "k/3", "0").await;
    commit(&*store, vec![put_op("k/9", "1"), put_op("k/1", "1"), delete_op("k/3"), put_op("k/é", "1")]).await;
    let mut replaying = store.watch("", start).await.unwrap();
    for watch in [&mut following, &mut replaying] {
        next(&mut **watch).await;
        let keys: Vec<_> = next(&mut **watch).await.into_iter().map(|change| change.key).collect();
        assert_eq!(keys, ["k/1", "k/3", "k/9", "k/é"]);
    }
}

pub(super) async fn a_deleted_key_is_a_change_without_a_value(subject: Subject) {
    let store = subject.store();
    put(&*store, "a", "").await;
    let revision = commit(&*store, vec![delete_op("a")]).await;
    commit(&*store, vec![delete_op("a")]).await;
    let again = put(&*store, "a", "").await;
    let mut watch = store.watch("a", revision).await.unwrap();
    assert_eq!(next(&mut *watch).await, [changed(revision, "a", None)]);
    assert_eq!(next(&mut *watch).await, [changed(again, "a", Some(""))]);
    nothing_comes(&mut *watch).await;
}

pub(super) async fn forgotten_history_is_refused(subject: Subject) {
    let store = subject.store();
    let mut revisions = Vec::new();
    for index in 0..10 {
        revisions.push(put(&*store, "a", &index.to_string()).await);
    }
    store.compact(revisions[5]).await.unwrap();
    for asked in [0, 1, revisions[0], revisions[4]] {
        let result = match store.watch("a", asked).await {
            Ok(mut watch) => next_or_error(&mut *watch).await,
            Err(error) => Err(error),
        };
        match result {
            Err(StoreError::Compacted { oldest, .. }) => assert_eq!(oldest, revisions[5], "asked {asked}"),
            other => panic!("asked {asked}, got {other:?}"),
        }
    }
    let mut watch = store.watch("a", revisions[5]).await.unwrap();
    for revision in &revisions[5..] {
        assert_eq!(next(&mut *watch).await[0].revision, *revision);
    }
    // To forget less than is forgotten is nothing.
    store.compact(revisions[2]).await.unwrap();
    assert!(store.watch("a", revisions[5]).await.is_ok());
}

pub(super) async fn compaction_keeps_values_and_the_newest_revision(subject: Subject) {
    let store = subject.store();
    store.compact(100).await.unwrap();
    put(&*store, "a", "1").await;
    put(&*store, "b", "1").await;
    let revision = put(&*store, "a", "2").await;
    store.compact(revision + 1000).await.unwrap();
    assert_eq!(store.revision().await.unwrap(), revision);
    assert_eq!(keys(&*store, "").await, ["a", "b"]);
    let mut watch = store.watch("", revision).await.unwrap();
    assert_eq!(next(&mut *watch).await, [changed(revision, "a", Some("2"))]);
    let later = put(&*store, "c", "1").await;
    assert_eq!(next(&mut *watch).await, [changed(later, "c", Some("1"))]);
}

pub(super) async fn a_slow_watcher_gets_everything(subject: Subject) {
    const WRITES: usize = 3000;
    let store = subject.store();
    let first = put(&*store, "s/first", "1").await;
    let mut watch = store.watch("s/", first).await.unwrap();
    assert_eq!(next(&mut *watch).await[0].revision, first);
    let tasks: Vec<_> = (0..30)
        .map(|task| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let mut revisions = Vec::new();
                for index in 0..WRITES / 30 {
                    let key = if index % 10 == 0 { "other" } else { "s/" };
                    let revision = put(&*store, &format!("{key}{task}"), "1").await;
                    if key == "s/" {
                        revisions.push(revision);
                    }
                }
                revisions
            })
        })
        .collect();
    let mut expected = Vec::new();
    for task in tasks {
        expected.extend(task.await.unwrap());
    }
    expected.sort_unstable();
    for revision in expected {
        assert_eq!(next(&mut *watch).await[0].revision, revision);
    }
    nothing_comes(&mut *watch).await;
}

pub(super) async fn a_watcher_that_fell_behind_compaction_is_told_so(subject: Subject) {
    let store = subject.store();
    let first = put(&*store, "a", "0").await;
    let mut watch = store.watch("a", first).await.unwrap();
    let mut revisions = vec![first];
    for _ in 0..200 {
        revisions.push(put(&*store, "a", "1").await);
    }
    store.compact(revisions[150]).await.unwrap();
    // What is still at hand may come; a gap may not.
    for revision in revisions {
        match next_or_error(&mut *watch).await {
            Ok(changes) => assert_eq!(changes[0].revision, revision),
            Err(StoreError::Compacted { .. }) => {
                let again = next_or_error(&mut *watch).await;
                assert!(matches!(again, Err(StoreError::Compacted { .. })), "{again:?}");
                return;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

pub(super) async fn a_dropped_call_loses_nothing(subject: Subject) {
    const WRITES: usize = 150;
    let store = subject.store();
    let start = store.revision().await.unwrap() + 1;
    let mut watch = store.watch("", start).await.unwrap();
    let writer = {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let mut revisions = Vec::new();
            for index in 0..WRITES {
                revisions.push(put(&*store, "a", &index.to_string()).await);
                if index % 10 == 0 {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
            revisions
        })
    };
    let mut seen = Vec::new();
    let mut patience: u64 = 0;
    while seen.len() < WRITES {
        patience = (patience * 7 + 13) % 400;
        if let Ok(changes) = tokio::time::timeout(Duration::from_micros(patience), watch.next()).await {
            seen.push(changes.unwrap()[0].revision);
        } else {
            // A timer may be too coarse to ever cut a call short; one poll is as short as a call can be.
            let once = std::future::poll_fn(|context| {
                std::task::Poll::Ready(match watch.next().as_mut().poll(context) {
                    std::task::Poll::Ready(changes) => Some(changes),
                    std::task::Poll::Pending => None,
                })
            });
            seen.extend(once.await.map(|changes| changes.unwrap()[0].revision));
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(seen, writer.await.unwrap());
}

pub(super) async fn all_watchers_see_the_same_while_many_write(subject: Subject) {
    const TASKS: usize = 6;
    const WRITES: usize = 60;
    let store = subject.store();
    let start = store.revision().await.unwrap() + 1;
    let mut watchers = Vec::new();
    for _ in 0..3 {
        let mut watch = store.watch("pair/", start).await.unwrap();
        watchers.push(tokio::spawn(async move {
            let mut seen = Vec::new();
            while seen.len() < TASKS * WRITES {
                let changes = next(&mut *watch).await;
                assert_eq!(changes.len(), 2, "half a transaction: {changes:?}");
                assert_eq!(changes[0].value, changes[1].value);
                seen.push(changes);
            }
            seen
        }));
    }
    let writers: Vec<_> = (0..TASKS)
        .map(|task| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for index in 0..WRITES {
                    let value = format!("{task} {index}");
                    commit(&*store, vec![put_op("pair/a", &value), put_op("pair/b", &value)]).await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let mut late = store.watch("pair/", start).await.unwrap();
    let mut expected = Vec::new();
    while expected.len() < TASKS * WRITES {
        expected.push(next(&mut *late).await);
    }
    assert!(expected.is_sorted_by(|a, b| a[0].revision < b[0].revision));
    for watcher in watchers {
        assert!(watcher.await.unwrap() == expected);
    }
}
