//! Typed ids: a prefix that says the kind, and a ULID in lower case.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use ulid::Ulid;

/// A text that is not an id of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}: write {prefix}_ and 26 letters and digits")]
pub struct InvalidId {
    text: String,
    expected: &'static str,
    prefix: &'static str,
}

macro_rules! typed_id {
    ($(#[$meta:meta])* $name:ident, $prefix:literal, $what:literal) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Ulid);

        impl $name {
            /// What every id of this kind starts with, before the underscore.
            pub const PREFIX: &'static str = $prefix;

            pub const fn from_ulid(ulid: Ulid) -> Self {
                Self(ulid)
            }

            pub const fn as_u128(&self) -> u128 {
                self.0.0
            }

            pub const fn from_u128(number: u128) -> Self {
                Self(Ulid(number))
            }

            /// The id without its prefix: 26 letters and digits in lower case.
            pub fn bare(&self) -> String {
                self.0.to_string().to_ascii_lowercase()
            }

            /// The same, read back. Refuses anything but 26 letters and digits.
            pub fn from_bare(text: &str) -> Result<Self, InvalidId> {
                Ulid::from_string(text).map(Self).map_err(|_| InvalidId {
                    text: text.to_owned(),
                    expected: $what,
                    prefix: $prefix,
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}_{}", $prefix, self.bare())
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let refused = || InvalidId {
                    text: text.chars().take(64).collect(),
                    expected: $what,
                    prefix: $prefix,
                };
                let bare = text
                    .strip_prefix(concat!($prefix, "_"))
                    .filter(|bare| !bare.bytes().any(|b| b.is_ascii_uppercase()))
                    .ok_or_else(refused)?;
                Self::from_bare(bare).map_err(|_| refused())
            }
        }

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

typed_id!(
    /// An account: the tenant.
    AccountId, "acc", "an account id"
);
typed_id!(
    /// An API key of an account; the id is no secret.
    KeyId, "key", "a key id"
);
typed_id!(
    /// A network.
    NetworkId, "net", "a network id"
);
typed_id!(
    /// A machine.
    MachineId, "mch", "a machine id"
);
typed_id!(
    /// An operator session.
    SessionId, "ses", "a session id"
);
typed_id!(
    /// A host name that leads to a machine's port.
    DomainId, "dom", "a domain id"
);
typed_id!(
    /// Somebody who may operate machines that were granted to them.
    IdentityId, "idn", "an identity id"
);
typed_id!(
    /// A token of an identity; the id is no secret.
    TokenId, "tok", "a token id"
);
typed_id!(
    /// A refusal by policy.
    DenialId, "dny", "a denial id"
);
typed_id!(
    /// An entry of the event stream or of the audit log.
    EventId, "evt", "an event id"
);

/// Whatever has an address in a network; written as the id of what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MemberId {
    Machine(MachineId),
    Session(SessionId),
}

impl MemberId {
    pub fn machine(self) -> Option<MachineId> {
        match self {
            Self::Machine(id) => Some(id),
            Self::Session(_) => None,
        }
    }
}

impl From<MachineId> for MemberId {
    fn from(id: MachineId) -> Self {
        Self::Machine(id)
    }
}

impl From<SessionId> for MemberId {
    fn from(id: SessionId) -> Self {
        Self::Session(id)
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine(id) => id.fmt(f),
            Self::Session(id) => id.fmt(f),
        }
    }
}

impl FromStr for MemberId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        text.parse().map(Self::Session).or_else(|_: InvalidId| text.parse().map(Self::Machine))
    }
}

impl Serialize for MemberId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MemberId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The id of one installation on a host: five letters or digits, the first a letter.
///
/// Every name that the kernel shows (namespaces, links, cgroups, containers, mounts) carries it, so that several
/// installations live on one host. A link name holds at most 15 bytes, which is why this is short.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstallationId(String);

impl InstallationId {
    /// How many bytes the id has.
    pub const LENGTH: usize = 5;

    /// Makes an id out of random bits; only the low 26 bits count.
    pub fn from_random(bits: u32) -> Self {
        const LETTERS: &[u8; 26] = b"abcdefghijklmnopqrstuvwxyz";
        const ALL: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
        let mut text = String::with_capacity(Self::LENGTH);
        text.push(char::from(LETTERS[(bits % 26) as usize]));
        let mut rest = bits / 26;
        for _ in 1..Self::LENGTH {
            text.push(char::from(ALL[(rest % 32) as usize]));
            rest /= 32;
        }
        Self(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `/run/warren-{installation}`: what has to outlive the daemon but not the host's restart (sockets, mounts, the
    /// OCI runtime's state).
    pub fn run_directory(&self) -> PathBuf {
        PathBuf::from(format!("/run/warren-{self}"))
    }
}

impl fmt::Display for InstallationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for InstallationId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let valid = text.len() == Self::LENGTH
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidId { text: text.chars().take(64).collect(), expected: "an installation id", prefix: "" })
        }
    }
}

impl Serialize for InstallationId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for InstallationId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_as_written() {
        let id = MachineId::from_ulid(Ulid::from_parts(7, 9));
        assert_eq!(id.to_string().parse::<MachineId>().unwrap(), id);
    }

    #[test]
    fn an_id_of_another_kind_is_refused() {
        let id = MachineId::from_ulid(Ulid::from_parts(7, 9)).to_string();
        assert!(id.parse::<NetworkId>().is_err());
        assert!(id.to_uppercase().parse::<MachineId>().is_err());
    }

    #[test]
    fn a_member_is_written_as_what_it_is() {
        let ulid = Ulid::from_parts(7, 9);
        for member in [MemberId::from(MachineId::from_ulid(ulid)), SessionId::from_ulid(ulid).into()] {
            assert_eq!(member.to_string().parse::<MemberId>().unwrap(), member);
        }
        assert!(NetworkId::from_ulid(ulid).to_string().parse::<MemberId>().is_err());
    }

    #[test]
    fn an_installation_id_reads_back_as_written() {
        for bits in [0, 1, 25, 26, u32::MAX, 123_456_789] {
            let id = InstallationId::from_random(bits);
            assert_eq!(id.to_string().parse::<InstallationId>().unwrap(), id);
        }
        assert!("9abcd".parse::<InstallationId>().is_err());
        assert!("../..".parse::<InstallationId>().is_err());
    }
}
