//! A directory with a report, and its verification without any server.
//!
//! ```text
//! DIR/report.json  report.sig  report.html     the newest report
//! DIR/earlier/00000006/…                       the ones before it, under their numbers
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use warren_model::audit::SignedReport;

use crate::page;
use crate::report::{FORMAT, Link, Report};
use crate::sign::{PublicKey, Signature, SigningKey, sha256};

pub const REPORT: &str = "report.json";
pub const SIGNATURE: &str = "report.sig";
pub const PAGE: &str = "report.html";
const EARLIER: &str = "earlier";

/// Larger files are no reports, in bytes.
const LARGEST: u64 = 1 << 30;

/// Completes a report with its page, and signs it.
pub fn seal(mut report: Report, key: &SigningKey) -> Result<SignedReport, serde_json::Error> {
    report.installation.key_id = key.public().id();
    let page = page::render(&report);
    report.page_sha256 = sha256(page.as_bytes());
    let mut json = serde_json::to_string(&report)?;
    json.push('\n');
    let mut signature = serde_json::to_string(&key.sign(json.as_bytes()))?;
    signature.push('\n');
    let counts = report.counts;
    let summary = format!(
        "audit {}: {}; {} of {} flows pass, {} fail, {} inconclusive; {} of {} machines probed",
        report.number,
        report.result.as_str(),
        counts.pass,
        counts.cells,
        counts.fail,
        counts.inconclusive,
        counts.machines_probed,
        counts.machines,
    );
    Ok(SignedReport { result: report.result, number: report.number, summary, report: json, signature, page })
}

