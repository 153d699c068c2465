//! Test topologies on the real kernel: namespaces, links between them, a host, an internet; and an ACME authority.
//!
//! ```no_run
//! use warren_lab::{Lab, Internet};
//!
//! let lab = Lab::new();
//! let internet = Internet::new(&lab);
//! let host = internet.host(&lab, "host");
//! host.run("ping -c1 -W1 1.1.1.1");
//! ```
//!
//! [`Internet`] is small: a few addresses and an HTTP server. [`outside::Outside`] is the one to test boundaries against.
//! [`pebble`] runs on loopback, too.
//!
//! Every namespace is named `lab-{pid}-{random}-{name}` and goes when its handle goes, also when the test panics. What
//! a killed test left behind is swept by the next one. Nothing here ever touches the root namespace's links, routes or
//! rules: a link is created inside one of the lab's namespaces, with its other end in another one.
//!
//! Functions panic when the kernel refuses: a test cannot go on without its topology.

mod internet;
pub mod laptop;
mod namespace;
pub mod outside;
pub mod pebble;
mod sweep;

pub use internet::{Internet, NOT_GLOBAL, PUBLIC_V4, PUBLIC_V6, fetch};
pub use namespace::{Namespace, Output, Running, eventually};

use std::fmt::Write;

/// One test's topology.
pub struct Lab {
    prefix: String,
}

impl Lab {
    /// Sweeps what dead tests left, and chooses a prefix that nobody else has.
    #[allow(clippy::new_without_default, reason = "it has effects")]
    pub fn new() -> Self {
        sweep::dead();
        let mut random = [0u8; 3];
        getrandom::fill(&mut random).expect("the kernel gives random bytes");
        let mut prefix = format!("lab-{}-", std::process::id());
        for byte in random {
            let _ = write!(prefix, "{byte:02x}");
        }
        Self { prefix }
    }

    /// What the names of this lab's namespaces start with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A new namespace with nothing in it but a raised `lo`.
    pub fn namespace(&self, name: &str) -> Namespace {
        Namespace::create(&format!("{}-{name}", self.prefix))
    }

    /// A veth between two of the lab's namespaces, both ends up and without addresses.
    pub fn connect(&self, one: &Namespace, one_link: &str, other: &Namespace, other_link: &str) {
        one.run(&format!("ip link add {one_link} type veth peer name {other_link} netns {}", other.name()));
        one.run(&format!("ip link set {one_link} up"));
        other.run(&format!("ip link set {other_link} up"));
    }
}
