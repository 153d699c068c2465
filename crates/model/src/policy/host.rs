//! Host names outside, and patterns of them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest name, in bytes, without a trailing dot (RFC 1035 §2.3.4).
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// The names that providers put in the open part of an encrypted ClientHello: many sites hide behind each, so that
/// allowing one would allow them all.
const OUTER_NAMES: [&str; 2] = ["cloudflare-ech.com", "defo.ie"];

/// Why a text is not a host name or pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHost {
    #[error(
        "{0:?} is not a host name: use labels of 1 to 63 letters, digits, '-' and '_', joined by dots, 253 bytes at most"
    )]
    Malformed(String),
    #[error("{0:?} is an address: write it as a range instead, like 203.0.113.7/32")]
    Address(String),
    #[error("{0:?} has one label: names outside have at least two, like example.com")]
    SingleLabel(String),
    #[error("{0:?} allows everything below a public suffix: name the domain, like *.example.{1}")]
    PublicSuffix(String, String),
    #[error("{0:?} is a shared outer name for encrypted ClientHello: allowing it would allow every site behind it")]
    OuterName(String),
    #[error("{0:?} is inside: names outside never end in .internal, .local, .localhost or .arpa")]
    Inside(String),
}

/// The name of a host outside, in lower case and without a trailing dot; at least two labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(String);

impl HostName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn labels(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('.')
    }
}

impl FromStr for HostName {
    type Err = InvalidHost;

    /// Letter case and one trailing dot make no difference.
    fn from_str(text: &str) -> Result<Self, InvalidHost> {
        let shown = || text.chars().take(80).collect::<String>();
        let name = text.strip_suffix('.').unwrap_or(text);
        let labels = || name.split('.');
        let valid = |label: &str| {
            (1..=MAX_LABEL).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        // RFC 3986 §3.2.2 and the URL standard: what ends in a number is an address, however odd.
        let last = labels().next_back().unwrap_or_default();
        let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
        let number = !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit())
            || hex.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if number || text.parse::<std::net::IpAddr>().is_ok() || text.starts_with('[') {
            return Err(InvalidHost::Address(shown()));
        }
        if name.len() > MAX_NAME || !labels().all(valid) {
            return Err(InvalidHost::Malformed(shown()));
        }
        if labels().count() < 2 {
            return Err(InvalidHost::SingleLabel(shown()));
        }
        let name = name.to_ascii_lowercase();
        let inside = ["internal", "local", "localhost", "arpa"];
        if name.rsplit('.').next().is_some_and(|last| inside.contains(&last)) {
            return Err(InvalidHost::Inside(shown()));
        }
        Ok(Self(name))
    }
}

/// Which names a rule is about: `api.example.com`, `*.example.com` (one label more) or `**.example.com` (one or more).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    Exact(HostName),
    /// Exactly one label in front of the name.
    OneLabel(HostName),
    /// One label or more in front of the name.
    AnyDepth(HostName),
}

impl HostPattern {
    pub fn matches(&self, name: &HostName) -> bool {
        let below = |suffix: &HostName| {
            name.0
                .strip_suffix(suffix.as_str())
                .and_then(|front| front.strip_suffix('.'))
                .filter(|front| !front.is_empty())
        };
        match self {
            Self::Exact(exact) => exact == name,
            Self::OneLabel(suffix) => below(suffix).is_some_and(|front| !front.contains('.')),
            Self::AnyDepth(suffix) => below(suffix).is_some(),
        }
    }

    /// The name without the wildcard.
    pub fn name(&self) -> &HostName {
        match self {
            Self::Exact(name) | Self::OneLabel(name) | Self::AnyDepth(name) => name,
        }
    }

    pub fn is_wildcard(&self) -> bool {
        !matches!(self, Self::Exact(_))
    }
}

impl FromStr for HostPattern {
    type Err = InvalidHost;

    fn from_str(text: &str) -> Result<Self, InvalidHost> {
        let shown = || text.chars().take(80).collect::<String>();
        let (rest, pattern): (_, fn(HostName) -> Self) = match (text.strip_prefix("**."), text.strip_prefix("*.")) {
            (Some(rest), _) => (rest, Self::AnyDepth),
            (None, Some(rest)) => (rest, Self::OneLabel),
            (None, None) => (text, Self::Exact),
        };
        if rest.contains('*') {
            return Err(InvalidHost::Malformed(shown()));
        }
        let wildcard = rest.len() < text.len();
        let suffix = |name: &str| InvalidHost::PublicSuffix(shown(), name.to_owned());
        let name = rest.parse::<HostName>();
        // A suffix such as `com` has one label; what is no name at all is not looked up, or repeated, at any length.
        let is_name = matches!(name, Ok(_) | Err(InvalidHost::SingleLabel(_)));
        let plain = rest.trim_end_matches('.').to_ascii_lowercase();
        if wildcard && is_name && psl::suffix_str(&plain) == Some(plain.as_str()) {
            return Err(suffix(&plain));
        }
        let name = name?;
        if OUTER_NAMES.contains(&name.as_str()) {
            return Err(InvalidHost::OuterName(shown()));
        }
        Ok(pattern(name))
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => write!(f, "{name}"),
            Self::OneLabel(name) => write!(f, "*.{name}"),
            Self::AnyDepth(name) => write!(f, "**.{name}"),
        }
    }
}

macro_rules! as_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

as_text!(HostName);
as_text!(HostPattern);

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        pattern.parse::<HostPattern>().unwrap().matches(&name.parse().unwrap())
    }

    #[test]
    fn a_text_that_is_no_name_is_not_repeated_at_its_length() {
        let long = format!("*.{}", "\u{7f}".repeat(600));
        let error = long.parse::<HostPattern>().unwrap_err();
        assert!(matches!(error, InvalidHost::Malformed(_)), "{error:?}");
        assert!(matches!("*.com".parse::<HostPattern>(), Err(InvalidHost::PublicSuffix(..))));
    }

    #[test]
    fn a_wildcard_is_one_label_and_two_are_any_depth() {
        assert!(matches("*.github.com", "a.github.com"));
        for other in ["github.com", "evilgithub.com", "github.com.evil.example", "a.b.github.com"] {
            assert!(!matches("*.github.com", other), "{other}");
        }
        assert!(matches("**.github.com", "a.b.github.com"));
        assert!(!matches("**.github.com", "github.com"));
    }

    #[test]
    fn case_and_a_trailing_dot_make_no_difference() {
        assert!(matches("Api.Example.com.", "aPI.example.COM."));
    }

    #[test]
    fn what_must_not_be_allowed_is_refused() {
        let refused = |text: &str| text.parse::<HostPattern>().unwrap_err();
        assert!(matches!(refused("*.com"), InvalidHost::PublicSuffix(..)));
        assert!(matches!(refused("**.co.uk"), InvalidHost::PublicSuffix(..)));
        assert!(matches!(refused("*.github.io"), InvalidHost::PublicSuffix(..)));
        assert!(matches!(refused("cloudflare-ech.com"), InvalidHost::OuterName(_)));
        for address in ["203.0.113.7", "0x7f.1", "1.2.3", "::1", "[::1]"] {
            assert!(matches!(refused(address), InvalidHost::Address(_)), "{address}");
        }
        for malformed in ["", "*", "*.", "a..b", "-a.com", "a.*.com", "a b.com", "é.com", ".com"] {
            assert!(malformed.parse::<HostPattern>().is_err(), "{malformed}");
        }
        assert!(matches!(refused("localhost"), InvalidHost::SingleLabel(_)));
        assert!(matches!(refused("db.internal"), InvalidHost::Inside(_)));
    }
}
