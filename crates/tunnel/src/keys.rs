//! Keys, as WireGuard writes them: 32 bytes, in base64 with padding (44 characters).

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

/// A text that is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a WireGuard key is 32 bytes in base64, which are 44 characters")]
pub struct KeyError;

/// The secret half of a key pair. Its memory is overwritten when it goes.
#[derive(Clone)]
pub struct PrivateKey(StaticSecret);

/// The half of a key pair that everybody may know.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

/// A secret that both peers have on top of their key pairs. Its memory is overwritten when it goes.
#[derive(Clone)]
pub struct PresharedKey(Zeroizing<[u8; 32]>);

impl PrivateKey {
    /// # Errors
    ///
    /// When the kernel gives no random numbers.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = Zeroizing::new([0; 32]);
        getrandom::fill(bytes.as_mut_slice())?;
        Ok(Self::from_bytes(&bytes))
    }

    /// Any 32 bytes are a private key (RFC 7748 §5: the bits that have to be set are set).
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        let mut clamped = Zeroizing::new(*bytes);
        clamped[0] &= 248;
        clamped[31] = (clamped[31] & 127) | 64;
        Self(StaticSecret::from(*clamped))
    }

    pub fn public_key(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&self.0).to_bytes())
    }

    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(*self.0.as_bytes())
    }

    /// The line of a configuration file.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0.as_bytes()))
    }

    /// X25519. Nothing when the other key is one of those that make the outcome independent of ours.
    pub(crate) fn agree(&self, other: &PublicKey) -> Option<Zeroizing<[u8; 32]>> {
        let shared = self.0.diffie_hellman(&x25519_dalek::PublicKey::from(other.0));
        shared.was_contributory().then(|| Zeroizing::new(*shared.as_bytes()))
    }
}

impl PublicKey {
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl PresharedKey {
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(Zeroizing::new(*bytes))
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for PrivateKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(|bytes| Self::from_bytes(&bytes))
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(|bytes| Self(*bytes))
    }
}

impl FromStr for PresharedKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PublicKey({self})")
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("PrivateKey(..)")
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("PresharedKey(..)")
    }
}

fn decode(text: &str) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    let mut bytes = Zeroizing::new([0; 33]);
    let length = STANDARD.decode_slice(text, bytes.as_mut_slice()).map_err(|_| KeyError)?;
    let key: [u8; 32] = bytes[..length].try_into().map_err(|_| KeyError)?;
    Ok(Zeroizing::new(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_key_is_what_wg_pubkey_prints() {
        // RFC 7748 §6.1, in base64.
        let private: PrivateKey = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=".parse().unwrap();
        assert_eq!(private.public_key().to_string(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
        assert_eq!(private.public_key().to_string().parse::<PublicKey>().unwrap(), private.public_key());
        let again: PrivateKey = private.to_base64().parse().unwrap();
        assert_eq!(again.public_key(), private.public_key());
    }

    #[test]
    fn a_text_that_is_no_key_is_refused() {
        let texts = [
            "",
            "AAAA",
            "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo",
            "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmoAAA==",
        ];
        for text in texts.into_iter().chain(["!SDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="]) {
            assert_eq!(text.parse::<PublicKey>(), Err(KeyError), "{text}");
        }
        assert!("A".repeat(100_000).parse::<PublicKey>().is_err());
    }

    #[test]
    fn secrets_are_not_printed() {
        let private = PrivateKey::generate().unwrap();
        assert_eq!(format!("{private:?}"), "PrivateKey(..)");
        assert_eq!(format!("{:?}", PresharedKey::from_bytes(&[7; 32])), "PresharedKey(..)");
    }

    #[test]
    fn a_key_of_small_order_agrees_on_nothing() {
        let private = PrivateKey::generate().unwrap();
        let mut one = [0; 32];
        one[0] = 1;
        assert!(private.agree(&PublicKey([0; 32])).is_none());
        assert!(private.agree(&PublicKey(one)).is_none());
    }
}
