//! What the API says and takes: JSON in snake_case, unknown fields refused.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::access::{Signal, TerminalSize};
use crate::record::{Egress, EventKind, Failure, MachineState, Protocol};

#[cfg(feature = "openapi")]
use utoipa::ToSchema;

macro_rules! shape {
    ($(#[$meta:meta])* pub struct $name:ident { $($body:tt)* }) => {
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(ToSchema))]
        $(#[$meta])*
        pub struct $name { $($body)* }
    };
}

mod access;
mod domain;
mod policy;
mod session;

pub use access::{CreateIdentity, CreateToken, Grant, GrantAccess, Identity, Token, UpdateIdentity};
pub use domain::{
    AskLimits, ClaimDomain, ClaimState, CreateDomain, Domain, DomainClaim, RequireAuth, TxtRecord, UpdateDomain,
};
pub use policy::{
    AppliedPolicy, ApplyPolicy, BuiltinRule, ChangedNetwork, ChangedRule, Denial, Explain, Explanation, LiveFlow,
    Passage, Passages, PolicyChange, PolicyDiff, PolicyInForce, PolicyRule, PolicySummary, Reach, ReachedMachine,
    ReachedName, ReachedPort, RollBackPolicy, TestPolicy, TestedPolicy,
};
pub use session::{OpenSession, OpenSessionOnly, OpenedSession, Session, SessionOnly, SessionStatus};

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Hand this back as `cursor` for the next page; null on the last one.
    pub next: Option<String>,
}

shape! {
    /// The tenant that owns networks and machines.
    pub struct Account {
        pub id: String,
        pub name: String,
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub created_at: Timestamp,
        /// The account's first key: only in the answer that created it, and never again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub key: Option<String>,
        /// Why `key` is absent, when an answer is repeated.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub detail: Option<String>,
    }
}

shape! {
    #[serde(deny_unknown_fields)]
    pub struct CreateAccount {
        /// One DNS label: 1 to 63 of a-z, 0-9 and '-'.
        #[cfg_attr(feature = "openapi", schema(pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))]
        pub name: String,
    }
}

shape! {
    /// An API key, without its secret.
    pub struct Key {
        pub id: String,
        pub name: Option<String>,
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub created_at: Timestamp,
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
        pub expires_at: Option<Timestamp>,
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
        pub last_used_at: Option<Timestamp>,
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
        pub revoked_at: Option<Timestamp>,
        /// The secret: only in the answer that created it, and never again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub key: Option<String>,
        /// Why `key` is absent, when an answer is repeated.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub detail: Option<String>,
    }
}

shape! {
    #[serde(deny_unknown_fields)]
    pub struct PullImage {
        /// `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`: `alpine:3.20`, `ghcr.io/acme/tool@sha256:…`.
        pub reference: String,
    }
}

shape! {
    #[serde(deny_unknown_fields)]
    pub struct CreateKey {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub name: Option<String>,
        /// Seconds until it is no longer valid: 60 to 31,536,000. Never when absent.
        #[cfg_attr(feature = "openapi", schema(minimum = 60, maximum = 31_536_000))]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub expires_in_seconds: Option<u64>,
    }
}

shape! {
    /// A private network.
    pub struct Network {
        pub id: String,
        pub name: String,
        /// 1 to 65,535, unique in the installation.
        pub number: u16,
        pub cidr: String,
        pub cidr6: String,
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = Ipv4))]
        pub gateway: Ipv4Addr,
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = Ipv6))]
        pub gateway6: Ipv6Addr,
        pub egress: Egress,
        /// How many members it has.
        pub members: u64,
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub created_at: Timestamp,
        /// What its owner should know, such as an overlap with a route of the host.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub warnings: Vec<String>,
    }
}

shape! {
    #[serde(deny_unknown_fields)]
    pub struct CreateNetwork {
        /// One DNS label: 1 to 63 of a-z, 0-9 and '-'.
        #[cfg_attr(feature = "openapi", schema(pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))]
        pub name: String,
        /// A private IPv4 range from /8 to /29; the first free 10.N.0.0/16 of the account when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub cidr: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub egress: Option<Egress>,
    }
}

shape! {
    #[serde(deny_unknown_fields)]
    pub struct Rename {
        /// One DNS label: 1 to 63 of a-z, 0-9 and '-'.
        #[cfg_attr(feature = "openapi", schema(pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))]
        pub name: String,
    }
}

