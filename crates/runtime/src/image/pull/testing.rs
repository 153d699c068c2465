//! A registry for tests, on the loopback.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Mutex};

use axum::Json;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::StreamExt;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const TOKEN: &str = "a token";

/// What it serves, and how it misbehaves.
#[derive(Default)]
pub struct Content {
    pub blobs: HashMap<String, Vec<u8>>,
    /// By tag and by digest, with their types.
    pub manifests: HashMap<String, (&'static str, Vec<u8>)>,
    /// Wants a token.
    pub locked: bool,
    /// Gives none.
    pub stingy: bool,
    /// Sends whoever asks for a blob there.
    pub redirect: Option<String>,
    /// The part of a blob that comes before the connection breaks, or before nothing more comes.
    pub breaks_after: Option<usize>,
    pub stalls_after: Option<usize>,
    /// How often a blob was asked for.
    pub asked: usize,
}

pub struct FakeRegistry {
    pub address: std::net::SocketAddr,
    pub content: Arc<Mutex<Content>>,
    server: tokio::task::JoinHandle<()>,
}

impl FakeRegistry {
    pub async fn start() -> Self {
        let content = Arc::new(Mutex::new(Content::default()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/v2/team/image/manifests/{version}", get(manifest))
            .route("/v2/team/image/blobs/{digest}", get(blob))
            .route("/elsewhere/{digest}", get(elsewhere))
            .route("/token", get(token))
            .with_state((content.clone(), address));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, content, server }
    }

    pub fn reference(&self, version: &str) -> warren_model::ImageReference {
        format!("{}/team/image{version}", self.address).parse().unwrap()
    }

    /// Adds an image and answers with the descriptor of its manifest.
    pub fn add(&self, tag: &str, architecture: &str, layers: &[Vec<u8>]) -> Value {
        let layers: Vec<_> = layers.iter().map(|layer| self.add_blob(layer_type(layer), layer)).collect();
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer["digest"].clone()).collect();
        let config = json!({ "os": "linux", "architecture": architecture, "config": { "Cmd": ["sh"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids } });
        let config = self.add_blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
        self.add_manifest(tag, MANIFEST, &manifest)
    }

    pub fn add_manifest(&self, tag: &str, kind: &'static str, manifest: &Value) -> Value {
        let bytes = manifest.to_string().into_bytes();
        let described = described(kind, &bytes);
        let manifests = &mut self.content.lock().unwrap().manifests;
        manifests.insert(described["digest"].as_str().unwrap().to_owned(), (kind, bytes.clone()));
        manifests.insert(tag.to_owned(), (kind, bytes));
        described
    }

    pub fn add_blob(&self, kind: &str, bytes: &[u8]) -> Value {
        let described = described(kind, bytes);
        let name = described["digest"].as_str().unwrap().to_owned();
        self.content.lock().unwrap().blobs.insert(name, bytes.to_vec());
        described
    }
}

impl Drop for FakeRegistry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

pub fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(plain: &[u8]) -> Vec<u8> {
    ::zstd::stream::encode_all(plain, 1).unwrap()
}

fn layer_type(layer: &[u8]) -> &'static str {
    match layer {
        [0x1f, ..] => "application/vnd.oci.image.layer.v1.tar+gzip",
        [0x28, ..] => "application/vnd.oci.image.layer.v1.tar+zstd",
        _ => "application/vnd.oci.image.layer.v1.tar",
    }
}

fn described(kind: &str, bytes: &[u8]) -> Value {
    let hex: String = digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    json!({ "mediaType": kind, "digest": format!("sha256:{hex}"), "size": bytes.len() })
}

type Shared = State<(Arc<Mutex<Content>>, std::net::SocketAddr)>;

/// What a caller without a token gets, if one is wanted.
fn challenge(shared: &Shared, headers: &HeaderMap) -> Option<Response> {
    let (content, address) = &shared.0;
    let given = headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap());
    if !content.lock().unwrap().locked || given == Some(&format!("Bearer {TOKEN}")) {
        return None;
    }
    let challenge =
        format!(r#"Bearer realm="http://{address}/token",service="fake",scope="repository:team/image:pull""#);
    let complaint = json!({ "errors": [{ "code": "UNAUTHORIZED", "message": "authentication required" }] });
    Some((StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)], Json(complaint)).into_response())
}

async fn token(State((content, _)): Shared, uri: axum::http::Uri) -> Response {
    assert_eq!(uri.query(), Some("service=fake&scope=repository%3Ateam%2Fimage%3Apull"));
    match content.lock().unwrap().stingy {
        true => (StatusCode::UNAUTHORIZED, "no").into_response(),
        false => Json(json!({ "token": TOKEN, "expires_in": 60 })).into_response(),
    }
}

async fn manifest(shared: Shared, Path(version): Path<String>, headers: HeaderMap) -> Response {
    if let Some(refusal) = challenge(&shared, &headers) {
        return refusal;
    }
    match shared.0.0.lock().unwrap().manifests.get(&version) {
        Some((kind, bytes)) => ([(header::CONTENT_TYPE, *kind)], bytes.clone()).into_response(),
        None => {
            let complaint = json!({ "errors": [{ "code": "MANIFEST_UNKNOWN", "message": "manifest unknown" }] });
            (StatusCode::NOT_FOUND, Json(complaint)).into_response()
        }
    }
}

async fn blob(shared: Shared, Path(name): Path<String>, headers: HeaderMap) -> Response {
    if let Some(refusal) = challenge(&shared, &headers) {
        return refusal;
    }
    let content = shared.0.0.clone();
    let mut content = content.lock().unwrap();
    content.asked += 1;
    match &content.redirect {
        Some(to) => (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, format!("{to}/{name}"))]).into_response(),
        None => send(&content, &name),
    }
}

async fn elsewhere(State((content, _)): Shared, Path(name): Path<String>) -> Response {
    send(&content.lock().unwrap(), &name)
}

fn send(content: &Content, name: &str) -> Response {
    let Some(bytes) = content.blobs.get(name).cloned() else { return StatusCode::NOT_FOUND.into_response() };
    let length = bytes.len();
    let start = |after: usize| futures::stream::iter([Ok(Bytes::from(bytes.clone()).slice(..after.min(length)))]);
    let body = if let Some(after) = content.breaks_after.filter(|after| *after < length) {
        Body::from_stream(start(after).chain(futures::stream::iter([Err(std::io::Error::other("cut"))])))
    } else if let Some(after) = content.stalls_after.filter(|after| *after < length) {
        Body::from_stream(start(after).chain(futures::stream::pending::<std::io::Result<Bytes>>()))
    } else {
        Body::from(bytes)
    };
    ([(header::CONTENT_LENGTH, length.to_string())], body).into_response()
}
