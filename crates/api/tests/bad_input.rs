//! Every kind of bad input: its code, its status, and nothing changed.

mod common;

use axum::body::Body;
use common::{lab, request, with_header};
use http::Request;
use serde_json::{Value, json};

#[tokio::test]
async fn bad_input_gets_a_code_of_its_own_and_changes_nothing() {
    let lab = lab().await;
    let key = lab.account("acme").await;
    lab.post(&key, "/v1/networks", json!({ "name": "small", "cidr": "192.168.10.0/29" })).await.expect(201);
    lab.post(&key, "/v1/machines", json!({ "name": "worker", "network": "small", "private_ip": "192.168.10.2" }))
        .await
        .expect(201);
    lab.post(&key, "/v1/machines", json!({ "name": "still" })).await.expect(201);
    lab.post(&key, "/v1/machines/still/stop", json!({})).await.expect(200);
    let before = lab.stored().await;

    let long = "x".repeat(64);
    let network = |cidr: &str| json!({ "name": "n", "cidr": cidr });
    let machine = |field: &str, value: Value| json!({ "network": "small", field: value });
    let exec = |field: &str, value: Value| json!({ "command": ["true"], field: value });
    let cases: Vec<(&str, &str, Value, u16, &str)> = vec![
        ("POST", "/v1/networks", network("10.0.0.0"), 422, "cidr_malformed"),
        ("POST", "/v1/networks", network("10.0.0.1/16"), 422, "cidr_malformed"),
        ("POST", "/v1/networks", network("fd00::/64"), 422, "cidr_malformed"),
        ("POST", "/v1/networks", network("8.8.8.0/24"), 422, "cidr_not_private"),
        ("POST", "/v1/networks", network("10.0.0.0/7"), 422, "cidr_too_wide"),
        ("POST", "/v1/networks", network("10.0.0.0/30"), 422, "cidr_too_narrow"),
        ("POST", "/v1/networks", json!({ "name": "small" }), 409, "name_in_use"),
        ("POST", "/v1/networks", json!({ "name": "Not_a_label" }), 422, "invalid_name"),
        ("POST", "/v1/networks", json!({ "name": long }), 422, "invalid_name"),
        ("POST", "/v1/networks", json!({ "name": "n", "egress": "open" }), 409, "forwarding_required"),
        (
            "PUT",
            "/v1/policy",
            json!({ "text": "allow: [{id: out, from: net:default, to: 1.1.1.1/32, ports: [tcp/443]}]" }),
            409,
            "forwarding_required",
        ),
        ("POST", "/v1/networks", json!({ "name": "n", "egress": "ajar" }), 422, "invalid_request"),
        ("POST", "/v1/networks", json!({ "name": "n", "colour": "red" }), 422, "invalid_request"),
        ("POST", "/v1/networks", json!({}), 422, "invalid_request"),
        ("POST", "/v1/networks", json!(["n"]), 422, "invalid_request"),
        ("PATCH", "/v1/networks/small", json!({ "name": "default" }), 409, "name_in_use"),
        ("PATCH", "/v1/networks/small", json!({ "name": "-" }), 422, "invalid_name"),
        ("PATCH", "/v1/networks/none", json!({ "name": "x" }), 404, "not_found"),
        ("DELETE", "/v1/networks/small", Value::Null, 409, "network_not_empty"),
        ("DELETE", "/v1/networks/none", Value::Null, 404, "not_found"),
        ("DELETE", "/v1/networks/small?force=maybe", Value::Null, 400, "invalid_query"),
        ("POST", "/v1/machines", machine("name", json!("worker")), 409, "name_in_use"),
        ("POST", "/v1/machines", machine("name", json!("a.b")), 422, "invalid_name"),
        ("POST", "/v1/machines", machine("private_ip", json!("192.168.10")), 422, "address_malformed"),
        ("POST", "/v1/machines", machine("private_ip", json!("fd00::1")), 422, "address_malformed"),
        ("POST", "/v1/machines", machine("private_ip", json!("192.168.11.2")), 422, "address_outside_network"),
        ("POST", "/v1/machines", machine("private_ip", json!("192.168.10.0")), 422, "address_reserved"),
        ("POST", "/v1/machines", machine("private_ip", json!("192.168.10.1")), 422, "address_reserved"),
        ("POST", "/v1/machines", machine("private_ip", json!("192.168.10.7")), 422, "address_reserved"),
        ("POST", "/v1/machines", machine("private_ip", json!("192.168.10.2")), 409, "address_taken"),
        ("POST", "/v1/machines", machine("image", json!("windows")), 404, "image_not_found"),
        ("POST", "/v1/machines", machine("image", json!("../etc")), 422, "invalid_name"),
        ("POST", "/v1/machines", machine("image", json!("broken")), 500, "image_build_failed"),
        ("POST", "/v1/machines", machine("cpus", json!(0.05)), 422, "limit_out_of_range"),
        ("POST", "/v1/machines", machine("cpus", json!(64)), 422, "limit_unavailable"),
        ("POST", "/v1/machines", machine("memory_mib", json!(63)), 422, "limit_out_of_range"),
        ("POST", "/v1/machines", machine("memory_mib", json!(8192)), 422, "limit_unavailable"),
        ("POST", "/v1/machines", machine("disk_gib", json!(0)), 422, "limit_out_of_range"),
        ("POST", "/v1/machines", machine("disk_gib", json!(5)), 422, "limit_unavailable"),
        (
            "POST",
            "/v1/machines",
            machine("ports", json!([{ "name": "web", "port": 0, "protocol": "tcp" }])),
            422,
            "invalid_port",
        ),
        (
            "POST",
            "/v1/machines",
            machine("ports", json!([{ "name": "web", "port": 70000, "protocol": "tcp" }])),
            422,
            "invalid_request",
        ),
        (
            "POST",
            "/v1/machines",
            machine("ports", json!([{ "name": "web", "port": 1, "protocol": "sctp" }])),
            422,
            "invalid_request",
        ),
        ("POST", "/v1/machines", machine("tags", json!(["Bad Tag"])), 422, "invalid_name"),
        ("POST", "/v1/machines", machine("labels", json!({ "bad key": "v" })), 422, "invalid_name"),
        ("POST", "/v1/machines", machine("network", json!("none")), 404, "not_found"),
        ("PATCH", "/v1/machines/worker", json!({ "name": "still" }), 409, "name_in_use"),
        ("PATCH", "/v1/machines/worker", json!({ "cpus": 1 }), 422, "invalid_request"),
        ("POST", "/v1/machines/none/start", json!({}), 404, "not_found"),
        ("DELETE", "/v1/machines/none", Value::Null, 404, "not_found"),
        ("POST", "/v1/machines/still/exec", exec("settle", json!(true)), 409, "machine_not_running"),
        ("POST", "/v1/machines/worker/exec", json!({ "command": [] }), 422, "invalid_request"),
        ("POST", "/v1/machines/worker/exec", exec("timeout_ms", json!(600_001)), 422, "invalid_request"),
        ("POST", "/v1/machines/worker/exec", exec("env", json!({ "BAD NAME": "1" })), 422, "invalid_request"),
        ("POST", "/v1/machines/worker/exec", exec("env", json!({ "1A": "1" })), 422, "invalid_request"),
        ("POST", "/v1/machines/worker/exec", exec("terminal", json!({ "rows": 1, "cols": 1 })), 422, "invalid_request"),
        ("POST", "/v1/machines/worker/exec", json!({ "command": ["nothing"] }), 422, "command_not_found"),
        ("POST", "/v1/machines/worker/exec", json!({ "command": ["lost"] }), 503, "agent_unavailable"),
        ("GET", "/v1/machines/worker/exec", Value::Null, 422, "invalid_request"),
        ("GET", "/v1/machines/still/files?path=/a", Value::Null, 409, "machine_not_running"),
        ("GET", "/v1/machines/worker/files", Value::Null, 400, "invalid_query"),
        ("GET", "/v1/machines/worker/files?path=a", Value::Null, 422, "path_invalid"),
        ("GET", "/v1/machines/worker/files?path=%2Fa%00", Value::Null, 422, "path_invalid"),
        ("GET", "/v1/machines/worker/files?path=/missing", Value::Null, 404, "path_not_found"),
        ("PUT", "/v1/machines/worker/files?path=/a&mode=999", Value::Null, 400, "invalid_query"),
        ("GET", "/v1/machines/worker/files/list?path=/panic", Value::Null, 500, "internal"),
        ("GET", "/v1/machines/worker/logs?tail=99999999", Value::Null, 400, "invalid_query"),
        ("GET", "/v1/machines?limit=0", Value::Null, 400, "invalid_query"),
        ("GET", "/v1/machines?limit=1001", Value::Null, 400, "invalid_query"),
        ("GET", "/v1/machines?limit=x", Value::Null, 400, "invalid_query"),
        ("GET", "/v1/machines?colour=red", Value::Null, 400, "invalid_query"),
        ("GET", "/v1/machines?state=asleep", Value::Null, 400, "invalid_query"),
        ("GET", "/v1/machines?tag=A", Value::Null, 400, "invalid_query"),
        ("GET", "/v1/machines?cursor=AAAA", Value::Null, 400, "invalid_cursor"),
        ("GET", "/v1/machines?network=none", Value::Null, 404, "not_found"),
        ("GET", "/v1/events?limit=5", Value::Null, 400, "invalid_query"),
        ("GET", "/v1/images/none", Value::Null, 404, "image_not_found"),
        ("POST", "/v1/images/none/build", Value::Null, 404, "image_not_found"),
        ("POST", "/v1/keys", json!({ "expires_in_seconds": 59 }), 422, "invalid_request"),
        ("POST", "/v1/keys", json!({ "name": "A" }), 422, "invalid_name"),
        ("DELETE", "/v1/keys/none", Value::Null, 404, "not_found"),
        ("GET", "/v1/nothing", Value::Null, 404, "route_not_found"),
        ("GET", "/v2/machines", Value::Null, 404, "route_not_found"),
        ("PUT", "/v1/machines", Value::Null, 405, "method_not_allowed"),
    ];
    for (method, path, body, status, code) in cases {
        let body = (!body.is_null()).then(|| body.to_string());
        let answer = lab.call(request(method, path, &key, body.clone())).await;
        assert_eq!((answer.status, answer.code()), (status, code), "{method} {path} {body:?}: {}", answer.text);
        answer.refused(code);
        assert!(lab.stored().await == before, "{method} {path} {body:?} changed something");
    }
}

