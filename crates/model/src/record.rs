//! What the store holds. Specs are desired state, written by the API; a status is written by the reconciler only.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::address::{MemberAddress, MemberNumber, NetworkNumber};
use crate::allocate::{Hold, MemberKind};
use crate::cidr::{NetworkCidr, UlaPrefix};
use crate::grant::{GrantTarget, Permission};
use crate::id::{AccountId, EventId, IdentityId, InstallationId, KeyId, MachineId, MemberId, NetworkId, TokenId};
use crate::name::{ImageName, Label, LabelKey, LabelValue, Tag};
use crate::policy::Policy;
use crate::problem::Code;

/// What makes this installation different from every other one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installation {
    pub id: InstallationId,
    pub ula: UlaPrefix,
    pub created_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    pub id: AccountId,
    pub name: Label,
    pub created_at: Timestamp,
}

/// An API key. The secret itself is nowhere; its blake3 hash is the record's key in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    pub id: KeyId,
    pub account: AccountId,
    pub name: Option<Label>,
    /// May act in every account.
    pub root: bool,
    /// blake3 of the secret, in hex.
    pub hash: String,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
}

/// Somebody who may operate machines that are granted to them, and nothing else: an end user, a browser, an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub id: IdentityId,
    pub account: AccountId,
    pub name: Option<Label>,
    pub metadata: BTreeMap<LabelKey, LabelValue>,
    pub created_at: Timestamp,
}

/// What an identity may do with a machine, or with every machine of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub identity: IdentityId,
    pub target: GrantTarget,
    pub permission: Permission,
    pub granted_at: Timestamp,
    /// The key that granted it.
    pub granted_by: KeyId,
}

/// Proves that a client is an identity. The secret itself is nowhere; its blake3 hash is the record's key in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    pub id: TokenId,
    pub account: AccountId,
    pub identity: IdentityId,
    /// blake3 of the secret, in hex.
    pub hash: String,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    pub revoked_at: Option<Timestamp>,
}

impl ApiKey {
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|until| now < until)
    }
}

impl Token {
    /// Until when it is valid, or was.
    pub fn end(&self) -> Timestamp {
        self.revoked_at.map_or(self.expires_at, |revoked| revoked.min(self.expires_at))
    }

    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && now < self.expires_at
    }
}

/// Whether members of a network may leave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Egress {
    /// No route out at all.
    #[default]
    Deny,
    /// The public internet, masqueraded; nothing private.
    Open,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub id: NetworkId,
    pub account: AccountId,
    pub name: Label,
    pub number: NetworkNumber,
    pub cidr: NetworkCidr,
    pub egress: Egress,
    pub created_at: Timestamp,
    /// Deletion was asked for; the record goes when nothing of it is left on the host.
    #[serde(default)]
    pub deleting: bool,
}

/// Who holds an address of a network, or until when it rests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressHold {
    pub kind: MemberKind,
    /// The member that holds it; `None` once released.
    pub holder: Option<MemberId>,
    pub resting_until: Option<Timestamp>,
}

impl AddressHold {
    pub fn as_hold(&self) -> Hold {
        Hold { kind: self.kind, resting_until: if self.holder.is_some() { None } else { self.resting_until } }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    Tcp,
    Udp,
    Http,
    Https,
}

impl Protocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// A port that a machine's owner declares: a fact for people and agents, not an opening.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclaredPort {
    pub name: Label,
    pub port: u16,
    pub protocol: Protocol,
}

/// What a machine may use.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Processors, in thousandths.
    pub cpus_milli: u32,
    pub memory_mib: u64,
    /// `None` where the disk is not limited.
    pub disk_gib: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    On,
    Off,
    /// To be removed, with its disk.
    Gone,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub id: MachineId,
    pub account: AccountId,
    pub network: NetworkId,
    pub name: Label,
    pub member: MemberNumber,
    pub ipv4: Ipv4Addr,
    pub image: ImageName,
    pub limits: Limits,
    pub ports: Vec<DeclaredPort>,
    pub tags: BTreeSet<Tag>,
    pub labels: BTreeMap<LabelKey, LabelValue>,
    /// Which range of 65,536 host uids is the machine's, see [`Machine::uid_base`].
    pub uid_slot: u16,
    pub power: Power,
    /// Counted up by each restart that is asked for.
    pub boot: u64,
    pub created_at: Timestamp,
}

