//! Headers that are about one connection only (RFC 9110 §7.6.1). No I/O.

use http::HeaderValue;
use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRANSFER_ENCODING, UPGRADE,
};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
/// What no `Connection` header can take away: where a message ends, and whom it is for.
const NEEDED: [HeaderName; 3] = [HOST, CONTENT_LENGTH, TRANSFER_ENCODING];

/// Whether a client asks to go on with WebSocket (RFC 6455 §4.1). No other upgrade is let through. That it speaks
/// HTTP/1.1, as it has to, is not looked at.
pub fn wants_websocket(headers: &HeaderMap) -> bool {
    let mut upgrades = headers.get_all(UPGRADE).iter();
    upgrades.next().is_some_and(is_upgrade_to_websocket)
        && upgrades.next().is_none()
        && tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"))
}

/// Whether a response goes on with WebSocket.
pub fn is_websocket(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(is_upgrade_to_websocket)
}

/// Asks for WebSocket, or agrees to it.
pub fn set_websocket(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

/// Takes away what is not for the server; `websocket` puts back what asks for it.
pub fn strip_request(headers: &mut HeaderMap, websocket: bool) {
    strip(headers);
    for name in [&TE, &UPGRADE, &HTTP2_SETTINGS, &PROXY_AUTHORIZATION, &PROXY_AUTHENTICATE] {
        headers.remove(name);
    }
    if websocket {
        set_websocket(headers);
    }
}

/// Takes away `Connection` and what it names, and what older software says in its place.
pub fn strip(headers: &mut HeaderMap) {
    // Nearly every message either has none of it, or asks for nothing but keep-alive.
    let plain = |value: &HeaderValue| {
        let value = value.as_bytes();
        value.eq_ignore_ascii_case(b"keep-alive") || value.eq_ignore_ascii_case(b"close")
    };
    if !headers.get_all(CONNECTION).iter().all(plain) {
        let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
            .filter_map(|token| token.parse().ok())
            .filter(|name| !NEEDED.contains(name))
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in [&CONNECTION, &KEEP_ALIVE, &PROXY_CONNECTION] {
        headers.remove(name);
    }
}

/// The members of a header that is a list of tokens, over all its lines.
pub fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(str::trim))
}

fn is_upgrade_to_websocket(value: &HeaderValue) -> bool {
    value.as_bytes().eq_ignore_ascii_case(b"websocket")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn only_what_concerns_the_connection_is_taken_away() {
        let pairs = [
            ("host", "a.example"),
            ("connection", "X-Private, keep-alive, Host, Content-Length"),
            ("x-private", "1"),
            ("keep-alive", "1"),
            ("content-length", "3"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("proxy-authorization", "Basic x"),
            ("accept", "*/*"),
        ];
        let kept = [("host", "a.example"), ("content-length", "3"), ("accept", "*/*")];
        let mut map = headers(&pairs);
        strip_request(&mut map, false);
        assert_eq!(map, headers(&kept));
        strip_request(&mut map, true);
        let websocket = [("connection", "Upgrade"), ("upgrade", "websocket")];
        assert_eq!(map, headers(&[&kept[..], &websocket].concat()));
    }

    #[test]
    fn only_websocket_is_an_upgrade() {
        assert!(wants_websocket(&headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")])));
        for pairs in [
            &[("connection", "upgrade"), ("upgrade", "h2c")][..],
            &[("connection", "upgrade"), ("upgrade", "h2c, websocket")],
            &[("connection", "upgrade"), ("upgrade", "websocket"), ("upgrade", "h2c")],
            &[("upgrade", "websocket")],
        ] {
            assert!(!wants_websocket(&headers(pairs)), "{pairs:?}");
        }
    }
}
