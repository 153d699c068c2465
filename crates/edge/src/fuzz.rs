//! What a fuzz target calls: each takes bytes from outside, checks what is read out of them, and must return; and the
//! network that tests begin with. Not part of the interface.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write as _;
use std::mem::discriminant;
use std::os::unix::net::UnixStream;
use std::str::FromStr;

use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;
use http::header::{CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, TE, UPGRADE};
use http::uri::Uri;
use serde::Serialize;
use serde::de::DeserializeOwned;
use ulid::Ulid;
use warren_http::framing::check_request;
use warren_http::hop;
use warren_model::policy::HostName;
use warren_model::{AccountId, NetworkId, NetworkNumber};

use crate::control::frame::{Channel, MAX_MESSAGE};
use crate::control::message::{Reply, Request};
use crate::dns::answer::{self, Kind, Outcome};
use crate::dns::upstream::{self, Said};
use crate::dns::wire::{self, MAX_UDP, Query};
use crate::dns::zone::Zone;
use crate::proxy::authority::{self, Requested};
use crate::proxy::sniff::{First, first};
use crate::proxy::tls::{AnswerReader, HelloReader, ServerName};
use crate::resolve;
use crate::view::NetworkView;

/// What an input led to: `Ok` where it was accepted. The numbers tell the ways apart.
pub type Seen = Result<u64, u64>;

/// A sealed network with nobody in it.
pub fn network() -> NetworkView {
    /// Constants, which are what they should be.
    fn parsed<T: FromStr<Err: Debug>>(text: &str) -> T {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error:?}"))
    }
    NetworkView {
        account: AccountId::from_ulid(Ulid::from_parts(1, 1)),
        network: NetworkId::from_ulid(Ulid::from_parts(1, 2)),
        name: parsed("lab"),
        number: NetworkNumber::FIRST,
        generation: 7,
        gateway4: parsed("10.0.0.1"),
        gateway6: parsed("fd12:3456:789a:1::1"),
        cidr: parsed("10.0.0.0/16"),
        cidr6: parsed("fd12:3456:789a:1::/80"),
        names: Vec::new(),
        sight: BTreeMap::new(),
        forward: Vec::new(),
        names6: parsed("fd12:3456:789a:1:ffff::/80"),
        members: Vec::new(),
        groups: BTreeMap::new(),
        rules: BTreeMap::new(),
        resolvers: Vec::new(),
        operators: Vec::new(),
        policy: "0".repeat(64),
    }
}

/// A message from a machine, to the resolver of this network.
pub fn question(view: &NetworkView, packet: &[u8]) -> Seen {
    let zone = Zone::build(view).map_err(|_| 0u64)?;
    let asker = view.members.first().map_or(view.gateway4, |member| member.ipv4);
    let mut seen = Vec::new();
    let mut accepted = true;
    for udp in [true, false] {
        let mut buffer = [0; MAX_UDP];
        let outcome = answer::respond(&zone, packet, &mut buffer, udp, Some(asker.into()));
        let asks_outside = matches!(outcome, Outcome::Outside | Outcome::Forward);
        if asks_outside && let Ok(query) = Query::parse(packet) {
            // As a text, a name is at most four times as long as on the wire.
            let text = query.name.to_string();
            assert!(text.len() <= 4 * wire::MAX_NAME);
            seen.push(kind((text.parse::<HostName>().is_ok(), answer::address_of(&query.name).is_some())));
        }
        seen.push(kind(discriminant(&outcome)));
        if let Outcome::Reply { length, kind: said } = outcome {
            let reply = &buffer[..length];
            assert_eq!(reply[..2], packet[..2], "the answer is to another question");
            let message = Message::from_vec(reply).unwrap_or_else(|error| panic!("{error}: {reply:02x?}"));
            seen.push(kind((said as u8, u16::from(message.metadata.response_code), message.metadata.truncation)));
            seen.push(kind((message.answers.len(), message.authorities.len(), message.edns.is_some())));
            accepted &= said != Kind::Malformed;
        }
        accepted &= !matches!(outcome, Outcome::Ignore);
    }
    if accepted { Ok(kind(seen)) } else { Err(kind(seen)) }
}

