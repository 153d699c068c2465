//! Audits, their schedule and the export of the log of mutations.

mod common;

use common::{lab, request, with_header};
use serde_json::json;

#[tokio::test]
async fn an_audit_tells_how_far_it_is_and_ends_with_its_report() {
    let lab = lab().await;
    let answer = lab.post(&lab.root, "/v1/audit", json!({})).await.expect(200);
    assert_eq!(answer.headers["content-type"], "application/x-ndjson");
    let lines: Vec<serde_json::Value> = answer.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.first().unwrap()["type"], "progress");
    assert_eq!(lines.last().unwrap()["type"], "done");
    assert_eq!(lines.last().unwrap()["audit"]["summary"], "None true");
}

#[tokio::test]
async fn a_second_audit_of_an_account_is_refused_before_anything_is_written() {
    let lab = lab().await;
    lab.audits.running.store(true, std::sync::atomic::Ordering::Relaxed);
    let before = lab.keys_below("audit/").await;
    lab.post(&lab.root, "/v1/audit", json!({})).await.expect(409).refused("audit_running");
    assert_eq!(lab.keys_below("audit/").await, before);
    lab.get(&lab.root, "/v1/audit/key").await.expect(200);
}

#[tokio::test]
async fn only_the_root_keys_audit_goes_across_accounts_and_only_own_networks_can_be_named() {
    let lab = lab().await;
    let (mine, other) = (lab.account("mine").await, lab.account("other").await);
    let hidden = lab.post(&other, "/v1/networks", json!({ "name": "hidden" })).await.expect(201).at("/id");
    let own = lab.post(&mine, "/v1/audit", json!({})).await.expect(200);
    assert!(own.text.contains("None false"), "{}", own.text);
    let named = lab.post(&mine, "/v1/audit", json!({ "network": "default" })).await.expect(200);
    assert!(named.text.contains("Some("), "{}", named.text);
    for network in [hidden.as_str(), "hidden", "none"] {
        lab.post(&mine, "/v1/audit", json!({ "network": network })).await.expect(404).refused("not_found");
    }
    lab.post(&mine, "/v1/audit", json!({ "everything": true })).await.expect(422).refused("invalid_request");
}

#[tokio::test]
async fn a_schedule_is_kept_until_it_is_removed() {
    let lab = lab().await;
    let path = "/v1/audit/schedule";
    lab.get(&lab.root, path).await.expect(404).refused("not_found");
    for bad in [json!({}), json!({ "every_seconds": 59 }), json!({ "every_seconds": 60, "report": "relative" })] {
        lab.put(&lab.root, path, bad).await.expect(422).refused("invalid_request");
    }
    let set = lab.put(&lab.root, path, json!({ "every_seconds": 3600, "report": "/srv/audit" })).await.expect(200);
    let shown = lab.get(&lab.root, path).await.expect(200);
    assert_eq!(shown.body, set.body);
    assert_eq!((shown.at("/every_seconds"), shown.at("/report")), ("3600".into(), "/srv/audit".into()));
    lab.account("other").await;
    lab.call(with_header(request("GET", path, &lab.root, None), "x-warren-account", "other")).await.expect(404);
    lab.delete(&lab.root, path).await.expect(204);
    lab.get(&lab.root, path).await.expect(404);
    lab.delete(&lab.root, path).await.expect(204);
}

#[tokio::test]
async fn the_log_is_exported_line_by_line_from_any_number_on() {
    let lab = lab().await;
    let all = lab.get(&lab.root, "/v1/audit-log").await.expect(200);
    assert_eq!(all.text, "{\"number\":1}\n{\"number\":2}\n");
    assert_eq!(lab.get(&lab.root, "/v1/audit-log?after=1").await.expect(200).text, "{\"number\":2}\n");
    lab.get(&lab.root, "/v1/audit-log?after=x").await.expect(400).refused("invalid_query");
}
