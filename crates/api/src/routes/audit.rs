//! The audit: reports that prove the policy, the key they are signed with, the schedule, the log of mutations.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use http::{StatusCode, header};
use jiff::Timestamp;
use serde::Deserialize;
use tokio::sync::mpsc;
use warren_model::audit::{AuditEvent, AuditKey, AuditSchedule, AuditScope};
use warren_model::{Code, wire};
use warren_store::{TxnBuilder, Typed, schema};

use crate::caller::Caller;
use crate::error::{Answer, ApiError};
use crate::extract::{JsonBody, Query};
use crate::mutation::Deed;
use crate::resolve;
use crate::state::{Api, Shared};

/// Lines that a client may be behind before progress is left out.
const BEHIND: usize = 64;

const NDJSON: [(header::HeaderName, &str); 2] =
    [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")];

/// Run an audit
///
/// Puts a probe into every running machine of the account and compares what policy promises with what real packets do.
/// The answer is one `AuditEvent` a line: the report's files come in pieces, and the last line is `done` or `failed`. With the root key,
/// machines of other accounts are targets, too. The audit goes on when the client goes away. Of an account one audit runs
/// or waits at a time: another one is refused with `audit_running`.
#[utoipa::path(post, path = "/v1/audit", operation_id = "run_audit", tag = "audit", request_body = wire::RunAudit,
    responses((status = 200, content_type = "application/x-ndjson", body = AuditEvent)))]
pub(crate) async fn run(
    State(api): State<Shared>,
    caller: Caller,
    JsonBody { value, .. }: JsonBody<wire::RunAudit>,
) -> Answer<Response> {
    let network = match &value.network {
        Some(given) => Some(resolve::network(&api, caller.account, given).await?.record.id),
        None => None,
    };
    let place = api.audits.place(caller.account)?;
    note(&api, &caller, "audit.run", &value).await?;
    let scope = AuditScope {
        account: caller.account,
        network,
        across_accounts: caller.root,
        by: caller.must_be_key()?.to_string(),
    };
    let (lines, told) = mpsc::channel(BEHIND);
    tokio::spawn(async move {
        let (progress, mut made) = mpsc::channel(16);
        let relay = async {
            while let Some(progress) = made.recv().await {
                let _ = lines.try_send(AuditEvent::Progress { progress });
            }
        };
        let (outcome, ()) = tokio::join!(api.audits.run(place, scope, progress), relay);
        let last = match outcome {
            Ok(audit) => audit.into_events(),
            Err(error) => vec![AuditEvent::Failed { problem: error.into() }],
        };
        for event in last {
            // The client went away; the report is kept on the host.
            if lines.send(event).await.is_err() {
                return;
            }
        }
    });
    let lines = futures::stream::unfold(told, |mut told| async move { told.recv().await.map(|line| (line, told)) });
    let body = lines.map(|line| {
        let mut line = serde_json::to_vec(&line).map_err(std::io::Error::other)?;
        line.push(b'\n');
        Ok::<_, std::io::Error>(Bytes::from(line))
    });
    Ok((NDJSON, Body::from_stream(body)).into_response())
}

/// Show the key that reports are signed with
#[utoipa::path(get, path = "/v1/audit/key", operation_id = "show_audit_key", tag = "audit",
    responses((status = 200, body = AuditKey)))]
pub(crate) async fn key(State(api): State<Shared>) -> Answer<Json<AuditKey>> {
    Ok(Json(api.audits.public_key().await?))
}

/// Show when audits run by themselves
#[utoipa::path(get, path = "/v1/audit/schedule", operation_id = "show_audit_schedule", tag = "audit",
    responses((status = 200, body = AuditSchedule)))]
pub(crate) async fn schedule(State(api): State<Shared>, caller: Caller) -> Answer<Json<AuditSchedule>> {
    let schedule = api.store.read(&schema::audit_schedule(caller.account)).await?;
    let schedule = schedule.ok_or_else(|| {
        ApiError::new(Code::NotFound, "no audit runs by itself in this account: set one with PUT /v1/audit/schedule")
    })?;
    Ok(Json(schedule.record))
}

/// Have audits run by themselves
///
/// The first is due one interval from now. One that does not pass, and any difference from the report before, is an
/// event.
#[utoipa::path(put, path = "/v1/audit/schedule", operation_id = "set_audit_schedule", tag = "audit",
    request_body = wire::ScheduleAudit, responses((status = 200, body = AuditSchedule)))]
pub(crate) async fn set_schedule(
    State(api): State<Shared>,
    caller: Caller,
    JsonBody { value, .. }: JsonBody<wire::ScheduleAudit>,
) -> Answer<Json<AuditSchedule>> {
    let range = AuditSchedule::SHORTEST..=AuditSchedule::LONGEST;
    if !range.contains(&value.every_seconds) {
        return Err(ApiError::invalid(format!("every_seconds is {} to {}", range.start(), range.end())));
    }
    if value.report.as_ref().is_some_and(|report| !report.is_absolute()) {
        return Err(ApiError::invalid("report is an absolute path on the server's host"));
    }
    let deed = Deed { caller: &caller, now: Timestamp::now(), action: "audit.schedule" };
    let schedule =
        AuditSchedule { every_seconds: value.every_seconds, report: value.report.clone(), since: deed.now, last: None };
    let txn = TxnBuilder::new().put(&schema::audit_schedule(caller.account), &schedule)?;
    deed.record(txn, caller.account, &value, None)?.commit(&*api.store).await?;
    Ok(Json(schedule))
}

/// Have no audit run by itself any more
#[utoipa::path(delete, path = "/v1/audit/schedule", operation_id = "remove_audit_schedule", tag = "audit",
    responses((status = 204, description = "Removed, or there was none")))]
pub(crate) async fn remove_schedule(State(api): State<Shared>, caller: Caller) -> Answer<StatusCode> {
    let deed = Deed { caller: &caller, now: Timestamp::now(), action: "audit.unschedule" };
    let txn = TxnBuilder::new().delete(&schema::audit_schedule(caller.account));
    deed.record(txn, caller.account, &(), None)?.commit(&*api.store).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct LogQuery {
    /// Only lines after the one with this number.
    after: Option<u64>,
}

/// Export the log of mutations
///
/// One line for each mutation of every account, as it is in the server's log: each carries the SHA-256 of the line before
/// it, so that the export can be checked by itself.
#[utoipa::path(get, path = "/v1/audit-log", operation_id = "export_audit_log", tag = "audit", params(LogQuery),
    responses((status = 200, content_type = "application/x-ndjson", body = String)))]
pub(crate) async fn log(State(api): State<Shared>, Query(query): Query<LogQuery>) -> Answer<Response> {
    let lines = api.audits.log(query.after.unwrap_or(0)).await?;
    Ok((NDJSON, Body::from_stream(lines)).into_response())
}

/// An audit changes nothing in the store, so the entry is written before it begins.
async fn note(api: &Api, caller: &Caller, action: &'static str, request: &impl serde::Serialize) -> Answer<()> {
    let deed = Deed { caller, now: Timestamp::now(), action };
    deed.record(TxnBuilder::new(), caller.account, request, None)?.commit(&*api.store).await?;
    Ok(())
}
