//! What of an answer goes on to the client. No I/O.

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Response, StatusCode};
use warren_http::framing::settle_response;
use warren_http::hop;

/// Takes away what is not for the client.
pub(crate) fn strip_response<B>(response: &mut Response<B>) {
    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let upgrade = response.headers().get(UPGRADE).cloned();
    hop::strip(response.headers_mut());
    settle_response(response.headers_mut());
    // 426 (RFC 9110 §15.5.22) says what to upgrade to; the client may then.
    if let Some(upgrade) = upgrade {
        response.headers_mut().insert(UPGRADE, upgrade);
    }
    if switching {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_upgrade_to_is_told_and_what_concerns_the_connection_is_not() {
        let stripped = |status: u16| {
            let answer = Response::builder()
                .status(status)
                .header("connection", "Upgrade, X-Private")
                .header("upgrade", "websocket")
                .header("x-private", "1")
                .header("etag", "x");
            let mut answer = answer.body(()).unwrap();
            strip_response(&mut answer);
            let headers = answer.headers().iter();
            headers.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect::<Vec<_>>()
        };
        let mut told = stripped(426);
        told.sort();
        assert_eq!(told, ["etag: x", "upgrade: websocket"]);
        let mut switching = stripped(101);
        switching.sort();
        assert_eq!(switching, ["connection: Upgrade", "etag: x", "upgrade: websocket"]);
    }
}
