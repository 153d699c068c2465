//! What two peers say to agree on keys: Noise_IKpsk2 with WireGuard's messages (whitepaper §5.4), without sockets and
//! clocks. Time, randomness and bytes are parameters.

pub mod cookie;
pub mod handshake;
pub mod limiter;
pub mod replay;

use blake2::{Blake2s256, Digest as _};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

/// Type 1, the initiation (§5.4.2): type, sender, ephemeral, static, timestamp, mac1, mac2.
pub const INITIATION: usize = 148;
/// Type 2, the response (§5.4.3): type, sender, receiver, ephemeral, nothing, mac1, mac2.
pub const RESPONSE: usize = 92;
/// Type 3, the cookie reply (§5.4.7): type, receiver, nonce, cookie.
pub const COOKIE_REPLY: usize = 64;
/// Type 4, the header of transport data (§5.4.6): type, receiver, counter.
pub const DATA_HEADER: usize = 16;
/// What authenticates a ciphertext.
pub const TAG: usize = 16;

pub const TYPE_INITIATION: [u8; 4] = [1, 0, 0, 0];
pub const TYPE_RESPONSE: [u8; 4] = [2, 0, 0, 0];
pub const TYPE_COOKIE_REPLY: [u8; 4] = [3, 0, 0, 0];
pub const TYPE_DATA: [u8; 4] = [4, 0, 0, 0];

type Secret = Zeroizing<[u8; 32]>;

pub(crate) fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut state = Blake2s256::new();
    for part in parts {
        state.update(part);
    }
    state.finalize().into()
}

/// HMAC (RFC 2104) with BLAKE2s, whose block has 64 bytes.
fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> Secret {
    let pad = |with: u8| {
        let mut block = Zeroizing::new([with; 64]);
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let mut inner = Blake2s256::new();
    inner.update(pad(0x36).as_slice());
    for part in parts {
        inner.update(part);
    }
    let inner = Zeroizing::new(<[u8; 32]>::from(inner.finalize()));
    Zeroizing::new(hash(&[pad(0x5c).as_slice(), inner.as_slice()]))
}

/// HKDF (RFC 5869) as far as Noise needs it.
fn kdf1(key: &[u8; 32], input: &[u8]) -> Secret {
    hmac(&hmac(key, &[input]), &[&[1]])
}

fn kdf2(key: &[u8; 32], input: &[u8]) -> (Secret, Secret) {
    let extracted = hmac(key, &[input]);
    let first = hmac(&extracted, &[&[1]]);
    let second = hmac(&extracted, &[first.as_slice(), &[2]]);
    (first, second)
}

fn kdf3(key: &[u8; 32], input: &[u8]) -> (Secret, Secret, Secret) {
    let extracted = hmac(key, &[input]);
    let first = hmac(&extracted, &[&[1]]);
    let second = hmac(&extracted, &[first.as_slice(), &[2]]);
    let third = hmac(&extracted, &[second.as_slice(), &[3]]);
    (first, second, third)
}

fn aead(key: &[u8; 32]) -> LessSafeKey {
    // PROOF: fails only for a key of another length than the algorithm's 32 bytes.
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).expect("32 bytes are a key"))
}

/// Encrypts `out[..length - TAG]` and puts the tag behind it. Each key is used for one message.
fn seal(key: &[u8; 32], bound: &[u8], out: &mut [u8]) {
    let length = out.len() - TAG;
    let (text, tag) = out.split_at_mut(length);
    let sealed = aead(key).seal_in_place_separate_tag(zero(), Aad::from(bound), text);
    // PROOF: fails only for texts of 256 GiB and more.
    tag.copy_from_slice(sealed.expect("a short text").as_ref());
}

/// Decrypts in place what [`seal`] gave.
fn open<'t>(key: &[u8; 32], bound: &[u8], sealed: &'t mut [u8]) -> Option<&'t mut [u8]> {
    aead(key).open_in_place(zero(), Aad::from(bound), sealed).ok()
}

fn zero() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blake2s_hashes_as_rfc_7693_says() {
        // RFC 7693 appendix B.
        let wanted = "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982";
        let got: String = hash(&[b"abc"]).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(got, wanted);
    }
}
