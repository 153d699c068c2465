//! DNS messages as bytes (RFC 1035 §4, RFC 6891).

use std::fmt;

/// The length of a message header (RFC 1035 §4.1.1).
pub const HEADER: usize = 12;
/// The longest name, with its length octets and the root (RFC 1035 §2.3.4).
pub const MAX_NAME: usize = 255;
/// What a UDP message may hold without EDNS (RFC 1035 §2.3.4).
pub const PLAIN_UDP: usize = 512;
/// The largest UDP message that is sent or asked for: it fits an IPv6 minimum-MTU packet (DNS flag day 2020).
pub const MAX_UDP: usize = 1232;

/// Record types (IANA DNS parameters).
pub mod record_type {
    pub const A: u16 = 1;
    pub const NS: u16 = 2;
    pub const SOA: u16 = 6;
    pub const PTR: u16 = 12;
    pub const HINFO: u16 = 13;
    pub const AAAA: u16 = 28;
    pub const OPT: u16 = 41;
    pub const ANY: u16 = 255;
}

/// The class of the Internet.
pub const CLASS_IN: u16 = 1;

/// Bits of the second 16-bit word of the header.
mod flag {
    pub const RESPONSE: u16 = 1 << 15;
    pub const OPCODE: u16 = 0b1111 << 11;
    pub const AUTHORITATIVE: u16 = 1 << 10;
    pub const TRUNCATED: u16 = 1 << 9;
    pub const RECURSION_DESIRED: u16 = 1 << 8;
    pub const RECURSION_AVAILABLE: u16 = 1 << 7;
    pub const CHECKING_DISABLED: u16 = 1 << 4;
}

/// Response codes (RFC 1035 §4.1.1, RFC 6891 §9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseCode {
    NoError,
    FormErr,
    ServFail,
    NxDomain,
    NotImp,
    Refused,
    BadVersion,
}

impl ResponseCode {
    /// The 12-bit value; everything above four bits travels in the OPT record.
    fn value(self) -> u16 {
        match self {
            Self::NoError => 0,
            Self::FormErr => 1,
            Self::ServFail => 2,
            Self::NxDomain => 3,
            Self::NotImp => 4,
            Self::Refused => 5,
            Self::BadVersion => 16,
        }
    }
}

/// Extended DNS error codes (RFC 8914 §4).
pub mod extended_error {
    pub const PROHIBITED: u16 = 18;
    pub const NO_REACHABLE_AUTHORITY: u16 = 22;
    pub const NETWORK_ERROR: u16 = 23;
}

/// An extended DNS error: a code and a sentence for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtendedError {
    pub code: u16,
    pub text: String,
}

/// A name in wire form with ASCII letters in lower case, and where its labels begin.
#[derive(Clone, Copy)]
pub struct Name {
    octets: [u8; MAX_NAME],
    len: u8,
    starts: [u8; 127],
    labels: u8,
}

impl Name {
    /// Reads an uncompressed name; returns it and the bytes after it.
    ///
    /// Compression has no place in the first question of a message: there is nothing before it to point at.
    fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let mut name = Self { octets: [0; MAX_NAME], len: 0, starts: [0; 127], labels: 0 };
        let mut at = 0usize;
        loop {
            let length = usize::from(*bytes.get(at)?);
            if length == 0 {
                break;
            }
            // 63 is the longest label; larger values are pointers and reserved forms.
            if length > 63 || at + length + 2 > MAX_NAME {
                return None;
            }
            let label = bytes.get(at + 1..at + 1 + length)?;
            *name.starts.get_mut(usize::from(name.labels))? = at as u8;
            name.labels += 1;
            name.octets[at] = length as u8;
            for (to, from) in name.octets[at + 1..].iter_mut().zip(label) {
                *to = from.to_ascii_lowercase();
            }
            at += length + 1;
        }
        name.len = at as u8 + 1;
        Some((name, &bytes[at + 1..]))
    }

    /// The whole name, with the root's zero octet.
    pub fn octets(&self) -> &[u8] {
        &self.octets[..usize::from(self.len)]
    }

    pub fn label_count(&self) -> usize {
        usize::from(self.labels)
    }

    /// The label with this index; 0 is the leftmost.
    pub fn label(&self, index: usize) -> Option<&[u8]> {
        let start = usize::from(*self.starts.get(..self.label_count())?.get(index)?);
        let length = usize::from(self.octets[start]);
        self.octets.get(start + 1..start + 1 + length)
    }

    /// Where the name that begins with this label begins, in octets.
    pub fn offset(&self, index: usize) -> usize {
        self.starts[..self.label_count()].get(index).map_or(usize::from(self.len) - 1, |start| usize::from(*start))
    }

    /// Whether the name is `suffix`, a name in wire form in lower case, or lies below it.
    pub fn is_within(&self, suffix: &[u8]) -> bool {
        let Some(start) = usize::from(self.len).checked_sub(suffix.len()) else { return false };
        let begins_label = start + 1 == usize::from(self.len)
            || self.starts[..self.label_count()].iter().any(|at| usize::from(*at) == start);
        begins_label && self.octets()[start..] == *suffix
    }
}

