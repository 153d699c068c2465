//! What the daemon and the edge say to each other.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use warren_ingress::{Kind, Snapshot};
use warren_model::policy::HostName;
use warren_model::session::TunnelKey;
use warren_model::{NetworkNumber, SessionId};

use crate::change::NetworkChange;
use crate::denials::TakenDenials;
use crate::dns::stats::QueryCounters;
use crate::flows::{FlowCounters, OpenFlow};
use crate::operators::{SessionStatus, TunnelReport, TunnelStatus};
use crate::public::{PublicCounters, PublicGeneration, PublicStatus};
use crate::view::NetworkView;

/// Grows with every change that the other end has to know about.
pub(crate) const PROTOCOL: u32 = 8;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request<'a> {
    Hello {
        protocol: u32,
    },
    Status,
    PutNetwork {
        view: Box<Cow<'a, NetworkView>>,
        sockets: bool,
        device: bool,
    },
    ChangeNetwork {
        change: Box<Cow<'a, NetworkChange>>,
    },
    Listen {
        key: TunnelKey,
    },
    Sessions {
        network: NetworkNumber,
    },
    Tunnel,
    RemoveNetwork {
        number: NetworkNumber,
    },
    TakeDenials {
        after: u64,
    },
    OpenFlows {
        network: NetworkNumber,
    },
    FlowCounters {
        network: NetworkNumber,
    },
    /// With the listeners of this kind.
    ListenPublic {
        kind: Kind,
    },
    /// With sockets to the machines of this network.
    AddDialers {
        network: NetworkNumber,
    },
    RemoveDialers {
        network: NetworkNumber,
    },
    PutPublic {
        generation: PublicGeneration,
        snapshot: Box<Snapshot>,
    },
    /// Everything else that is published stays.
    PutChallenges {
        generation: u64,
        challenges: BTreeMap<String, String>,
    },
    Public,
    /// Of the sites of these hosts, or of all.
    PublicCounters {
        hosts: Option<Vec<HostName>>,
    },
    Shutdown,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Reply {
    Hello {
        protocol: u32,
        pid: i32,
    },
    Status(Box<EdgeStatus>),
    Denials(TakenDenials),
    OpenFlows(Vec<OpenFlow>),
    FlowCounters(Vec<FlowCounters>),
    Sessions(Vec<SessionStatus>),
    Tunnel(Option<TunnelReport>),
    /// The operators whom the gateway did not take.
    Put(Vec<SessionId>),
    Public(PublicStatus),
    PublicCounters(PublicCounters),
    Done,
    Refused(Refusal),
}

/// What a running edge says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeStatus {
    pub pid: i32,
    /// The version of Warren that the edge was started from.
    pub version: String,
    /// The networks that it answers for, and the generation of what it has for each.
    pub networks: BTreeMap<NetworkNumber, u64>,
    pub queries: QueryCounters,
    /// How many names have synthetic addresses, all machines together.
    pub names: u64,
    /// `None` while no sockets for operators are here.
    pub tunnel: Option<TunnelStatus>,
    /// The networks whose device for operators is here.
    pub devices: BTreeSet<NetworkNumber>,
    /// The operators whom the gateway did not take.
    pub refused: Vec<(NetworkNumber, SessionId)>,
    pub public: PublicStatus,
}

/// A request that the edge did not carry out, or not the whole of it; nothing is open that was not before or should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{code}: {message}")]
pub struct Refusal {
    pub code: RefusalCode,
    pub message: String,
}

impl Refusal {
    pub(crate) fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// The message could not be read.
    Malformed,
    /// The first message was not `hello`, or it named another protocol.
    Protocol,
    /// A network that the edge does not know needs its sockets with its first view.
    SocketsMissing,
    /// A socket is of the wrong kind or cannot be used.
    SocketsUnfit,
    /// A change does not begin with the view that the edge has, which needs the whole of the next one.
    Outdated,
    /// A name in the view is not inside `.internal`, or is given twice.
    InvalidName,
    /// What is to be published cannot be.
    InvalidPublic,
}

impl fmt::Display for RefusalCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "malformed",
            Self::Protocol => "protocol",
            Self::SocketsMissing => "sockets_missing",
            Self::SocketsUnfit => "sockets_unfit",
            Self::Outdated => "outdated",
            Self::InvalidName => "invalid_name",
            Self::InvalidPublic => "invalid_public",
        })
    }
}
