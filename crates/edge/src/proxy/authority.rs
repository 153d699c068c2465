//! Whom a request is for. No I/O.

use std::fmt;

use http::header::{HOST, HeaderMap};
use http::uri::{Authority, Uri};
use warren_model::policy::HostName;

/// A host and, where it was said, a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Requested {
    pub host: HostName,
    pub port: Option<u16>,
}

impl fmt::Display for Requested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.host),
            None => self.host.fmt(f),
        }
    }
}

/// Why it cannot be told whom a request is for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unclear {
    #[error("the request does not say whom it is for: it has no Host")]
    Missing,
    #[error("the request has more than one Host")]
    Several,
    #[error("the request is for {0:?}, which is no host name")]
    NotAName(String),
    #[error("the request says {0} in its target and {1} in its Host")]
    Contradiction(HostName, HostName),
}

impl Unclear {
    /// What was asked for, where it can be shown.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Missing | Self::Several => None,
            Self::NotAName(name) => Some(name),
            Self::Contradiction(target, _) => Some(target.as_str()),
        }
    }
}

/// Whom a request says it is for: its target where that has an authority, else its Host (RFC 9112 §3.2). Where there are
/// both, they have to name the same host; the port is the target's, and the Host is not to go on as it is (§3.2.2).
pub(crate) fn requested(uri: &Uri, headers: &HeaderMap) -> Result<Requested, Unclear> {
    let target = uri.authority().map(|authority| parse(authority.as_str())).transpose()?;
    let header = header(headers)?;
    match (target, header) {
        (Some(target), Some(header)) if target.host != header.host => {
            Err(Unclear::Contradiction(target.host, header.host))
        }
        (Some(target), _) => Ok(target),
        (None, Some(header)) => Ok(header),
        (None, None) => Err(Unclear::Missing),
    }
}

fn header(headers: &HeaderMap) -> Result<Option<Requested>, Unclear> {
    let mut values = headers.get_all(HOST).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Unclear::Several);
    }
    let text = String::from_utf8_lossy(value.as_bytes());
    parse(&text).map(Some)
}

/// `host` or `host:port`; nothing else that a URI may have here.
pub(crate) fn parse(text: &str) -> Result<Requested, Unclear> {
    let shown = || Unclear::NotAName(text.chars().filter(|c| !c.is_control()).take(80).collect());
    let authority: Authority = text.parse().map_err(|_| shown())?;
    let (host, port) = match text.split_once(':') {
        Some((host, "")) => (host, None),
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            (host, Some(port.parse::<u16>().map_err(|_| shown())?))
        }
        Some(_) => return Err(shown()),
        None => (text, None),
    };
    // The library's idea of it has to be the same.
    if authority.host() != host {
        return Err(shown());
    }
    Ok(Requested { host: host.parse().map_err(|_| shown())?, port })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn asked(uri: &str, hosts: &[&str]) -> Result<Requested, Unclear> {
        let mut request = Request::builder().uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let request = request.body(()).unwrap();
        requested(request.uri(), request.headers())
    }

    #[test]
    fn host_and_target_have_to_agree() {
        let expected = |port| Ok(Requested { host: "a.example".parse().unwrap(), port });
        assert_eq!(asked("/x", &["A.example."]), expected(None));
        assert_eq!(asked("/x", &["a.example:8080"]), expected(Some(8080)));
        assert_eq!(asked("http://a.example/x", &["a.example"]), expected(None));
        assert_eq!(asked("http://a.example:81/x", &["a.example"]), expected(Some(81)));
        assert_eq!(asked("http://a.example/x", &["a.example:81"]), expected(None));
        assert!(matches!(asked("http://a.example/", &["b.example"]), Err(Unclear::Contradiction(..))));
        assert_eq!(asked("/x", &[]), Err(Unclear::Missing));
        assert_eq!(asked("/x", &["a.example", "a.example"]), Err(Unclear::Several));
    }

    #[test]
    fn what_is_no_plain_host_name_is_refused() {
        for text in [
            "",
            "192.0.2.1",
            "[2001:db8::1]:80",
            "user@a.example",
            "a.example:80:80",
            "a.example:x",
            "a.example:99999",
            "a.example, b.example",
            "a.example/b",
            "localhost",
            "b.internal",
            "a.example\\@b.example",
            "0x7f.1",
        ] {
            assert!(matches!(parse(text), Err(Unclear::NotAName(_))), "{text}");
        }
    }
}
