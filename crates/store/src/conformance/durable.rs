//! What outlives the process.

use super::*;

pub(super) async fn everything_is_there_after_a_restart(mut subject: Subject) {
    let before = Picture::draw(&subject).await;
    subject.instance.reopen().await;
    before.compare(&subject).await;
}

pub(super) async fn everything_answered_is_there_after_a_crash(mut subject: Subject) {
    let before = Picture::draw(&subject).await;
    subject.instance.crash().await;
    before.compare(&subject).await;
    subject.instance.crash().await;
    subject.instance.reopen().await;
}

pub(super) async fn what_was_forgotten_stays_forgotten(mut subject: Subject) {
    let store = subject.store();
    put(&*store, "a", "1").await;
    let kept = put(&*store, "a", "2").await;
    put(&*store, "a", "3").await;
    store.compact(kept).await.unwrap();
    drop(store);
    subject.instance.crash().await;
    let store = subject.store();
    let result = match store.watch("a", kept - 1).await {
        Ok(mut watch) => next_or_error(&mut *watch).await,
        Err(error) => Err(error),
    };
    assert!(matches!(result, Err(StoreError::Compacted { oldest, .. }) if oldest == kept), "{result:?}");
    let mut watch = store.watch("a", kept).await.unwrap();
    assert_eq!(next(&mut *watch).await[0].revision, kept);
}

pub(super) async fn a_watch_ends_when_its_store_closes(mut subject: Subject) {
    let store = subject.store();
    let revision = put(&*store, "a", "1").await;
    let mut watch = store.watch("", revision + 1).await.unwrap();
    drop(store);
    let waiting = tokio::spawn(async move { next_or_error(&mut *watch).await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    subject.instance.reopen().await;
    let result = waiting.await.unwrap();
    assert!(result.is_err(), "{result:?}");
    assert!(put(&*subject.store(), "a", "2").await > revision);
}

/// All that a store shows.
struct Picture {
    first: Revision,
    revision: Revision,
    entries: Vec<Entry>,
    history: Vec<Vec<Change>>,
}

impl Picture {
    /// Writes something of every kind and remembers it.
    async fn draw(subject: &Subject) -> Self {
        let store = subject.store();
        let first = put(&*store, "dir/0", "first").await;
        for index in 0..30 {
            let key = format!("dir/{}", index % 7);
            let ops = match index % 3 {
                0 => vec![put_op(&key, &index.to_string()), put_op("twice", &index.to_string())],
                1 => vec![put_op(&format!("only/{index}"), "")],
                _ => vec![delete_op(&key)],
            };
            commit(&*store, ops).await;
        }
        let long = Op::Put { key: "long".into(), value: vec![7; 200_000], lease: None };
        commit(&*store, vec![long]).await;
        Self::see(&*store, first).await
    }

    async fn see(store: &dyn Store, first: Revision) -> Self {
        let revision = store.revision().await.unwrap();
        let mut watch = store.watch("", first).await.unwrap();
        let mut history: Vec<Vec<Change>> = Vec::new();
        while history.last().is_none_or(|changes| changes[0].revision < revision) {
            history.push(next(&mut *watch).await);
        }
        Self { first, revision, entries: everything(store, "").await, history }
    }

    async fn compare(&self, subject: &Subject) {
        let store = subject.store();
        let now = Self::see(&*store, self.first).await;
        assert_eq!(now.revision, self.revision);
        assert!(now.entries == self.entries, "the entries differ");
        assert!(now.history == self.history, "the history differs");
        assert!(put(&*store, "later", "1").await > self.revision);
    }
}
