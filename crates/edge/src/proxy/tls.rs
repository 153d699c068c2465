//! What a TLS connection says about itself before it is encrypted. Bytes in, an answer out; no socket and no clock.
//!
//! A parser here has to read a message exactly as the server will, so whatever could be read in two ways is refused:
//! extensions or names given twice, lengths that leave something over, a message that shares its record with another.

use warren_model::policy::HostName;

/// The longest first message that is read, in bytes on the wire. One with post-quantum key shares has about 2,000.
pub(crate) const MAX_HELLO: usize = 64 << 10;
/// RFC 8446 §5.1: the longest plaintext fragment of a record.
const MAX_FRAGMENT: usize = 1 << 14;
const RECORD_HEADER: usize = 5;
const MESSAGE_HEADER: usize = 4;

/// Record types and message types (RFC 8446 §5.1 and §4).
const CHANGE_CIPHER_SPEC: u8 = 20;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;

/// Extensions (the IANA registry of TLS ExtensionType values).
const SERVER_NAME: u16 = 0;
const EARLY_DATA: u16 = 42;
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;

/// Earlier forms of a hidden server name: drafts of ECH, and ESNI. Nobody sends these as GREASE.
const HIDDEN_NAME: [u16; 13] =
    [0xffce, 0xfd00, 0xfe01, 0xfe02, 0xfe03, 0xfe04, 0xfe05, 0xfe06, 0xfe07, 0xfe08, 0xfe09, 0xfe0a, 0xfe0b];

/// The random of a server's first message that asks for another ClientHello (RFC 8446 §4.1.3).
const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2, 0xa2, 0x11,
    0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

/// A fatal `access_denied` alert (RFC 8446 §6), in a record of its own.
pub(crate) const ACCESS_DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];

/// Why bytes are not a message that can be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("this is not TLS")]
    NotTls,
    #[error("the TLS connection does not begin with a ClientHello")]
    NotHello,
    #[error("the ClientHello is malformed: {0}")]
    Malformed(&'static str),
    #[error("the ClientHello is longer than 64 KiB")]
    TooLong,
}

/// What a ClientHello says in the open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientHello {
    pub server_name: ServerName,
    pub hidden: Hidden,
    /// Encrypted data follows before the server has answered.
    pub early_data: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ServerName {
    Absent,
    Host(HostName),
    /// Something that is no host name outside, made printable.
    Other(String),
}

/// Whether the message may carry another one that is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hidden {
    No,
    /// The outer form of `encrypted_client_hello`. By design, GREASE and the real thing look the same (RFC 9849 §6.2):
    /// what counts is the name outside, which is what the server in front of any hidden name goes by.
    Outer,
    /// A form that is never GREASE.
    Certainly,
}

/// Puts the first handshake message of one direction together, however it is cut.
#[derive(Debug)]
struct Assembler {
    message: Vec<u8>,
    header: [u8; RECORD_HEADER],
    header_length: usize,
    /// What is left of the record that is being read, and its type.
    left: usize,
    kind: u8,
    /// Bytes taken in so far.
    seen: usize,
    /// Records that may come before the message are passed over.
    second: bool,
    early_data: bool,
}

impl Assembler {
    fn new(second: bool, early_data: bool) -> Self {
        Self {
            message: Vec::new(),
            header: [0; RECORD_HEADER],
            header_length: 0,
            left: 0,
            kind: 0,
            seen: 0,
            second,
            early_data,
        }
    }

    /// Takes bytes in until there is `enough` of a message.
    fn push(&mut self, mut bytes: &[u8], enough: impl Fn(&[u8]) -> bool) -> Result<(), Unreadable> {
        let offered = bytes.len();
        while !bytes.is_empty() && !enough(&self.message) {
            if self.left == 0 {
                let wanted = RECORD_HEADER - self.header_length;
                let (taken, rest) = bytes.split_at(wanted.min(bytes.len()));
                self.header[self.header_length..][..taken.len()].copy_from_slice(taken);
                self.header_length += taken.len();
                bytes = rest;
                self.begin_record()?;
            } else {
                let (taken, rest) = bytes.split_at(self.left.min(bytes.len()));
                if self.kind == HANDSHAKE {
                    self.message.extend_from_slice(taken);
                }
                self.left -= taken.len();
                bytes = rest;
            }
        }
        self.seen += offered - bytes.len();
        if self.seen > MAX_HELLO { Err(Unreadable::TooLong) } else { Ok(()) }
    }