shape! {
    /// A thing by its id and name.
    pub struct Reference {
        pub id: String,
        pub name: String,
    }
}

shape! {
    /// A port that a machine's owner declares.
    #[serde(deny_unknown_fields)]
    pub struct Port {
        pub name: String,
        /// 1 to 65,535.
        #[cfg_attr(feature = "openapi", schema(minimum = 1))]
        pub port: u16,
        pub protocol: Protocol,
    }
}

shape! {
    /// A computer that Warren runs for an agent.
    pub struct Machine {
        pub id: String,
        pub name: String,
        pub state: MachineState,
        /// Why it is `failed`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub failure: Option<Failure>,
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = Ipv4))]
        pub private_ip: Ipv4Addr,
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = Ipv6))]
        pub private_ip6: Ipv6Addr,
        /// The 48-bit address, `1:0001.0000.02AD`.
        pub address: String,
        pub hostname: String,
        pub network: Reference,
        pub image: String,
        /// Processors; fractions are allowed.
        pub cpus: f64,
        pub memory_mib: u64,
        /// Null where the disk is not limited.
        pub disk_gib: Option<u64>,
        pub ports: Vec<Port>,
        pub tags: Vec<String>,
        pub labels: BTreeMap<String, String>,
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub created_at: Timestamp,
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
        pub started_at: Option<Timestamp>,
    }
}

shape! {
    #[derive(Default)]
    #[serde(deny_unknown_fields)]
    pub struct CreateMachine {
        /// One DNS label; made up when absent.
        #[cfg_attr(feature = "openapi", schema(pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub name: Option<String>,
        /// A network's id or name; `default` when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub network: Option<String>,
        /// An address of the network; given by kind when absent.
        #[cfg_attr(feature = "openapi", schema(format = Ipv4))]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub private_ip: Option<String>,
        /// `debian` when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub image: Option<String>,
        /// Processors, 0.1 to what the host has; 1 when absent, or what the host has if that is less.
        #[cfg_attr(feature = "openapi", schema(minimum = 0.1, maximum = 1024))]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub cpus: Option<f64>,
        /// MiB of memory, 64 to what the host has; 512 when absent.
        #[cfg_attr(feature = "openapi", schema(minimum = 64, maximum = 16_777_216))]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub memory_mib: Option<u64>,
        /// GiB of disk, 1 to 1024, the image included; 10 when absent, or not limited where the host cannot limit disks.
        #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 1024))]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub disk_gib: Option<u64>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub ports: Vec<Port>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub tags: Vec<String>,
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub labels: BTreeMap<String, String>,
    }
}

shape! {
    /// What to change of a machine; what is absent stays as it is.
    #[derive(Default)]
    #[serde(deny_unknown_fields)]
    pub struct UpdateMachine {
        /// One DNS label: 1 to 63 of a-z, 0-9 and '-'.
        #[cfg_attr(feature = "openapi", schema(pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub name: Option<String>,
        /// In place of all declared ports.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub ports: Option<Vec<Port>>,
        /// In place of all tags.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub tags: Option<Vec<String>>,
        /// In place of all labels.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub labels: Option<BTreeMap<String, String>>,
    }
}

shape! {
    /// A command to run in a machine.
    #[serde(deny_unknown_fields)]
    pub struct Exec {
        /// The program and its arguments.
        pub command: Vec<String>,
        /// Bytes for its stdin, as text.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub stdin: Option<String>,
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub env: BTreeMap<String, String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub cwd: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub user: Option<String>,
        /// Milliseconds after which it is ended, 1 to 86,400,000; for a call that waits, the server's own limit when
        /// absent.
        #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 86_400_000))]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub timeout_ms: Option<u64>,
        /// A terminal of this size; only for a streamed exec.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub terminal: Option<TerminalSize>,
        /// Wait until background children listen, die, or a second has passed; true when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub settle: Option<bool>,
    }
}

shape! {
    /// How a command ended, with what it wrote.
    pub struct ExecResult {
        pub stdout: String,
        pub stderr: String,
        /// 128 and the signal's number when a signal ended it; 124 when its time was over.
        pub status: i32,
        pub signal: Option<i32>,
        pub timed_out: bool,
        /// More was written than an answer holds (1 MiB each); stream to get all of it.
        pub truncated: bool,
        /// What was refused to the machine between start and end of the command.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub denials: Vec<Denial>,
    }
}

