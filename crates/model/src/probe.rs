//! What the audit's probe in a machine is told, and what it says.
//!
//! One probe is one process in one machine that speaks lines of JSON: it takes a [`Setup`] and answers [`Listening`],
//! takes [`Attempts`] and answers [`Observations`], and, when its stdin ends, answers [`Arrivals`]. So every listener
//! is there before the first attempt, and nothing is collected before the last. Everything that it says is untrusted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Deserializer, Serialize};

/// The argument that makes the agent's program a probe.
pub const COMMAND: &str = "probe";
/// The most attempts that one probe makes.
pub const MOST_ATTEMPTS: usize = 4096;
/// The most ports on which one probe listens.
pub const MOST_PORTS: usize = 64;
/// How long one attempt waits for an answer, in milliseconds.
pub const PATIENCE_MS: u64 = 2000;
/// The most bytes that one line of a probe may have.
pub const LONGEST_LINE: usize = 4 << 20;

/// What an attempt carries so that whoever gets it can be told: 32 lower-case hexadecimal digits, chosen at random.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Token(String);

/// A text that is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token is 32 lower-case hexadecimal digits")]
pub struct InvalidToken;

impl Token {
    /// The length in bytes.
    pub const LENGTH: usize = 32;

    pub fn from_random(random: u128) -> Self {
        Self(format!("{random:032x}"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first token in these bytes.
    pub fn find(bytes: &[u8]) -> Option<Self> {
        bytes.windows(Self::LENGTH).find_map(|window| std::str::from_utf8(window).ok()?.parse().ok())
    }
}

impl std::str::FromStr for Token {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let valid =
            text.len() == Self::LENGTH && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if valid { Ok(Self(text.to_owned())) } else { Err(InvalidToken) }
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    /// The machine's own addresses. On each, one TCP and one UDP port more are opened that the kernel chooses.
    pub addresses: Vec<IpAddr>,
    /// Ports that policy speaks about.
    pub tcp: BTreeSet<u16>,
    pub udp: BTreeSet<u16>,
    /// The probe ends after this, whatever happens.
    pub lifetime_ms: u64,
}

/// Where it listens.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listening {
    /// The ports that the kernel chose; the same number on every address.
    pub free_tcp: Option<u16>,
    pub free_udp: Option<u16>,
    pub tcp: BTreeMap<u16, Holder>,
    pub udp: BTreeMap<u16, Holder>,
    /// Datagrams and echo requests are seen on every port, whoever listens there.
    pub sees_all: bool,
    /// What did not work, for a person.
    pub problems: Vec<String>,
}

/// Who answers on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Holder {
    Probe,
    /// Something in the machine had the port already.
    Service,
    Nobody,
}

/// What to try, all of it at about the same time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attempts {
    pub attempts: Vec<Attempt>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Attempt {
    /// Connects and sends the token.
    Tcp { to: SocketAddr, token: Token },
    /// Sends the token in a datagram, up to three times.
    Udp { to: SocketAddr, token: Token },
    /// Sends the token in an echo request, up to three times.
    Icmp { to: IpAddr, token: Token },
    /// Asks this server over UDP for the addresses of a name.
    Lookup { server: SocketAddr, name: String },
}

/// What became of the attempts, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Observations {
    pub outcomes: Vec<Outcome>,
}

/// What whoever made an attempt saw of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Outcome {
    /// The far end sent the token back.
    Echoed,
    /// The far end took the connection, and did not send the token back.
    Connected,
    /// A TCP reset, or "port unreachable".
    Reset,
    /// An ICMP message that this is prohibited, by whom.
    Prohibited { by: Option<IpAddr> },
    /// An ICMP message that there is no way, by whom.
    Unreachable { by: Option<IpAddr> },
    /// Nothing came back.
    Silent,
    /// The name has these addresses.
    Addresses { addresses: Vec<IpAddr> },
    /// The server answered without an address: its code (RFC 1035), and the extended one (RFC 8914).
    NoAddress { code: u8, extended: Option<u16> },
    /// It could not be tried at all.
    NotTried { why: String },
}

/// What came in, by token: from where, and to which port (none for an echo request).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arrivals {
    pub arrivals: BTreeMap<Token, Arrival>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arrival {
    pub from: IpAddr,
    pub port: Option<u16>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_among_other_bytes() {
        let token = Token::from_random(0xfeed);
        let mut bytes = vec![0xff, b'G', b'0'];
        bytes.extend(token.as_str().bytes());
        bytes.push(0);
        // A digit before the token shifts the first window that reads as one.
        assert!(Token::find(&bytes).is_some());
        assert_eq!(Token::find(token.as_str().as_bytes()), Some(token));
        assert_eq!(Token::find(b"short"), None);
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for text in ["", "0", &"A".repeat(32), &"g".repeat(32), &"0".repeat(33)] {
            assert!(text.parse::<Token>().is_err(), "{text}");
        }
    }
}
