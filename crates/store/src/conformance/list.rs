//! Prefixes, order and pages.

use super::*;

pub(super) async fn keys_come_in_byte_order(subject: Subject) {
    let store = subject.store();
    let mut expected =
        ["B", "a", "a!", "a/", "a/1", "a/10", "a/2", "a0", "aa", "b", "\u{7f}", "é", "\u{ffff}", "\u{10000}"]
            .map(str::to_owned);
    let mut ops: Vec<_> = expected.iter().map(|key| put_op(key, "1")).collect();
    ops.reverse();
    commit(&*store, ops).await;
    expected.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    assert_eq!(keys(&*store, "").await, expected);
}

pub(super) async fn neighbours_of_a_prefix_are_not_below_it(subject: Subject) {
    let store = subject.store();
    let all = ["a", "a.", "a.z", "a/", "a/\u{0001}", "a/b", "a/b/c", "a/\u{10ffff}", "a0", "a00", "b", "A/b"];
    commit(&*store, all.iter().map(|key| put_op(key, "1")).collect()).await;
    assert_eq!(keys(&*store, "a/").await, ["a/", "a/\u{0001}", "a/b", "a/b/c", "a/\u{10ffff}"]);
    assert_eq!(keys(&*store, "a/b").await, ["a/b", "a/b/c"]);
    assert_eq!(keys(&*store, "a/b/").await, ["a/b/c"]);
    assert_eq!(keys(&*store, "a0").await, ["a0", "a00"]);
    assert_eq!(keys(&*store, "c").await, [""; 0]);
}

pub(super) async fn a_prefix_may_end_at_the_edge_of_unicode(subject: Subject) {
    let store = subject.store();
    let edges = ["\u{7f}", "\u{7ff}", "\u{d7ff}", "\u{ffff}", "\u{10ffff}", "\u{10ffff}\u{10ffff}", "x\u{10ffff}"];
    for edge in edges {
        commit(&*store, vec![put_op(edge, "1"), put_op(&format!("{edge}1"), "1")]).await;
    }
    commit(&*store, vec![put_op("\u{80}", "1"), put_op("\u{e000}", "1"), put_op("y", "1")]).await;
    let all = keys(&*store, "").await;
    assert_eq!(all.len(), edges.len() * 2 + 3);
    for edge in edges {
        let expected: Vec<_> = all.iter().filter(|key| key.starts_with(edge)).cloned().collect();
        assert_eq!(keys(&*store, edge).await, expected, "below {edge:?}");
    }
}

pub(super) async fn characters_that_mean_something_to_a_query_mean_nothing_here(subject: Subject) {
    let store = subject.store();
    let all = ["%/1", "*/1", "?/1", "[a]/1", "_/1", "a/1", "a'b/1", "a\\b/1"];
    commit(&*store, all.iter().map(|key| put_op(key, "1")).collect()).await;
    for key in all {
        assert_eq!(keys(&*store, key.trim_end_matches('1')).await, [key]);
        assert_eq!(get(&*store, key).await.unwrap().key, key);
    }
}

pub(super) async fn pages_cover_everything_once(subject: Subject) {
    let store = subject.store();
    let all: Vec<_> = (0..25).map(|index| format!("p/{index:02}")).collect();
    let mut ops: Vec<_> = all.iter().map(|key| put_op(key, key)).collect();
    ops.extend([put_op("o", "1"), put_op("p", "1"), put_op("p0", "1")]);
    let revision = commit(&*store, ops).await;
    for limit in [1, 2, 5, 24, 25, 26, usize::MAX] {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = store.list(Range { prefix: "p/".into(), after: after.clone(), limit }).await.unwrap();
            assert_eq!(page.revision, revision);
            assert!(page.entries.len() <= limit && !page.entries.is_empty());
            seen.extend(page.entries.into_iter().map(|entry| entry.key));
            assert_eq!(page.more, seen.len() < all.len(), "limit {limit}, {} seen", seen.len());
            after = seen.last().cloned();
            if !page.more {
                break;
            }
        }
        assert_eq!(seen, all, "limit {limit}");
    }
    for (after, first) in
        [("", "p/00"), ("p", "p/00"), ("p/", "p/00"), ("p/00", "p/01"), ("p/00x", "p/01"), ("p/23", "p/24")]
    {
        let page = store.list(Range { prefix: "p/".into(), after: Some(after.into()), limit: 1 }).await.unwrap();
        assert_eq!(page.entries[0].key, first, "after {after:?}");
    }
}

pub(super) async fn a_count_is_of_the_keys_below_a_prefix_and_follows_every_change(subject: Subject) {
    let store = subject.store();
    let count = async |prefix: &str| store.count(prefix).await.unwrap();
    assert_eq!((count("").await, count("a/").await), (0, 0));
    let all = ["a", "a.", "a/", "a/b", "a/b/c", "a/\u{10ffff}", "a0", "\u{10ffff}", "\u{10ffff}1"];
    commit(&*store, all.iter().map(|key| put_op(key, "1")).collect()).await;
    for (prefix, expected) in [("", 9), ("a/", 4), ("a/b", 2), ("a0", 1), ("\u{10ffff}", 2), ("c", 0)] {
        assert_eq!(count(prefix).await, expected, "below {prefix:?}");
    }
    commit(&*store, vec![put_op("a/b", "2"), put_op("a/d", "1"), delete_op("a/"), delete_op("a/x")]).await;
    assert_eq!(count("a/").await, 4);
    commit(&*store, (0..1500).map(|n| put_op(&format!("p/{n}"), "1")).collect()).await;
    assert_eq!(count("p/").await, 1500);
}

pub(super) async fn a_page_may_be_empty(subject: Subject) {
    let store = subject.store();
    let list = async |prefix: &str, after: Option<&str>, limit| {
        let page = store.list(Range { prefix: prefix.into(), after: after.map(Into::into), limit }).await.unwrap();
        (page.entries.len(), page.more)
    };
    assert_eq!(list("", None, 10).await, (0, false));
    put(&*store, "a/1", "1").await;
    assert_eq!(list("a/", Some("a/1"), 10).await, (0, false));
    assert_eq!(list("a/", Some("b"), 10).await, (0, false));
    assert_eq!(list("b/", None, 10).await, (0, false));
    assert_eq!(list("a/", None, 0).await, (0, true));
    assert_eq!(list("b/", None, 0).await, (0, false));
}

pub(super) async fn a_watch_from_the_revision_after_a_page_misses_nothing(subject: Subject) {
    const WRITES: usize = 200;
    let store = subject.store();
    let writer = {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for index in 0..WRITES {
                put(&*store, &format!("k/{index:04}"), "1").await;
            }
        })
    };
    while keys(&*store, "k/").await.len() < WRITES / 4 {
        tokio::task::yield_now().await;
    }
    let page = store.list(Range { prefix: "k/".into(), after: None, limit: WRITES }).await.unwrap();
    let mut seen: Vec<_> = page.entries.into_iter().map(|entry| entry.key).collect();
    let mut watch = store.watch("k/", page.revision + 1).await.unwrap();
    while seen.len() < WRITES {
        seen.extend(next(&mut *watch).await.into_iter().map(|change| change.key));
    }
    writer.await.unwrap();
    assert_eq!(seen, keys(&*store, "k/").await);
}
