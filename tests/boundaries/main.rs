//! What policy forbids does not reach the outside, and what it allows does: judged by what arrives, on real machines.
//!
//! | module | holds |
//! | --- | --- |
//! | `world` | an internet, a server on it, machines, and the policy that the table is about |
//! | `table` | the catalogue of ways out: one line a case; `WARREN_CASES=12,34` runs only those |
//! | `addresses`, `dns`, `web`, `tls`, `names`, `protocols`, `state` | the cases |
//! | `rules`, `revocation`, `links`, `voice` | policies from end to end |
//! | `random` | small random policies, and what packets really do |

#[path = "../common/mod.rs"]
mod common;

mod addresses;
mod dns;
mod links;
mod names;
mod protocols;
mod random;
mod revocation;
mod rules;
mod state;
mod table;
mod tls;
mod voice;
mod web;
mod world;
