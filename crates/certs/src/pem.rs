//! PEM text of certificates and private keys (RFC 7468).

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// A line of PEM text has this many base64 characters (RFC 7468 §2).
const LINE: usize = 64;

/// A private key as PEM text. It is wiped from memory when it is dropped, and `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyPem(Zeroizing<String>);

impl KeyPem {
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text, to be stored where only its owner can read it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for KeyPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyPem(..)")
    }
}

/// Why a text holds no usable private key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    #[error("it has no private key in PEM form (a part that begins with -----BEGIN PRIVATE KEY-----)")]
    Missing,
    #[error("its private key is protected by a passphrase; remove that with: openssl pkey -in FILE -out FILE.plain")]
    Encrypted,
    #[error("it is not valid PEM: {0}")]
    Pem(String),
    #[error(
        "its private key is of a kind that is not supported; \
         use ECDSA P-256 or P-384, Ed25519, or RSA of 2048 bits or more"
    )]
    Unsupported,
}

/// The certificates of a PEM text in their order. Other parts of the text are passed over.
pub(crate) fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, pem::Error> {
    CertificateDer::pem_slice_iter(text.as_bytes()).collect()
}

/// The first private key of a PEM text.
pub(crate) fn private_key(text: &str) -> Result<Zeroizing<PrivateKeyDer<'static>>, InvalidKey> {
    match PrivateKeyDer::from_pem_slice(text.as_bytes()) {
        // RFC 1421 §4.6.1.1: the older form says so in a header of the same part.
        _ if text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") || text.contains("Proc-Type: 4,ENCRYPTED") => {
            Err(InvalidKey::Encrypted)
        }
        Ok(key) => Ok(Zeroizing::new(key)),
        Err(pem::Error::NoItemsFound) => Err(InvalidKey::Missing),
        Err(error) => Err(InvalidKey::Pem(error.to_string())),
    }
}

pub(crate) fn of_certificates(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|der| String::clone(&encode("CERTIFICATE", der))).collect()
}

pub(crate) fn of_key(key: &PrivateKeyDer<'_>) -> KeyPem {
    let label = match key {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        _ => "PRIVATE KEY",
    };
    KeyPem(encode(label, key.secret_der()))
}

fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    let body = Zeroizing::new(BASE64_STANDARD.encode(der));
    // Enough from the start: a string that grows leaves copies behind.
    let mut text = Zeroizing::new(String::with_capacity(body.len() + body.len() / LINE + 2 * label.len() + 64));
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> String {
        rcgen::KeyPair::generate().unwrap().serialize_pem()
    }

    #[test]
    fn what_is_written_is_read_back() {
        let text = key();
        let der = private_key(&text).unwrap();
        assert_eq!(of_key(&der).expose(), text);
    }

    #[test]
    fn a_key_is_not_shown() {
        let text = key();
        assert_eq!(format!("{:?}", KeyPem::new(text)), "KeyPem(..)");
    }

    #[test]
    fn a_text_without_a_key_is_told_from_a_broken_and_from_a_protected_one() {
        assert_eq!(private_key("hello").unwrap_err(), InvalidKey::Missing);
        let cut = key().replace("-----END PRIVATE KEY-----", "");
        assert!(matches!(private_key(&cut), Err(InvalidKey::Pem(_))));
        let protected = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        assert_eq!(private_key(protected).unwrap_err(), InvalidKey::Encrypted);
        let older = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n\
             AAAA\n-----END RSA PRIVATE KEY-----\n";
        assert_eq!(private_key(older).unwrap_err(), InvalidKey::Encrypted);
    }
}