/// A message from a resolver outside that was asked for the A records of `x.example.com` under id 7.
pub fn upstream_answer(packet: &[u8]) -> Seen {
    let question = b"\x01x\x07example\x03com\0\0\x01\0\x01";
    let said = upstream::read(7, question, packet);
    let Said::Answer(message) = said else { return Err(kind(discriminant(&said))) };
    let host = "x.example.com".parse::<HostName>().map_err(|_| 0u64)?;
    let found = resolve::read(&host, RecordType::A, &message);
    let outcome = found.as_ref().map(|_| ()).map_err(discriminant);
    if let Ok((addresses, _)) = &found {
        assert!(addresses.iter().all(|address| warren_model::policy::is_global(*address)));
        // The shortest record of an address has 16 bytes.
        assert!(addresses.len() <= packet.len() / 16);
    }
    let asked = upstream::ask(1, question);
    let relayed = Query::parse(&asked).ok().and_then(|query| upstream::relay(&query.head, &message, MAX_UDP));
    if let Some(relayed) = &relayed {
        assert!(relayed.len() <= MAX_UDP);
        let again = Message::from_vec(relayed).unwrap_or_else(|error| panic!("{error}: {relayed:02x?}"));
        assert!(again.answers.len() <= message.answers.len());
    }
    let records = kind(message.answers.iter().map(|record| u16::from(record.record_type())).collect::<Vec<_>>());
    Ok(kind((outcome, relayed.is_some(), records)))
}

/// The first bytes of a TLS client, as the first message and as the second of a handshake: whether they came at once or
/// one by one makes no difference.
pub fn client_hello(bytes: &[u8]) -> Seen {
    let readers = [HelloReader::new, || HelloReader::second(false), || HelloReader::second(true)];
    let seen: [Seen; 3] = readers.map(|reader: fn() -> HelloReader| {
        let (mut whole, mut cut) = (reader(), reader());
        let at_once = whole.push(bytes);
        let mut in_pieces = Ok(None);
        for piece in bytes.chunks(1) {
            in_pieces = cut.push(piece);
            if !matches!(in_pieces, Ok(None)) {
                break;
            }
        }
        assert_eq!(at_once.as_ref().ok(), in_pieces.as_ref().ok());
        let hello = at_once.map_err(|error| kind(error.to_string()))?.ok_or(0u64)?;
        assert_eq!(whole.consumed(), cut.consumed());
        assert!(whole.consumed() <= bytes.len());
        if let ServerName::Other(text) = &hello.server_name {
            assert!(!text.contains(char::is_control), "{text:?}");
        }
        Ok(kind((discriminant(&hello.server_name), discriminant(&hello.hidden), hello.early_data)))
    });
    if seen[0].is_ok() { Ok(kind(seen)) } else { Err(kind(seen)) }
}

/// The first bytes of a TLS server.
pub fn server_answer(bytes: &[u8]) -> Seen {
    let at_once = AnswerReader::new().push(bytes);
    let mut cut = AnswerReader::new();
    let in_pieces = bytes.chunks(1).find_map(|piece| cut.push(piece));
    assert_eq!(at_once, in_pieces);
    at_once.map(kind).ok_or(0)
}

/// The first bytes of a connection, where anything may be spoken: what is decided on the first of them holds.
pub fn first_bytes(bytes: &[u8]) -> Seen {
    let whole = first(bytes);
    let early = (0..bytes.len()).map(|end| first(&bytes[..end]));
    let decided = early.into_iter().find(|part| !matches!(part, First::Likely | First::Unlikely));
    if let Some(decided) = decided {
        assert_eq!(decided, whole);
    }
    let seen = kind((discriminant(&whole), decided.is_some()));
    if whole == First::Other { Err(seen) } else { Ok(seen) }
}

/// What a client wants to be connected to, as `CONNECT` or a `Host` says it.
pub fn requested_authority(bytes: &[u8]) -> Seen {
    let text = std::str::from_utf8(bytes).map_err(|_| 0u64)?;
    let requested = authority::parse(text).map_err(|error| kind(error.name().is_some()))?;
    let Requested { host, port } = &requested;
    assert_eq!(authority::parse(&requested.to_string()).as_ref(), Ok(&requested));
    let said = text.to_ascii_lowercase();
    assert!(said.starts_with(host.as_str()), "{text:?} is not for {host}");
    Ok(kind((port.is_some(), host.labels().count())))
}

