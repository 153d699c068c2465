//! What the proxies ask before they let anything through.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use warren_model::DenialId;
use warren_model::policy::{Application, HostName, Rule, RuleId};

pub(crate) use crate::denials::Refusal;
pub(crate) use crate::outside::Decision;

/// Everything that the proxies know of the network that they serve.
pub(crate) trait Gate: Send + Sync + 'static {
    /// Holds one of the connections that a member may have at once.
    type Place: Send + Sync + 'static;

    /// The name that the resolver gave this member for this address.
    fn name_of(&self, source: IpAddr, address: IpAddr) -> Option<HostName>;

    /// What policy says now; changes nothing.
    fn judge(&self, source: IpAddr, host: &HostName, port: u16) -> Decision;

    /// What policy says now of a connection that is asked for: a name that only a wildcard allows counts among those
    /// that the member may use.
    fn admit(&self, source: IpAddr, host: &HostName, port: u16) -> Decision;

    /// Records a refusal.
    fn refuse(&self, refusal: Refusal) -> Denied;

    /// The addresses of a name outside, as the resolvers say now; only those that may be dialled.
    fn look_up(&self, host: &HostName) -> impl Future<Output = Result<Vec<IpAddr>, LookUpError>> + Send;

    /// Whether the edge may connect to this address at all, whatever anybody said.
    fn may_dial(&self, address: IpAddr) -> bool;

    /// A place for one more connection; `None` when the member or the edge has as many as it may.
    fn place(&self, source: IpAddr) -> Option<Self::Place>;

    /// Registers a connection that was just allowed by this rule, to be spoken on as it says. `None` when the member is
    /// gone.
    fn open(
        &self,
        source: IpAddr,
        host: &HostName,
        port: u16,
        rule: &RuleId,
        application: Application,
    ) -> Option<Arc<dyn Passage>>;
}

/// An open connection to the outside; it counts as closed when the last reference is dropped.
pub(crate) trait Passage: Send + Sync + 'static {
    /// Cancelled as soon as policy no longer allows the connection.
    fn revoked(&self) -> &CancellationToken;
    /// Counts bytes from the machine to the outside.
    fn add_sent(&self, bytes: u64);
    /// Counts bytes from the outside to the machine.
    fn add_received(&self, bytes: u64);
}

/// A refusal as it was recorded.
#[derive(Debug, Clone)]
pub(crate) struct Denied {
    pub id: DenialId,
    pub rule: Option<RuleId>,
    pub reason: String,
    pub suggested_rule: Option<Rule>,
}

/// Why a name that policy allows has no address to connect to.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum LookUpError {
    /// It leads to where nobody may go.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Failed(String),
}

/// How long and how much.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// From the connection to the last byte of a ClientHello or request line.
    pub hello: Duration,
    /// How long a client may be silent, where it may say anything, before the server gets a chance to speak first.
    pub silence: Duration,
    /// How long the rest of a request line may take, where it need not be one.
    pub rest: Duration,
    /// From one request on a connection to the end of the next one's headers.
    pub request: Duration,
    /// For connecting to a server, over all its addresses.
    pub connect: Duration,
    /// How long one address is tried before the next one is, too (RFC 8305 §5).
    pub stagger: Duration,
    /// How long nothing may move on an open connection.
    pub idle: Duration,
    /// How long the rest of what a client sends is read after its last answer, so that the answer arrives.
    pub farewell: Duration,
}

impl Limits {
    pub const ORDINARY: Self = Self {
        hello: Duration::from_secs(5),
        silence: Duration::from_millis(30),
        rest: Duration::from_millis(150),
        request: Duration::from_secs(30),
        connect: Duration::from_secs(10),
        stagger: Duration::from_millis(250),
        idle: Duration::from_secs(3600),
        farewell: Duration::from_secs(1),
    };
}
