//! What an auditor is handed: a report, its signature, and the log of mutations.

#[path = "../../crates/audit/tests/sample/mod.rs"]
mod sample;

use std::fs;

use jiff::Timestamp;
use ulid::Ulid;
use warren_audit::bundle::{PAGE, REPORT, SIGNATURE};
use warren_audit::log::{Head, LogError, id_of, number_of, verify as verify_log, walk};
use warren_audit::sign::{SigningKey, sha256};
use warren_audit::verify;
use warren_fuzz::{Target, kind, run};
use warren_model::audit::Verdict;
use warren_model::record::AuditEntry;
use warren_model::{AccountId, EventId, KeyId};

const MEMORY: u64 = 16 << 20;
/// The page of every report: it is not looked into.
const A_PAGE: &str = "page\n";
const WORDS: [&[u8]; 12] = [
    b"null",
    b"\"\"",
    b"[]",
    b"{}",
    b"1e999",
    b"-1",
    b"\\u0000",
    b"\"pass\"",
    b"\"fail\"",
    b"\n",
    b"[[[[[[[[",
    b"{\"a\":",
];

/// The content of `report.json`.
fn report(key: &SigningKey) -> Vec<u8> {
    let mut report = sample::report(1, None, vec![sample::cell(Verdict::Pass)]);
    report.installation.key_id = key.public().id();
    report.page_sha256 = sha256(A_PAGE.as_bytes());
    serde_json::to_vec(&report).unwrap()
}

fn entry(number: u64) -> AuditEntry {
    let ulid = Ulid::from_parts(number, 1);
    AuditEntry {
        id: EventId::from_ulid(ulid),
        time: Timestamp::UNIX_EPOCH,
        account: AccountId::from_ulid(ulid),
        key: Some(KeyId::from_ulid(ulid)),
        token: None,
        action: "machine.create".into(),
        target: "mch".into(),
        request_id: "r".into(),
        request: serde_json::json!({"n": number, "cpus": 0.1}),
    }
}

/// Signed content is read as it is; so a report is signed after it was changed.
#[test]
fn audit_reports() {
    let (key, directory) = (SigningKey::generate().unwrap().0, tempfile::tempdir().unwrap());
    let file = |name: &str| directory.path().join(name);
    fs::write(file(PAGE), A_PAGE).unwrap();
    run(&Target {
        name: "audit_reports",
        seeds: vec![report(&key)],
        words: &WORDS,
        longest: 64 << 10,
        memory: MEMORY,
        parse: &|report| {
            fs::write(file(REPORT), report).unwrap();
            fs::write(file(SIGNATURE), serde_json::to_string(&key.sign(report)).unwrap()).unwrap();
            let verified =
                verify(directory.path(), &key.public()).map_err(|error| kind(std::mem::discriminant(&error)))?;
            // What was read is written as what reads the same.
            let written = serde_json::to_string(&verified.report).unwrap();
            assert_eq!(serde_json::from_str::<warren_audit::Report>(&written).unwrap(), verified.report);
            let page = warren_audit::page::render(&verified.report);
            assert!(!page.contains("<script"), "a report puts a script into its page");
            Ok(kind((
                verified.report.cells.len(),
                verified.report.inventory.machines.len(),
                verified.report.counts.cells,
            )))
        },
    });
}

/// Nothing but a signature by the key makes a report genuine.
#[test]
fn audit_signatures() {
    let (key, directory) = (SigningKey::generate().unwrap().0, tempfile::tempdir().unwrap());
    let other = SigningKey::generate().unwrap().0;
    let report = report(&key);
    let genuine = key.sign(&report);
    fs::write(directory.path().join(PAGE), A_PAGE).unwrap();
    fs::write(directory.path().join(REPORT), &report).unwrap();
    let forged = serde_json::to_vec(&other.sign(&report)).unwrap();
    run(&Target {
        name: "audit_signatures",
        seeds: vec![serde_json::to_vec(&genuine).unwrap()],
        words: &[forged.as_slice(), b"\"ed25519\"", b"\"none\"", b"00", b" ", b"\"\"", b"null"],
        longest: 4096,
        memory: MEMORY,
        parse: &|signature| {
            fs::write(directory.path().join(SIGNATURE), signature).unwrap();
            verify(directory.path(), &key.public()).map_err(|error| kind(std::mem::discriminant(&error)))?;
            let read: warren_audit::sign::Signature = serde_json::from_slice(signature).unwrap();
            assert_eq!(read.key_id, genuine.key_id);
            assert_eq!(read.signature.to_ascii_lowercase(), genuine.signature, "another signature is taken as genuine");
            Ok(0)
        },
    });
}

#[test]
fn audit_logs() {
    let (mut head, mut log) = (Head::default(), String::new());
    for number in 0..3 {
        let (line, next) = head.append(&entry(number)).unwrap();
        log.push_str(&line);
        head = next;
    }
    let unchained = format!("{}\n", serde_json::to_string(&entry(9)).unwrap());
    run(&Target {
        name: "audit_logs",
        seeds: vec![log.clone().into_bytes(), unchained.into_bytes(), Vec::new()],
        words: &WORDS,
        longest: 16 << 10,
        memory: MEMORY,
        parse: &|log| {
            let (mut lines, mut length) = (0u64, 0u64);
            let walked = walk(log, |line, text| {
                lines += 1;
                length += text.len() as u64 + 1;
                assert!(line.number == 0 || number_of(text) == Some(line.number));
                assert_eq!(id_of(text), Some(line.entry.id));
            });
            let way = |error: &LogError| kind(std::mem::discriminant(error));
            let checked = walked.map_err(|error| way(&error))?;
            assert_eq!((checked.whole, checked.whole + checked.torn), (length, log.len() as u64));
            match verify_log(log, None) {
                Ok(again) => assert_eq!((again, checked.torn), (checked.clone(), 0)),
                Err(LogError::Torn { .. }) => assert!(checked.torn > 0),
                Err(error) => panic!("{error}"),
            }
            Ok(kind((lines, checked.unchained, checked.torn > 0)))
        },
    });
}
