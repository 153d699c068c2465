//! The two messages of the handshake (whitepaper §5.4.2 and §5.4.3), from both sides.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use zeroize::Zeroizing;

use super::{INITIATION, RESPONSE, Secret, TAG, TYPE_INITIATION, TYPE_RESPONSE, hash, kdf1, kdf2, kdf3, open, seal};
use crate::keys::{PrivateKey, PublicKey};

/// The greatest one from a peer counts; what is not greater is a replay. TAI64N, whose bytes sort by time.
pub type Timestamp = [u8; 12];

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
/// The chaining key that everything begins with, and its hash with the identifier.
static BEGINNING: LazyLock<([u8; 32], [u8; 32])> = LazyLock::new(|| {
    let chaining = hash(&[CONSTRUCTION]);
    (chaining, hash(&[&chaining, IDENTIFIER]))
});

/// The keys of one direction each.
pub struct TransportKeys {
    pub sending: Secret,
    pub receiving: Secret,
}

/// What an initiator remembers until the response comes.
pub struct Initiating {
    state: State,
    ephemeral: PrivateKey,
}

/// An initiation whose sender has proved nothing yet.
pub struct Introduction {
    state: State,
    /// Who it says it is.
    pub claims: PublicKey,
    ephemeral: PublicKey,
    timestamp: [u8; 12 + TAG],
    /// The sender's receiver index.
    pub sender: u32,
}

/// An initiation that the holder of the private key wrote.
pub struct Introduced {
    state: State,
    static_key: PublicKey,
    ephemeral: PublicKey,
    pub timestamp: Timestamp,
    sender: u32,
}

/// Noise's symmetric state.
struct State {
    chaining: Secret,
    hash: [u8; 32],
}

impl State {
    fn new(responder: &PublicKey) -> Self {
        let (chaining, beginning) = &*BEGINNING;
        Self { chaining: Zeroizing::new(*chaining), hash: hash(&[beginning, responder.as_bytes()]) }
    }

    fn mix_hash(&mut self, data: &[u8]) {
        self.hash = hash(&[&self.hash, data]);
    }

    fn mix_key(&mut self, input: &[u8]) {
        self.chaining = kdf1(&self.chaining, input);
    }

    fn mix_key_and_take(&mut self, input: &[u8]) -> Secret {
        let (chaining, key) = kdf2(&self.chaining, input);
        self.chaining = chaining;
        key
    }

    /// Seals what stands at the beginning of `out`, whose last bytes are for the tag.
    fn seal(&mut self, key: &Secret, out: &mut [u8]) {
        seal(key, &self.hash, out);
        self.mix_hash(out);
    }

    fn open<const N: usize>(&mut self, key: &Secret, sealed: &[u8]) -> Option<Zeroizing<[u8; N]>> {
        let mut text = Zeroizing::new([0; 64]);
        let text = text.get_mut(..sealed.len())?;
        text.copy_from_slice(sealed);
        let opened: [u8; N] = open(key, &self.hash, text)?.try_into().ok()?;
        self.mix_hash(sealed);
        Some(Zeroizing::new(opened))
    }
}

/// Writes an initiation, all but its macs. `static_static` is what both static keys agree on. Nothing when the other
/// key is one with which nobody agrees.
pub fn initiate(
    own: &PublicKey,
    responder: &PublicKey,
    static_static: &Secret,
    ephemeral: PrivateKey,
    timestamp: &Timestamp,
    index: u32,
) -> Option<(Initiating, [u8; INITIATION])> {
    let mut message = [0; INITIATION];
    let mut state = State::new(responder);
    message[..4].copy_from_slice(&TYPE_INITIATION);
    message[4..8].copy_from_slice(&index.to_le_bytes());
    let public = ephemeral.public_key();
    message[8..40].copy_from_slice(public.as_bytes());
    state.mix_hash(public.as_bytes());
    state.mix_key(public.as_bytes());
    let key = state.mix_key_and_take(ephemeral.agree(responder)?.as_slice());
    message[40..72].copy_from_slice(own.as_bytes());
    state.seal(&key, &mut message[40..88]);
    let key = state.mix_key_and_take(static_static.as_slice());
    message[88..100].copy_from_slice(timestamp);
    state.seal(&key, &mut message[88..116]);
    Some((Initiating { state, ephemeral }, message))
}

