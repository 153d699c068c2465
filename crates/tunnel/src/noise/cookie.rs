//! The macs of handshake messages, and the cookies with which a responder under load makes senders prove that they
//! receive what is sent to their address (whitepaper §5.4.4 and §5.4.7).

use std::net::SocketAddr;

use blake2::Blake2sMac;
use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput as _, KeyInit as _, Update as _};
use chacha20poly1305::XChaCha20Poly1305;
use chacha20poly1305::aead::AeadInOut as _;
use zeroize::Zeroizing;

use super::{COOKIE_REPLY, TYPE_COOKIE_REPLY, hash};
use crate::keys::PublicKey;

pub type Cookie = [u8; 16];
pub type Mac = [u8; 16];

/// Milliseconds for which a cookie and the secret behind it are good.
pub const COOKIE_LIFE: u64 = 120_000;
const MACS: usize = 32;
const LABEL_MAC1: &[u8] = b"mac1----";
const LABEL_COOKIE: &[u8] = b"cookie--";

/// The keys that follow from the public key of whom a message is for.
#[derive(Clone)]
pub struct MacKeys {
    mac1: [u8; 32],
    cookie: [u8; 32],
}

impl MacKeys {
    pub fn new(receiver: &PublicKey) -> Self {
        let key = |label| hash(&[label, receiver.as_bytes()]);
        Self { mac1: key(LABEL_MAC1), cookie: key(LABEL_COOKIE) }
    }

    /// Fills in both macs of a handshake message, and gives the first, to which a cookie reply is bound.
    pub fn write(&self, message: &mut [u8], cookie: Option<&Cookie>) -> Mac {
        let body = message.len() - MACS;
        let mac1 = mac(&self.mac1, &[&message[..body]]);
        message[body..body + 16].copy_from_slice(&mac1);
        let mac2 = cookie.map_or([0; 16], |cookie| mac(cookie, &[&message[..body + 16]]));
        message[body + 16..].copy_from_slice(&mac2);
        mac1
    }

    /// Whether whoever wrote this knows the public key.
    pub fn check1(&self, message: &[u8]) -> bool {
        let body = message.len() - MACS;
        equal(&mac(&self.mac1, &[&message[..body]]), &message[body..body + 16])
    }

    /// The answer to a message whose second mac is missing or wrong.
    pub fn reply(&self, message: &[u8], cookie: &Cookie, nonce: &[u8; 24]) -> [u8; COOKIE_REPLY] {
        let mut reply = [0; COOKIE_REPLY];
        reply[..4].copy_from_slice(&TYPE_COOKIE_REPLY);
        // To the sender's index.
        reply[4..8].copy_from_slice(&message[4..8]);
        reply[8..32].copy_from_slice(nonce);
        reply[32..48].copy_from_slice(cookie);
        let body = message.len() - MACS;
        let cipher = XChaCha20Poly1305::new(&self.cookie.into());
        let tag = cipher.encrypt_inout_detached(nonce.into(), &message[body..body + 16], (&mut reply[32..48]).into());
        // PROOF: fails only for texts of 256 GiB and more.
        reply[48..].copy_from_slice(&tag.expect("a short text"));
        reply
    }

    /// The cookie in an answer to the message that had this first mac.
    pub fn open_reply(&self, reply: &[u8; COOKIE_REPLY], mac1: &Mac) -> Option<Cookie> {
        let nonce: &[u8; 24] = reply[8..32].try_into().ok()?;
        let tag: &[u8; 16] = reply[48..].try_into().ok()?;
        let mut cookie: Cookie = reply[32..48].try_into().ok()?;
        let cipher = XChaCha20Poly1305::new(&self.cookie.into());
        cipher.decrypt_inout_detached(nonce.into(), mac1, cookie.as_mut_slice().into(), tag.into()).ok()?;
        Some(cookie)
    }
}

