//! Exec, files, images, events, and the bounds that keep the server up.

mod common;

use std::time::Duration;

use axum::body::Body;
use common::{Lab, lab, lab_with, request, with_header};
use futures::{SinkExt, StreamExt};
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

async fn lab_with_machine() -> Lab {
    let lab = lab().await;
    lab.post(&lab.root, "/v1/machines", json!({ "name": "m" })).await.expect(201);
    lab
}

async fn open(lab: &Lab) -> WebSocketStream<TcpStream> {
    let address = lab.listen().await;
    let mut request = format!("ws://{address}/v1/machines/m/exec").into_client_request().unwrap();
    request.headers_mut().insert("authorization", format!("Bearer {}", lab.root).parse().unwrap());
    let stream = TcpStream::connect(address).await.unwrap();
    tokio_tungstenite::client_async(request, stream).await.unwrap().0
}

/// The next frame that is no ping.
async fn next(socket: &mut WebSocketStream<TcpStream>) -> Message {
    loop {
        match socket.next().await.unwrap().unwrap() {
            Message::Ping(_) => {}
            message => return message,
        }
    }
}

fn text(value: Value) -> Message {
    Message::text(value.to_string())
}

#[tokio::test]
async fn exec_waits_and_answers_what_the_command_wrote() {
    let lab = lab_with_machine().await;
    let exec = |body: Value| lab.post(&lab.root, "/v1/machines/m/exec", body);
    let copied = "x".repeat(300_000);
    let answer = exec(json!({ "command": ["cat"], "stdin": copied })).await.expect(200);
    assert_eq!(
        (answer.at("/stdout").len(), answer.at("/status"), answer.at("/truncated")),
        (300_000, "0".into(), "false".into())
    );
    assert_eq!(exec(json!({ "command": ["false"] })).await.expect(200).at("/status"), "7");
    let answer = exec(json!({ "command": ["env"], "user": "me", "cwd": "/tmp", "settle": false })).await.expect(200);
    assert_eq!(answer.at("/stderr"), r#"Some("me") Some("/tmp") false"#);
}

#[tokio::test]
async fn a_streamed_exec_carries_stdin_output_signals_and_the_end() {
    let lab = lab_with_machine().await;
    let mut socket = open(&lab).await;
    socket
        .send(text(json!({ "type": "start", "exec": { "command": ["cat"], "terminal": { "rows": 24, "cols": 80 } } })))
        .await
        .unwrap();
    socket.send(text(json!({ "type": "resize", "size": { "rows": 30, "cols": 90 } }))).await.unwrap();
    socket.send(Message::binary(b"hello".to_vec())).await.unwrap();
    assert_eq!(next(&mut socket).await, Message::binary(b"\x01hello".to_vec()));
    socket.send(text(json!({ "type": "stdin_closed" }))).await.unwrap();
    let end: Value = serde_json::from_str(next(&mut socket).await.to_text().unwrap()).unwrap();
    assert_eq!(end, json!({ "type": "exit", "status": 0, "signal": null, "timed_out": false }));
    assert!(matches!(next(&mut socket).await, Message::Close(_)));

    let mut socket = open(&lab).await;
    socket.send(text(json!({ "type": "start", "exec": { "command": ["cat"] } }))).await.unwrap();
    socket.send(text(json!({ "type": "signal", "signal": "TERM" }))).await.unwrap();
    let end: Value = serde_json::from_str(next(&mut socket).await.to_text().unwrap()).unwrap();
    assert_eq!(end["status"], 143);
}

#[tokio::test]
async fn a_streamed_exec_tells_what_was_refused_before_it_ends() {
    let lab = lab_with_machine().await;
    let shown = lab.get(&lab.root, "/v1/machines/m").await;
    let account = lab.get(&lab.root, "/v1/whoami").await.at("/account/id");
    let denial = json!({
        "id": "dny_00000000000000000000000001", "time": "2200-01-01T00:00:00Z", "account": account,
        "network": shown.at("/network/id"), "machine": shown.at("/id"), "to": null, "name": "api.example.com",
        "port": 443, "protocol": "tcp", "layer": "dns", "rule": null, "reason": "no rule allows it",
        "suggested_rule": null, "count": 2,
    });
    lab.boundaries.refuse(serde_json::from_value(denial).unwrap());
    let mut socket = open(&lab).await;
    socket.send(text(json!({ "type": "start", "exec": { "command": ["true"] } }))).await.unwrap();
    let told: Value = serde_json::from_str(next(&mut socket).await.to_text().unwrap()).unwrap();
    assert_eq!((&told["type"], &told["denials"][0]["machine"]), (&json!("denials"), &json!("m")));
    assert_eq!((&told["denials"][0]["count"], &told["denials"][0]["rule"]), (&json!(2), &Value::Null));
    let end: Value = serde_json::from_str(next(&mut socket).await.to_text().unwrap()).unwrap();
    assert_eq!((&end["type"], &end["status"]), (&json!("exit"), &json!(7)));
}

#[tokio::test]
async fn a_streamed_exec_says_what_was_wrong() {
    let lab = lab_with_machine().await;
    for (frames, code) in [
        (vec![text(json!({ "type": "start", "exec": { "command": ["nothing"] } }))], "command_not_found"),
        (vec![text(json!({ "type": "start", "exec": { "command": [] } }))], "invalid_request"),
        (vec![text(json!({ "type": "stdin_closed" }))], "invalid_request"),
        (vec![Message::binary(b"x".to_vec())], "invalid_request"),
        (vec![Message::text("{")], "invalid_request"),
        (
            vec![text(json!({ "type": "start", "exec": { "command": ["cat"] } })), text(json!({ "type": "dance" }))],
            "invalid_request",
        ),
        (vec![text(json!({ "type": "start", "exec": { "command": ["lost"] } }))], "agent_unavailable"),
    ] {
        let mut socket = open(&lab).await;
        for frame in frames {
            socket.send(frame).await.unwrap();
        }
        let end: Value = serde_json::from_str(next(&mut socket).await.to_text().unwrap()).unwrap();
        assert_eq!((&end["type"], &end["problem"]["code"]), (&json!("failed"), &json!(code)));
    }
}

#[tokio::test]
async fn files_are_streamed_both_ways() {
    let lab = lab_with_machine().await;
    let files = "/v1/machines/m/files";
    let read = lab.send(request("GET", &format!("{files}?path=/big"), &lab.root, None)).await;
    assert_eq!(read.headers()["x-file-mode"], "0644");
    assert_eq!(read.into_body().collect().await.unwrap().to_bytes().len(), 4 * 1024 * 1024);
    let pieces = futures::stream::iter((0..48).map(|_| Ok::<_, std::io::Error>(vec![b'y'; 65_536])));
    let write = Request::put(format!("{files}?path=/big&mode=0755&parents=true")).header("x-api-key", &lab.root);
    let written = lab.call(write.body(Body::from_stream(pieces)).unwrap()).await.expect(200);
    assert_eq!((written.at("/size"), written.at("/mode")), ((48 * 65_536).to_string(), "493".into()));
    assert_eq!(lab.get(&lab.root, &format!("{files}/list?path=/")).await.expect(200).at("/items/1/path"), "/b");
    assert_eq!(lab.get(&lab.root, &format!("{files}/stat?path=/s")).await.expect(200).at("/size"), "3");
    let made = lab.post(&lab.root, &format!("{files}/directories"), json!({ "path": "/d", "parents": true })).await;
    assert_eq!(made.expect(201).at("/kind"), "directory");
    lab.delete(&lab.root, &format!("{files}?path=/d")).await.expect(409).refused("path_conflict");
    lab.delete(&lab.root, &format!("{files}?path=/d&recursive=true")).await.expect(204);
}

#[tokio::test]
async fn ports_traffic_and_logs_of_a_machine_are_shown() {
    let lab = lab_with_machine().await;
    assert_eq!(lab.get(&lab.root, "/v1/machines/m/ports").await.expect(200).at("/items/0/port"), "8080");
    assert_eq!(lab.get(&lab.root, "/v1/machines/m/traffic").await.expect(200).at("/private/sent_bytes"), "2");
    assert_eq!(lab.get(&lab.root, "/v1/machines/m/logs?tail=12").await.expect(200).text, "last 12\n");
    let mut following = lab.send(request("GET", "/v1/machines/m/logs?follow=true", &lab.root, None)).await.into_body();
    let first = following.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "last 65536\n");
    assert!(tokio::time::timeout(Duration::from_millis(50), following.frame()).await.is_err());
}

