//! Moves audit entries from the store to the append-only, hash-chained log.
//!
//! An entry is written in its mutation's transaction, appended here, synced, and only then deleted from the store. A
//! crash between the last two would append it twice, so the first write after a start reads the whole log: it finds the
//! end of the chain, and which of the waiting entries are there already. A crash in the middle of a write leaves a line
//! without an end; its entry still waits in the store, so the piece is cut off and the chain goes on from the last whole
//! line.
//!
//! The chain alone does not show that lines at its end are missing. So after each write the file `audit.head` beside the
//! log says where it ended, and a log that has no such line any more is not intact. That file then stays as it is, however
//! far the log goes on.

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
    /// The log no longer has the line that the file beside it names.
    lost: bool,
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
            None => read_end(&mut file, entries, self.recorded()?)?,
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
        let (head, lost) = (now.head.clone(), now.lost);
        *end = Some(now);
        // An older head is only the weaker witness, so that a crash in between does no harm.
        if lost || head.number == 0 { Ok(()) } else { self.record(&head) }
    }

    /// Checks the whole chain, and that it has the lines that the file beside it and the `seen` head name; `None` while
    /// there is no line and was none. Blocking.
    pub(crate) fn examine(&self, seen: Option<&LogHead>) -> io::Result<Option<Examined>> {
        // Nothing is appended while it is read.
        let _end = lock(&self.end);
        let recorded = self.recorded()?;
        let mut witnesses: Vec<Witness> = recorded.into_iter().map(Witness::of).collect();
        let seen = seen.filter(|head| head.number > 0);
        witnesses.extend(seen.map(|head| Witness::of(Head { number: head.number, sha256: head.sha256.clone() })));
        let mut last = Head::default();
        let walked = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && witnesses.is_empty() => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => return Err(error),
            Ok(file) => log::walk(BufReader::new(file), |line, text| {
                last = Head { number: line.number, sha256: warren_audit::sign::sha256(text) };
                witnesses.iter_mut().for_each(|witness| witness.look(&last));
            })
            .map(drop),
        };
        let problem = match walked {
            Err(LogError::Read(error)) => return Err(error),
            Err(error) => Some(format!("the chain of the log of mutations is broken: {error}")),
            Ok(()) => witnesses.iter().filter(|witness| !witness.found).map(|lost| lost.head.number).max().map(|number| {
                format!(
                    "the log of mutations was cut off or written anew: it ended at line {number} before, and that line is \
                     not there any more"
                )
            }),
        };
        if last.number == 0 && problem.is_none() {
            return Ok(None);
        }
        let head = LogHead { number: last.number, sha256: last.sha256, intact: problem.is_none() };
        Ok(Some(Examined { head, problem }))
    }

    fn head_path(&self) -> PathBuf {
        self.path.with_extension("head")
    }

    /// Where the log ended when it was last written.
    fn recorded(&self) -> io::Result<Option<Head>> {
        let text = match std::fs::read_to_string(self.head_path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let head = text.split_once(' ').and_then(|(number, sha256)| {
            let (number, sha256) = (number.parse().ok()?, sha256.trim_end().to_owned());
            Some(Head { number, sha256 })
        });
        // What cannot be read is no line of the log either.
        Ok(Some(head.unwrap_or(Head { number: u64::MAX, sha256: String::new() })))
    }

    fn record(&self, head: &Head) -> io::Result<()> {
        let path = self.head_path();
        let temporary = path.with_extension("head.new");
        let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
        file.write_all(format!("{} {}\n", head.number, head.sha256).as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)
    }
}

/// What an examination of the log found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Examined {
    pub head: LogHead,
    /// Why it is not intact.
    pub problem: Option<String>,
}

/// A line that the log has to have.
struct Witness {
    head: Head,
    found: bool,
}

impl Witness {
    fn of(head: Head) -> Self {
        Self { head, found: false }
    }

    fn look(&mut self, line: &Head) {
        self.found |= *line == self.head;
    }
}

