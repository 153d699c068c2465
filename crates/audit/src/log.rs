//! The log of mutations: a file of lines of JSON, each with the SHA-256 of the line before.
//!
//! So a line cannot be changed, removed, inserted or moved without every later line showing it. What the chain alone
//! cannot show, that lines at the end are missing, shows against a signed report, which carries where the log stood.

use std::io::{self, BufRead};

use serde::{Deserialize, Serialize};
use warren_model::EventId;
use warren_model::record::AuditEntry;

use crate::report::LogHead;
use crate::sign::sha256;

/// What the first line says of the line before it.
pub const BEGINNING: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// Longer lines are none, in bytes. A request's body is bounded far below.
const LONGEST: u64 = 16 << 20;

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Counts up from 1.
    pub number: u64,
    /// SHA-256 of the line before, without its end of line, in hex.
    pub previous: String,
    #[serde(flatten)]
    pub entry: AuditEntry,
}

/// The end of a log, to which the next line is chained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub number: u64,
    /// SHA-256 of the last line.
    pub sha256: String,
}

impl Default for Head {
    fn default() -> Self {
        Self { number: 0, sha256: BEGINNING.to_owned() }
    }
}

impl Head {
    /// The next line with its end, and the head after it.
    pub fn append(&self, entry: &AuditEntry) -> Result<(String, Head), serde_json::Error> {
        let line = Line { number: self.number + 1, previous: self.sha256.clone(), entry: entry.clone() };
        let mut text = serde_json::to_string(&line)?;
        let head = Head { number: line.number, sha256: sha256(text.as_bytes()) };
        text.push('\n');
        Ok((text, head))
    }
}

/// What was found in a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The first number; 1 unless this is an excerpt.
    pub first: u64,
    pub head: Head,
    /// The length of all whole lines, in bytes.
    pub whole: u64,
    /// Bytes after the last whole line: a write that a crash cut short.
    pub torn: u64,
    /// Lines at the beginning from before the log was chained.
    pub unchained: u64,
}

/// Why a log is not what was written.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("the log cannot be read")]
    Read(#[from] io::Error),
    #[error("line {line} is not a line of the log")]
    NoLine {
        line: u64,
        #[source]
        source: serde_json::Error,
    },
    #[error("line {line} is longer than any line of the log")]
    TooLong { line: u64 },
    #[error("line {line} has number {found} where {expected} belongs: lines are missing or were moved")]
    Number { line: u64, found: u64, expected: u64 },
    #[error("line {line} does not go on from the line before it: one of them was changed")]
    Chain { line: u64 },
    #[error("its last line ({number}) breaks off in the middle, which only the server may leave behind for a moment")]
    Torn { number: u64 },
    #[error("it ends at line {found}; report {report} saw line {expected}: lines at the end are missing")]
    Shortened { found: u64, expected: u64, report: u64 },
    #[error("line {number} is not the one that report {report} saw: the log was written anew")]
    Rewritten { number: u64, report: u64 },
    #[error("it begins after line {number}, so that it cannot be held against report {report}")]
    BeginsLater { number: u64, report: u64 },
}

/// Walks over a log, from its first line on, and tells each line to `each` with its own bytes; one from before the log
/// was chained has number 0.
///
/// A torn end is no error here: see [`Checked::torn`].
pub fn walk(mut log: impl BufRead, mut each: impl FnMut(&Line, &[u8])) -> Result<Checked, LogError> {
    let mut checked = Checked { first: 1, head: Head::default(), whole: 0, torn: 0, unchained: 0 };
    let (mut bytes, mut place, mut begun) = (Vec::new(), 0, false);
    loop {
        bytes.clear();
        let read = io::Read::take(&mut log, LONGEST + 1).read_until(b'\n', &mut bytes)?;
        place += 1;
        if read == 0 {
            return Ok(checked);
        }
        if bytes.last() != Some(&b'\n') {
            if read as u64 > LONGEST {
                return Err(LogError::TooLong { line: place });
            }
            checked.torn = read as u64;
            return Ok(checked);
        }
        let text = &bytes[..bytes.len() - 1];
        let line: Line = match serde_json::from_slice(text) {
            Ok(line) => line,
            // Before the log was chained, a line was the entry alone.
            Err(source) => {
                let entry = serde_json::from_slice::<AuditEntry>(text).ok().filter(|_| !begun);
                let Some(entry) = entry else { return Err(LogError::NoLine { line: place, source }) };
                checked.unchained += 1;
                checked.whole += read as u64;
                checked.head = Head { number: 0, sha256: sha256(text) };
                each(&Line { number: 0, previous: String::new(), entry }, text);
                continue;
            }
        };
        if !begun {
            begun = true;
            checked.first = line.number;
            if line.number > 1 && checked.unchained == 0 {
                // An excerpt: what came before it is taken as it says.
                checked.head = Head { number: line.number - 1, sha256: line.previous.clone() };
            }
        }
        let expected = checked.head.number + 1;
        if line.number != expected {
            return Err(LogError::Number { line: place, found: line.number, expected });
        }
        if line.previous != checked.head.sha256 {
            return Err(LogError::Chain { line: place });
        }
        checked.head = Head { number: line.number, sha256: sha256(text) };
        checked.whole += read as u64;
        each(&line, text);
    }
}

