//! What can go wrong with an order, and whether asking again can help.

use std::fmt;

use jiff::Timestamp;

use super::transport::Failure;
use crate::InvalidCertificate;

/// What an authority says about a refusal (RFC 8555 §6.7, RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The part behind `urn:ietf:params:acme:error:`, or the whole type where it is of another kind.
    pub kind: String,
    /// In the authority's words, cut at 1,000 characters and without control characters.
    pub detail: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.detail.as_str(), self.kind.as_str()) {
            ("", "") => f.write_str("it does not say why"),
            ("", kind) => f.write_str(kind),
            (detail, "") => f.write_str(detail),
            (detail, kind) => write!(f, "{detail} ({kind})"),
        }
    }
}

/// What was being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Directory,
    Account,
    Order,
    Challenge,
    Finalize,
    Download,
    RenewalInfo,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Directory => "fetching the directory",
            Self::Account => "registering the account",
            Self::Order => "placing the order",
            Self::Challenge => "asking for verification",
            Self::Finalize => "finalizing the order",
            Self::Download => "fetching the certificate",
            Self::RenewalInfo => "asking when to renew",
        })
    }
}

/// Whether the same request can work later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlook {
    /// After a pause ([`crate::renewal::after_failure`]); not before this time, where the authority gave one.
    TryLater { not_before: Option<Timestamp> },
    /// With a new account. The one that was used is not known to the authority.
    NewAccount,
    /// Not until someone changes the names or the settings.
    Never,
}