/// What a responder makes cookies with: a secret that changes, and the one before it, which is still good for a while.
pub struct CookieSecret {
    current: Zeroizing<[u8; 32]>,
    previous: Option<Zeroizing<[u8; 32]>>,
    /// When `current` was made, in milliseconds.
    made: u64,
}

impl CookieSecret {
    pub fn new(random: [u8; 32], now: u64) -> Self {
        Self { current: Zeroizing::new(random), previous: None, made: now }
    }

    pub fn is_old(&self, now: u64) -> bool {
        now.saturating_sub(self.made) >= COOKIE_LIFE
    }

    pub fn renew(&mut self, random: [u8; 32], now: u64) {
        let old = std::mem::replace(&mut self.current, Zeroizing::new(random));
        self.previous = (now.saturating_sub(self.made) < 2 * COOKIE_LIFE).then_some(old);
        self.made = now;
    }

    /// What a sender at this address gets.
    pub fn cookie(&self, from: SocketAddr) -> Cookie {
        bake(&self.current, from)
    }

    /// Whether whoever wrote this got a cookie at this address.
    pub fn check2(&self, message: &[u8], from: SocketAddr) -> bool {
        let body = message.len() - MACS;
        let (bound, mac2) = message.split_at(body + 16);
        let good = |secret: &Zeroizing<[u8; 32]>| equal(&mac(&bake(secret, from), &[bound]), mac2);
        good(&self.current) || self.previous.as_ref().is_some_and(good)
    }
}

fn bake(secret: &Zeroizing<[u8; 32]>, from: SocketAddr) -> Cookie {
    let port = from.port().to_be_bytes();
    match from.ip() {
        std::net::IpAddr::V4(address) => mac(secret.as_slice(), &[&address.octets(), &port]),
        std::net::IpAddr::V6(address) => mac(secret.as_slice(), &[&address.octets(), &port]),
    }
}

/// Keyed BLAKE2s with an output of 16 bytes.
fn mac(key: &[u8], parts: &[&[u8]]) -> Mac {
    // PROOF: fails only for keys of more than 32 bytes; both kinds here have 16 or 32.
    let mut state = Blake2sMac::<U16>::new_from_slice(key).expect("a key of at most 32 bytes");
    for part in parts {
        state.update(part);
    }
    state.finalize_fixed().into()
}

/// In a time that does not depend on where they differ.
fn equal(one: &Mac, other: &[u8]) -> bool {
    one.iter().zip(other).fold(0, |differs, (one, other)| differs | (one ^ other)) == 0 && other.len() == one.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::INITIATION;

    #[test]
    fn a_cookie_lets_a_message_from_the_same_address_pass_and_no_other() {
        let keys = MacKeys::new(&PublicKey::from_bytes([7; 32]));
        let mut secret = CookieSecret::new([1; 32], 0);
        let (here, there): (SocketAddr, SocketAddr) = ("192.0.2.1:1".parse().unwrap(), "192.0.2.1:2".parse().unwrap());
        let mut message = [3; INITIATION];
        let mac1 = keys.write(&mut message, None);
        assert!(keys.check1(&message) && !secret.check2(&message, here));
        let reply = keys.reply(&message, &secret.cookie(here), &[9; 24]);
        let cookie = keys.open_reply(&reply, &mac1).unwrap();
        assert!(keys.open_reply(&reply, &[0; 16]).is_none(), "an answer to another message");
        keys.write(&mut message, Some(&cookie));
        assert!(secret.check2(&message, here) && !secret.check2(&message, there));
        secret.renew([2; 32], COOKIE_LIFE);
        assert!(secret.check2(&message, here), "the secret before is still good");
        secret.renew([3; 32], 2 * COOKIE_LIFE);
        assert!(!secret.check2(&message, here));
    }

    #[test]
    fn a_message_for_another_key_has_the_wrong_mac() {
        let mut message = [3; INITIATION];
        MacKeys::new(&PublicKey::from_bytes([7; 32])).write(&mut message, None);
        assert!(!MacKeys::new(&PublicKey::from_bytes([8; 32])).check1(&message));
    }
}
