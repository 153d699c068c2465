use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use rusqlite::params;
use tempfile::TempDir;

use super::version_fixture::VERSION_1_FILE;
use super::*;
use crate::sqlite::migration::MIGRATIONS;

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn version_of(path: &Path) -> u32 {
    Connection::open(path).unwrap().pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
}

fn fixture(directory: &TempDir, sql: &str) -> PathBuf {
    let path = directory.path().join("store.db");
    Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    path
}

#[tokio::test]
async fn only_the_owner_can_read_the_files() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("store.db");
    let store = SqliteStore::open(&path).unwrap();
    commit(&store, vec![put("a", "1")]).await;
    for name in ["store.db", "store.db-wal", "store.db-shm", "store.db.lock"] {
        assert_eq!(mode(&directory.path().join(name)), 0o600, "{name}");
    }
    drop(store);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let _store = SqliteStore::open(&path).unwrap();
    assert_eq!(mode(&path), 0o600);
}

#[tokio::test]
async fn a_file_has_one_user_at_a_time_however_it_is_named() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("store.db");
    let alias = directory.path().join("alias.db");
    let store = SqliteStore::open(&path).unwrap();
    symlink(&path, &alias).unwrap();
    for name in [&path, &alias] {
        match SqliteStore::open(name) {
            Err(StoreError::Locked { path: locked }) => assert!(locked.ends_with("store.db"), "{locked}"),
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("{} was opened twice", name.display()),
        }
    }
    commit(&store, vec![put("a", "1")]).await;
    drop(store);
    let store = SqliteStore::open(&alias).unwrap();
    assert!(store.get("a").await.unwrap().is_some());
}

#[tokio::test]
async fn a_failed_open_gives_the_file_up_again() {
    let directory = TempDir::new().unwrap();
    let path = fixture(&directory, "PRAGMA user_version = 99");
    for _ in 0..2 {
        let result = SqliteStore::open(&path).map(drop);
        assert!(matches!(result, Err(StoreError::TooNew { found: 99, known }) if known as usize == MIGRATIONS.len()));
    }
}

#[tokio::test]
async fn a_held_lock_of_sqlite_is_reported_as_such() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("store.db");
    drop(SqliteStore::open(&path).unwrap());
    let other = Connection::open(&path).unwrap();
    other.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; DELETE FROM lease; COMMIT;").unwrap();
    let result = tokio::task::spawn_blocking(move || SqliteStore::open(&path).map(drop)).await.unwrap();
    assert!(matches!(result, Err(StoreError::Locked { .. })), "{result:?}");
}

#[test]
fn what_is_no_store_is_left_alone() {
    let directory = TempDir::new().unwrap();
    let path = fixture(&directory, "CREATE TABLE recipe (name TEXT); INSERT INTO recipe VALUES ('soup')");
    let before = std::fs::read(&path).unwrap();
    let error = SqliteStore::open(&path).map(drop).unwrap_err();
    assert!(matches!(error, StoreError::Backend { .. }), "{error:?}");
    assert_eq!(std::fs::read(&path).unwrap(), before);

    let text = directory.path().join("text.db");
    std::fs::write(&text, "This is a letter and not a database, and it is long enough to be looked at.").unwrap();
    let error = SqliteStore::open(&text).map(drop).unwrap_err();
    assert!(matches!(error, StoreError::Backend { .. }), "{error:?}");

    let nowhere = directory.path().join("missing").join("store.db");
    assert!(matches!(SqliteStore::open(&nowhere).map(drop), Err(StoreError::Backend { .. })));
}

#[test]
fn a_commit_is_synced_to_the_disk() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("store.db");
    let claim = super::super::file::claim(&path).unwrap();
    let connection = super::super::file::open_writer(&claim.path).unwrap();
    let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(pragma("synchronous"), 2, "2 is FULL");
    assert_eq!(pragma("foreign_keys"), 1);
}

#[tokio::test]
async fn a_file_of_version_1_is_brought_to_the_newest_version() {
    let directory = TempDir::new().unwrap();
    let path = fixture(&directory, VERSION_1_FILE);
    {
        let connection = Connection::open(&path).unwrap();
        let hour = draft::unix_ms() + 3_600_000;
        connection.execute("UPDATE lease SET ends_at_ms = ?1", params![hour]).unwrap();
    }
    let store = SqliteStore::open(&path).unwrap();
    let entries = list(&store, "").await;
    let seen: Vec<_> = entries.iter().map(|e| (e.key.as_str(), e.value.as_slice(), e.created, e.modified)).collect();
    assert_eq!(
        seen,
        [
            ("account/1", b"{}".as_slice(), 1, 3),
            ("empty", b"", 3, 3),
            ("leased", b"x", 5, 5),
            ("uml\u{e4}ut", b"\0\xff", 2, 2)
        ]
    );
    assert!(matches!(store.watch("", 1).await, Err(StoreError::Compacted { asked: 1, oldest: 2 })));
    let mut watch = store.watch("", 2).await.unwrap();
    for revision in 2..=5 {
        assert_eq!(watch.next().await.unwrap()[0].revision, revision);
    }
    store.keep_alive(LeaseId(7)).await.unwrap();
    assert_eq!(store.grant(Duration::from_secs(60)).await.unwrap(), LeaseId(8));
    store.revoke(LeaseId(7)).await.unwrap();
    assert_eq!(watch.next().await.unwrap(), [Change { revision: 6, key: "leased".into(), value: None }]);
    drop((store, watch));
    assert_eq!(version_of(&path) as usize, MIGRATIONS.len());
}

#[test]
fn each_migration_is_done_once_and_whole_and_a_newer_file_is_refused() {
    let directory = TempDir::new().unwrap();
    let path = fixture(&directory, VERSION_1_FILE);
    let mut migrations = vec![MIGRATIONS[0], "ALTER TABLE entry ADD COLUMN note TEXT", "CREATE TABLE x (y); nonsense"];
    let error = super::super::file::open_writer_with(&path, &migrations).unwrap_err();
    assert!(matches!(error, StoreError::Backend { action: "migrate the schema", .. }), "{error:?}");
    assert_eq!(version_of(&path), 2, "the migration that worked stays, the other leaves no trace");
    migrations[2] = "CREATE TABLE x (y)";
    for _ in 0..2 {
        let connection = super::super::file::open_writer_with(&path, &migrations).unwrap();
        connection.execute("UPDATE entry SET note = 'new'", []).unwrap();
    }
    assert_eq!(version_of(&path), 3);
    let before = std::fs::read(&path).unwrap();
    for known in [1, 2] {
        let result = super::super::file::open_writer_with(&path, &migrations[..known]).map(drop);
        assert!(matches!(result, Err(StoreError::TooNew { found: 3, known: k }) if k as usize == known), "{result:?}");
    }
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn dropping_the_store_finishes_what_was_asked_and_ends_its_watches() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("store.db");
    let store = SqliteStore::open(&path).unwrap();
    let mut watch = store.watch("", 1).await.unwrap();
    for index in 0..50 {
        let mut asked = Box::pin(store.txn(Txn { compares: vec![], ops: vec![put(&index.to_string(), "1")] }));
        // One poll hands it over; the caller then goes away.
        let polled = std::future::poll_fn(|context| std::task::Poll::Ready(asked.as_mut().poll(context).is_ready()));
        polled.await;
    }
    drop(store);
    let mut seen = 0;
    let end = loop {
        match watch.next().await {
            Ok(_) => seen += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(end, StoreError::Closed), "{end:?}");
    assert_eq!(seen, 50);
    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(list(&store, "").await.len(), 50);
}
