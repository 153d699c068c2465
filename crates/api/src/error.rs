//! How a handler refuses.

use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode};
use warren_model::access::AccessError;
use warren_model::{Code, Problem};
use warren_store::StoreError;

/// A refusal on its way out. The outermost layer renders it, since only that one knows the request's id.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    pub problem: Box<Problem>,
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// What handlers return.
pub(crate) type Answer<T> = Result<T, ApiError>;

impl ApiError {
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { problem: Box::new(Problem::new(code, detail)), headers: Vec::new() }
    }

    /// Nothing of this name or id, or not the caller's: the same answer for both.
    pub fn not_found(what: &str, given: &str, list: &str) -> Self {
        let given: String = given.chars().take(80).collect();
        Self::new(Code::NotFound, format!("there is no {what} {given:?} in this account: see GET {list}"))
    }

    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(Code::InvalidRequest, detail)
    }

    pub fn unauthorized() -> Self {
        let mut error = Self::new(
            Code::Unauthorized,
            "send a valid key or token as 'Authorization: Bearer wk_...' or 'X-API-Key: wk_...'",
        );
        error.headers.push((http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")));
        error
    }

    pub fn internal() -> Self {
        Self::new(
            Code::Internal,
            "this is a fault of Warren, not of the request: its log has more under this request id",
        )
    }

    pub fn busy() -> Self {
        let mut error = Self::new(Code::ServerBusy, "too many requests are under way: try again in a second");
        error.headers.push((http::header::RETRY_AFTER, HeaderValue::from_static("1")));
        error
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::DiskFull => Self::new(
                Code::HostDiskFull,
                "the disk that holds Warren's store is full and nothing was changed: free some space and try again",
            ),
            StoreError::Closed => Self::new(Code::NotReady, "the server is shutting down: try again when it is back"),
            other => {
                tracing::error!(error = &other as &dyn std::error::Error, "the store failed");
                Self::internal()
            }
        }
    }
}

impl From<AccessError> for ApiError {
    fn from(error: AccessError) -> Self {
        Self { problem: Box::new(error.into()), headers: Vec::new() }
    }
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self { problem: Box::new(problem), headers: Vec::new() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::default();
        *response.status_mut() = StatusCode::from_u16(self.problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response.headers_mut().extend(self.headers);
        response.extensions_mut().insert(*self.problem);
        response
    }
}
