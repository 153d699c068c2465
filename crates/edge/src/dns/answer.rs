//! What a question gets: from the network's own names, a refusal, or the resolvers outside.
//!
//! | asked for | answered with |
//! | --- | --- |
//! | `.internal`, reverse names of the network's ranges | the network's records that are there for who asks; negative answers carry an SOA (RFC 2308) |
//! | reverse names of members of other networks | the name, where who asks has traffic with them |
//! | names that mean something only where they are asked (`.local`, private reverse names, …) | NXDOMAIN and a reason |
//! | anything else, in a network that may look names up | the resolvers outside |
//! | anything else, in every other network | what policy says ([`crate::dns::listed`]) |
//! | anything, by somebody who is not a member | REFUSED |
//!
//! A refusal is NXDOMAIN **without** an SOA: resolvers in machines give up at once instead of trying again, and do
//! not remember it, so that a name works the moment it is allowed. The reason travels as an extended DNS error
//! (RFC 8914, code 18, Prohibited) to those who asked with EDNS.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::dns::wire::{
    self, ExtendedError, Full, Head, Malformed, Name, Query, ResponseCode, Section, Status, Writer, record_type,
};
use crate::dns::zone::{self, Addresses, Entry, Zone};
use crate::names;

/// How long a positive answer may be remembered, in seconds.
pub const TTL: u32 = 5;
/// How long it may be remembered that a name or type does not exist, in seconds (RFC 2308 §5).
pub const NEGATIVE_TTL: u32 = 1;

const IN_ADDR_ARPA: &[u8] = b"\x07in-addr\x04arpa\0";
const IP6_ARPA: &[u8] = b"\x03ip6\x04arpa\0";

/// What became of a message.
#[derive(Debug)]
pub enum Outcome {
    /// So many bytes of the buffer are the answer.
    Reply { length: usize, kind: Kind },
    /// The resolvers outside have to be asked.
    Forward,
    /// Policy has to be asked about a name outside.
    Outside,
    /// No answer at all.
    Ignore,
}

/// What an answer says, for the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Answered,
    /// The name or the type does not exist in this network.
    Negative,
    /// Refused by policy.
    Prohibited,
    /// The message was not a question that is answered here.
    Malformed,
}

/// Answers a message that came over UDP or TCP, into `buffer`; `udp` limits the length to what the client takes.
/// `asker`: from where it came, if that is somebody whom this network answers.
pub fn respond(zone: &Zone, packet: &[u8], buffer: &mut [u8], udp: bool, asker: Option<IpAddr>) -> Outcome {
    let query = match Query::parse(packet) {
        Ok(query) => query,
        Err(Malformed::Ignore) => return Outcome::Ignore,
        Err(Malformed::Answer(head, code)) => {
            return reply(&head, buffer, udp, &Answer::plain(code), zone, Kind::Malformed);
        }
    };
    let Some(asker) = asker else {
        return reply(&query.head, buffer, udp, &Answer::plain(ResponseCode::Refused), zone, Kind::Prohibited);
    };
    let answer = match decide(zone, &query, asker) {
        Decision::Answer(answer) => answer,
        Decision::Forward => return Outcome::Forward,
        Decision::Outside => return Outcome::Outside,
    };
    let kind = match (&answer.data, answer.error.is_some(), answer.code) {
        (_, true, _) => Kind::Prohibited,
        (Data::None, ..) if answer.apex.is_some() => Kind::Negative,
        (Data::None, ..) => Kind::Malformed,
        _ => Kind::Answered,
    };
    reply(&query.head, buffer, udp, &answer, zone, kind)
}

/// Writes the refusal of a question; returns the length of the message, 0 if it does not fit at all.
pub fn refuse(head: &Head<'_>, buffer: &mut [u8], udp: bool, code: ResponseCode, error: ExtendedError) -> usize {
    let answer = Answer { error: Some(error), ..Answer::plain(code) };
    write(head, buffer, udp, &answer, 0)
}

