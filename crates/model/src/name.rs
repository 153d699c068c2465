//! Names that people choose. Each type can only hold a valid one.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::problem::Code;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid {what}: {rule}")]
pub struct InvalidName {
    text: String,
    what: &'static str,
    rule: &'static str,
}

impl InvalidName {
    pub fn code(&self) -> Code {
        Code::InvalidName
    }
}

macro_rules! name_type {
    ($(#[$meta:meta])* $name:ident, $what:literal, $rule:literal, $check:expr) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(InvalidName {
                        text: text.chars().take(80).collect(),
                        what: $what,
                        rule: $rule,
                    })
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

name_type!(
    /// One DNS label in lower case (RFC 1123 §2.1, RFC 1035 §2.3.4): 1 to 63 of `a-z 0-9 -`, no hyphen at either end.
    ///
    /// Names of accounts, networks, machines and ports are labels, so that each can stand in a host name.
    Label,
    "name",
    "use 1 to 63 of a-z, 0-9 and '-', with no '-' at either end",
    is_label
);
name_type!(
    /// A tag: 1 to 63 of `a-z 0-9 - _ .`, starting with a letter or digit.
    Tag,
    "tag",
    "use 1 to 63 of a-z, 0-9, '-', '_' and '.', starting with a letter or digit",
    |text| in_set(text, 63, |b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b))
);
name_type!(
    /// The key of a label: 1 to 63 of `A-Z a-z 0-9 - _ . /`, starting with a letter or digit.
    LabelKey,
    "label key",
    "use 1 to 63 letters, digits, '-', '_', '.' and '/', starting with a letter or digit",
    |text| in_set(text, 63, |b| b.is_ascii_alphanumeric() || b"-_./".contains(&b))
);
name_type!(
    /// The value of a label: up to 256 bytes without control characters.
    LabelValue,
    "label value",
    "use up to 256 bytes without control characters",
    |text| text.len() <= 256 && !text.chars().any(char::is_control)
);
name_type!(
    /// The name of an image: 1 to 128 of `a-z 0-9 - _ . :`, starting with a letter or digit, and no `..`.
    ImageName,
    "image name",
    "use 1 to 128 of a-z, 0-9, '-', '_', '.' and ':', starting with a letter or digit",
    |text| in_set(text, 128, |b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.:".contains(&b))
        && !text.contains("..")
);
name_type!(
    /// The name of a user in a machine, as `useradd` takes it: 1 to 32 of `a-z 0-9 - _`, starting with a letter or `_`.
    LinuxUser,
    "user name",
    "use 1 to 32 of a-z, 0-9, '-' and '_', starting with a letter or '_'",
    |text| (1..=32).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b))
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
);

impl LinuxUser {
    /// Whom commands run as when nobody is named.
    pub const ROOT: &'static str = "root";
}

impl ImageName {
    /// The image that a machine gets when none is named.
    pub fn default_image() -> Self {
        Self("debian".to_owned())
    }
}

fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn in_set(text: &str, longest: usize, allowed: fn(u8) -> bool) -> bool {
    (1..=longest).contains(&text.len())
        && text.bytes().all(allowed)
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn labels_are_dns_labels() {
        for good in ["a", "worker-1", "0", &"x".repeat(63)] {
            assert!(good.parse::<Label>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "ü", "a b", &"x".repeat(64), "a\n"] {
            assert!(bad.parse::<Label>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_user_is_named_and_not_numbered() {
        for good in ["root", "_apt", "www-data", "a1"] {
            assert!(good.parse::<LinuxUser>().is_ok(), "{good}");
        }
        for bad in ["", "0", "1000", "Bob", "a:b", "a b", "-a", &"x".repeat(33)] {
            assert!(bad.parse::<LinuxUser>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_image_name_is_never_a_path() {
        for bad in ["..", "a/b", ".a", "a..b", "/"] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn whatever_parses_reads_back(text in ".{0,70}") {
            if let Ok(label) = text.parse::<Label>() {
                prop_assert_eq!(label.as_str(), text);
            }
        }
    }
}
