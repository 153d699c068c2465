//! What may talk to what.
//!
//! An account has one policy. It is order-free: a `forbid` always wins, otherwise any `allow` is enough, otherwise the
//! answer is no. Two things are allowed without a rule of the policy: members of a network whose `intra` is `allow`
//! reach each other, and members of a network whose egress is `open` reach the public internet. What is built in shows
//! as rules, too, with ids that begin with `builtin:`.
//!
//! ```text
//!   text ── read ──▶ Policy ─┬─ evaluate ──▶ Verdict        explain, reach, tests, denials
//!                            └─ compile  ──▶ NetworkRules   the kernel's maps and the edge's names
//! ```
//!
//! Both work on a [`Directory`], which says who is there. `compile` says nothing that `evaluate` does not.
//!
//! | module | holds |
//! | --- | --- |
//! | `read` | a document in YAML or JSON becomes a [`Policy`], or errors with line and column |
//! | `evaluate` | one flow, one verdict; the reference for everything else |
//! | `compile` | the rules of one network in the form that the kernel and the edge take |
//! | `check` | whether a policy fits who is there, and says what it claims |
//! | `claim` | the tests of a policy |
//! | `suggest` | the rule that is missing, and those that nearly decide |
//! | `schema` | the JSON Schema of the document |
//! | `protect` | what no rule can open |
//! | `edges` | the addresses at which answers may change |
//! | `ports`, `host` | ports and protocols; host names and patterns of them |
//! | `global` | which addresses are the public internet |
//! | `private` | which others a host's operator lets rules open |

pub mod check;
mod claim;
pub mod compile;
mod edges;
pub mod evaluate;
mod global;
pub mod host;
mod link;
mod near;
mod people;
pub mod ports;
mod private;
mod protect;
pub mod read;
mod schema;
mod suggest;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::address::{MemberNumber, NetworkNumber};
use crate::cidr::NetworkCidr;
use crate::id::{MemberId, NetworkId};
use crate::name::{Label, Tag};
use crate::record::Egress;

pub use check::{Finding, check};
pub use claim::{TestOutcome, run_tests};
pub use compile::{CompileError, Group, NameDecision, NameRule, NetworkRules, compile};
pub use edges::{edges, following};
pub use evaluate::{Destination, Flow, Sender, Verdict, evaluate};
pub use global::{GLOBAL_V6, NOT_GLOBAL_V4, NOT_GLOBAL_V6, is_global};
pub use host::{HostName, HostPattern, InvalidHost};
pub use ports::{Application, PortRange, Ports, Protocol};
pub use private::PrivateRanges;
pub use protect::{BUILTIN, HostLimits, PROTECTED, protected_ranges, protection};
pub use read::{PolicyError, ReadPolicy, read};
pub use schema::schema;
pub use suggest::{NearMiss, missing_rule, near_misses, suggest};

/// The addresses with which the resolver of every network answers for names outside (RFC 2544 sets them apart for
/// benchmarks, so nobody else is there). The IPv6 range is [`crate::UlaPrefix::names`].
pub const NAMES_V4: &str = "198.18.0.0/15";

/// The id of a rule: chosen in the policy, or `builtin:…`.
///
/// In a policy: 1 to 63 of `a-z 0-9 - _ .`, starting with a letter or digit. Unique among all rules of the policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RuleId(pub(crate) String);

impl RuleId {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `builtin:{name}`: a rule that is not in any policy.
    pub fn builtin(name: impl fmt::Display) -> Self {
        Self(format!("builtin:{name}"))
    }

    pub fn is_builtin(&self) -> bool {
        self.0.starts_with("builtin:")
    }
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A valid policy: every id is unique and every name is well-formed. That the networks exist is checked against a
/// [`Directory`] when it is applied.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Policy {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<Label, NetworkSettings>,
    /// Who may give a tag: names of keys.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", rename = "tagOwners")]
    pub tag_owners: BTreeMap<Tag, BTreeSet<Label>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forbid: Vec<Rule>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Rule>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tests: Vec<Test>,
}

impl Policy {
    /// blake3 of the canonical JSON, in hex: the same rules have the same hash however they were written.
    pub fn hash(&self) -> String {
        let json = serde_json::to_vec(self).unwrap_or_default();
        blake3::hash(&json).to_hex().to_string()
    }

    /// Whether members of this network reach each other without a rule.
    pub fn intra(&self, network: &Label) -> Intra {
        self.networks.get(network).map(|settings| settings.intra).unwrap_or_default()
    }

    /// Every rule, the forbidding ones first, and whether it forbids.
    pub fn rules(&self) -> impl Iterator<Item = (&Rule, bool)> {
        self.forbid.iter().map(|rule| (rule, true)).chain(self.allow.iter().map(|rule| (rule, false)))
    }

    pub fn rule(&self, id: &RuleId) -> Option<&Rule> {
        self.rules().map(|(rule, _)| rule).find(|rule| rule.id == *id)
    }

