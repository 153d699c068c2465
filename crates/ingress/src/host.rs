//! Whom a request is for. No I/O.

use std::borrow::Cow;

use http::Request;
use http::header::{HOST, HeaderValue};
use http::uri::Scheme;

use crate::problem::Refusal;

/// The longest name, in bytes (RFC 1035 §2.3.4).
const MAX_NAME: usize = 253;

/// Whom a request says it is for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Requested<'a> {
    /// In lower case, without a trailing dot.
    pub name: Cow<'a, str>,
    /// As the client said it, with the port.
    pub authority: &'a [u8],
}

impl Requested<'_> {
    pub fn header(&self) -> Option<HeaderValue> {
        HeaderValue::from_bytes(self.authority).ok()
    }
}

/// Whom a request is for: its target where that has an authority, else its Host (RFC 9112 §3.2, RFC 9113 §8.3.1). Where
/// there are both, they have to name the same.
pub(crate) fn requested<B>(request: &Request<B>) -> Result<Requested<'_>, Refusal> {
    let uri = request.uri();
    let target = match uri.authority() {
        Some(authority) => {
            if uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS) {
                return Err(Refusal::Host);
            }
            Some(parse(authority.as_str().as_bytes()).ok_or(Refusal::Host)?)
        }
        None => None,
    };
    let mut values = request.headers().get_all(HOST).iter();
    let header = match values.next() {
        Some(value) => Some(parse(value.as_bytes()).ok_or(Refusal::Host)?),
        None => None,
    };
    if values.next().is_some() {
        return Err(Refusal::Host);
    }
    match (target, header) {
        (Some(target), Some(header)) if target.name != header.name => Err(Refusal::Contradiction),
        (Some(target), _) => Ok(target),
        (None, Some(header)) => Ok(header),
        (None, None) => Err(Refusal::Host),
    }
}

/// `host` or `host:port`. Addresses are taken for names that nobody published.
fn parse(authority: &[u8]) -> Option<Requested<'_>> {
    let text = str::from_utf8(authority).ok()?;
    let host = match text.split_once(':') {
        Some((host, port)) => {
            port.parse::<u16>().ok().filter(|_| port.bytes().all(|byte| byte.is_ascii_digit()))?;
            host
        }
        None => text,
    };
    Some(Requested { name: normal(host)?, authority })
}

/// A name as it is compared: in lower case, without a trailing dot.
pub(crate) fn normal(host: &str) -> Option<Cow<'_, str>> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if host.is_empty() || host.len() > MAX_NAME || !host.bytes().all(valid) {
        return None;
    }
    Some(match host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => Cow::Owned(host.to_ascii_lowercase()),
        false => Cow::Borrowed(host),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(uri: &str, hosts: &[&str]) -> Result<(String, String), Refusal> {
        let mut request = Request::builder().uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let request = request.body(()).unwrap();
        let requested = requested(&request)?;
        Ok((requested.name.into_owned(), String::from_utf8(requested.authority.to_vec()).unwrap()))
    }

    #[test]
    fn host_and_target_have_to_agree() {
        let expected = |authority: &str| Ok(("a.example".to_owned(), authority.to_owned()));
        assert_eq!(asked("/x", &["A.example."]), expected("A.example."));
        assert_eq!(asked("/x", &["a.example:8080"]), expected("a.example:8080"));
        assert_eq!(asked("http://a.example:81/x", &["A.example"]), expected("a.example:81"));
        assert_eq!(asked("https://a.example/x", &[]), expected("a.example"));
        assert_eq!(asked("http://a.example/", &["b.example"]), Err(Refusal::Contradiction));
        assert_eq!(asked("ftp://a.example/", &["a.example"]), Err(Refusal::Host));
        assert_eq!(asked("/x", &[]), Err(Refusal::Host));
        assert_eq!(asked("/x", &["a.example", "a.example"]), Err(Refusal::Host));
    }

    #[test]
    fn what_is_no_plain_host_name_is_refused() {
        let long = "a.".repeat(127);
        for text in [
            "",
            ".",
            ":80",
            "[2001:db8::1]:80",
            "user@a.example",
            "a.example:80:80",
            "a.example:",
            "a.example:x",
            "a.example:+80",
            "a.example:99999",
            "a.example, b.example",
            "a.example/b",
            "a.example\\@b.example",
            "a.example#",
            "a example",
            &format!("{long}example"),
        ] {
            assert_eq!(asked("/", &[text]), Err(Refusal::Host), "{text}");
        }
    }
}