/// Why no certificate (or account) was had.
#[derive(Debug, thiserror::Error)]
pub enum AcmeError {
    #[error("{step}: {url} cannot be reached: {reason}")]
    Unreachable { step: Step, url: String, reason: String },
    #[error(
        "{step}: the TLS certificate of {url} is not trusted: {reason}; a private authority needs its root in a CA file"
    )]
    Untrusted { step: Step, url: String, reason: String },
    #[error("{step}: the certificate authority refused: {problem}")]
    Refused { step: Step, problem: Problem, retry_after: Option<Timestamp> },
    #[error("{step}: {url} answered with status {status} and no reason")]
    Unexplained { step: Step, url: String, status: u16, retry_after: Option<Timestamp> },
    #[error("{step}: what came back is not ACME: {reason}")]
    NotAcme { step: Step, reason: String },
    #[error("the certificate authority could not verify {name}: {problem}")]
    NotVerified { name: String, problem: Problem },
    #[error("the certificate authority does not offer an http-01 challenge for {name}")]
    NoHttpChallenge { name: String },
    #[error("the challenge for {name} could not be published: {source}")]
    Publish { name: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{step}: the certificate authority was not done in time")]
    Slow { step: Step, retry_after: Option<Timestamp> },
    #[error("the certificate that was issued is of no use: {0}")]
    Certificate(#[from] InvalidCertificate),
    #[error("the certificate that was issued does not cover {name}")]
    NotCovered { name: String },
    #[error("a certificate needs at least one name")]
    NoNames,
    #[error("the account is at {account} and not at {directory}")]
    OtherDirectory { account: String, directory: String },
    #[error("the stored credentials of the account cannot be read")]
    Credentials,
    #[error("no key could be made: {0}")]
    Key(String),
}

impl AcmeError {
    pub fn outlook(&self) -> Outlook {
        match self {
            Self::Refused { problem, retry_after, .. } => by_kind(&problem.kind, *retry_after),
            Self::Unexplained { status, retry_after, .. } => {
                // RFC 9110 §15.5: the other 4xx say that the request itself is at fault.
                if *status >= 500 || [408, 425, 429].contains(status) {
                    Outlook::TryLater { not_before: *retry_after }
                } else {
                    Outlook::Never
                }
            }
            Self::Slow { retry_after, .. } => Outlook::TryLater { not_before: *retry_after },
            Self::NotVerified { problem, .. } if problem.kind == "rejectedIdentifier" => Outlook::Never,
            // A DNS record, a firewall, another server's certificate: they heal without a change here.
            Self::Unreachable { .. }
            | Self::Untrusted { .. }
            | Self::NotVerified { .. }
            | Self::Publish { .. }
            | Self::NotAcme { .. }
            | Self::Certificate(_)
            | Self::NotCovered { .. }
            | Self::Key(_) => Outlook::TryLater { not_before: None },
            Self::OtherDirectory { .. } | Self::Credentials => Outlook::NewAccount,
            Self::NoHttpChallenge { .. } | Self::NoNames => Outlook::Never,
        }
    }

    /// Whether the authority got no order, and so counts none.
    pub fn is_before_order(&self) -> bool {
        match self {
            Self::Unreachable { step, .. } | Self::Untrusted { step, .. } => {
                matches!(step, Step::Directory | Step::Account | Step::Order)
            }
            Self::Refused { step, .. }
            | Self::Unexplained { step, .. }
            | Self::NotAcme { step, .. }
            | Self::Slow { step, .. } => matches!(step, Step::Directory | Step::Account),
            Self::NoNames | Self::OtherDirectory { .. } | Self::Credentials => true,
            Self::NotVerified { .. }
            | Self::NoHttpChallenge { .. }
            | Self::Publish { .. }
            | Self::Certificate(_)
            | Self::NotCovered { .. }
            | Self::Key(_) => false,
        }
    }

    pub(super) fn at(step: Step) -> impl Fn(instant_acme::Error) -> Self {
        move |error| Self::of(step, error)
    }

    fn of(step: Step, error: instant_acme::Error) -> Self {
        match error {
            instant_acme::Error::Api(problem) => {
                Self::Refused { step, problem: Problem::of(&problem), retry_after: None }
            }
            instant_acme::Error::Timeout(next) => {
                let wait = next.map(|next| next.saturating_duration_since(std::time::Instant::now()));
                let retry_after = wait.and_then(|wait| Timestamp::now().checked_add(wait).ok());
                Self::Slow { step, retry_after }
            }
            instant_acme::Error::Crypto | instant_acme::Error::KeyRejected => Self::Credentials,
            instant_acme::Error::Other(other) => match other.downcast::<Failure>() {
                Ok(failure) => Self::failed(step, *failure),
                Err(other) => Self::NotAcme { step, reason: plain(&other.to_string()) },
            },
            error => Self::NotAcme { step, reason: plain(&error.to_string()) },
        }
    }

    fn failed(step: Step, failure: Failure) -> Self {
        match failure {
            Failure::Unreachable { url, reason } => Self::Unreachable { step, url, reason },
            Failure::Untrusted { url, reason } => Self::Untrusted { step, url, reason },
            Failure::Refused { problem, retry_after, .. } => {
                Self::Refused { step, problem: Problem::of(&problem), retry_after }
            }
            Failure::Unexplained { url, status, retry_after } => Self::Unexplained { step, url, status, retry_after },
            Failure::TooLarge { .. } => Self::NotAcme { step, reason: failure.to_string() },
        }
    }
}

impl Problem {
    pub(super) fn of(problem: &instant_acme::Problem) -> Self {
        let kind = problem.r#type.as_deref().unwrap_or_default();
        let kind = kind.strip_prefix("urn:ietf:params:acme:error:").unwrap_or(kind);
        let mut detail = problem.detail.clone().unwrap_or_default();
        for sub in &problem.subproblems {
            let name = sub.identifier.as_ref().map(|id| id.authorized(false).to_string()).unwrap_or_default();
            detail.push_str(&format!("; {name}: {}", sub.detail.as_deref().unwrap_or_default()));
        }
        Self { kind: plain(kind), detail: plain(&detail) }
    }
}

/// RFC 8555 §6.7 and RFC 9773 §7.4.
fn by_kind(kind: &str, not_before: Option<Timestamp>) -> Outlook {
    match kind {
        "accountDoesNotExist" => Outlook::NewAccount,
        "badCSR"
        | "badPublicKey"
        | "badSignatureAlgorithm"
        | "externalAccountRequired"
        | "invalidContact"
        | "unsupportedContact"
        | "malformed"
        | "rejectedIdentifier"
        | "unsupportedIdentifier"
        | "unauthorized"
        | "userActionRequired" => Outlook::Never,
        _ => Outlook::TryLater { not_before },
    }
}

/// What others wrote goes into logs and answers: bounded, and in one line.
fn plain(text: &str) -> String {
    text.chars().take(1000).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(kind: &str, retry_after: Option<Timestamp>) -> Outlook {
        let problem = Problem { kind: kind.to_owned(), detail: String::new() };
        AcmeError::Refused { step: Step::Order, problem, retry_after }.outlook()
    }

    #[test]
    fn a_limit_is_for_later_with_the_time_that_the_authority_gave() {
        let at = Timestamp::from_second(1_800_000_000).unwrap();
        assert_eq!(refused("rateLimited", Some(at)), Outlook::TryLater { not_before: Some(at) });
        assert_eq!(refused("serverInternal", None), Outlook::TryLater { not_before: None });
        assert_eq!(refused("", None), Outlook::TryLater { not_before: None });
    }

    #[test]
    fn what_the_authority_will_always_refuse_is_never() {
        for kind in ["rejectedIdentifier", "malformed", "externalAccountRequired", "invalidContact"] {
            assert_eq!(refused(kind, None), Outlook::Never, "{kind}");
        }
        assert_eq!(refused("accountDoesNotExist", None), Outlook::NewAccount);
    }

    #[test]
    fn a_name_that_could_not_be_verified_may_be_later_unless_it_is_rejected() {
        let not_verified = |kind: &str| AcmeError::NotVerified {
            name: "a.example.com".to_owned(),
            problem: Problem { kind: kind.to_owned(), detail: String::new() },
        };
        assert_eq!(not_verified("dns").outlook(), Outlook::TryLater { not_before: None });
        assert_eq!(not_verified("unauthorized").outlook(), Outlook::TryLater { not_before: None });
        assert_eq!(not_verified("rejectedIdentifier").outlook(), Outlook::Never);
    }

    #[test]
    fn a_status_without_a_reason_is_judged_by_its_class() {
        let outlook = |status| {
            AcmeError::Unexplained { step: Step::Order, url: String::new(), status, retry_after: None }.outlook()
        };
        assert_eq!(outlook(503), Outlook::TryLater { not_before: None });
        assert_eq!(outlook(429), Outlook::TryLater { not_before: None });
        assert_eq!(outlook(404), Outlook::Never);
    }

    #[test]
    fn what_an_authority_says_is_one_bounded_line() {
        let said: instant_acme::Problem = serde_json::from_value(serde_json::json!({
            "type": "urn:ietf:params:acme:error:malformed",
            "detail": format!("first\nsecond\u{1b}[31m{}", "x".repeat(5000)),
        }))
        .unwrap();
        let problem = Problem::of(&said);
        assert_eq!(problem.kind, "malformed");
        assert!(problem.detail.starts_with("first second [31mxxx"));
        assert_eq!(problem.detail.chars().count(), 1000);
    }

    #[test]
    fn what_is_said_about_single_names_is_kept() {
        let said: instant_acme::Problem = serde_json::from_value(serde_json::json!({
            "type": "urn:ietf:params:acme:error:malformed",
            "detail": "Some names were rejected",
            "subproblems": [{
                "type": "urn:ietf:params:acme:error:rejectedIdentifier",
                "detail": "not for example.net",
                "identifier": { "type": "dns", "value": "example.net" },
            }],
        }))
        .unwrap();
        assert_eq!(
            Problem::of(&said).to_string(),
            "Some names were rejected; example.net: not for example.net (malformed)"
        );
    }
}
