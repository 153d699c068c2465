//! The keys of a session, and what is sealed and opened with them (whitepaper §5.4.6).

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use crate::noise::handshake::TransportKeys;
use crate::noise::replay::Window;
use crate::noise::{DATA_HEADER, TAG, TYPE_DATA};

/// After this many milliseconds the initiator makes new keys.
pub const REKEY_AFTER: u64 = 120_000;
/// After this many milliseconds keys are not used any more.
pub const REJECT_AFTER: u64 = 180_000;
/// Milliseconds of silence after which a peer that got something shows that it is there.
pub const KEEPALIVE: u64 = 10_000;
/// Milliseconds between attempts at a handshake.
pub const REKEY_TIMEOUT: u64 = 5_000;
const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);

/// Why a packet was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Its counter came before, or is too old.
    Replay,
    /// It was not sealed with these keys.
    Forged,
}

/// One session's keys, both directions.
pub struct Keypair {
    sealing: LessSafeKey,
    opening: LessSafeKey,
    /// What the peer receives with.
    pub remote: u32,
    /// What we receive with.
    pub local: u32,
    /// Whether we began the handshake, and so have to begin the next one.
    pub initiator: bool,
    /// Milliseconds.
    pub born: u64,
    /// Set once it was seen to be time for new keys after something was received.
    pub renewing: AtomicBool,
    counter: AtomicU64,
    window: Mutex<Window>,
}

impl Keypair {
    pub fn new(keys: &TransportKeys, remote: u32, local: u32, initiator: bool, now: u64) -> Self {
        Self {
            sealing: key(&keys.sending),
            opening: key(&keys.receiving),
            remote,
            local,
            initiator,
            born: now,
            renewing: AtomicBool::new(false),
            counter: AtomicU64::new(0),
            window: Mutex::new(Window::default()),
        }
    }

    /// Whether something may still be sealed or opened with it.
    pub fn is_alive(&self, now: u64) -> bool {
        now.saturating_sub(self.born) < REJECT_AFTER && self.counter.load(Ordering::Relaxed) < REJECT_AFTER_MESSAGES
    }

    /// Whether we have to begin a handshake before more is sent.
    pub fn is_stale(&self, now: u64) -> bool {
        self.counter.load(Ordering::Relaxed) >= REKEY_AFTER_MESSAGES
            || (self.initiator && now.saturating_sub(self.born) >= REKEY_AFTER)
    }

    /// Reserves the counters of this many packets; nothing when they are used up.
    pub fn reserve(&self, count: u64) -> Option<u64> {
        let first = self.counter.fetch_add(count, Ordering::Relaxed);
        (first < REJECT_AFTER_MESSAGES - count).then_some(first)
    }

    /// Seals a packet where it stands: `packet` begins with space for the header, and ends with space for the tag.
    pub fn seal(&self, counter: u64, packet: &mut [u8]) {
        let end = packet.len() - TAG;
        let (header, rest) = packet.split_at_mut(DATA_HEADER);
        let (text, tag) = rest.split_at_mut(end - DATA_HEADER);
        header[..4].copy_from_slice(&TYPE_DATA);
        header[4..8].copy_from_slice(&self.remote.to_le_bytes());
        header[8..].copy_from_slice(&counter.to_le_bytes());
        // PROOF: fails only for texts of 256 GiB and more.
        let sealed = self.sealing.seal_in_place_separate_tag(nonce(counter), Aad::empty(), text);
        tag.copy_from_slice(sealed.expect("a short text").as_ref());
    }

    /// Opens a packet where it stands, and gives the length of what then begins behind the header.
    pub fn open(&self, packet: &mut [u8]) -> Result<usize, Refused> {
        let (header, sealed) = packet.split_at_mut_checked(DATA_HEADER).ok_or(Refused::Forged)?;
        // PROOF: the header has 16 bytes.
        let counter = u64::from_le_bytes(header[8..].try_into().expect("8 bytes"));
        if counter >= REJECT_AFTER_MESSAGES || !self.window().admits(counter) {
            return Err(Refused::Replay);
        }
        let length =
            self.opening.open_in_place(nonce(counter), Aad::empty(), sealed).map_err(|_| Refused::Forged)?.len();
        if !self.window().take(counter) {
            return Err(Refused::Replay);
        }
        Ok(length)
    }

    fn window(&self) -> std::sync::MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Keypair {
    fn drop(&mut self) {
        // ring does not overwrite its keys: this puts others in their place, and says that somebody will look at them.
        self.sealing = key(&[0; 32]);
        self.opening = key(&[0; 32]);
        black_box((&self.sealing, &self.opening));
    }
}

fn key(bytes: &[u8; 32]) -> LessSafeKey {
    // PROOF: fails only for a key of another length than the algorithm's 32 bytes.
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, bytes).expect("32 bytes are a key"))
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;

    fn pair() -> (Keypair, Keypair) {
        let keys = |sending, receiving| TransportKeys {
            sending: Zeroizing::new([sending; 32]),
            receiving: Zeroizing::new([receiving; 32]),
        };
        (Keypair::new(&keys(1, 2), 10, 20, true, 0), Keypair::new(&keys(2, 1), 20, 10, false, 0))
    }

    fn sealed(keys: &Keypair, text: &[u8]) -> Vec<u8> {
        let mut packet = [&[0; DATA_HEADER], text, &[0; TAG]].concat();
        keys.seal(keys.reserve(1).unwrap(), &mut packet);
        packet
    }

    #[test]
    fn what_one_seals_the_other_opens_once() {
        let (one, other) = pair();
        for text in [b"".as_slice(), b"a", &[7; 1420]] {
            let packet = sealed(&one, text);
            let mut copy = packet.clone();
            let length = other.open(&mut copy).unwrap();
            assert_eq!(&copy[DATA_HEADER..][..length], text);
            assert_eq!(other.open(&mut packet.clone()), Err(Refused::Replay));
        }
    }

    #[test]
    fn a_forged_packet_is_refused_and_does_not_use_up_its_counter() {
        let (one, other) = pair();
        let packet = sealed(&one, b"text");
        for place in 8..packet.len() {
            let mut changed = packet.clone();
            changed[place] ^= 1;
            assert!(other.open(&mut changed).is_err(), "byte {place}");
        }
        for length in 0..packet.len() {
            assert!(other.open(&mut packet[..length].to_vec()).is_err(), "{length} bytes");
        }
        assert!(other.open(&mut packet.clone()).is_ok());
    }

    #[test]
    fn keys_end_after_three_minutes_and_after_their_last_counter() {
        let (one, other) = pair();
        assert!(!one.is_stale(REKEY_AFTER - 1) && one.is_stale(REKEY_AFTER));
        assert!(!other.is_stale(REKEY_AFTER), "the initiator's business");
        assert!(other.is_alive(REJECT_AFTER - 1) && !other.is_alive(REJECT_AFTER));
        one.counter.store(REJECT_AFTER_MESSAGES - 2, Ordering::Relaxed);
        assert!(one.reserve(1).is_some() && one.reserve(1).is_none() && one.reserve(1).is_none());
        assert!(!one.is_alive(0));
    }
}
