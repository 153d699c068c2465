//! Which synthetic address was given for which name, on disk.
//!
//! Two files in the directory of the control socket, opened before the edge gives up its privileges and never closed:
//! afterwards it can open nothing. One of them is appended to; when it has become much longer than what it says, what
//! still holds is written to the other, and from then on that one is appended to. A file counts from its line `ready`
//! on, and of two that count the one with the higher number. Lines are in the kernel before the address is said, so they
//! survive the death of every process; not the death of the host, which no machine survives either.
//!
//! ```text
//!   warren-names 1 7                        format, and the number of the file
//!   + mch_01… 1031 api.example.com          given: the slot, counted from 198.18.0.1
//!   - mch_01… 1031                          free again
//!   - mch_01…                               the member is gone
//!   ready
//! ```

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use warren_model::MemberId;
use warren_model::policy::HostName;

const FORMAT: &str = "warren-names 1";
const READY: &str = "ready";
/// A file shorter than this is never rewritten, in bytes.
const SMALL: u64 = 1 << 20;
/// How many times longer than what it says a file may become.
const WASTE: u64 = 4;
/// How long members that nobody has claimed since the start are kept: their networks come back with the daemon.
const UNCLAIMED: Duration = Duration::from_secs(24 * 3600);

/// The files could not be opened or read.
#[derive(Debug, thiserror::Error)]
#[error("the record of names at {path} cannot be used")]
pub struct LedgerError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

#[derive(Debug)]
pub(crate) struct Ledger(Mutex<Book>);

#[derive(Debug)]
struct Book {
    files: [File; 2],
    /// The one that is appended to.
    current: usize,
    number: u64,
    /// The length of the current file, in bytes.
    length: u64,
    /// The length from which on it is written anew.
    enough: u64,
    members: HashMap<MemberId, Page>,
    since: Instant,
}

#[derive(Debug, Default)]
struct Page {
    claimed: bool,
    by_slot: HashMap<u32, HostName>,
}

impl Ledger {
    /// Opens or makes `{stem}-a` and `{stem}-b` in this directory, readable by their owner only.
    pub fn open(directory: &Path, stem: &str) -> Result<Self, LedgerError> {
        use std::os::unix::fs::OpenOptionsExt;
        let open = |letter: &str| {
            let path = directory.join(format!("{stem}-{letter}"));
            let mut text = Vec::new();
            let opened = File::options()
                .read(true)
                .append(true)
                .create(true)
                .mode(0o600)
                .open(&path)
                .and_then(|mut file| file.read_to_end(&mut text).map(|_| file));
            opened.map(|file| (file, text)).map_err(|source| LedgerError { path, source })
        };
        let ((a, text_a), (b, text_b)) = (open("a")?, open("b")?);
        let said = [read(&text_a), read(&text_b)];
        let newest = (0..2).max_by_key(|index| said[*index].as_ref().map(|said| said.number)).unwrap_or(0);
        let [said_a, said_b] = said;
        let said = if newest == 0 { said_a } else { said_b };
        let said = said.unwrap_or_default();
        let mut book = Book {
            files: [a, b],
            current: newest,
            number: said.number,
            length: 0,
            enough: 0,
            members: said.members,
            since: Instant::now(),
        };
        // Begins each life with a whole file, whatever the last one left at the end of the old.
        let path = directory.join(stem);
        book.rewrite().map_err(|source| LedgerError { path, source })?;
        Ok(Self(Mutex::new(book)))
    }

    /// What this member was given; from now on it is somebody's.
    pub fn claim(&self, member: MemberId) -> Vec<(u32, HostName)> {
        let mut book = self.book();
        let page = book.members.entry(member).or_default();
        page.claimed = true;
        page.by_slot.iter().map(|(slot, host)| (*slot, host.clone())).collect()
    }

    /// Records that a member was given a slot, whoever had it before.
    pub fn give(&self, member: MemberId, slot: u32, host: &HostName) -> io::Result<()> {
        let mut book = self.book();
        book.append(&given(member, slot, host))?;
        book.members.entry(member).or_default().by_slot.insert(slot, host.clone());
        Ok(())
    }

    /// Records that a slot is free again.
    pub fn take_back(&self, member: MemberId, slot: u32) -> io::Result<()> {
        let mut book = self.book();
        book.append(&format!("- {member} {slot}\n"))?;
        if let Some(page) = book.members.get_mut(&member) {
            page.by_slot.remove(&slot);
        }
        Ok(())
    }

