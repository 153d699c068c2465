//! Leases.

use std::time::Instant;

use super::*;

pub(super) async fn the_keys_of_an_ended_lease_go_in_one_revision(subject: Subject) {
    let store = subject.store();
    let granted = Instant::now();
    let lease = store.grant(subject.ttl).await.unwrap();
    let put =
        commit(&*store, vec![put_with("l/b", "1", lease), put_with("l/a", "1", lease), put_op("l/stays", "1")]).await;
    let mut watch = store.watch("l/", put + 1).await.unwrap();
    let changes = next(&mut *watch).await;
    let lasted = granted.elapsed();
    assert!(lasted >= subject.ttl.mul_f64(0.9), "it ended after {lasted:?} of {:?}", subject.ttl);
    let revision = changes[0].revision;
    assert!(revision > put);
    assert_eq!(changes, [changed(revision, "l/a", None), changed(revision, "l/b", None)]);
    assert_eq!(keys(&*store, "l/").await, ["l/stays"]);
    no_such_lease(&*store, lease).await;
}

pub(super) async fn keeping_a_lease_alive_keeps_its_keys(subject: Subject) {
    let store = subject.store();
    let lease = store.grant(subject.ttl).await.unwrap();
    let revision = commit(&*store, vec![put_with("a", "1", lease)]).await;
    for _ in 0..8 {
        tokio::time::sleep(subject.ttl / 4).await;
        store.keep_alive(lease).await.unwrap();
        assert!(get(&*store, "a").await.is_some());
    }
    assert_eq!(store.revision().await.unwrap(), revision, "keeping alive is no change");
    gone(&*store, "a").await;
}

pub(super) async fn a_revoked_lease_is_gone_at_once(subject: Subject) {
    let store = subject.store();
    let lease = store.grant(Duration::from_secs(3600)).await.unwrap();
    let other = store.grant(Duration::from_secs(3600)).await.unwrap();
    assert_ne!(lease, other);
    let put =
        commit(&*store, vec![put_with("a", "1", lease), put_with("b", "1", lease), put_with("c", "1", other)]).await;
    store.revoke(lease).await.unwrap();
    assert_eq!(keys(&*store, "").await, ["c"]);
    let mut watch = store.watch("", put + 1).await.unwrap();
    let changes = next(&mut *watch).await;
    let revision = changes[0].revision;
    assert_eq!(changes, [changed(revision, "a", None), changed(revision, "b", None)]);
    assert_eq!(store.revision().await.unwrap(), revision);
    no_such_lease(&*store, lease).await;
    assert!(matches!(store.revoke(lease).await, Err(StoreError::NoSuchLease(id)) if id == lease));
    store.keep_alive(other).await.unwrap();
}

pub(super) async fn an_unknown_lease_is_refused_and_nothing_is_done(subject: Subject) {
    let store = subject.store();
    let revision = put(&*store, "a", "1").await;
    let unknown = LeaseId(0x7eee_eeee_eeee_eeee);
    no_such_lease(&*store, unknown).await;
    let ops = vec![put_op("a", "2"), put_with("b", "1", unknown), put_op("c", "1")];
    let result = store.txn(Txn { compares: Vec::new(), ops }).await;
    assert!(matches!(result, Err(StoreError::NoSuchLease(id)) if id == unknown), "{result:?}");
    assert_eq!(get(&*store, "a").await.unwrap().value, b"1");
    assert_eq!(keys(&*store, "").await, ["a"]);
    assert_eq!(store.revision().await.unwrap(), revision);
}

pub(super) async fn the_last_put_says_which_lease_a_key_has(subject: Subject) {
    let store = subject.store();
    let first = store.grant(Duration::from_secs(3600)).await.unwrap();
    let second = store.grant(Duration::from_secs(3600)).await.unwrap();
    let names = ["detached", "moved", "recreated", "taken"];
    commit(&*store, names[..3].iter().map(|key| put_with(key, "1", first)).collect()).await;
    put(&*store, "taken", "1").await;
    commit(&*store, vec![delete_op("recreated")]).await;
    commit(
        &*store,
        vec![
            put_op("detached", "2"),
            put_with("moved", "2", second),
            put_op("recreated", "2"),
            put_with("taken", "2", second),
        ],
    )
    .await;
    store.revoke(first).await.unwrap();
    assert_eq!(keys(&*store, "").await, names);
    store.revoke(second).await.unwrap();
    assert_eq!(keys(&*store, "").await, ["detached", "recreated"]);
}

pub(super) async fn a_lease_without_keys_ends_without_a_revision(subject: Subject) {
    let store = subject.store();
    let revision = put(&*store, "a", "1").await;
    store.grant(subject.ttl).await.unwrap();
    let revoked = store.grant(subject.ttl).await.unwrap();
    store.revoke(revoked).await.unwrap();
    tokio::time::sleep(subject.ttl * 2).await;
    assert_eq!(store.revision().await.unwrap(), revision);
}

pub(super) async fn a_lease_outlives_a_restart_and_then_ends(mut subject: Subject) {
    let store = subject.store();
    let lease = store.grant(subject.ttl * 5).await.unwrap();
    let put = commit(&*store, vec![put_with("a", "1", lease), put_with("b", "1", lease)]).await;
    drop(store);
    subject.instance.reopen().await;
    let store = subject.store();
    assert_eq!(keys(&*store, "").await, ["a", "b"]);
    store.keep_alive(lease).await.unwrap();
    commit(&*store, vec![put_with("c", "1", lease)]).await;
    let other = store.grant(subject.ttl).await.unwrap();
    assert_ne!(other, lease, "an id was given twice");
    drop(store);
    subject.instance.crash().await;
    let store = subject.store();
    assert_eq!(keys(&*store, "").await, ["a", "b", "c"]);
    let restarted = Instant::now();
    gone(&*store, "a").await;
    let lasted = restarted.elapsed();
    // Generous, because a backend may be late; what matters is that the time did not start over again and again.
    assert!(lasted <= subject.ttl * 5 + Duration::from_secs(10), "{lasted:?}");
    assert_eq!(keys(&*store, "").await, [""; 0]);
    let mut watch = store.watch("", put).await.unwrap();
    next(&mut *watch).await;
    next(&mut *watch).await;
    assert_eq!(next(&mut *watch).await.len(), 3, "all of its keys go at once");
}

pub(super) async fn a_lease_whose_time_passed_during_a_crash_ends_after_it(mut subject: Subject) {
    let store = subject.store();
    let lease = store.grant(subject.ttl).await.unwrap();
    commit(&*store, vec![put_with("a", "1", lease)]).await;
    drop(store);
    subject.instance.crash().await;
    let store = subject.store();
    gone(&*store, "a").await;
    no_such_lease(&*store, lease).await;
}

async fn no_such_lease(store: &dyn Store, lease: LeaseId) {
    let result = store.keep_alive(lease).await;
    assert!(matches!(result, Err(StoreError::NoSuchLease(id)) if id == lease), "{result:?}");
}
