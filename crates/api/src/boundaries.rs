//! What the API must know of the enforcement of policies.

use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use jiff::Timestamp;
use warren_model::denial::Denial;
use warren_model::{AccountId, DenialId, MachineId, wire};

/// Which denials of an account are asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DenialFilter {
    /// Only those of this machine.
    pub machine: Option<MachineId>,
    /// Only those that are newer than this one.
    pub after: Option<DenialId>,
}

/// The boundaries as the API sees them; whatever enforces policies implements it.
#[async_trait]
pub trait Boundaries: Send + Sync + 'static {
    /// Waits until every layer enforces this version of the account's policy, or a later one. The error says what does
    /// not yet.
    async fn enforced(&self, account: AccountId, version: u64, within: Duration) -> Result<(), String>;

    /// Denials of an account, the oldest first: the first `limit` after [`DenialFilter::after`], else the newest
    /// `limit`.
    async fn denials(&self, account: AccountId, filter: DenialFilter, limit: usize) -> Vec<Denial>;

    /// Every denial of an account from now on. One that is counted on comes again, with its higher count.
    fn follow(&self, account: AccountId) -> BoxStream<'static, Denial>;

    /// What was refused to a machine since then, the oldest first. Asks the layers for what they still hold.
    async fn gather(&self, machine: MachineId, since: Timestamp) -> Vec<Denial>;

    /// The proxied connections to names outside that an account has open.
    async fn flows(&self, account: AccountId) -> Vec<wire::LiveFlow>;
}
