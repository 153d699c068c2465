use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::*;
use crate::conformance::{self, Factory, Instance};

struct Files {
    limits: Limits,
}

struct File {
    limits: Limits,
    directory: TempDir,
    store: Option<Arc<SqliteStore>>,
}

impl File {
    fn path(&self) -> PathBuf {
        self.directory.path().join("store.db")
    }

    fn open(&mut self) {
        self.store = Some(Arc::new(SqliteStore::open_with(&self.path(), self.limits).unwrap()));
    }

    fn close(&mut self) {
        let store = self.store.take().unwrap();
        drop(Arc::into_inner(store).expect("the suite still holds the store"));
    }
}

#[async_trait]
impl Factory for Files {
    async fn fresh(&self) -> Box<dyn Instance> {
        let mut file = File { limits: self.limits, directory: TempDir::new().unwrap(), store: None };
        file.open();
        Box::new(file)
    }

    fn shortest_ttl(&self) -> Duration {
        Duration::from_secs(1)
    }
}

#[async_trait]
impl Instance for File {
    fn store(&self) -> Arc<dyn Store> {
        Arc::clone(self.store.as_ref().unwrap()) as Arc<dyn Store>
    }

    async fn reopen(&mut self) {
        self.close();
        check_tables(&self.path());
        self.open();
    }

    /// Goes on with a copy of what is in the files right now.
    async fn crash(&mut self) {
        let copy = TempDir::new().unwrap();
        {
            // Holds off the writer, which may be shortening the history, so that the copy is of one instant.
            let connection = Connection::open(self.path()).unwrap();
            connection.busy_timeout(Duration::from_secs(30)).unwrap();
            connection.execute_batch("BEGIN IMMEDIATE").unwrap();
            for name in ["store.db", "store.db-wal"] {
                // By another process: to close a descriptor of the database in this one would drop SQLite's locks.
                let status = Command::new("cp").arg(self.directory.path().join(name)).arg(copy.path()).status();
                assert!(status.unwrap().success());
            }
        }
        self.close();
        self.directory = copy;
        self.open();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_store_conforms() {
    conformance::run(&Files { limits: Limits::default() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_store_conforms_with_hardly_any_memory() {
    conformance::run(&Files { limits: tight() }).await;
}

#[tokio::test]
async fn the_store_conforms_on_one_thread() {
    conformance::run(&Files { limits: Limits::default() }).await;
}