/// What a client sends over a streamed exec, as WebSocket text frames; stdin travels as binary frames.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ExecControl {
    /// The first frame: what to run.
    Start {
        exec: Exec,
    },
    StdinClosed,
    Resize {
        size: TerminalSize,
    },
    Signal {
        signal: Signal,
    },
}

/// What the server sends over a streamed exec as text frames. Output travels as binary frames whose first byte is 1
/// for stdout and 2 for stderr.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ExecEvent {
    /// What was refused to the machine while the command ran; before `exit`, and only when there is any.
    Denials {
        denials: Vec<Denial>,
    },
    Exit {
        status: i32,
        signal: Option<i32>,
        timed_out: bool,
    },
    Failed {
        problem: crate::Problem,
    },
}

shape! {
    /// Something that holds a private address.
    pub struct Resource {
        /// `vm`
        #[serde(rename = "type")]
        pub kind: String,
        pub id: String,
        pub name: String,
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = Ipv4))]
        pub private_ip: Ipv4Addr,
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = Ipv6))]
        pub private_ip6: Ipv6Addr,
        pub address: String,
        pub hostname: String,
        pub state: MachineState,
        pub ports: Vec<Port>,
    }
}

shape! {
    /// A network with everything in it.
    pub struct NetworkTopology {
        pub network: Network,
        pub private_cidr: String,
        pub resources: Vec<Resource>,
    }
}

shape! {
    /// What happened.
    pub struct Event {
        pub id: String,
        /// Hand this back as `Last-Event-ID` to go on after it.
        pub revision: u64,
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub time: Timestamp,
        pub kind: EventKind,
        pub network: Option<String>,
        pub machine: Option<String>,
        pub message: String,
    }
}

shape! {
    /// Bytes and packets of one member since its link was made. Both directions are the member's view.
    #[derive(Default)]
    pub struct Traffic {
        /// Inside the network.
        pub private: Counters,
        /// To and from the outside, by address.
        pub egress: Counters,
        /// To and from names outside, under each rule that allowed it, since the proxy started.
        #[serde(default)]
        pub names: Vec<NameTraffic>,
        /// How many packets and requests were refused.
        #[serde(default)]
        pub refused: u64,
    }
}

shape! {
    /// Connections to names outside under one rule.
    pub struct NameTraffic {
        pub rule: String,
        /// Open now.
        pub open: u64,
        /// Since the proxy started.
        pub opened: u64,
        pub sent_bytes: u64,
        pub received_bytes: u64,
    }
}

shape! {
    #[derive(Default)]
    pub struct Counters {
        pub sent_bytes: u64,
        pub sent_packets: u64,
        pub received_bytes: u64,
        pub received_packets: u64,
    }
}

shape! {
    /// The server itself.
    pub struct ServerInfo {
        pub version: String,
        pub installation: String,
        pub account: Reference,
        /// The key that asks; absent for a token.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub key: Option<String>,
        pub root: bool,
        /// Whose token asks.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub identity: Option<String>,
        /// The token that asks.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub token: Option<String>,
    }
}

shape! {
    #[serde(deny_unknown_fields)]
    pub struct MakeDirectory {
        pub path: String,
        /// Make the directories above it, and accept one that is there.
        #[serde(default)]
        pub parents: bool,
    }
}

shape! {
    /// What an audit is about.
    #[derive(Default)]
    #[serde(deny_unknown_fields)]
    pub struct RunAudit {
        /// Only flows from machines of this network, by its id or name; of the whole account when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub network: Option<String>,
    }
}

shape! {
    #[serde(deny_unknown_fields)]
    pub struct ScheduleAudit {
        /// Seconds from one audit to the next, 60 to 31,536,000.
        #[cfg_attr(feature = "openapi", schema(minimum = 60, maximum = 31_536_000))]
        pub every_seconds: u64,
        /// A directory on the server's host, as an absolute path, into which every report is written.
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub report: Option<std::path::PathBuf>,
    }
}

/// One line of an image's build, import or pull; the last one is `done` or `failed`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ImageEvent {
    Progress { progress: crate::access::ImageProgress },
    Done { image: crate::access::ImageInfo },
    Failed { problem: crate::Problem },
}