/// Answers with the synthetic address of a name outside.
pub fn synthetic(head: &Head<'_>, buffer: &mut [u8], udp: bool, address: IpAddr) -> usize {
    let data = match address {
        IpAddr::V4(address) => Data::Ipv4(address),
        IpAddr::V6(address) => Data::Ipv6(address),
    };
    write(head, buffer, udp, &Answer { ttl: names::TTL, data, ..Answer::plain(ResponseCode::NoError) }, 0)
}

/// Answers that a name outside has no record of the type; not to be remembered.
pub fn no_data(head: &Head<'_>, buffer: &mut [u8], udp: bool, error: Option<ExtendedError>) -> usize {
    write(head, buffer, udp, &Answer { error, ..Answer::plain(ResponseCode::NoError) }, 0)
}

/// Answers a question for every type of a name outside (RFC 8482 §4.2).
pub fn every_type(head: &Head<'_>, buffer: &mut [u8], udp: bool) -> usize {
    write(head, buffer, udp, &Answer { data: Data::Any, ..Answer::plain(ResponseCode::NoError) }, 0)
}

/// Answers with the name, in wire form, that an address was given for.
pub fn pointer(head: &Head<'_>, buffer: &mut [u8], udp: bool, name: &[u8]) -> usize {
    write(head, buffer, udp, &Answer { data: Data::Pointer(name), ..Answer::plain(ResponseCode::NoError) }, 0)
}

/// The address whose reverse name this is.
pub fn address_of(name: &Name) -> Option<IpAddr> {
    let whole = |given: usize, more: bool, units: usize| given == units && !more;
    if let Some(reverse) = Reverse::<4>::read(name, IN_ADDR_ARPA, decimal) {
        return whole(reverse.given, reverse.more, 4).then(|| Ipv4Addr::from(reverse.units).into());
    }
    let reverse = Reverse::<32>::read(name, IP6_ARPA, hexadecimal)?;
    whole(reverse.given, reverse.more, 32).then(|| Ipv6Addr::from(nibbles(&reverse.units)).into())
}

/// A reason in the extended error of a refusal.
pub fn prohibited(text: String) -> ExtendedError {
    ExtendedError { code: wire::extended_error::PROHIBITED, text }
}

enum Decision<'z> {
    Answer(Answer<'z>),
    Forward,
    Outside,
}

struct Answer<'z> {
    code: ResponseCode,
    data: Data<'z>,
    /// Where in the question's name the zone begins that this answer speaks for with authority.
    apex: Option<usize>,
    error: Option<ExtendedError>,
    /// How long a positive answer may be remembered, in seconds.
    ttl: u32,
}

enum Data<'z> {
    None,
    Ipv4(Ipv4Addr),
    Ipv6(Ipv6Addr),
    Pointer(&'z [u8]),
    /// The answer to a question for every type (RFC 8482 §4.2).
    Any,
    Soa,
    NameServer,
}

impl<'z> Answer<'z> {
    fn plain(code: ResponseCode) -> Self {
        Self { code, data: Data::None, apex: None, error: None, ttl: TTL }
    }

    fn local(apex: usize, code: ResponseCode, data: Data<'z>) -> Self {
        Self { code, data, apex: Some(apex), error: None, ttl: TTL }
    }
}

fn decide<'z>(zone: &'z Zone, query: &Query<'_>, asker: IpAddr) -> Decision<'z> {
    let name = &query.name;
    if query.class != wire::CLASS_IN {
        return Decision::Answer(Answer::plain(ResponseCode::Refused));
    }
    match query.record_type {
        0 | record_type::OPT => return Decision::Answer(Answer::plain(ResponseCode::FormErr)),
        // Zone transfers, TKEY, TSIG and the mail types that RFC 1035 already called obsolete.
        249..=254 => return Decision::Answer(Answer::plain(ResponseCode::Refused)),
        _ => {}
    }
    if name.is_within(zone::INTERNAL) {
        return Decision::Answer(internal(zone, query, asker));
    }
    if let Some(answer) = reverse_ipv4(zone, query, asker).or_else(|| reverse_ipv6(zone, query, asker)) {
        return Decision::Answer(answer);
    }
    if zone.forward.is_empty() {
        return Decision::Outside;
    }
    if is_local_only(name) || is_private_reverse(name) {
        return refusal(format!("{name} is never looked up outside this network"));
    }
    // A single label is a search that found no suffix; it names nothing outside and would only leak.
    if name.label_count() == 1 && matches!(query.record_type, record_type::A | record_type::AAAA) {
        return refusal(format!("{name} has no dot and is never looked up outside this network"));
    }
    Decision::Forward
}

