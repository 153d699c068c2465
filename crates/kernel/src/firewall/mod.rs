//! The rules of a router namespace: fixed per network; membership and policy change elements of sets and maps only.
//!
//! | part | what it does |
//! | --- | --- |
//! | [`shape`] | which parts the rules have |
//! | [`text`] | the fixed rules, and all elements, as nftables reads them |
//! | [`sets`], [`item`] | the sets and maps that change, and one element of them |
//! | [`policy`] | what policy says, as elements |
//! | [`cache`] | which flows need not be judged again |
//! | [`elements`] | adding, deleting and listing elements in process |
//! | [`rules`] | the rules of one network: loading, changing, and knowing them |
//! | [`digest`] | what the kernel holds, in short, to see whether somebody changed it |

pub(crate) mod cache;
pub(crate) mod digest;
pub(crate) mod elements;
pub(crate) mod item;
pub(crate) mod policy;
pub(crate) mod process;
pub(crate) mod rules;
pub(crate) mod sets;
pub(crate) mod shape;
pub(crate) mod text;

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use warren_model::{Access, MemberNumber};

/// One member as the rules know it. Its MAC is `MacAddress::of_member(number)`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct MemberSpec {
    pub number: MemberNumber,
    pub access: Access,
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    pub packets: u64,
    /// Bytes of IP packets, headers included.
    pub bytes: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flow {
    pub sent: Traffic,
    pub received: Traffic,
}

/// What one member sent and received.
///
/// `egress` counts what passed the router towards and from the internet. `private` counts as sent everything else that
/// left the machine with its true source (also to the gateway, and also what was refused), and as received what other
/// members sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemberCounters {
    pub private: Flow,
    pub egress: Flow,
}

/// What the rules of a router namespace are, compared with what was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RulesState {
    Intact,
    /// Somebody changed them, they belong to another specification, or to another version of Warren.
    Altered,
    Missing,
}

/// What a packet was refused for: the prefix with which the rules report it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// From a member to a member, of this network or of another one.
    Network,
    /// To the outside.
    Egress,
    /// To an address that stands for a name outside, other than by TCP, or while no proxy listens.
    Names,
    /// To the gateway, for something that it does not serve.
    Gateway,
    /// Under another interface, MAC or address than the sender's.
    Spoofed,
}

impl Refusal {
    pub const ALL: [Self; 5] = [Self::Network, Self::Egress, Self::Names, Self::Gateway, Self::Spoofed];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Egress => "egress",
            Self::Names => "names",
            Self::Gateway => "gateway",
            Self::Spoofed => "spoofed",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A prefix that none of our rules has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no kind of refusal is called that")]
pub struct UnknownRefusal;

impl FromStr for Refusal {
    type Err = UnknownRefusal;

    fn from_str(prefix: &str) -> Result<Self, UnknownRefusal> {
        Self::ALL.into_iter().find(|refusal| refusal.as_str() == prefix).ok_or(UnknownRefusal)
    }
}

impl Traffic {
    fn plus(self, other: Self) -> Self {
        Self { packets: self.packets + other.packets, bytes: self.bytes + other.bytes }
    }

    fn minus(self, other: Self) -> Self {
        Self { packets: self.packets.saturating_sub(other.packets), bytes: self.bytes.saturating_sub(other.bytes) }
    }
}
