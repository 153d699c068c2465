//! Edge services: what faces the machines and is not the kernel.
//!
//! `warren edge` is one unprivileged process for every network of an installation. The daemon starts it, hands it
//! sockets that are already open in the right network namespace and immutable snapshots of what to answer, and may
//! then die: the edge goes on. A new daemon connects to the same control socket, asks what the edge has and sends
//! the difference. When the edge dies, nothing answers until the daemon has started another one and handed it
//! everything again.
//!
//! ```text
//!   daemon                          warren edge (uid 65534, no capabilities, empty root directory)
//!   ┌────────────┐  control socket  ┌────────────────┐    put    ┌──────────────────┐
//!   │ EdgeClient │ ───────────────▶ │ control::serve │ ────────▶ │ dns::Zone        │ one per network, swapped whole
//!   └────────────┘  JSON + fds      └────────────────┘           └──────────────────┘
//!                                                                   ▲ read without a lock
//!            one task per socket, a thread per core: dns::udp, dns::tcp ── dns::forward ─▶ upstream resolvers
//! ```
//!
//! | folder | holds |
//! | --- | --- |
//! | `dns` | the wire format, what a name resolves to, the loops over UDP and TCP, forwarding |
//! | `control` | the protocol between daemon and edge, both ends |
//! | `confine` | how the process gives up every privilege |
//! | [`load`] | a load generator for measuring the server |
//!
//! To add a DNS record type, begin in `dns/answer.rs`.

#![forbid(unsafe_code)]

mod confine;
mod control;
mod dns;
pub mod load;
mod process;
mod view;

pub use confine::ConfineError;
pub use control::client::{EdgeClient, EdgeError, EdgeLog, SpawnConfig};
pub use control::message::{EdgeStatus, Refusal, RefusalCode};
pub use dns::stats::QueryCounters;
pub use process::{EdgeConfig, RunError, run};
pub use view::{NameRecord, NetworkView, Sockets};
