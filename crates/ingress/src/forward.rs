//! One request, from its head to its response.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use warren_http::framing::check_request;
use warren_http::hop;
use warren_http::request::to_origin;

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
use crate::upstream::Attempt;

/// Where HTTP-01 challenges are asked for (RFC 8555 §8.3).
const CHALLENGES: &str = "/.well-known/acme-challenge/";

/// Answers a request, whatever it is. What can be done at once is done before this returns.
pub(crate) fn answer(
    client: &Arc<Client>,
    activity: Arc<Activity>,
    request: Request<Incoming>,
) -> impl Future<Output = Response<Reply>> + Send + use<> {
    let http1 = request.version() != Version::HTTP_2;
    let begun = match route(client, &request) {
        Ok(Route::Answer(response)) => Begun::Answered(response),
        Ok(Route::Site(live, host)) => match begin(client, &live, activity, request, host) {
            Ok(passing) => Begun::Passing(passing),
            Err(refused) => Begun::Answered(refused.answer(&live, http1)),
        },
        Err(refusal) => {
            client.ingress.refused.add(refusal);
            Begun::Answered(Refused::from(refusal).into_response(http1))
        }
    };
    async move {
        let passing = match begun {
            Begun::Answered(response) => return response,
            Begun::Passing(passing) => passing,
        };
        let live = passing.live.clone();
        finish(passing).await.unwrap_or_else(|refusal| Refused::from(refusal).answer(&live, http1))
    }
}

/// Answers a request that could not be read.
pub(crate) fn refuse(client: &Client, refusal: Refusal) -> Response<Reply> {
    client.ingress.refused.add(refusal);
    problem::and_close(refusal.into_response())
}

enum Begun {
    Answered(Response<Reply>),
    Passing(Passing),
}

/// A request on its way to a machine.
struct Passing {
    client: Arc<Client>,
    live: Arc<Live>,
    activity: Arc<Activity>,
    flight: Flight,
    outcome: Outcome,
    attempt: Attempt,
    /// Where it is to become a WebSocket.
    to_client: Option<OnUpgrade>,
}

enum Route {
    Answer(Response<Reply>),
    /// With the host as the client said it.
    Site(Arc<Live>, HeaderValue),
}

/// A refusal, where it is not its plain document.
struct Refused {
    refusal: Refusal,
    response: Option<Box<Response<Reply>>>,
}

impl Refused {
    /// The same, counted for its site.
    fn answer(self, live: &Live, http1: bool) -> Response<Reply> {
        live.state.refused.add(self.refusal);
        self.into_response(http1)
    }

    fn into_response(self, http1: bool) -> Response<Reply> {
        let Self { refusal, response } = self;
        let response = response.map_or_else(|| refusal.into_response(), |response| *response);
        if http1 && refusal.ends_connection() { problem::and_close(response) } else { response }
    }
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

/// Checks a request for a site, and sends it where there is a connection for it.
fn begin(
    client: &Arc<Client>,
    live: &Arc<Live>,
    activity: Arc<Activity>,
    mut request: Request<Incoming>,
    host: HeaderValue,
) -> Result<Passing, Refused> {
    let (state, limits) = (&live.state, &live.site.limits);
    state.requests.fetch_add(1, Relaxed);
    let share = client.counts_for(state);
    let stranger = live.site.auth.as_ref().filter(|auth| !auth::allows(auth, request.headers()));
    // Who has no credentials uses up what there is for such, and not what those have who do.
    let bucket = if stranger.is_some() { &state.strangers } else { &state.bucket };
    if let Err(wait) = bucket.take(live.rate, client.ingress.now()) {
        return Err(Refused { refusal: Refusal::Rate, response: Some(Box::new(problem::rate_limited(wait))) });
    }
    let flight = Flight::begin(share, limits)?;
    if request.headers().len() > MAX_HEADERS {
        return Err(Refusal::Headers.into());
    }
    check_request(request.headers()).map_err(|_| Refusal::Framing)?;
    if let Some(auth) = stranger {
        let response = Some(Box::new(problem::unauthorized(auth::challenge(auth))));
        return Err(Refused { refusal: Refusal::Credentials, response });
    }
    if request.body().size_hint().lower() > limits.max_body_bytes {
        return Err(Refusal::TooLarge.into());
    }
    let websocket = request.version() == Version::HTTP_11
        && request.method() == Method::GET
        && request.body().is_end_stream()
        && hop::wants_websocket(request.headers());
    let to_client = websocket.then(|| hyper::upgrade::on(&mut request));
    activity.set_patience(idle(live));
    let outcome = Outcome::default();
    let request = rewrite(request, client, live, &activity, &outcome, host, websocket);
    let attempt = live.target.attempt(request);
    let (client, live) = (client.clone(), live.clone());
    Ok(Passing { client, live, activity, flight, outcome, attempt, to_client })
}

/// Waits for the machine's response.
async fn finish(passing: Passing) -> Result<Response<Reply>, Refusal> {
    let Passing { client, live, activity, flight, outcome, attempt, to_client } = passing;
    let sent = {
        let waiting = activity.wait();
        let mut send = pin!(live.target.complete(attempt, &client.ingress.dial, &client.ingress.limits));
        poll_fn(|cx| match send.as_mut().poll(cx) {
            Poll::Pending if waiting.is_late() => Poll::Ready(Err(Refusal::Late)),
            sent => sent,
        })
        .await
    };
    let (mut response, link) = sent.map_err(|refusal| match outcome.get() {
        _ if live.target.is_closed() => Refusal::Unknown,
        Some(interrupted) => interrupted,
        None => refusal,
    })?;

    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if switching && !(to_client.is_some() && hop::is_websocket(response.headers())) {
        return Err(Refusal::Broken);
    }
    let to_machine = switching.then(|| hyper::upgrade::on(&mut response));
    headers::rewrite_response(response.headers_mut(), switching);
    *response.version_mut() = Version::HTTP_11;
    if let (Some(to_client), Some(to_machine)) = (to_client, to_machine) {
        let idle = idle(&live);
        let tunnel = Tunnel { to_client, to_machine, link, client, flight, idle };
        tunnel.carry(&live.target);
        return Ok(response.map(|_| Reply::Whole(None)));
    }
    Ok(response.map(|body| Reply::passed(body, live, flight, activity, link)))
}

fn idle(live: &Live) -> Duration {
    Duration::from_secs(live.site.limits.idle_seconds.get().into())
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
