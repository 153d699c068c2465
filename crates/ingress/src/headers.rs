//! What of a message's headers goes on, and what is put in. No I/O.

use std::fmt::Write as _;
use std::net::IpAddr;

use bytes::{BufMut, BytesMut};
use http::header::{
    AUTHORIZATION, CONNECTION, COOKIE, EXPECT, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use warren_http::framing::settle_response;
use warren_http::hop;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// What a machine believes of us alone.
const OURS: [HeaderName; 6] =
    [X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST, X_FORWARDED_PORT, X_REAL_IP, FORWARDED];

/// What a machine is told of the client of a connection.
#[derive(Debug)]
pub(crate) struct Origin {
    address: HeaderValue,
    /// The beginning of `Forwarded` (RFC 7239 §4), up to the host.
    forwarded: String,
    scheme: &'static str,
}

impl Origin {
    pub fn new(address: IpAddr, secure: bool) -> Self {
        let scheme = if secure { "https" } else { "http" };
        let node = match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("\"[{address}]\""),
        };
        let text = address.to_string();
        // Addresses in text are visible ASCII.
        let address = HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("unknown"));
        Self { address, forwarded: format!("for={node};proto={scheme};host="), scheme }
    }

    fn forwarded(&self, host: &HeaderValue) -> Option<HeaderValue> {
        let host = host.as_bytes();
        let mut text = BytesMut::with_capacity(self.forwarded.len() + host.len() + 2);
        text.put_slice(self.forwarded.as_bytes());
        // A port makes it more than a token (RFC 7239 §4, RFC 9110 §5.6.2).
        if host.contains(&b':') {
            text.put_u8(b'"');
            text.put_slice(host);
            text.put_u8(b'"');
        } else {
            text.put_slice(host);
        }
        HeaderValue::from_maybe_shared(text.freeze()).ok()
    }
}

