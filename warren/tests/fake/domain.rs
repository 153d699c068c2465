//! Domains and claims. A name is verified when it is asked for the third time.

use std::sync::{Arc, Mutex};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use warren_model::Code;

use super::{Memory, Shared, problem};

/// What the authority answers.
pub const PEM: &str = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";

pub fn router() -> Router<Arc<Mutex<Memory>>> {
    Router::new()
        .route("/v1/domains", get(list).post(map))
        .route("/v1/domains/authority", get(async || PEM))
        .route("/v1/domains/{domain}", delete(unmap).patch(change))
        .route("/v1/domain-claims", post(claim))
}

fn a_domain(host: &str, asked: &Value) -> Value {
    json!({
        "id": "dom_01",
        "host": host,
        "url": format!("https://{host}"),
        "machine": {"id": "mch_01", "name": asked["machine"]},
        "network": {"id": "net_01", "name": "agents"},
        "port": asked["port"],
        "limits": {"requests_per_second": 500, "burst": 1000, "max_body_bytes": 104_857_600, "idle_seconds": 300,
            "concurrent": 512},
        "proof": "suffix",
        "certificate": {"state": "pending", "detail": "it was asked for"},
        "traffic": {"requests": 0, "refused": 0, "sent_bytes": 0, "received_bytes": 0, "open": 0},
        "created_at": "2026-11-20T09:30:00Z",
        "created_by": "key_01",
        "asked": asked,
    })
}

async fn map(State(memory): Shared, Json(asked): Json<Value>) -> Response {
    let host = asked["host"].as_str().unwrap_or("worker-8080-qwerty.preview.example").to_owned();
    if host == "taken.example.com" {
        return problem(Code::DomainTaken, "taken.example.com is mapped already");
    }
    let domain = a_domain(&host, &asked);
    memory.lock().unwrap().domains.insert(host, domain.clone());
    (StatusCode::CREATED, Json(domain)).into_response()
}

async fn list(State(memory): Shared) -> Json<Value> {
    let domains: Vec<Value> = memory.lock().unwrap().domains.values().cloned().collect();
    Json(json!({"items": domains, "next": null}))
}

async fn change(Path(host): Path<String>, Json(asked): Json<Value>) -> Json<Value> {
    Json(a_domain(&host, &asked))
}

async fn unmap(State(memory): Shared, Path(host): Path<String>) -> Response {
    match memory.lock().unwrap().domains.remove(&host) {
        Some(_) => StatusCode::NO_CONTENT.into_response(),
        None => problem(Code::NotFound, "there is no such domain"),
    }
}

async fn claim(State(memory): Shared, Json(asked): Json<Value>) -> Response {
    let host = asked["host"].as_str().unwrap().to_owned();
    let mut memory = memory.lock().unwrap();
    let times = memory.claims.entry(host.clone()).or_insert(0);
    *times += 1;
    let mut claim = json!({
        "host": host,
        "state": "pending",
        "record": {"name": format!("_warren.{host}"), "value": "warren-verification=00"},
        "created_at": "2026-11-20T09:30:00Z",
        "verified_at": null,
    });
    match times {
        1 => return (StatusCode::CREATED, Json(claim)).into_response(),
        2 => claim["detail"] = json!("_warren.example.com does not exist (NXDOMAIN)"),
        _ => (claim["state"], claim["verified_at"]) = (json!("verified"), json!("2026-11-20T09:31:00Z")),
    }
    Json(claim).into_response()
}
