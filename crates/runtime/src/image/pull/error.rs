use std::io;

use http::StatusCode;
use warren_model::Code;
use warren_model::reference::Digest;

/// Why an image was not taken from its registry.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error("{host} cannot be reached")]
    Connect {
        host: String,
        #[source]
        source: io::Error,
    },
    #[error("{host} broke off")]
    Http {
        host: String,
        #[source]
        source: hyper::Error,
    },
    #[error("{host} said nothing for {seconds} s")]
    Silent { host: String, seconds: u64 },
    #[error("the system has no certificate authorities to trust; install ca-certificates")]
    NoRoots,
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
    #[error("{url} is not https, which only a registry on this machine may do without")]
    Insecure { url: String },
    #[error("{url} is no URL that can be followed")]
    Url { url: String },
    #[error("{host} redirects more than {most} times")]
    Redirects { host: String, most: usize },
    #[error(
        "{host} does not give it to everybody{said}; either it does not exist, or it is private, and Warren pulls public images only"
    )]
    Unauthorized { host: String, said: String },
    #[error("{host} gives no token to read with: {reason}")]
    Token { host: String, reason: String },
    #[error("{host} answers {status}{said}")]
    Status { host: String, status: StatusCode, said: String },
    #[error("{host} has no such image{said}")]
    NotFound { host: String, said: String },
    #[error("{what} is larger than {limit} bytes")]
    TooLarge { what: &'static str, limit: u64 },
    #[error("{what} has {found} bytes where {expected} were announced")]
    Size { what: &'static str, expected: u64, found: u64 },
    #[error("{what} has the digest {found} where it should have {expected}")]
    Mismatch { what: &'static str, expected: Digest, found: String },
    #[error("{what} is malformed: {reason}")]
    Malformed { what: &'static str, reason: String },
    #[error("it is for {offered}, and this host is {wanted}")]
    Platform { wanted: String, offered: String },
    #[error("{what} has the type {found:?}, which is none of a machine's image")]
    MediaType { what: &'static str, found: String },
}

impl PullError {
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } => Code::ImageNotFound,
            Self::TooLarge { .. }
            | Self::Size { .. }
            | Self::Mismatch { .. }
            | Self::Malformed { .. }
            | Self::Platform { .. }
            | Self::MediaType { .. } => Code::ImageInvalid,
            Self::Connect { .. }
            | Self::Http { .. }
            | Self::Silent { .. }
            | Self::NoRoots
            | Self::Tls(_)
            | Self::Insecure { .. }
            | Self::Url { .. }
            | Self::Redirects { .. }
            | Self::Unauthorized { .. }
            | Self::Token { .. }
            | Self::Status { .. } => Code::RegistryUnavailable,
        }
    }

    pub(super) fn malformed(what: &'static str, reason: impl std::fmt::Display) -> Self {
        Self::Malformed { what, reason: reason.to_string() }
    }
}
