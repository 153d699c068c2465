//! Egress: what `open` opens, and what it never does.

mod common;
