//! Audits that run by themselves.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;
use ulid::Ulid;
use warren_audit::{Report, bundle};
use warren_model::audit::{AuditRun, AuditSchedule, AuditScope, Audits as _, SignedReport, Verdict};
use warren_model::record::{Event, EventKind};
use warren_model::{AccountId, EventId};
use warren_store::{StoreError, TxnBuilder, Typed, Versioned, schema};

use super::Auditor;

/// How often it is looked whether one is due.
const INTERVAL: Duration = Duration::from_secs(5);
/// The most of a difference that an event tells.
const TOLD: usize = 3;

pub(crate) async fn keep(auditor: Arc<Auditor>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let schedules = match auditor.world.store.list_all(&schema::audit_schedules()).await {
            Ok((schedules, _)) => schedules,
            Err(error) => {
                tracing::warn!(%error, "the schedule of audits cannot be read");
                continue;
            }
        };
        for schedule in schedules.into_iter().filter(|schedule| schedule.record.due() <= Timestamp::now()) {
            let Some(account) = schema::account_of(&schedule.key) else { continue };
            if let Err(error) = run(&auditor, account, schedule).await {
                tracing::warn!(%error, "how a scheduled audit went is not on record");
            }
        }
    }
}

async fn run(auditor: &Auditor, account: AccountId, schedule: Versioned<AuditSchedule>) -> Result<(), StoreError> {
    let scope = AuditScope { account, network: None, across_accounts: true, by: "schedule".to_owned() };
    // Nobody listens how far it comes.
    let (progress, _) = mpsc::channel(1);
    let outcome = auditor.run(scope, progress).await;
    let first = schedule.record.last.is_none();
    let (run, mut news) = match outcome {
        Ok(signed) => {
            let news = news(&signed, first);
            (
                AuditRun { time: Timestamp::now(), result: Some(signed.result), summary: signed.summary.clone() },
                (news, Some(signed)),
            )
        }
        Err(error) => {
            let failed = (EventKind::AuditFailed, format!("the scheduled audit could not run: {}", error.detail));
            (AuditRun { time: Timestamp::now(), result: None, summary: error.detail }, (vec![failed], None))
        }
    };
    if let (Some(directory), Some(signed)) = (schedule.record.report.clone(), news.1.take()) {
        let shown = directory.display().to_string();
        let written = tokio::task::spawn_blocking(move || bundle::write(&directory, &signed)).await;
        if let Err(error) = written.map_err(std::io::Error::other).and_then(|written| written) {
            news.0.push((EventKind::AuditFailed, format!("the report was not written into {shown}: {error}")));
        }
    }
    record(auditor, account, &schedule, run, news.0).await
}

/// What is worth an event: anything but a pass, and any difference from the report before.
fn news(signed: &SignedReport, first: bool) -> Vec<(EventKind, String)> {
    let mut news = Vec::new();
    if signed.result != Verdict::Pass {
        news.push((EventKind::AuditFailed, signed.summary.clone()));
    }
    let differences =
        serde_json::from_str::<Report>(&signed.report).map(|report| report.differences).unwrap_or_default();
    if !first && !differences.is_empty() {
        let more = differences.len().saturating_sub(TOLD);
        let mut told = differences.into_iter().take(TOLD).collect::<Vec<_>>().join("; ");
        if more > 0 {
            told.push_str(&format!("; and {more} more"));
        }
        news.push((EventKind::AuditDiffered, format!("audit {}: {told}", signed.number)));
    }
    news
}

async fn record(
    auditor: &Auditor,
    account: AccountId,
    schedule: &Versioned<AuditSchedule>,
    run: AuditRun,
    news: Vec<(EventKind, String)>,
) -> Result<(), StoreError> {
    let store = auditor.world.store.as_ref();
    let mut events = TxnBuilder::new();
    for (kind, message) in news {
        tracing::warn!(%account, "{message}");
        let id = EventId::from_ulid(Ulid::generate());
        let event = Event { id, time: run.time, kind, account: Some(account), network: None, machine: None, message };
        events = events.put(&schema::event(id), &event)?;
    }
    events.commit(store).await?;
    // Somebody may have changed or ended the schedule meanwhile; then that stands.
    let key = schema::audit_schedule(account);
    if let Some(now) = store.read(&key).await?.filter(|now| now.modified == schedule.modified) {
        let ran = AuditSchedule { last: Some(run), ..now.record.clone() };
        TxnBuilder::new().unchanged(&now).put(&key, &ran)?.commit(store).await?;
    }
    Ok(())
}
