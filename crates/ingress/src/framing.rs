//! Where requests of HTTP/1.1 end (RFC 9112). Strict, and without I/O.

use warren_http::is_token;

use crate::limits::{MAX_HEAD, MAX_HEADERS};
use crate::problem::Refusal;

/// What the head of a request says of what follows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub body: Body,
    /// It asks to go on as something else.
    pub upgrade: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// In bytes; none is 0.
    Sized(u64),
    Chunked,
}

/// Checks a whole head, with the empty line at its end. Its lines end as they should, but for what is within.
pub(crate) fn check(head: &[u8]) -> Result<Head, Refusal> {
    if head.len() > MAX_HEAD {
        return Err(Refusal::Headers);
    }
    let mut lines = head.strip_suffix(b"\r\n\r\n").unwrap_or(head).split(|byte| *byte == b'\n');
    let mut line = || lines.next().map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let newer = request_line(line().unwrap_or_default())?;
    let (mut length, mut chunked, mut upgrade, mut count) = (None, false, false, 0);
    while let Some(line) = line() {
        count += 1;
        if count > MAX_HEADERS {
            return Err(Refusal::Headers);
        }
        let colon = line.iter().position(|byte| *byte == b':').ok_or(Refusal::Syntax)?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        // A line that is folded begins with a space, which is in no name.
        if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) || !value.iter().all(|byte| is_text(*byte)) {
            return Err(Refusal::Syntax);
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            if length.replace(number(value)?).is_some() {
                return Err(Refusal::Framing);
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if chunked || !newer || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Refusal::Framing);
            }
            chunked = true;
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            upgrade = true;
        }
    }
    match (length, chunked) {
        (Some(_), true) => Err(Refusal::Framing),
        (None, true) => Ok(Head { body: Body::Chunked, upgrade }),
        (length, false) => Ok(Head { body: Body::Sized(length.unwrap_or(0)), upgrade }),
    }
}

/// Whether it is of HTTP/1.1, and not of HTTP/1.0.
fn request_line(line: &[u8]) -> Result<bool, Refusal> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Refusal::Syntax);
    };
    let newer = match version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        _ => return Err(Refusal::Syntax),
    };
    let method_is_good = !method.is_empty() && method.iter().all(|byte| is_token(*byte));
    let target_is_good = !target.is_empty() && target.iter().all(|byte| *byte > b' ' && *byte != 0x7f);
    if method_is_good && target_is_good { Ok(newer) } else { Err(Refusal::Syntax) }
}

fn number(value: &[u8]) -> Result<u64, Refusal> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::Framing);
    }
    str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or(Refusal::Framing)
}

/// RFC 9110 §5.5.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || byte >= b' ' && byte != 0x7f
}

/// How far a chunked body has come (RFC 9112 §7.1). How much an extension or a trailer holds is bounded elsewhere.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    state: Chunk,
    /// Of the chunk, in bytes.
    left: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Chunk {
    #[default]
    Start,
    Size,
    Extension,
    SizeEnd,
    Data,
    DataEnd,
    DataEnded,
    Line,
    Trailer,
    TrailerEnd,
    LastEnd,
    Ended,
}

impl Chunks {
    pub fn ended(&self) -> bool {
        self.state == Chunk::Ended
    }