impl Machine {
    /// The host's uid and gid of root in the machine; 65,536 of them are the machine's.
    pub fn uid_base(&self) -> u32 {
        u32::from(self.uid_slot) << 16
    }

    pub fn ipv6(&self, ula: UlaPrefix, network: NetworkNumber) -> Ipv6Addr {
        ula.member(network, self.member)
    }

    pub fn address(&self, network: NetworkNumber) -> MemberAddress {
        MemberAddress { network, member: self.member }
    }

    /// `worker.vm.internal`
    pub fn hostname(&self) -> String {
        format!("{}.vm.internal", self.name)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum MachineState {
    Creating,
    Running,
    Stopping,
    Stopped,
    Starting,
    Failed,
    Deleting,
}

impl MachineState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Failed => "failed",
            Self::Deleting => "deleting",
        }
    }
}

/// Why a machine is `failed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Failure {
    pub code: Code,
    pub detail: String,
}

/// Why a network is not what its policy and its record say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkProblem {
    /// Nothing but what is built in is allowed in it; otherwise what was in force before may still be.
    pub closed: bool,
    pub failure: Failure,
}

impl fmt::Display for NetworkProblem {
    /// What can be said after the network's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.closed { "is closed: " } else { "could not be changed as wanted: " })?;
        f.write_str(&self.failure.detail)
    }
}

/// What the reconciler last saw of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineStatus {
    pub state: MachineState,
    /// The boot that this state is about.
    pub boot: u64,
    pub failure: Option<Failure>,
    pub started_at: Option<Timestamp>,
}

/// What happened, for the event stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    AccountCreated,
    KeyCreated,
    KeyRevoked,
    IdentityCreated,
    IdentityDeleted,
    /// An identity may do something with a machine or network, or something else than before.
    AccessGranted,
    AccessRevoked,
    TokenCreated,
    TokenRevoked,
    /// An operator may join a network.
    SessionOpened,
    /// Closed by somebody, expired, or idle for too long.
    SessionClosed,
    /// A host name leads to a machine's port: it is public from now on.
    DomainPublished,
    /// It leads there no longer.
    DomainWithdrawn,
    /// The record that proves a host name is gone; unless it comes back, what is mapped by it will be withdrawn.
    DomainProofMissing,
    /// The account has to prove the host name again.
    DomainProofLost,
    NetworkCreated,
    NetworkRenamed,
    NetworkDeleted,
    /// It is closed because its policy cannot be put into rules, or it could not be changed as wanted.
    NetworkFailed,
    /// What was wrong with it is over.
    NetworkRecovered,
    MachineCreated,
    MachineRunning,
    MachineStopped,
    MachineFailed,
    MachineRenamed,
    MachineDeleted,
    /// Somebody changed what Warren keeps, and it was put right.
    DriftRepaired,
    /// Another policy is in force, or an earlier one again.
    PolicyApplied,
    /// An audit that ran by itself did not pass, or could not run.
    AuditFailed,
    /// An audit that ran by itself saw something else than the one before.
    AuditDiffered,
    ServerStarted,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub id: EventId,
    pub time: Timestamp,
    pub kind: EventKind,
    /// `None` for what concerns the whole installation.
    pub account: Option<AccountId>,
    pub network: Option<NetworkId>,
    pub machine: Option<MachineId>,
    /// A sentence for a person.
    pub message: String,
}

/// One mutation through the API: who did what to which thing. Written in the mutation's own transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    pub id: EventId,
    pub time: Timestamp,
    /// The account that was acted in.
    pub account: AccountId,
    /// The key that acted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyId>,
    /// The token that acted, where it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenId>,
    /// `machine.create`
    pub action: String,
    /// The id of the thing.
    pub target: String,
    pub request_id: String,
    /// What was asked for, without secrets.
    pub request: serde_json::Value,
}

/// A policy that was applied. Never changes; the one in force is named by its version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyVersion {
    /// Counts up from 1 in each account. 0 is the empty policy, which has no record.
    pub version: u64,
    /// [`Policy::hash`].
    pub hash: String,
    /// As it was written.
    pub text: String,
    pub policy: Policy,
    pub applied_at: Timestamp,
    /// The key that applied it.
    pub key: KeyId,
    /// The version whose text this is, when it was rolled back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled_back_from: Option<u64>,
}

/// What an idempotency key was used for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdempotencyRecord {
    /// blake3 of method, path and body.
    pub fingerprint: String,
    /// The id of what was created.
    pub created: String,
    pub expires_at: Timestamp,
}
