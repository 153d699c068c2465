//! Subjects and targets as texts.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{HostName, HostPattern, RuleId, Subject, Target, TestTarget};

/// A text that names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSubject {
    #[error("{0:?} names nobody: write net:NETWORK, NETWORK/tag:TAG, NETWORK/MACHINE, an address or a CIDR")]
    Malformed(String),
    #[error("{0} has bits set after its prefix: write {1}")]
    HostBits(IpNet, IpNet),
}

impl FromStr for Subject {
    type Err = InvalidSubject;

    fn from_str(text: &str) -> Result<Self, InvalidSubject> {
        let malformed = || InvalidSubject::Malformed(text.chars().take(80).collect());
        if let Some(range) = range(text)? {
            return Ok(Self::Range(None, range));
        }
        if let Some(network) = text.strip_prefix("net:") {
            return network.parse().map(Self::Network).map_err(|_| malformed());
        }
        let (network, rest) = text.split_once('/').ok_or_else(malformed)?;
        let network = network.parse().map_err(|_| malformed())?;
        if let Some(range) = range(rest)? {
            return Ok(Self::Range(Some(network), range));
        }
        match rest.strip_prefix("tag:") {
            Some(tag) => Ok(Self::Tag(network, tag.parse().map_err(|_| malformed())?)),
            None => Ok(Self::Machine(network, rest.parse().map_err(|_| malformed())?)),
        }
    }
}

/// An address or a CIDR; a single address is a range of one.
fn range(text: &str) -> Result<Option<IpNet>, InvalidSubject> {
    if let Ok(address) = text.parse::<std::net::IpAddr>() {
        return Ok(Some(IpNet::from(address)));
    }
    match text.parse::<IpNet>() {
        Ok(range) if range.trunc() != range => Err(InvalidSubject::HostBits(range, range.trunc())),
        Ok(range) => Ok(Some(range)),
        Err(_) => Ok(None),
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => write!(f, "net:{network}"),
            Self::Tag(network, tag) => write!(f, "{network}/tag:{tag}"),
            Self::Machine(network, machine) => write!(f, "{network}/{machine}"),
            Self::Range(Some(network), range) => write!(f, "{network}/{range}"),
            Self::Range(None, range) => write!(f, "{range}"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inside(subject) => subject.fmt(f),
            Self::Outside(pattern) => pattern.fmt(f),
        }
    }
}

impl fmt::Display for TestTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inside(subject) => subject.fmt(f),
            Self::Outside(name) => name.fmt(f),
        }
    }
}

/// A text that is not the id of a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the id of a rule: use 1 to 63 of a-z, 0-9, '-', '_' and '.', starting with a letter or digit")]
pub struct InvalidRuleId(String);

impl FromStr for RuleId {
    type Err = InvalidRuleId;

    /// Ids of built-in rules are not chosen, and so not read.
    fn from_str(text: &str) -> Result<Self, InvalidRuleId> {
        let valid = (1..=63).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b));
        if valid { Ok(Self(text.to_owned())) } else { Err(InvalidRuleId(text.chars().take(80).collect())) }
    }
}

impl Serialize for Subject {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Subject {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

/// `"net:dev"` or `{"name": "*.example.com"}`.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written<N> {
    Inside(Subject),
    Outside { name: N },
}

macro_rules! target {
    ($target:ident, $name:ty) => {
        impl Serialize for $target {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                match self {
                    Self::Inside(subject) => Written::<$name>::Inside(subject.clone()),
                    Self::Outside(name) => Written::Outside { name: name.clone() },
                }
                .serialize(s)
            }
        }

        impl<'de> Deserialize<'de> for $target {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                Ok(match Written::<$name>::deserialize(d)? {
                    Written::Inside(subject) => Self::Inside(subject),
                    Written::Outside { name } => Self::Outside(name),
                })
            }
        }
    };
}

target!(Target, HostPattern);
target!(TestTarget, HostName);
