//! One request, from its head to its response.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use hyper::body::Incoming;

use crate::activity::Activity;
use crate::auth;
use crate::body::{Outcome, Reply, Sent};
use crate::client::Client;
use crate::counters::Flight;
use crate::headers;
use crate::host::requested;
use crate::limits::MAX_HEADERS;
use crate::problem::{self, Refusal};
use crate::table::{Live, Table};
use crate::tunnel::Tunnel;

/// Where HTTP-01 challenges are asked for (RFC 8555 §8.3).
const CHALLENGES: &str = "/.well-known/acme-challenge/";

/// Answers a request, whatever it is.
pub(crate) async fn answer(
    client: &Arc<Client>,
    activity: Arc<Activity>,
    request: Request<Incoming>,
) -> Response<Reply> {
    let http1 = request.version() != Version::HTTP_2;
    let (refusal, response) = match route(client, &request) {
        Ok(Route::Answer(response)) => return response,
        Ok(Route::Site(live, host)) => match serve(client, &live, activity, request, host).await {
            Ok(response) => return response,
            Err(Refused { refusal, response }) => {
                live.state.refused.add(refusal);
                (refusal, response)
            }
        },
        Err(refusal) => {
            client.ingress.refused.add(refusal);
            (refusal, None)
        }
    };
    let response = response.unwrap_or_else(|| refusal.into_response());
    if http1 && refusal.ends_connection() { problem::and_close(response) } else { response }
}

/// Answers a request that could not be read.
pub(crate) fn refuse(client: &Client, refusal: Refusal) -> Response<Reply> {
    client.ingress.refused.add(refusal);
    problem::and_close(refusal.into_response())
}

enum Route {
    Answer(Response<Reply>),
    /// With the host as the client said it.
    Site(Arc<Live>, HeaderValue),
}

/// A refusal, where it is not its plain document.
struct Refused {
    refusal: Refusal,
    response: Option<Response<Reply>>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, response: None }
    }
}

/// Finds whom a request is for.
fn route(client: &Client, request: &Request<Incoming>) -> Result<Route, Refusal> {
    if request.method() == Method::CONNECT {
        return Err(Refusal::Method);
    }
    let requested = requested(request)?;
    if client.name.as_deref().is_some_and(|name| name != requested.name) {
        return Err(Refusal::Misdirected);
    }
    let table = client.ingress.table.load();
    if !client.secure
        && let Some(token) = request.uri().path().strip_prefix(CHALLENGES)
    {
        return challenge(&table, token).map(Route::Answer);
    }
    let live = table.sites.get(&*requested.name).ok_or(Refusal::Unknown)?;
    if let Some(port) = table.https_port.filter(|_| !client.secure) {
        return redirect(live, port, request.uri()).map(Route::Answer);
    }
    Ok(Route::Site(live.clone(), requested.header().ok_or(Refusal::Host)?))
}

