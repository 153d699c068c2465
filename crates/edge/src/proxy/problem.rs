//! Refusals and failures as HTTP says them: problem documents (RFC 9457).

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use serde::Serialize;
use warren_model::policy::{Rule, RuleId};
use warren_model::{Code, DenialId, Problem};

use crate::proxy::gate::Denied;

/// What a response carries: a server's body, or one of ours.
pub(crate) type Body = Either<Incoming, Full<Bytes>>;

/// A problem document with what is known of the denial.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    problem: Problem,
    #[serde(skip_serializing_if = "Option::is_none")]
    denial: Option<DenialId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a RuleId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    suggested_rule: Option<&'a Rule>,
}

/// 403: policy said no. The connection ends with it.
pub(crate) fn denied(denied: &Denied) -> Response<Body> {
    let mut response = respond(Code::PolicyDenied, &denied_document(denied));
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Anything else that is not a server's answer.
pub(crate) fn failed(code: Code, detail: impl Into<String>) -> Response<Body> {
    let document = Document { problem: Problem::new(code, detail), denial: None, rule: None, suggested_rule: None };
    let mut response = respond(code, &document);
    if (400..500).contains(&code.status()) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The same as [`denied`], as the bytes of a whole response.
pub(crate) fn denied_bytes(denied: &Denied) -> Vec<u8> {
    let body = serde_json::to_vec(&denied_document(denied)).unwrap_or_default();
    let mut response = format!(
        "HTTP/1.1 403 Forbidden\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    response.extend(body);
    response
}

fn denied_document(denied: &Denied) -> Document<'_> {
    Document {
        problem: Problem::new(Code::PolicyDenied, denied.reason.clone()),
        denial: Some(denied.id),
        rule: denied.rule.as_ref(),
        suggested_rule: denied.suggested_rule.as_ref(),
    }
}

fn respond(code: Code, document: &Document<'_>) -> Response<Body> {
    let body = serde_json::to_vec(document).unwrap_or_default();
    let mut response = Response::new(Either::Right(Full::new(Bytes::from(body))));
    *response.status_mut() = StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response
}
