//! One question to a resolver (RFC 1035, RFC 6891, RFC 8914), without anything of the machine's own.

use std::hash::{BuildHasher as _, Hasher as _};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};
use warren_model::probe::Outcome;

const A: u16 = 1;
const AAAA: u16 = 28;
const OPT: u16 = 41;
const INTERNET: u16 = 1;
/// The option that says why (RFC 8914 §2).
const EXTENDED_ERROR: u16 = 15;
/// What a response may have, in bytes.
const LARGEST: usize = 4096;
const HEADER: usize = 12;
/// An unanswered question is asked once more after this.
const AGAIN: Duration = Duration::from_millis(700);
/// The most addresses that are told.
const MOST_ADDRESSES: usize = 16;

/// Asks for the IPv4 and the IPv6 addresses of a name.
pub async fn lookup(server: SocketAddr, name: &str, patience: Duration) -> io::Result<Outcome> {
    let until = Instant::now() + patience;
    let (four, six) = tokio::join!(ask(server, name, A, until), ask(server, name, AAAA, until));
    let (four, six) = (four?, six?);
    let mut addresses = Vec::new();
    for answer in [&four, &six].into_iter().flatten() {
        addresses.extend(answer.addresses.iter().copied());
    }
    addresses.truncate(MOST_ADDRESSES);
    Ok(match four.or(six) {
        _ if !addresses.is_empty() => Outcome::Addresses { addresses },
        Some(answer) => Outcome::NoAddress { code: answer.code, extended: answer.extended },
        None => Outcome::Silent,
    })
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Answer {
    code: u8,
    extended: Option<u16>,
    addresses: Vec<IpAddr>,
}

async fn ask(server: SocketAddr, name: &str, kind: u16, until: Instant) -> io::Result<Option<Answer>> {
    let local: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((local, 0)).await?;
    socket.connect(server).await?;
    let id = std::hash::RandomState::new().build_hasher().finish() as u16;
    let question = question(id, name, kind).ok_or(io::ErrorKind::InvalidInput)?;
    let mut bytes = [0; LARGEST];
    for attempt in 0..2 {
        socket.send(&question).await?;
        let until = if attempt == 0 { until.min(Instant::now() + AGAIN) } else { until };
        // Refused for the moment, the second question may fare better.
        while let Ok(Ok(length)) = timeout_at(until, socket.recv(&mut bytes)).await {
            if let Some(answer) = parse(&bytes[..length], id) {
                return Ok(Some(answer));
            }
        }
    }
    Ok(None)
}

/// `None` for what is no name.
fn question(id: u16, name: &str, kind: u16) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(HEADER + name.len() + 17);
    bytes.extend(id.to_be_bytes());
    // Recursion desired; one question, and one record that says what may come back.
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        bytes.push(length);
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend(INTERNET.to_be_bytes());
    bytes.push(0);
    bytes.extend(OPT.to_be_bytes());
    bytes.extend(1232u16.to_be_bytes());
    bytes.extend([0; 6]);
    (bytes.len() <= 512).then_some(bytes)
}

/// `None` for what is no answer to the question with this id.
fn parse(bytes: &[u8], id: u16) -> Option<Answer> {
    let word = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    if word(0)? != id || bytes.get(2)? & 0x80 == 0 {
        return None;
    }
    let mut answer = Answer { code: bytes.get(3)? & 0x0f, ..Answer::default() };
    let mut at = HEADER;
    for _ in 0..word(4)? {
        at = skip_name(bytes, at)? + 4;
    }
    let records = u32::from(word(6)?) + u32::from(word(8)?) + u32::from(word(10)?);
    for _ in 0..records {
        at = skip_name(bytes, at)?;
        let (kind, length) = (word(at)?, usize::from(word(at + 8)?));
        let data = bytes.get(at + 10..at + 10 + length)?;
        match kind {
            A => answer.addresses.extend(<[u8; 4]>::try_from(data).map(IpAddr::from)),
            AAAA => answer.addresses.extend(<[u8; 16]>::try_from(data).map(IpAddr::from)),
            OPT => answer.extended = answer.extended.or_else(|| extended(data)),
            _ => {}
        }
        at += 10 + length;
    }
    Some(answer)
}

fn extended(mut options: &[u8]) -> Option<u16> {
    loop {
        let [a, b, c, d, rest @ ..] = options else { return None };
        let (code, length) = (u16::from_be_bytes([*a, *b]), usize::from(u16::from_be_bytes([*c, *d])));
        if code == EXTENDED_ERROR {
            return Some(u16::from_be_bytes([*rest.first()?, *rest.get(1)?]));
        }
        options = rest.get(length..)?;
    }
}

/// The place after a name. A pointer ends it (RFC 1035 §4.1.4).
fn skip_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            pointer if pointer & 0xc0 == 0xc0 => return Some(at + 2),
            length if length < 64 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An answer with a pointer to the question's name, and an extended error 18.
    fn answer(id: u16, code: u8, address: Option<[u8; 4]>) -> Vec<u8> {
        let mut bytes = question(id, "a.example", A).unwrap();
        bytes.truncate(bytes.len() - 11);
        bytes[2] |= 0x80;
        bytes[3] = code;
        bytes[7] = u8::from(address.is_some());
        if let Some(address) = address {
            bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4]);
            bytes.extend(address);
        }
        bytes.extend([0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 8, 0, 15, 0, 4, 0, 18, b'n', b'o']);
        bytes
    }

    #[test]
    fn addresses_and_the_reason_for_none_are_read() {
        let found = parse(&answer(7, 0, Some([198, 18, 0, 1])), 7).unwrap();
        assert_eq!(found.addresses, [IpAddr::from([198, 18, 0, 1])]);
        let refused = parse(&answer(7, 3, None), 7).unwrap();
        assert_eq!((refused.code, refused.extended), (3, Some(18)));
        assert_eq!(parse(&answer(7, 3, None), 8), None);
    }

    #[test]
    fn what_is_no_name_is_not_asked_for() {
        for name in ["", ".", "a..b", &"x".repeat(64)] {
            assert_eq!(question(1, name, A), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_is_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), id in any::<u16>()) {
            if bytes.len() > 3 {
                bytes[..2].copy_from_slice(&id.to_be_bytes());
                bytes[2] |= 0x80;
            }
            let _ = parse(&bytes, id);
        }
    }
}
