//! What the API must know of the host.

use std::collections::BTreeSet;
use std::net::IpAddr;

use async_trait::async_trait;
use warren_model::{MemberNumber, NetworkCidr, NetworkNumber, wire};

/// The host as the API sees it; the wiring implements it.
#[async_trait]
pub trait Host: Send + Sync + 'static {
    /// The host's own routes that share addresses with this range, as text; the default route does not count.
    fn overlapping_routes(&self, cidr: NetworkCidr) -> Vec<String>;
    /// The host's own addresses, on whatever interface; empty where they cannot be read.
    fn addresses(&self) -> BTreeSet<IpAddr>;
    /// Whether `open` egress can be given: IP forwarding is on, or Warren may switch it on.
    fn forwarding(&self) -> bool;
    /// What a member has sent and received since its link was made; `None` while it has no link.
    async fn traffic(&self, network: NetworkNumber, member: MemberNumber) -> Option<wire::Traffic>;
    /// Whether the server can do its work; the error says what is missing and how to mend it.
    async fn readiness(&self) -> Result<(), String>;
    /// Prometheus text of the rest of the server, appended to the API's own.
    fn metrics(&self) -> String;
}
