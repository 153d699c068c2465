//! Why a call did not give what was asked.

use http::StatusCode;
use serde_json::{Value, json};
use warren_model::Problem;

type Source = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing answered at the target.
    #[error("cannot reach {target}: {}. {hint}", deepest(&**source))]
    NotReached { target: String, hint: String, source: Source },
    /// The server said no, or failed, and said so.
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the connection broke off: {}", deepest(&**.0))]
    BrokenOff(#[source] Source),
    #[error("the server's answer is not understood: {0}; is it a different version of Warren? `warren version` tells")]
    NotUnderstood(#[source] serde_json::Error),
    /// The caller asked for something that cannot be sent.
    #[error("{0}")]
    Usage(String),
}

impl From<Problem> for ClientError {
    fn from(problem: Problem) -> Self {
        Self::Refused(Refusal::from(problem))
    }
}

/// A problem document (RFC 9457) as the server sent it, so that what a newer server says is not lost.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    pub document: Value,
}

impl Refusal {
    /// The document in an answer; one made up from its status where it holds none.
    pub fn from_answer(status: StatusCode, body: &[u8]) -> Self {
        match serde_json::from_slice::<Value>(body) {
            Ok(document) if document.get("code").is_some_and(Value::is_string) => Self { document },
            _ => Self::made_up(
                "unexpected_answer",
                "The answer is not one of Warren's",
                Some(status.as_u16()),
                &format!("the server answered {status} without saying why; is something else listening there?"),
            ),
        }
    }

    /// A document for what went wrong on this side.
    pub fn made_up(code: &str, title: &str, status: Option<u16>, detail: &str) -> Self {
        let mut document = json!({
            "type": format!("urn:warren:problem:{code}"),
            "title": title,
            "code": code,
            "detail": detail,
        });
        if let Some(status) = status {
            document["status"] = json!(status);
        }
        Self { document }
    }

    /// The stable code.
    pub fn code(&self) -> &str {
        self.text("code")
    }

    /// What went wrong, and what to do next.
    pub fn detail(&self) -> &str {
        self.text("detail")
    }

    fn text(&self, key: &str) -> &str {
        self.document.get(key).and_then(Value::as_str).unwrap_or_default()
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        let fallback = || json!({ "code": problem.code.as_str(), "detail": problem.detail.clone() });
        Self { document: serde_json::to_value(&problem).unwrap_or_else(|_| fallback()) }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let detail = if self.detail().is_empty() { self.text("title") } else { self.detail() };
        write!(f, "{detail} ({})", self.code())
    }
}

impl std::error::Error for Refusal {}

/// The innermost cause: the layers above it only repeat that it failed.
pub fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_document_is_kept_as_it_came() {
        let body = br#"{"code":"from_the_future","detail":"Do this.","extra":1}"#;
        let refusal = Refusal::from_answer(StatusCode::CONFLICT, body);
        assert_eq!(refusal.document["extra"], 1);
        assert_eq!(refusal.to_string(), "Do this. (from_the_future)");
    }

    #[test]
    fn an_answer_of_something_else_is_named_so() {
        let refusal = Refusal::from_answer(StatusCode::BAD_GATEWAY, b"<html>");
        assert_eq!(refusal.code(), "unexpected_answer");
        assert!(refusal.detail().contains("502 Bad Gateway"));
    }
}
