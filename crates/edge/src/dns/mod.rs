//! The resolver of every network.
//!
//! [`wire`] and [`answer`] take bytes and return bytes; they hold no socket and no clock. [`udp`] and [`tcp`] carry
//! those bytes, one task per socket; [`listed`] says what policy does about names outside, and [`forward`] asks the
//! resolvers outside ([`exchange`]) for the networks that may.
//!
//! Answers about the network itself are written without `hickory-proto`: they have five shapes, are most of the
//! traffic, and go straight into the send buffer. What comes from outside is parsed and written by `hickory-proto`.

pub mod answer;
pub(crate) mod exchange;
pub(crate) mod forward;
pub(crate) mod limit;
pub(crate) mod listed;
pub mod stats;
pub(crate) mod tcp;
pub(crate) mod udp;
pub(crate) mod upstream;
pub mod wire;
pub mod zone;