/// Finds the end of the log and which of these entries it has, and cuts off what a crash left of a line.
fn read_end(file: &mut File, entries: &[AuditEntry], recorded: Option<Head>) -> io::Result<End> {
    let mut witness = recorded.map(Witness::of);
    let waiting: HashSet<EventId> = entries.iter().map(|entry| entry.id).collect();
    let mut last = HashSet::new();
    let mut note = |id| {
        if waiting.contains(&id) {
            last.insert(id);
        }
    };
    let mut look = |number: u64, text: &[u8]| {
        if let Some(witness) = witness.as_mut().filter(|witness| witness.head.number == number) {
            witness.look(&Head { number, sha256: warren_audit::sign::sha256(text) });
        }
    };
    let walked = log::walk(BufReader::new(&mut *file), |line, text| {
        note(line.entry.id);
        look(line.number, text);
    });
    let checked = match walked {
        Ok(checked) => checked,
        Err(LogError::Read(error)) => return Err(error),
        Err(error) => {
            tracing::error!(%error, "the chain of the audit log is broken: somebody changed it; it goes on after its last line");
            after_damage(file, &mut note, &mut look)?
        }
    };
    let lost = witness.is_some_and(|witness| !witness.found);
    if lost {
        tracing::error!(
            "the audit log has not the line any more at which it ended: somebody cut it off or replaced it"
        );
    }
    if checked.torn > 0 {
        tracing::warn!(bytes = checked.torn, "the audit log ended in the middle of a line, which is written again");
        file.set_len(checked.whole)?;
        file.sync_data()?;
    }
    let inode = file.metadata()?.ino();
    Ok(End { head: checked.head, inode, length: checked.whole, lost, last })
}

/// The end of a log whose chain is broken: the chain goes on from its last whole line, and stays broken where it is.
fn after_damage(
    file: &mut File,
    note: &mut impl FnMut(EventId),
    look: &mut impl FnMut(u64, &[u8]),
) -> io::Result<Checked> {
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
        if let Some(said) = log::number_of(text) {
            look(said, text);
            number = number.max(said);
        }
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
            key: Some(KeyId::from_ulid(ulid)),
            token: None,
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
        assert!(log.examine(None).unwrap().unwrap().head.intact);
        let bent = std::fs::read_to_string(&path).unwrap().replacen("machine.create", "machine.delete", 1);
        std::fs::write(&path, bent).unwrap();
        AuditLog::new(path.clone()).append(&entries(3..=4)).unwrap();
        let text = std::fs::read(&path).unwrap();
        assert!(log::verify(&text[..], None).is_err());
        assert_eq!(text.split(|byte| *byte == b'\n').filter_map(log::id_of).collect::<Vec<_>>(), wanted(1..=4));
        assert!(!log.examine(None).unwrap().unwrap().head.intact);
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
        assert_eq!(AuditLog::new(directory.path().join("audit.log")).examine(None).unwrap(), None);
    }

    #[test]
    fn a_log_whose_end_was_cut_off_is_not_intact_and_stays_so_however_far_it_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        AuditLog::new(path.clone()).append(&entries(1..=4)).unwrap();
        let whole = std::fs::read_to_string(&path).unwrap();
        let cut: String = whole.lines().take(2).map(|line| format!("{line}\n")).collect();
        std::fs::write(&path, &cut).unwrap();
        let log = AuditLog::new(path.clone());
        let found = log.examine(None).unwrap().unwrap();
        assert_eq!((found.head.number, found.head.intact), (2, false));
        assert!(found.problem.unwrap().contains("line 4"));
        for n in 5..=7 {
            log.append(&entries(n..=n)).unwrap();
        }
        assert!(!log.examine(None).unwrap().unwrap().head.intact);
        std::fs::write(&path, &whole).unwrap();
        assert!(log.examine(None).unwrap().unwrap().head.intact);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(log.examine(None).unwrap().unwrap().head.number, 0);
    }

    #[test]
    fn a_log_that_a_report_saw_further_than_it_goes_is_not_intact() {
        let directory = tempfile::tempdir().unwrap();
        let log = AuditLog::new(directory.path().join("audit.log"));
        log.append(&entries(1..=2)).unwrap();
        let seen = log.examine(None).unwrap().unwrap().head;
        log.append(&entries(3..=3)).unwrap();
        assert!(log.examine(Some(&seen)).unwrap().unwrap().head.intact);
        let later = LogHead { number: 9, ..seen };
        assert!(!log.examine(Some(&later)).unwrap().unwrap().head.intact);
    }

    #[test]
    fn a_log_from_before_the_head_was_kept_is_gone_on_with() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        AuditLog::new(path.clone()).append(&entries(1..=2)).unwrap();
        std::fs::remove_file(path.with_extension("head")).unwrap();
        let log = AuditLog::new(path);
        log.append(&entries(3..=3)).unwrap();
        assert!(log.examine(None).unwrap().unwrap().head.intact);
    }
}