fn refusal<'z>(text: String) -> Decision<'z> {
    Decision::Answer(Answer { error: Some(prohibited(text)), ..Answer::plain(ResponseCode::NxDomain) })
}

fn internal<'z>(zone: &'z Zone, query: &Query<'_>, asker: IpAddr) -> Answer<'z> {
    let name = &query.name;
    let apex = name.offset(name.label_count() - 1);
    let none = |code| Answer::local(apex, code, Data::None);
    let found = |data| Answer::local(apex, ResponseCode::NoError, data);
    if apex == 0 {
        return match query.record_type {
            record_type::SOA => found(Data::Soa),
            record_type::NS => found(Data::NameServer),
            record_type::ANY => found(Data::Any),
            _ => none(ResponseCode::NoError),
        };
    }
    match zone.lookup(name.octets(), asker) {
        Entry::Host(Addresses { ipv4, ipv6 }) => match (query.record_type, ipv4) {
            (record_type::A, Some(ipv4)) => found(Data::Ipv4(ipv4)),
            (record_type::AAAA, _) => found(Data::Ipv6(ipv6)),
            (record_type::ANY, _) => found(Data::Any),
            _ => none(ResponseCode::NoError),
        },
        Entry::Between => none(ResponseCode::NoError),
        Entry::Missing => none(ResponseCode::NxDomain),
    }
}

/// The answer to a reverse name of the network's IPv4 range, or one above it, or of somebody elsewhere who is there for
/// the asker.
fn reverse_ipv4<'z>(zone: &'z Zone, query: &Query<'_>, asker: IpAddr) -> Option<Answer<'z>> {
    let reverse = Reverse::<4>::read(&query.name, IN_ADDR_ARPA, decimal)?;
    let address = Ipv4Addr::from(reverse.units);
    let covers = u32::from(zone.cidr.netmask()) & mask32(reverse.given * 8);
    if reverse.given == 0 || (u32::from(address) ^ u32::from(zone.cidr.network())) & covers != 0 {
        return reverse.elsewhere(query, || zone.name_of(address.into(), asker));
    }
    let apex_units = usize::from(zone.cidr.prefix_len().div_ceil(8));
    Some(reverse.answer(query, apex_units, zone.name_of(address.into(), asker)))
}

/// The same for IPv6.
fn reverse_ipv6<'z>(zone: &'z Zone, query: &Query<'_>, asker: IpAddr) -> Option<Answer<'z>> {
    let reverse = Reverse::<32>::read(&query.name, IP6_ARPA, hexadecimal)?;
    let address = Ipv6Addr::from(nibbles(&reverse.units));
    let covers = u128::from(zone.cidr6.netmask()) & mask128(reverse.given * 4);
    if reverse.given == 0 || (u128::from(address) ^ u128::from(zone.cidr6.network())) & covers != 0 {
        return reverse.elsewhere(query, || zone.name_of(address.into(), asker));
    }
    let apex_units = usize::from(zone.cidr6.prefix_len().div_ceil(4));
    Some(reverse.answer(query, apex_units, zone.name_of(address.into(), asker)))
}

/// The address, or the leading part of one, that a reverse name spells (RFC 1035 §3.5, RFC 3596 §2.5).
struct Reverse<const N: usize> {
    /// The units in the order of the address; those that the name does not give are zero.
    units: [u8; N],
    given: usize,
    /// The name has labels before the unit that comes first, so it is not the name of an address.
    more: bool,
}

