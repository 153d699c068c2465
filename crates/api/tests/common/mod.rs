//! An API on a real store, with a reconciler, machines and images that live in this process.

#![allow(dead_code, reason = "each test file uses its own part")]

pub mod dns;
pub mod domains;
mod fakes;
pub mod places;
mod publisher;
mod tunnels;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use jiff::Timestamp;
use serde_json::Value;
use tokio::task::JoinHandle;
use tower::ServiceExt;
use warren_api::{ApiConfig, bootstrap};
use warren_store::{Range, SqliteStore, Store};

pub use fakes::{FakeAudits, FakeBoundaries, FakeHost, FakeImages, FakeMachines};
pub use publisher::FakePublisher;
pub use tunnels::FakeTunnels;

pub struct Lab {
    pub router: Router,
    pub store: Arc<SqliteStore>,
    pub host: Arc<FakeHost>,
    pub boundaries: Arc<FakeBoundaries>,
    pub audits: Arc<FakeAudits>,
    pub tunnels: Arc<FakeTunnels>,
    pub publisher: Arc<FakePublisher>,
    pub root: String,
    reconciler: JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.reconciler.abort();
    }
}

pub struct Answered {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Value,
    pub text: String,
}

impl Answered {
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or("")
    }

    pub fn at(&self, pointer: &str) -> String {
        match self.body.pointer(pointer) {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => panic!("{pointer} is missing in {}", self.text),
        }
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text);
        self
    }

    #[track_caller]
    pub fn refused(self, code: &str) -> Self {
        assert_eq!(self.code(), code, "{} {}", self.status, self.text);
        assert_eq!(self.headers["content-type"], "application/problem+json");
        assert_eq!(self.body["status"], self.status);
        assert_eq!(self.body["type"], format!("urn:warren:problem:{code}"));
        assert_eq!(self.body["request_id"], self.headers["x-request-id"].to_str().unwrap());
        assert!(self.body["detail"].as_str().is_some_and(|detail| detail.len() > 10), "{}", self.text);
        self
    }

    /// The client of Freestyle's can read this refusal: a body with the code, and the status that it goes with.
    #[track_caller]
    pub fn said(self, code: &str) -> Self {
        let known = include_str!("../freestyle/codes.json");
        let known: Value = serde_json::from_str(known).unwrap();
        assert_eq!(self.code(), code, "{} {}", self.status, self.text);
        assert_eq!(known[code], self.status, "{code}");
        assert_eq!(self.headers["content-type"], "application/json");
        assert_eq!(self.headers["x-freestyle-trace-id"], self.headers["x-request-id"]);
        assert_eq!(self.body["error"], code);
        assert!(self.body["message"].as_str().is_some_and(|message| message.len() > 10), "{}", self.text);
        assert_eq!(self.body["description"], self.body["message"]);
        self
    }

    /// The problem without what names the request.
    pub fn without_request_id(&self) -> Value {
        let mut body = self.body.clone();
        body.as_object_mut().unwrap().remove("request_id");
        body
    }
}

pub async fn lab() -> Lab {
    lab_with(|_| {}).await
}

pub async fn lab_with(adjust: impl FnOnce(&mut ApiConfig)) -> Lab {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::open(&directory.path().join("store.db")).unwrap());
    let made = bootstrap::ensure(&*store, Timestamp::now()).await.unwrap();
    let mut config = ApiConfig::new(made.installation, "1.2.3");
    adjust(&mut config);
    let host = Arc::new(FakeHost::default());
    let boundaries = Arc::new(FakeBoundaries::default());
    let audits = Arc::new(FakeAudits::default());
    let tunnels = Arc::new(FakeTunnels::default());
    let publisher = Arc::new(FakePublisher::default());
    let parts = warren_api::Parts {
        store: store.clone(),
        access: Arc::new(FakeMachines),
        images: Arc::new(FakeImages::default()),
        host: host.clone(),
        boundaries: boundaries.clone(),
        audits: audits.clone(),
        tunnels: tunnels.clone(),
        publisher: publisher.clone(),
    };
    let router = warren_api::router(config, parts);
    let reconciler = tokio::spawn(fakes::reconcile(store.clone()));
    Lab {
        router,
        store,
        host,
        boundaries,
        audits,
        tunnels,
        publisher,
        root: made.root_key.unwrap(),
        reconciler,
        _directory: directory,
    }
}

impl Lab {
    pub async fn send(&self, request: Request<Body>) -> Response {
        self.router.clone().oneshot(request).await.unwrap()
    }

    pub async fn call(&self, request: Request<Body>) -> Answered {
        let (head, body) = self.send(request).await.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Answered { status: head.status.as_u16(), headers: head.headers, body, text }
    }

    pub async fn get(&self, key: &str, path: &str) -> Answered {
        self.call(request("GET", path, key, None)).await
    }

    pub async fn post(&self, key: &str, path: &str, body: Value) -> Answered {
        self.call(request("POST", path, key, Some(body.to_string()))).await
    }

    pub async fn put(&self, key: &str, path: &str, body: Value) -> Answered {
        self.call(request("PUT", path, key, Some(body.to_string()))).await
    }

    pub async fn patch(&self, key: &str, path: &str, body: Value) -> Answered {
        self.call(request("PATCH", path, key, Some(body.to_string()))).await
    }

    pub async fn delete(&self, key: &str, path: &str) -> Answered {
        self.call(request("DELETE", path, key, None)).await
    }

    /// The key of a new account.
    pub async fn account(&self, name: &str) -> String {
        self.post(&self.root, "/v1/accounts", serde_json::json!({ "name": name })).await.expect(201).at("/key")
    }

    /// Everything that is stored, but when keys were used.
    pub async fn stored(&self) -> Vec<(String, Vec<u8>)> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let page = self.store.list(Range { prefix: String::new(), after, limit: 1000 }).await.unwrap();
            after = page.entries.last().map(|entry| entry.key.clone());
            all.extend(page.entries.into_iter().map(|entry| (entry.key, entry.value)));
            if !page.more {
                all.retain(|(key, _)| !key.starts_with("key-used/") && !key.starts_with("token-used/"));
                return all;
            }
        }
    }

    pub async fn keys_below(&self, prefix: &str) -> Vec<String> {
        self.stored().await.into_iter().map(|(key, _)| key).filter(|key| key.starts_with(prefix)).collect()
    }

    /// The same router on a socket, for what needs a connection.
    pub async fn listen(&self) -> std::net::SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = self.router.clone();
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }
}

pub fn request(method: &str, path: &str, key: &str, body: Option<String>) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    if !key.is_empty() {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    match body {
        Some(body) => request.header("content-type", "application/json").body(Body::from(body)).unwrap(),
        None => request.body(Body::empty()).unwrap(),
    }
}

pub fn with_header(mut request: Request<Body>, name: &'static str, value: &str) -> Request<Body> {
    request.headers_mut().append(name, value.parse().unwrap());
    request
}
