mod crash;
mod file;
mod full;
mod history;
mod suite;
mod version_fixture;

use std::path::Path;

use rusqlite::Connection;

use super::*;
use crate::{Change, Op};

/// Limits so small that everything happens all the time.
fn tight() -> Limits {
    Limits {
        history: HistoryLimit { kept: 100_000, slack: 10, step: 3 },
        feed: FeedLimit { commits: 4, bytes: 10_000 },
        replay: ReplayLimit { changes: 3, bytes: 1000 },
    }
}

fn put(key: &str, value: &str) -> Op {
    Op::Put { key: key.into(), value: value.into(), lease: None }
}

async fn commit(store: &SqliteStore, ops: Vec<Op>) -> Revision {
    match store.txn(Txn { compares: Vec::new(), ops }).await.unwrap() {
        TxnOutcome::Committed(revision) => revision,
        TxnOutcome::Conflict(_) => unreachable!("there were no compares"),
    }
}

async fn list(store: &SqliteStore, prefix: &str) -> Vec<Entry> {
    store.list(Range { prefix: prefix.into(), after: None, limit: usize::MAX }).await.unwrap().entries
}

/// Whether the tables of a store that nobody has open agree with each other.
fn check_tables(path: &Path) {
    let connection = Connection::open(path).unwrap();
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    let integrity: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(integrity, "ok");
    assert_eq!(number("SELECT count(*) FROM pragma_foreign_key_check"), 0);
    assert_eq!(number("SELECT changes FROM ledger"), number("SELECT count(*) FROM change"));
    assert_eq!(
        number("SELECT revision - min(oldest, revision + 1) + 1 FROM ledger"),
        number("SELECT count(DISTINCT revision) FROM change WHERE revision >= (SELECT oldest FROM ledger)"),
        "the history has a gap"
    );
    assert_eq!(number("SELECT coalesce(max(revision), 0) FROM change"), number("SELECT revision FROM ledger"));
    // The newest change of each key is what the entries show, for keys that the history still knows.
    let disagreeing = number(
        "SELECT count(*) FROM (SELECT key, max(revision) AS revision, value FROM change GROUP BY key) AS newest
         LEFT JOIN entry USING (key)
         WHERE entry.value IS NOT newest.value OR (newest.value IS NOT NULL AND entry.modified != newest.revision)",
    );
    assert_eq!(disagreeing, 0);
}
