//! The proof that policy holds.
//!
//! ```text
//!   directory, policy ── matrix ──▶ checks ──▶ probes in machines ──▶ findings ── judge ──▶ cells
//!                                                                                             │
//!   inventory, live rules, denials, log ──────────────────────────────────────────▶ Report ◀──┘
//!                                                                       page, sign, bundle ◀─┘
//! ```
//!
//! Everything but `bundle` is pure: nothing here talks to a machine, and `warren audit verify` works without a server.
//!
//! | module | holds |
//! | --- | --- |
//! | [`matrix`] | which flows are tried, and what policy says about each |
//! | [`findings`] | what the probes saw, put together with what was tried |
//! | [`judge`] | one flow: what was seen, against what policy says; the pairing of negatives with positives |
//! | [`report`] | the report, and what its findings add up to |
//! | [`compare`] | what differs from the report before |
//! | [`standards`] | which requirement which part of a report answers |
//! | [`page`] | the report as a page for people |
//! | [`sign`] | the key, signatures |
//! | [`bundle`] | a directory with a report, and its verification |
//! | [`log`] | the hash-chained log of mutations, and its verification |

pub mod bundle;
pub mod compare;
pub mod findings;
pub mod judge;
pub mod log;
pub mod matrix;
pub mod page;
pub mod report;
pub mod sign;
pub mod standards;

pub use bundle::{Verified, VerifyError, verify};
pub use report::Report;