/// The head of a request to the proxy: its target on the first line, a header on each of the others.
pub fn request_head(bytes: &[u8]) -> Seen {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let uri = Uri::try_from(lines.next().unwrap_or_default()).map_err(|_| 0u64)?;
    let mut map = HeaderMap::new();
    for line in lines.filter(|line| !line.is_empty()).take(100) {
        let at = line.iter().position(|byte| *byte == b':').ok_or(1u64)?;
        let name = HeaderName::from_bytes(&line[..at]).map_err(|_| 2u64)?;
        map.append(name, HeaderValue::from_bytes(line[at + 1..].trim_ascii()).map_err(|_| 3u64)?);
    }
    let framing = check_request(&map);
    let websocket = hop::wants_websocket(&map);
    let requested = authority::requested(&uri, &map);
    if let Ok(requested) = &requested {
        let hosts = map.get_all(HOST).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
        let said = hosts.chain(uri.authority().map(|authority| authority.as_str().into()));
        assert!(
            said.map(|text| authority::parse(&text).map(|other| other.host))
                .all(|host| host.as_ref() == Ok(&requested.host))
        );
        assert!(map.get_all(HOST).iter().count() <= 1);
    }
    let mut sent = map.clone();
    hop::strip_request(&mut sent, websocket);
    for name in [HOST, http::header::CONTENT_LENGTH, http::header::TRANSFER_ENCODING] {
        assert!(sent.get_all(&name).iter().eq(map.get_all(&name).iter()), "{name} changed");
    }
    assert!(!sent.contains_key(TE) && sent.contains_key(UPGRADE) == websocket);
    assert_eq!(sent.contains_key(CONNECTION), websocket);
    let seen = kind((
        framing.as_ref().map_err(discriminant),
        requested.as_ref().map(|_| ()).map_err(discriminant),
        websocket,
        uri.authority().is_some(),
    ));
    if framing.is_ok() && requested.is_ok() { Ok(seen) } else { Err(seen) }
}

/// The bytes of a control connection: the messages in them, and an error exactly where one is too long or breaks off.
pub fn control_frames(runtime: &tokio::runtime::Runtime, bytes: &[u8]) -> Seen {
    let (mut theirs, ours) = UnixStream::pair().map_err(|_| 0u64)?;
    ours.set_nonblocking(true).map_err(|_| 0u64)?;
    theirs.set_nonblocking(true).map_err(|_| 0u64)?;
    // What does not fit the socket is not there.
    let written = theirs.write(bytes).unwrap_or(0);
    drop(theirs);
    let (mut rest, mut expected) = (&bytes[..written], Vec::new());
    let ends_well = loop {
        let Some((length, after)) = rest.split_first_chunk() else { break rest.is_empty() };
        let length = u32::from_be_bytes(*length) as usize;
        if length > MAX_MESSAGE || after.len() < length {
            break false;
        }
        let (message, after) = after.split_at(length);
        expected.push(message.to_vec());
        rest = after;
    };
    let (read, ended_well) = runtime.block_on(async {
        let stream = tokio::net::UnixStream::from_std(ours);
        let mut channel = stream.map(Channel::new).unwrap_or_else(|error| panic!("{error}"));
        let mut read = Vec::new();
        loop {
            match channel.receive().await {
                Ok(Some(message)) => read.push(message),
                Ok(None) => break (read, true),
                Err(_) => break (read, false),
            }
        }
    });
    assert_eq!((&read, ended_well), (&expected, ends_well));
    let seen = kind((read.len().min(8), read.iter().any(Vec::is_empty)));
    if ends_well { Ok(seen) } else { Err(seen) }
}

/// A message between the daemon and the edge.
pub fn control_message(bytes: &[u8]) -> Seen {
    let request = read_back::<Request<'static>>(bytes);
    let reply = read_back::<Reply>(bytes);
    if let Some(Request::PutNetwork { view, .. }) = &request {
        let zone = Zone::build(view);
        return Ok(kind(zone.map(|_| ()).map_err(|error| discriminant(&error))));
    }
    match (request, reply) {
        (None, None) => Err(0),
        (request, reply) => Ok(kind((request.as_ref().map(discriminant), reply.as_ref().map(discriminant)))),
    }
}

/// What is read is written as what reads the same.
fn read_back<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let message: T = serde_json::from_slice(bytes).ok()?;
    let written = serde_json::to_string(&message).unwrap_or_else(|error| panic!("{error}"));
    let again: T = serde_json::from_str(&written).unwrap_or_else(|error| panic!("{error}: {written}"));
    assert_eq!(serde_json::to_string(&again).ok(), Some(written));
    Some(message)
}

fn kind(seen: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    seen.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_are_survived(
            packet in proptest::collection::vec(any::<u8>(), 0..600),
            header in any::<[u8; 8]>(),
            open in any::<bool>(),
        ) {
            let mut view = network();
            if open {
                view.forward = vec!["192.0.2.53:53".parse().unwrap()];
            }
            let _ = question(&view, &packet);
            let [counts @ .., flags] = header;
            let plausible = [0, 7, flags, counts[0], 0, 1, 0, counts[1] % 4, 0, counts[2] % 4, 0, counts[3] % 4];
            let _ = question(&view, &[&plausible, packet.as_slice()].concat());
            let _ = upstream_answer(&packet);
            let answered = [0, 7, 0x81, 0x80, 0, 1, 0, counts[1] % 4, 0, counts[2] % 4, 0, counts[3] % 4];
            let question = b"\x01x\x07example\x03com\0\0\x01\0\x01".as_slice();
            let _ = upstream_answer(&[&answered, question, &packet].concat());
        }
    }
}
