//! The protocol between the daemon and the edge.
//!
//! A Unix stream socket that only the daemon's user may connect to. Each message is its length in four bytes,
//! big-endian, and that many bytes of JSON; descriptors travel beside the first byte. The daemon asks, the edge
//! answers in order. The first question is `hello`, and names the version of the protocol.

pub(crate) mod client;
pub(crate) mod frame;
pub(crate) mod message;
pub(crate) mod server;