fn challenge(table: &Table, token: &str) -> Result<Response<Reply>, Refusal> {
    let answer = table.challenges.get(token).ok_or(Refusal::Challenge)?;
    let mut response = Response::new(Reply::whole(answer.clone()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    Ok(response)
}

fn redirect(live: &Live, port: u16, uri: &Uri) -> Result<Response<Reply>, Refusal> {
    let path = uri.path_and_query().map(PathAndQuery::as_str).filter(|path| path.starts_with('/')).unwrap_or("/");
    let location = headers::secure_location(live.site.host.as_str(), port, path).ok_or(Refusal::Syntax)?;
    let mut response = Response::new(Reply::Whole(None));
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    response.headers_mut().insert(LOCATION, location);
    live.state.requests.fetch_add(1, Relaxed);
    Ok(response)
}

/// Checks a request for a site, and passes it on.
async fn serve(
    client: &Arc<Client>,
    live: &Arc<Live>,
    activity: Arc<Activity>,
    mut request: Request<Incoming>,
    host: HeaderValue,
) -> Result<Response<Reply>, Refused> {
    let (state, limits) = (&live.state, &live.site.limits);
    state.requests.fetch_add(1, Relaxed);
    let share = client.counts_for(state);
    if let Err(wait) = state.bucket.take(live.rate, client.ingress.now()) {
        return Err(Refused { refusal: Refusal::Rate, response: Some(problem::rate_limited(wait)) });
    }
    let flight = Flight::begin(share, limits)?;
    if request.headers().len() > MAX_HEADERS {
        return Err(Refusal::Headers.into());
    }
    headers::check_framing(request.headers())?;
    if let Some(auth) = live.site.auth.as_ref().filter(|auth| !auth::allows(auth, request.headers())) {
        let response = Some(problem::unauthorized(auth::challenge(auth)));
        return Err(Refused { refusal: Refusal::Credentials, response });
    }
    if request.body().size_hint().lower() > limits.max_body_bytes {
        return Err(Refusal::TooLarge.into());
    }
    let http1 = request.version() != Version::HTTP_2;
    let websocket = http1
        && request.method() == Method::GET
        && request.body().is_end_stream()
        && headers::wants_websocket(request.headers());
    let to_client = websocket.then(|| hyper::upgrade::on(&mut request));
    let idle = Duration::from_secs(limits.idle_seconds.get().into());
    activity.set_patience(idle);

    let outcome = Outcome::default();
    let request = rewrite(request, client, live, &activity, &outcome, host, websocket);
    let sent = {
        let _waiting = activity.wait();
        let send = live.target.send(&client.ingress.dial, &client.ingress.limits, request);
        tokio::select! {
            biased;
            sent = send => sent,
            () = activity.unanswered() => Err(Refusal::Late),
        }
    };
    let (mut response, link) = sent.map_err(|refusal| match outcome.get() {
        _ if live.target.is_closed() => Refusal::Unknown,
        Some(interrupted) => interrupted,
        None => refusal,
    })?;

    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if switching && !(websocket && headers::is_websocket(response.headers())) {
        return Err(Refusal::Broken.into());
    }
    let to_machine = switching.then(|| hyper::upgrade::on(&mut response));
    headers::rewrite_response(response.headers_mut(), switching);
    *response.version_mut() = Version::HTTP_11;
    if let (Some(to_client), Some(to_machine)) = (to_client, to_machine) {
        let tunnel = Tunnel { to_client, to_machine, link, client: client.clone(), flight, idle };
        tunnel.carry(&live.target);
        return Ok(response.map(|_| Reply::Whole(None)));
    }
    Ok(response.map(|body| Reply::passed(body, live.clone(), flight, activity, link)))
}

/// Makes a client's request the one that the machine gets.
fn rewrite(
    request: Request<Incoming>,
    client: &Client,
    live: &Live,
    activity: &Arc<Activity>,
    outcome: &Outcome,
    host: HeaderValue,
    websocket: bool,
) -> Request<Sent> {
    let limits = &client.ingress.limits;
    let most = live.site.limits.max_body_bytes;
    let mut request = request.map(|body| match body.is_end_stream() {
        true => Sent::Empty,
        false => Sent::passed(body, most, limits, live.state.clone(), activity.clone(), outcome.clone()),
    });
    headers::rewrite_request(request.headers_mut(), &client.origin, host, websocket, live.site.auth.is_some());
    // HTTP/2 has other means to say where a body ends.
    let endless = matches!(request.body(), Sent::Passed(_)) && !request.headers().contains_key(CONTENT_LENGTH);
    if endless {
        request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if request.uri().authority().is_some() {
        *request.uri_mut() = to_origin(request.uri());
    }
    *request.version_mut() = Version::HTTP_11;
    request.extensions_mut().clear();
    request
}

fn to_origin(uri: &Uri) -> Uri {
    let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    Uri::from(path)
}
