//! Which certificate a name gets.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ProducesTickets, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::host::normal;
use crate::snapshot::{Certificate, CertificateError, SnapshotError};

/// What stays the same from snapshot to snapshot, so that sessions can be resumed.
#[derive(Clone)]
pub(crate) struct Tls {
    provider: Arc<CryptoProvider>,
    ticketer: Arc<dyn ProducesTickets>,
}

impl Tls {
    pub fn new() -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Ok(Self { provider, ticketer: rustls::crypto::ring::Ticketer::new()? })
    }

    pub fn config(&self, certificates: Arc<Certificates>) -> Result<Arc<ServerConfig>, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(certificates);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = self.ticketer.clone();
        Ok(Arc::new(config))
    }

    /// Reads only those that are not in `before`; where there is no other, the answer is `before`.
    pub fn certificates(
        &self,
        from: &[Certificate],
        before: Option<&Arc<Certificates>>,
    ) -> Result<Arc<Certificates>, SnapshotError> {
        let given: Vec<_> = from.iter().map(fingerprint).collect();
        if let Some(before) = before.filter(|before| before.read.iter().map(|(print, _)| print).eq(&given)) {
            return Ok(before.clone());
        }
        let known: HashMap<_, _> = before.iter().flat_map(|before| before.read.iter().cloned()).collect();
        let mut certificates = Certificates::default();
        for (index, (certificate, print)) in from.iter().zip(given).enumerate() {
            let named = match known.get(&print) {
                Some(named) => named.clone(),
                None => read(&self.provider, certificate)
                    .map(Arc::new)
                    .map_err(|source| SnapshotError::Certificate { index, source })?,
            };
            certificates.add(&named);
            certificates.read.push((print, named));
        }
        Ok(Arc::new(certificates))
    }
}

/// A certificate with its names.
struct Named {
    key: Arc<CertifiedKey>,
    exact: Vec<Box<str>>,
    /// What follows `*.`.
    wildcard: Vec<Box<str>>,
}

fn read(provider: &CryptoProvider, certificate: &Certificate) -> Result<Named, CertificateError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate.chain_pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| CertificateError::Chain(error.into()))?;
    let leaf = chain.first().ok_or(CertificateError::Empty)?.clone();
    let key = PrivateKeyDer::from_pem_slice(certificate.key_pem.as_bytes())
        .map_err(|error| CertificateError::Key(error.into()))?;
    let key = CertifiedKey::from_der(chain, key, provider).map_err(|error| CertificateError::Pair(error.into()))?;
    let leaf = webpki::EndEntityCert::try_from(&leaf).map_err(|error| CertificateError::Malformed(error.into()))?;
    let mut named = Named { key: Arc::new(key), exact: Vec::new(), wildcard: Vec::new() };
    for name in leaf.valid_dns_names() {
        let (names, name) = match name.strip_prefix("*.") {
            Some(suffix) => (&mut named.wildcard, suffix),
            None => (&mut named.exact, name),
        };
        names.extend(normal(name).map(Box::from));
    }
    if named.exact.is_empty() && named.wildcard.is_empty() { Err(CertificateError::NoName) } else { Ok(named) }
}

/// What no other certificate with its key has.
type Fingerprint = [u8; blake3::OUT_LEN];

fn fingerprint(certificate: &Certificate) -> Fingerprint {
    let mut hasher = blake3::Hasher::new();
    // So that nothing can be moved from the one text to the other.
    hasher.update(&(certificate.chain_pem.len() as u64).to_be_bytes());
    hasher.update(certificate.chain_pem.as_bytes()).update(certificate.key_pem.as_bytes());
    hasher.finalize().into()
}

impl Certificate {
    /// Whether a snapshot with it is taken, as far as it is concerned.
    pub fn check(&self) -> Result<(), CertificateError> {
        read(&rustls::crypto::ring::default_provider(), self).map(drop)
    }
}

#[derive(Default)]
pub(crate) struct Certificates {
    exact: HashMap<Box<str>, Arc<CertifiedKey>>,
    /// By what follows `*.`; the star is exactly one label.
    wildcard: HashMap<Box<str>, Arc<CertifiedKey>>,
    /// All that were given, in their order.
    read: Vec<(Fingerprint, Arc<Named>)>,
}

