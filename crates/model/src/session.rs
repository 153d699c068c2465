//! Operator sessions: short-lived WireGuard peers in a network.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::address::{MemberNumber, NetworkNumber};
use crate::cidr::UlaPrefix;
use crate::id::{AccountId, KeyId, MachineId, NetworkId, SessionId};
use crate::name::Label;

/// The tag that every session has in policies: `vm/tag:operator`.
pub const OPERATOR_TAG: &str = "operator";
/// How long a session lives, in seconds: unless something else is asked for, and at most.
pub const DEFAULT_TTL_SECONDS: u64 = 3600;
pub const MAX_TTL_SECONDS: u64 = 24 * 3600;
/// A session ends when its operator has sent no data for so long, in seconds: unless something else is asked for.
pub const DEFAULT_IDLE_SECONDS: u64 = 1800;
/// Sessions that one account may have at once, in all its networks.
pub const MAX_SESSIONS: usize = 1_000;
/// The largest packet inside a tunnel, in bytes: what wg-quick takes where the way has the usual 1,500.
pub const TUNNEL_MTU: u16 = 1420;

/// A Curve25519 public key as WireGuard writes it: 44 characters of base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WireGuardKey([u8; 32]);

/// A text that is not a WireGuard public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a WireGuard public key has 44 characters of base64; `wg genkey | tee private | wg pubkey` makes one")]
pub struct InvalidWireGuardKey;

impl WireGuardKey {
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key in hex, as it is part of store keys.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for WireGuardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl FromStr for WireGuardKey {
    type Err = InvalidWireGuardKey;

    fn from_str(text: &str) -> Result<Self, InvalidWireGuardKey> {
        let bytes = STANDARD.decode(text).map_err(|_| InvalidWireGuardKey)?;
        bytes.try_into().map(Self).map_err(|_| InvalidWireGuardKey)
    }
}

impl Serialize for WireGuardKey {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WireGuardKey {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The server's half of the tunnel that nobody else may know: 32 bytes, as base64. It is not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct TunnelKey([u8; 32]);

impl TunnelKey {
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for TunnelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TunnelKey")
    }
}

impl Serialize for TunnelKey {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&STANDARD.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for TunnelKey {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let key: WireGuardKey = String::deserialize(d)?.parse().map_err(serde::de::Error::custom)?;
        Ok(Self(key.0))
    }
}

/// How long a session whose public key was given waits for whoever has the private one, in seconds. Public keys are
/// public, so anybody can give one, and nobody else can use it meanwhile.
pub const UNHEARD_SECONDS: i64 = 600;

/// How long a key is its account's alone after its last session, in days: the operator's program goes on calling with it
/// until somebody ends it, and would call whoever else had taken the key.
pub const KEY_REST_DAYS: i64 = 90;

/// Whose public key that is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyHold {
    pub account: AccountId,
    /// `None` once the session is over.
    pub session: Option<SessionId>,
    pub resting_until: Option<Timestamp>,
}

/// The only thing in its network that a session reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionScope {
    pub machine: MachineId,
    /// `None`: everything of the machine. Otherwise TCP and UDP to this port.
    pub port: Option<u16>,
}

/// One operator in one network, until it is closed, expires or is idle for too long. The record is the session: when it
/// is gone, so are the peer and its flows. Private keys are nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub id: SessionId,
    pub account: AccountId,
    pub network: NetworkId,
    pub member: MemberNumber,
    pub ipv4: Ipv4Addr,
    /// The operator's public key.
    pub public_key: WireGuardKey,
    pub only: Option<SessionScope>,
    /// Whether members of the network may open connections to it, as far as policy allows. If not, it is sent only what
    /// answers it.
    pub reachable: bool,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    /// It ends when no data came from it for so many seconds.
    pub idle_seconds: u64,
    /// The key with which it was opened.
    pub opened_by: KeyId,
}

impl Session {
    pub fn ipv6(&self, ula: UlaPrefix, network: NetworkNumber) -> Ipv6Addr {
        ula.member(network, self.member)
    }

    /// What policies, refusals and people call it, within its network.
    pub fn name(&self) -> Label {
        name(self.id)
    }
}

/// What the name of every session begins with.
pub const NAME_PREFIX: &str = "session-";

/// The name of a session with this id: `session-` and the end of the id.
pub fn name(id: SessionId) -> Label {
    let bare = id.bare();
    let end = &bare[bare.len() - 8..];
    format!("{NAME_PREFIX}{end}").parse().unwrap_or_else(|_| unreachable!("letters and digits with a hyphen between"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back_as_written() {
        let key = WireGuardKey::from_bytes([7; 32]);
        assert_eq!(key.to_string().len(), 44);
        assert_eq!(key.to_string().parse(), Ok(key));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let key = WireGuardKey::from_bytes([7; 32]).to_string();
        for text in ["", "AAAA", &key[1..], &format!("{key}="), &key.replace('=', ""), "not base64 at all"] {
            assert_eq!(text.parse::<WireGuardKey>(), Err(InvalidWireGuardKey), "{text}");
        }
    }

    #[test]
    fn every_id_gives_a_name() {
        for random in [0, 1, u128::MAX] {
            let id = SessionId::from_ulid(ulid::Ulid::from_parts(1, random));
            assert!(id.to_string().ends_with(name(id).as_str().strip_prefix(NAME_PREFIX).unwrap()));
        }
    }
}
