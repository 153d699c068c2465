//! HTTP/1.1 between a member and servers outside, every request checked.
//!
//! Requests are parsed and written anew, so that what was checked is what the server reads: there is no byte on the way
//! that only one of the two sees.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{HOST, HeaderValue};
use http::uri::Scheme;
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::Either;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use warren_http::closing::LastWord;
use warren_http::framing::{Framing, check_request};
use warren_http::hop;
use warren_http::request::to_origin;
use warren_model::Code;
use warren_model::denial::Layer;
use warren_model::policy::Application;

use crate::proxy::authority::{self, Requested, requested};
use crate::proxy::conn::{Conn, Shared};
use crate::proxy::copy::{Side, both_ways};
use crate::proxy::gate::{Denied, Gate, Refusal};
use crate::proxy::headers;
use crate::proxy::problem::{self, Body};
use crate::proxy::upstream::{MAX_HEAD, MAX_HEADERS, Upstream};
use crate::proxy::way::{Ahead, NoWay, Proxy, Way};

/// How long either side may take to get from HTTP to WebSocket once the server has agreed to it.
const SWITCH: Duration = Duration::from_secs(10);

/// Where the requests of a connection may go.
pub(crate) enum Destination<G> {
    /// To one name: the connection is to its address.
    Fixed(Way<G>),
    /// To whomever each request names: the connection is to the proxy.
    Any { proxy: Arc<Proxy<G>>, source: IpAddr },
}

/// What a connection goes on as, after HTTP.
pub(crate) enum Tunnel<G> {
    /// The client asked the proxy for a connection, and was told that it has one.
    Connect {
        client: OnUpgrade,
        way: Way<G>,
        ahead: Ahead,
    },
    WebSocket {
        client: OnUpgrade,
        server: OnUpgrade,
        upstream: Upstream,
    },
}

