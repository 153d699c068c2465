//! An authority's directory: its address, and whom to trust when it is asked.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use instant_acme::{Account, AccountBuilder};
use rustls::{ClientConfig, RootCertStore};

use super::transport::Client;
use crate::pem;

/// Where an authority is found (RFC 8555 §7.1.1).
#[derive(Clone)]
pub struct Directory {
    url: String,
    tls: Arc<ClientConfig>,
}

/// Why an authority cannot be asked. All of them need a change of the settings.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    #[error("{0:?} is not the address of an ACME directory; give it as https://HOST/PATH")]
    Url(String),
    #[error("cannot read the CA file {}: {source}; check the path and that the server may read it", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error(
        "the CA file {} is of no use: {reason}; give the root certificate of the ACME server's own TLS as PEM",
        path.display()
    )]
    Ca { path: PathBuf, reason: String },
    #[error("this host has no root certificates: {reason}; install the package ca-certificates, or give a CA file")]
    NoRoots { reason: String },
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}

impl Directory {
    /// The host's root certificates are trusted, and those in `ca_file` (PEM) besides. Reads files.
    pub fn new(url: &str, ca_file: Option<&Path>) -> Result<Self, DirectoryError> {
        Self::check(url)?;
        let mut roots = RootCertStore::empty();
        let native = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(native.certs);
        if let Some(path) = ca_file {
            add_file(&mut roots, path)?;
        }
        if roots.is_empty() {
            let reason = native.errors.first().map_or_else(|| "none were found".to_owned(), ToString::to_string);
            return Err(DirectoryError::NoRoots { reason });
        }
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| DirectoryError::Tls(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { url: url.to_owned(), tls: Arc::new(tls) })
    }

    /// Whether this can be the address of a directory: `https://HOST/…`.
    pub fn check(url: &str) -> Result<(), DirectoryError> {
        let uri: Option<http::Uri> = url.parse().ok();
        match uri.filter(|uri| uri.scheme_str() == Some("https") && uri.host().is_some_and(|host| !host.is_empty())) {
            Some(_) => Ok(()),
            None => Err(DirectoryError::Url(url.chars().take(200).collect())),
        }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn builder(&self) -> AccountBuilder {
        Account::builder_with_http(Box::new(Client::new(ClientConfig::clone(&self.tls))))
    }
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Directory").field("url", &self.url).finish_non_exhaustive()
    }
}

fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), DirectoryError> {
    let refused = |reason: String| DirectoryError::Ca { path: path.to_owned(), reason };
    let text =
        std::fs::read_to_string(path).map_err(|source| DirectoryError::Read { path: path.to_owned(), source })?;
    let certificates = pem::certificates(&text).map_err(|error| refused(error.to_string()))?;
    if certificates.is_empty() {
        return Err(refused("it has no certificate in PEM form".to_owned()));
    }
    for certificate in certificates {
        roots.add(certificate).map_err(|error| refused(error.to_string()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_is_an_address_of_a_directory() {
        for url in ["", "ca.example", "http://ca.example/dir", "https://", "https:///dir", "ftp://ca.example", "/dir"] {
            assert!(matches!(Directory::new(url, None), Err(DirectoryError::Url(_))), "{url}");
        }
    }

    #[test]
    fn a_ca_file_that_is_of_no_use_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("none.pem");
        let error = Directory::new("https://ca.example/dir", Some(&missing)).unwrap_err();
        assert!(matches!(error, DirectoryError::Read { .. }));
        assert!(error.to_string().contains("none.pem"), "{error}");
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "hello").unwrap();
        let error = Directory::new("https://ca.example/dir", Some(&empty)).unwrap_err();
        assert!(matches!(error, DirectoryError::Ca { .. }));
        assert!(error.to_string().contains("empty.pem"), "{error}");
    }

    #[test]
    fn a_private_authority_is_trusted_by_its_ca_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let key = rcgen::KeyPair::generate().unwrap();
        let root = rcgen::CertificateParams::new(vec!["ca.example".to_owned()]).unwrap().self_signed(&key).unwrap();
        std::fs::write(&path, root.pem()).unwrap();
        assert_eq!(Directory::new("https://ca.example/dir", Some(&path)).unwrap().url(), "https://ca.example/dir");
    }
}
