//! The outermost layer: request ids, panics, problem documents, the log line and the metrics.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use jiff::Timestamp;
use warren_model::{Code, Problem};

use crate::compat::{Dialect, freestyle};
use crate::error::ApiError;
use crate::secret;
use crate::state::Shared;

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

/// What names this request in logs, audit entries and answers.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(Arc<str>);

impl RequestId {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The client's own id where it is sane, else a new one.
    fn of(headers: &HeaderMap) -> Self {
        let sane = |text: &&str| {
            (1..=128).contains(&text.len())
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        };
        let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok()).filter(sane);
        match given {
            Some(given) => Self(given.into()),
            None => {
                let ulid = secret::ulid(Timestamp::now()).map(|ulid| ulid.to_string()).unwrap_or_default();
                Self(format!("req_{}", ulid.to_ascii_lowercase()).into())
            }
        }
    }
}

pub(crate) async fn outer(State(api): State<Shared>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = RequestId::of(request.headers());
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched".into(), |path| Arc::from(path.as_str()));
    let dialect = Dialect::of(&method, request.uri().path());
    request.extensions_mut().insert(id.clone());

    let answered = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let response = answered.unwrap_or_else(|_| ApiError::internal().into_response());
    let response = render(response, &id, dialect);

    let (status, took) = (response.status().as_u16(), started.elapsed());
    api.metrics.observe(&method, &route, status, took);
    let code = response.extensions().get::<Problem>().map(|problem| problem.code.as_str());
    if status >= 500 {
        tracing::warn!(%method, %route, status, code, request_id = id.as_str(), ms = took.as_millis(), "request failed");
    } else {
        tracing::debug!(%method, %route, status, code, request_id = id.as_str(), ms = took.as_millis(), "request");
    }
    response
}

fn render(mut response: Response, id: &RequestId, dialect: Dialect) -> Response {
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        if matches!(dialect, Dialect::Freestyle(_)) {
            response.headers_mut().insert(freestyle::TRACE_HEADER, value.clone());
        }
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let failed = response.status().is_client_error() || response.status().is_server_error();
    let mut problem = match response.extensions_mut().remove::<Problem>() {
        Some(problem) => problem,
        None if failed => foreign(response.status()),
        None => return response,
    };
    problem.request_id = Some(id.as_str().to_owned());
    let (status, body) = match dialect {
        Dialect::Native => native(&problem, response.headers_mut()),
        Dialect::Freestyle(place) => {
            let said = response.extensions_mut().remove();
            freestyle::error::render(&problem, said, place, response.headers_mut())
        }
    };
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    *response.body_mut() = Body::from(body);
    response.extensions_mut().insert(problem);
    response
}

fn native(problem: &Problem, headers: &mut HeaderMap) -> (StatusCode, Vec<u8>) {
    headers.insert(CONTENT_TYPE, PROBLEM_JSON);
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, serde_json::to_vec(problem).unwrap_or_default())
}

/// A refusal that a library made up, said as Warren says it.
fn foreign(status: StatusCode) -> Problem {
    let error = match status {
        StatusCode::NOT_FOUND => ApiError::new(Code::RouteNotFound, "there is no such route: see GET /openapi.json"),
        StatusCode::METHOD_NOT_ALLOWED => ApiError::new(Code::MethodNotAllowed, "see the 'Allow' header"),
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::new(Code::BodyTooLarge, "send less"),
        StatusCode::UNSUPPORTED_MEDIA_TYPE => ApiError::new(Code::UnsupportedMediaType, "send JSON"),
        status if status.is_client_error() => {
            ApiError::invalid("the request does not fit the route: see GET /openapi.json")
        }
        _ => ApiError::internal(),
    };
    *error.problem
}