    /// Forgets what a member was given.
    pub fn forget(&self, member: MemberId) {
        let mut book = self.book();
        let had = book.members.remove(&member).is_some_and(|page| !page.by_slot.is_empty());
        // What is not forgotten on disk takes a little room there, and nothing else.
        if had && let Err(error) = book.append(&format!("- {member}\n")) {
            tracing::warn!(%error, "that a member is gone could not be recorded");
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn append(&mut self, line: &str) -> io::Result<()> {
        if self.length > self.enough {
            self.rewrite()?;
        }
        self.files[self.current].write_all(line.as_bytes())?;
        self.length += line.len() as u64;
        Ok(())
    }

    /// Writes what holds to the other file, which counts once it is whole.
    fn rewrite(&mut self) -> io::Result<()> {
        if self.since.elapsed() > UNCLAIMED {
            self.members.retain(|_, page| page.claimed);
        }
        let (other, number) = (1 - self.current, self.number + 1);
        let text = format!("{FORMAT} {number}\n{}{READY}\n", self.whole());
        self.files[other].set_len(0)?;
        self.files[other].write_all(text.as_bytes())?;
        (self.current, self.number, self.length) = (other, number, text.len() as u64);
        self.enough = SMALL.max(WASTE * self.length);
        Ok(())
    }

    fn whole(&self) -> String {
        let lines = self
            .members
            .iter()
            .flat_map(|(member, page)| page.by_slot.iter().map(|(slot, host)| given(*member, *slot, host)));
        lines.collect()
    }
}

fn given(member: MemberId, slot: u32, host: &HostName) -> String {
    let mut line = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(line, "+ {member} {slot} {host}");
    line
}

#[derive(Default)]
struct Said {
    number: u64,
    members: HashMap<MemberId, Page>,
}

/// What a file says; `None` when it was never finished. A line that breaks off at the end does not count.
fn read(bytes: &[u8]) -> Option<Said> {
    let whole = &bytes[..bytes.iter().rposition(|byte| *byte == b'\n')? + 1];
    let mut lines = std::str::from_utf8(whole).ok()?.lines();
    let number = lines.next()?.strip_prefix(FORMAT)?.strip_prefix(' ')?.parse().ok()?;
    let mut said = Said { number, members: HashMap::<MemberId, Page>::new() };
    let mut ready = false;
    for line in lines {
        let mut words = line.split(' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("+"), Some(member), Some(slot), Some(host)) => {
                let (Ok(member), Ok(slot), Ok(host)) = (member.parse(), slot.parse(), host.parse()) else { continue };
                said.members.entry(member).or_default().by_slot.insert(slot, host);
            }
            (Some("-"), Some(member), Some(slot), None) => {
                let (Ok(member), Ok(slot)) = (member.parse(), slot.parse::<u32>()) else { continue };
                if let Some(page) = said.members.get_mut(&member) {
                    page.by_slot.remove(&slot);
                }
            }
            (Some("-"), Some(member), None, None) => {
                let Ok(member) = member.parse() else { continue };
                said.members.remove(&member);
            }
            (Some(READY), None, None, None) => ready = true,
            _ => {}
        }
    }
    ready.then_some(said)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ulid::Ulid;

    fn member(number: u64) -> MemberId {
        warren_model::MachineId::from_ulid(Ulid::from_parts(number, 1)).into()
    }

    fn host(index: u32) -> HostName {
        format!("n{index}.example.com").parse().unwrap()
    }

    fn open(directory: &Path) -> Ledger {
        Ledger::open(directory, "names").unwrap()
    }

    fn claimed(ledger: &Ledger, number: u64) -> Vec<(u32, HostName)> {
        let mut known = ledger.claim(member(number));
        known.sort();
        known
    }

    #[test]
    fn it_says_what_it_was_told_after_every_death() {
        let directory = tempfile::tempdir().unwrap();
        for life in 0..5 {
            let ledger = open(directory.path());
            let before: Vec<_> = (0..life).map(|index| (index, host(index))).collect();
            assert_eq!(claimed(&ledger, 1), before);
            ledger.give(member(1), life, &host(life)).unwrap();
            ledger.give(member(2), life, &host(life)).unwrap();
            ledger.take_back(member(2), life).unwrap();
            ledger.give(member(3), 9, &host(9)).unwrap();
            ledger.forget(member(3));
            assert!(claimed(&ledger, 2).is_empty() && claimed(&ledger, 3).is_empty());
        }
        assert!(claimed(&open(directory.path()), 2).is_empty());
    }

    #[test]
    fn a_line_that_breaks_off_does_not_count_and_what_comes_after_it_does() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = open(directory.path());
        ledger.give(member(1), 1, &host(1)).unwrap();
        let current = if ledger.book().current == 0 { "names-a" } else { "names-b" };
        let path = directory.path().join(current);
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(format!("+ {} 2 n2.exam", member(1)).as_bytes()).unwrap();
        drop(ledger);
        let next = open(directory.path());
        assert_eq!(claimed(&next, 1), [(1, host(1))]);
        next.give(member(1), 3, &host(3)).unwrap();
        assert_eq!(claimed(&open(directory.path()), 1), [(1, host(1)), (3, host(3))]);
    }

    #[test]
    fn a_file_that_was_not_finished_leaves_the_other_in_force() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = open(directory.path());
        ledger.give(member(1), 1, &host(1)).unwrap();
        let other = if ledger.book().current == 0 { "names-b" } else { "names-a" };
        std::fs::write(directory.path().join(other), format!("{FORMAT} 99\n+ {} 7 n7.example.com\n", member(1)))
            .unwrap();
        assert_eq!(claimed(&open(directory.path()), 1), [(1, host(1))]);
    }

    #[test]
    fn it_does_not_grow_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = open(directory.path());
        for index in 0..200_000 {
            ledger.give(member(1), index % 7, &host(index)).unwrap();
        }
        let sizes = ["names-a", "names-b"].map(|name| directory.path().join(name).metadata().unwrap().len());
        assert!(sizes.iter().all(|size| *size <= SMALL + 100), "{sizes:?}");
        let expected = claimed(&ledger, 1);
        assert_eq!(expected.len(), 7);
        assert_eq!(claimed(&open(directory.path()), 1), expected);
    }

    #[test]
    fn files_are_readable_by_their_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        open(directory.path());
        let mode = directory.path().join("names-a").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    proptest! {
        #[test]
        fn whatever_a_file_holds_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400), tail in "[-+ a-z0-9_.\n]{0,200}") {
            read(&bytes);
            read(format!("{FORMAT} 3\n{READY}\n{tail}").as_bytes());
        }
    }
}
