//! Refusals by policy: one record, said in the same words at every layer.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::{AccountId, DenialId, MemberId, NetworkId};
use crate::policy::{Protocol, Rule, RuleId};

/// Which part of Warren refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// A packet between members.
    Network,
    /// A packet to the outside.
    Egress,
    /// A question to the resolver.
    Dns,
    /// A connection by name, before anything of it was understood.
    Tcp,
    /// The server name of a TLS connection.
    Tls,
    /// A request of an HTTP connection.
    Http,
    /// A request to the proxy on the gateway.
    Proxy,
}

impl Layer {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Egress => "egress",
            Self::Dns => "dns",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Http => "http",
            Self::Proxy => "proxy",
        }
    }
}

/// One refusal, or several alike in a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denial {
    pub id: DenialId,
    pub time: Timestamp,
    pub account: AccountId,
    pub network: NetworkId,
    /// Who was refused; `None` when it is gone.
    #[serde(rename = "machine")]
    pub member: Option<MemberId>,
    /// The address, where there was one.
    pub to: Option<IpAddr>,
    /// The name, where there was one: of a member as `network/machine`, or outside.
    pub name: Option<String>,
    pub port: Option<u16>,
    pub protocol: Protocol,
    pub layer: Layer,
    /// The rule that forbade it; `None` when no rule allowed it.
    pub rule: Option<RuleId>,
    pub reason: String,
    /// The rule that would allow it, to paste into the policy; `None` where no rule can.
    pub suggested_rule: Option<Rule>,
    /// How many refusals this record stands for, at least 1. Exact where the edge refused; of packets, those that the
    /// kernel told of, which are at most 10 a second of one machine after the first 20.
    pub count: u64,
}
