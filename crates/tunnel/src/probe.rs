//! One handshake, message by message, for whoever measures or tests the other end. There is no state and no timer.

use std::time::SystemTime;

use crate::keys::{PrivateKey, PublicKey};
use crate::noise::cookie::MacKeys;
use crate::noise::handshake::{Initiating, initiate, timestamp};
use crate::noise::{DATA_HEADER, INITIATION, RESPONSE, TAG};
use crate::transport::Keypair;

/// A handshake that was begun.
pub struct Probe {
    key: PrivateKey,
    initiating: Initiating,
    index: u32,
}

impl Probe {
    /// An initiation to the end with this public key. The other end answers to `index`. Of two with the same key, only
    /// the one with the later time is answered. Nothing when the kernel gives no random numbers, or with a public key
    /// that agrees with nobody.
    pub fn begin(key: &PrivateKey, to: &PublicKey, index: u32, at: SystemTime) -> Option<(Self, [u8; INITIATION])> {
        let shared = key.agree(to)?;
        let ephemeral = PrivateKey::generate().ok()?;
        let (initiating, mut message) = initiate(&key.public_key(), to, &shared, ephemeral, &timestamp(at), index)?;
        MacKeys::new(to).write(&mut message, None);
        Some((Self { key: key.clone(), initiating, index }, message))
    }

    /// The index in the answer to an initiation; nothing when it is no answer.
    pub fn index(datagram: &[u8]) -> Option<u32> {
        let response: &[u8; RESPONSE] = datagram.try_into().ok()?;
        (response[0] == 2).then(|| u32::from_le_bytes([response[8], response[9], response[10], response[11]]))
    }

    /// The keepalive with which the session is open, once it arrives. Nothing when the answer was forged.
    pub fn finish(&self, datagram: &[u8]) -> Option<[u8; DATA_HEADER + TAG]> {
        let response: &[u8; RESPONSE] = datagram.try_into().ok()?;
        let (keys, remote) = self.initiating.finish(&self.key, &[0; 32], response)?;
        let mut keepalive = [0; DATA_HEADER + TAG];
        Keypair::new(&keys, remote, self.index, true, 0).seal(0, &mut keepalive);
        Some(keepalive)
    }
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Probe").field("index", &self.index).finish_non_exhaustive()
    }
}