impl<const N: usize> Reverse<N> {
    fn read(name: &Name, suffix: &[u8], unit: impl Fn(&[u8]) -> Option<u8>) -> Option<Self> {
        if !name.is_within(suffix) {
            return None;
        }
        let labels = name.label_count() - 2;
        let mut reverse = Self { units: [0; N], given: 0, more: false };
        for index in (0..labels).rev() {
            match name.label(index).and_then(&unit) {
                Some(value) if reverse.given < N => {
                    reverse.units[reverse.given] = value;
                    reverse.given += 1;
                }
                _ => {
                    reverse.more = true;
                    break;
                }
            }
        }
        Some(reverse)
    }

    /// Answers for the whole name of an address outside the network's range that has a name here. What has none is not
    /// this network's to answer.
    fn elsewhere<'z>(&self, query: &Query<'_>, name: impl FnOnce() -> Option<&'z [u8]>) -> Option<Answer<'z>> {
        if self.given < N || self.more {
            return None;
        }
        name().map(|name| self.answer(query, N, Some(name)))
    }

    /// Answers for a name that lies in the network's range or above it; `apex_units` is how deep the zone begins.
    fn answer<'z>(&self, query: &Query<'_>, apex_units: usize, name: Option<&'z [u8]>) -> Answer<'z> {
        let labels = query.name.label_count();
        let depth = apex_units.min(self.given);
        let apex = query.name.offset(labels - 2 - depth);
        if self.given < N {
            let code = if self.more { ResponseCode::NxDomain } else { ResponseCode::NoError };
            let is_apex = !self.more && self.given == apex_units;
            return match query.record_type {
                record_type::SOA if is_apex => Answer::local(apex, code, Data::Soa),
                record_type::NS if is_apex => Answer::local(apex, code, Data::NameServer),
                _ => Answer::local(apex, code, Data::None),
            };
        }
        match (name, query.record_type) {
            (Some(name), record_type::PTR) if !self.more => {
                Answer::local(apex, ResponseCode::NoError, Data::Pointer(name))
            }
            (Some(_), record_type::ANY) if !self.more => Answer::local(apex, ResponseCode::NoError, Data::Any),
            (Some(_), _) if !self.more => Answer::local(apex, ResponseCode::NoError, Data::None),
            _ => Answer::local(apex, ResponseCode::NxDomain, Data::None),
        }
    }
}

fn decimal(label: &[u8]) -> Option<u8> {
    let canonical = label.len() == 1 || label.first() != Some(&b'0');
    std::str::from_utf8(label).ok().filter(|_| canonical && label.iter().all(u8::is_ascii_digit))?.parse().ok()
}

fn hexadecimal(label: &[u8]) -> Option<u8> {
    match label {
        [digit] => char::from(*digit).to_digit(16).map(|value| value as u8),
        _ => None,
    }
}

fn mask32(bits: usize) -> u32 {
    u32::MAX.checked_shl(32 - bits.min(32) as u32).unwrap_or(0)
}

fn mask128(bits: usize) -> u128 {
    u128::MAX.checked_shl(128 - bits.min(128) as u32).unwrap_or(0)
}

/// Names that have no meaning outside the place where they are asked: RFC 6761 (`localhost`, `invalid`, `test`),
/// RFC 6762 (`local`), RFC 7686 (`onion`), RFC 8375 (`home.arpa`), RFC 9462 §6.4 (`resolver.arpa`).
pub fn is_local_only(name: &Name) -> bool {
    const SUFFIXES: [&[u8]; 7] = [
        b"\x09localhost\0",
        b"\x05local\0",
        b"\x07invalid\0",
        b"\x04test\0",
        b"\x05onion\0",
        b"\x04home\x04arpa\0",
        b"\x08resolver\x04arpa\0",
    ];
    SUFFIXES.iter().any(|suffix| name.is_within(suffix))
}

