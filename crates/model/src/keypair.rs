//! WireGuard key pairs, for whoever makes them: the server for clients that ask it to, and `warren vpn up`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use crate::session::WireGuardKey;

/// The secret half of a key pair. Its memory is overwritten when it goes, and it is never printed.
pub struct PrivateKey(StaticSecret);

impl PrivateKey {
    /// Any 32 random bytes are a private key (RFC 7748 §5: the bits that have to be set are set).
    pub fn from_random(bytes: &[u8; 32]) -> Self {
        let mut clamped = Zeroizing::new(*bytes);
        clamped[0] &= 248;
        clamped[31] = (clamped[31] & 127) | 64;
        Self(StaticSecret::from(*clamped))
    }

    pub fn public_key(&self) -> WireGuardKey {
        WireGuardKey::from_bytes(x25519_dalek::PublicKey::from(&self.0).to_bytes())
    }

    /// As it stands in a configuration file.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0.as_bytes()))
    }
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// Whether a peer can have this key: no program that makes keys writes one of the others.
///
/// A key of low order agrees on the same secret with everybody (RFC 7748 §6.1), and one that is not written in its
/// shortest form is not the one that its owner proves to have (whitepaper §5.4.2).
pub fn is_usable(key: &WireGuardKey) -> bool {
    is_reduced(key.as_bytes()) && {
        // Private keys are multiples of the cofactor, so it depends on the public key alone.
        let any = PrivateKey::from_random(&[1; 32]);
        any.0.diffie_hellman(&x25519_dalek::PublicKey::from(*key.as_bytes())).was_contributory()
    }
}

/// Whether the number, in little endian, is below 2^255 - 19.
fn is_reduced(bytes: &[u8; 32]) -> bool {
    let [lowest, middle @ .., highest] = bytes;
    *highest < 0x7f || (*highest == 0x7f && (middle.iter().any(|byte| *byte != 0xff) || *lowest < 0xed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_key_is_what_wg_pubkey_prints() {
        // RFC 7748 §6.1, in base64.
        let bytes = STANDARD.decode("dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=").unwrap();
        let private = PrivateKey::from_random(&bytes.try_into().unwrap());
        assert_eq!(private.public_key().to_string(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
        assert_eq!(private.to_base64().len(), 44);
        assert_eq!(format!("{private:?}"), "PrivateKey(..)");
        assert!(is_usable(&private.public_key()));
    }

    #[test]
    fn keys_of_low_order_and_keys_written_in_another_form_are_told() {
        let mut unusable = vec![[0; 32], [0xff; 32]];
        let mut one = [0; 32];
        one[0] = 1;
        unusable.push(one);
        // 2^255 - 19 + 9 is 9, the base point.
        let mut nine = [0xff; 32];
        (nine[0], nine[31]) = (0xed + 9, 0x7f);
        unusable.push(nine);
        let mut masked = *PrivateKey::from_random(&[3; 32]).public_key().as_bytes();
        masked[31] |= 0x80;
        unusable.push(masked);
        for bytes in unusable {
            assert!(!is_usable(&WireGuardKey::from_bytes(bytes)), "{bytes:?}");
        }
        let mut base_point = [0; 32];
        base_point[0] = 9;
        assert!(is_usable(&WireGuardKey::from_bytes(base_point)));
    }
}