impl Certificates {
    fn add(&mut self, Named { key, exact, wildcard }: &Named) {
        for (names, map) in [(exact, &mut self.exact), (wildcard, &mut self.wildcard)] {
            for name in names {
                map.entry(name.clone()).or_insert_with(|| key.clone());
            }
        }
    }

    pub fn of(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        self.exact.get(name).or_else(|| {
            let (label, suffix) = name.split_once('.')?;
            self.wildcard.get(suffix).filter(|_| !label.is_empty())
        })
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.of(&normal(hello.server_name()?)?).cloned()
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.exact.keys()).entries(self.wildcard.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(names: &[&str]) -> Certificate {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        Certificate { chain_pem: made.cert.pem(), key_pem: made.signing_key.serialize_pem() }
    }

    #[test]
    fn an_exact_name_goes_before_a_wildcard_of_one_label() {
        let tls = Tls::new().unwrap();
        let given =
            [certificate(&["*.a.example"]), certificate(&["x.a.example", "A.example"]), certificate(&["a.example"])];
        let certificates = tls.certificates(&given, None).unwrap();
        let chosen = |name: &str| {
            let chosen = certificates.of(name)?.cert[0].clone();
            given.iter().position(|one| CertificateDer::from_pem_slice(one.chain_pem.as_bytes()).unwrap() == chosen)
        };
        assert_eq!(chosen("y.a.example"), Some(0));
        assert_eq!(chosen("x.a.example"), Some(1));
        assert_eq!(chosen("a.example"), Some(1), "the first of two");
        for none in ["y.x.a.example", ".a.example", "b.example", "example"] {
            assert_eq!(chosen(none), None, "{none}");
        }
    }

    #[test]
    fn what_was_read_is_not_read_again() {
        let tls = Tls::new().unwrap();
        let [a, b, c] = ["a.example", "b.example", "c.example"].map(|name| certificate(&[name]));
        let before = tls.certificates(&[a.clone(), b.clone()], None).unwrap();
        let same = tls.certificates(&[a.clone(), b.clone()], Some(&before)).unwrap();
        assert!(Arc::ptr_eq(&before, &same));

        let after = tls.certificates(&[c, a.clone()], Some(&before)).unwrap();
        let kept = |name| Arc::ptr_eq(after.of(name).unwrap(), before.of(name).unwrap());
        assert!(kept("a.example"));
        assert!(after.of("b.example").is_none() && after.of("c.example").is_some());
        let again = tls.certificates(&[a, b], Some(&after)).unwrap();
        assert!(again.of("b.example").is_some() && again.of("c.example").is_none());
    }

    #[test]
    fn the_order_counts_where_two_are_for_a_name() {
        let tls = Tls::new().unwrap();
        let given = [certificate(&["a.example"]), certificate(&["a.example"])];
        let before = tls.certificates(&given, None).unwrap();
        let [first, second] = given;
        let after = tls.certificates(&[second, first], Some(&before)).unwrap();
        assert_ne!(after.of("a.example").unwrap().cert, before.of("a.example").unwrap().cert);
    }

    #[test]
    fn a_certificate_of_no_use_is_refused() {
        let tls = Tls::new().unwrap();
        let (one, other) = (certificate(&["a.example"]), certificate(&["b.example"]));
        let before = tls.certificates(&[one.clone(), other.clone()], None).unwrap();
        let refused = |chain_pem: &str, key_pem: &str| {
            let given = Certificate { chain_pem: chain_pem.to_owned(), key_pem: key_pem.to_owned() };
            match tls.certificates(&[one.clone(), given], Some(&before)).map(drop).unwrap_err() {
                SnapshotError::Certificate { index: 1, source } => source,
                other => panic!("{other:?}"),
            }
        };
        assert!(matches!(refused(&one.chain_pem, &other.key_pem), CertificateError::Pair(_)));
        assert!(matches!(refused("", &one.key_pem), CertificateError::Empty));
        assert!(matches!(refused(&one.chain_pem, "x"), CertificateError::Key(_)));
        assert!(matches!(refused(&certificate(&[]).chain_pem, &one.key_pem), CertificateError::Pair(_)));
        let unnamed = certificate(&["192.0.2.1"]);
        assert!(matches!(refused(&unnamed.chain_pem, &unnamed.key_pem), CertificateError::NoName));
    }
}