/// As a person writes it, without a trailing dot; octets outside printable ASCII as `\DDD` (RFC 1035 §5.1).
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.labels == 0 {
            return f.write_str(".");
        }
        for index in 0..self.label_count() {
            if index > 0 {
                f.write_str(".")?;
            }
            for octet in self.label(index).unwrap_or_default() {
                match octet {
                    b'.' | b'\\' => write!(f, "\\{}", char::from(*octet))?,
                    0x21..=0x7e => write!(f, "{}", char::from(*octet))?,
                    _ => write!(f, "\\{octet:03}")?,
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A text such as `worker.vm.internal` in wire form and lower case; `None` when it is not a host name.
///
/// Labels hold letters, digits, hyphens and underscores.
pub fn encode(text: &str) -> Option<Box<[u8]>> {
    let mut octets = Vec::with_capacity(text.len() + 2);
    for label in text.split('.') {
        let valid = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if label.is_empty() || label.len() > 63 || !valid {
            return None;
        }
        octets.push(label.len() as u8);
        octets.extend(label.bytes().map(|b| b.to_ascii_lowercase()));
    }
    octets.push(0);
    (octets.len() <= MAX_NAME).then(|| octets.into_boxed_slice())
}

/// What a client says about its EDNS support.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns {
    /// The largest UDP message that the client takes, in bytes, as it says.
    pub payload: u16,
}

/// The parts of a message that every answer repeats.
#[derive(Debug, Clone, Copy)]
pub struct Head<'p> {
    pub id: u16,
    flags: u16,
    /// The question exactly as it was asked, letter case included (0x20); empty when there was none to repeat.
    pub question: &'p [u8],
    pub edns: Option<Edns>,
}

impl Head<'_> {
    /// How long the answer may be over UDP, in bytes.
    pub fn udp_limit(&self) -> usize {
        self.edns.map_or(PLAIN_UDP, |edns| usize::from(edns.payload).clamp(PLAIN_UDP, MAX_UDP))
    }
}

/// A well-formed question.
#[derive(Debug, Clone, Copy)]
pub struct Query<'p> {
    pub head: Head<'p>,
    pub name: Name,
    pub record_type: u16,
    pub class: u16,
}

/// A message that is not a question that can be answered.
#[derive(Debug, Clone, Copy)]
pub enum Malformed<'p> {
    /// Not worth an answer: too short, or itself an answer.
    Ignore,
    Answer(Head<'p>, ResponseCode),
}

impl<'p> Query<'p> {
    pub fn parse(packet: &'p [u8]) -> Result<Self, Malformed<'p>> {
        let word = |index: usize| Some(u16::from_be_bytes([*packet.get(index * 2)?, *packet.get(index * 2 + 1)?]));
        let (Some(id), Some(flags), Some(questions)) = (word(0), word(1), word(2)) else {
            return Err(Malformed::Ignore);
        };
        let (Some(answers), Some(authorities), Some(additionals)) = (word(3), word(4), word(5)) else {
            return Err(Malformed::Ignore);
        };
        if flags & flag::RESPONSE != 0 {
            return Err(Malformed::Ignore);
        }
        let mut head = Head { id, flags, question: &[], edns: None };
        if flags & flag::OPCODE != 0 {
            return Err(Malformed::Answer(head, ResponseCode::NotImp));
        }
        if questions != 1 {
            return Err(Malformed::Answer(head, ResponseCode::FormErr));
        }
        let body = &packet[HEADER..];
        let parsed = Name::read(body).and_then(|(name, rest)| match rest {
            [t0, t1, c0, c1, rest @ ..] => {
                Some((name, u16::from_be_bytes([*t0, *t1]), u16::from_be_bytes([*c0, *c1]), rest))
            }
            _ => None,
        });
        let Some((name, record_type, class, mut rest)) = parsed else {
            return Err(Malformed::Answer(head, ResponseCode::FormErr));
        };
        head.question = &body[..body.len() - rest.len()];

        let before = u32::from(answers) + u32::from(authorities);
        for index in 0..before + u32::from(additionals) {
            let Some((record, after)) = Record::read(rest) else {
                return Err(Malformed::Answer(head, ResponseCode::FormErr));
            };
            rest = after;
            if record.record_type == record_type::OPT && index >= before {
                if head.edns.is_some() || !record.owner_is_root {
                    return Err(Malformed::Answer(head, ResponseCode::FormErr));
                }
                head.edns = Some(Edns { payload: record.class });
                if record.ttl.to_be_bytes()[1] != 0 {
                    return Err(Malformed::Answer(head, ResponseCode::BadVersion));
                }
            }
        }
        Ok(Self { head, name, record_type, class })
    }
}

/// A record of which only the frame matters.
struct Record {
    owner_is_root: bool,
    record_type: u16,
    class: u16,
    ttl: u32,
}

impl Record {
    fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let mut label = 0usize;
        let after_owner = loop {
            match usize::from(*bytes.get(label)?) {
                0 => break label + 1,
                length @ 1..=63 => label += length + 1,
                // A pointer ends the name.
                192.. => break label + 2,
                _ => return None,
            }
        };
        let fixed = bytes.get(after_owner..after_owner + 10)?;
        let end = after_owner + 10 + usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        let record = Self {
            owner_is_root: bytes[0] == 0,
            record_type: u16::from_be_bytes([fixed[0], fixed[1]]),
            class: u16::from_be_bytes([fixed[2], fixed[3]]),
            ttl: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
        };
        bytes.get(end..).map(|rest| (record, rest))
    }
}

