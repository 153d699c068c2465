//! Moves audit entries from the store to the append-only, hash-chained log.
//!
//! An entry is written in its mutation's transaction, appended here, synced, and only then deleted from the store. A
//! crash between the last two would append it twice, so the first write after a start reads the whole log: it finds the
//! end of the chain, and which of the waiting entries are there already. A crash in the middle of a write leaves a line
//! without an end; its entry still waits in the store, so the piece is cut off and the chain goes on from the last whole
//! line.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufReader, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use warren_audit::log::{self, Checked, Head, LogError};
use warren_audit::report::LogHead;
use warren_model::EventId;
use warren_model::record::AuditEntry;
use warren_store::{StoreError, TxnBuilder, Typed, Versioned, schema};

use crate::ReconcileError;
use crate::world::{World, blocking, lock};

/// How many entries are moved at once.
const BATCH: usize = 500;
/// How long entries may gather before they are moved.
const PAUSE: Duration = Duration::from_millis(500);

/// The log of mutations.
#[derive(Debug)]
pub struct AuditLog {
    path: PathBuf,
    /// Where the log ended when it was last written; `None` until then, and after a failure.
    end: Mutex<Option<End>>,
}

#[derive(Debug)]
struct End {
    head: Head,
    /// The file as it was left: one that was replaced or written by somebody else is read anew.
    inode: u64,
    length: u64,
    /// What was appended last: it is appended again when it could not be deleted from the store.
    last: HashSet<EventId>,
}

impl AuditLog {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, end: Mutex::default() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends those that are not there yet. Blocking.
    fn append(&self, entries: &[AuditEntry]) -> io::Result<()> {
        let mut end = lock(&self.end);
        let mut file =
            File::options().create(true).truncate(false).read(true).write(true).mode(0o600).open(&self.path)?;
        let there = file.metadata()?;
        let known = end.take().filter(|end| end.inode == there.ino() && end.length == there.len());
        let mut now = match known {
            Some(end) => end,
            None => read_end(&mut file, entries)?,
        };
        let mut text = String::new();
        for entry in entries.iter().filter(|entry| !now.last.contains(&entry.id)) {
            let (line, head) = now.head.append(entry)?;
            text.push_str(&line);
            now.head = head;
        }
        file.seek(SeekFrom::Start(now.length))?;
        file.write_all(text.as_bytes())?;
        file.sync_data()?;
        now.length += text.len() as u64;
        now.last = entries.iter().map(|entry| entry.id).collect();
        *end = Some(now);
        Ok(())
    }

    /// Checks the whole chain; `None` while there is no line. Blocking.
    pub(crate) fn examine(&self) -> io::Result<Option<LogHead>> {
        // Nothing is appended while it is read.
        let _end = lock(&self.end);
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let mut last = Head::default();
        match log::walk(BufReader::new(file), |line, text| {
            last = Head { number: line.number, sha256: warren_audit::sign::sha256(text) };
        }) {
            Ok(checked) if checked.head.number == 0 => Ok(None),
            Ok(checked) => Ok(Some(LogHead { number: checked.head.number, sha256: checked.head.sha256, intact: true })),
            Err(LogError::Read(error)) => Err(error),
            Err(_) => Ok(Some(LogHead { number: last.number, sha256: last.sha256, intact: false })),
        }
    }
}

/// Finds the end of the log and which of these entries it has, and cuts off what a crash left of a line.
fn read_end(file: &mut File, entries: &[AuditEntry]) -> io::Result<End> {
    let waiting: HashSet<EventId> = entries.iter().map(|entry| entry.id).collect();
    let mut last = HashSet::new();
    let mut note = |id| {
        if waiting.contains(&id) {
            last.insert(id);
        }
    };
    let checked = match log::walk(BufReader::new(&mut *file), |line, _| note(line.entry.id)) {
        Ok(checked) => checked,
        Err(LogError::Read(error)) => return Err(error),
        Err(error) => {
            tracing::error!(%error, "the chain of the audit log is broken: somebody changed it; it goes on after its last line");
            after_damage(file, &mut note)?
        }
    };
    if checked.torn > 0 {
        tracing::warn!(bytes = checked.torn, "the audit log ended in the middle of a line, which is written again");
        file.set_len(checked.whole)?;
        file.sync_data()?;
    }
    let inode = file.metadata()?.ino();
    Ok(End { head: checked.head, inode, length: checked.whole, last })
}

