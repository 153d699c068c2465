//! Where messages end (RFC 9112 §6.3). No I/O.

use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue, TRANSFER_ENCODING};

/// How a request's body is delimited is not beyond doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Framing {
    #[error("the request has more than one length")]
    Lengths,
    #[error("the request has a length that is no number")]
    Length,
    #[error("the request has a transfer encoding other than chunked")]
    Encoding,
    #[error("the request has both a length and a transfer encoding")]
    Both,
}

/// Refuses every request about whose end two servers could differ.
pub fn check_request(headers: &HeaderMap) -> Result<(), Framing> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let length = lengths.next();
    if lengths.next().is_some() {
        return Err(Framing::Lengths);
    }
    if length.is_some_and(|length| !is_number(length.as_bytes())) {
        return Err(Framing::Length);
    }
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    let encoding = encodings.next();
    if encodings.next().is_some() || encoding.is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        return Err(Framing::Encoding);
    }
    if length.is_some() && encoding.is_some() { Err(Framing::Both) } else { Ok(()) }
}

/// Lets a response that was read say its end in one way: a transfer encoding goes before a length, and a length is said
/// once. One that is not clear is not said.
pub fn settle_response(headers: &mut HeaderMap) {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let Some(length) = lengths.next() else { return };
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    } else if lengths.next().is_some() || !is_number(length.as_bytes()) {
        match one_length(headers) {
            Some(length) => headers.insert(CONTENT_LENGTH, length),
            None => headers.remove(CONTENT_LENGTH),
        };
    }
}

/// The length that is said more than once, in lines or in a list.
fn one_length(headers: &HeaderMap) -> Option<HeaderValue> {
    let values = headers.get_all(CONTENT_LENGTH).iter();
    let mut lengths = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    let first = lengths.next().filter(|length| is_number(length))?;
    if lengths.all(|other| other == first) { HeaderValue::from_bytes(first).ok() } else { None }
}

fn is_number(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hop::tests::headers;

    #[test]
    fn a_body_whose_end_is_in_doubt_is_refused() {
        let refused = |pairs: &[_]| check_request(&headers(pairs)).unwrap_err();
        assert_eq!(refused(&[("content-length", "3"), ("content-length", "3")]), Framing::Lengths);
        assert_eq!(refused(&[("content-length", "+3")]), Framing::Length);
        assert_eq!(refused(&[("content-length", "")]), Framing::Length);
        assert_eq!(refused(&[("transfer-encoding", "gzip, chunked")]), Framing::Encoding);
        assert_eq!(refused(&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")]), Framing::Encoding);
        assert_eq!(refused(&[("transfer-encoding", "chunked"), ("content-length", "3")]), Framing::Both);
        assert_eq!(check_request(&headers(&[("transfer-encoding", "Chunked")])), Ok(()));
        assert_eq!(check_request(&headers(&[("content-length", "3")])), Ok(()));
        assert_eq!(check_request(&headers(&[])), Ok(()));
    }

    #[test]
    fn a_response_says_its_end_in_one_way() {
        let settled = |pairs: &[_]| {
            let mut map = headers(pairs);
            settle_response(&mut map);
            map
        };
        let chunked = [("transfer-encoding", "chunked")];
        assert_eq!(settled(&[("content-length", "3"), chunked[0]]), headers(&chunked));
        let length = [("content-length", "3")];
        assert_eq!(settled(&length), headers(&length));
        assert_eq!(settled(&[length[0], length[0]]), headers(&length));
        assert_eq!(settled(&[("content-length", "3, 3 ,3")]), headers(&length));
        for unclear in ["3, 4", "x", "", "3,"] {
            assert_eq!(settled(&[("content-length", unclear)]), headers(&[]), "{unclear}");
        }
        assert_eq!(settled(&[length[0], ("content-length", "4")]), headers(&[]));
        assert_eq!(settled(&[("etag", "x")]), headers(&[("etag", "x")]));
    }
}