#[tokio::test]
async fn images_are_built_imported_and_removed_with_progress() {
    let lab = lab_with_machine().await;
    let lines = |answer: &common::Answered| -> Vec<Value> {
        answer.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let built = lab.call(request("POST", "/v1/images/slim/build", &lab.root, None)).await.expect(200);
    assert_eq!(built.headers["content-type"], "application/x-ndjson");
    let told = lines(&built);
    assert_eq!((&told[0]["type"], &told[0]["progress"]["stage"]), (&json!("progress"), &json!("unpacking")));
    assert_eq!(told.last().unwrap()["image"]["name"], "slim");
    let failed = lines(&lab.call(request("POST", "/v1/images/broken/build", &lab.root, None)).await.expect(200));
    assert_eq!(failed.last().unwrap()["problem"]["code"], "image_build_failed");

    let put = Request::put("/v1/images/mine").header("x-api-key", &lab.root).body(Body::from("archive")).unwrap();
    assert_eq!(lines(&lab.call(put).await.expect(200)).last().unwrap()["image"]["size"], 7);
    assert_eq!(lab.get(&lab.root, "/v1/images/mine").await.expect(200).at("/name"), "mine");
    lab.delete(&lab.root, "/v1/images/debian").await.expect(409).refused("image_in_use");
    lab.delete(&lab.root, "/v1/images/mine").await.expect(204);
    lab.get(&lab.root, "/v1/images/mine").await.expect(404).refused("image_not_found");
}

#[tokio::test]
async fn an_image_is_pulled_with_progress_and_an_audit_entry() {
    use warren_store::{Typed, schema};
    let lab = lab().await;
    let account = lab.account("other").await;
    let pull = async |key: &str, name: &str, reference: &str| {
        lab.post(key, &format!("/v1/images/{name}/pull"), json!({ "reference": reference })).await
    };
    let last =
        |answer: &common::Answered| -> Value { serde_json::from_str(answer.text.lines().last().unwrap()).unwrap() };
    let pulled = pull(&lab.root, "alpine:3.20", "alpine:3.20").await.expect(200);
    assert_eq!(pulled.headers["content-type"], "application/x-ndjson");
    assert!(pulled.text.starts_with(r#"{"type":"progress""#), "{}", pulled.text);
    assert_eq!(last(&pulled)["image"]["source"], "docker.io/library/alpine:3.20");
    assert_eq!(lab.get(&lab.root, "/v1/images/alpine:3.20").await.expect(200).at("/name"), "alpine:3.20");
    let (entries, _) = lab.store.list_all(&schema::audits()).await.unwrap();
    let entry = entries.iter().find(|read| read.record.action == "image.pull").unwrap();
    assert_eq!(entry.record.target, "alpine:3.20");
    assert_eq!(entry.record.request["reference"], "alpine:3.20");

    let lost = pull(&lab.root, "x", "lost.example/x").await.expect(200);
    assert_eq!(last(&lost)["problem"]["code"], "registry_unavailable");
    for bad in ["", "../x", "http://r.io/x", "r.io/x:a b"] {
        pull(&lab.root, "x", bad).await.expect(422).refused("reference_invalid");
    }
    pull(&lab.root, "Not", "alpine").await.expect(422).refused("invalid_name");
    pull(&account, "x", "alpine").await.expect(403).refused("forbidden");
}

/// The data and id of the next server-sent event.
async fn sent(body: &mut Body) -> (Value, Option<u64>) {
    let frame = tokio::time::timeout(Duration::from_secs(30), body.frame()).await.unwrap().unwrap().unwrap();
    let text = String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap();
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    (serde_json::from_str(field("data:").unwrap()).unwrap(), field("id:").map(|id| id.parse().unwrap()))
}

#[tokio::test]
async fn events_are_followed_resumed_and_kept_to_the_account() {
    let lab = lab().await;
    let other = lab.account("other").await;
    let mut mine = lab.send(request("GET", "/v1/events", &lab.root, None)).await.into_body();
    lab.post(&other, "/v1/machines", json!({ "name": "theirs" })).await.expect(201);
    lab.post(&lab.root, "/v1/networks", json!({ "name": "lan" })).await.expect(201);
    lab.post(&lab.root, "/v1/machines", json!({ "name": "m", "network": "lan" })).await.expect(201);
    let (first, id) = sent(&mut mine).await;
    assert_eq!((&first["kind"], &first["revision"]), (&json!("network_created"), &json!(id.unwrap())));
    assert_eq!(sent(&mut mine).await.0["kind"], "machine_created");

    // Two events of one transaction: only the last may be resumed after.
    lab.delete(&lab.root, "/v1/networks/lan?force=true").await.expect(204);
    let (one, two) = (sent(&mut mine).await, sent(&mut mine).await);
    assert_eq!((one.1.is_none(), two.1.is_some(), &one.0["revision"]), (true, true, &two.0["revision"]));

    let resume = with_header(request("GET", "/v1/events", &lab.root, None), "last-event-id", &id.unwrap().to_string());
    let mut resumed = lab.send(resume).await.into_body();
    assert_eq!(sent(&mut resumed).await.0["kind"], "machine_created");

    let page = lab.get(&lab.root, "/v1/events?follow=false&limit=1").await.expect(200);
    assert_eq!(page.at("/items/0/kind"), "network_created");
    let path = format!("/v1/events?follow=false&limit=5&cursor={}", page.at("/next"));
    let rest = lab.get(&lab.root, &path).await.expect(200);
    assert_eq!(rest.body["items"].as_array().unwrap().len(), 3);
    let after = lab.get(&lab.root, &format!("/v1/events?follow=false&after={}", id.unwrap())).await.expect(200);
    assert_eq!(after.body["items"].as_array().unwrap().len(), 3);

    use warren_store::Store;
    lab.store.compact(lab.store.revision().await.unwrap()).await.unwrap();
    lab.get(&lab.root, "/v1/events?after=1").await.expect(410).refused("events_expired");
}

#[tokio::test]
async fn too_many_requests_are_refused_while_health_still_answers() {
    let lab = lab_with(|config| {
        config.max_requests = 1;
        config.max_streams = 1;
        config.request_timeout = Duration::from_secs(4);
    })
    .await;
    lab.post(&lab.root, "/v1/machines", json!({ "name": "m" })).await.expect(201);
    let slow = lab.get(&lab.root, "/v1/machines/m/files/stat?path=/slow");
    let others = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let busy = lab.get(&lab.root, "/v1/machines").await.expect(503).refused("server_busy");
        assert_eq!(busy.headers["retry-after"], "1");
        lab.get("", "/healthz").await.expect(200);
    };
    let (slow, ()) = tokio::join!(slow, others);
    slow.expect(504).refused("deadline_exceeded");
    lab.get(&lab.root, "/v1/machines").await.expect(200);

    let following = lab.send(request("GET", "/v1/events", &lab.root, None)).await;
    lab.get(&lab.root, "/v1/events").await.expect(503).refused("server_busy");
    drop(following);
    lab.send(request("GET", "/v1/events", &lab.root, None)).await;
}

#[tokio::test]
async fn a_create_goes_on_when_its_client_hangs_up() {
    let lab = lab().await;
    let create = lab.post(&lab.root, "/v1/machines", json!({ "name": "fail-late" }));
    let written = async {
        while lab.keys_below("audit/").await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    // Whichever comes first, the request is dropped.
    tokio::select! {
        _ = create => {}
        () = written => {}
    }
    for _ in 0..3000 {
        let done = lab.keys_below("audit/").await.len() == 2;
        if done && lab.keys_below("machine/").await.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("something of the machine stayed");
}

#[tokio::test]
async fn a_machine_whose_image_is_missing_gets_it_built() {
    let lab = lab().await;
    lab.post(&lab.root, "/v1/machines", json!({ "name": "m", "image": "slim" })).await.expect(201);
    lab.get(&lab.root, "/v1/images/slim").await.expect(200);
}

#[tokio::test]
async fn health_readiness_metrics_and_the_document_are_served() {
    let lab = lab().await;
    assert_eq!(lab.get("", "/healthz").await.expect(200).at("/status"), "ok");
    lab.get("", "/readyz").await.expect(200);
    lab.host.not_ready.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(lab.get("", "/readyz").await.expect(503).refused("not_ready").at("/detail").contains("runc"));
    let metrics = lab.get(&lab.root, "/metrics").await.expect(200).text;
    assert!(metrics.contains("warren_api_requests_total") && metrics.contains(r#"route="/readyz""#));
    assert!(metrics.contains("host_things 7") && metrics.ends_with("# EOF\n"));
    assert_eq!(metrics.matches("# EOF").count(), 1);
    assert!(lab.get("", "/openapi.json").await.expect(200).at("/openapi").starts_with("3.1"));
}

#[tokio::test]
async fn streams_end_when_the_server_stops() {
    let stop = tokio_util::sync::CancellationToken::new();
    let lab = lab_with(|config| config.shutdown = stop.clone()).await;
    let mut body = lab.send(request("GET", "/v1/events", &lab.root, None)).await.into_body();
    stop.cancel();
    let end = tokio::time::timeout(Duration::from_secs(30), body.frame()).await.unwrap();
    assert!(end.is_none());
}