/// Reverse names of addresses that are not the public internet's (RFC 6303 §4). A name that gives only a part of an
/// address is one of them when the first and the last address with that part are.
pub fn is_private_reverse(name: &Name) -> bool {
    let ends: [IpAddr; 2] = if let Some(reverse) = Reverse::<4>::read(name, IN_ADDR_ARPA, decimal) {
        let first = u32::from_be_bytes(reverse.units);
        [first, first | !mask32(reverse.given * 8)].map(|value| Ipv4Addr::from(value).into())
    } else if let Some(reverse) = Reverse::<32>::read(name, IP6_ARPA, hexadecimal) {
        let first = nibbles(&reverse.units);
        [first, first | !mask128(reverse.given * 4)].map(|value| Ipv6Addr::from(value).into())
    } else {
        return false;
    };
    !ends.into_iter().any(warren_model::policy::is_global)
}

fn nibbles(units: &[u8; 32]) -> u128 {
    units.iter().fold(0, |value, unit| value << 4 | u128::from(*unit))
}

fn reply(head: &Head<'_>, buffer: &mut [u8], udp: bool, answer: &Answer<'_>, zone: &Zone, kind: Kind) -> Outcome {
    match write(head, buffer, udp, answer, zone.generation as u32) {
        0 => Outcome::Ignore,
        length => Outcome::Reply { length, kind },
    }
}

fn write(head: &Head<'_>, buffer: &mut [u8], udp: bool, answer: &Answer<'_>, serial: u32) -> usize {
    let limit = if udp { head.udp_limit().min(buffer.len()) } else { buffer.len() };
    let buffer = &mut buffer[..limit];
    let status = Status { code: answer.code, authoritative: answer.apex.is_some(), truncated: false };
    write_whole(head, buffer, status, answer, serial)
        .or_else(|Full| {
            let status = Status { truncated: true, ..status };
            Writer::new(buffer, head, status)?.finish(head, answer.code, None)
        })
        .unwrap_or(0)
}

fn write_whole(
    head: &Head<'_>,
    buffer: &mut [u8],
    status: Status,
    answer: &Answer<'_>,
    serial: u32,
) -> Result<usize, Full> {
    let mut writer = Writer::new(buffer, head, status)?;
    let soa = |writer: &mut Writer<'_>| {
        writer.bytes(zone::GATEWAY)?;
        writer.bytes(b"\x0ahostmaster\x08internal\0")?;
        writer.u32(serial)?;
        // Refresh, retry and expire are for secondary servers, and there are none.
        for seconds in [3600, 600, 86400, NEGATIVE_TTL] {
            writer.u32(seconds)?;
        }
        Ok(())
    };
    match answer.data {
        Data::None => {
            if let Some(apex) = answer.apex {
                writer.record(Section::Authority, apex, record_type::SOA, NEGATIVE_TTL, soa)?;
            }
        }
        Data::Ipv4(address) => {
            writer.record(Section::Answer, 0, record_type::A, answer.ttl, |writer| writer.bytes(&address.octets()))?;
        }
        Data::Ipv6(address) => {
            writer
                .record(Section::Answer, 0, record_type::AAAA, answer.ttl, |writer| writer.bytes(&address.octets()))?;
        }
        Data::Pointer(name) => {
            writer.record(Section::Answer, 0, record_type::PTR, answer.ttl, |writer| writer.bytes(name))?;
        }
        Data::Any => {
            writer
                .record(Section::Answer, 0, record_type::HINFO, answer.ttl, |writer| writer.bytes(b"\x07RFC8482\0"))?;
        }
        Data::Soa => writer.record(Section::Answer, 0, record_type::SOA, NEGATIVE_TTL, soa)?,
        Data::NameServer => {
            writer.record(Section::Answer, 0, record_type::NS, TTL, |writer| writer.bytes(zone::GATEWAY))?;
        }
    }
    writer.finish(head, answer.code, answer.error.as_ref())
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
