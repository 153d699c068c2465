//! How the commands reach a server: one target (a Unix socket, `http` or `https`), JSON over `/v1`, and problem
//! documents turned into errors. Nothing here prints.
//!
//! | module | holds |
//! | --- | --- |
//! | [`target`] | which server, and with which key |
//! | [`transport`] | byte streams to it |
//! | [`route`] | paths with their parameters, escaped |
//! | [`decode`] | server-sent events and lines of JSON, out of chunks of bytes |
//! | [`exec`] | a command in a machine, over a WebSocket |
//! | [`error`] | why a call did not give what was asked |

pub mod decode;
pub mod error;
pub mod exec;
pub mod route;
pub mod target;
pub mod transport;

use bytes::Bytes;
use futures::Stream;
use futures::StreamExt;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use serde::Serialize;
use serde_json::Value;
use warren_model::wire::Page;

use self::decode::Decoder;
use self::error::ClientError;
use self::route::Route;
use self::target::{Access, Target};
use self::transport::Connector;

/// The largest JSON answer that is read, in bytes.
const LARGEST_ANSWER: usize = 64 << 20;
/// How many items are asked for at once when a whole list is fetched.
const PAGE_SIZE: usize = 200;

pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A connection to one server, with the caller's key.
#[derive(Debug, Clone)]
pub struct Client {
    http: legacy::Client<Connector, Body>,
    target: Target,
    headers: HeaderMap,
}

/// What to send along.
pub enum Payload {
    Nothing,
    Json(Value),
    Bytes(Body),
}

