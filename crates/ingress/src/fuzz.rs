//! What a fuzz target calls: each takes bytes from outside, checks what is read out of them, and must return. Not part of
//! the interface.

use crate::framing::{Body, Chunks, check};

/// What an input led to: `Ok` where it was accepted. The numbers tell the ways apart.
pub type Seen = Result<u64, u64>;

/// The head of a request. What is accepted here ends where the library that reads it afterwards says that it ends, with
/// the same body behind it.
pub fn head(bytes: &[u8]) -> Seen {
    let head = check(bytes).map_err(|refusal| refusal as u64)?;
    if !bytes.ends_with(b"\r\n\r\n") {
        return Err(u64::MAX);
    }
    let mut headers = [httparse::EMPTY_HEADER; 256];
    let mut request = httparse::Request::new(&mut headers);
    // It may still refuse a target or a method.
    let Ok(httparse::Status::Complete(length)) = request.parse(bytes) else { return Err(u64::MAX - 1) };
    assert_eq!(length, bytes.len(), "the head ends elsewhere");
    let named = |name: &str| -> Vec<&[u8]> {
        let all = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        all.map(|header| header.value).collect()
    };
    let (lengths, encodings) = (named("content-length"), named("transfer-encoding"));
    match head.body {
        Body::Chunked => assert!(lengths.is_empty() && encodings.len() == 1, "{lengths:?} {encodings:?}"),
        Body::Sized(size) => {
            assert!(encodings.is_empty() && lengths.len() <= 1, "{lengths:?} {encodings:?}");
            let read = lengths.first().map(|value| String::from_utf8_lossy(value).trim().parse::<u64>().ok());
            assert_eq!(read.unwrap_or(Some(0)), Some(size));
        }
    }
    assert_eq!(head.upgrade, !named("upgrade").is_empty());
    Ok(request.headers.len() as u64)
}

/// A chunked body, which ends at the same place however it is cut.
pub fn chunks(bytes: &[u8]) -> Seen {
    let mut whole = Chunks::default();
    let length = whole.follow(bytes);
    assert!(length <= bytes.len());
    for size in [1, 7] {
        let (mut cut, mut followed) = (Chunks::default(), 0);
        for part in bytes.chunks(size) {
            let more = cut.follow(part);
            followed += more;
            if more < part.len() {
                break;
            }
        }
        assert_eq!((followed, cut.ended()), (length, whole.ended()), "in parts of {size}");
    }
    if whole.ended() { Ok(length as u64) } else { Err(length as u64) }
}
