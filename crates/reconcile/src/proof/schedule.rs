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
use warren_store::{Store, StoreError, TxnBuilder, TxnOutcome, Typed, Versioned, schema};

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
    // One that somebody asked for is under way, or too many are: this one is still due afterwards.
    let Ok(place) = auditor.place(account) else { return Ok(()) };
    let outcome = auditor.run(place, scope, progress).await;
    let first = schedule.record.last.is_none();
    let (run, mut news) = match outcome {
        Ok(signed) => {
            let news = news(account, &signed, first);
            (
                AuditRun { time: Timestamp::now(), result: Some(signed.result), summary: signed.summary.clone() },
                (news, Some(signed)),
            )
        }
        Err(error) => {
            let failed = News::for_root(
                EventKind::AuditFailed,
                format!("the scheduled audit of {account} could not run: {}", error.detail),
            );
            (AuditRun { time: Timestamp::now(), result: None, summary: error.detail }, (vec![failed], None))
        }
    };
    if let (Some(directory), Some(signed)) = (schedule.record.report.clone(), news.1.take()) {
        let shown = directory.display().to_string();
        let written = tokio::task::spawn_blocking(move || bundle::write(&directory, &signed)).await;
        if let Err(error) = written.map_err(std::io::Error::other).and_then(|written| written) {
            let said = format!("the report of {account} was not written into {shown}: {error}");
            news.0.push(News::for_root(EventKind::AuditFailed, said));
        }
    }
    record(auditor.world.store.as_ref(), account, &schedule, run, news.0).await
}

/// Something worth an event.
struct News {
    kind: EventKind,
    /// What root alone may know, such as the host's addresses and other accounts, is an event of the installation.
    for_root: bool,
    message: String,
}

impl News {
    fn for_account(kind: EventKind, message: String) -> Self {
        Self { kind, for_root: false, message }
    }

    fn for_root(kind: EventKind, message: String) -> Self {
        Self { kind, for_root: true, message }
    }
}

/// What is worth an event: anything but a pass, and any difference from the report before.
fn news(account: AccountId, signed: &SignedReport, first: bool) -> Vec<News> {
    let mut news = Vec::new();
    if signed.result != Verdict::Pass {
        news.push(News::for_account(EventKind::AuditFailed, signed.summary.clone()));
    }
    let differences =
        serde_json::from_str::<Report>(&signed.report).map(|report| report.differences).unwrap_or_default();
    if !first && !differences.is_empty() {
        let (number, count) = (signed.number, differences.len());
        let said = format!("audit {number}: {count} differences from the report before");
        news.push(News::for_account(EventKind::AuditDiffered, said));
        let more = count.saturating_sub(TOLD);
        let mut told = differences.into_iter().take(TOLD).collect::<Vec<_>>().join("; ");
        if more > 0 {
            told.push_str(&format!("; and {more} more"));
        }
        news.push(News::for_root(EventKind::AuditDiffered, format!("audit {number} of {account}: {told}")));
    }
    news
}

/// Records how it went and what is worth an event, in one transaction.
async fn record(
    store: &dyn Store,
    account: AccountId,
    schedule: &Versioned<AuditSchedule>,
    run: AuditRun,
    news: Vec<News>,
) -> Result<(), StoreError> {
    let mut events = Vec::with_capacity(news.len());
    for News { kind, for_root, message } in news {
        tracing::warn!(%account, "{message}");
        let (id, account) = (EventId::from_ulid(Ulid::generate()), (!for_root).then_some(account));
        events.push(Event { id, time: run.time, kind, account, network: None, machine: None, message });
    }
    let told = || events.iter().try_fold(TxnBuilder::new(), |txn, event| txn.put(&schema::event(event.id), event));
    let ran = AuditSchedule { last: Some(run.clone()), ..schedule.record.clone() };
    let both = told()?.unchanged(schedule).put(&schema::audit_schedule(account), &ran)?;
    if let TxnOutcome::Conflict(_) = both.commit(store).await? {
        // Somebody changed or ended the schedule meanwhile; that stands.
        told()?.commit(store).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use warren_store::SqliteStore;

    fn made_up(n: u64) -> (AccountId, AuditSchedule, AuditRun) {
        let account = AccountId::from_ulid(Ulid::from_parts(n, 1));
        let time = Timestamp::UNIX_EPOCH;
        let schedule = AuditSchedule { every_seconds: 60, report: None, since: time, last: None };
        (account, schedule, AuditRun { time, result: Some(Verdict::Fail), summary: "audit 1".to_owned() })
    }

    async fn scheduled(store: &SqliteStore, account: AccountId, schedule: &AuditSchedule) -> Versioned<AuditSchedule> {
        let key = schema::audit_schedule(account);
        TxnBuilder::new().put(&key, schedule).unwrap().commit(store).await.unwrap();
        store.read(&key).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn how_an_audit_went_and_its_events_are_recorded_together() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
        let (account, schedule, run) = made_up(1);
        let due = scheduled(&store, account, &schedule).await;
        let news = vec![
            News::for_account(EventKind::AuditFailed, "one".to_owned()),
            News::for_root(EventKind::AuditDiffered, "two".to_owned()),
        ];
        record(&store, account, &due, run.clone(), news).await.unwrap();
        let after = store.read(&schema::audit_schedule(account)).await.unwrap().unwrap();
        assert_eq!(after.record.last, Some(run));
        let (events, _) = store.list_all(&schema::events()).await.unwrap();
        let whose: BTreeMap<_, _> =
            events.iter().map(|event| (event.record.message.as_str(), event.record.account)).collect();
        assert_eq!(whose, BTreeMap::from([("one", Some(account)), ("two", None)]));
        assert!(events.iter().all(|event| event.modified == after.modified), "{events:?} {after:?}");
    }

    #[tokio::test]
    async fn a_schedule_that_was_changed_meanwhile_stands_and_the_events_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("store.db")).unwrap();
        let (account, schedule, run) = made_up(1);
        let due = scheduled(&store, account, &schedule).await;
        let changed = AuditSchedule { every_seconds: 3600, ..schedule };
        scheduled(&store, account, &changed).await;
        let news = vec![News::for_account(EventKind::AuditFailed, "one".to_owned())];
        record(&store, account, &due, run, news).await.unwrap();
        assert_eq!(store.read(&schema::audit_schedule(account)).await.unwrap().unwrap().record, changed);
        assert_eq!(store.list_all(&schema::events()).await.unwrap().0.len(), 1);
    }
}
