//! What the daemon hands to the edge.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use ipnet::Ipv6Net;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use warren_model::policy::{Group, Member, NameRule};
use warren_model::session::WireGuardKey;
use warren_model::{AccountId, Label, MemberNumber, NetworkCidr, NetworkId, NetworkNumber, SessionId};

/// The port of the listeners that take what goes to a synthetic address.
pub const TRANSPARENT_PORT: u16 = 3129;
/// The port of the proxy on the gateway.
pub const PROXY_PORT: u16 = 3128;

/// Everything that the edge knows of one network: a snapshot that replaces the one before it as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkView {
    pub account: AccountId,
    pub network: NetworkId,
    pub name: Label,
    pub number: NetworkNumber,
    /// Chosen by the daemon; the edge only repeats it.
    pub generation: u64,
    pub gateway4: Ipv4Addr,
    pub gateway6: Ipv6Addr,
    /// The range whose reverse names (in-addr.arpa) are answered here.
    pub cidr: NetworkCidr,
    /// The range whose reverse names (ip6.arpa) are answered here.
    pub cidr6: Ipv6Net,
    /// The names in `.internal`, of members and of those in other networks with whom members have traffic.
    /// `gateway.internal` is always there and cannot be given to a member.
    pub names: Vec<NameRecord>,
    /// For whom names with a scope are there: the scopes that each group of members sees.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sight: BTreeMap<Group, BTreeSet<Group>>,
    /// Where every other name is looked up, in order of preference. Empty: nothing outside is looked up, and names that
    /// a rule allows get synthetic addresses.
    pub forward: Vec<SocketAddr>,
    /// The range of the synthetic IPv6 addresses ([`warren_model::UlaPrefix::names`]), at most a /96.
    pub names6: Ipv6Net,
    /// Who is in the network. Nobody else is answered.
    pub members: Vec<Member>,
    /// The groups of the members, by each of their addresses.
    pub groups: BTreeMap<IpAddr, Group>,
    /// What each group may reach by name.
    pub rules: BTreeMap<Group, Vec<NameRule>>,
    /// Who is asked for the names that a rule allows, in order of preference.
    pub resolvers: Vec<SocketAddr>,
    /// The operators who may join by WireGuard.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub operators: Vec<Operator>,
    /// The hash of the policy that `groups` and `rules` follow from.
    pub policy: String,
}

/// One operator, until the session is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operator {
    pub session: SessionId,
    pub number: MemberNumber,
    pub public_key: WireGuardKey,
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
    /// `None`: whatever policy allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<OperatorScope>,
    /// Whether members may open connections to it, as far as policy allows. If not, it is sent only what answers it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reachable: bool,
    pub expires_at: Timestamp,
    pub idle_seconds: u64,
}

/// All that an operator reaches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorScope {
    pub addresses: Vec<IpAddr>,
    /// TCP and UDP to this port, and nothing else.
    pub port: Option<u16>,
}

/// One name and the addresses behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameRecord {
    /// A name inside `.internal`, such as `worker.vm.internal`, without a trailing dot.
    pub name: String,
    /// `None`: it is reached by IPv6 alone.
    pub ipv4: Option<Ipv4Addr>,
    pub ipv6: Ipv6Addr,
    /// `None`: the name is there for everybody. Else only for itself, and for the groups that see this one; for nobody
    /// else where the scope is [`NOBODY`]. Who does not see it gets the answers of a name that does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Group>,
}

/// The group of members that no rule is about: nobody sees them.
pub const NOBODY: Group = Group(0);

/// The sockets of one network, made inside its namespace; the TCP ones listen.
#[derive(Debug)]
pub struct Sockets {
    /// Port 53 of the gateway's addresses.
    pub udp4: OwnedFd,
    pub udp6: OwnedFd,
    pub tcp4: OwnedFd,
    pub tcp6: OwnedFd,
    /// [`TRANSPARENT_PORT`] of every address, with `IP_TRANSPARENT`: the local address of a connection is the one that
    /// the machine dialled.
    pub transparent4: OwnedFd,
    pub transparent6: OwnedFd,
    /// [`PROXY_PORT`] of the gateway's addresses.
    pub proxy4: OwnedFd,
    pub proxy6: OwnedFd,
}

impl Sockets {
    /// How many descriptors travel with a view.
    pub(crate) const COUNT: usize = 8;

    pub(crate) fn into_descriptors(self) -> [OwnedFd; Self::COUNT] {
        let Self { udp4, udp6, tcp4, tcp6, transparent4, transparent6, proxy4, proxy6 } = self;
        [udp4, udp6, tcp4, tcp6, transparent4, transparent6, proxy4, proxy6]
    }

    /// The inverse of [`Self::into_descriptors`].
    pub(crate) fn from_descriptors(descriptors: [OwnedFd; Self::COUNT]) -> Self {
        let [udp4, udp6, tcp4, tcp6, transparent4, transparent6, proxy4, proxy6] = descriptors;
        Self { udp4, udp6, tcp4, tcp6, transparent4, transparent6, proxy4, proxy6 }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    pub use crate::fuzz::network as network_view;
    use ulid::Ulid;
    use warren_model::{MachineId, MemberNumber};

    /// A member with this number, 2 to 255, and so with 10.0.1.{number}.
    pub fn member(number: u32, name: &str) -> Member {
        Member {
            id: MachineId::from_ulid(Ulid::from_parts(1, number.into())).into(),
            network: "lab".parse().unwrap(),
            name: name.parse().unwrap(),
            number: MemberNumber::new(number).unwrap(),
            ipv4: Ipv4Addr::from(0x0a00_0100 + number),
            ipv6: Ipv6Addr::from(0xfd12_3456_789a_0001_u128 << 64 | u128::from(number)),
            tags: Default::default(),
        }
    }

    /// A rule, which forbids where its id begins with `no-`.
    pub fn rule(id: &str, pattern: &str, ports: &[&str]) -> NameRule {
        NameRule {
            id: id.parse().unwrap(),
            forbid: id.starts_with("no-"),
            pattern: pattern.parse().unwrap(),
            ports: ports.iter().map(|ports| ports.parse().unwrap()).collect(),
            application: None,
        }
    }

    /// A network of `web` and `other`; the rules are those of `web` only.
    pub fn view_with(rules: Vec<NameRule>) -> NetworkView {
        let mut view = network_view();
        view.members = vec![member(2, "web"), member(3, "other")];
        view.groups = [(view.members[0].ipv4.into(), Group(7)), (view.members[0].ipv6.into(), Group(7))].into();
        view.rules = [(Group(7), rules)].into();
        view
    }

    #[test]
    fn a_view_reads_back_as_written() {
        let view = view_with(vec![rule("gh", "*.github.com", &["tcp/443"])]);
        let text = serde_json::to_string(&view).unwrap();
        assert_eq!(serde_json::from_str::<NetworkView>(&text).unwrap(), view);
    }
}