    /// The next instant after `now` at which a rule expires: what was compiled before holds until then.
    pub fn next_expiry(&self, now: Timestamp) -> Option<Timestamp> {
        self.rules().filter_map(|(rule, _)| rule.expires).filter(|at| *at > now).min()
    }
}

/// What a policy says about a network as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSettings {
    /// How others may join it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<Join>,
    #[serde(default)]
    pub intra: Intra,
}

/// How a network may be joined from elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Join {
    Open,
    Token,
    Invite,
}

/// Whether members of one network reach each other without a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Intra {
    #[default]
    Allow,
    Deny,
}

/// One rule, allowing or forbidding by the list that it is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    pub id: RuleId,
    pub from: Subject,
    pub to: Target,
    /// Empty: every protocol and port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Ports>,
    /// What is spoken, for a rule to a name; by port when absent.
    #[serde(default, rename = "as", skip_serializing_if = "Option::is_none")]
    pub application: Option<Application>,
    /// Who answers for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// From then on it is as if it were not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// Why it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Rule {
    pub fn is_in_force(&self, now: Timestamp) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }

    /// Whether the rule is about this protocol and port; no port for protocols that have none.
    pub fn covers(&self, protocol: Protocol, port: Option<u16>) -> bool {
        self.ports.is_empty() || self.ports.iter().any(|ports| ports.cover(protocol, port))
    }

    /// Who is meant inside: by `from`, and by `to` where that is not a name.
    pub fn subjects(&self) -> impl Iterator<Item = &Subject> {
        let to = match &self.to {
            Target::Inside(subject) => Some(subject),
            Target::Outside(_) => None,
        };
        std::iter::once(&self.from).chain(to)
    }
}

/// Who is meant inside: `net:N`, `N/tag:T`, `N/machine`, or an address or CIDR.
///
/// A range means the members that have an address in it, in whatever network of the account they are; `N/CIDR` means
/// those of one network.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    Network(Label),
    Tag(Label, Tag),
    Machine(Label, Label),
    Range(Option<Label>, IpNet),
}

impl Subject {
    /// The network that it names; `None` for a range in whatever network.
    pub fn network(&self) -> Option<&Label> {
        match self {
            Self::Network(network) | Self::Tag(network, _) | Self::Machine(network, _) => Some(network),
            Self::Range(network, _) => network.as_ref(),
        }
    }
}

/// Where a flow goes: to somebody inside, or to a name outside. A [`Subject::Range`] here means the address as the
/// sender sees it, whether a member has it or not.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    Inside(Subject),
    /// Written `{name: PATTERN}`.
    Outside(HostPattern),
}

/// A claim that the policy has to make true.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Test {
    pub from: Subject,
    pub to: TestTarget,
    pub port: Ports,
    pub expect: Expect,
    /// The rule that has to decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<RuleId>,
}

impl Test {
    /// Who is meant inside: by `from`, and by `to` where that is not a name.
    pub fn subjects(&self) -> impl Iterator<Item = &Subject> {
        let to = match &self.to {
            TestTarget::Inside(subject) => Some(subject),
            TestTarget::Outside(_) => None,
        };
        std::iter::once(&self.from).chain(to)
    }
}

/// Like a [`Target`], but a single name instead of a pattern.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TestTarget {
    Inside(Subject),
    Outside(HostName),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Expect {
    Allow,
    Deny,
}

/// Who is there, in one account: what a policy is evaluated against.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Directory {
    pub networks: BTreeMap<Label, NetworkEntry>,
    pub members: Vec<Member>,
    /// What their host keeps closed; `compile` does not look at it, since the host's own rules do.
    pub host: HostLimits,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkEntry {
    pub id: NetworkId,
    pub number: NetworkNumber,
    pub cidr: NetworkCidr,
    pub cidr6: ipnet::Ipv6Net,
    pub egress: Egress,
}

/// A member as policy sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub id: MemberId,
    pub network: Label,
    pub name: Label,
    pub number: MemberNumber,
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
    pub tags: BTreeSet<Tag>,
}

impl Directory {
    /// The member of this network with this address.
    pub fn at(&self, network: &Label, address: IpAddr) -> Option<&Member> {
        self.members.iter().filter(|member| member.network == *network).find(|member| member.has(address))
    }
}

impl Member {
    /// `network/machine`
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.network, self.name)
    }

    pub fn has(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(four) => self.ipv4 == four,
            IpAddr::V6(six) => self.ipv6 == six,
        }
    }

    /// Whether a subject means this member.
    pub fn is_meant_by(&self, subject: &Subject) -> bool {
        match subject {
            Subject::Network(network) => self.network == *network,
            Subject::Tag(network, tag) => self.network == *network && self.tags.contains(tag),
            Subject::Machine(network, name) => self.network == *network && self.name == *name,
            Subject::Range(network, range) => {
                network.as_ref().is_none_or(|network| self.network == *network)
                    && (range.contains(&IpAddr::V4(self.ipv4)) || range.contains(&IpAddr::V6(self.ipv6)))
            }
        }
    }
}