    /// How many of `bytes` belong to the body; where that is not all of them, it ended or broke the rules.
    pub fn follow(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() && self.state != Chunk::Ended {
            if self.state == Chunk::Data {
                let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - at);
                self.left -= count as u64;
                at += count;
                if self.left == 0 {
                    self.state = Chunk::DataEnd;
                }
                continue;
            }
            match self.step(bytes[at]) {
                Some(next) => self.state = next,
                None => return at,
            }
            at += 1;
        }
        at
    }

    fn step(&mut self, byte: u8) -> Option<Chunk> {
        Some(match (self.state, byte) {
            (Chunk::Start | Chunk::Size, _) if byte.is_ascii_hexdigit() => {
                let digit = char::from(byte).to_digit(16)?;
                self.left = self.left.checked_mul(16)?.checked_add(digit.into())?;
                Chunk::Size
            }
            (Chunk::Size, b'\r') => Chunk::SizeEnd,
            (Chunk::Size, b';') => Chunk::Extension,
            (Chunk::Extension, b'\r') => Chunk::SizeEnd,
            (Chunk::Extension, _) if is_text(byte) => Chunk::Extension,
            (Chunk::SizeEnd, b'\n') if self.left == 0 => Chunk::Line,
            (Chunk::SizeEnd, b'\n') => Chunk::Data,
            (Chunk::DataEnd, b'\r') => Chunk::DataEnded,
            (Chunk::DataEnded, b'\n') => Chunk::Start,
            (Chunk::Line, b'\r') => Chunk::LastEnd,
            (Chunk::LastEnd, b'\n') => Chunk::Ended,
            (Chunk::Trailer, b'\r') => Chunk::TrailerEnd,
            (Chunk::TrailerEnd, b'\n') => Chunk::Line,
            (Chunk::Line, _) if is_token(byte) => Chunk::Trailer,
            (Chunk::Trailer, _) if is_text(byte) => Chunk::Trailer,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &str) -> Result<Head, Refusal> {
        check(format!("POST / HTTP/1.1\r\nHost: a.example\r\n{headers}\r\n").as_bytes())
    }

    #[test]
    fn a_head_says_how_long_its_body_is() {
        let head = |body, upgrade| Ok(Head { body, upgrade });
        assert_eq!(read(""), head(Body::Sized(0), false));
        assert_eq!(read("content-length:  12 \r\n"), head(Body::Sized(12), false));
        assert_eq!(read("Transfer-Encoding: Chunked\r\nUpgrade: x\r\n"), head(Body::Chunked, true));
        assert_eq!(check(b"GET http://a.example/ HTTP/1.0\r\n\r\n"), head(Body::Sized(0), false));
        assert_eq!(read("X: \u{e9}\t\r\n"), head(Body::Sized(0), false));
    }

    #[test]
    fn a_head_that_is_too_large_is_told_from_one_that_is_wrong() {
        assert_eq!(read(&"X: 1\r\n".repeat(MAX_HEADERS)), Err(Refusal::Headers));
        assert_eq!(read(&format!("X: {}\r\n", "x".repeat(MAX_HEAD))), Err(Refusal::Headers));
        assert_eq!(read(&"X: 1\r\n".repeat(MAX_HEADERS - 1)), Ok(Head { body: Body::Sized(0), upgrade: false }));
    }

    #[test]
    fn a_chunked_body_is_followed_to_its_end_however_it_is_cut() {
        let body = b"5;a=\"b\"\r\nhello\r\n0A\r\n0123456789\r\n000\r\nX-T: 1\r\n\r\nGET";
        for size in 1..body.len() {
            let mut chunks = Chunks::default();
            let mut followed = 0;
            for part in body.chunks(size) {
                assert!(!chunks.ended() || followed == body.len() - 3);
                followed += chunks.follow(part);
            }
            assert!(chunks.ended());
            assert_eq!(followed, body.len() - 3, "{size}");
        }
    }

    #[test]
    fn a_chunked_body_that_is_wrong_is_followed_no_further() {
        for (body, good) in [
            ("\r\n", 0),
            ("g", 0),
            ("+1\r\n", 0),
            ("5 \r\n", 1),
            ("5\n", 1),
            ("5\r\nhello!", 8),
            ("5\r\nhello\n", 8),
            ("5;a\nb", 3),
            ("10000000000000000\r\n", 16),
            ("0\r\n\n", 3),
            ("0\r\n X: 1\r\n", 3),
            ("0\r\nX: 1\n", 7),
        ] {
            let mut chunks = Chunks::default();
            assert_eq!((chunks.follow(body.as_bytes()), chunks.ended()), (good, false), "{body:?}");
        }
    }
}
