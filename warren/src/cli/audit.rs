//! `audit`: proving the policy, checking a proof, the log of mutations.

use std::fs::File;
use std::io::{BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use futures::StreamExt as _;
use http::{HeaderMap, Method};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use warren_audit::bundle::{self, Chain};
use warren_audit::log;
use warren_audit::sign::PublicKey;
use warren_model::audit::{AuditEvent, AuditKey, AuditSchedule, SignedReport, Verdict};
use warren_model::wire::{Page, RunAudit, ScheduleAudit};

use super::failure::{self, Failure};
use super::output::{Output, read};
use super::progress::StageBar;
use super::render::{printable, sheet, table, time};
use super::{Context, values};
use crate::client::Payload;
use crate::client::error::ClientError;
use crate::client::route::Route;

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum AuditCommand {
    /// Probe every running machine from inside, and write a signed report
    #[command(after_help = "\
DIR gets report.json, report.sig and report.html; a report that is there already is kept below DIR/earlier. Exits with 0
only when the result is a pass: 1 when a flow does not do what policy says, and also when something is inconclusive.

Examples:
  warren audit run --report ./audit
  warren audit run --network agents --report ./audit
  warren --account acme audit run --report ./acme")]
    Run(RunArgs),
    /// Check a report's signature, page and chain; works without a server
    #[command(after_help = "\
Exits with 0 only when everything is genuine. Whether the audit itself was a pass is said, and is no part of that.

Examples:
  warren audit key > audit.pub                on the server's side, once
  warren audit verify ./audit --key audit.pub")]
    Verify(VerifyArgs),
    /// Print the public key with which reports are checked
    #[command(after_help = "Examples:\n  warren audit key > audit.pub")]
    Key,
    /// Have audits run by themselves; without options, show when they do (root key only)
    #[command(after_help = "\
An audit that does not pass, and any difference from the one before, is an event: see `warren events`.

Examples:
  warren audit schedule --every 1h
  warren audit schedule --every 1d --report /srv/audit     a directory on the server's host
  warren audit schedule --off
  warren audit schedule")]
    Schedule(ScheduleArgs),
    /// Show the log of mutations: who changed what (root key only)
    #[command(after_help = "\
Examples:
  warren audit log
  warren audit log --after 1200 --json
  warren audit log --raw > audit.log           each line as it is in the log, for `warren audit verify-log`")]
    Log(LogArgs),
    /// Check the chain of a log of mutations; works without a server
    #[command(after_help = "\
Examples:
  warren audit verify-log audit.log
  warren audit verify-log audit.log --report ./audit --key audit.pub   also that no line at the end is missing")]
    VerifyLog(VerifyLogArgs),
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct RunArgs {
    /// Only flows from machines of this network
    #[arg(long, value_name = "NETWORK")]
    pub network: Option<String>,
    /// The directory for the report
    #[arg(long, value_name = "DIR")]
    pub report: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct VerifyArgs {
    /// The directory with the report
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// The file with the public key, as `warren audit key` printed it
    // Of the same type as the global option of this name, in whose place it stands.
    #[arg(long, value_name = "FILE")]
    pub key: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ScheduleArgs {
    /// How long from one audit to the next, such as 1h or 1d; 1m or more
    #[arg(long, value_name = "TIME", value_parser = values::duration, conflicts_with = "off")]
    pub every: Option<Duration>,
    /// A directory on the server's host for the reports
    #[arg(long, value_name = "DIR", requires = "every")]
    pub report: Option<PathBuf>,
    /// Have none run by itself any more
    #[arg(long)]
    pub off: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct LogArgs {
    /// Only lines after the one with this number
    #[arg(long, value_name = "N")]
    pub after: Option<u64>,
    /// Each line exactly as it is in the log
    #[arg(long, conflicts_with = "json")]
    pub raw: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct VerifyLogArgs {
    /// The log, or what `warren audit log --raw` wrote
    #[arg(value_name = "FILE")]
    pub log: PathBuf,
    /// A directory with a report that was made before
    #[arg(long, value_name = "DIR", requires = "key")]
    pub report: Option<PathBuf>,
    /// The file with the public key of that report
    // As in `verify`.
    #[arg(long, value_name = "FILE", requires = "report")]
    pub key: Option<String>,
}

/// The commands that work without a server; hands back the others.
pub fn offline(output: Output, command: AuditCommand) -> Result<Result<(), AuditCommand>, Failure> {
    match command {
        AuditCommand::Verify(args) => verify(output, &args).map(Ok),
        AuditCommand::VerifyLog(args) => verify_log(output, &args).map(Ok),
        other => Ok(Err(other)),
    }
}

pub async fn run(context: &Context, command: AuditCommand) -> Result<i32, Failure> {
    let Context { client, output } = context;
    match command {
        AuditCommand::Run(args) => return audit(context, args).await,
        AuditCommand::Key => {
            let answer = client.get(&Route::new(&["audit", "key"])).await?;
            output.object(answer, |key: &AuditKey| key.key.clone())?;
        }
        AuditCommand::Schedule(args) => schedule(context, args).await?,
        AuditCommand::Log(args) => show_log(context, args).await?,
        AuditCommand::Verify(args) => verify(*output, &args)?,
        AuditCommand::VerifyLog(args) => verify_log(*output, &args)?,
    }
    Ok(failure::DONE)
}

async fn audit(context: &Context, args: RunArgs) -> Result<i32, Failure> {
    let directory = &args.report;
    // Before machines are troubled.
    std::fs::create_dir_all(directory)
        .map_err(|error| Failure::local(format!("cannot make {}", directory.display()), error))?;
    let body = serde_json::to_value(RunAudit { network: args.network }).map_err(ClientError::NotUnderstood)?;
    let route = Route::new(&["audit"]);
    let mut documents = context.client.documents(Method::POST, &route, Payload::Json(body), HeaderMap::new()).await?;
    let mut bar = StageBar::new("audit", context.output.json);
    let mut files = SignedReport {
        result: Verdict::Inconclusive,
        number: 0,
        summary: String::new(),
        report: String::new(),
        signature: String::new(),
        page: String::new(),
    };
    let signed = loop {
        let Some(document) = documents.next().await else {
            return Err(ClientError::BrokenOff("the server ended it before the audit was done".into()).into());
        };
        match read(document?)? {
            AuditEvent::Progress { progress } => bar.show(&progress.stage, Some(progress.fraction)),
            AuditEvent::Piece { file, text } => files.take(file, &text),
            AuditEvent::Done { audit } => {
                break SignedReport { result: audit.result, number: audit.number, summary: audit.summary, ..files };
            }
            AuditEvent::Failed { problem } => return Err(ClientError::from(problem).into()),
        }
    };
    drop(bar);
    bundle::write(directory, &signed)
        .map_err(|error| Failure::local(format!("cannot write the report into {}", directory.display()), error))?;
    told(context.output, directory, &signed)?;
    Ok(if signed.result == Verdict::Pass { failure::DONE } else { failure::FAILED })
}

fn told(output: Output, directory: &Path, signed: &SignedReport) -> Result<(), Failure> {
    let report: warren_audit::Report = serde_json::from_str(&signed.report).map_err(ClientError::NotUnderstood)?;
    if output.json {
        return output.json(&json!({
            "result": signed.result,
            "number": signed.number,
            "summary": signed.summary,
            "reasons": report.reasons,
            "counts": report.counts,
            "report": directory,
        }));
    }
    let mut text = format!("{}\n", printable(&signed.summary));
    for reason in &report.reasons {
        text.push_str(&format!("  {}\n", printable(reason)));
    }
    text.push_str(&format!("written to {}", directory.join(bundle::PAGE).display()));
    output.text(&text)
}

fn verify(output: Output, args: &VerifyArgs) -> Result<(), Failure> {
    let key = public_key(Path::new(&args.key))?;
    let verified = bundle::verify(&args.directory, &key).map_err(|error| Failure::Said(chain(&error)))?;
    let report = &verified.report;
    let (reports, whole) = match &verified.chain {
        Chain::Whole { reports } => (*reports, true),
        Chain::UpTo { reports, .. } => (*reports, false),
    };
    if output.json {
        return output.json(&json!({
            "genuine": true,
            "result": report.result,
            "number": report.number,
            "account": report.scope.account.name,
            "finished_at": report.finished_at,
            "key_id": key.id(),
            "sha256": verified.sha256,
            "reports_checked": reports,
            "chain_whole": whole,
            "reasons": report.reasons,
        }));
    }
    let linked = match &verified.chain {
        Chain::Whole { reports: 1 } => "this is the first report".to_owned(),
        Chain::Whole { reports } => format!("whole: all {reports} reports are here and genuine"),
        Chain::UpTo { reports, missing } => format!(
            "{reports} checked; report {} is not here, its report.json has SHA-256 {}",
            missing.number, missing.sha256
        ),
    };
    output.text(&sheet(&[
        ("genuine", "yes: signature, page and chain hold".to_owned()),
        ("result", report.result.as_str().to_owned()),
        (
            "report",
            format!(
                "{} of account {}, {}",
                report.number,
                printable(&report.scope.account.name),
                time(report.finished_at)
            ),
        ),
        ("made by", format!("warren {}, installation {}", report.installation.warren, report.installation.id)),
        ("on host", report.installation.host.clone().unwrap_or_default()),
        ("key", key.id()),
        ("chain", linked),
    ]))
}

fn verify_log(output: Output, args: &VerifyLogArgs) -> Result<(), Failure> {
    let verified = match (&args.report, &args.key) {
        (Some(report), Some(key)) => {
            let key = public_key(Path::new(key))?;
            Some(bundle::verify(report, &key).map_err(|error| Failure::Said(chain(&error)))?)
        }
        _ => None,
    };
    let seen = verified.as_ref().and_then(|verified| Some((verified.report.number, verified.report.log.as_ref()?)));
    let file =
        File::open(&args.log).map_err(|error| Failure::local(format!("cannot open {}", args.log.display()), error))?;
    let checked = log::verify(BufReader::new(file), seen).map_err(|error| Failure::Said(chain(&error)))?;
    let (first, last) = (checked.first, checked.head.number);
    if last == 0 && checked.unchained == 0 {
        let text = "has no entry, so there is nothing to verify; a server's log has one from its first change on";
        return Err(Failure::Said(format!("{} {text}", args.log.display())));
    }
    if output.json {
        return output.json(&json!({
            "intact": true,
            "first": first,
            "last": last,
            "unchained": checked.unchained,
            "sha256": checked.head.sha256,
            "report": seen.map(|(number, _)| number),
        }));
    }
    let mut text = format!("the chain holds: lines {first} to {last}, the last with SHA-256 {}", checked.head.sha256);
    if checked.unchained > 0 {
        text.push_str(&format!("\n{} lines before them are from before the log was chained", checked.unchained));
    }
    if let Some((number, head)) = seen {
        text.push_str(&format!("\nit goes on from line {}, where report {number} saw it", head.number));
    }
    output.text(&text)
}

async fn schedule(context: &Context, args: ScheduleArgs) -> Result<(), Failure> {
    let Context { client, output } = context;
    let route = Route::new(&["audit", "schedule"]);
    if args.off {
        let answer = client.delete(&route).await?;
        return output.done(answer, "no audit runs by itself any more");
    }
    let answer = match args.every {
        Some(every) => {
            let wanted = ScheduleAudit { every_seconds: every.as_secs(), report: args.report };
            let body = serde_json::to_value(wanted).map_err(ClientError::NotUnderstood)?;
            client.call(Method::PUT, &route, Some(body)).await?
        }
        None => client.get(&route).await?,
    };
    output.object(answer, render_schedule)
}

fn render_schedule(schedule: &AuditSchedule) -> String {
    let last = schedule.last.as_ref();
    sheet(&[
        ("every", format!("{} s", schedule.every_seconds)),
        ("next", time(schedule.due())),
        ("report", schedule.report.as_ref().map_or("kept by the server".to_owned(), |path| path.display().to_string())),
        ("last", last.map_or("none yet".to_owned(), |run| format!("{}: {}", time(run.time), printable(&run.summary)))),
    ])
}

async fn show_log(context: &Context, args: LogArgs) -> Result<(), Failure> {
    let route = Route::new(&["audit-log"]).maybe("after", args.after);
    if args.raw {
        let mut body = context.client.send(Method::GET, &route, Payload::Nothing).await?.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| ClientError::BrokenOff(error.into()))?;
            if let Ok(data) = frame.into_data() {
                std::io::stdout().lock().write_all(&data).map_err(Failure::stdout)?;
            }
        }
        return std::io::stdout().lock().flush().map_err(Failure::stdout);
    }
    let mut documents = context.client.documents(Method::GET, &route, Payload::Nothing, HeaderMap::new()).await?;
    let mut items = Vec::new();
    while let Some(document) = documents.next().await {
        items.push(document?);
    }
    context.output.list(Page { items, next: None }, "The log is empty.", render_log)
}

fn render_log(lines: &[Value]) -> String {
    let text = |line: &Value, field: &str| printable(line[field].as_str().unwrap_or_default());
    let row = |line: &Value| {
        let number = line["number"].as_u64().map(|number| number.to_string()).unwrap_or_default();
        let at = line["time"].as_str().and_then(|at| at.parse().ok()).map(time).unwrap_or_default();
        vec![number, at, text(line, "action"), text(line, "target"), text(line, "account"), text(line, "key")]
    };
    table(&["number", "time", "action", "target", "account", "key"], &[0], lines.iter().map(row))
}

fn public_key(path: &Path) -> Result<PublicKey, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::local(format!("cannot read {}", path.display()), error))?;
    text.parse().map_err(|error| Failure::Said(format!("{}: {error}", path.display())))
}

/// The message with every cause behind it.
fn chain(error: &dyn std::error::Error) -> String {
    printable(&warren_model::problem::chain(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_stands_in_columns() {
        let line = json!({
            "number": 12, "previous": "00", "id": "evt_1", "time": "2026-11-20T09:30:00Z", "account": "acc_1",
            "key": "key_1", "action": "machine.create", "target": "mch_1\u{1b}[2J", "request_id": "r", "request": null,
        });
        insta::assert_snapshot!(render_log(&[line]), @r"
        NUMBER  TIME                  ACTION          TARGET     ACCOUNT  KEY
            12  2026-11-20 09:30:00Z  machine.create  mch_1␛[2J  acc_1    key_1
        ");
    }

    #[test]
    fn a_schedule_says_when_the_next_one_is_due() {
        let schedule = AuditSchedule {
            every_seconds: 3600,
            report: None,
            since: "2026-11-20T09:30:00Z".parse().unwrap(),
            last: None,
        };
        insta::assert_snapshot!(render_schedule(&schedule), @r"
        every   3600 s
        next    2026-11-20 10:30:00Z
        report  kept by the server
        last    none yet
        ");
    }
}
