//! A chain with its private key: what the edge needs to speak TLS under a name.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use rustls::InconsistentKeys;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use warren_model::policy::{HostName, HostPattern};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{ParsedExtension, X509Certificate};

use crate::pem::{self, InvalidKey, KeyPem};

/// When a certificate may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validity {
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

impl Validity {
    /// Never negative.
    pub fn lifetime(&self) -> SignedDuration {
        self.not_after.duration_since(self.not_before).max(SignedDuration::ZERO)
    }
}

/// A certificate chain and the private key of its first certificate. They belong together, parse, and can be used for
/// TLS; whether the time is right and whether clients trust the chain is not said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    chain: Vec<CertificateDer<'static>>,
    chain_pem: String,
    key_pem: KeyPem,
    leaf: Leaf,
}

/// Why a text holds no usable certificate chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidChain {
    #[error("it has no certificate in PEM form (a part that begins with -----BEGIN CERTIFICATE-----)")]
    Missing,
    #[error("it is not valid PEM: {0}")]
    Pem(String),
    /// Positions count from 1.
    #[error("its certificate number {position} cannot be read: {reason}")]
    Unreadable { position: usize, reason: String },
    #[error(
        "its first certificate names no host (no usable DNS name in its subject alternative names); \
         the certificate of the host has to come first"
    )]
    NoNames,
}

/// Why a chain and a key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCertificate {
    #[error("the chain cannot be used: {0}")]
    Chain(#[from] InvalidChain),
    #[error("the key cannot be used: {0}")]
    Key(#[from] InvalidKey),
    #[error("the private key does not belong to the first certificate of the chain")]
    Mismatch,
}

impl Certificate {
    /// Reads back what was stored, or what the operator has. Parts that are neither a
    /// certificate nor the key are left out.
    pub fn from_pem(chain: &str, key: &str) -> Result<Self, InvalidCertificate> {
        let chain = pem::certificates(chain).map_err(|error| InvalidChain::Pem(error.to_string()))?;
        let leaf = Leaf::of(&chain)?;
        let key = pem::private_key(key)?;
        let provider = rustls::crypto::ring::default_provider();
        let signing = provider.key_provider.load_private_key(key.clone_key()).map_err(|_| InvalidKey::Unsupported)?;
        match CertifiedKey::new(chain.clone(), signing).keys_match() {
            Ok(()) => {}
            Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                return Err(InvalidCertificate::Mismatch);
            }
            // Every key that `ring` loads knows its public half, so that this is about the certificate.
            Err(error) => return Err(InvalidChain::Unreadable { position: 1, reason: error.to_string() }.into()),
        }
        Ok(Self { chain_pem: pem::of_certificates(&chain), key_pem: pem::of_key(&key), chain, leaf })
    }

    /// The certificate of the host first, then the ones between it and the root.
    pub fn chain_pem(&self) -> &str {
        &self.chain_pem
    }

    pub fn key_pem(&self) -> &KeyPem {
        &self.key_pem
    }

    /// Of the first certificate.
    pub fn validity(&self) -> Validity {
        self.leaf.validity
    }

    /// The DNS names in the first certificate: exact ones, and wildcards for one label ([`HostPattern::OneLabel`]).
    pub fn names(&self) -> &[HostPattern] {
        &self.leaf.names
    }

    /// Names in the first certificate that no host of a preview can have, such as `localhost` or `*.com`.
    pub fn other_names(&self) -> &[String] {
        &self.leaf.other_names
    }

    /// Whether a client that asks for this name accepts the certificate's names (RFC 9525 §6.3).
    pub fn covers(&self, name: &HostName) -> bool {
        self.leaf.names.iter().any(|pattern| pattern.matches(name))
    }

    pub(crate) fn leaf_der(&self) -> &CertificateDer<'static> {
        // `Leaf::of` accepts no empty chain.
        &self.chain[0]
    }

    /// The position (from 1) of the first certificate that was not issued by the one after it.
    pub(crate) fn out_of_order(&self) -> Option<usize> {
        let parsed: Vec<_> = self.chain.iter().filter_map(|der| parse(der).ok()).collect();
        parsed.windows(2).position(|pair| pair[0].issuer().as_raw() != pair[1].subject().as_raw()).map(|at| at + 1)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Leaf {
    validity: Validity,
    names: Arc<[HostPattern]>,
    other_names: Arc<[String]>,
}

impl Leaf {
    fn of(chain: &[CertificateDer<'static>]) -> Result<Self, InvalidChain> {
        for (index, der) in chain.iter().enumerate() {
            parse(der).map_err(|reason| InvalidChain::Unreadable { position: index + 1, reason })?;
        }
        let first = chain.first().ok_or(InvalidChain::Missing)?;
        let unreadable = |reason: String| InvalidChain::Unreadable { position: 1, reason };
        let certificate = parse(first).map_err(unreadable)?;
        let (mut names, mut other_names) = (Vec::new(), Vec::new());
        for name in dns_names(&certificate) {
            match pattern(name) {
                Some(pattern) => names.push(pattern),
                None => other_names.push(name.chars().take(255).collect()),
            }
        }
        if names.is_empty() {
            return Err(InvalidChain::NoNames);
        }
        let validity = validity(&certificate).ok_or_else(|| unreadable("its dates are out of range".to_owned()))?;
        Ok(Self { validity, names: names.into(), other_names: other_names.into() })
    }
}

/// One whole certificate.
pub(crate) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    match x509_parser::parse_x509_certificate(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err("there are bytes after its end".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

pub(crate) fn validity(certificate: &X509Certificate<'_>) -> Option<Validity> {
    let at = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).ok();
    let validity = certificate.validity();
    Some(Validity { not_before: at(validity.not_before)?, not_after: at(validity.not_after)? })
}

fn dns_names<'a>(certificate: &'a X509Certificate<'_>) -> impl Iterator<Item = &'a str> {
    certificate
        .iter_extensions()
        .filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        })
        .flatten()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(*name),
            _ => None,
        })
}

