//! Pure planning: desired and observed state in, steps out.
//!
//! There is no clock here, no I/O and no choice left for execution: a plan is a list of steps in the order in which
//! they are to be done. Every step is idempotent, so a plan may be cut anywhere and made anew.
//!
//! | module | plans |
//! | --- | --- |
//! | [`machine`] | one machine: disk, container, link, agent |
//! | [`network`] | one network: namespace, rules, names |
//! | [`host`] | what is on the host that nothing desires |

pub mod host;
pub mod machine;
pub mod network;