/// Writes a report into a directory. One of the same account that is there already is kept below `earlier/`.
///
/// Whenever this is cut short, `report.json` is there: it is the one before, or the new one.
///
/// # Errors
/// Also when the directory holds a report that is not one of Warren's.
pub fn write(directory: &Path, signed: &SignedReport) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    match fs::read(directory.join(REPORT)) {
        Ok(bytes) => {
            let there: Report = serde_json::from_slice(&bytes).map_err(|error| {
                let what = format!("{} holds a {REPORT} that is no report of Warren: {error}", directory.display());
                io::Error::new(io::ErrorKind::AlreadyExists, what)
            })?;
            keep_earlier(directory, there.number, &bytes)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    for (name, content) in [(PAGE, &signed.page), (SIGNATURE, &signed.signature), (REPORT, &signed.report)] {
        put(directory, name, content.as_bytes())?;
    }
    sync(directory)
}

/// Copies the report that is there to its number below `earlier/`. The report itself comes last: once it is there, its
/// page and its signature are, and those beside the old one may be those of a write that was cut short.
fn keep_earlier(directory: &Path, number: u64, report: &[u8]) -> io::Result<()> {
    let kept = earlier(directory, number);
    if fs::read(kept.join(REPORT)).is_ok_and(|there| there == report) {
        return Ok(());
    }
    fs::create_dir_all(&kept)?;
    for name in [PAGE, SIGNATURE] {
        match fs::read(directory.join(name)) {
            Ok(content) => put(&kept, name, &content)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    put(&kept, REPORT, report)?;
    sync(&kept)?;
    sync(&directory.join(EARLIER))?;
    sync(directory)
}

/// Puts a whole file in its place.
fn put(directory: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let temporary = directory.join(format!(".{name}.new"));
    let mut file = fs::File::create(&temporary)?;
    io::Write::write_all(&mut file, content)?;
    file.sync_all()?;
    fs::rename(&temporary, directory.join(name))
}

/// What was renamed in a directory outlives a crash once the directory is synced.
fn sync(directory: &Path) -> io::Result<()> {
    fs::File::open(directory)?.sync_all()
}

/// The `report.json` with the highest number that a directory holds; `None` when there is none.
pub fn newest(directory: &Path) -> io::Result<Option<PathBuf>> {
    let here = directory.join(REPORT);
    if here.try_exists()? {
        return Ok(Some(here));
    }
    let entries = match fs::read_dir(directory.join(EARLIER)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut highest: Option<(u64, PathBuf)> = None;
    for entry in entries {
        let entry = entry?;
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let report = entry.path().join(REPORT);
        if highest.as_ref().is_none_or(|(found, _)| *found < number) && report.try_exists()? {
            highest = Some((number, report));
        }
    }
    Ok(highest.map(|(_, path)| path))
}

/// A report that was found genuine.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified {
    pub report: Report,
    /// SHA-256 of `report.json` in hex.
    pub sha256: String,
    pub chain: Chain,
}

/// How far the chain of reports was followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chain {
    /// Every report back to the first is there, and each is genuine and names the one before.
    Whole { reports: u64 },
    /// So many are; the one before them is not in the directory.
    UpTo { reports: u64, missing: Link },
}

/// Why a directory does not hold a genuine report.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("{path} cannot be read")]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is larger than any report")]
    TooLarge { path: PathBuf },
    #[error("{path} is no signature of a report")]
    NoSignature {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{path} was signed with key {found}, and the key that was given is {given}")]
    OtherKey { path: PathBuf, found: String, given: String },
    #[error("the signature of {path} is not genuine: the report, or its signature, was changed")]
    NotGenuine { path: PathBuf },
    #[error("{path} is signed, and is no report that this Warren knows")]
    NoReport {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{path} has format {found}; this Warren knows {FORMAT}")]
    OtherFormat { path: PathBuf, found: u32 },
    #[error("{path} does not belong to its report: it was changed, or is that of another one")]
    OtherPage { path: PathBuf },
    #[error("{path} says {said} and its findings add up to {found}")]
    WrongResult { path: PathBuf, said: &'static str, found: &'static str },
    #[error("the chain is broken at report {number}: {why}")]
    BrokenChain { number: u64, why: &'static str },
}

/// Checks the newest report of a directory, and every earlier one that is there.
pub fn verify(directory: &Path, key: &PublicKey) -> Result<Verified, VerifyError> {
    let (report, hash) = verify_one(directory, key)?;
    let mut reports = 1;
    let (mut number, mut previous) = (report.number, report.previous.clone());
    let mut account = report.scope.account.id.clone();
    let chain = loop {
        let Some(link) = previous else {
            if number != 1 {
                return Err(VerifyError::BrokenChain { number, why: "it names none before it, and is not the first" });
            }
            break Chain::Whole { reports };
        };
        if link.number.checked_add(1) != Some(number) {
            return Err(VerifyError::BrokenChain { number, why: "the one that it names is not the one before" });
        }
        let kept = earlier(directory, link.number);
        if !kept.join(REPORT).exists() {
            break Chain::UpTo { reports, missing: link };
        }
        let (before, hash) = verify_one(&kept, key)?;
        if hash != link.sha256 {
            return Err(VerifyError::BrokenChain { number, why: "the one before is not the one that it names" });
        }
        if before.number != link.number || before.scope.account.id != account {
            return Err(VerifyError::BrokenChain { number, why: "the one before is of another account or number" });
        }
        reports += 1;
        (number, previous, account) = (before.number, before.previous, before.scope.account.id);
    };
    Ok(Verified { report, sha256: hash, chain })
}

fn verify_one(directory: &Path, key: &PublicKey) -> Result<(Report, String), VerifyError> {
    let path = directory.join(REPORT);
    let bytes = read(&path)?;
    let signature = read(&directory.join(SIGNATURE))?;
    let signature: Signature = serde_json::from_slice(&signature)
        .map_err(|source| VerifyError::NoSignature { path: directory.join(SIGNATURE), source })?;
    let given = key.id();
    if signature.key_id != given {
        return Err(VerifyError::OtherKey { path, found: printable(&signature.key_id), given });
    }
    if !key.verifies(&bytes, &signature) {
        return Err(VerifyError::NotGenuine { path });
    }
    // Only what is genuine is looked into. The format is read by itself, so that a newer one is called that.
    #[derive(serde::Deserialize)]
    struct Format {
        format: u32,
    }
    let parsed = serde_json::from_slice::<Format>(&bytes);
    let format = parsed.map_err(|source| VerifyError::NoReport { path: path.clone(), source })?.format;
    if format != FORMAT {
        return Err(VerifyError::OtherFormat { path, found: format });
    }
    let report: Report =
        serde_json::from_slice(&bytes).map_err(|source| VerifyError::NoReport { path: path.clone(), source })?;
    let page = directory.join(PAGE);
    if sha256(&read(&page)?) != report.page_sha256 {
        return Err(VerifyError::OtherPage { path: page });
    }
    let (found, _) = crate::report::result(&report.cells, &report.inventory, &report.live, report.log.as_ref());
    if found != report.result {
        return Err(VerifyError::WrongResult { path, said: report.result.as_str(), found: found.as_str() });
    }
    Ok((report, sha256(&bytes)))
}

/// Where the report with this number is kept once there is a newer one.
pub fn earlier(directory: &Path, number: u64) -> PathBuf {
    directory.join(EARLIER).join(format!("{number:08}"))
}

fn read(path: &Path) -> Result<Vec<u8>, VerifyError> {
    let unreadable = |source| VerifyError::Unreadable { path: path.to_owned(), source };
    if fs::metadata(path).map_err(unreadable)?.len() > LARGEST {
        return Err(VerifyError::TooLarge { path: path.to_owned() });
    }
    fs::read(path).map_err(unreadable)
}

/// What an unsigned file says, fit for a terminal.
fn printable(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_graphic()).take(64).collect()
}
