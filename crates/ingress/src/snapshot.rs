//! What is published, as it travels over the control socket.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use warren_model::NetworkNumber;
use warren_model::policy::HostName;

/// Everything that is published. It replaces what was there before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    #[serde(default)]
    pub sites: Vec<Site>,
    /// Where two are for the same name, the first is used.
    #[serde(default)]
    pub certificates: Vec<Certificate>,
    /// Key authorizations of ACME by token (RFC 8555 §8.3). They are answered on the plain listener for every host.
    #[serde(default)]
    pub challenges: BTreeMap<String, String>,
    /// The port at which the world reaches the HTTPS listener. With it the plain listener only redirects; without it,
    /// that one serves the sites.
    #[serde(default)]
    pub https_port: Option<u16>,
}

/// One published port of one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// No other site of the snapshot has it.
    pub host: HostName,
    /// What counters are kept under. No other site of the snapshot has it.
    pub id: String,
    pub network: NetworkNumber,
    /// Tried in this order; at least one.
    pub addresses: Vec<IpAddr>,
    /// 1 to 65,535.
    pub port: u16,
    #[serde(default)]
    pub auth: Option<Auth>,
    #[serde(default)]
    pub limits: SiteLimits,
}

/// What a client has to show before a request goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Auth {
    /// A bearer token (RFC 6750).
    Bearer { token: SecretHash },
    /// A user and a password (RFC 7617).
    Basic { user: String, password: SecretHash },
}

/// The blake3 hash of a secret; in text, 64 hex digits. The API keeps its keys in the same form.
///
/// It is fast to compute, so that only a secret that cannot be guessed is safe where the hash is seen.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SecretHash(blake3::Hash);

/// A text that is not a hash of a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is no hash of a secret: it takes 64 hex digits")]
pub struct InvalidSecretHash;

impl SecretHash {
    pub fn of(secret: &[u8]) -> Self {
        Self(blake3::hash(secret))
    }

    /// Whether it is the hash of `secret`, in a time that does not depend on how much of it agrees.
    pub fn matches(&self, secret: &[u8]) -> bool {
        // blake3 compares hashes in constant time.
        self.0 == blake3::hash(secret)
    }
}

impl FromStr for SecretHash {
    type Err = InvalidSecretHash;

    fn from_str(text: &str) -> Result<Self, InvalidSecretHash> {
        blake3::Hash::from_hex(text).map(Self).map_err(|_| InvalidSecretHash)
    }
}

impl fmt::Display for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_hex())
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash")
    }
}

impl Serialize for SecretHash {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SecretHash {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Requests that one source may have under way even where a site takes few: what a browser begins at once.
const LEAST_PER_SOURCE: u32 = 16;

/// What one site may be used for, by everybody together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SiteLimits {
    /// Requests a second, in the long run; 500 unless said otherwise.
    pub requests_per_second: NonZeroU32,
    /// Requests at once, after a rest; 1,000 unless said otherwise.
    pub burst: NonZeroU32,
    /// The largest body of a request, in bytes; 100 MiB unless said otherwise.
    pub max_body_bytes: u64,
    /// How long nothing may move in a request, response or WebSocket, in seconds; 300 unless said otherwise.
    pub idle_seconds: NonZeroU32,
    /// Requests and WebSockets under way; 512 unless said otherwise. One source (an IPv4 address, or the /64 of an IPv6
    /// address) has at most an eighth of them, or 16 where that is more.
    pub concurrent: NonZeroU32,
}

impl SiteLimits {
    pub(crate) fn concurrent_per_source(&self) -> u32 {
        (self.concurrent.get() / 8).max(LEAST_PER_SOURCE)
    }
}

impl Default for SiteLimits {
    fn default() -> Self {
        const fn number(number: u32) -> NonZeroU32 {
            match NonZeroU32::new(number) {
                Some(number) => number,
                None => NonZeroU32::MIN,
            }
        }
        Self {
            requests_per_second: number(500),
            burst: number(1000),
            max_body_bytes: 100 << 20,
            idle_seconds: number(300),
            concurrent: number(512),
        }
    }
}

/// A certificate with its key. The names are those of the first certificate in the chain.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// The server's own certificate first.
    pub chain_pem: String,
    pub key_pem: String,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("chain_pem", &self.chain_pem).finish_non_exhaustive()
    }
}

/// What a library said.
type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a snapshot was refused. What was there before goes on.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("two sites have the host {0}")]
    DuplicateHost(HostName),
    #[error("two sites have the id {0:?}")]
    DuplicateId(String),
    #[error("the site {0} has no address")]
    NoAddress(HostName),
    #[error("the site {0} is for port 0")]
    NoPort(HostName),
    #[error("the HTTPS port is 0")]
    NoHttpsPort,
    #[error("{0:?} is not the token of an ACME challenge")]
    Token(String),
    #[error("TLS cannot be set up")]
    Tls(#[source] Cause),
    #[error("certificate {index} cannot be used")]
    Certificate {
        /// Which of the snapshot's certificates, from 0.
        index: usize,
        #[source]
        source: CertificateError,
    },
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("the chain is not PEM")]
    Chain(#[source] Cause),
    #[error("the chain is empty")]
    Empty,
    #[error("the key is not PEM")]
    Key(#[source] Cause),
    #[error("the certificate and its key are of no use together")]
    Pair(#[source] Cause),
    #[error("the certificate is malformed")]
    Malformed(#[source] Cause),
    #[error("the certificate is for no DNS name")]
    NoName,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> Snapshot {
        Snapshot {
            sites: vec![Site {
                host: "shop.example.com".parse().unwrap(),
                id: "site-1".into(),
                network: NetworkNumber::FIRST,
                addresses: vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
                port: 8080,
                auth: Some(Auth::Basic { user: "ann".into(), password: SecretHash::of(b"secret") }),
                limits: SiteLimits::default(),
            }],
            certificates: vec![Certificate { chain_pem: "chain".into(), key_pem: "private".into() }],
            challenges: [("token".to_owned(), "token.thumbprint".to_owned())].into(),
            https_port: Some(443),
        }
    }

    #[test]
    fn a_snapshot_reads_back_from_json() {
        let json = serde_json::to_string(&snapshot()).unwrap();
        assert_eq!(serde_json::from_str::<Snapshot>(&json).unwrap(), snapshot());
        assert!(!json.contains("\"secret\""), "{json}");
    }

    #[test]
    fn a_field_that_is_not_known_is_refused() {
        for text in [
            r#"{"sites":[],"other":1}"#,
            r#"{"sites":[{"host":"a.example","id":"a","network":1,"addresses":[],"port":1,"limits":{"burts":1}}]}"#,
            r#"{"sites":[{"host":"a.example","id":"a","network":1,"addresses":[],"port":1,"limits":{"burst":0}}]}"#,
        ] {
            assert!(serde_json::from_str::<Snapshot>(text).is_err(), "{text}");
        }
        let short = r#"{"sites":[{"host":"a.example","id":"a","network":1,"addresses":["::1"],"port":1}]}"#;
        let site = &serde_json::from_str::<Snapshot>(short).unwrap().sites[0];
        assert_eq!((site.auth.clone(), site.limits), (None, SiteLimits::default()));
    }

    #[test]
    fn no_secret_is_in_what_is_printed() {
        let shown = format!("{:?}", snapshot());
        assert!(!shown.contains("private") && !shown.contains(&SecretHash::of(b"secret").to_string()), "{shown}");
    }
}
