//! The sets and maps of a router namespace whose elements change while the rules stay.

use std::net::IpAddr;

use warren_model::{Access, InstallationId, MacAddress};

use super::MemberSpec;
use super::elements::{ARP, INET};
use super::item::{Field, Item};
use super::shape::Shape;
use crate::names;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Set {
    Senders4,
    Senders6,
    Receivers4,
    Receivers6,
    ArpSenders,
    Refused4,
    Refused6,
    EgressSent4,
    EgressSent6,
    EgressReceived4,
    EgressReceived6,
    Sources4,
    Sources6,
    Targets4,
    Targets6,
    Classes4,
    Classes6,
    Talk,
    TalkPorts,
    TalkRanges,
    TalkOther,
    Linked4,
    Linked6,
    Beyond4,
    Beyond6,
    Private4,
    Private6,
    Current,
    Generation,
}

/// One element per member, in this order.
const OF_MEMBERS: [Set; 11] = [
    Set::Senders4,
    Set::Senders6,
    Set::Receivers4,
    Set::Receivers6,
    Set::ArpSenders,
    Set::Refused4,
    Set::Refused6,
    Set::EgressSent4,
    Set::EgressSent6,
    Set::EgressReceived4,
    Set::EgressReceived6,
];
const GROUPS: [Set; 8] = [
    Set::Sources4,
    Set::Sources6,
    Set::Targets4,
    Set::Targets6,
    Set::Talk,
    Set::TalkPorts,
    Set::TalkRanges,
    Set::TalkOther,
];
const CLASSES: [Set; 2] = [Set::Classes4, Set::Classes6];
const LINKS: [Set; 4] = [Set::Linked4, Set::Linked6, Set::Beyond4, Set::Beyond6];
const CACHE: [Set; 2] = [Set::Current, Set::Generation];
const PRIVATE: [Set; 2] = [Set::Private4, Set::Private6];

impl Set {
    /// Every set of members that there may be.
    pub(crate) const MEMBERS: &'static [Self] = &OF_MEMBERS;

    /// The maps that name the groups of members, among others'.
    pub(crate) const GROUPS_OF_MEMBERS: [Self; 4] = [Self::Sources4, Self::Sources6, Self::Targets4, Self::Targets6];