/// Checks a log, and that it goes on from where a signed report saw it.
pub fn verify(log: impl BufRead, seen: Option<(u64, &LogHead)>) -> Result<Checked, LogError> {
    let mut at_head = None;
    let checked = walk(log, |line, text| {
        if seen.is_some_and(|(_, head)| head.number == line.number) {
            at_head = Some(sha256(text));
        }
    })?;
    if checked.torn > 0 {
        return Err(LogError::Torn { number: checked.head.number + 1 });
    }
    if let Some((report, head)) = seen.filter(|(_, head)| head.number > 0) {
        if checked.head.number < head.number {
            return Err(LogError::Shortened { found: checked.head.number, expected: head.number, report });
        }
        if checked.first > head.number {
            return Err(LogError::BeginsLater { number: head.number, report });
        }
        if at_head.as_deref() != Some(head.sha256.as_str()) {
            return Err(LogError::Rewritten { number: head.number, report });
        }
    }
    Ok(checked)
}

/// The id of an entry in a whole line, chained or not.
pub fn id_of(text: &[u8]) -> Option<EventId> {
    #[derive(Deserialize)]
    struct Id {
        id: EventId,
    }
    serde_json::from_slice::<Id>(text).ok().map(|line| line.id)
}

/// The number that a line says it has, whether the rest of it holds or not.
pub fn number_of(text: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Number {
        number: u64,
    }
    serde_json::from_slice::<Number>(text).ok().map(|line| line.number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
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
            request: serde_json::json!({"n": n, "cpus": 0.1}),
        }
    }

    fn log(lines: u64) -> String {
        let mut head = Head::default();
        let mut text = String::new();
        for n in 1..=lines {
            let (line, next) = head.append(&entry(n)).unwrap();
            text.push_str(&line);
            head = next;
        }
        text
    }

    #[test]
    fn a_log_as_it_was_written_holds() {
        let text = log(5);
        let checked = verify(text.as_bytes(), None).unwrap();
        assert_eq!((checked.first, checked.head.number, checked.whole), (1, 5, text.len() as u64));
        assert_eq!(verify("".as_bytes(), None).unwrap().head, Head::default());
    }

    #[test]
    fn an_excerpt_holds_from_its_first_line_on() {
        let text = log(5);
        let excerpt: String = text.lines().skip(2).map(|line| format!("{line}\n")).collect();
        let checked = verify(excerpt.as_bytes(), None).unwrap();
        assert_eq!((checked.first, checked.head.number), (3, 5));
    }

    #[test]
    fn a_removed_moved_repeated_or_torn_line_shows() {
        let text = log(4);
        let lines: Vec<&str> = text.lines().collect();
        let join = |order: &[usize]| order.iter().map(|at| format!("{}\n", lines[*at])).collect::<String>();
        for order in [vec![0, 2, 3], vec![0, 2, 1, 3], vec![0, 1, 1, 2, 3]] {
            assert!(verify(join(&order).as_bytes(), None).is_err(), "{order:?}");
        }
        let torn = &text[..text.len() - 9];
        assert!(matches!(verify(torn.as_bytes(), None), Err(LogError::Torn { number: 4 })));
        let walked = walk(torn.as_bytes(), |_, _| ()).unwrap();
        assert_eq!(walked.whole + walked.torn, torn.len() as u64);
    }

    #[test]
    fn lines_that_are_missing_at_the_end_show_against_a_report() {
        let text = log(4);
        let whole = verify(text.as_bytes(), None).unwrap().head;
        let seen = LogHead { number: 4, sha256: whole.sha256, intact: true };
        assert!(verify(text.as_bytes(), Some((9, &seen))).is_ok());
        assert!(verify(log(6).as_bytes(), Some((9, &seen))).is_ok());
        assert!(matches!(verify(log(3).as_bytes(), Some((9, &seen))), Err(LogError::Shortened { .. })));
        let anew = log(4).replace("machine.create", "machine.delete");
        assert!(verify(anew.as_bytes(), Some((9, &seen))).is_err());
        let mut head = Head::default();
        let mut forged = String::new();
        for n in 11..=15 {
            let (line, next) = head.append(&entry(n)).unwrap();
            forged.push_str(&line);
            head = next;
        }
        assert!(matches!(verify(forged.as_bytes(), Some((9, &seen))), Err(LogError::Rewritten { .. })));
    }

    #[test]
    fn lines_from_before_the_chain_are_told_apart_and_bound_by_it() {
        let old: String = (1..=2).map(|n| format!("{}\n", serde_json::to_string(&entry(n)).unwrap())).collect();
        let checked = walk(old.as_bytes(), |_, _| ()).unwrap();
        assert_eq!((checked.unchained, checked.head.number), (2, 0));
        let (line, _) = checked.head.append(&entry(3)).unwrap();
        assert_eq!(verify(format!("{old}{line}").as_bytes(), None).unwrap().head.number, 1);
        let bent = old.replacen("\"r\"", "\"s\"", 2);
        assert!(verify(format!("{bent}{line}").as_bytes(), None).is_err());
    }

    proptest! {
        #[test]
        fn no_byte_of_a_line_before_the_last_changes_unseen(at in 0usize..2000, with in any::<u8>()) {
            let text = log(4);
            let last = text[..text.len() - 1].rfind('\n').unwrap();
            let at = at % last;
            let mut bytes = text.into_bytes();
            prop_assume!(bytes[at] != with);
            bytes[at] = with;
            prop_assert!(verify(&bytes[..], None).is_err());
        }

        #[test]
        fn no_bytes_are_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = verify(&bytes[..], None);
        }
    }
}