/// The end of a log whose chain is broken: the chain goes on from its last whole line, and stays broken where it is.
fn after_damage(file: &mut File, note: &mut impl FnMut(EventId)) -> io::Result<Checked> {
    file.seek(SeekFrom::Start(0))?;
    let mut reader = BufReader::new(file);
    let (mut whole, mut torn, mut number, mut bytes) = (0, 0, 0, Vec::new());
    let mut head = Head::default();
    loop {
        bytes.clear();
        let read = io::BufRead::read_until(&mut reader, b'\n', &mut bytes)? as u64;
        if read == 0 {
            break;
        }
        if bytes.last() != Some(&b'\n') {
            torn = read;
            break;
        }
        whole += read;
        let text = &bytes[..bytes.len() - 1];
        if let Some(id) = log::id_of(text) {
            note(id);
        }
        number = log::number_of(text).unwrap_or(number).max(number);
        head = Head { number, sha256: warren_audit::sign::sha256(text) };
    }
    Ok(Checked { first: 1, head, whole, torn, unchained: 0 })
}

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

/// Moves what waits in the store now; answers how many entries that were.
pub(crate) async fn move_batch(world: &World) -> Result<usize, ReconcileError> {
    // One at a time: two that move the same entries would each delete them, and only one append them.
    let _turn = world.audit_turn.lock().await;
    let (entries, _) = world.store.list_page(&schema::audits(), None, BATCH).await?;
    if entries.is_empty() {
        return Ok(0);
    }
    let log = Arc::clone(&world.audit_log);
    let batch: Vec<AuditEntry> = entries.iter().map(|entry| entry.record.clone()).collect();
    blocking(move || {
        log.append(&batch).map_err(|source| ReconcileError::File {
            action: "appending to the audit log",
            path: log.path().to_owned(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use warren_model::{AccountId, KeyId};

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

    fn entries(numbers: std::ops::RangeInclusive<u64>) -> Vec<AuditEntry> {
        numbers.map(entry).collect()
    }

    fn ids(path: &Path) -> Vec<EventId> {
        let text = std::fs::read(path).unwrap();
        let checked = log::verify(&text[..], None).unwrap();
        let ids: Vec<_> = text.split(|byte| *byte == b'\n').filter_map(log::id_of).collect();
        assert_eq!(checked.head.number, ids.len() as u64);
        ids
    }

    fn wanted(numbers: std::ops::RangeInclusive<u64>) -> Vec<EventId> {
        entries(numbers).into_iter().map(|entry| entry.id).collect()
    }

    #[test]
    fn an_entry_is_logged_once_even_when_it_comes_twice() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        let log = AuditLog::new(path.clone());
        log.append(&entries(1..=2)).unwrap();
        log.append(&entries(2..=3)).unwrap();
        // The process ended before the entries were deleted from the store.
        AuditLog::new(path.clone()).append(&entries(3..=5)).unwrap();
        assert_eq!(ids(&path), wanted(1..=5));
    }

    #[test]
    fn a_crash_at_any_byte_of_a_write_leaves_a_whole_chain_with_every_entry_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        AuditLog::new(path.clone()).append(&entries(1..=1)).unwrap();
        let before = std::fs::metadata(&path).unwrap().len();
        AuditLog::new(path.clone()).append(&entries(2..=3)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in before..=whole.len() as u64 {
            std::fs::write(&path, &whole[..cut as usize]).unwrap();
            AuditLog::new(path.clone()).append(&entries(2..=3)).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), whole, "cut at {cut}");
        }
    }

    #[test]
    fn a_log_that_was_changed_is_gone_on_with_and_stays_broken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        let log = AuditLog::new(path.clone());
        log.append(&entries(1..=3)).unwrap();
        assert!(log.examine().unwrap().unwrap().intact);
        let bent = std::fs::read_to_string(&path).unwrap().replacen("machine.create", "machine.delete", 1);
        std::fs::write(&path, bent).unwrap();
        AuditLog::new(path.clone()).append(&entries(3..=4)).unwrap();
        let text = std::fs::read(&path).unwrap();
        assert!(log::verify(&text[..], None).is_err());
        assert_eq!(text.split(|byte| *byte == b'\n').filter_map(log::id_of).collect::<Vec<_>>(), wanted(1..=4));
        assert!(!log.examine().unwrap().unwrap().intact);
    }

    #[test]
    fn a_log_from_before_the_chain_is_gone_on_with() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        std::fs::write(&path, format!("{}\n", serde_json::to_string(&entry(1)).unwrap())).unwrap();
        AuditLog::new(path.clone()).append(&entries(1..=2)).unwrap();
        let text = std::fs::read(&path).unwrap();
        let checked = log::verify(&text[..], None).unwrap();
        assert_eq!((checked.unchained, checked.head.number), (1, 1));
    }

    #[test]
    fn a_log_without_a_line_has_no_head() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(AuditLog::new(directory.path().join("audit.log")).examine().unwrap(), None);
    }
}