/// Serves requests until the connection ends, or goes on as something else.
pub(crate) async fn serve<G: Gate>(destination: Destination<G>, client: Side) -> Option<Tunnel<G>> {
    let limits = destination.proxy().limits;
    let shared = Arc::new(Shared::default());
    let session = Arc::new(Session {
        destination,
        shared: shared.clone(),
        cut: CancellationToken::new(),
        upstream: tokio::sync::Mutex::default(),
        tunnel: Mutex::default(),
    });
    let service = {
        let session = session.clone();
        service_fn(move |request| {
            let session = session.clone();
            async move { Ok::<_, Infallible>(session.answer(request).await) }
        })
    };
    let io = TokioIo::new(Conn::client(client, shared.clone(), limits.farewell));
    let connection = http1::Builder::new()
        .half_close(true)
        .preserve_header_case(true)
        .auto_date_header(false)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .header_read_timeout(limits.request)
        .timer(TokioTimer::new())
        .serve_connection(io, service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    loop {
        let before = shared.moved.load(Relaxed);
        tokio::select! {
            biased;
            () = session.cut.cancelled() => {
                shared.reset.store(true, Relaxed);
                return None;
            }
            // A connection that broke concerns nobody but the client.
            _ = &mut connection => break,
            () = sleep(limits.idle) => {}
        }
        if shared.moved.load(Relaxed) == before {
            shared.reset.store(true, Relaxed);
            return None;
        }
    }
    session.tunnel.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Carries a WebSocket until it ends.
pub(crate) async fn carry_websocket<G: Gate>(
    proxy: &Proxy<G>,
    client: OnUpgrade,
    server: OnUpgrade,
    upstream: Upstream,
) {
    let both = async { Some((into_side(client).await?, server_side(server).await?)) };
    let Ok(Some((mut client, mut server))) = timeout(SWITCH, both).await else { return };
    both_ways(&mut client, &mut server, &*upstream.passage, proxy.limits.idle, None).await;
}

/// The socket under a client's connection on which HTTP ended.
pub(crate) async fn into_side(upgrade: OnUpgrade) -> Option<Side> {
    let parts = upgrade.await.ok().map(Upgraded::downcast::<TokioIo<Conn>>)?.ok()?;
    parts.io.into_inner().into_side(&parts.read_buf)
}

/// The same of a server's.
async fn server_side(upgrade: OnUpgrade) -> Option<Side> {
    let parts = upgrade.await.ok().map(Upgraded::downcast::<TokioIo<LastWord<Conn>>>)?.ok()?;
    parts.io.into_inner().into_inner().into_side(&parts.read_buf)
}

struct Session<G> {
    destination: Destination<G>,
    shared: Arc<Shared>,
    /// Cancelled when the connection to the server is revoked.
    cut: CancellationToken,
    upstream: tokio::sync::Mutex<Option<Upstream>>,
    tunnel: Mutex<Option<Tunnel<G>>>,
}

impl<G: Gate> Session<G> {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let checked = match &self.destination {
            Destination::Fixed(way) => self.check_fixed(way, &request),
            Destination::Any { proxy, source } if request.method() == Method::CONNECT => {
                return self.connect(proxy, *source, request).await;
            }
            Destination::Any { proxy, source } => self.check_any(proxy, *source, &request),
        };
        let answered = match checked {
            Ok(way) => self.forward(&way, request).await,
            Err(refused) => Err(refused),
        };
        answered.unwrap_or_else(|refused| *refused)
    }

    /// A request on a connection to a name's address: it has to be for that name.
    fn check_fixed(&self, way: &Way<G>, request: &Request<Incoming>) -> Result<Way<G>, Box<Response<Body>>> {
        let refused = |denied| Err(Box::new(problem::denied(&denied)));
        if request.method() == Method::CONNECT {
            let reason = format!("a connection to {} carries no other connection", way.host);
            let to = request.uri().to_string();
            return refused(way.deny_other(Layer::Http, &to, reason));
        }
        match requested(request.uri(), request.headers()) {
            Ok(asked) if asked.host == way.host => {
                // Without a port it means the connection's own: many clients leave it out.
                if asked.port.is_some_and(|port| port != way.port) {
                    let reason = format!("the request is for {asked}, and the connection is to port {}", way.port);
                    return refused(way.deny(Layer::Http, reason));
                }
            }
            Ok(Requested { host, .. }) => {
                let reason = format!("the request is for {host}, and the connection is to {}", way.host);
                return refused(way.deny_other(Layer::Http, host.as_str(), reason));
            }
            Err(unclear) => {
                let reason = format!("{unclear}, and the connection is to {}", way.host);
                return refused(match unclear.name() {
                    Some(name) => way.deny_other(Layer::Http, name, reason),
                    None => way.deny(Layer::Http, reason),
                });
            }
        }
        let again = Way::ask(way.proxy.clone(), way.source, way.to, way.host.clone(), way.port, Layer::Http);
        takes_http(again, Layer::Http)
    }

    /// A request to the proxy, for whomever its target names.
    fn check_any(
        &self,
        proxy: &Arc<Proxy<G>>,
        source: IpAddr,
        request: &Request<Incoming>,
    ) -> Result<Way<G>, Box<Response<Body>>> {
        let invalid = |detail: &str| Err(Box::new(problem::failed(Code::ProxyRequestInvalid, detail)));
        let uri = request.uri();
        if uri.authority().is_none() {
            return invalid(
                "This is the proxy of a Warren network, and not a web server. Ask it for a whole URL, as in \
                 GET http://example.com/, or for a connection with CONNECT example.com:443.",
            );
        }
        if uri.scheme() != Some(&Scheme::HTTP) {
            return invalid("The proxy takes URLs with http:// only. For https:// ask for a connection with CONNECT.");
        }
        let Requested { host, port } = requested(uri, request.headers()).map_err(|unclear| {
            let name = unclear.name().map(str::to_owned);
            let to = uri.host().and_then(address);
            Box::new(refuse_name(proxy, source, to, name, uri.port_u16().or(Some(80)), unclear.to_string()))
        })?;
        takes_http(Way::ask(proxy.clone(), source, None, host, port.unwrap_or(80), Layer::Proxy), Layer::Proxy)
    }

    /// A request to the proxy for a connection.
    async fn connect(&self, proxy: &Arc<Proxy<G>>, source: IpAddr, mut request: Request<Incoming>) -> Response<Body> {
        let target = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        let (host, port) = match authority::parse(&target) {
            Ok(Requested { host, port: Some(port) }) => (host, port),
            Ok(Requested { host, port: None }) => {
                let detail = format!("CONNECT takes a host and a port, as in CONNECT {host}:443.");
                return problem::failed(Code::ProxyRequestInvalid, detail);
            }
            Err(unclear) => {
                let uri = request.uri();
                let (to, name) = (uri.host().and_then(address), unclear.name().map(str::to_owned));
                return refuse_name(proxy, source, to, name, uri.port_u16(), unclear.to_string());
            }
        };
        let way = match Way::ask(proxy.clone(), source, None, host, port, Layer::Proxy) {
            Ok(allowed) => allowed,
            Err(denied) => return problem::denied(&denied),
        };
        // As much as can be done before the client's first bytes are checked, so that a failure can be told.
        let ahead = match way.application {
            Application::Http => Ok(Ahead::Nothing),
            Application::Tls => way.look_up().await.map(Ahead::LookedUp),
            Application::Tcp => way.connect(Ahead::Nothing).await.map(Ahead::Connected),
        };
        match ahead {
            Err(no_way) => no_way.into_response(),
            Ok(ahead) => {
                let client = hyper::upgrade::on(&mut request);
                self.go_on_as(Tunnel::Connect { client, way, ahead });
                Response::new(Either::Right(Default::default()))
            }
        }
    }

    /// Passes a request on that was checked, and its answer back.
    async fn forward(
        &self,
        way: &Way<G>,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, Box<Response<Body>>> {
        let invalid =
            |error: Framing| Box::new(problem::failed(Code::ProxyRequestInvalid, format!("Refused: {error}.")));
        check_request(request.headers()).map_err(invalid)?;
        let websocket = request.version() == Version::HTTP_11
            && request.method() == Method::GET
            && request.body().is_end_stream()
            && hop::wants_websocket(request.headers());
        let client = websocket.then(|| hyper::upgrade::on(&mut request));
        hop::strip_request(request.headers_mut(), websocket);
        if request.uri().authority().is_some() {
            request.headers_mut().insert(HOST, host_of(way));
        }
        *request.uri_mut() = to_origin(request.uri());
        *request.version_mut() = Version::HTTP_11;

        let mut held = self.upstream.lock().await;
        let sent = Upstream::send(&mut held, way, request, &self.shared, &self.cut).await;
        let mut response = sent.map_err(|no_way| Box::new(no_way.into_response()))?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let (Some(client), true, Some(upstream)) = (client, hop::is_websocket(response.headers()), held.take())
            else {
                let detail = format!("{} switched to a protocol that was not asked for.", way.host);
                return Err(Box::new(problem::failed(Code::UpstreamFailed, detail)));
            };
            let server = hyper::upgrade::on(&mut response);
            self.go_on_as(Tunnel::WebSocket { client, server, upstream });
        }
        headers::strip_response(&mut response);
        *response.version_mut() = Version::HTTP_11;
        Ok(response.map(Either::Left))
    }

    fn go_on_as(&self, tunnel: Tunnel<G>) {
        *self.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some(tunnel);
    }
}

impl<G> Destination<G> {
    fn proxy(&self) -> &Proxy<G> {
        match self {
            Self::Fixed(way) => &way.proxy,
            Self::Any { proxy, .. } => proxy,
        }
    }
}

impl NoWay {
    fn into_response(self) -> Response<Body> {
        match self {
            Self::Denied(denied) => problem::denied(&denied),
            Self::Failed { code, detail } => problem::failed(code, detail),
        }
    }
}

/// The way that was asked for, unless its rule lets TLS through only; else 403.
fn takes_http<G: Gate>(asked: Result<Way<G>, Box<Denied>>, layer: Layer) -> Result<Way<G>, Box<Response<Body>>> {
    let denied = match asked {
        Ok(way) if way.application != Application::Tls => return Ok(way),
        Ok(way) => {
            let (rule, host, port) = (&way.rule, &way.host, way.port);
            way.deny(layer, format!("rule {rule} lets TLS to {host} on port {port} through, and nothing else"))
        }
        Err(denied) => *denied,
    };
    Err(Box::new(problem::denied(&denied)))
}

/// 403: whatever was asked of the proxy is no host name outside.
fn refuse_name<G: Gate>(
    proxy: &Proxy<G>,
    source: IpAddr,
    to: Option<IpAddr>,
    name: Option<String>,
    port: Option<u16>,
    reason: String,
) -> Response<Body> {
    let reason = match to {
        Some(to) => format!("the proxy takes host names, and {to} is an address"),
        None => reason,
    };
    let name = name.filter(|_| to.is_none());
    problem::denied(&proxy.gate.refuse(Refusal { source, to, name, port, layer: Layer::Proxy, rule: None, reason }))
}

/// What stands in place of a Host beside a target with an authority (RFC 9112 §3.2.2): what was judged.
fn host_of<G>(way: &Way<G>) -> HeaderValue {
    const DEFAULT: u16 = 80;
    let text = match way.port {
        DEFAULT => way.host.to_string(),
        port => format!("{}:{port}", way.host),
    };
    // A host name has letters, digits, dots, hyphens and underscores only.
    HeaderValue::try_from(text).expect("a host and a port are a header's value")
}

/// The address that a URI's host is, if it is one.
fn address(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}
