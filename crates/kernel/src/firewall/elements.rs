//! Set elements: which ones a member has, and changing and listing them in process.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use nix::errno::Errno;
use warren_model::record::Egress;
use warren_model::{InstallationId, MacAddress, MemberNumber};

use super::{Flow, MemberCounters, MemberSpec, Traffic};
use crate::names;
use crate::netlink::{Attributes, BatchError, CREATE, Message, Socket, be32, be64};

/// `NFPROTO_UNSPEC`, `NFPROTO_INET`, `NFPROTO_ARP`.
pub(crate) const FAMILY_ANY: u8 = 0;
pub(crate) const INET: u8 = 1;
pub(crate) const ARP: u8 = 3;

/// `NFNL_SUBSYS_NFTABLES`, and messages in it.
const NFTABLES: u16 = 10 << 8;
const GET_SET: u8 = 10;
const NEW_ELEMENT: u8 = 12;
const GET_ELEMENT: u8 = 13;
const DELETE_ELEMENT: u8 = 14;
const GET_OBJECT: u8 = 19;
/// An attribute holds less than 64 KiB, and an element takes less than 100 bytes.
const PER_MESSAGE: usize = 400;

/// The sets that hold one element per member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Set {
    Senders4,
    Senders6,
    Receivers4,
    Receivers6,
    ArpSenders,
    EgressSent4,
    EgressSent6,
    EgressReceived4,
    EgressReceived6,
}

impl Set {
    /// The sets of a network: those for egress exist only where something may leave.
    pub(crate) fn all(egress: Egress) -> &'static [Self] {
        const ALL: [Set; 9] = [
            Set::Senders4,
            Set::Senders6,
            Set::Receivers4,
            Set::Receivers6,
            Set::ArpSenders,
            Set::EgressSent4,
            Set::EgressSent6,
            Set::EgressReceived4,
            Set::EgressReceived6,
        ];
        match egress {
            Egress::Deny => &ALL[..5],
            Egress::Open => &ALL,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Senders4 => "senders4",
            Self::Senders6 => "senders6",
            Self::Receivers4 => "receivers4",
            Self::Receivers6 => "receivers6",
            Self::ArpSenders => "senders",
            Self::EgressSent4 => "egress_sent4",
            Self::EgressSent6 => "egress_sent6",
            Self::EgressReceived4 => "egress_received4",
            Self::EgressReceived6 => "egress_received6",
        }
    }

    pub(crate) fn family(self) -> u8 {
        if self == Self::ArpSenders { ARP } else { INET }
    }

    /// The key in the kernel's form: each field filled up with zeros to a multiple of four bytes.
    pub(crate) fn key(self, installation: &InstallationId, member: &MemberSpec) -> Vec<u8> {
        let mac = MacAddress::of_member(member.number).octets();
        let mut key = Vec::with_capacity(44);
        let mut field = |bytes: &[u8], length: usize| {
            key.extend_from_slice(bytes);
            key.resize(key.len() + length - bytes.len(), 0);
        };
        match self {
            Self::Senders4 | Self::Senders6 | Self::ArpSenders => {
                field(names::member_link(installation, member.number).as_bytes(), 16);
                field(&mac, 8);
                match self {
                    Self::Senders6 => field(&member.ipv6.octets(), 16),
                    Self::ArpSenders => {
                        field(&mac, 8);
                        field(&member.ipv4.octets(), 4);
                    }
                    _ => field(&member.ipv4.octets(), 4),
                }
            }
            Self::Receivers4 | Self::EgressSent4 | Self::EgressReceived4 => field(&member.ipv4.octets(), 4),
            Self::Receivers6 | Self::EgressSent6 | Self::EgressReceived6 => field(&member.ipv6.octets(), 16),
        }
        key
    }
}

/// One element as the kernel lists it.
pub(crate) struct Element {
    pub(crate) key: Vec<u8>,
    flags: u32,
    pub(crate) traffic: Traffic,
}

