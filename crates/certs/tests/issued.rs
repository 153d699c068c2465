//! Certificates that were issued, as a client sees them: by a TLS handshake.

use std::io;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use warren_certs::authority::{Authority, AuthorityError, LEAF_LIFETIME, ROOT_LIFETIME};
use warren_certs::{Certificate, KeyPem};
use warren_model::policy::HostName;

fn name(text: &str) -> HostName {
    text.parse().unwrap()
}

fn authority() -> Authority {
    Authority::create("Warren test", Timestamp::now()).unwrap()
}

/// Whether a client that trusts only `root` gets to talk to a server with `certificate` under `host`.
fn handshake(certificate: &Certificate, root: &str, host: &str) -> Result<(), rustls::Error> {
    let provider = || Arc::new(rustls::crypto::ring::default_provider());
    let chain = CertificateDer::pem_slice_iter(certificate.chain_pem().as_bytes()).collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(certificate.key_pem().expose().as_bytes()).unwrap();
    let server = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(root.as_bytes()).unwrap()).unwrap();
    let client = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), ServerName::try_from(host.to_owned()).unwrap()).unwrap();
    for _ in 0..10 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut read: &[u8] = &bytes;
        while !read.is_empty() {
            server.read_tls(&mut read).unwrap();
        }
        server.process_new_packets()?;
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut read: &[u8] = &bytes;
        while !read.is_empty() {
            client.read_tls(&mut read).unwrap();
        }
        client.process_new_packets()?;
        if !client.is_handshaking() && !server.is_handshaking() {
            return Ok(());
        }
    }
    panic!("{}", io::Error::other("the handshake does not end"));
}

#[test]
fn a_client_that_trusts_the_root_accepts_what_it_issues_and_under_no_other_name() {
    let authority = authority();
    let leaf = authority.issue(&name("a.preview.example.com"), LEAF_LIFETIME, Timestamp::now()).unwrap();
    assert_eq!(handshake(&leaf, authority.root_pem(), "a.preview.example.com"), Ok(()));
    assert!(handshake(&leaf, authority.root_pem(), "b.preview.example.com").is_err());
    assert!(handshake(&leaf, self::authority().root_pem(), "a.preview.example.com").is_err());
}

#[test]
fn lifetimes_are_ten_years_and_ninety_days_and_a_leaf_ends_with_its_root() {
    let authority = authority();
    let root = authority.validity();
    let skew = SignedDuration::from_hours(1);
    assert_eq!(root.lifetime(), ROOT_LIFETIME + skew);
    let leaf = authority.issue(&name("a.example.com"), LEAF_LIFETIME, Timestamp::now()).unwrap();
    assert_eq!(leaf.validity().lifetime(), LEAF_LIFETIME + skew);
    let late = root.not_after - SignedDuration::from_hours(2);
    let short = authority.issue(&name("a.example.com"), LEAF_LIFETIME, late).unwrap();
    assert_eq!(short.validity().not_after, root.not_after);
    let over = authority.issue(&name("a.example.com"), LEAF_LIFETIME, root.not_after);
    assert!(matches!(over, Err(AuthorityError::Expired { .. })));
}

#[test]
fn an_authority_comes_back_from_what_was_stored() {
    let first = authority();
    let (root, key) = (first.root_pem().to_owned(), first.key_pem());
    drop(first);
    let again = Authority::load(&root, &key).unwrap();
    assert_eq!(again.root_pem(), root);
    let leaf = again.issue(&name("a.example.com"), LEAF_LIFETIME, Timestamp::now()).unwrap();
    assert_eq!(handshake(&leaf, &root, "a.example.com"), Ok(()));
    let stored = Certificate::from_pem(leaf.chain_pem(), leaf.key_pem().expose()).unwrap();
    assert_eq!(stored, leaf);
}

#[test]
fn what_is_no_authority_is_not_loaded() {
    let (first, other) = (authority(), authority());
    assert!(matches!(Authority::load(first.root_pem(), &other.key_pem()), Err(AuthorityError::Mismatch)));
    assert!(matches!(Authority::load("", &other.key_pem()), Err(AuthorityError::Root(_))));
    let none = KeyPem::new(String::new());
    assert!(matches!(Authority::load(first.root_pem(), &none), Err(AuthorityError::Key(_))));
    let leaf = first.issue(&name("a.example.com"), LEAF_LIFETIME, Timestamp::now()).unwrap();
    let refused = Authority::load(leaf.chain_pem(), leaf.key_pem());
    assert!(matches!(refused, Err(AuthorityError::NotAnAuthority)), "{refused:?}");
}
