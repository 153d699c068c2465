//! The key of an installation, and signatures with it: Ed25519 (RFC 8032) over the exact bytes of `report.json`.

use std::fmt;
use std::str::FromStr;

use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

/// What begins the text of a public key.
const PREFIX: &str = "warren-audit-ed25519";
/// How many bytes of the SHA-256 of a public key are its id.
const ID_BYTES: usize = 8;
const PUBLIC_KEY: usize = 32;
const SIGNATURE: usize = 64;

/// The private key.
pub struct SigningKey(Ed25519KeyPair);

/// A key that cannot be made or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("the system gives no random numbers")]
    NoRandomness,
    #[error("it is no Ed25519 key in PKCS#8 form")]
    Unreadable,
    #[error("it holds no line `{PREFIX} HEX`, as `warren audit key` prints one")]
    NoPublicKey,
    #[error("it holds more than one public key: give one")]
    SeveralPublicKeys,
}

impl SigningKey {
    /// A new key, and the PKCS#8 document (RFC 5958) to keep of it.
    pub fn generate() -> Result<(Self, Vec<u8>), KeyError> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| KeyError::NoRandomness)?;
        let bytes = document.as_ref().to_vec();
        Ok((Self::read(&bytes)?, bytes))
    }

    /// Reads what [`SigningKey::generate`] gave to keep.
    pub fn read(pkcs8: &[u8]) -> Result<Self, KeyError> {
        Ed25519KeyPair::from_pkcs8(pkcs8).map(Self).map_err(|_| KeyError::Unreadable)
    }

    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; PUBLIC_KEY];
        bytes.copy_from_slice(self.0.public_key().as_ref());
        PublicKey(bytes)
    }

    /// The content of `report.sig` for this content of `report.json`.
    pub fn sign(&self, report: &[u8]) -> Signature {
        Signature {
            algorithm: Algorithm::Ed25519,
            key_id: self.public().id(),
            signature: hex(self.0.sign(report).as_ref()),
        }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public().id())
    }
}

/// A public key. Its text is one line: `warren-audit-ed25519` and 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; PUBLIC_KEY]);

impl PublicKey {
    /// The first eight bytes of its SHA-256, in hex.
    pub fn id(&self) -> String {
        hex(&ring::digest::digest(&ring::digest::SHA256, &self.0).as_ref()[..ID_BYTES])
    }

    /// Whether this signature of these bytes was made with this key.
    pub fn verifies(&self, report: &[u8], signature: &Signature) -> bool {
        let Some(bytes) = unhex::<SIGNATURE>(&signature.signature) else { return false };
        UnparsedPublicKey::new(&ED25519, &self.0).verify(report, &bytes).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX} {}", hex(&self.0))
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    /// Blank lines, and lines that begin with `#`, are skipped.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let line = lines.next().ok_or(KeyError::NoPublicKey)?;
        if lines.next().is_some() {
            return Err(KeyError::SeveralPublicKeys);
        }
        let digits = line.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix(' ')).ok_or(KeyError::NoPublicKey)?;
        unhex(digits.trim()).map(Self).ok_or(KeyError::NoPublicKey)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    Ed25519,
}

/// The content of `report.sig`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    pub algorithm: Algorithm,
    /// [`PublicKey::id`] of the key that signed.
    pub key_id: String,
    /// 64 bytes in hex.
    pub signature: String,
}

/// SHA-256 in hex.
pub fn sha256(bytes: &[u8]) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Lower-case digits only, so that a value has one text.
fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_bytes_and_its_key_only() {
        let (key, kept) = SigningKey::generate().unwrap();
        let (other, _) = SigningKey::generate().unwrap();
        let signature = key.sign(b"report");
        assert!(key.public().verifies(b"report", &signature));
        assert!(SigningKey::read(&kept).unwrap().public().verifies(b"report", &signature));
        assert!(!key.public().verifies(b"report ", &signature));
        assert!(!other.public().verifies(b"report", &signature));
        for at in [0, 63, 127] {
            let mut bent = signature.clone();
            let digit = if &bent.signature[at..=at] == "0" { "1" } else { "0" };
            bent.signature.replace_range(at..=at, digit);
            assert!(!key.public().verifies(b"report", &bent), "{at}");
        }
    }

    #[test]
    fn a_public_key_reads_back_as_printed() {
        let (key, _) = SigningKey::generate().unwrap();
        let text = key.public().to_string();
        assert_eq!(text.parse::<PublicKey>().unwrap(), key.public());
        assert_eq!(format!("# the key of host a\n\n{text}\n").parse::<PublicKey>().unwrap(), key.public());
        assert_eq!(format!("{text}\n{text}").parse::<PublicKey>(), Err(KeyError::SeveralPublicKeys));
        for bad in ["", "ssh-ed25519 AAAA", &text[..text.len() - 1], &text.to_uppercase(), &text.replace(' ', "")] {
            assert_eq!(bad.parse::<PublicKey>(), Err(KeyError::NoPublicKey), "{bad}");
        }
    }

    #[test]
    fn hashes_are_those_of_the_standard() {
        // FIPS 180-2, appendix B.1.
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