    /// The sets that hold one element per member: those for egress exist only where something may leave.
    pub(crate) fn of_members(shape: Shape) -> &'static [Self] {
        if shape.outside.is_some() { &OF_MEMBERS } else { &OF_MEMBERS[..7] }
    }

    /// The sets that hold what the policy says.
    pub(crate) fn of_policy(shape: Shape) -> impl Iterator<Item = Self> {
        let when = |there: bool, sets: &'static [Self]| if there { sets } else { &[] }.iter().copied();
        when(shape.has_groups(), &GROUPS)
            .chain(when(shape.has_classes(), &CLASSES))
            .chain(when(shape.links, &LINKS))
            .chain(when(shape.outside.is_some(), &PRIVATE))
    }

    /// The sets that say which flows need not be judged again.
    pub(crate) fn of_cache(shape: Shape) -> impl Iterator<Item = Self> {
        if shape.has_groups() { CACHE.as_slice() } else { &[] }.iter().copied()
    }

    pub(crate) fn all(shape: Shape) -> impl Iterator<Item = Self> {
        Self::of_members(shape).iter().copied().chain(Self::of_policy(shape)).chain(Self::of_cache(shape))
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Senders4 => "senders4",
            Self::Senders6 => "senders6",
            Self::Receivers4 => "receivers4",
            Self::Receivers6 => "receivers6",
            Self::ArpSenders => "senders",
            Self::Refused4 => "refused4",
            Self::Refused6 => "refused6",
            Self::EgressSent4 => "egress_sent4",
            Self::EgressSent6 => "egress_sent6",
            Self::EgressReceived4 => "egress_received4",
            Self::EgressReceived6 => "egress_received6",
            Self::Sources4 => "sources4",
            Self::Sources6 => "sources6",
            Self::Targets4 => "targets4",
            Self::Targets6 => "targets6",
            Self::Classes4 => "classes4",
            Self::Classes6 => "classes6",
            Self::Talk => "talk",
            Self::TalkPorts => "talk_ports",
            Self::TalkRanges => "talk_ranges",
            Self::TalkOther => "talk_other",
            Self::Linked4 => "linked4",
            Self::Linked6 => "linked6",
            Self::Beyond4 => "beyond4",
            Self::Beyond6 => "beyond6",
            Self::Private4 => "private4",
            Self::Private6 => "private6",
            Self::Current => "current",
            Self::Generation => "generation",
        }
    }

    /// As nft declares it; a map's has a colon.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::Senders4 => "type ifname . ether_addr . ipv4_addr; counter;",
            Self::Senders6 => "type ifname . ether_addr . ipv6_addr; counter;",
            Self::ArpSenders => "type ifname . ether_addr . ether_addr . ipv4_addr; counter;",
            Self::Receivers4 | Self::Refused4 | Self::EgressSent4 | Self::EgressReceived4 => "type ipv4_addr; counter;",
            Self::Receivers6 | Self::Refused6 | Self::EgressSent6 | Self::EgressReceived6 => "type ipv6_addr; counter;",
            Self::Sources4 => "type ipv4_addr : mark;",
            Self::Sources6 => "type ipv6_addr : mark;",
            Self::Targets4 => "type ipv4_addr : classid;",
            Self::Targets6 => "type ipv6_addr : classid;",
            Self::Classes4 => "type nf_proto . ipv4_addr : classid; flags interval;",
            Self::Classes6 => "type nf_proto . ipv6_addr : classid; flags interval;",
            Self::Talk => "type mark . classid . inet_proto;",
            Self::TalkPorts => "type mark . classid . inet_proto . inet_service;",
            Self::TalkRanges => "type mark . classid . inet_proto . inet_service; flags interval;",
            Self::TalkOther => "type mark . classid;",
            Self::Linked4 => "type ifname . ipv4_addr; flags interval;",
            Self::Linked6 => "type ifname . ipv6_addr; flags interval;",
            Self::Current => "type mark;",
            Self::Generation => "type nf_proto : mark;",
            Self::Beyond4 | Self::Private4 => "type nf_proto . ipv4_addr; flags interval;",
            Self::Beyond6 | Self::Private6 => "type nf_proto . ipv6_addr; flags interval;",
        }
    }

    pub(crate) fn is_map(self) -> bool {
        self.kind().contains(" : ")
    }

    pub(crate) fn is_of_ranges(self) -> bool {
        self.kind().contains("interval")
    }

    pub(crate) fn family(self) -> u8 {
        if self == Self::ArpSenders { ARP } else { INET }
    }

    /// The member's element, in a set that has one per member.
    pub(crate) fn member(self, installation: &InstallationId, member: &MemberSpec) -> Item {
        let link = || {
            Field::Link(match member.access {
                Access::Link => names::member_link(installation, member.number),
                Access::Tunnel => names::tunnel_link(installation),
            })
        };
        let mac = || Field::Mac(MacAddress::of_member(member.number));
        let four = Field::Address(IpAddr::V4(member.ipv4));
        let six = Field::Address(IpAddr::V6(member.ipv6));
        match self {
            Self::Senders4 => Item::new([link(), mac(), four]),
            Self::Senders6 => Item::new([link(), mac(), six]),
            Self::ArpSenders => Item::new([link(), mac(), mac(), four]),
            Self::Receivers6 | Self::Refused6 | Self::EgressSent6 | Self::EgressReceived6 => Item::new([six]),
            _ => Item::new([four]),
        }
    }

    pub(crate) fn key(self, installation: &InstallationId, member: &MemberSpec) -> Vec<u8> {
        self.member(installation, member).entry(false).key
    }
}
