//! How a refusal is said: an RFC 9457 problem document with a stable code.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($(#[$meta:meta])* $variant:ident = $text:tt, $status:literal, $title:literal;)*) => {
        /// Every reason for which Warren refuses or fails, each with a stable text and an HTTP status.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub enum Code {
            $($(#[$meta])* #[serde(rename = $text)] $variant,)*
        }

        impl Code {
            pub const ALL: &'static [Code] = &[$(Code::$variant),*];

            /// The stable text.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $text,)* }
            }

            /// The HTTP status that goes with it.
            pub fn status(self) -> u16 {
                match self { $(Code::$variant => $status,)* }
            }

            /// A short sentence that is the same for every occurrence.
            pub fn title(self) -> &'static str {
                match self { $(Code::$variant => $title,)* }
            }
        }
    };
}

codes! {
    Unauthorized = "unauthorized", 401, "The key is missing or not valid";
    Forbidden = "forbidden", 403, "This key may not do that";
    NotFound = "not_found", 404, "There is no such thing";
    RouteNotFound = "route_not_found", 404, "There is no such route";
    MethodNotAllowed = "method_not_allowed", 405, "The route does not take this method";
    InvalidJson = "invalid_json", 400, "The body is not JSON";
    InvalidRequest = "invalid_request", 422, "The request is not valid";
    InvalidQuery = "invalid_query", 400, "A query parameter is not valid";
    UnsupportedMediaType = "unsupported_media_type", 415, "The body has the wrong media type";
    RequestTimeout = "request_timeout", 408, "The request came too slowly";
    BodyTooLarge = "body_too_large", 413, "The body is too large";
    ServerBusy = "server_busy", 503, "Too many requests are under way";
    DeadlineExceeded = "deadline_exceeded", 504, "It took too long";
    InvalidCursor = "invalid_cursor", 400, "The cursor is not valid";
    EventsExpired = "events_expired", 410, "The events asked for are no longer kept";
    IdempotencyKeyInvalid = "idempotency_key_invalid", 400, "The idempotency key is not valid";
    IdempotencyKeyReused = "idempotency_key_reused", 409, "The idempotency key was used for another request";
    InvalidName = "invalid_name", 422, "The name is not valid";
    NameInUse = "name_in_use", 409, "The name is in use";
    CidrMalformed = "cidr_malformed", 422, "The CIDR is malformed";
    CidrNotPrivate = "cidr_not_private", 422, "The CIDR is not private";
    CidrTooWide = "cidr_too_wide", 422, "The CIDR is too wide";
    CidrTooNarrow = "cidr_too_narrow", 422, "The CIDR is too narrow";
    CidrRequired = "cidr_required", 422, "A CIDR has to be chosen";
    NetworksExhausted = "networks_exhausted", 409, "The installation has no network number left";
    NetworkNotEmpty = "network_not_empty", 409, "The network has members";
    AddressMalformed = "address_malformed", 422, "The address is malformed";
    AddressOutsideNetwork = "address_outside_network", 422, "The address is outside the network";
    AddressReserved = "address_reserved", 422, "The address is reserved";
    AddressTaken = "address_taken", 409, "The address is taken";
    NetworkFull = "network_full", 409, "The network has no free address";
    InvalidPort = "invalid_port", 422, "The port is not valid";
    ImageNotFound = "image_not_found", 404, "There is no such image";
    ImageInUse = "image_in_use", 409, "The image is in use";
    ImageInvalid = "image_invalid", 422, "The image is not valid";
    ImageBuildFailed = "image_build_failed", 500, "The image could not be built";
    ReferenceInvalid = "reference_invalid", 422, "The reference to an image is not valid";
    RegistryUnavailable = "registry_unavailable", 502, "The registry cannot be used";
    LimitOutOfRange = "limit_out_of_range", 422, "The limit is out of range";
    LimitUnavailable = "limit_unavailable", 422, "The host cannot give this limit";
    ForwardingRequired = "forwarding_required", 409, "The host does not forward";
    QuotaExceeded = "quota_exceeded", 409, "The account may not have more";
    MachineNotRunning = "machine_not_running", 409, "The machine is not running";
    MachineBusy = "machine_busy", 409, "The machine is changing state";
    MachineFailed = "machine_failed", 500, "The machine could not be started";
    AgentUnavailable = "agent_unavailable", 503, "The machine's agent does not answer";
    CommandNotFound = "command_not_found", 422, "The command was not found in the machine";
    CommandNotExecutable = "command_not_executable", 422, "The command cannot be executed";
    UserNotFound = "user_not_found", 422, "The machine has no such user";
    DirectoryNotFound = "directory_not_found", 422, "The machine has no such directory";
    PathInvalid = "path_invalid", 422, "The path is not valid";
    PathNotFound = "path_not_found", 404, "There is no such path in the machine";
    PathDenied = "path_denied", 403, "The machine does not allow it";
    PathConflict = "path_conflict", 409, "Something else is at this path";
    MachineDiskFull = "machine_disk_full", 507, "The machine's disk is full";
    HostDiskFull = "host_disk_full", 507, "The host's disk is full";
    RuntimeMissing = "runtime_missing", 503, "The OCI runtime is not installed";
    KernelFeatureMissing = "kernel_feature_missing", 503, "The kernel lacks something that is needed";
    ToolMissing = "tool_missing", 503, "The host lacks a program that is needed";
    PolicyInvalid = "policy_invalid", 422, "The policy is not valid";
    PolicyTestFailed = "policy_test_failed", 422, "A test of the policy fails";
    PolicyConflict = "policy_conflict", 409, "Another policy was applied in between";
    PolicyVersionNotFound = "policy_version_not_found", 404, "There is no such version of the policy";
    NetworkInPolicy = "network_in_policy", 409, "The policy names the network";
    AuditRunning = "audit_running", 409, "An audit of the account is under way";
    RangeNotPermitted = "range_not_permitted", 403, "The host's operator does not permit the range";
    TagNotOwned = "tag_not_owned", 403, "This key may not give that tag";
    VpnUnavailable = "vpn_unavailable", 503, "Operators cannot join networks now";
    InvalidPublicKey = "invalid_public_key", 422, "The public key is not valid";
    PublicKeyInUse = "public_key_in_use", 409, "The public key is in use, or rests after use";
    SessionLimit = "session_limit", 409, "The account may not have more sessions";
    DomainInvalid = "domain_invalid", 422, "The host name cannot be published";
    DomainTaken = "domain_taken", 409, "The host name is mapped already";
    DomainNotVerified = "domain_not_verified", 403, "The account has not proved that the host name is its own";
    PortNotDeclared = "port_not_declared", 422, "The machine does not declare the port";
    PortPublished = "port_published", 409, "A domain leads to the port";
    IngressUnavailable = "ingress_unavailable", 503, "The server publishes nothing";
    PolicyDenied = "denied_by_policy", 403, "Policy does not allow it";
    ProxyRequestInvalid = "proxy_request_invalid", 400, "The proxy does not take this request";
    UpstreamFailed = "upstream_failed", 502, "The server outside could not be reached";
    UpstreamTimeout = "upstream_timeout", 504, "The server outside did not answer in time";
    RequestMalformed = "request_malformed", 400, "The request is malformed";
    HostUnknown = "host_unknown", 404, "Nothing is published under this name";
    MisdirectedRequest = "misdirected_request", 421, "The request is for another name than the connection";
    RateLimited = "rate_limited", 429, "There were too many requests";
    HeadersTooLarge = "headers_too_large", 431, "The headers are too large";
    PreviewUnreachable = "preview_unreachable", 502, "The published port could not be reached";
    PreviewTimeout = "preview_timeout", 504, "The published port did not answer in time";
    NotReady = "not_ready", 503, "The server is not ready";
    Internal = "internal", 500, "Something went wrong inside Warren";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A problem document (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// `urn:warren:problem:{code}`.
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    pub code: Code,
    /// What went wrong here, and what to do next.
    pub detail: String,
    /// Names this request in the server's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Everything that is wrong with a document that was sent, and where.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<TextError>))]
    #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
    pub errors: Box<[TextError]>,
}

/// Something wrong in a document that was sent. Lines and columns count from 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TextError {
    pub line: usize,
    pub column: usize,
    pub message: String,
}

