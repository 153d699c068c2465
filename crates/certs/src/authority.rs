//! An internal certificate authority: a root that the operator gives to clients, and certificates below it.
//!
//! The root is made once, its key and certificate are stored by the caller, and it signs hosts' certificates directly.

use jiff::{SignedDuration, Timestamp};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use warren_model::policy::HostName;
use zeroize::Zeroize;

use crate::certificate::{self, Validity};
use crate::{Certificate, InvalidCertificate, InvalidChain, InvalidKey, KeyPem, pem};

/// How long a root is valid: ten years of 365.25 days.
pub const ROOT_LIFETIME: SignedDuration = SignedDuration::from_hours(87_660);
/// How long a host's certificate is valid, unless said otherwise: 90 days.
pub const LEAF_LIFETIME: SignedDuration = SignedDuration::from_hours(90 * 24);
/// Clocks of clients may be this much behind.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_hours(1);

/// An authority with its private key, which is wiped from memory when this is dropped.
pub struct Authority {
    root: CertificateDer<'static>,
    root_pem: String,
    key: KeyPair,
    validity: Validity,
}

/// Why there is no authority, or no certificate from it.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("the root certificate cannot be used: {0}")]
    Root(InvalidChain),
    #[error("the certificate is not one of an authority")]
    NotAnAuthority,
    #[error("the key of the root cannot be used: {0}")]
    Key(InvalidKey),
    #[error("the key does not belong to the root certificate")]
    Mismatch,
    #[error("the root certificate has expired, at {at}; make a new authority, and give its root to the clients")]
    Expired { at: Timestamp },
    #[error("{0} is not a time that a certificate can have")]
    Time(Timestamp),
    #[error("the certificate could not be made: {0}")]
    Make(String),
    #[error("the certificate that was made is of no use: {0}")]
    Made(InvalidCertificate),
}

impl Authority {
    /// Makes a root with a new P-256 key, valid for [`ROOT_LIFETIME`]. `name` is what clients show for it.
    pub fn create(name: &str, now: Timestamp) -> Result<Self, AuthorityError> {
        let mut params = CertificateParams::default();
        (params.not_before, params.not_after) = dates(now, now.saturating_add(ROOT_LIFETIME).unwrap_or(now))?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(not_made)?;
        let root = params.self_signed(&key).map_err(not_made)?;
        Self::of(root.der().clone(), key)
    }

    /// Reads back a root and its key (PKCS#8).
    pub fn load(root_pem: &str, key_pem: &KeyPem) -> Result<Self, AuthorityError> {
        let mut certificates =
            pem::certificates(root_pem).map_err(|error| AuthorityError::Root(InvalidChain::Pem(error.to_string())))?;
        if certificates.is_empty() {
            return Err(AuthorityError::Root(InvalidChain::Missing));
        }
        let key = pem::private_key(key_pem.expose()).map_err(AuthorityError::Key)?;
        let key = KeyPair::try_from(&*key).map_err(|_| AuthorityError::Key(InvalidKey::Unsupported))?;
        Self::of(certificates.swap_remove(0), key)
    }

    /// What clients have to trust.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// To be stored where only its owner can read it.
    pub fn key_pem(&self) -> KeyPem {
        KeyPem::new(self.key.serialize_pem())
    }

    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// A certificate for a name, with a new P-256 key. It ends with the root, if that is earlier than `lifetime`
    /// (usually [`LEAF_LIFETIME`]) from now.
    pub fn issue(
        &self,
        name: &HostName,
        lifetime: SignedDuration,
        now: Timestamp,
    ) -> Result<Certificate, AuthorityError> {
        if self.validity.not_after <= now {
            return Err(AuthorityError::Expired { at: self.validity.not_after });
        }
        let mut params = CertificateParams::default();
        let end = now.saturating_add(lifetime).unwrap_or(now).min(self.validity.not_after);
        (params.not_before, params.not_after) = dates(now, end)?;
        params.distinguished_name = DistinguishedName::new();
        let text = Ia5String::try_from(name.as_str()).map_err(not_made)?;
        params.subject_alt_names = vec![SanType::DnsName(text)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_der(&self.root, &self.key).map_err(not_made)?;
        let mut key = KeyPair::generate().map_err(not_made)?;
        let leaf = params.signed_by(&key, &issuer);
        let key_pem = KeyPem::new(key.serialize_pem());
        key.zeroize();
        Certificate::from_pem(&leaf.map_err(not_made)?.pem(), key_pem.expose()).map_err(AuthorityError::Made)
    }

    fn of(root: CertificateDer<'static>, key: KeyPair) -> Result<Self, AuthorityError> {
        let unreadable = |reason| AuthorityError::Root(InvalidChain::Unreadable { position: 1, reason });
        let parsed = certificate::parse(&root).map_err(unreadable)?;
        if !parsed.is_ca() {
            return Err(AuthorityError::NotAnAuthority);
        }
        if parsed.public_key().raw != rcgen::PublicKeyData::subject_public_key_info(&key) {
            return Err(AuthorityError::Mismatch);
        }
        let validity =
            certificate::validity(&parsed).ok_or_else(|| unreadable("its dates are out of range".to_owned()))?;
        drop(parsed);
        Ok(Self { root_pem: pem::of_certificates(std::slice::from_ref(&root)), root, key, validity })
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("validity", &self.validity).finish_non_exhaustive()
    }
}

fn not_made(error: rcgen::Error) -> AuthorityError {
    AuthorityError::Make(error.to_string())
}

fn dates(now: Timestamp, end: Timestamp) -> Result<(OffsetDateTime, OffsetDateTime), AuthorityError> {
    let at =
        |time: Timestamp| OffsetDateTime::from_unix_timestamp(time.as_second()).map_err(|_| AuthorityError::Time(time));
    Ok((at(now.saturating_sub(CLOCK_SKEW).unwrap_or(now))?, at(end)?))
}