impl Introduction {
    /// Reads who an initiation says it is from. The macs have to be checked before, the claim afterwards.
    pub fn read(own: &PrivateKey, own_public: &PublicKey, message: &[u8; INITIATION]) -> Option<Self> {
        let mut state = State::new(own_public);
        let sender = u32::from_le_bytes(message[4..8].try_into().ok()?);
        let ephemeral = PublicKey::from_bytes(message[8..40].try_into().ok()?);
        state.mix_hash(ephemeral.as_bytes());
        state.mix_key(ephemeral.as_bytes());
        let key = state.mix_key_and_take(own.agree(&ephemeral)?.as_slice());
        let claims = PublicKey::from_bytes(*state.open(&key, &message[40..88])?);
        Some(Self { state, claims, ephemeral, timestamp: message[88..116].try_into().ok()?, sender })
    }

    /// Checks the claim with what both static keys agree on.
    pub fn verify(mut self, static_static: &Secret) -> Option<Introduced> {
        let key = self.state.mix_key_and_take(static_static.as_slice());
        let timestamp = *self.state.open(&key, &self.timestamp)?;
        let Self { state, claims, ephemeral, sender, .. } = self;
        Some(Introduced { state, static_key: claims, ephemeral, timestamp, sender })
    }
}

impl Introduced {
    /// Writes the response, all but its macs, and gives the keys and the index that the initiator receives with.
    pub fn respond(
        mut self,
        preshared: &[u8; 32],
        ephemeral: &PrivateKey,
        index: u32,
    ) -> Option<(TransportKeys, u32, [u8; RESPONSE])> {
        let mut message = [0; RESPONSE];
        let state = &mut self.state;
        message[..4].copy_from_slice(&TYPE_RESPONSE);
        message[4..8].copy_from_slice(&index.to_le_bytes());
        message[8..12].copy_from_slice(&self.sender.to_le_bytes());
        let public = ephemeral.public_key();
        message[12..44].copy_from_slice(public.as_bytes());
        state.mix_hash(public.as_bytes());
        state.mix_key(public.as_bytes());
        state.mix_key(ephemeral.agree(&self.ephemeral)?.as_slice());
        state.mix_key(ephemeral.agree(&self.static_key)?.as_slice());
        let (chaining, tau, key) = kdf3(&state.chaining, preshared);
        state.chaining = chaining;
        state.mix_hash(tau.as_slice());
        state.seal(&key, &mut message[44..60]);
        let (receiving, sending) = kdf2(&state.chaining, &[]);
        Some((TransportKeys { sending, receiving }, self.sender, message))
    }
}

impl Initiating {
    /// Reads the response. It can be asked again when this one was forged.
    pub fn finish(
        &self,
        own: &PrivateKey,
        preshared: &[u8; 32],
        message: &[u8; RESPONSE],
    ) -> Option<(TransportKeys, u32)> {
        let mut state = State { chaining: self.state.chaining.clone(), hash: self.state.hash };
        let index = u32::from_le_bytes(message[4..8].try_into().ok()?);
        let ephemeral = PublicKey::from_bytes(message[12..44].try_into().ok()?);
        state.mix_hash(ephemeral.as_bytes());
        state.mix_key(ephemeral.as_bytes());
        state.mix_key(self.ephemeral.agree(&ephemeral)?.as_slice());
        state.mix_key(own.agree(&ephemeral)?.as_slice());
        let (chaining, tau, key) = kdf3(&state.chaining, preshared);
        state.chaining = chaining;
        state.mix_hash(tau.as_slice());
        state.open::<0>(&key, &message[44..60])?;
        let (sending, receiving) = kdf2(&state.chaining, &[]);
        Some((TransportKeys { sending, receiving }, index))
    }
}