impl Element {
    pub(crate) fn key_and_flags(&self) -> Vec<u8> {
        [self.key.as_slice(), &self.flags.to_be_bytes()].concat()
    }
}

/// What a namespace's sets hold.
#[derive(Debug, Clone, Default)]
pub(crate) struct Listing {
    pub(crate) sets: BTreeMap<Set, BTreeMap<Vec<u8>, Traffic>>,
}

impl Listing {
    /// Lists all sets; those that do not exist are empty.
    pub(crate) fn read(socket: &mut Socket, egress: Egress) -> Result<Self, Errno> {
        let mut sets = BTreeMap::new();
        for set in Set::all(egress) {
            let elements = match set_elements(socket, set.family(), names::TABLE, set.name()) {
                Ok(elements) => elements,
                Err(Errno::ENOENT) => Vec::new(),
                Err(errno) => return Err(errno),
            };
            sets.insert(*set, elements.into_iter().map(|element| (element.key, element.traffic)).collect());
        }
        Ok(Self { sets })
    }

    pub(crate) fn traffic(&self, set: Set, key: &[u8]) -> Traffic {
        self.sets.get(&set).and_then(|keys| keys.get(key)).copied().unwrap_or_default()
    }

    /// The members that all sets agree on, and whether there is anything else.
    pub(crate) fn members(&self, installation: &InstallationId, egress: Egress) -> (BTreeSet<MemberSpec>, bool) {
        let halves = |set: Set, length: usize| -> BTreeMap<MemberNumber, Vec<u8>> {
            let keys = self.sets.get(&set).into_iter().flat_map(BTreeMap::keys);
            keys.filter_map(|key| {
                let link = crate::netlink::text(key.get(..16)?)?;
                Some((names::parse_member_link(installation, link)?, key.get(24..24 + length)?.to_vec()))
            })
            .collect()
        };
        let sixes = halves(Set::Senders6, 16);
        let members: BTreeSet<MemberSpec> = halves(Set::Senders4, 4)
            .into_iter()
            .filter_map(|(number, four)| {
                let ipv4 = Ipv4Addr::from(<[u8; 4]>::try_from(four).ok()?);
                let ipv6 = Ipv6Addr::from(<[u8; 16]>::try_from(sixes.get(&number)?.as_slice()).ok()?);
                Some(MemberSpec { number, ipv4, ipv6 })
            })
            .filter(|member| {
                Set::all(egress).iter().all(|set| {
                    let key = set.key(installation, member);
                    self.sets.get(set).is_some_and(|keys| keys.contains_key(&key))
                })
            })
            .collect();
        let stray = self.sets.values().any(|keys| keys.len() != members.len());
        (members, stray)
    }

    pub(crate) fn counters(&self, installation: &InstallationId, member: &MemberSpec) -> MemberCounters {
        let sum = |sets: [Set; 2]| {
            let [four, six] = sets.map(|set| self.traffic(set, &set.key(installation, member)));
            four.plus(six)
        };
        let egress = Flow {
            sent: sum([Set::EgressSent4, Set::EgressSent6]),
            received: sum([Set::EgressReceived4, Set::EgressReceived6]),
        };
        let private = Flow {
            sent: sum([Set::Senders4, Set::Senders6]).minus(egress.sent),
            received: sum([Set::Receivers4, Set::Receivers6]),
        };
        MemberCounters { private, egress }
    }
}

/// Adds the members' elements as one transaction; those that are there keep their counters.
pub(crate) fn add(
    socket: &mut Socket,
    installation: &InstallationId,
    egress: Egress,
    members: &[MemberSpec],
    generation: Option<u32>,
) -> Result<(), BatchError> {
    let mut messages = Vec::new();
    for set in Set::all(egress) {
        let keys: Vec<_> = members.iter().map(|member| set.key(installation, member)).collect();
        messages.extend(keys.chunks(PER_MESSAGE).map(|keys| change(NEW_ELEMENT, *set, keys)));
    }
    socket.batch(generation, messages)
}

