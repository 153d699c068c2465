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
//!   ┌────────────┐  control socket  ┌────────────────┐    put    ┌─────────────────────────────────┐
//!   │ EdgeClient │ ───────────────▶ │ control::serve │ ────────▶ │ network::Network                │ one per network
//!   └────────────┘  JSON + fds      └────────────────┘           │   zone, outside: swapped whole  │
//!        ▲ status, denials                   ▲                   │   names, flows, resolver        │
//!        └───────────────────────────────────┘                   └─────────────────────────────────┘
//!                                                                   ▲ read without a lock
//!      DNS, a thread per core: dns::udp, dns::tcp ─┬─ dns::listed ─▶ a synthetic address, or a refusal
//!                                                  └─ dns::forward ─▶ upstream resolvers, in open networks
//!      connections, a pool of threads: proxy ── outside: allowed? ── resolve ── dial
//! ```
//!
//! A name outside that a rule allows gets a synthetic address (`names`) from the resolver; a connection to it reaches
//! the proxy, which asks policy again (`outside`), resolves for itself (`resolve`) and dials. A new snapshot ends the
//! connections that it does not allow (`flows`). Everything that is refused is recorded (`denials`) until the daemon
//! has taken it.
//!
//! | module | holds |
//! | --- | --- |
//! | `network` | everything of one network while it is served, and the threads that serve it |
//! | `dns` | the wire format, what a name resolves to, the loops over UDP and TCP, forwarding |
//! | `proxy` | connections to names outside |
//! | `change` | what is sent when somebody joins or leaves a network |
//! | `outside` | what policy says about names |
//! | `names` | which synthetic address is which name, over the death of any process |
//! | `resolve` | where a name leads, checked |
//! | `flows`, `denials` | open connections; refusals |
//! | `operators` | the WireGuard gateway, and who may come by it |
//! | `public` | public previews: listeners, and the sockets that reach machines |
//! | `control` | the protocol between daemon and edge, both ends |
//! | `confine` | how the process gives up every privilege |
//!
//! To add a DNS record type, begin in `dns/answer.rs`.

#![forbid(unsafe_code)]

mod change;
mod confine;
mod control;
mod denials;
mod dns;
mod flows;
#[doc(hidden)]
pub mod fuzz;
mod names;
mod network;
mod operators;
mod outside;
mod process;
mod proxy;
mod public;
mod resolve;
mod view;

pub use change::NetworkChange;
pub use confine::ConfineError;
pub use control::client::{EdgeClient, EdgeError, EdgeLog, SpawnConfig};
pub use control::message::{EdgeStatus, Refusal, RefusalCode};
pub use denials::{DenialTotal, TakenDenials};
pub use dns::stats::QueryCounters;
pub use flows::{FlowCounters, OpenFlow};
pub use names::LedgerError;
pub use operators::{SessionEnd, SessionStatus, TunnelReport, TunnelStatus, public_key};
pub use process::{EdgeConfig, RunError, run};
pub use public::{PoolStatus, PublicCounters, PublicGeneration, PublicStatus};
pub use view::{NOBODY, NameRecord, NetworkView, Operator, OperatorScope, PROXY_PORT, Sockets, TRANSPARENT_PORT};
