//! Policies, and what they refuse.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use warren_model::problem::TextError;
use warren_model::{Code, Problem};

use super::{Memory, Parameters, Shared, event_stream, last_event, problem};

pub fn router() -> Router<Arc<Mutex<Memory>>> {
    Router::new()
        .route("/v1/policy", get(show).put(apply))
        .route("/v1/policy/versions", get(history))
        .route("/v1/policy/versions/{version}", get(version))
        .route("/v1/policy/diff", get(diff))
        .route("/v1/policy/rollback", post(rollback))
        .route("/v1/policy/test", post(test))
        .route("/v1/explain", post(explain))
        .route("/v1/reach", get(reach))
        .route("/v1/denials", get(denials))
}

fn applied(version: u64, dry_run: bool) -> Value {
    let mut answer = json!({
        "version": version, "hash": "0123456789abcdef", "dry_run": dry_run, "unchanged": false,
        "warnings": ["rule a is about dev/x, and there is no such machine"],
    });
    if dry_run {
        let passage = json!({"from": "dev/agent", "to": "dev/db", "ports": ["tcp/5432"]});
        let nothing = json!({"items": [], "more": 0});
        answer["change"] = json!({"opens": {"items": [passage], "more": 0}, "closes": nothing});
    }
    answer
}

/// A text with `wrong` in it is not valid, one with `failing` has a test that fails.
async fn apply(State(memory): Shared, Json(body): Json<Value>) -> Response {
    let text = body["text"].as_str().unwrap();
    if text.contains("wrong") {
        let mut invalid = Problem::new(Code::PolicyInvalid, "the policy is not valid: line 2, column 5: unknown");
        let error = |line, message: &str| TextError { line, column: 5, message: message.to_owned() };
        invalid.errors = [error(2, "unknown key"), error(9, "no network \u{1b}[2J")].into();
        return (StatusCode::UNPROCESSABLE_ENTITY, Json(invalid)).into_response();
    }
    let dry_run = body["dry_run"] == true;
    if !dry_run {
        memory.lock().unwrap().policy = text.to_owned();
    }
    Json(applied(2, dry_run)).into_response()
}

async fn show(State(memory): Shared) -> Json<Value> {
    Json(policy(2, &memory.lock().unwrap().policy))
}

fn policy(version: u64, text: &str) -> Value {
    json!({
        "version": version, "hash": "0123456789abcdef", "text": text, "policy": {},
        "applied_at": "2026-11-20T09:30:00Z", "key": "key_01", "rolled_back_from": null, "warnings": [],
    })
}

async fn version(Path(version): Path<u64>) -> Response {
    match version {
        0..=2 => Json(policy(version, "{}\n")).into_response(),
        _ => problem(Code::PolicyVersionNotFound, "there is no version 9 of the policy: see GET /v1/policy/versions"),
    }
}

async fn history() -> Json<Value> {
    let version = |version: u64| {
        json!({
            "version": version, "hash": "0123456789abcdef", "applied_at": "2026-11-20T09:30:00Z", "key": "key_01",
            "key_name": null, "rolled_back_from": null, "rules": 3, "current": version == 2,
        })
    };
    Json(json!({"items": [version(2), version(1)], "next": null}))
}

async fn diff(Query(query): Query<BTreeMap<String, u64>>) -> Json<Value> {
    let nothing = json!({"items": [], "more": 0});
    Json(json!({
        "from": query.get("from").unwrap_or(&1), "to": query.get("to").unwrap_or(&2), "added": [], "removed": [],
        "changed": [], "networks": [], "opens": nothing, "closes": nothing,
    }))
}

async fn rollback(Json(body): Json<Value>) -> Json<Value> {
    assert!(body["version"].is_u64());
    Json(applied(3, body["dry_run"] == true))
}

async fn test(Json(body): Json<Value>) -> Json<Value> {
    let fails = body["text"].as_str().is_some_and(|text| text.contains("failing"));
    let failure = json!({"line": 7, "column": 3, "message": "test fails: from dev/a to dev/b"});
    let failures = if fails { vec![failure] } else { vec![] };
    Json(json!({"passed": !fails, "tests": 2, "failures": failures, "hash": "01"}))
}

async fn explain(Json(body): Json<Value>) -> Json<Value> {
    Json(json!({
        "verdict": "deny", "rule": null, "reason": "no rule allows it", "from": body["from"], "to": body["to"],
        "port": body["port"], "pairs": 1, "near_misses": [{"rule": "web", "why": "it is for tcp/80"}], "path": ["a"],
        "missing_rule": {"id": "allow-it", "from": "dev/agent", "to": {"name": "api.example.com"}, "ports": ["tcp/443"]},
        "policy": "01",
    }))
}

async fn reach(Query(query): Parameters) -> Json<Value> {
    let network = query.get("network").map_or("dev", String::as_str);
    let to = json!({"to": "dev/db", "open": ["icmp"], "declared": []});
    let item = json!({
        "from": format!("{network}/agent"), "machine": "agent", "network": network, "to": [to], "names": [],
        "internet": true,
    });
    Json(json!({"items": [item], "next": null}))
}

pub fn a_denial(number: u64) -> Value {
    json!({
        "id": format!("dny_{number}"), "time": "2026-11-20T09:30:00Z", "machine": "worker", "to": null,
        "name": "api.example.com", "port": 443, "protocol": "tcp", "layer": "dns", "rule": null,
        "reason": "no rule allows it", "suggested_rule": null, "count": 1,
    })
}

/// Two denials and an end; after those one more; after that no more.
async fn denials(Query(query): Parameters, headers: HeaderMap) -> Response {
    if query.get("follow").is_none_or(|follow| follow != "true") {
        let limit = query["limit"].parse().unwrap();
        let items: Vec<_> = (1..=5).take(limit).map(a_denial).collect();
        return Json(json!({"items": items, "next": null})).into_response();
    }
    let event = |number: u64| (format!("dny_{number}"), a_denial(number));
    match last_event(&headers).as_deref() {
        None => event_stream(&[event(1), event(2)]),
        Some("dny_2") => event_stream(&[event(3)]),
        _ => problem(Code::NotReady, "the server is shutting down"),
    }
}
