//! What the first bytes of a connection are, where a rule lets anything through. No I/O.

use warren_http::is_token;

/// How every connection of HTTP/2 begins that knows beforehand that the server speaks it (RFC 9113 §3.4).
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The longest request line that is waited for, in bytes; what goes on longer is left to the HTTP parser.
const MAX_LINE: usize = 16 << 10;
/// The empty lines before a request that are waited out, in bytes; servers pass over a few (RFC 9112 §2.2).
const MAX_EMPTY: usize = 1 << 10;
/// Whether a request has one of these methods shows before its line is complete.
const METHODS: [&[u8]; 9] = [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH"];

/// What a connection begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum First {
    /// It looks like TLS or HTTP so far: wait for more.
    Likely,
    /// It may still turn out to be HTTP, though it does not look like it.
    Unlikely,
    Tls,
    Http1,
    Http2,
    /// Neither TLS nor HTTP, whatever follows.
    Other,
}

/// Looks at everything that came in so far.
///
/// What is called HTTP here is more than what is valid: any line that a lenient server may take for a request. The
/// HTTP parser then refuses what is not.
pub(crate) fn first(bytes: &[u8]) -> First {
    if bytes.is_empty() {
        return First::Likely;
    }
    if bytes[0] == 22 {
        return tls(bytes);
    }
    if bytes.len() < HTTP2.len() && HTTP2.starts_with(bytes) {
        return First::Likely;
    }
    if bytes.starts_with(HTTP2) {
        return First::Http2;
    }
    http(bytes)
}

/// A record with a handshake message in it (RFC 8446 §5.1) that is a ClientHello.
fn tls(bytes: &[u8]) -> First {
    let fits = |index: usize, good: fn(u8) -> bool| bytes.get(index).is_none_or(|byte| good(*byte));
    if !fits(1, |major| major == 3) || !fits(2, |minor| minor <= 4) || !fits(5, |kind| kind == 1) {
        First::Other
    } else if bytes.len() > 5 {
        First::Tls
    } else {
        First::Likely
    }
}

/// A request line (RFC 9112 §3), after the empty lines that servers pass over.
fn http(bytes: &[u8]) -> First {
    let (bytes, all) = (without_empty_lines(bytes), bytes.len());
    let empty = all - bytes.len();
    let (line, complete) = match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&bytes[..end], true),
        None => (bytes, false),
    };
    let space = line.iter().position(|byte| matches!(byte, b' ' | b'\t'));
    let method = &line[..space.unwrap_or(line.len())];
    let plain = |byte: &u8| *byte >= b' ' && *byte != 0x7f || matches!(byte, b'\t' | b'\r');
    if !method.iter().all(|byte| is_token(*byte) || !complete && *byte == b'\r') || !line.iter().all(plain) {
        return First::Other;
    }
    if complete {
        let line = line.trim_ascii_end();
        let version = line.len().checked_sub(8).map(|at| &line[at..]);
        let is_version = version.is_some_and(|text| {
            text[..5].eq_ignore_ascii_case(b"HTTP/")
                && text[5].is_ascii_digit()
                && text[6] == b'.'
                && text[7].is_ascii_digit()
        });
        return if space.is_some() && is_version { First::Http1 } else { First::Other };
    }
    if line.len() > MAX_LINE {
        // Method, target, version: no server takes a line of more words, or of a method alone, for a request.
        let words = line.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty()).count();
        return if space.is_some() && words <= 3 { First::Http1 } else { First::Other };
    }
    let known = METHODS.iter().any(|known| if space.is_some() { *known == method } else { known.starts_with(method) });
    if known && empty <= MAX_EMPTY { First::Likely } else { First::Unlikely }
}

/// What follows the line ends at the beginning: servers pass over them, however many there are.
pub(crate) fn without_empty_lines(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(bytes.len());
    &bytes[start..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_are_recognized_however_odd() {
        for request in [
            "GET / HTTP/1.1\r\n",
            "GET / HTTP/1.0\n",
            "\r\n\r\nPOST /a HTTP/1.1\r\nHost: a.example\r\n",
            "FROB  http://a.example/\thttp/1.1 \r\n",
            "GET /\u{e9} HTTP/1.1\r\n",
            "CONNECT a.example:443 HTTP/1.1\r\n",
        ] {
            assert_eq!(first(request.as_bytes()), First::Http1, "{request:?}");
        }
        assert_eq!(first(HTTP2), First::Http2);
    }

    #[test]
    fn other_protocols_are_let_through_at_once() {
        for other in [
            &b"SSH-2.0-OpenSSH_9.2p1\r\n"[..],
            b"EHLO mail.example\r\n",
            b"SET key HTTP\r\n",
            b"*1\r\n$4\r\nPING\r\n",
            &[0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f],
            &[22, 4, 0],
            &[22, 3, 3, 0, 100, 2],
            b"GET /\x00",
        ] {
            assert_eq!(first(other), First::Other, "{other:?}");
        }
    }

    #[test]
    fn empty_lines_without_end_are_not_waited_out() {
        let empty = b"\r\n".repeat(MAX_EMPTY);
        assert_eq!(first(&empty[..MAX_EMPTY]), First::Likely);
        assert_eq!(first(&empty), First::Unlikely);
        assert_eq!(first(&[&empty[..], b"GET / HT"].concat()), First::Unlikely);
        assert_eq!(first(&[&empty[..], b"GET / HTTP/1.1\r\n"].concat()), First::Http1);
    }

    #[test]
    fn a_line_that_does_not_end_is_judged_by_its_words() {
        let long = "a".repeat(MAX_LINE);
        assert_eq!(first(format!("GET /{long}").as_bytes()), First::Http1);
        assert_eq!(first(format!("FROB /{long}").as_bytes()), First::Http1);
        assert_eq!(first(format!("some words of text {long}").as_bytes()), First::Other);
        assert_eq!(first(format!("{long}a").as_bytes()), First::Other);
    }

    #[test]
    fn a_request_is_not_taken_for_something_else_before_its_line_is_complete() {
        let request = format!("{} / HTTP/1.1\r\n", "A".repeat(300));
        assert_eq!(first(request.as_bytes()), First::Http1);
        for end in 0..request.len() {
            let part = first(&request.as_bytes()[..end]);
            assert!(matches!(part, First::Likely | First::Unlikely), "{part:?} after {end} bytes");
        }
    }

    #[test]
    fn what_looks_like_a_request_is_waited_for() {
        for part in
            [&b""[..], b"G", b"GET", b"GET ", b"GET /index.html HTT", b"\r\n", b"PRI * HT", &[22], &[22, 3, 1, 2]]
        {
            assert_eq!(first(part), First::Likely, "{part:?}");
        }
        for part in [&b"x"[..], b"hello", b"FROB / HTTP/1.1"] {
            assert_eq!(first(part), First::Unlikely, "{part:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_get_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            first(&bytes);
        }

        #[test]
        fn a_request_stays_open_until_its_line_is_complete(
            method in "[A-Z]{1,10}", target in "/[!-~]{0,40}", cut in 0usize..60
        ) {
            let request = format!("{method} {target} HTTP/1.1\r\n");
            prop_assume!(!request.as_bytes().starts_with(b"PRI *"));
            prop_assert_eq!(first(request.as_bytes()), First::Http1);
            let cut = cut.min(request.len() - 1);
            prop_assert!(matches!(first(&request.as_bytes()[..cut]), First::Likely | First::Unlikely));
        }
    }
}
