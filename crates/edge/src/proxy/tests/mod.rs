//! The proxies over loopback: 127.0.0.1 stands for every synthetic address, 127.0.0.2 is where the allowed name leads,
//! and 127.0.0.3 is where others do: the canary.

mod any;
mod carrying;
mod explicit;
mod hello;
mod requests;
mod websocket;
mod with_tls;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use ulid::Ulid;
use warren_model::DenialId;
use warren_model::denial::Layer;
use warren_model::policy::{Application, HostName, RuleId};

use super::gate::{Decision, Denied, Gate, Limits, LookUpError, Passage, Refusal};
use super::listen::{explicit, transparent};

pub(super) const GOOD: &str = "good.example";
pub(super) const OTHER: &str = "other.example";
const SYNTHETIC: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1));
const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const CANARY: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));
/// A fatal `access_denied` alert.
pub(super) const ACCESS_DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];
/// What resolves to this may not be dialled.
const PRIVATE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 4));

/// Short, and still longer than a busy machine may stop for in between.
pub(super) const QUICK: Limits = Limits {
    hello: Duration::from_secs(3),
    silence: Duration::from_secs(1),
    rest: Duration::from_millis(1500),
    request: Duration::from_secs(3),
    connect: Duration::from_secs(10),
    stagger: Duration::from_millis(50),
    idle: Duration::from_secs(60),
    farewell: Duration::from_secs(2),
};

pub(super) fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

/// A gate that does as it is told.
#[derive(Default)]
pub(super) struct Fake {
    allowed: Mutex<HashMap<HostName, Application>>,
    addresses: Mutex<HashMap<HostName, Vec<IpAddr>>>,
    pub refused: Mutex<Vec<Refusal>>,
    pub looked_up: AtomicUsize,
    /// Connections and requests that policy was asked to count.
    pub admitted: AtomicUsize,
    pub places: AtomicUsize,
    open: Mutex<Vec<Arc<Open>>>,
}

#[derive(Default)]
pub(super) struct Open {
    revoked: CancellationToken,
    pub sent: AtomicU64,
    pub received: AtomicU64,
}

impl Passage for Open {
    fn revoked(&self) -> &CancellationToken {
        &self.revoked
    }

    fn add_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Relaxed);
    }

    fn add_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Relaxed);
    }
}

impl Fake {
    pub fn allow(&self, name: &str, application: Application) {
        self.allowed.lock().unwrap().insert(host(name), application);
    }

    pub fn resolve(&self, name: &str, addresses: &[IpAddr]) {
        self.addresses.lock().unwrap().insert(host(name), addresses.to_vec());
    }

    /// Forbids everything from now on.
    pub fn forbid(&self) {
        self.allowed.lock().unwrap().clear();
    }

    /// Forbids everything and ends what is open.
    pub fn revoke(&self) {
        self.forbid();
        for open in self.open.lock().unwrap().iter() {
            open.revoked.cancel();
        }
    }

    /// Bytes that went out and came in, over all connections.
    pub fn carried(&self) -> (u64, u64) {
        let open = self.open.lock().unwrap();
        let sum = |of: fn(&Open) -> &AtomicU64| open.iter().map(|open| of(open).load(Relaxed)).sum();
        (sum(|open| &open.sent), sum(|open| &open.received))
    }

    /// The refusals so far: layer, name and reason.
    pub fn refusals(&self) -> Vec<(Layer, String, String)> {
        let refused = self.refused.lock().unwrap();
        refused.iter().map(|r| (r.layer, r.name.clone().unwrap_or_default(), r.reason.clone())).collect()
    }

