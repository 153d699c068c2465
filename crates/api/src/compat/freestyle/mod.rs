//! The dialect of npm `freestyle@0.1.63`, for clients with `FREESTYLE_API_URL=http://HOST:PORT/compat/freestyle`.
//!
//! What a call means is in `docs/freestyle.md`. Four quirks of the client shape what is here:
//!
//! - It keys errors on a `code` of a fixed list, and repeats a create for ever on anything else: see `code.rs` and
//!   `error.rs`. The outermost layer says every refusal below the prefix in that form, whoever made it.
//! - It sends no content type where it sends no body, and bodies with DELETE: see `extract.rs`.
//! - It reads JSON from every answer, so there is none without a body.
//! - It creates a machine again when the connection drops: see `create.rs`.

pub(crate) mod account;
mod code;
pub(crate) mod create;
pub(crate) mod domains;
pub(crate) mod error;
pub(crate) mod exec;
mod extract;
pub(crate) mod files;
pub(crate) mod identities;
mod layer;
pub(crate) mod machines;
mod name;
pub(crate) mod permissions;
pub(crate) mod place;
pub(crate) mod pty;
pub(crate) mod snapshots;
pub(crate) mod tokens;
pub(crate) mod vpcs;
mod wanted;

use std::sync::Arc;

use crate::places::Places;

pub(crate) use place::Place;

/// What every path of the dialect begins with.
pub(crate) const PREFIX: &str = "/compat/freestyle";
/// Carries a token of an identity.
pub(crate) const TOKEN_HEADER: &str = "x-freestyle-identity-access-token";
/// Names the Linux user that a call acts as.
pub(crate) const USER_HEADER: &str = "x-freestyle-vm-linux-user-id";
/// Names the request; the client adds it to what its errors say.
pub(crate) const TRACE_HEADER: &str = "x-freestyle-trace-id";
/// What the client sends besides, for preflights.
pub(crate) const SDK_HEADERS: [&str; 3] =
    ["x-freestyle-sdk", "x-freestyle-sdk-version", "x-freestyle-background-after-secs"];

/// Bodies larger than usual at once: each is held in memory as a whole.
const UPLOADS: usize = 16;

/// What calls of this dialect share.
pub(crate) struct State {
    pub terminals: pty::Sessions,
    pub uploads: Arc<Places>,
    pub filling: create::Filling,
}

impl Default for State {
    fn default() -> Self {
        Self { terminals: pty::Sessions::default(), uploads: Places::new(UPLOADS), filling: create::Filling::default() }
    }
}