/// The buffer holds no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// Which section a record goes into; sections come in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    Answer,
    Authority,
}

/// Writes one answer into a buffer.
pub struct Writer<'b> {
    buffer: &'b mut [u8],
    len: usize,
    counts: [u16; 2],
}

/// The bits of an answer's header that are not copied from the question.
#[derive(Debug, Clone, Copy)]
pub struct Status {
    pub code: ResponseCode,
    pub authoritative: bool,
    pub truncated: bool,
}

impl<'b> Writer<'b> {
    /// Starts an answer to `head`; at most `buffer.len()` bytes.
    pub fn new(buffer: &'b mut [u8], head: &Head<'_>, status: Status) -> Result<Self, Full> {
        let mut flags = flag::RESPONSE | flag::RECURSION_AVAILABLE | (status.code.value() & 0xf);
        flags |= head.flags & (flag::OPCODE | flag::RECURSION_DESIRED | flag::CHECKING_DISABLED);
        if status.authoritative {
            flags |= flag::AUTHORITATIVE;
        }
        if status.truncated {
            flags |= flag::TRUNCATED;
        }
        let mut writer = Self { buffer, len: 0, counts: [0; 2] };
        writer.u16(head.id)?;
        writer.u16(flags)?;
        writer.u16(u16::from(!head.question.is_empty()))?;
        writer.bytes(&[0; 6])?;
        writer.bytes(head.question)?;
        Ok(writer)
    }

    /// Writes a record whose owner is the part of the question's name that begins at `owner`, an offset in octets.
    pub fn record(
        &mut self,
        section: Section,
        owner: usize,
        record_type: u16,
        ttl: u32,
        data: impl FnOnce(&mut Self) -> Result<(), Full>,
    ) -> Result<(), Full> {
        self.u16(0xc000 | (HEADER + owner) as u16)?;
        self.u16(record_type)?;
        self.u16(CLASS_IN)?;
        self.u32(ttl)?;
        let length_at = self.len;
        self.u16(0)?;
        data(self)?;
        let length = (self.len - length_at - 2) as u16;
        self.buffer[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
        self.counts[section as usize] += 1;
        Ok(())
    }

    /// Ends the message, with an OPT record when the question had one; returns the length of the message. The
    /// sentence of an extended error is cut where the space ends.
    pub fn finish(mut self, head: &Head<'_>, code: ResponseCode, error: Option<&ExtendedError>) -> Result<usize, Full> {
        let mut additionals = 0u16;
        if head.edns.is_some() {
            // 11 octets for the OPT record, 6 for the option and its code.
            let room = self.buffer.len().checked_sub(self.len + 17);
            let option = error.zip(room);
            self.bytes(&[0])?;
            self.u16(record_type::OPT)?;
            self.u16(MAX_UDP as u16)?;
            self.u32(u32::from(code.value() >> 4) << 24)?;
            match option {
                None => self.u16(0)?,
                Some((error, room)) => {
                    let text = &error.text[..error.text.floor_char_boundary(room)];
                    // Option 15 is the extended DNS error (RFC 8914 §2).
                    let length = text.len() as u16 + 2;
                    self.u16(length + 4)?;
                    self.u16(15)?;
                    self.u16(length)?;
                    self.u16(error.code)?;
                    self.bytes(text.as_bytes())?;
                }
            }
            additionals = 1;
        }
        for (index, count) in [self.counts[0], self.counts[1], additionals].into_iter().enumerate() {
            self.buffer[6 + index * 2..8 + index * 2].copy_from_slice(&count.to_be_bytes());
        }
        Ok(self.len)
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), Full> {
        self.buffer.get_mut(self.len..self.len + bytes.len()).ok_or(Full)?.copy_from_slice(bytes);
        self.len += bytes.len();
        Ok(())
    }

    pub fn u16(&mut self, value: u16) -> Result<(), Full> {
        self.bytes(&value.to_be_bytes())
    }

    pub fn u32(&mut self, value: u32) -> Result<(), Full> {
        self.bytes(&value.to_be_bytes())
    }
}
