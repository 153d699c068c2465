//! What can be seen of a machine: its listening ports, its console and its traffic.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use http::header;
use serde::Deserialize;
use warren_model::access::ListeningPort;
use warren_model::record::{Machine, MachineState, Power};
use warren_model::{Code, wire};
use warren_store::{Typed, schema};

use super::views;
use crate::caller::Caller;
use crate::error::{Answer, ApiError};
use crate::extract::{Named, Query};
use crate::resolve;
use crate::state::{Api, Shared};

/// Bytes of the console that are sent when nothing is asked for, and the most that can be.
const DEFAULT_TAIL: u64 = 64 * 1024;
const LONGEST_TAIL: u64 = 16 * 1024 * 1024;

/// The caller's machine, if commands can be run in it.
pub(crate) async fn running(api: &Api, caller: &Caller, given: &str) -> Answer<Machine> {
    let machine = resolve::machine(api, caller, given).await?.record;
    let status = api.store.read(&schema::status(machine.id)).await?.map(|read| read.record);
    let state = views::state(&machine, status.as_ref());
    if state == MachineState::Running && machine.power == Power::On {
        return Ok(machine);
    }
    let advice = match state {
        MachineState::Stopped | MachineState::Stopping | MachineState::Failed => {
            format!("start it with POST /v1/machines/{}/start", machine.name)
        }
        MachineState::Deleting => "it will not run again".to_owned(),
        _ => "try again when it runs".to_owned(),
    };
    Err(ApiError::new(Code::MachineNotRunning, format!("machine {} is {}: {advice}", machine.name, state.as_str())))
}

/// Which ports are listened on
#[utoipa::path(get, path = "/v1/machines/{machine}/ports", operation_id = "list_ports", tag = "machines",
    params(("machine" = String, Path, description = "Id or name")),
    responses((status = 200, body = wire::Page<ListeningPort>)))]
pub(crate) async fn ports(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
) -> Answer<Json<wire::Page<ListeningPort>>> {
    let machine = running(&api, &caller, &given).await?;
    Ok(Json(wire::Page { items: api.access.listening_ports(machine.id).await?, next: None }))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct LogQuery {
    /// How many of the last bytes to send, up to 16,777,216; 65,536 when absent.
    #[param(maximum = 16777216)]
    tail: Option<u64>,
    /// Go on with whatever comes.
    follow: Option<bool>,
}

/// Read a machine's console
#[utoipa::path(get, path = "/v1/machines/{machine}/logs", operation_id = "read_logs", tag = "machines",
    params(("machine" = String, Path, description = "Id or name"), LogQuery),
    responses((status = 200, content_type = "text/plain", body = String)))]
pub(crate) async fn logs(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
    Query(query): Query<LogQuery>,
) -> Answer<Response> {
    let tail = query.tail.unwrap_or(DEFAULT_TAIL);
    if tail > LONGEST_TAIL {
        return Err(ApiError::new(Code::InvalidQuery, format!("tail is at most {LONGEST_TAIL} bytes, not {tail}")));
    }
    let machine = resolve::machine(&api, &caller, &given).await?.record;
    let stream = api.access.logs(machine.id, tail, query.follow.unwrap_or(false)).await?;
    let stream = stream.take_until(api.config.shutdown.clone().cancelled_owned());
    let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(stream)).into_response())
}

/// Count a machine's traffic
#[utoipa::path(get, path = "/v1/machines/{machine}/traffic", operation_id = "show_traffic", tag = "machines",
    params(("machine" = String, Path, description = "Id or name")), responses((status = 200, body = wire::Traffic)))]
pub(crate) async fn traffic(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
) -> Answer<Json<wire::Traffic>> {
    let machine = running(&api, &caller, &given).await?;
    let network = api.store.read(&schema::network(machine.network)).await?.ok_or_else(ApiError::internal)?;
    let traffic = api.host.traffic(network.record.number, machine.member).await;
    traffic.map(Json).ok_or_else(|| {
        ApiError::new(
            Code::NotReady,
            format!("machine {} has no link at the moment: try again in a second", machine.name),
        )
    })
}
