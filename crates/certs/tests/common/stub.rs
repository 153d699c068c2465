//! A server that speaks as much ACME as a test writes, for what pebble never says: limits, outages, renewal windows.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use warren_certs::acme::Directory;
use warren_lab::pebble::ServerTls;

use super::Task;

/// What is answered to a method and a path (without the query).
type Script = dyn Fn(&str, &str) -> Option<Response<String>> + Send + Sync;

/// Stands for the address of the server in what a script answers.
pub const HERE: &str = "https://here.invalid";

pub struct Stub {
    tls: ServerTls,
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
    _task: Task,
}

impl Stub {
    /// The directory, nonces and a new account are answered as they should be, unless the script does.
    pub async fn start(script: impl Fn(&str, &str) -> Option<Response<String>> + Send + Sync + 'static) -> Self {
        let tls = ServerTls::new(Ipv4Addr::LOCALHOST.into());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let chain = vec![CertificateDer::from_pem_file(tls.chain_file()).unwrap()];
        let key = PrivateKeyDer::from_pem_file(tls.key_file()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (seen, script): (_, Arc<Script>) = (Arc::clone(&asked), Arc::new(script));
        let task = Task::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, seen, script) = (acceptor.clone(), Arc::clone(&seen), Arc::clone(&script));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request: Request<Incoming>| {
                        let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
                        seen.lock().unwrap().push(format!("{method} {path}"));
                        let answer = script(&method, &path).unwrap_or_else(|| usual(&path));
                        let nonce = format!("nonce-{}", seen.lock().unwrap().len());
                        async move {
                            let _ = request.into_body().collect().await;
                            let (mut parts, body) = answer.into_parts();
                            let here = format!("https://127.0.0.1:{port}");
                            let body = body.replace(HERE, &here);
                            for value in parts.headers.values_mut() {
                                *value = value.to_str().unwrap().replace(HERE, &here).parse().unwrap();
                            }
                            parts.headers.insert("replay-nonce", nonce.parse().unwrap());
                            Ok::<_, std::convert::Infallible>(Response::from_parts(parts, Full::new(Bytes::from(body))))
                        }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { tls, port, asked, _task: task }
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.port)
    }

    pub fn directory(&self) -> Directory {
        Directory::new(&self.url("/dir"), Some(&self.tls.ca_file())).unwrap()
    }

    /// How often this was asked, like `POST /new-order`.
    pub fn count(&self, what: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| *asked == what).count()
    }
}

pub fn answer(status: u16, body: impl Into<String>) -> Response<String> {
    Response::builder().status(status).body(body.into()).unwrap()
}

pub fn problem(status: u16, kind: &str, detail: &str) -> Response<String> {
    let kind = format!("urn:ietf:params:acme:error:{kind}");
    answer(status, json!({ "type": kind, "detail": detail, "status": status }).to_string())
}

pub fn with(mut response: Response<String>, header: &'static str, value: &str) -> Response<String> {
    response.headers_mut().insert(header, value.parse().unwrap());
    response
}

fn usual(path: &str) -> Response<String> {
    let url = |path: &str| format!("{HERE}{path}");
    match path {
        "/dir" => answer(
            200,
            json!({
                "newNonce": url("/new-nonce"),
                "newAccount": url("/new-account"),
                "newOrder": url("/new-order"),
                "renewalInfo": url("/renewal-info"),
            })
            .to_string(),
        ),
        "/new-nonce" => answer(200, ""),
        "/new-account" => with(answer(201, "{}"), "location", &url("/account/1")),
        _ => answer(404, ""),
    }
}
