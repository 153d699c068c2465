//! WireGuard for operators: one UDP port for all networks, a TUN or TAP device for each, in a process without
//! privileges.
//!
//! The caller opens the sockets and the devices, and hands over the descriptors; the gateway only reads and writes
//! them. Handshakes (`noise`) take time, randomness and bytes as parameters. Threads share [`Gateway`]'s tables:
//!
//! | thread | does |
//! | --- | --- |
//! | `tunnel-in`, one for each socket | `recvmmsg` with GRO, opens packets where they stand, checks their source, puts TCP segments together, writes the device of the peer's network. Checks the macs of handshakes and queues them, or asks for a cookie |
//! | `tunnel-out` | waits for all devices, reads packets of up to 64 KiB, splits them into the buffer in which they are sealed, sends runs of the same size with GSO |
//! | `tunnel-keys`, a few | the arithmetic of handshakes, from a bounded queue |
//! | `tunnel-timers` | keepalives, new handshakes, expiry |
//!
//! Whoever passes packets holds the tables locked for reading from looking a peer up until its packets are written;
//! removing a peer locks them for writing, so that afterwards nothing of it is under way. Threads wait in the kernel
//! and cost nothing while nothing happens; the buffers are made once.
//!
//! Sources: the WireGuard whitepaper (<https://www.wireguard.com/papers/wireguard.pdf>), whose sections are named where
//! they apply; RFC 6479 for the window against replays.

#![deny(unsafe_code)]

// The topology of the tests speaks of this crate from outside.
#[cfg(test)]
extern crate self as warren_tunnel;

mod answers;
mod clock;
mod device;
mod gateway;
mod inbound;
mod keys;
mod life;
mod noise;
mod outbound;
mod packet;
mod peer;
mod probe;
mod scope;
mod session;
mod shared;
mod sockets;
#[allow(unsafe_code, reason = "system calls without a safe wrapper")]
mod sys;
mod tables;
#[cfg(test)]
mod tests;
mod timers;
mod transport;
mod workers;

pub use device::{Device, DeviceKind, Mac};
pub use gateway::{Gateway, NetworkError, StartError};
pub use keys::{KeyError, PresharedKey, PrivateKey, PublicKey};
pub use peer::{Counted, Ended, GatewayStatus, Limits, NetworkKey, Only, Peer, PeerError, PeerId, PeerStatus};
pub use probe::Probe;
pub use sockets::Sockets;
pub use sys::{keep_device, open_device};