impl Problem {
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:warren:problem:{code}"),
            title: code.title().to_owned(),
            status: code.status(),
            code,
            detail: detail.into(),
            request_id: None,
            errors: Box::default(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.detail, self.code)
    }
}

impl std::error::Error for Problem {}

/// An error with its causes, in one line. What a message has already said at its end is not said again.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |cause| cause.source()) {
        let cause = cause.to_string();
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_in_the_documentation() {
        let page = include_str!("../../../docs/api.md");
        for code in Code::ALL {
            let row = format!("| `{code}` | {} | {} |", code.status(), code.title());
            assert!(page.contains(&row), "docs/api.md lacks: {row}");
        }
    }

    #[test]
    fn a_chain_of_causes_is_one_line_without_repetition() {
        #[derive(Debug, thiserror::Error)]
        #[error("{said}")]
        struct Layer {
            said: &'static str,
            source: Option<Box<Layer>>,
        }
        let layered = |said: &[&'static str]| {
            said.iter().rev().fold(None, |source, said| Some(Box::new(Layer { said, source }))).unwrap()
        };
        let told = |said: &[&'static str]| chain(&*layered(said));
        assert_eq!(told(&["it failed"]), "it failed");
        assert_eq!(told(&["no disk", "no file", "denied"]), "no disk: no file: denied");
        assert_eq!(told(&["no disk: denied", "denied", "by the kernel"]), "no disk: denied: by the kernel");
    }

    #[test]
    fn every_code_has_a_text_of_its_own_and_an_error_status() {
        let texts: std::collections::BTreeSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(texts.len(), Code::ALL.len());
        for code in Code::ALL {
            assert!((400..600).contains(&code.status()), "{code}");
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }
}
