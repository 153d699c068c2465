//! Operators' sessions. Those in network `short` are closed as soon as somebody asks for them, those in `ended` have
//! expired by then, and there are none in `closed`.

use std::sync::{Arc, Mutex};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use warren_model::Code;

use super::{Memory, Shared, problem};

/// Some public key.
pub const KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

pub fn router() -> Router<Arc<Mutex<Memory>>> {
    Router::new()
        .route("/v1/networks/{network}/sessions", get(list).post(open))
        .route("/v1/sessions", get(list))
        .route("/v1/sessions/{session}", get(show).delete(close))
}

fn a_session(id: &str, network: &str) -> Value {
    let expires_at = match network {
        "ended" => jiff::Timestamp::now() + jiff::SignedDuration::from_millis(300),
        _ => jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1),
    };
    json!({
        "id": id,
        "name": format!("session-{}", &id[id.len() - 8..]),
        "network": {"id": "net_01", "name": network},
        "only": null,
        "private_ip": "192.168.10.5",
        "private_ip6": "fd12:3456:789a:1::5",
        "public_key": KEY,
        "created_at": "2026-11-20T09:30:00Z",
        "expires_at": expires_at,
        "idle_seconds": 1800,
        "reachable": false,
        "opened_by": "key_01",
        "operator": "anna",
        "status": null,
    })
}

async fn open(State(memory): Shared, Path(network): Path<String>, Json(body): Json<Value>) -> Response {
    if network == "closed" {
        return problem(Code::VpnUnavailable, "0.0.0.0:51820 is in use");
    }
    let mut memory = memory.lock().unwrap();
    let id = format!("ses_01jd8m{:020}", memory.sessions.len() + 1);
    let mut opened = a_session(&id, &network);
    let more = json!({
        "session_id": id,
        "client_config": "[Interface]\nPrivateKey = c2VjcmV0\nAddress = 192.168.10.5/32\n",
        "client_private_key": "c2VjcmV0",
        "endpoint": "vpn.example:51820",
        "server_public_key": KEY,
        "addresses": ["192.168.10.5/32", "fd12:3456:789a:1::5/128"],
        "allowed_ips": ["192.168.10.0/24", "fd12:3456:789a:1::/64"],
        "asked": body,
    });
    opened.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    memory.sessions.insert(id, opened.clone());
    (StatusCode::CREATED, Json(opened)).into_response()
}

async fn list(State(memory): Shared) -> Json<Value> {
    let items: Vec<_> = memory.lock().unwrap().sessions.values().cloned().collect();
    Json(json!({"items": items, "next": null}))
}

async fn show(State(memory): Shared, Path(id): Path<String>) -> Response {
    let mut memory = memory.lock().unwrap();
    match memory.sessions.get(&id) {
        Some(session) if session["network"]["name"] != "short" => Json(session).into_response(),
        _ => {
            memory.sessions.remove(&id);
            problem(Code::NotFound, "there is no such session: see GET /v1/sessions")
        }
    }
}

async fn close(State(memory): Shared, Path(id): Path<String>) -> Response {
    match memory.lock().unwrap().sessions.remove(&id) {
        Some(_) => StatusCode::NO_CONTENT.into_response(),
        None => problem(Code::NotFound, "there is no such session: see GET /v1/sessions"),
    }
}