    /// Judges the header as far as it is there; a record begins when it is complete.
    fn begin_record(&mut self) -> Result<(), Unreadable> {
        let header = &self.header[..self.header_length];
        if let Some(kind) = header.first() {
            let passed_over = self.second
                && self.message.is_empty()
                && match *kind {
                    CHANGE_CIPHER_SPEC => true,
                    APPLICATION_DATA => self.early_data,
                    _ => false,
                };
            if *kind != HANDSHAKE && !passed_over {
                return Err(Unreadable::NotTls);
            }
        }
        if header.get(1).is_some_and(|major| *major != 3) || header.get(2).is_some_and(|minor| *minor > 4) {
            return Err(Unreadable::NotTls);
        }
        if let [kind, _, _, high, low] = *header {
            let length = usize::from(u16::from_be_bytes([high, low]));
            // An encrypted record is longer by its padding and tag (§5.2).
            let most = if kind == APPLICATION_DATA { MAX_FRAGMENT + 256 } else { MAX_FRAGMENT };
            if length == 0 || length > most {
                return Err(Unreadable::Malformed("a record has an impossible length"));
            }
            (self.kind, self.left, self.header_length) = (kind, length, 0);
        }
        Ok(())
    }
}

/// How long the message is that these bytes begin, with its header.
fn length_of(message: &[u8]) -> Option<usize> {
    let [_, high, middle, low, ..] = *message else { return None };
    Some(MESSAGE_HEADER + u32::from_be_bytes([0, high, middle, low]) as usize)
}

/// Reads a ClientHello from bytes as they arrive.
#[derive(Debug)]
pub(crate) struct HelloReader(Assembler);

impl HelloReader {
    /// For the first message of a connection.
    pub fn new() -> Self {
        Self(Assembler::new(false, false))
    }

    /// For the message that answers a server's wish for another one.
    pub fn second(early_data: bool) -> Self {
        Self(Assembler::new(true, early_data))
    }

    /// How many bytes were taken in: once the message is complete, all up to its end.
    pub fn consumed(&self) -> usize {
        self.0.seen
    }

    /// Takes the next bytes in; the message, once it is complete.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<ClientHello>, Unreadable> {
        let assembler = &mut self.0;
        assembler.push(bytes, |message| length_of(message).is_some_and(|length| message.len() >= length))?;
        let message = &assembler.message;
        if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(Unreadable::NotHello);
        }
        let Some(length) = length_of(message) else { return Ok(None) };
        if length > MAX_HELLO {
            return Err(Unreadable::TooLong);
        }
        if message.len() < length {
            return Ok(None);
        }
        if message.len() > length || assembler.left > 0 {
            return Err(Unreadable::Malformed("another message shares its record"));
        }
        read_hello(&message[MESSAGE_HEADER..]).map(Some)
    }
}

/// Whether a server wants another ClientHello; reads the beginning of what it sends.
#[derive(Debug)]
pub(crate) struct AnswerReader(Assembler);

impl AnswerReader {
    pub fn new() -> Self {
        Self(Assembler::new(false, false))
    }

    /// Takes the next bytes in; `None` until the answer is clear. What is no ServerHello ends the handshake.
    pub fn push(&mut self, bytes: &[u8]) -> Option<bool> {
        /// Type, length, version, random.
        const ENOUGH: usize = MESSAGE_HEADER + 2 + RETRY.len();
        match self.0.push(bytes, |message| message.len() >= ENOUGH) {
            Err(_) => Some(false),
            Ok(_) if self.0.message.first().is_some_and(|kind| *kind != SERVER_HELLO) => Some(false),
            Ok(_) => self.0.message.get(ENOUGH - RETRY.len()..ENOUGH).map(|random| random == RETRY),
        }
    }
}

