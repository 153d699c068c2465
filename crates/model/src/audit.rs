//! What the API asks of the audit, and the shapes in which it answers.

use std::path::PathBuf;

use async_trait::async_trait;
use futures::stream::BoxStream;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::access::AccessError;
use crate::id::{AccountId, NetworkId};

/// What is to be examined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditScope {
    pub account: AccountId,
    /// Only the machines of this network begin flows; flows to everywhere.
    pub network: Option<NetworkId>,
    /// Machines of other accounts are targets, too.
    pub across_accounts: bool,
    /// Who asked for it: a key's id, or `schedule`.
    pub by: String,
}

/// How an audit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Pass,
    Fail,
    Inconclusive,
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Inconclusive => "inconclusive",
        }
    }
}

/// How far an audit has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditProgress {
    /// What is happening, for a person: `probes started in 7 of 9 machines`.
    pub stage: String,
    /// From 0.0 to 1.0.
    pub fraction: f32,
}

/// A report as it was signed: three files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedReport {
    pub result: Verdict,
    /// Counts up with every report of the account, from 1.
    pub number: u64,
    /// One sentence for a person.
    pub summary: String,
    /// The exact content of `report.json`.
    pub report: String,
    /// The exact content of `report.sig`.
    pub signature: String,
    /// The exact content of `report.html`.
    pub page: String,
}

/// One line of an audit's making; the last one is `done` or `failed`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AuditEvent {
    Progress {
        progress: AuditProgress,
    },
    /// The next piece of one of the report's files. Put together, the pieces are its exact content.
    Piece {
        file: AuditFile,
        text: String,
    },
    Done {
        audit: AuditSummary,
    },
    Failed {
        problem: crate::Problem,
    },
}

/// The files of a report: `report.json`, `report.sig` and `report.html`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum AuditFile {
    Report,
    Signature,
    Page,
}

/// What came of an audit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditSummary {
    pub result: Verdict,
    /// Counts up with every report of the account, from 1.
    pub number: u64,
    /// One sentence for a person.
    pub summary: String,
}

/// The most characters of a file that one piece has.
pub const PIECE: usize = 256 << 10;

impl SignedReport {
    /// The report as lines of an answer: its files in pieces, and what came of it.
    pub fn into_events(self) -> Vec<AuditEvent> {
        let files =
            [(AuditFile::Report, &self.report), (AuditFile::Signature, &self.signature), (AuditFile::Page, &self.page)];
        let mut events = Vec::new();
        for (file, content) in files {
            let mut rest = content.as_str();
            while !rest.is_empty() {
                let (text, after) = rest.split_at(rest.floor_char_boundary(PIECE));
                events.push(AuditEvent::Piece { file, text: text.to_owned() });
                rest = after;
            }
        }
        let audit = AuditSummary { result: self.result, number: self.number, summary: self.summary };
        events.push(AuditEvent::Done { audit });
        events
    }

    /// Takes in the next piece of a file.
    pub fn take(&mut self, file: AuditFile, text: &str) {
        match file {
            AuditFile::Report => self.report.push_str(text),
            AuditFile::Signature => self.signature.push_str(text),
            AuditFile::Page => self.page.push_str(text),
        }
    }
}

/// The public key with which reports are checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditKey {
    /// The beginning of the key's SHA-256, in hex.
    pub id: String,
    /// `warren-audit-ed25519 HEX`: one line that `warren audit verify` takes.
    pub key: String,
}

/// When audits run by themselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditSchedule {
    /// Seconds from one to the next, 60 to 31,536,000.
    #[cfg_attr(feature = "openapi", schema(minimum = 60, maximum = 31_536_000))]
    pub every_seconds: u64,
    /// A directory on the server's host into which every report is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub report: Option<PathBuf>,
    /// When it was last changed; the first audit is due one interval later.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub since: Timestamp,
    /// How the last one went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<AuditRun>,
}

/// How an audit that ran by itself went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditRun {
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub time: Timestamp,
    /// Absent when there is no report, because something failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Verdict>,
    pub summary: String,
}

impl AuditSchedule {
    pub const SHORTEST: u64 = 60;
    pub const LONGEST: u64 = 31_536_000;

    /// When the next one is due.
    pub fn due(&self) -> Timestamp {
        let from = self.last.as_ref().map_or(self.since, |last| last.time.max(self.since));
        let every = jiff::SignedDuration::from_secs(i64::try_from(self.every_seconds).unwrap_or(i64::MAX));
        from.checked_add(every).unwrap_or(Timestamp::MAX)
    }
}

/// A place among the audits that run and wait, until it is dropped.
pub type AuditPlace = Box<dyn std::any::Any + Send>;

/// The audit, as the API sees it; the wiring implements it.
#[async_trait]
pub trait Audits: Send + Sync + 'static {
    /// Takes a place for an audit of this account.
    ///
    /// # Errors
    /// [`Code::AuditRunning`](crate::Code::AuditRunning) while one of the account runs or waits, and
    /// [`Code::ServerBusy`](crate::Code::ServerBusy) when too many wait.
    fn place(&self, account: AccountId) -> Result<AuditPlace, AccessError>;
    /// Examines, signs and keeps the report. One runs at a time; others wait in the order of their places.
    async fn run(
        &self,
        place: AuditPlace,
        scope: AuditScope,
        progress: mpsc::Sender<AuditProgress>,
    ) -> Result<SignedReport, AccessError>;
    /// Makes the key if there is none yet.
    async fn public_key(&self) -> Result<AuditKey, AccessError>;
    /// The lines of the log of mutations after this number, as they are in the file.
    async fn log(&self, after: u64) -> Result<BoxStream<'static, std::io::Result<bytes::Bytes>>, AccessError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_of_a_report_are_its_files() {
        let signed = SignedReport {
            result: Verdict::Pass,
            number: 7,
            summary: "s".to_owned(),
            report: "ä".repeat(PIECE),
            signature: "sig".to_owned(),
            page: String::new(),
        };
        let mut put_together =
            SignedReport { report: String::new(), signature: String::new(), page: String::new(), ..signed.clone() };
        let events = signed.clone().into_events();
        assert_eq!(events.len(), 4);
        for event in events {
            match event {
                AuditEvent::Piece { file, text } => put_together.take(file, &text),
                AuditEvent::Done { audit } => assert_eq!((audit.result, audit.number), (Verdict::Pass, 7)),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(put_together, signed);
    }

    #[test]
    fn the_next_audit_is_due_one_interval_after_the_last_or_the_change() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut schedule = AuditSchedule { every_seconds: 60, report: None, since: at(100), last: None };
        assert_eq!(schedule.due(), at(160));
        schedule.last = Some(AuditRun { time: at(130), result: None, summary: String::new() });
        assert_eq!(schedule.due(), at(190));
        schedule.since = at(150);
        assert_eq!(schedule.due(), at(210));
    }
}
