//! The HTTP client under ACME: bounded in time and size, and it keeps what a refusal says.

use std::error::Error as StdError;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, RETRY_AFTER};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use instant_acme::{BodyWrapper, BytesResponse, HttpClient, Problem};
use jiff::{SignedDuration, Timestamp};
use rustls::ClientConfig;
use warren_model::problem::chain;

/// To connect, TLS included in [`ANSWER_TIMEOUT`].
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// From the start of a request to the last byte of its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// A directory, an order of 100 names or a chain is a few tens of kilobytes.
const MAX_ANSWER: usize = 1 << 20;
/// Longer pauses than this are not believed; the longest limits of public authorities are a week.
const MAX_PAUSE: SignedDuration = SignedDuration::from_hours(30 * 24);

/// Why there is no answer that ACME can go on with.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{url} cannot be reached: {reason}")]
    Unreachable { url: String, reason: String },
    #[error("{url} is not trusted: {reason}")]
    Untrusted { url: String, reason: String },
    #[error("{url} answered with {status}: {problem}")]
    Refused { url: String, status: u16, problem: Problem, retry_after: Option<Timestamp> },
    #[error("{url} answered with {status}")]
    Unexplained { url: String, status: u16, retry_after: Option<Timestamp> },
    #[error("{url} answered with more than {MAX_ANSWER} bytes")]
    TooLarge { url: String },
}

#[derive(Clone)]
pub(super) struct Client(HyperClient<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>);

impl Client {
    pub(super) fn new(tls: ClientConfig) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().wrap_connector(tcp);
        Self(HyperClient::builder(TokioExecutor::new()).build(https))
    }

    async fn ask(self, request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, Failure> {
        let url = request.uri().to_string();
        let within = tokio::time::timeout(ANSWER_TIMEOUT, async {
            let response = self.0.request(request).await.map_err(|error| unreachable(&url, &error))?;
            let (parts, body) = response.into_parts();
            match Limited::new(body, MAX_ANSWER).collect().await {
                Ok(body) => Ok((parts, body.to_bytes())),
                Err(error) if error.is::<LengthLimitError>() => Err(Failure::TooLarge { url: url.clone() }),
                Err(error) => Err(unreachable(&url, &*error)),
            }
        });
        let Ok(answer) = within.await else {
            let reason = format!("no answer within {} s", ANSWER_TIMEOUT.as_secs());
            return Err(Failure::Unreachable { url, reason });
        };
        let (parts, body) = answer?;
        if parts.status.is_client_error() || parts.status.is_server_error() {
            let problem = serde_json::from_slice::<Problem>(&body).ok();
            // The library answers this one itself, with a fresh nonce (RFC 8555 §6.5).
            let used_nonce = parts.status == StatusCode::BAD_REQUEST
                && problem.as_ref().and_then(|problem| problem.r#type.as_deref())
                    == Some("urn:ietf:params:acme:error:badNonce");
            if !used_nonce {
                let (status, retry_after) = (parts.status.as_u16(), retry_after(&parts.headers, Timestamp::now()));
                return Err(match problem.filter(|problem| problem.r#type.is_some() || problem.detail.is_some()) {
                    Some(problem) => Failure::Refused { url, status, problem, retry_after },
                    None => Failure::Unexplained { url, status, retry_after },
                });
            }
        }
        Ok(BytesResponse::from(Response::from_parts(parts, Full::new(body))))
    }
}

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let answer = self.clone().ask(request);
        Box::pin(async move { answer.await.map_err(|failure| instant_acme::Error::Other(Box::new(failure))) })
    }
}

/// RFC 9110 §10.2.3: seconds, or a date.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Timestamp> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let at = if value.bytes().all(|byte| byte.is_ascii_digit()) {
        let seconds = SignedDuration::from_secs(value.parse().ok()?);
        now.checked_add(seconds.min(MAX_PAUSE)).ok()?
    } else {
        jiff::fmt::rfc2822::parse(value).ok()?.timestamp()
    };
    let latest = now.checked_add(MAX_PAUSE).ok()?;
    Some(at.min(latest))
}

fn unreachable(url: &str, error: &(dyn StdError + 'static)) -> Failure {
    let url = url.to_owned();
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    match causes.filter_map(tls_error).find(|tls| matches!(tls, rustls::Error::InvalidCertificate(_))) {
        Some(tls) => Failure::Untrusted { url, reason: tls.to_string() },
        None => Failure::Unreachable { url, reason: chain(error) },
    }
}

/// An I/O error does not count what it wraps as its source.
fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    error.downcast_ref().or_else(|| tls_error(wrapped?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(value: &str) -> Option<i64> {
        let now = Timestamp::from_second(1_000_000_000).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, value.parse().unwrap());
        retry_after(&headers, now).map(|at| at.as_second() - now.as_second())
    }

    #[test]
    fn a_pause_is_seconds_or_a_date_and_bounded() {
        assert_eq!(after("120"), Some(120));
        assert_eq!(after("Sun, 09 Sep 2001 01:48:20 GMT"), Some(100));
        let month = 30 * 24 * 3600;
        assert_eq!(after("999999999999"), Some(month));
        assert_eq!(after("Thu, 31 Dec 2099 23:59:59 GMT"), Some(month));
        assert_eq!(after("99999999999999999999999999"), None);
        assert_eq!(after(""), None);
        assert_eq!(after("soon"), None);
        assert_eq!(retry_after(&HeaderMap::new(), Timestamp::UNIX_EPOCH), None);
    }
}