impl Client {
    /// Does not connect yet. Fails when the key cannot stand in a header, or a secure connection cannot be set up.
    pub fn new(access: &Access) -> Result<Self, ClientError> {
        let connector = Connector::new(&access.target)?;
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("warren/", env!("CARGO_PKG_VERSION"))));
        if let Some(key) = &access.key {
            let mut value = HeaderValue::from_str(&format!("Bearer {key}"))
                .map_err(|_| ClientError::Usage("the key has characters that no key of Warren has".to_owned()))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        if let Some(account) = &access.account {
            let value = HeaderValue::from_str(account)
                .map_err(|_| ClientError::Usage("the account has characters that no name or id has".to_owned()))?;
            headers.insert(HeaderName::from_static("x-warren-account"), value);
        }
        Ok(Self {
            http: legacy::Client::builder(TokioExecutor::new()).build(connector),
            target: access.target.clone(),
            headers,
        })
    }

    /// Sends a request and answers its response, if that is a success.
    pub async fn send(
        &self,
        method: Method,
        route: &Route,
        payload: Payload,
    ) -> Result<Response<Incoming>, ClientError> {
        self.send_with(method, route, payload, HeaderMap::new()).await
    }

    /// The same, with more headers.
    pub async fn send_with(
        &self,
        method: Method,
        route: &Route,
        payload: Payload,
        more: HeaderMap,
    ) -> Result<Response<Incoming>, ClientError> {
        if route.is_nameless() {
            return Err(ClientError::Usage("a name or id is empty: write it out".to_owned()));
        }
        let mut request = Request::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
        *request.method_mut() = method;
        *request.uri_mut() = self.target.uri(route);
        *request.headers_mut() = self.headers.clone();
        match payload {
            Payload::Nothing => {}
            Payload::Json(value) => {
                request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                *request.body_mut() =
                    Full::new(Bytes::from(value.to_string())).map_err(|never| match never {}).boxed_unsync();
            }
            Payload::Bytes(body) => {
                request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
                *request.body_mut() = body;
            }
        }
        request.headers_mut().extend(more);
        let response = self.http.request(request).await.map_err(|error| self.not_sent(error))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        // An answer that breaks off still has a status to report.
        let body = read_all(response.into_body()).await.unwrap_or_default();
        Err(ClientError::Refused(error::Refusal::from_answer(status, &body)))
    }

    /// Sends JSON (or nothing) and answers the JSON that comes back; null when the answer is empty.
    pub async fn call(&self, method: Method, route: &Route, body: Option<Value>) -> Result<Value, ClientError> {
        let payload = body.map_or(Payload::Nothing, Payload::Json);
        let response = self.send(method, route, payload).await?;
        let bytes = read_all(response.into_body()).await?;
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(ClientError::NotUnderstood)
    }

    pub async fn get(&self, route: &Route) -> Result<Value, ClientError> {
        self.call(Method::GET, route, None).await
    }

    pub async fn post(&self, route: &Route, body: &impl Serialize) -> Result<Value, ClientError> {
        let body = serde_json::to_value(body).map_err(ClientError::NotUnderstood)?;
        self.call(Method::POST, route, Some(body)).await
    }

    /// A POST that says everything by its path.
    pub async fn post_empty(&self, route: &Route) -> Result<Value, ClientError> {
        self.call(Method::POST, route, None).await
    }

    pub async fn put(&self, route: &Route, body: &impl Serialize) -> Result<Value, ClientError> {
        let body = serde_json::to_value(body).map_err(ClientError::NotUnderstood)?;
        self.call(Method::PUT, route, Some(body)).await
    }

    pub async fn patch(&self, route: &Route, body: &impl Serialize) -> Result<Value, ClientError> {
        let body = serde_json::to_value(body).map_err(ClientError::NotUnderstood)?;
        self.call(Method::PATCH, route, Some(body)).await
    }

    pub async fn delete(&self, route: &Route) -> Result<Value, ClientError> {
        self.call(Method::DELETE, route, None).await
    }

    /// A list: all of its pages, or the first `limit` items and where to go on.
    pub async fn list(&self, route: &Route, limit: Option<usize>) -> Result<Page<Value>, ClientError> {
        let mut items: Vec<Value> = Vec::new();
        let mut next: Option<String> = None;
        loop {
            let wanted = limit.map_or(PAGE_SIZE, |limit| (limit - items.len()).min(PAGE_SIZE));
            let mut route = route.clone().query("limit", wanted);
            if let Some(cursor) = &next {
                route = route.query("cursor", cursor);
            }
            let page: Page<Value> =
                serde_json::from_value(self.get(&route).await?).map_err(ClientError::NotUnderstood)?;
            // A page may be empty and not be the last; one that leads to itself would never end.
            let stuck = page.next.is_some() && page.next == next;
            items.extend(page.items);
            next = page.next;
            if next.is_none() || stuck || limit.is_some_and(|limit| items.len() >= limit) {
                return Ok(Page { items, next });
            }
        }
    }

    /// The JSON documents of a stream (server-sent events, or one document a line), as they come.
    pub async fn documents(
        &self,
        method: Method,
        route: &Route,
        payload: Payload,
        more: HeaderMap,
    ) -> Result<impl Stream<Item = Result<Value, ClientError>> + Unpin + use<>, ClientError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream, application/x-ndjson, application/json"));
        headers.extend(more);
        let response = self.send_with(method, route, payload, headers).await?;
        let kind = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let decoder = Decoder::for_content_type(kind);
        let state = (response.into_body(), Some(decoder), std::collections::VecDeque::new());
        let documents = futures::stream::unfold(state, |(mut body, mut decoder, mut ready)| async move {
            loop {
                if let Some(document) = ready.pop_front() {
                    return Some((document, (body, decoder, ready)));
                }
                let open = decoder.as_mut()?;
                match body.frame().await {
                    Some(Ok(frame)) => {
                        if let Ok(data) = frame.into_data() {
                            ready.extend(open.push(&data));
                        }
                    }
                    Some(Err(error)) => {
                        decoder = None;
                        ready.push_back(Err(ClientError::BrokenOff(error.into())));
                    }
                    None => {
                        ready.extend(open.finish());
                        decoder = None;
                    }
                }
            }
        });
        Ok(documents.boxed())
    }

    fn not_sent(&self, error: legacy::Error) -> ClientError {
        if let Some(refused) = transport::find_insecure(&error) {
            return ClientError::Usage(refused);
        }
        if error.is_connect() {
            ClientError::NotReached {
                target: self.target.to_string(),
                hint: self.target.hint(&error),
                source: error.into(),
            }
        } else {
            ClientError::BrokenOff(error.into())
        }
    }
}

/// A body out of chunks as they come.
pub fn streamed(chunks: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static) -> Body {
    StreamBody::new(chunks.map(|chunk| chunk.map(Frame::data))).boxed_unsync()
}

/// The whole of a body, up to [`LARGEST_ANSWER`].
pub async fn read_all(body: Incoming) -> Result<Bytes, ClientError> {
    let whole = Limited::new(body, LARGEST_ANSWER).collect().await.map_err(ClientError::BrokenOff)?;
    Ok(whole.to_bytes())
}
