//! Where certificates of public previews come from.
//!
//! - [`acme`]: a public or private certificate authority, asked over ACME (RFC 8555) with HTTP-01 challenges.
//! - [`authority`]: an internal authority whose root the operator gives to clients.
//! - [`own`]: a chain and a key that the operator already has, as files.
//!
//! All three end in a [`Certificate`]: a chain and its private key as PEM, checked to belong together and to be usable
//! for TLS. [`renewal`] says when to ask for the next one. Nothing here stores anything or starts a task: the caller
//! keeps credentials, keys and certificates, and answers challenges.

pub mod acme;
pub mod authority;
mod certificate;
pub mod own;
mod pem;
pub mod renewal;

pub use certificate::{Certificate, InvalidCertificate, InvalidChain, Validity};
pub use pem::{InvalidKey, KeyPem};