    /// The only refusal so far, waited for.
    pub async fn refusal(&self) -> Refusal {
        for _ in 0..2000 {
            if let [refused] = &self.refused.lock().unwrap()[..] {
                return refused.clone();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("refused: {:?}", self.refusals());
    }
}

impl Gate for Fake {
    type Place = ();

    fn name_of(&self, _: IpAddr, address: IpAddr) -> Option<HostName> {
        (address == SYNTHETIC).then(|| host(GOOD))
    }

    fn judge(&self, _: IpAddr, host: &HostName, port: u16) -> Decision {
        match self.allowed.lock().unwrap().get(host) {
            Some(application) => Decision {
                allowed: true,
                rule: Some("the-rule".parse().unwrap()),
                application: *application,
                reason: "the-rule allows it".to_owned(),
            },
            None => Decision {
                allowed: false,
                rule: None,
                application: Application::Tcp,
                reason: format!("no rule allows {host} on tcp/{port}"),
            },
        }
    }

    fn admit(&self, source: IpAddr, host: &HostName, port: u16) -> Decision {
        self.admitted.fetch_add(1, Relaxed);
        self.judge(source, host, port)
    }

    fn refuse(&self, refusal: Refusal) -> Denied {
        let denied = Denied {
            id: DenialId::from_ulid(Ulid::from_parts(1, self.refused.lock().unwrap().len() as u128)),
            rule: refusal.rule.clone(),
            reason: refusal.reason.clone(),
            suggested_rule: None,
        };
        self.refused.lock().unwrap().push(refusal);
        denied
    }

    async fn look_up(&self, host: &HostName) -> Result<Vec<IpAddr>, LookUpError> {
        self.looked_up.fetch_add(1, Relaxed);
        let known = self.addresses.lock().unwrap().get(host).cloned();
        known.ok_or_else(|| LookUpError::Failed(format!("{host} does not exist")))
    }

    fn may_dial(&self, address: IpAddr) -> bool {
        address != PRIVATE
    }

    fn place(&self, _: IpAddr) -> Option<()> {
        self.places.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok().then_some(())
    }

    fn open(&self, _: IpAddr, _: &HostName, _: u16, _: &RuleId, _: Application) -> Option<Arc<dyn Passage>> {
        let open = Arc::new(Open::default());
        self.open.lock().unwrap().push(open.clone());
        Some(open)
    }
}

/// A proxy of either kind, and where its name leads.
pub(super) struct Setup {
    pub gate: Arc<Fake>,
    pub proxy: SocketAddr,
    pub server: TcpListener,
    pub canary: TcpListener,
    serving: JoinHandle<()>,
}

impl Drop for Setup {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Setup {
    /// The transparent proxy, with a rule that allows [`GOOD`] as `application`.
    pub async fn transparent(application: Application) -> Self {
        Self::begin(application, QUICK, true).await
    }

    /// The proxy that is asked.
    pub async fn explicit(application: Application) -> Self {
        Self::begin(application, QUICK, false).await
    }

    pub async fn begin(application: Application, limits: Limits, hidden: bool) -> Self {
        let gate = Arc::new(Fake::default());
        gate.places.store(64, Relaxed);
        gate.allow(GOOD, application);
        gate.resolve(GOOD, &[SERVER]);
        gate.resolve(OTHER, &[CANARY]);
        // The port that is dialled is the one that the server has.
        let (server, canary, listener) = loop {
            let server = TcpListener::bind((SERVER, 0)).await.unwrap();
            let port = server.local_addr().unwrap().port();
            let others = (TcpListener::bind((CANARY, port)).await, TcpListener::bind((SYNTHETIC, port)).await);
            if let (Ok(canary), Ok(listener)) = others {
                break (server, canary, listener);
            }
        };
        let proxy = listener.local_addr().unwrap();
        let serving = match hidden {
            true => tokio::spawn(transparent(gate.clone(), listener, limits)),
            false => tokio::spawn(explicit(gate.clone(), listener, limits)),
        };
        Self { gate, proxy, server, canary, serving }
    }

    pub fn port(&self) -> u16 {
        self.proxy.port()
    }

    pub async fn dial(&self) -> TcpStream {
        let stream = TcpStream::connect(self.proxy).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// The next connection that reached the server.
    pub async fn accept(&self) -> TcpStream {
        soon(self.server.accept()).await.unwrap().0
    }

    /// Makes sure that nothing reached the server or the canary.
    pub async fn nothing_went_out(&self) {
        let either = async {
            tokio::select! {
                _ = self.server.accept() => "server",
                _ = self.canary.accept() => "canary",
            }
        };
        let reached = timeout(Duration::from_millis(150), either).await;
        assert!(reached.is_err(), "reached the {}", reached.unwrap_or_default());
    }
}

/// The result, which has to be there within half a minute.
pub(super) async fn soon<F: Future>(future: F) -> F::Output {
    timeout(Duration::from_secs(30), future).await.expect("it took too long")
}

/// Everything until the end of the stream, and whether that was a reset.
pub(super) async fn drain(stream: &mut TcpStream) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    let reset = soon(stream.read_to_end(&mut bytes)).await.is_err();
    (bytes, reset)
}

/// Reads exactly this.
pub(super) async fn expect(stream: &mut TcpStream, expected: &[u8]) {
    let mut bytes = vec![0; expected.len()];
    soon(stream.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), String::from_utf8_lossy(expected));
}

pub(super) async fn send(stream: &mut TcpStream, bytes: impl AsRef<[u8]>) {
    soon(stream.write_all(bytes.as_ref())).await.unwrap();
}

/// Reads up to the end of an HTTP head.
pub(super) async fn head(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        match soon(stream.read_u8()).await {
            Ok(byte) => bytes.push(byte),
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&bytes)),
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// Reads a response with a length: its head, and its body as JSON.
pub(super) async fn problem(stream: &mut TcpStream) -> (String, serde_json::Value) {
    let head = head(stream).await.to_ascii_lowercase();
    assert!(head.contains("content-type: application/problem+json\r\n"), "{head}");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
    let mut body = vec![0; length];
    soon(stream.read_exact(&mut body)).await.unwrap();
    (head, serde_json::from_slice(&body).unwrap())
}
