//! The schema of the file, and how an older one becomes the newest.
//!
//! `PRAGMA user_version` holds how many of [`MIGRATIONS`] were applied. A migration that was ever released is never
//! edited: a new one is appended.

use rusqlite::{Connection, TransactionBehavior};

use super::error::failed;
use super::fail;
use crate::StoreError;

/// Each brings the schema from version `index` to `index + 1`.
pub(super) const MIGRATIONS: &[&str] = &[VERSION_1];

const VERSION_1: &str = "
CREATE TABLE lease (
    id         INTEGER PRIMARY KEY AUTOINCREMENT, -- never given out twice
    ttl_ms     INTEGER NOT NULL,
    ends_at_ms INTEGER NOT NULL                   -- Unix time; used only to find the time left after a restart
) STRICT;

CREATE TABLE entry (
    key      TEXT NOT NULL PRIMARY KEY,
    value    BLOB NOT NULL,
    created  INTEGER NOT NULL,
    modified INTEGER NOT NULL,
    lease    INTEGER REFERENCES lease (id)
) STRICT, WITHOUT ROWID;

CREATE INDEX entry_by_lease ON entry (lease) WHERE lease IS NOT NULL;

CREATE TABLE change (
    revision INTEGER NOT NULL,
    key      TEXT NOT NULL,
    value    BLOB,                                -- NULL where the key was deleted
    PRIMARY KEY (revision, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE ledger (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    revision INTEGER NOT NULL,                    -- the newest
    oldest   INTEGER NOT NULL,                    -- changes before it are forgotten, and deleted as time allows
    changes  INTEGER NOT NULL                     -- how many rows table change has
) STRICT;

INSERT INTO ledger VALUES (1, 0, 1, 0);
";

/// The schema version of the file; 0 for an empty one.
///
/// # Errors
/// [`StoreError::TooNew`] when `migrations` does not reach that version.
pub(super) fn recognize(connection: &Connection, migrations: &[&str]) -> Result<u32, StoreError> {
    let found: u32 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(failed("read the schema version"))?;
    if found as usize > migrations.len() {
        return Err(StoreError::TooNew { found, known: u32::try_from(migrations.len()).unwrap_or(u32::MAX) });
    }
    if found == 0 && has_tables(connection)? {
        return Err(StoreError::Backend {
            action: "recognize the file as a store",
            source: "it is a database of some other program".into(),
        });
    }
    Ok(found)
}

/// Brings the file to the newest schema. Each step is one transaction, so a crash leaves a version whole.
pub(super) fn migrate(connection: &mut Connection, migrations: &[&str]) -> Result<(), StoreError> {
    let found = recognize(connection, migrations)?;
    for (version, sql) in (1_u32..).zip(migrations).skip(found as usize) {
        let action = "migrate the schema";
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed(action))?;
        transaction.execute_batch(sql).map_err(failed(action))?;
        fail::point("migration-applied");
        transaction.pragma_update(None, "user_version", version).map_err(failed(action))?;
        fail::point("migration-numbered");
        transaction.commit().map_err(failed(action))?;
        fail::point("migration-committed");
    }
    Ok(())
}

fn has_tables(connection: &Connection) -> Result<bool, StoreError> {
    connection
        .query_row("SELECT EXISTS (SELECT 1 FROM sqlite_schema)", [], |row| row.get(0))
        .map_err(failed("read the schema"))
}
