//! The HTTP API of Warren.
//!
//! A request flows through [`router`] like this:
//!
//! ```text
//! outer ── request id, panics, log line, metrics, problem documents        (outer.rs)
//!   guard ── the row of its route: who may call, how much at once, how long  (guard.rs, table.rs)
//!     handler ── parses, decides, writes ONE transaction, waits for status    (routes/*.rs)
//! ```
//!
//! A handler never touches the host. It writes desired state, the audit entry, the event and the idempotency record
//! in one transaction (`mutation.rs`), and then follows `status/{machine}` until the reconciler reports what was asked
//! for (`wait.rs`) or the deadline passes. A handler that writes runs in a task of its own, so that a client that
//! goes away does not leave an operation half done.
//!
//! # Routes
//!
//! | method and path | what |
//! | --- | --- |
//! | `GET /healthz` `GET /readyz` `GET /openapi.json` | for anyone |
//! | `GET /metrics` | Prometheus text; root key only (a scraper sends it as a bearer token) |
//! | `GET /v1/whoami` | the server and who asks |
//! | `GET POST /v1/accounts`, `GET /v1/accounts/{account}` | root key only |
//! | `GET POST /v1/keys`, `DELETE /v1/keys/{key}` | the caller's account |
//! | `GET POST /v1/identities`, `GET PATCH DELETE /v1/identities/{identity}` | who may operate machines without a key |
//! | `GET /v1/identities/{identity}/grants`, `PUT DELETE /v1/identities/{identity}/machines/{machine}`, `/networks/{network}` | what they may do |
//! | `GET POST /v1/identities/{identity}/tokens`, `DELETE /v1/tokens/{token}` | their secrets |
//! | `GET POST /v1/networks`, `GET PATCH DELETE /v1/networks/{network}` | `DELETE ?force=true` takes its machines and sessions along |
//! | `GET POST /v1/networks/{network}/sessions`, `GET /v1/sessions`, `GET DELETE /v1/sessions/{session}` | operators over WireGuard; `POST` waits until packets pass, `DELETE` until none do |
//! | `GET POST /v1/machines`, `GET PATCH DELETE /v1/machines/{machine}` | list filters: `network`, `tag`, `label`, `state` |
//! | `POST /v1/machines/{machine}/start` `/stop` `/restart` | waits |
//! | `POST /v1/machines/{machine}/exec` | waits and answers an `ExecResult` |
//! | `GET /v1/machines/{machine}/exec` | WebSocket: frames as in [`warren_model::wire::ExecControl`] |
//! | `GET PUT DELETE /v1/machines/{machine}/files?path=` | content streamed; `PUT &mode=0644&parents=true`, `DELETE &recursive=true` |
//! | `GET /v1/machines/{machine}/files/list?path=` `/files/stat?path=` | |
//! | `POST /v1/machines/{machine}/files/directories` | `{"path","parents"}` |
//! | `GET /v1/machines/{machine}/ports` | what listens |
//! | `GET /v1/machines/{machine}/logs?tail=BYTES&follow=true` | text |
//! | `GET /v1/machines/{machine}/traffic` | counters |
//! | `GET POST /v1/domains`, `GET PATCH DELETE /v1/domains/{domain}` | host names that lead to a machine's port: what is public |
//! | `GET POST /v1/domain-claims`, `DELETE /v1/domain-claims/{domain}` | proofs that a name is the account's own |
//! | `GET /v1/domains/authority` | the root certificate of the server's own authority |
//! | `GET /v1/images`, `GET PUT DELETE /v1/images/{image}` | `PUT` imports an archive: NDJSON of `ImageEvent`; `PUT` and `DELETE` root key only |
//! | `POST /v1/images/{image}/build`, `POST /v1/images/{image}/pull` | NDJSON of `ImageEvent`; `pull` root key only |
//! | `GET PUT /v1/policy` | what may talk to what; `PUT` takes a text, and `"dry_run": true` |
//! | `GET /v1/policy/versions`, `GET /v1/policy/versions/{version}`, `GET /v1/policy/diff?from=&to=` | |
//! | `POST /v1/policy/rollback` `/test` | |
//! | `POST /v1/explain`, `GET /v1/reach?network=` | what the policy in force says |
//! | `GET /v1/denials?machine=&after=` | what it refused; `?follow=true` is SSE, resumable with `Last-Event-ID` |
//! | `POST /v1/audit`, `GET /v1/audit/key` | NDJSON of `AuditEvent`; the key of reports |
//! | `GET PUT DELETE /v1/audit/schedule`, `GET /v1/audit-log?after=` | root key only |
//! | `GET /v1/topology` | every network with what is in it |
//! | everything below `/compat/freestyle` | the calls of npm `freestyle@0.1.63`; their own form of bodies and refusals (`compat/freestyle`) |
//! | `GET /v1/events?after=REVISION` | SSE, resumable with `Last-Event-ID`; `?follow=false` gives a JSON page |
//!
//! # What the reconciler owes the API
//!
//! - **Power.** `Machine::power` and `Machine::boot` say what is wanted; `MachineStatus::state` says what is, and
//!   `MachineStatus::boot` which boot it is about. `start` and `restart` wait for `running` with the machine's boot,
//!   `stop` for `stopped`. `failed` with the machine's boot ends a wait with `MachineStatus::failure`.
//! - **Create.** The API writes the machine, its name, member, address hold, uid slot and a status `creating` in one
//!   transaction. When the status turns `failed` while the create waits, the API sets the power to gone and waits for
//!   the removal, so that nothing half made stays.
//! - **Delete.** The API sets the power to gone. Once nothing of the machine is left on the host, the reconciler
//!   deletes, in one transaction that compares the machine record unchanged: `machine/{id}`, `status/{id}`,
//!   `machine-name/{account}/{name}`, `member/{network}/{id}`, `uid-slot/{slot}`, and turns `address/{network}/{ip}`
//!   into a resting hold. The name is therefore free when delete has answered, and never free before the old machine
//!   is gone. Nothing else removes these keys.
//! - **Network.** The API sets `Network::deleting` and, when forced, the power of all its machines to gone in the same
//!   transaction; a machine cannot be made in a network that is being deleted. Once `member/{network}/` is empty and
//!   nothing of it is left on the host, the reconciler deletes, in one transaction, `network/{id}`,
//!   `network-name/{account}/{name}`, `network-number/{n}`, `next-member/{id}` and everything below `address/{id}/`.
//! - **Sessions.** The API writes what `warren_store::session::put` says, an address hold and the next member number in one
//!   transaction that compares the network unchanged, and then waits in [`Tunnels::opened`]. A session is open exactly
//!   while its record is there. Whoever ends one (the API when it is closed, when its key is revoked, its network or its
//!   only machine deleted, or nobody came with its public key; the reconciler when it expires or is idle) does so with
//!   `warren_store::session`. The edge passes packets of those that are in the store; [`Tunnels::closed`] waits until it
//!   does not any more.
//! - **Policy.** The API writes a version below `policy/{account}/` and its number at `policy-now/{account}` in one
//!   transaction, and then waits in [`Boundaries::enforced`]. A version never changes; none at all is the empty policy.
//! - **Domains.** A port is public exactly while `domain/{host}` is there. The API writes it, removes it, and removes those
//!   of a machine in the transaction that sets its power to gone; it waits in [`Publisher`]. The edge serves what is in the
//!   store, and takes the address of a domain's machine from the machine's record.
//! - **Events.** The API writes `account_created`, `key_*`, `identity_*`, `access_*`, `token_*`, `domain_*`, `session_*`, `network_*`,
//!   `machine_created`, `machine_renamed`, `machine_deleted` (when it was asked for) and `policy_applied`.
//!   `machine_running`, `machine_stopped`, `machine_failed`, `network_failed`, `network_recovered` and `drift_repaired` are the reconciler's.
//! - **What is wrong with a network.** The reconciler keeps `network-problem/{id}` while there is something, and writes it
//!   together with the event; the API shows it among the network's warnings.

pub mod bootstrap;
mod boundaries;
mod caller;
mod compat;
mod config;
mod cors;
mod credentials;
mod cursor;
mod directory;
mod error;
mod extract;
mod followed;
mod guard;
mod host;
mod idempotency;
mod members;
mod metrics;
mod mutation;
mod numbers;
mod openapi;
mod outer;
mod places;
mod policies;
mod publisher;
mod resolve;
mod routes;
mod secret;
mod state;
mod sweep;
pub mod table;
mod tunnels;
mod txt;
mod wait;

pub use boundaries::{Boundaries, DenialFilter};
pub use config::ApiConfig;
pub use host::Host;
pub use openapi::openapi;
pub use publisher::{PublicInfo, Publisher};
pub use state::{Parts, router};
pub use tunnels::{GatewayInfo, SessionStatus, Tunnels};