/// Reads the body of a ClientHello (RFC 8446 §4.1.2).
fn read_hello(body: &[u8]) -> Result<ClientHello, Unreadable> {
    const SHORT: Unreadable = Unreadable::Malformed("it ends too early");
    let mut body = Bytes(body);
    body.take(2 + 32).ok_or(SHORT)?;
    let session = body.vector8().ok_or(SHORT)?;
    let suites = body.vector16().ok_or(SHORT)?;
    let compressions = body.vector8().ok_or(SHORT)?;
    if session.0.len() > 32 || suites.0.is_empty() || suites.0.len() % 2 != 0 || compressions.0.is_empty() {
        return Err(Unreadable::Malformed("a field has an impossible length"));
    }
    let mut hello = ClientHello { server_name: ServerName::Absent, hidden: Hidden::No, early_data: false };
    if body.0.is_empty() {
        return Ok(hello);
    }
    let mut extensions = body.vector16().ok_or(SHORT)?;
    if !body.0.is_empty() {
        return Err(Unreadable::Malformed("something follows its extensions"));
    }
    let mut known = Vec::with_capacity(32);
    while !extensions.0.is_empty() {
        let kind = extensions.u16().ok_or(SHORT)?;
        let content = extensions.vector16().ok_or(SHORT)?;
        known.push(kind);
        match kind {
            SERVER_NAME => hello.server_name = read_server_name(content)?,
            EARLY_DATA => hello.early_data = true,
            ENCRYPTED_CLIENT_HELLO => hello.hidden = hello.hidden.and(read_encrypted(content)?),
            _ if HIDDEN_NAME.contains(&kind) => hello.hidden = Hidden::Certainly,
            _ => {}
        }
    }
    known.sort_unstable();
    if known.starts_with(&[SERVER_NAME; 2]) {
        return Err(SEVERAL_NAMES);
    }
    if known.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Unreadable::Malformed("an extension is there twice"));
    }
    Ok(hello)
}

impl Hidden {
    fn and(self, other: Self) -> Self {
        if self == Self::Certainly { self } else { other }
    }
}

const SEVERAL_NAMES: Unreadable = Unreadable::Malformed("it has more than one server name");

/// Reads a list of server names (RFC 6066 §3), which has one.
fn read_server_name(mut content: Bytes<'_>) -> Result<ServerName, Unreadable> {
    const BAD: Unreadable = Unreadable::Malformed("its server name is not one host name");
    const HOST_NAME: u8 = 0;
    let mut list = content.vector16().ok_or(BAD)?;
    let kind = list.u8().ok_or(BAD)?;
    let name = list.vector16().ok_or(BAD)?;
    if kind != HOST_NAME || name.0.is_empty() || !content.0.is_empty() {
        return Err(BAD);
    }
    if !list.0.is_empty() {
        return Err(SEVERAL_NAMES);
    }
    let host = std::str::from_utf8(name.0).ok().and_then(|text| text.parse().ok());
    Ok(host
        .map_or_else(|| ServerName::Other(name.0.iter().take(80).copied().map(printable).collect()), ServerName::Host))
}

fn printable(byte: u8) -> char {
    if byte.is_ascii_graphic() { char::from(byte) } else { '?' }
}

/// Reads an `encrypted_client_hello` (RFC 9849 §5).
fn read_encrypted(mut content: Bytes<'_>) -> Result<Hidden, Unreadable> {
    const BAD: Unreadable = Unreadable::Malformed("its encrypted ClientHello is neither real nor GREASE");
    const OUTER: u8 = 0;
    match content.u8() {
        Some(OUTER) => {
            let mut fields = || {
                // The cipher suite (two numbers) and the id of the configuration.
                content.take(2 + 2 + 1)?;
                let _key = content.vector16()?;
                let payload = content.vector16()?;
                (!payload.0.is_empty() && content.0.is_empty()).then_some(Hidden::Outer)
            };
            fields().ok_or(BAD)
        }
        // The inner form, which belongs inside an encryption.
        Some(1) => Ok(Hidden::Certainly),
        _ => Err(BAD),
    }
}

/// Bytes that are read from the front.
#[derive(Debug, Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector8(&mut self) -> Option<Self> {
        let length = self.u8()?;
        self.take(length.into()).map(Self)
    }

    fn vector16(&mut self) -> Option<Self> {
        let length = self.u16()?;
        self.take(length.into()).map(Self)
    }
}
