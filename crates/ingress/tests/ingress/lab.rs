//! An ingress with machines behind it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use warren_ingress::{Certificate, Dial, Ingress, Kind, Limits, Site, SiteLimits, Snapshot, Upstream};
use warren_model::NetworkNumber;

/// Longer than anything may take that is not meant to.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub type Body = BoxBody<Bytes, Infallible>;

pub struct Lab {
    pub ingress: Ingress,
    pub snapshot: Snapshot,
    pub https: SocketAddr,
    pub http: SocketAddr,
    pub roots: rustls::RootCertStore,
    listening: Vec<AbortHandle>,
}

struct Direct;

impl Dial for Direct {
    fn dial(&self, _: NetworkNumber, to: SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn Upstream>>> {
        Box::pin(async move {
            if to.ip().to_string() == "192.0.2.1" {
                // A machine that says nothing at all.
                std::future::pending::<()>().await;
            }
            Ok(Box::new(TcpStream::connect(to).await?) as Box<dyn Upstream>)
        })
    }
}

pub fn certificate(names: &[&str]) -> Certificate {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    Certificate { chain_pem: made.cert.pem(), key_pem: made.signing_key.serialize_pem() }
}

pub fn site(host: &str, to: SocketAddr) -> Site {
    Site {
        host: host.parse().unwrap(),
        id: format!("id-{host}"),
        network: NetworkNumber::FIRST,
        addresses: vec![to.ip()],
        port: to.port(),
        auth: None,
        limits: SiteLimits::default(),
    }
}

impl Lab {
    pub async fn start(sites: Vec<Site>) -> Self {
        Self::with(sites, Limits::default()).await
    }

    pub async fn with(sites: Vec<Site>, limits: Limits) -> Self {
        let certificates = vec![certificate(&["a.example", "b.example", "*.wild.example"])];
        let mut roots = rustls::RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(certificates[0].chain_pem.as_bytes()).unwrap();
        roots.add(root).unwrap();
        let snapshot = Snapshot { sites, certificates, ..Snapshot::default() };
        let ingress = Ingress::new(limits, Arc::new(Direct)).unwrap();
        ingress.apply(&snapshot).unwrap();
        let mut listening = Vec::new();
        let mut listen = |kind| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            listening.push(tokio::spawn(ingress.serve(listener, kind)).abort_handle());
            address
        };
        let (https, http) = (listen(Kind::Https), listen(Kind::Http));
        tokio::spawn(ingress.sweep());
        Self { ingress, snapshot, https, http, roots, listening }
    }

    /// With one machine as `a.example`.
    pub async fn one(machine: &Machine) -> Self {
        Self::start(vec![site("a.example", machine.address)]).await
    }

    /// Nobody comes in any more.
    pub fn stop_listening(&mut self) {
        self.listening.drain(..).for_each(|listener| listener.abort());
    }

    pub fn change(&mut self, change: impl FnOnce(&mut Snapshot)) {
        change(&mut self.snapshot);
        self.ingress.apply(&self.snapshot).unwrap();
    }

    pub fn config(&self, alpn: &[&str]) -> rustls::ClientConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }

    pub async fn tls(&self, name: &str, alpn: &[&str]) -> io::Result<TlsStream<TcpStream>> {
        let connector = TlsConnector::from(Arc::new(self.config(alpn)));
        let stream = TcpStream::connect(self.https).await?;
        connector.connect(ServerName::try_from(name.to_owned()).unwrap(), stream).await
    }

    pub async fn raw(&self, name: &str) -> Raw<TlsStream<TcpStream>> {
        Raw(self.tls(name, &["http/1.1"]).await.unwrap(), Vec::new())
    }

    pub async fn raw_plain(&self) -> Raw<TcpStream> {
        Raw(TcpStream::connect(self.http).await.unwrap(), Vec::new())
    }

    /// From an address of this host's own.
    pub async fn raw_plain_from(&self, source: [u8; 4]) -> Raw<TcpStream> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((source, 0).into()).unwrap();
        Raw(socket.connect(self.http).await.unwrap(), Vec::new())
    }

    pub async fn http1(&self, name: &str) -> http1::SendRequest<Body> {
        let stream = self.tls(name, &["http/1.1"]).await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender
    }

    pub async fn http2(&self, name: &str) -> http2::SendRequest<Body> {
        let stream = self.tls(name, &["h2"]).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    /// One request over a connection of its own.
    pub async fn get(&self, host: &str, path: &str) -> Answer {
        let mut raw = self.raw(host).await;
        raw.send(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        raw.answer().await
    }

    pub fn counters(&self, host: &str) -> warren_ingress::SiteCounters {
        self.ingress.counters().into_iter().find(|counters| counters.host.as_str() == host).unwrap()
    }
}

pub fn body(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed()
}

pub fn get(uri: &str) -> Request<Body> {
    Request::builder().uri(uri).body(body("")).unwrap()
}

pub async fn text(response: Response<Incoming>) -> String {
    let bytes = timeout(PATIENCE, response.into_body().collect()).await.unwrap().unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A connection on which bytes are written by hand, and what was read of it and not taken.
pub struct Raw<S>(pub S, Vec<u8>);

/// A whole response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (left, right) = line.split_once(": ")?;
            left.eq_ignore_ascii_case(name).then_some(right)
        })
    }

    /// The code of a problem document.
    pub fn code(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let document: serde_json::Value = serde_json::from_str(&self.body).unwrap();
        assert_eq!(document["status"], self.status);
        for inside in ["127.0.0.1", "10.", "machine"] {
            assert!(!self.body.contains(inside), "{self:?}");
        }
        document["code"].as_str().unwrap().to_owned()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Raw<S> {
    pub async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
        self.0.flush().await.unwrap();
    }

    /// Reads until what came contains `text`.
    pub async fn until(&mut self, text: &str) -> String {
        let found = |have: &[u8]| have.windows(text.len()).any(|window| window == text.as_bytes());
        while !found(&self.1) {
            let count = timeout(PATIENCE, self.0.read_buf(&mut self.1)).await.unwrap().unwrap();
            assert!(count > 0, "closed after {:?}", String::from_utf8_lossy(&self.1));
        }
        String::from_utf8(std::mem::take(&mut self.1)).unwrap()
    }

    /// Reads one response with a `Content-Length`, and leaves what follows.
    pub async fn answer(&mut self) -> Answer {
        loop {
            if let Some(end) = self.1.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8(self.1[..end + 2].to_vec()).unwrap();
                let status = head[9..12].parse().unwrap();
                let mut answer = Answer { status, head, body: String::new() };
                let length = answer.header("content-length").map_or(0, |length| length.parse().unwrap());
                let whole = end + 4 + length;
                if self.1.len() >= whole {
                    answer.body = String::from_utf8(self.1[end + 4..whole].to_vec()).unwrap();
                    self.1.drain(..whole);
                    return answer;
                }
            }
            let count = timeout(PATIENCE, self.0.read_buf(&mut self.1)).await.unwrap().unwrap();
            assert!(count > 0, "closed after {:?}", String::from_utf8_lossy(&self.1));
        }
    }

    /// Reads to the end; a reset is one.
    pub async fn rest(&mut self) -> String {
        let read = async { while self.0.read_buf(&mut self.1).await.is_ok_and(|count| count > 0) {} };
        timeout(PATIENCE, read).await.expect("the connection goes on");
        String::from_utf8_lossy(&std::mem::take(&mut self.1)).into_owned()
    }
}