/// Makes a client's headers those of the request to the machine. `authorized` is set where the credentials were ours.
pub(crate) fn rewrite_request(
    headers: &mut HeaderMap,
    origin: &Origin,
    host: HeaderValue,
    websocket: bool,
    authorized: bool,
) {
    // Asking for trailers is about one connection, and so is asked anew (RFC 9110 §10.1.4).
    let trailers =
        headers.contains_key(TE) && hop::tokens(headers, &TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    hop::strip_request(headers, websocket);
    headers.remove(EXPECT);
    strip_lookalikes(headers);
    headers.remove(X_FORWARDED_PORT);
    if authorized {
        headers.remove(AUTHORIZATION);
    }
    join_cookies(headers);
    if trailers && !websocket {
        headers.insert(CONNECTION, HeaderValue::from_static("TE"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    match origin.forwarded(&host) {
        Some(forwarded) => headers.insert(FORWARDED, forwarded),
        None => headers.remove(FORWARDED),
    };
    headers.insert(X_FORWARDED_FOR, origin.address.clone());
    headers.insert(X_REAL_IP, origin.address.clone());
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(origin.scheme));
    headers.insert(X_FORWARDED_HOST, host.clone());
    headers.insert(HOST, host);
}

/// Takes away of a request's trailers what a machine could take for ours.
pub(crate) fn rewrite_trailers(trailers: &mut HeaderMap) {
    for name in &OURS {
        trailers.remove(name);
    }
    strip_lookalikes(trailers);
}

/// Takes away what is not for the client. `websocket` is set where the connection goes on as one.
pub(crate) fn rewrite_response(headers: &mut HeaderMap, websocket: bool) {
    hop::strip(headers);
    settle_response(headers);
    for name in [&TRANSFER_ENCODING, &UPGRADE, &TE] {
        headers.remove(name);
    }
    if websocket {
        hop::set_websocket(headers);
    }
}

/// Takes away names that many servers cannot tell from ours: to them `_` is `-` (RFC 3875 §4.1.18).
fn strip_lookalikes(headers: &mut HeaderMap) {
    let same = |name: &HeaderName, ours: &HeaderName| {
        let (name, ours) = (name.as_str().as_bytes(), ours.as_str().as_bytes());
        name.len() == ours.len() && name.iter().zip(ours).all(|(a, b)| a == b || (*a == b'_' && *b == b'-'))
    };
    let alike = |name: &&HeaderName| name.as_str().contains('_') && OURS.iter().any(|ours| same(name, ours));
    let alike: Vec<HeaderName> = headers.keys().filter(alike).cloned().collect();
    for name in alike {
        headers.remove(name);
    }
}

/// HTTP/2 lets a client take cookies apart; servers of HTTP/1.1 want them in one line (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(COOKIE).iter();
    if cookies.next().is_none() || cookies.next().is_none() {
        return;
    }
    let parts: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&parts.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// Where the site is over TLS.
pub(crate) fn secure_location(host: &str, port: u16, path: &str) -> Option<HeaderValue> {
    let mut text = String::with_capacity(16 + host.len() + path.len());
    text.push_str("https://");
    text.push_str(host);
    if port != 443 {
        // Writing to a string does not fail.
        let _ = write!(text, ":{port}");
    }
    text.push_str(path);
    HeaderValue::try_from(text).ok()
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

    fn rewritten(pairs: &[(&'static str, &'static str)], websocket: bool, authorized: bool) -> HeaderMap {
        let mut map = headers(pairs);
        let origin = Origin::new("192.0.2.7".parse().unwrap(), true);
        rewrite_request(&mut map, &origin, HeaderValue::from_static("a.example"), websocket, authorized);
        for name in [&X_FORWARDED_FOR, &X_REAL_IP, &X_FORWARDED_PROTO, &X_FORWARDED_HOST, &FORWARDED, &HOST] {
            assert_eq!(map.get_all(name).iter().count(), 1, "{name}");
            map.remove(name);
        }
        map
    }

    #[test]
    fn only_what_concerns_the_connection_is_taken_away() {
        let pairs = [
            ("connection", "X-Private, keep-alive, Host, Content-Length, X-Forwarded-For"),
            ("x-private", "1"),
            ("content-length", "3"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("proxy-authorization", "Basic x"),
            ("expect", "100-continue"),
            ("accept", "*/*"),
            ("authorization", "Bearer x"),
        ];
        let kept = [("content-length", "3"), ("accept", "*/*"), ("authorization", "Bearer x")];
        assert_eq!(rewritten(&pairs, false, false), headers(&kept));
        assert_eq!(rewritten(&pairs, false, true), headers(&kept[..2]));
    }

    #[test]
    fn what_a_client_says_of_where_it_comes_from_is_replaced() {
        let origin = Origin::new("2001:db8::7".parse().unwrap(), true);
        let mut map = headers(&[
            ("forwarded", "for=10.0.0.1"),
            ("forwarded", "for=10.0.0.2"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-port", "1"),
            ("x_forwarded_for", "10.0.0.1"),
            ("x-real_ip", "10.0.0.1"),
            ("my_own", "kept"),
        ]);
        rewrite_request(&mut map, &origin, HeaderValue::from_static("a.example:8443"), false, false);
        let expected = headers(&[
            ("my_own", "kept"),
            ("host", "a.example:8443"),
            ("x-forwarded-for", "2001:db8::7"),
            ("x-real-ip", "2001:db8::7"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "a.example:8443"),
            ("forwarded", "for=\"[2001:db8::7]\";proto=https;host=\"a.example:8443\""),
        ]);
        assert_eq!(map, expected);
        let origin = Origin::new("192.0.2.7".parse().unwrap(), false);
        let forwarded = origin.forwarded(&HeaderValue::from_static("a.example")).unwrap();
        assert_eq!(forwarded, "for=192.0.2.7;proto=http;host=a.example");
    }

    #[test]
    fn an_upgrade_goes_on_where_it_is_one_to_websocket() {
        let upgrade = [("connection", "Upgrade"), ("upgrade", "websocket")];
        assert_eq!(rewritten(&upgrade, true, false), headers(&upgrade));
        assert_eq!(rewritten(&upgrade, false, false), headers(&[]));
    }

    #[test]
    fn trailers_may_be_asked_for_and_cookies_are_one_line() {
        let te = [("te", "gzip;q=0.5, trailers")];
        assert_eq!(rewritten(&te, false, false), headers(&[("connection", "TE"), ("te", "trailers")]));
        let cookies = [("cookie", "a=1"), ("cookie", "b=2")];
        assert_eq!(rewritten(&cookies, false, false), headers(&[("cookie", "a=1; b=2")]));
    }

    #[test]
    fn a_location_has_the_port_where_it_is_not_the_usual_one() {
        assert_eq!(secure_location("a.example", 443, "/x?y").unwrap(), "https://a.example/x?y");
        assert_eq!(secure_location("a.example", 8443, "/").unwrap(), "https://a.example:8443/");
    }
}
