//! What the API is told when it is built.

use std::net::SocketAddr;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use warren_model::policy::PrivateRanges;
use warren_model::record::Installation;

/// Settings and bounds of the API.
#[derive(Debug, Clone)]
pub struct ApiConfig {
    pub installation: Installation,
    pub version: String,
    /// Bytes that a JSON body may have.
    pub body_limit: usize,
    /// Requests under way at once, streams and waiting execs apart.
    pub max_requests: usize,
    /// Streams and waiting execs under way at once.
    pub max_streams: usize,
    /// How long a request that reads may take, and how long a client may take to send a JSON body.
    pub request_timeout: Duration,
    /// How long a streamed body may rest between two pieces.
    pub idle_timeout: Duration,
    /// How long a change of a machine's or network's state is waited for.
    pub operation_deadline: Duration,
    /// How long an exec that waits may run.
    pub exec_limit: Duration,
    /// Networks that one account may have.
    pub networks_per_account: usize,
    /// Machines that one account may have.
    pub machines_per_account: usize,
    /// Which private ranges a policy may open.
    pub private_ranges: PrivateRanges,
    /// Origins whose pages may call the API from a browser; `*` stands for every one.
    pub cors_origins: Vec<String>,
    /// Bytes that the earlier versions of an account's policy may have together, as they are stored.
    pub policy_history: usize,
    /// How long events can be listed and resumed from.
    pub keep_events: Duration,
    /// Where TXT records are looked up; nowhere when empty.
    pub resolvers: Vec<SocketAddr>,
    /// How often it is looked which TXT records have to be looked for again.
    pub recheck_claims_every: Duration,
    /// How often it is asked whether somebody came to the sessions whose public keys were given.
    pub look_for_operators_every: Duration,
    /// Cancelled when the server stops: streams end, so that connections can be closed.
    pub shutdown: CancellationToken,
}

impl ApiConfig {
    /// The defaults that `warren.toml` documents.
    pub fn new(installation: Installation, version: impl Into<String>) -> Self {
        Self {
            installation,
            version: version.into(),
            body_limit: 1024 * 1024,
            max_requests: 256,
            max_streams: 1024,
            request_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(120),
            operation_deadline: Duration::from_secs(120),
            exec_limit: Duration::from_secs(600),
            networks_per_account: 1000,
            machines_per_account: 1000,
            private_ranges: PrivateRanges::default(),
            cors_origins: Vec::new(),
            policy_history: 64 << 20,
            keep_events: Duration::from_secs(7 * 24 * 3600),
            resolvers: Vec::new(),
            recheck_claims_every: Duration::from_secs(300),
            look_for_operators_every: Duration::from_secs(2),
            shutdown: CancellationToken::new(),
        }
    }
}
