//! Refusals, as problem documents (RFC 9457). None says anything of what is inside.

use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use warren_model::{Code, Problem};

use crate::body::Reply;

macro_rules! refusals {
    ($($variant:ident = $code:ident, $detail:literal;)*) => {
        /// Why a request does not go on.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Refusal {
            $($variant,)*
        }

        impl Refusal {
            pub const ALL: [Self; [$(Self::$variant),*].len()] = [$(Self::$variant),*];

            pub fn code(self) -> Code {
                match self { $(Self::$variant => Code::$code,)* }
            }

            fn detail(self) -> &'static str {
                match self { $(Self::$variant => $detail,)* }
            }
        }
    };
}

refusals! {
    Host = RequestMalformed, "The request has to name one host, once, in its target or its Host header.";
    Contradiction = RequestMalformed, "The target of the request and its Host header name different hosts.";
    Framing = RequestMalformed, "It is not beyond doubt where the body of the request ends.";
    Syntax = RequestMalformed, "The request does not follow the rules of HTTP.";
    Body = RequestMalformed, "The body of the request ended before its end.";
    Method = MethodNotAllowed, "Connections to elsewhere are not made here.";
    Unknown = HostUnknown, "The name leads here, but nothing is published under it.";
    Challenge = NotFound, "There is no such challenge.";
    Misdirected = MisdirectedRequest, "Open a connection of its own for each name.";
    Headers = HeadersTooLarge, "A request may have 128 headers, of 64 KiB together.";
    TooLarge = BodyTooLarge, "The body is larger than this site takes.";
    Slow = RequestTimeout, "The body of the request stopped coming, or comes too slowly.";
    Credentials = Unauthorized, "This site is only for those who have its credentials.";
    Rate = RateLimited, "This site takes no more requests for now; ask again later.";
    Busy = ServerBusy, "This site has as many requests under way as it takes; ask again later.";
    Crowd = ServerBusy, "As many requests from your address are under way as this site takes from one; ask again later.";
    Unreachable = PreviewUnreachable, "Nothing answers behind this name; it may still be starting.";
    Broken = PreviewUnreachable, "What answers behind this name broke off, or does not speak HTTP.";
    Late = PreviewTimeout, "What is behind this name took too long to answer.";
}

static DOCUMENTS: LazyLock<[Bytes; Refusal::ALL.len()]> = LazyLock::new(|| {
    Refusal::ALL.map(|refusal| {
        let problem = Problem::new(refusal.code(), refusal.detail());
        serde_json::to_vec(&problem).unwrap_or_default().into()
    })
});

impl Refusal {
    pub fn into_response(self) -> Response<Reply> {
        let code = self.code();
        let mut response = Response::new(Reply::whole(DOCUMENTS[self as usize].clone()));
        *response.status_mut() = StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if matches!(self, Self::Busy | Self::Crowd | Self::Unreachable) {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }

    /// Whether the connection ends with it (HTTP/1.1): nobody knows what comes next on it.
    pub fn ends_connection(self) -> bool {
        matches!(self, Self::Host | Self::Contradiction | Self::Framing | Self::Syntax | Self::Body | Self::Slow)
    }
}

/// 429, with how long to wait.
pub(crate) fn rate_limited(wait: Duration) -> Response<Reply> {
    let mut response = Refusal::Rate.into_response();
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    response
}

/// 401, with what is asked for.
pub(crate) fn unauthorized(challenge: &'static str) -> Response<Reply> {
    let mut response = Refusal::Credentials.into_response();
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    response
}

/// The same, as the last on its connection.
pub(crate) fn and_close(mut response: Response<Reply>) -> Response<Reply> {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_is_a_document_with_its_code() {
        for (index, refusal) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(refusal as usize, index);
            let document: Problem = serde_json::from_slice(&DOCUMENTS[index]).unwrap();
            assert_eq!((document.code, document.status), (refusal.code(), refusal.code().status()));
            assert_eq!(refusal.into_response().status().as_u16(), refusal.code().status());
        }
    }

    #[test]
    fn a_part_of_a_second_is_a_second_to_wait() {
        for (wait, seconds) in [(0, "1"), (1, "1"), (1_000, "1"), (1_001, "2")] {
            let response = rate_limited(Duration::from_millis(wait));
            assert_eq!(response.headers()[RETRY_AFTER], seconds);
        }
    }
}
