//! A server that answers like Warren's, out of memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use warren_model::{Code, Problem};

pub mod domain;
mod policy;
pub mod run;
pub mod vpn;

pub struct Fake {
    pub url: String,
    /// Ends the server when dropped.
    _runtime: tokio::runtime::Runtime,
}

#[derive(Default)]
pub struct Memory {
    images: Vec<String>,
    policy: String,
    domains: BTreeMap<String, Value>,
    /// How often each name was asked for.
    claims: BTreeMap<String, u32>,
    /// Ids of those that are open, and what was asked for.
    sessions: BTreeMap<String, Value>,
    /// `None` is a directory.
    files: BTreeMap<String, Option<Vec<u8>>>,
}

type Shared = State<Arc<Mutex<Memory>>>;
type Parameters = Query<BTreeMap<String, String>>;

impl Fake {
    pub fn start() -> Self {
        let runtime = runtime();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(async move { axum::serve(listener, router()).await });
        Self { url, _runtime: runtime }
    }

    #[cfg(unix)]
    pub fn start_unix(path: &std::path::Path) -> Self {
        let runtime = runtime();
        let listener = runtime.block_on(async { tokio::net::UnixListener::bind(path) }).unwrap();
        runtime.spawn(async move { axum::serve(listener, router()).await });
        Self { url: format!("unix://{}", path.display()), _runtime: runtime }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn router() -> Router {
    let mut memory = Memory::default();
    memory.files.insert("worker:/srv".into(), None);
    memory.files.insert("other:/srv".into(), None);
    memory.files.insert("evil:/srv".into(), None);
    Router::new()
        .route("/v1/whoami", get(whoami))
        .route("/v1/networks", get(networks))
        .route("/v1/networks/{network}", get(network))
        .route("/v1/images/{image}", get(image))
        .route("/v1/images/{image}/build", post(build))
        .route("/v1/images/{image}/pull", post(pull))
        .route("/v1/machines", post(create))
        .route("/v1/machines/{machine}", axum::routing::delete(remove))
        .route("/v1/machines/{machine}/stop", post(stop))
        .route("/v1/machines/{machine}/logs", get(async || "\x1b[2Jhidden\tcolumn\n"))
        .route("/v1/machines/{machine}/exec", get(exec))
        .route("/v1/machines/{machine}/files", get(read).put(write))
        .route("/v1/machines/{machine}/files/stat", get(stat))
        .route("/v1/machines/{machine}/files/list", get(list))
        .route("/v1/machines/{machine}/files/directories", post(make_directory))
        .route("/v1/events", get(events))
        .merge(domain::router())
        .merge(policy::router())
        .merge(vpn::router())
        .with_state(Arc::new(Mutex::new(memory)))
}

fn problem(code: Code, detail: &str) -> Response {
    let mut problem = Problem::new(code, detail);
    problem.request_id = Some("req_1".into());
    (StatusCode::from_u16(problem.status).unwrap(), Json(problem)).into_response()
}

async fn whoami(headers: HeaderMap) -> Json<Value> {
    let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    Json(json!({
        "version": "0.1.0",
        "installation": "abcde",
        "account": {"id": "acc_01", "name": header("x-warren-account").unwrap_or("default".into())},
        "key": "key_01",
        "root": true,
        "authorization": header("authorization"),
    }))
}

fn a_network(name: &str) -> Value {
    json!({
        "id": "net_01",
        "name": name,
        "number": 1,
        "cidr": "192.168.10.0/24",
        "cidr6": "fd12:3456:789a:1::/80",
        "gateway": "192.168.10.1",
        "gateway6": "fd12:3456:789a:1::1",
        "egress": "deny",
        "members": 0,
        "created_at": "2026-11-20T09:30:00Z",
        "from_the_future": true,
    })
}

/// Five networks, two on a page at most.
async fn networks(Query(query): Parameters) -> Json<Value> {
    let from: usize = query.get("cursor").map_or(0, |cursor| cursor.parse().unwrap());
    let limit: usize = query["limit"].parse().unwrap();
    let to = (from + limit.min(2)).min(5);
    let items: Vec<_> = (from..to).map(|n| a_network(&format!("n{n}"))).collect();
    Json(json!({"items": items, "next": (to < 5).then(|| to.to_string())}))
}

async fn network(Path(name): Path<String>) -> Response {
    match name.as_str() {
        "none" => problem(Code::NotFound, "there is no network none: see GET /v1/networks"),
        name => Json(a_network(name)).into_response(),
    }
}

fn an_image(name: &str) -> Value {
    json!({"name": name, "digest": "00", "size": 1, "source": "build", "created_at": "2026-11-20T09:30:00Z"})
}

async fn image(State(memory): Shared, Path(name): Path<String>) -> Response {
    match memory.lock().unwrap().images.contains(&name) {
        true => Json(an_image(&name)).into_response(),
        false => problem(Code::ImageNotFound, "there is no such image"),
    }
}

async fn build(State(memory): Shared, Path(name): Path<String>) -> Response {
    let progress = json!({"type": "progress", "progress": {"stage": "installing packages", "fraction": 0.5}});
    let last = if name == "broken" {
        json!({"type": "failed", "problem": Problem::new(Code::ImageBuildFailed, "mmdebstrap said no")})
    } else {
        memory.lock().unwrap().images.push(name.clone());
        json!({"type": "done", "image": an_image(&name)})
    };
    ([("content-type", "application/x-ndjson")], format!("{progress}\n{last}\n")).into_response()
}

async fn pull(State(memory): Shared, Path(name): Path<String>, Json(body): Json<Value>) -> Response {
    let progress = json!({"type": "progress", "progress": {"stage": "layer 1 of 2, 3 of 5 MiB", "fraction": 0.5}});
    let reference = body["reference"].as_str().unwrap();
    let last = if reference.starts_with("lost.example/") {
        json!({"type": "failed", "problem": Problem::new(Code::RegistryUnavailable, "lost.example cannot be reached")})
    } else {
        memory.lock().unwrap().images.push(name.clone());
        let mut image = an_image(&name);
        image["source"] = reference.into();
        json!({"type": "done", "image": image})
    };
    ([("content-type", "application/x-ndjson")], format!("{progress}\n{last}\n")).into_response()
}

async fn remove(Path(name): Path<String>) -> Response {
    match name.as_str() {
        "none" => problem(Code::NotFound, "there is no machine none: see GET /v1/machines"),
        _ => StatusCode::NO_CONTENT.into_response(),
    }
}

async fn stop(Path(name): Path<String>) -> Response {
    match name.as_str() {
        "none" => problem(Code::NotFound, "there is no machine none: see GET /v1/machines"),
        name => Json(a_machine(name, "stopped", json!([]))).into_response(),
    }
}

async fn create(State(memory): Shared, Json(body): Json<Value>) -> Response {
    if memory.lock().unwrap().images.is_empty() {
        return problem(Code::ImageNotFound, "build it first");
    }
    let ports = body.get("ports").cloned().unwrap_or(json!([]));
    (StatusCode::CREATED, Json(a_machine(body["name"].as_str().unwrap(), "running", ports))).into_response()
}

fn a_machine(name: &str, state: &str, ports: Value) -> Value {
    json!({
        "id": "mch_01",
        "name": name,
        "state": state,
        "private_ip": "10.0.1.10",
        "private_ip6": "fd12:3456:789a:1::1",
        "address": "1:0001.0000.0001",
        "hostname": format!("{name}.vm.internal"),
        "network": {"id": "net_01", "name": "default"},
        "image": "debian",
        "cpus": 1.0,
        "memory_mib": 512,
        "disk_gib": null,
        "ports": ports,
        "tags": [],
        "labels": {},
        "created_at": "2026-11-20T09:30:00Z",
        "started_at": "2026-11-20T09:30:00Z",
    })
}

async fn exec(Path(machine): Path<String>, upgrade: WebSocketUpgrade) -> Response {
    if machine == "stopped" {
        return problem(Code::MachineNotRunning, "machine stopped is stopped: start it");
    }
    upgrade.on_upgrade(|mut socket| async move {
        let said = converse(&mut socket).await;
        let _ = socket.send(Message::text(said.to_string())).await;
        let _ = socket.send(Message::Close(None)).await;
        let _ = tokio::time::timeout(Duration::from_secs(5), async { while let Some(Ok(_)) = socket.recv().await {} })
            .await;
    })
}

/// Plays the command that is named, and answers the last event.
async fn converse(socket: &mut WebSocket) -> Value {
    let exit = |status: i32| json!({"type": "exit", "status": status, "signal": null, "timed_out": false});
    let failed = |code: Code| json!({"type": "failed", "problem": Problem::new(code, "it did not run")});
    let Some(Ok(Message::Text(start))) = socket.recv().await else { return failed(Code::InvalidRequest) };
    let start: Value = serde_json::from_str(&start).unwrap();
    assert_eq!(start["type"], "start");
    match start["exec"]["command"][0].as_str().unwrap() {
        "cat" => {
            while let Some(Ok(message)) = socket.recv().await {
                match message {
                    Message::Binary(bytes) => {
                        let frame = [&[1], &bytes[..]].concat();
                        socket.send(Message::Binary(frame.into())).await.unwrap();
                    }
                    Message::Text(text) if text.contains("stdin_closed") => return exit(0),
                    _ => {}
                }
            }
            exit(1)
        }
        "fail" => {
            socket.send(Message::Binary(Bytes::from_static(b"\x01to stdout\n"))).await.unwrap();
            socket.send(Message::Binary(Bytes::from_static(b"\x02to stderr\n"))).await.unwrap();
            exit(42)
        }
        "yes" => loop {
            if socket.send(Message::Binary(Bytes::from_static(b"\x01y\n"))).await.is_err() {
                return exit(0);
            }
        },
        "wait" => {
            socket.send(Message::Binary(Bytes::from_static(b"\x01ready\n"))).await.unwrap();
            while let Some(Ok(message)) = socket.recv().await {
                if let Message::Text(text) = message
                    && text.contains("\"TERM\"")
                {
                    return json!({"type": "exit", "status": 143, "signal": 15, "timed_out": false});
                }
            }
            exit(1)
        }
        // Tells its terminal's size, repeats what is typed, and ends with an x.
        "terminal" => {
            let size = format!("\x01{} {}\r\n", start["exec"]["terminal"]["rows"], start["exec"]["terminal"]["cols"]);
            socket.send(Message::Binary(size.into())).await.unwrap();
            while let Some(Ok(message)) = socket.recv().await {
                if let Message::Binary(bytes) = message {
                    let frame = [&[1], &bytes[..]].concat();
                    socket.send(Message::Binary(frame.into())).await.unwrap();
                    if bytes.contains(&b'x') {
                        return exit(7);
                    }
                }
            }
            exit(1)
        }
        "curl" => {
            socket.send(Message::Binary(Bytes::from_static(b"\x02curl: (6) no such host\n"))).await.unwrap();
            let told = json!({"type": "denials", "denials": [policy::a_denial(1)]});
            socket.send(Message::text(told.to_string())).await.unwrap();
            exit(6)
        }
        "slow" => json!({"type": "exit", "status": 124, "signal": 9, "timed_out": true}),
        "refused" => failed(Code::CommandNotExecutable),
        "missing" => failed(Code::CommandNotFound),
        _ => failed(Code::AgentUnavailable),
    }
}

fn key(machine: &str, query: &BTreeMap<String, String>) -> String {
    format!("{machine}:{}", query["path"])
}

fn info(key: &str, content: &Option<Vec<u8>>) -> Value {
    let (_, path) = key.split_once(':').unwrap();
    json!({
        "name": path.rsplit('/').next().unwrap(),
        "path": path,
        "kind": if content.is_some() { "file" } else { "directory" },
        "size": content.as_ref().map_or(0, Vec::len),
        "mode": 0o644,
        "uid": 0,
        "gid": 0,
        "modified": 0,
    })
}

async fn stat(State(memory): Shared, Path(machine): Path<String>, Query(query): Parameters) -> Response {
    let key = key(&machine, &query);
    match memory.lock().unwrap().files.get(&key) {
        Some(content) => Json(info(&key, content)).into_response(),
        None => problem(Code::PathNotFound, "there is no such path"),
    }
}

async fn read(State(memory): Shared, Path(machine): Path<String>, Query(query): Parameters) -> Response {
    match memory.lock().unwrap().files.get(&key(&machine, &query)) {
        Some(Some(content)) => ([("x-file-mode", "0640")], content.clone()).into_response(),
        _ => problem(Code::PathNotFound, "there is no such file"),
    }
}

async fn write(State(memory): Shared, Path(machine): Path<String>, Query(query): Parameters, body: Body) -> Response {
    let content = axum::body::to_bytes(body, 1 << 24).await.unwrap();
    let key = key(&machine, &query);
    let content = Some(content.to_vec());
    let answer = info(&key, &content);
    memory.lock().unwrap().files.insert(key, content);
    Json(answer).into_response()
}

async fn list(State(memory): Shared, Path(machine): Path<String>, Query(query): Parameters) -> Response {
    let under = format!("{}/", key(&machine, &query));
    let memory = memory.lock().unwrap();
    let children =
        memory.files.iter().filter(|(key, _)| key.strip_prefix(&under).is_some_and(|rest| !rest.contains('/')));
    let mut items: Vec<_> = children.map(|(key, content)| info(key, content)).collect();
    if machine == "evil" {
        items.push(info("evil:/escaped", &Some(vec![])));
        items[0]["name"] = json!("../escaped");
    }
    Json(json!({"items": items, "next": null})).into_response()
}

async fn make_directory(State(memory): Shared, Path(machine): Path<String>, Json(body): Json<Value>) -> Response {
    let key = format!("{machine}:{}", body["path"].as_str().unwrap());
    let answer = info(&key, &None);
    memory.lock().unwrap().files.insert(key, None);
    (StatusCode::CREATED, Json(answer)).into_response()
}

fn an_event(revision: u64) -> Value {
    json!({
        "id": format!("evt_{revision}"),
        "revision": revision,
        "time": "2026-11-20T09:30:00Z",
        "kind": "machine_running",
        "network": null,
        "machine": null,
        "message": "worker runs",
    })
}

/// Two events and an end; after those one more; after that no more. As a list, five of them, two on a page at most.
async fn events(headers: HeaderMap, Query(query): Parameters) -> Response {
    if query.get("follow").is_some_and(|follow| follow == "false") {
        let number = |key: &str| query.get(key).map(|text| text.parse::<u64>().unwrap());
        let from = number("cursor").or(number("after")).unwrap_or(0);
        let to = (from + number("limit").unwrap().min(2)).min(5);
        let items: Vec<_> = (from..to).map(|revision| an_event(revision + 1)).collect();
        return Json(json!({"items": items, "next": (to < 5).then(|| to.to_string())})).into_response();
    }
    let event = |revision: u64| (revision.to_string(), an_event(revision));
    match last_event(&headers).as_deref() {
        None => event_stream(&[event(1), event(2)]),
        Some("2") => event_stream(&[event(3)]),
        _ => problem(Code::EventsExpired, "list what is, and follow from there"),
    }
}

/// What a client that follows has seen last.
fn last_event(headers: &HeaderMap) -> Option<String> {
    headers.get("last-event-id").map(|value| value.to_str().unwrap().to_owned())
}

fn event_stream(events: &[(String, Value)]) -> Response {
    let events: String = events.iter().map(|(id, data)| format!("id: {id}\ndata: {data}\n\n")).collect();
    ([("content-type", "text/event-stream")], format!(": hello\n\n{events}")).into_response()
}
