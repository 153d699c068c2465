//! Secrets of keys, and random numbers.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use ulid::Ulid;

use crate::error::ApiError;

/// The kernel gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the kernel gave no random bytes: {0}")]
pub struct NoRandomness(getrandom::Error);

impl From<NoRandomness> for ApiError {
    fn from(error: NoRandomness) -> Self {
        tracing::error!(error = &error as &dyn std::error::Error, "no randomness");
        Self::internal()
    }
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0u8; N];
    getrandom::fill(&mut bytes).map_err(NoRandomness)?;
    Ok(bytes)
}

/// What the secret of an account's key begins with, and that of an identity's token.
pub(crate) const KEY: &str = "wk_";
pub(crate) const TOKEN: &str = "wt_";

/// A new secret: what it begins with, and 32 random bytes in base64url.
pub(crate) fn new_secret(prefix: &str) -> Result<String, NoRandomness> {
    Ok(format!("{prefix}{}", URL_SAFE_NO_PAD.encode(random::<32>()?)))
}

/// What the store knows of a secret: its blake3 hash in hex. A secret has 256 random bits, so no salt and no slow
/// hash is needed.
pub(crate) fn hash(secret: &str) -> String {
    blake3::hash(secret.as_bytes()).to_hex().to_string()
}

/// A ULID of this instant.
pub(crate) fn ulid(now: Timestamp) -> Result<Ulid, NoRandomness> {
    let mut bits = [0u8; 16];
    bits[6..].copy_from_slice(&random::<10>()?);
    let millis = u64::try_from(now.as_millisecond()).unwrap_or(0);
    Ok(Ulid::from_parts(millis, u128::from_be_bytes(bits)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_its_kind_and_43_characters() {
        for kind in [KEY, TOKEN] {
            let secret = new_secret(kind).unwrap();
            assert_eq!(secret.len(), 46);
            assert!(secret.starts_with(kind));
            assert_ne!(secret, new_secret(kind).unwrap());
        }
    }
}
