//! Connections to names outside.
//!
//! A member reaches a name in one of two ways: it connects to the synthetic address that the resolver gave it, which
//! the kernel hands to the transparent listener, or it asks the proxy on the gateway. Both ask the same [`Gate`], and
//! go on in the same way.
//!
//! ```text
//!   listen ── name? allowed? ──▶ carry ─┬─ Tls   tls     the server name is the name
//!     │ explicit                        ├─ Http  http    every request is for the name
//!     └──▶ http ── CONNECT ────▶        └─ Tcp   sniff   TLS and HTTP are recognized and checked as above
//!                                              │
//!                                        way ──▶ dial ──▶ copy
//! ```
//!
//! Nothing is sent to a server before the client's first bytes were checked, where there is something to check. What is
//! encrypted stays so from end to end.
//!
//! | module | holds |
//! | --- | --- |
//! | `gate` | what the proxies ask, and their limits |
//! | `listen` | accepting connections |
//! | `carry` | checking what is spoken |
//! | `tls`, `sniff`, `authority` | reading what clients say; no I/O |
//! | `http`, `upstream`, `conn`, `headers`, `problem` | HTTP/1.1 on both sides |
//! | `way`, `dial` | from an allowed name to a connected socket |
//! | `copy` | carrying bytes |

pub(crate) mod authority;
mod carry;
mod conn;
mod copy;
mod dial;
pub(crate) mod gate;
mod headers;
mod http;
mod listen;
mod network;
mod problem;
pub(crate) mod sniff;
pub(crate) mod tls;
mod upstream;
mod way;

#[cfg(test)]
mod tests;

pub(crate) use listen::{serve_explicit, serve_transparent};
pub(crate) use network::PROXIED;