#[tokio::test]
async fn a_body_that_is_not_what_it_should_be_is_told_apart() {
    let lab = lab().await;
    let send = |content_type: Option<&str>, body: String| {
        let mut request = Request::post("/v1/networks").header("x-api-key", &lab.root);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        lab.call(request.body(Body::from(body)).unwrap())
    };
    let json = Some("application/json");
    let before = lab.stored().await;
    send(json, "{".into()).await.expect(400).refused("invalid_json");
    send(json, "name=n".into()).await.expect(400).refused("invalid_json");
    send(Some("text/plain"), r#"{"name":"n"}"#.into()).await.expect(415).refused("unsupported_media_type");
    send(None, r#"{"name":"n"}"#.into()).await.expect(415).refused("unsupported_media_type");
    let large = format!(r#"{{"name":"{}"}}"#, "x".repeat(1024 * 1024));
    send(json, large.clone()).await.expect(413).refused("body_too_large");
    let pieces = futures::stream::iter([Ok::<_, std::io::Error>(large)]);
    let streamed =
        Request::post("/v1/networks").header("x-api-key", &lab.root).header("content-type", "application/json");
    lab.call(streamed.body(Body::from_stream(pieces)).unwrap()).await.expect(413).refused("body_too_large");
    assert_eq!(lab.stored().await, before);
}

#[tokio::test]
async fn a_taken_address_names_its_holder_and_a_full_network_says_so() {
    let lab = lab().await;
    lab.post(&lab.root, "/v1/networks", json!({ "name": "tiny", "cidr": "10.9.0.0/29" })).await.expect(201);
    for n in 0..5 {
        let body = json!({ "name": format!("m{n}"), "network": "tiny" });
        lab.post(&lab.root, "/v1/machines", body).await.expect(201);
    }
    let before = lab.stored().await;
    let taken = json!({ "network": "tiny", "private_ip": "10.9.0.4" });
    let answer = lab.post(&lab.root, "/v1/machines", taken).await.expect(409).refused("address_taken");
    assert!(answer.at("/detail").contains("m2"), "{}", answer.text);
    lab.post(&lab.root, "/v1/machines", json!({ "network": "tiny" })).await.expect(409).refused("network_full");
    assert_eq!(lab.stored().await, before);
}

#[tokio::test]
async fn a_quota_is_kept() {
    let lab = common::lab_with(|config| {
        config.machines_per_account = 1;
        config.networks_per_account = 2;
    })
    .await;
    lab.post(&lab.root, "/v1/machines", json!({})).await.expect(201);
    lab.post(&lab.root, "/v1/machines", json!({})).await.expect(409).refused("quota_exceeded");
    lab.post(&lab.root, "/v1/networks", json!({ "name": "a" })).await.expect(201);
    lab.post(&lab.root, "/v1/networks", json!({ "name": "b" })).await.expect(409).refused("quota_exceeded");
}

#[tokio::test]
async fn an_idempotency_key_that_is_none_is_refused() {
    let lab = lab().await;
    let before = lab.stored().await;
    for bad in ["", "a b", &"x".repeat(256)] {
        let body = Some(json!({ "name": "n" }).to_string());
        let request = with_header(request("POST", "/v1/networks", &lab.root, body), "idempotency-key", bad);
        lab.call(request).await.expect(400).refused("idempotency_key_invalid");
    }
    assert_eq!(lab.stored().await, before);
}

#[tokio::test]
async fn a_sane_request_id_is_kept_and_another_one_replaced() {
    let lab = lab().await;
    for (given, kept) in [("abc-1.2_3", true), ("a b", false), (&*"x".repeat(129), false)] {
        let answer = lab.call(with_header(request("GET", "/v1/none", "", None), "x-request-id", given)).await;
        assert_eq!(answer.headers["x-request-id"] == given, kept);
        answer.refused("route_not_found");
    }
    lab.call(request("DELETE", "/v1/whoami", "", None)).await.expect(405);
}