/// What a machine got.
#[derive(Debug, Clone)]
pub struct Got {
    pub line: String,
    pub headers: HeaderMap,
    pub trailers: HeaderMap,
    pub body: String,
}

/// A web server behind the ingress.
#[derive(Clone)]
pub struct Machine {
    pub address: SocketAddr,
    pub connections: Arc<AtomicUsize>,
    pub got: Arc<Mutex<Vec<Got>>>,
}

impl Machine {
    /// Answers every whole request with `name`, and notes it.
    pub async fn named(name: &'static str) -> Self {
        Self::answering(move |_| async move { Response::new(body(name)) }).await
    }

    pub async fn answering<F, R>(answer: F) -> Self
    where
        F: Fn(Got) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send,
    {
        let got = Arc::new(Mutex::new(Vec::new()));
        let noted = got.clone();
        let mut machine = Self::raw(move |stream| {
            let (answer, noted) = (answer.clone(), noted.clone());
            async move {
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let (answer, noted) = (answer.clone(), noted.clone());
                    async move {
                        let (parts, incoming) = request.into_parts();
                        let collected = incoming.collect().await?;
                        let got = Got {
                            line: format!("{} {} {:?}", parts.method, parts.uri, parts.version),
                            headers: parts.headers,
                            trailers: collected.trailers().cloned().unwrap_or_default(),
                            body: String::from_utf8(collected.to_bytes().to_vec()).unwrap(),
                        };
                        noted.lock().unwrap().push(got.clone());
                        Ok::<_, hyper::Error>(answer(got).await)
                    }
                });
                let mut connection = hyper::server::conn::http1::Builder::new();
                let _ = connection.max_headers(200).serve_connection(TokioIo::new(stream), service).await;
            }
        })
        .await;
        machine.got = got;
        machine
    }

    /// Does with each connection what `serve` does.
    pub async fn raw<F, R>(serve: F) -> Self
    where
        F: Fn(TcpStream) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let machine = Self { address: listener.local_addr().unwrap(), connections, got: Arc::default() };
        let accepted = machine.connections.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                accepted.fetch_add(1, Relaxed);
                tokio::spawn(serve(stream));
            }
        });
        machine
    }

    pub fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }
}

impl Got {
    /// Each header once, as text.
    pub fn map(&self) -> HashMap<&str, &str> {
        let map: HashMap<_, _> =
            self.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(map.len(), self.headers.len(), "{:?}", self.headers);
        map
    }
}

/// Reads to the end of a request without a body; nothing where there is none any more.
pub async fn head(stream: &mut TcpStream) -> Vec<u8> {
    let mut have = Vec::new();
    while !have.ends_with(b"\r\n\r\n") && stream.read_buf(&mut have).await.is_ok_and(|count| count > 0) {}
    have
}

/// Tries what holds only where all of it happens within a second, until a busy machine does it in time. `attempt` returns
/// `false` where it took longer.
pub async fn within_a_second(mut attempt: impl AsyncFnMut() -> bool) {
    for _ in 0..20 {
        if attempt().await {
            return;
        }
    }
    panic!("it always takes longer than a second");
}

/// Waits until `true`.
pub async fn eventually(what: &str, check: impl Fn() -> bool) {
    let began = Instant::now();
    while !check() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
