use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::*;

const DIRECTORY: &str = "WARREN_STORE_SMALL_DISK";
const THIS: &str = "sqlite::tests::full::a_full_disk_is_reported_and_survived";

/// Runs itself again where it may mount a small disk of its own.
#[test]
fn a_full_disk_is_reported_and_survived() {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        return runtime.block_on(fill_and_go_on(PathBuf::from(directory)));
    }
    let directory = TempDir::new().unwrap();
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount"]);
        command
    };
    if !unshare().arg("true").status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: this host lets nobody make a mount namespace");
        return;
    }
    let mount_and_run = "mount -t tmpfs -o size=2m none \"$1\" && exec \"$2\" --exact \"$3\" --nocapture";
    let output = unshare()
        .args(["sh", "-c", mount_and_run, "sh"])
        .arg(directory.path())
        .arg(std::env::current_exe().unwrap())
        .arg(THIS)
        .env(DIRECTORY, directory.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

async fn fill_and_go_on(directory: PathBuf) {
    let path = directory.join("store.db");
    let ballast = directory.join("ballast");
    std::fs::write(&ballast, vec![0; 512 * 1024]).unwrap();
    let store = Arc::new(SqliteStore::open(&path).unwrap());
    const TTL: Duration = Duration::from_secs(2);
    let lease = store.grant(TTL).await.unwrap();
    commit(&store, vec![Op::Put { key: "leased".into(), value: vec![1], lease: Some(lease) }]).await;
    let mut answered = Vec::new();
    let error = loop {
        let key = format!("k/{:05}", answered.len());
        let ops = vec![Op::Put { key: key.clone(), value: vec![b'x'; 3000], lease: None }, put("last", &key)];
        match store.txn(Txn { compares: vec![], ops }).await {
            Ok(_) => answered.push(key),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::DiskFull), "{error:?}");
    assert!(answered.len() > 20);

    let kept = async || {
        let keys: Vec<_> = list(&store, "k/").await.into_iter().map(|entry| entry.key).collect();
        assert_eq!(keys, answered);
        assert_eq!(store.get("last").await.unwrap().unwrap().value, answered.last().unwrap().as_bytes());
    };
    kept().await;
    let tasks: Vec<_> = (0..8)
        .map(|index| {
            let store = Arc::clone(&store);
            let ops = vec![Op::Put { key: format!("more/{index}"), value: vec![1; 100_000], lease: None }];
            tokio::spawn(async move { store.txn(Txn { compares: vec![], ops }).await })
        })
        .collect();
    for task in tasks {
        assert!(matches!(task.await.unwrap(), Err(StoreError::DiskFull)));
    }
    kept().await;

    tokio::time::sleep(TTL).await;
    std::fs::remove_file(&ballast).unwrap();
    let before = store.revision().await.unwrap();
    let mut watch = store.watch("", before + 1).await.unwrap();
    commit(&store, vec![put("after", "1")]).await;
    // The lease ended while there was no room to say so.
    while store.get("leased").await.unwrap().is_some() {
        watch.next().await.unwrap();
    }
    kept().await;
    drop((watch, kept));
    drop(Arc::into_inner(store).unwrap());
    check_tables(&path);
    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(list(&store, "k/").await.len(), answered.len());
    assert!(store.get("after").await.unwrap().is_some());
}
