//! Ports and protocols of rules.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A protocol that rules tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    Tcp,
    Udp,
    /// ICMP and ICMPv6.
    Icmp,
    /// Every other protocol: only a rule without ports is about it.
    Other,
}

impl Protocol {
    pub const ALL: [Self; 4] = [Self::Tcp, Self::Udp, Self::Icmp, Self::Other];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
            Self::Other => "other",
        }
    }

    /// Of an IP protocol number (the IANA registry of protocol numbers).
    pub fn of_number(number: u8) -> Self {
        match number {
            6 => Self::Tcp,
            17 => Self::Udp,
            1 | 58 => Self::Icmp,
            _ => Self::Other,
        }
    }

    pub fn has_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is spoken over a connection to a name outside, and so what the proxy checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Application {
    /// TLS whose server name is the rule's name: what port 443 has when nothing is said.
    Tls,
    /// HTTP whose every request is for the rule's name: what port 80 has when nothing is said.
    Http,
    /// Anything: what every other port has when nothing is said. TLS and HTTP are recognized and checked all the same.
    Tcp,
}

impl Application {
    /// What a port has when its rule does not say.
    pub fn by_port(port: u16) -> Self {
        match port {
            443 => Self::Tls,
            80 => Self::Http,
            _ => Self::Tcp,
        }
    }
}

/// First and last port, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    pub const ALL: Self = Self { first: 0, last: u16::MAX };

    pub fn contains(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

/// `tcp/5432`, `udp/5000-5010`, `tcp` (every port of it) or `icmp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ports {
    /// Never [`Protocol::Other`].
    pub protocol: Protocol,
    /// [`PortRange::ALL`] for ICMP.
    pub range: PortRange,
}

impl Ports {
    pub fn cover(&self, protocol: Protocol, port: Option<u16>) -> bool {
        self.protocol == protocol && port.is_none_or(|port| self.range.contains(port))
    }

    /// The port, when it is a single one.
    pub fn single(&self) -> Option<u16> {
        (self.range.first == self.range.last).then_some(self.range.first)
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.range {
            PortRange::ALL => write!(f, "{}", self.protocol),
            PortRange { first, last } if first == last => write!(f, "{}/{first}", self.protocol),
            PortRange { first, last } => write!(f, "{}/{first}-{last}", self.protocol),
        }
    }
}

/// A text that does not say ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no port: write tcp/5432, udp/5000-5010, tcp, udp or icmp, with ports from 1 to 65535")]
pub struct InvalidPorts(String);

impl FromStr for Ports {
    type Err = InvalidPorts;

    fn from_str(text: &str) -> Result<Self, InvalidPorts> {
        let parse = || {
            let (protocol, range) = match text.split_once('/') {
                Some((protocol, range)) => (protocol, Some(range)),
                None => (text, None),
            };
            let protocol = match protocol {
                "tcp" => Protocol::Tcp,
                "udp" => Protocol::Udp,
                "icmp" if range.is_none() => Protocol::Icmp,
                _ => return None,
            };
            let Some(range) = range else { return Some(Self { protocol, range: PortRange::ALL }) };
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let port = |text: &str| {
                let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
                text.parse::<u16>().ok().filter(|port| digits && *port > 0)
            };
            let range = PortRange { first: port(first)?, last: port(last)? };
            (range.first <= range.last).then_some(Self { protocol, range })
        };
        parse().ok_or_else(|| InvalidPorts(text.chars().take(64).collect()))
    }
}

impl Serialize for Ports {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_read_back_as_written() {
        for text in ["tcp/5432", "udp/5000-5010", "tcp", "udp", "icmp", "tcp/1-65535"] {
            assert_eq!(text.parse::<Ports>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_says_no_ports_is_refused() {
        for text in
            ["", "5432", "tcp/", "tcp/0", "tcp/65536", "tcp/2-1", "tcp/+1", "icmp/8", "other", "tcp/1-2-3", "TCP/1"]
        {
            assert!(text.parse::<Ports>().is_err(), "{text}");
        }
    }
}