/// RFC 9525 §6.3: a wildcard is the whole first label, and stands for exactly one.
fn pattern(name: &str) -> Option<HostPattern> {
    match name.strip_prefix("*.") {
        Some(rest) => Some(HostPattern::OneLabel(rest.parse().ok()?)),
        None => Some(HostPattern::Exact(name.parse().ok()?)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn made(names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        (CertificateParams::new(names).unwrap().self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn exact_names_and_wildcards_for_one_label_are_covered() {
        let (chain, key) = made(&["shop.example.com", "*.preview.example.org", "localhost", "10.0.0.1"]);
        let certificate = Certificate::from_pem(&chain, &key).unwrap();
        for (name, covered) in [
            ("shop.example.com", true),
            ("SHOP.example.com.", true),
            ("a.shop.example.com", false),
            ("a.preview.example.org", true),
            ("a.b.preview.example.org", false),
            ("preview.example.org", false),
            ("example.com", false),
        ] {
            assert_eq!(certificate.covers(&name.parse().unwrap()), covered, "{name}");
        }
        assert_eq!(certificate.other_names(), ["localhost"]);
    }

    #[test]
    fn a_wildcard_for_a_whole_public_suffix_with_two_labels_is_one_label_and_com_is_nothing() {
        let (chain, key) = made(&["*.github.io", "*.com"]);
        let certificate = Certificate::from_pem(&chain, &key).unwrap();
        assert!(certificate.covers(&"a.github.io".parse().unwrap()));
        assert!(!certificate.covers(&"example.com".parse().unwrap()));
        assert_eq!(certificate.other_names(), ["*.com"]);
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let (chain, _) = made(&["a.example.com"]);
        let (_, key) = made(&["a.example.com"]);
        assert_eq!(Certificate::from_pem(&chain, &key), Err(InvalidCertificate::Mismatch));
    }

    #[test]
    fn a_certificate_without_a_name_of_a_host_is_refused() {
        let (chain, key) = made(&["10.0.0.1"]);
        assert_eq!(Certificate::from_pem(&chain, &key), Err(InvalidChain::NoNames.into()));
    }

    #[test]
    fn what_is_no_certificate_is_refused_with_its_place() {
        let (chain, key) = made(&["a.example.com"]);
        assert_eq!(Certificate::from_pem("", &key), Err(InvalidChain::Missing.into()));
        let broken = format!("{chain}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        let error = Certificate::from_pem(&broken, &key).unwrap_err();
        assert!(matches!(error, InvalidCertificate::Chain(InvalidChain::Unreadable { position: 2, .. })), "{error}");
        let cut = chain.replace("-----END CERTIFICATE-----", "");
        assert!(matches!(Certificate::from_pem(&cut, &key), Err(InvalidCertificate::Chain(InvalidChain::Pem(_)))));
    }

    #[test]
    fn a_key_in_the_file_of_the_chain_does_not_become_part_of_it() {
        let (chain, key) = made(&["a.example.com"]);
        let certificate = Certificate::from_pem(&format!("{key}{chain}"), &key).unwrap();
        assert_eq!(certificate.chain_pem(), chain);
        assert_eq!(certificate.key_pem().expose(), key);
    }

    #[test]
    fn a_chain_in_the_wrong_order_is_noticed() {
        let (first, key) = made(&["a.example.com"]);
        let other_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["b.example.com".to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "another");
        let other = params.self_signed(&other_key).unwrap().pem();
        assert_eq!(Certificate::from_pem(&first, &key).unwrap().out_of_order(), None);
        let mixed = Certificate::from_pem(&format!("{first}{other}"), &key).unwrap();
        assert_eq!(mixed.out_of_order(), Some(1));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(der in vec(any::<u8>(), 0..200), at in 0usize..1000, byte in any::<u8>()) {
            let _ = parse(&CertificateDer::from(der));
            let (chain, key) = sample();
            let mut changed = pem::certificates(chain).unwrap()[0].to_vec();
            let at = at % changed.len();
            changed[at] = byte;
            let _ = Certificate::from_pem(&pem::of_certificates(&[changed.into()]), key);
        }
    }

    fn sample() -> &'static (String, String) {
        static SAMPLE: std::sync::OnceLock<(String, String)> = std::sync::OnceLock::new();
        SAMPLE.get_or_init(|| made(&["a.example.com", "*.b.example.com"]))
    }
}
