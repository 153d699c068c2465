//! Headers that are about one connection only (RFC 9110 §7.6.1). No I/O.

use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderValue, Response, StatusCode};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
/// What no `Connection` header can take away: where a message ends, and whom it is for.
const NEEDED: [HeaderName; 3] = [HOST, CONTENT_LENGTH, TRANSFER_ENCODING];

/// How a request's body is delimited is not beyond doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Framing {
    #[error("the request has more than one length")]
    Lengths,
    #[error("the request has a length that is no number")]
    Length,
    #[error("the request has a transfer encoding other than chunked")]
    Encoding,
    #[error("the request has both a length and a transfer encoding")]
    Both,
}

/// Refuses every request about whose end two servers could differ (RFC 9112 §6.3).
pub(crate) fn check_framing(headers: &HeaderMap) -> Result<(), Framing> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let length = lengths.next();
    if lengths.next().is_some() {
        return Err(Framing::Lengths);
    }
    if length.is_some_and(|length| length.is_empty() || !length.as_bytes().iter().all(u8::is_ascii_digit)) {
        return Err(Framing::Length);
    }
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    let encoding = encodings.next();
    if encodings.next().is_some() || encoding.is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        return Err(Framing::Encoding);
    }
    if length.is_some() && encoding.is_some() { Err(Framing::Both) } else { Ok(()) }
}

/// Whether the client wants to go on with WebSocket (RFC 6455 §4.1). No other upgrade is let through.
pub(crate) fn wants_websocket(headers: &HeaderMap) -> bool {
    let upgrades = headers.get_all(UPGRADE).iter().count() == 1;
    upgrades && is_websocket(headers) && tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"))
}

/// Whether a response goes on with WebSocket.
pub(crate) fn is_websocket(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Takes away what is not for the server; `websocket` puts back what asks for it.
pub(crate) fn strip_request(headers: &mut HeaderMap, websocket: bool) {
    strip(headers);
    for name in [&TE, &UPGRADE, &HTTP2_SETTINGS, &PROXY_AUTHORIZATION, &PROXY_AUTHENTICATE] {
        headers.remove(name);
    }
    if websocket {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    }
}

/// Takes away what is not for the client.
pub(crate) fn strip_response<B>(response: &mut Response<B>) {
    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let upgrade = response.headers().get(UPGRADE).cloned();
    strip(response.headers_mut());
    // 426 (RFC 9110 §15.5.22) says what to upgrade to; the client may then.
    if let Some(upgrade) = upgrade {
        response.headers_mut().insert(UPGRADE, upgrade);
    }
    if switching {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    }
}

fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
        .filter_map(|token| token.parse().ok())
        .filter(|name| !NEEDED.contains(name))
        .collect();
    for name in named.iter().chain([&CONNECTION, &KEEP_ALIVE, &PROXY_CONNECTION]) {
        headers.remove(name);
    }
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(str::trim))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn a_body_whose_end_is_in_doubt_is_refused() {
        let refused = |pairs: &[_]| check_framing(&headers(pairs)).unwrap_err();
        assert_eq!(refused(&[("content-length", "3"), ("content-length", "3")]), Framing::Lengths);
        assert_eq!(refused(&[("content-length", "+3")]), Framing::Length);
        assert_eq!(refused(&[("content-length", "")]), Framing::Length);
        assert_eq!(refused(&[("transfer-encoding", "gzip, chunked")]), Framing::Encoding);
        assert_eq!(refused(&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")]), Framing::Encoding);
        assert_eq!(refused(&[("transfer-encoding", "chunked"), ("content-length", "3")]), Framing::Both);
        assert_eq!(check_framing(&headers(&[("transfer-encoding", "Chunked")])), Ok(()));
        assert_eq!(check_framing(&headers(&[("content-length", "3")])), Ok(()));
    }

    #[test]
    fn only_what_concerns_the_connection_is_taken_away() {
        let mut map = headers(&[
            ("host", "a.example"),
            ("connection", "X-Private, keep-alive, Host, Content-Length"),
            ("x-private", "1"),
            ("content-length", "3"),
            ("upgrade", "h2c"),
            ("proxy-authorization", "Basic x"),
            ("accept", "*/*"),
        ]);
        strip_request(&mut map, false);
        assert_eq!(map, headers(&[("host", "a.example"), ("content-length", "3"), ("accept", "*/*")]));
    }

    #[test]
    fn only_websocket_is_an_upgrade() {
        assert!(wants_websocket(&headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")])));
        assert!(!wants_websocket(&headers(&[("connection", "upgrade"), ("upgrade", "h2c")])));
        assert!(!wants_websocket(&headers(&[("connection", "upgrade"), ("upgrade", "h2c, websocket")])));
        assert!(!wants_websocket(&headers(&[("upgrade", "websocket")])));
    }
}
