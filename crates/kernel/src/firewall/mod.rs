//! The rules of a router namespace: fixed per network; membership changes set elements only.
//!
//! | part | what it does |
//! | --- | --- |
//! | [`text`] | the fixed rules, and all elements, as nftables reads them |
//! | [`elements`] | adding, deleting and listing elements in process |
//! | [`digest`] | what the kernel holds, in short, to see whether somebody changed it |

pub(crate) mod digest;
pub(crate) mod elements;
pub(crate) mod process;
pub(crate) mod text;

use std::net::{Ipv4Addr, Ipv6Addr};

use warren_model::MemberNumber;

/// One member as the rules know it. Its MAC is `MacAddress::of_member(number)`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct MemberSpec {
    pub number: MemberNumber,
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

impl Traffic {
    fn plus(self, other: Self) -> Self {
        Self { packets: self.packets + other.packets, bytes: self.bytes + other.bytes }
    }

    fn minus(self, other: Self) -> Self {
        Self { packets: self.packets.saturating_sub(other.packets), bytes: self.bytes.saturating_sub(other.bytes) }
    }
}