/// TAI64N (whitepaper §5.1). The last bits are cut off, so that nobody reads a clock from it; one that comes later is
/// still not smaller.
pub fn timestamp(at: SystemTime) -> Timestamp {
    // 2^62, and the 10 seconds by which TAI was ahead of UTC in 1970.
    const BASE: u64 = (1 << 62) + 10;
    let since = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let mut stamp = [0; 12];
    stamp[..8].copy_from_slice(&(BASE + since.as_secs()).to_be_bytes());
    // About 16 ms, as in Linux.
    stamp[8..].copy_from_slice(&(since.subsec_nanos() & !((1 << 24) - 1)).to_be_bytes());
    stamp
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pair {
        one: PrivateKey,
        other: PrivateKey,
        shared: Secret,
    }

    fn pair() -> Pair {
        let (one, other) = (PrivateKey::from_bytes(&[1; 32]), PrivateKey::from_bytes(&[2; 32]));
        let shared = one.agree(&other.public_key()).unwrap();
        Pair { one, other, shared }
    }

    fn initiation(pair: &Pair) -> (Initiating, [u8; INITIATION]) {
        let ephemeral = PrivateKey::from_bytes(&[3; 32]);
        let (own, to) = (pair.one.public_key(), pair.other.public_key());
        initiate(&own, &to, &pair.shared, ephemeral, &[9; 12], 0x01020304).unwrap()
    }

    #[test]
    fn both_sides_agree_on_the_same_keys() {
        let pair = pair();
        let (initiating, message) = initiation(&pair);
        let read = Introduction::read(&pair.other, &pair.other.public_key(), &message).unwrap();
        assert_eq!(read.claims, pair.one.public_key());
        let introduced = read.verify(&pair.shared).unwrap();
        assert_eq!(introduced.timestamp, [9; 12]);
        let ephemeral = PrivateKey::from_bytes(&[4; 32]);
        let (theirs, index, response) = introduced.respond(&[5; 32], &ephemeral, 77).unwrap();
        assert_eq!(index, 0x01020304);
        let (ours, index) = initiating.finish(&pair.one, &[5; 32], &response).unwrap();
        assert_eq!(index, 77);
        assert_eq!(*ours.sending, *theirs.receiving);
        assert_eq!(*ours.receiving, *theirs.sending);
        assert_ne!(*ours.receiving, *ours.sending);
        assert!(initiating.finish(&pair.one, &[6; 32], &response).is_none(), "another preshared key");
    }

    #[test]
    fn a_changed_byte_anywhere_is_noticed() {
        let pair = pair();
        let (initiating, message) = initiation(&pair);
        let accepted = |message: &[u8; INITIATION]| {
            let read = Introduction::read(&pair.other, &pair.other.public_key(), message)?;
            (read.claims == pair.one.public_key()).then_some(())?;
            read.verify(&pair.shared)
        };
        // Not the macs, nor the type and the index, which only the macs protect.
        for place in 8..116 {
            let mut changed = message;
            changed[place] ^= 0x10;
            assert!(accepted(&changed).is_none(), "byte {place}");
        }
        let introduced = accepted(&message).unwrap();
        let (_, _, response) = introduced.respond(&[0; 32], &PrivateKey::from_bytes(&[4; 32]), 1).unwrap();
        for place in 12..60 {
            let mut changed = response;
            changed[place] ^= 0x10;
            assert!(initiating.finish(&pair.one, &[0; 32], &changed).is_none(), "byte {place}");
        }
        assert!(initiating.finish(&pair.one, &[0; 32], &response).is_some());
    }

    #[test]
    fn timestamps_sort_by_time() {
        let at = |milliseconds| timestamp(UNIX_EPOCH + Duration::from_millis(milliseconds));
        assert_eq!(at(0), [0x40, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0]);
        assert!(at(1_000) > at(999) && at(1_700_000_000_500) > at(1_700_000_000_400));
    }
}
