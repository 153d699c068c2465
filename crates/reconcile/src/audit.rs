//! Moves audit entries from the store to the append-only log.
//!
//! An entry is written in its mutation's transaction, appended here, synced, and only then deleted from the store. A
//! crash between the last two would append it twice, so the ids at the end of the log are read first.

use std::collections::HashSet;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use warren_model::record::AuditEntry;
use warren_store::{StoreError, TxnBuilder, Typed, Versioned, schema};

use crate::ReconcileError;
use crate::world::{World, blocking};

/// How many entries are moved at once.
const BATCH: usize = 500;
/// How much of the log's end is searched for entries that are already there.
const TAIL: u64 = 1 << 20;
/// How long entries may gather before they are moved.
const PAUSE: Duration = Duration::from_millis(500);

pub(crate) async fn keep(world: Arc<World>) {
    loop {
        match move_batch(&world).await {
            Ok(0) => {}
            Ok(_) => continue,
            Err(error) => tracing::error!(error = %error.chain(), "audit entries wait in the store"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn move_batch(world: &World) -> Result<usize, ReconcileError> {
    let (entries, _) = world.store.list_page(&schema::audits(), None, BATCH).await?;
    if entries.is_empty() {
        return Ok(0);
    }
    let path = world.audit_log.clone();
    let batch: Vec<AuditEntry> = entries.iter().map(|entry| entry.record.clone()).collect();
    let failed_path = path.clone();
    blocking(move || {
        append(&path, &batch).map_err(|source| ReconcileError::File {
            action: "appending to the audit log",
            path: failed_path,
            source,
        })
    })
    .await?;
    delete(world, &entries).await?;
    Ok(entries.len())
}

async fn delete(world: &World, entries: &[Versioned<AuditEntry>]) -> Result<(), StoreError> {
    let txn = entries.iter().fold(TxnBuilder::new(), |txn, entry| txn.delete(&schema::audit(entry.record.id)));
    txn.commit(world.store.as_ref()).await?;
    Ok(())
}

fn append(path: &Path, entries: &[AuditEntry]) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = std::fs::OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    let tail = String::from_utf8_lossy(&tail);
    let known: HashSet<String> = tail
        .lines()
        .filter_map(|line| serde_json::from_str::<AuditEntry>(line).ok())
        .map(|entry| entry.id.to_string())
        .collect();
    let mut text = Vec::new();
    // A line that a crash cut short is closed, so that the next one stands by itself.
    if !tail.is_empty() && !tail.ends_with('\n') {
        text.push(b'\n');
    }
    for entry in entries.iter().filter(|entry| !known.contains(&entry.id.to_string())) {
        serde_json::to_writer(&mut text, entry)?;
        text.push(b'\n');
    }
    file.write_all(&text)?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_model::{AccountId, EventId, KeyId};

    fn entry(n: u64) -> AuditEntry {
        let ulid = ulid::Ulid::from_parts(n, 1);
        AuditEntry {
            id: EventId::from_ulid(ulid),
            time: jiff::Timestamp::UNIX_EPOCH,
            account: AccountId::from_ulid(ulid),
            key: KeyId::from_ulid(ulid),
            action: "machine.create".into(),
            target: "mch".into(),
            request_id: "r".into(),
            request: serde_json::Value::Null,
        }
    }

    #[test]
    fn an_entry_is_logged_once_even_when_it_comes_twice() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        append(&path, &[entry(1), entry(2)]).unwrap();
        append(&path, &[entry(2), entry(3)]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let ids: Vec<String> =
            text.lines().map(|line| serde_json::from_str::<AuditEntry>(line).unwrap().id.to_string()).collect();
        assert_eq!(ids, [1, 2, 3].map(|n| entry(n).id.to_string()));
    }

    #[test]
    fn a_line_that_a_crash_cut_short_does_not_spoil_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        std::fs::write(&path, "{\"id\":\"evt_").unwrap();
        append(&path, &[entry(1)]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(serde_json::from_str::<AuditEntry>(text.lines().last().unwrap()).is_ok());
    }
}
