//! Certificates from an authority that speaks ACME (RFC 8555), by HTTP-01 challenges (§8.3).
//!
//! An [`Account`] belongs to one [`Directory`]. [`Account::issue`] orders a certificate: for each name the authority
//! gives a token and then fetches `http://NAME/.well-known/acme-challenge/TOKEN`. The caller's [`Challenges`] has that
//! path answered while the order runs. Every error says what the authority said, and [`AcmeError::outlook`] says
//! whether asking again can help. No request is repeated behind the caller's back, except for a used-up nonce and
//! for the state of an order that is in work, where `Retry-After` is kept.
//!
//! One call at a time per set of names is enough; an [`Account`] is cheap to clone and may run several orders at once.

mod directory;
mod error;
mod order;
mod transport;

use async_trait::async_trait;
use instant_acme::NewAccount;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use warren_model::policy::HostName;

pub use directory::{Directory, DirectoryError};
pub use error::{AcmeError, Outlook, Problem, Step};

use crate::renewal::Window;
use crate::{Certificate, KeyPem, pem};

/// Answers challenges on port 80 of the names that a certificate is asked for.
#[async_trait]
pub trait Challenges: Send + Sync {
    /// From when this returns until the token is withdrawn, a GET of `/.well-known/acme-challenge/{token}` under any of
    /// the names has to be answered with exactly `key_authorization` (RFC 8555 §8.3). The token is made of letters,
    /// digits, `-` and `_`; the key authorization is that and a dot. Neither is a secret.
    async fn publish(
        &self,
        token: &str,
        key_authorization: &str,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;

    /// Called once for each token that was handed to `publish`, whatever became of it, unless the order's future is
    /// dropped before it is done.
    async fn withdraw(&self, token: &str);
}

/// One plain e-mail address, as RFC 8555 §7.3 wants it: no list, no header fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Email(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not one e-mail address, like ops@example.com")]
pub struct InvalidEmail(String);

impl std::str::FromStr for Email {
    type Err = InvalidEmail;

    fn from_str(text: &str) -> Result<Self, InvalidEmail> {
        let plain = |byte: u8| byte.is_ascii_graphic() && !b",?%&<>()\"\\;:".contains(&byte);
        let valid = text.len() <= 254
            && text.bytes().all(plain)
            && text.split_once('@').is_some_and(|(user, host)| {
                !user.is_empty() && !host.contains('@') && !host.is_empty() && host.contains('.')
            });
        if valid { Ok(Self(text.to_owned())) } else { Err(InvalidEmail(text.chars().take(80).collect())) }
    }
}

/// What an account is opened with again. Holds its private key: to be stored where only its owner can read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// The URL of the directory that the account is at.
    pub directory: String,
    /// The URL that the authority gave to the account.
    pub account: String,
    pub key: KeyPem,
}

/// An account at an authority.
#[derive(Clone)]
pub struct Account {
    inner: instant_acme::Account,
    credentials: Credentials,
}

impl Account {
    /// Registers a new account, with a key made here, and agrees to the authority's terms of service (RFC 8555 §7.3).
    /// `contact` is where the authority may write to. Store its [`credentials`](Self::credentials).
    pub async fn create(directory: &Directory, contact: Option<&Email>) -> Result<Self, AcmeError> {
        let contact = contact.map(|email| format!("mailto:{}", email.0));
        let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
        let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let (inner, stored) = directory
            .builder()
            .create(&new, directory.url().to_owned(), None)
            .await
            .map_err(AcmeError::at(Step::Account))?;
        let key = PrivatePkcs8KeyDer::from(stored.private_key().secret_pkcs8_der());
        let credentials = Credentials {
            directory: directory.url().to_owned(),
            account: inner.id().to_owned(),
            key: pem::of_key(&PrivateKeyDer::Pkcs8(key)),
        };
        Ok(Self { inner, credentials })
    }

    /// Opens an account that was made before. The directory is fetched; whether the account still exists shows with the
    /// first order ([`Outlook::NewAccount`]).
    pub async fn open(directory: &Directory, credentials: &Credentials) -> Result<Self, AcmeError> {
        if credentials.directory != directory.url() {
            return Err(AcmeError::OtherDirectory {
                account: credentials.directory.clone(),
                directory: directory.url().to_owned(),
            });
        }
        let key = pem::private_key(credentials.key.expose()).map_err(|_| AcmeError::Credentials)?;
        let PrivateKeyDer::Pkcs8(key) = &*key else { return Err(AcmeError::Credentials) };
        let inner = directory
            .builder()
            .from_parts(credentials.account.clone(), key.clone_key(), directory.url().to_owned())
            .await
            .map_err(AcmeError::at(Step::Directory))?;
        Ok(Self { inner, credentials: credentials.clone() })
    }

    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// Orders a certificate for all of the names, with a new P-256 key. Takes seconds, and 5 minutes at most (and
    /// what `withdraw` takes).
    pub async fn issue(&self, names: &[HostName], challenges: &dyn Challenges) -> Result<Certificate, AcmeError> {
        order::issue(&self.inner, names, None, challenges).await
    }

    /// Like [`issue`](Self::issue), and tells an authority that wants to know which certificate is replaced (RFC 9773
    /// §5); some do not count such orders against their limits.
    pub async fn renew(
        &self,
        names: &[HostName],
        previous: &Certificate,
        challenges: &dyn Challenges,
    ) -> Result<Certificate, AcmeError> {
        order::issue(&self.inner, names, Some(previous), challenges).await
    }

    /// When the authority would like this certificate to be renewed (RFC 9773 §4); `None` where it does not say.
    /// An error is no reason to put a renewal off: go on as with `None`.
    pub async fn renewal_window(&self, certificate: &Certificate) -> Result<Option<Window>, AcmeError> {
        order::renewal_window(&self.inner, certificate).await
    }
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Account").field("credentials", &self.credentials).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_plain_address_is_taken_and_nothing_else() {
        assert!("ops@example.com".parse::<Email>().is_ok());
        assert!("ops+acme@mail.example.com".parse::<Email>().is_ok());
        for text in ["ops", "@example.com", "ops@", "a@b.c,d@e.f", "a@b.c?subject=x", "a b@c.d", "a@b@c.d", "é@b.c"] {
            assert!(text.parse::<Email>().is_err(), "{text}");
        }
    }

    #[test]
    fn credentials_survive_as_json_and_are_not_shown() {
        let credentials = Credentials {
            directory: "https://ca.example/dir".to_owned(),
            account: "https://ca.example/account/1".to_owned(),
            key: KeyPem::new(rcgen::KeyPair::generate().unwrap().serialize_pem()),
        };
        let text = serde_json::to_string(&credentials).unwrap();
        assert_eq!(serde_json::from_str::<Credentials>(&text).unwrap(), credentials);
        assert!(!format!("{credentials:?}").contains("BEGIN"));
    }
}