/// Deletes the members' elements as one transaction; those that are absent are passed over.
pub(crate) fn delete(
    socket: &mut Socket,
    installation: &InstallationId,
    egress: Egress,
    members: &[MemberSpec],
    generation: Option<u32>,
) -> Result<(), BatchError> {
    let present = Listing::read(socket, egress).map_err(BatchError::Whole)?;
    let mut messages = Vec::new();
    for set in Set::all(egress) {
        let there = present.sets.get(set);
        let keys: Vec<_> = members
            .iter()
            .map(|member| set.key(installation, member))
            .filter(|key| there.is_some_and(|keys| keys.contains_key(key)))
            .collect();
        messages.extend(keys.chunks(PER_MESSAGE).map(|keys| change(DELETE_ELEMENT, *set, keys)));
    }
    socket.batch(generation, messages)
}

pub(crate) fn set_elements(socket: &mut Socket, family: u8, table: &str, set: &str) -> Result<Vec<Element>, Errno> {
    let question = Message::new(get_kind(GET_ELEMENT), 0, &nfgen(family)).put_text(1, table).put_text(2, set);
    let replies = socket.dump(question)?;
    Ok(replies
        .iter()
        .filter_map(|reply| reply.attributes(4).nested(3))
        .flatten()
        .filter_map(|(_, element)| parse(Attributes(element)))
        .collect())
}

/// Whether the rules are those of an open network.
pub(crate) fn is_open(socket: &mut Socket) -> Result<bool, Errno> {
    let question =
        Message::new(get_kind(GET_SET), 0, &nfgen(INET)).put_text(1, names::TABLE).put_text(2, Set::EgressSent4.name());
    match socket.get(question) {
        Ok(_) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// The value of a named counter, zero when there is none.
pub(crate) fn named_counter(socket: &mut Socket, family: u8, table: &str, name: &str) -> Result<Traffic, Errno> {
    const COUNTER: u32 = 1;
    let question = Message::new(get_kind(GET_OBJECT), 0, &nfgen(family))
        .put_text(1, table)
        .put_text(2, name)
        .put(3, &COUNTER.to_be_bytes());
    match socket.get(question) {
        Ok(reply) => Ok(reply.attributes(4).nested(4).map(counter).unwrap_or_default()),
        Err(Errno::ENOENT) => Ok(Traffic::default()),
        Err(errno) => Err(errno),
    }
}

pub(crate) fn get_kind(message: u8) -> u16 {
    NFTABLES | u16::from(message)
}

/// `struct nfgenmsg`.
pub(crate) fn nfgen(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

/// A length in front of what is hashed, so that two parts cannot pass for one.
pub(crate) fn header(length: usize) -> [u8; 8] {
    (length as u64).to_le_bytes()
}

fn change(message: u8, set: Set, keys: &[Vec<u8>]) -> Message {
    let flags = if message == NEW_ELEMENT { CREATE } else { 0 };
    Message::new(get_kind(message), flags, &nfgen(set.family()))
        .put_text(1, names::TABLE)
        .put_text(2, set.name())
        .nest(3, |list| {
            keys.iter().fold(list, |list, key| list.nest(1, |element| element.nest(1, |data| data.put(1, key))))
        })
}

fn parse(element: Attributes<'_>) -> Option<Element> {
    let key = element.nested(1)?.find(1)?.to_vec();
    let flags = element.find(3).and_then(be32).unwrap_or(0);
    let traffic = element.nested(7).and_then(|expression| expression.nested(2)).map(counter).unwrap_or_default();
    Some(Element { key, flags, traffic })
}

/// `NFTA_COUNTER_BYTES` and `NFTA_COUNTER_PACKETS`.
fn counter(data: Attributes<'_>) -> Traffic {
    let value = |kind| data.find(kind).and_then(be64).unwrap_or(0);
    Traffic { bytes: value(1), packets: value(2) }
}
