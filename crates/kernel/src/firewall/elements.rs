//! Changing and listing elements in process.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use nix::errno::Errno;
use warren_model::{Access, InstallationId, MacAddress, MemberNumber};

use super::item::Entry;
use super::sets::Set;
use super::shape::Shape;
use super::{Flow, MemberCounters, MemberSpec, Traffic};
use crate::names;
use crate::netlink::{Attributes, BatchError, CREATE, Message, Socket, be32, be64};

/// `NFPROTO_UNSPEC`, `NFPROTO_INET`, `NFPROTO_ARP`.
pub(crate) const FAMILY_ANY: u8 = 0;
pub(crate) const INET: u8 = 1;
pub(crate) const ARP: u8 = 3;

/// `NFNL_SUBSYS_NFTABLES`, and messages in it.
const NFTABLES: u16 = 10 << 8;
const NEW_ELEMENT: u8 = 12;
const GET_ELEMENT: u8 = 13;
const DELETE_ELEMENT: u8 = 14;
const GET_OBJECT: u8 = 19;
/// An attribute holds less than 64 KiB, and an element takes less than 150 bytes.
const PER_MESSAGE: usize = 400;

/// One element as the kernel lists it.
pub(crate) struct Element {
    pub(crate) entry: Entry,
    flags: u32,
    pub(crate) traffic: Traffic,
}

impl Element {
    pub(crate) fn key_and_flags(&self) -> Vec<u8> {
        let end = self.entry.end.as_deref().unwrap_or_default();
        [self.entry.key.as_slice(), end, &self.flags.to_be_bytes()].concat()
    }
}

/// Elements of one set to be added or deleted.
#[derive(Debug)]
pub(crate) struct Change {
    set: Set,
    kind: Kind,
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Add,
    Delete,
    DeleteAll,
}

impl Change {
    /// Those that are there keep their counters.
    pub(crate) fn add(set: Set, entries: impl IntoIterator<Item = Entry>) -> Self {
        Self { set, kind: Kind::Add, entries: entries.into_iter().collect() }
    }

    /// All of them have to be there.
    pub(crate) fn delete(set: Set, entries: impl IntoIterator<Item = Entry>) -> Self {
        Self { set, kind: Kind::Delete, entries: entries.into_iter().collect() }
    }

    /// Whatever is there, also nothing.
    pub(crate) fn delete_all(set: Set) -> Self {
        Self { set, kind: Kind::DeleteAll, entries: Vec::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.kind != Kind::DeleteAll && self.entries.is_empty()
    }

    fn messages(&self) -> impl Iterator<Item = Message> {
        let (kind, flags) = if self.kind == Kind::Add { (NEW_ELEMENT, CREATE) } else { (DELETE_ELEMENT, 0) };
        let about = move || {
            Message::new(get_kind(kind), flags, &nfgen(self.set.family()))
                .put_text(1, names::TABLE)
                .put_text(2, self.set.name())
        };
        // Without a list every element is meant.
        let all = (self.kind == Kind::DeleteAll).then(about);
        all.into_iter().chain(self.entries.chunks(PER_MESSAGE).map(move |entries| {
            about().nest(3, |list| entries.iter().fold(list, |list, entry| list.nest(1, |element| put(element, entry))))
        }))
    }
}

/// Makes the changes as one transaction, only if the generation is still the given one.
pub(crate) fn apply(socket: &mut Socket, changes: &[Change], generation: Option<u32>) -> Result<(), BatchError> {
    socket.batch(generation, changes.iter().flat_map(Change::messages).collect())
}

/// Every member's elements in the sets that there are one of for each member.
pub(crate) fn add_members(installation: &InstallationId, shape: Shape, members: &[MemberSpec]) -> Vec<Change> {
    let of = |set: Set| members.iter().map(move |member| set.member(installation, member).entry(false));
    Set::of_members(shape).iter().map(|set| Change::add(*set, of(*set))).collect()
}

pub(crate) fn delete_members(installation: &InstallationId, shape: Shape, members: &[MemberSpec]) -> Vec<Change> {
    let of = |set: Set| members.iter().map(move |member| set.member(installation, member).entry(false));
    Set::of_members(shape).iter().map(|set| Change::delete(*set, of(*set))).collect()
}

/// What a namespace's sets hold.
#[derive(Debug, Clone, Default)]
pub(crate) struct Listing {
    sets: BTreeMap<Set, BTreeMap<Vec<u8>, (Entry, Traffic)>>,
}

impl Listing {
    /// Lists these sets; those that do not exist are absent.
    pub(crate) fn read(socket: &mut Socket, sets: impl IntoIterator<Item = Set>) -> Result<Self, Errno> {
        let mut listing = Self::default();
        for set in sets {
            match set_elements(socket, set.family(), names::TABLE, set.name()) {
                Ok(elements) => {
                    let found = elements.into_iter().map(|one| (one.entry.key.clone(), (one.entry, one.traffic)));
                    listing.sets.insert(set, found.collect());
                }
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(listing)
    }

    #[cfg(test)]
    pub(crate) fn insert(&mut self, set: Set, entry: Entry, traffic: Traffic) {
        self.sets.entry(set).or_default().insert(entry.key.clone(), (entry, traffic));
    }

    pub(crate) fn of(&self, set: Set) -> impl Iterator<Item = &Entry> {
        self.sets.get(&set).into_iter().flat_map(BTreeMap::values).map(|(entry, _)| entry)
    }

    pub(crate) fn traffic(&self, set: Set, key: &[u8]) -> Traffic {
        self.sets.get(&set).and_then(|keys| keys.get(key)).map(|(_, traffic)| *traffic).unwrap_or_default()
    }

    pub(crate) fn has(&self, set: Set, key: &[u8]) -> bool {
        self.sets.get(&set).is_some_and(|keys| keys.contains_key(key))
    }

    /// The members that all sets of this shape agree on, and whether the members' sets hold anything else.
    pub(crate) fn members(&self, installation: &InstallationId, shape: Shape) -> (BTreeSet<MemberSpec>, bool) {
        let tunnel = names::tunnel_link(installation);
        let halves = |set: Set, length: usize| -> BTreeMap<(MemberNumber, Access), Vec<u8>> {
            self.of(set)
                .filter_map(|entry| {
                    let link = crate::netlink::text(entry.key.get(..16)?)?;
                    let who = if link == tunnel {
                        let mac = MacAddress::from_octets(entry.key.get(16..22)?.try_into().ok()?);
                        (mac.member()?, Access::Tunnel)
                    } else {
                        (names::parse_member_link(installation, link)?, Access::Link)
                    };
                    Some((who, entry.key.get(24..24 + length)?.to_vec()))
                })
                .collect()
        };
        let sixes = halves(Set::Senders6, 16);
        let sets = Set::of_members(shape);
        let members: BTreeSet<MemberSpec> = halves(Set::Senders4, 4)
            .into_iter()
            .filter_map(|(who, four)| {
                let (number, access) = who;
                let ipv4 = Ipv4Addr::from(<[u8; 4]>::try_from(four).ok()?);
                let ipv6 = Ipv6Addr::from(<[u8; 16]>::try_from(sixes.get(&who)?.as_slice()).ok()?);
                Some(MemberSpec { number, access, ipv4, ipv6 })
            })
            .filter(|member| sets.iter().all(|set| self.has(*set, &set.key(installation, member))))
            .collect();
        let stray = sets.iter().any(|set| self.sets.get(set).is_none_or(|keys| keys.len() != members.len()));
        (members, stray)
    }

    /// What is there of these members, whole or not, with their groups.
    pub(crate) fn elements_of(&self, installation: &InstallationId, members: &[MemberSpec]) -> Vec<Change> {
        let sets = Set::MEMBERS.iter().copied().chain(Set::GROUPS_OF_MEMBERS);
        let there = |set: Set, member: &MemberSpec| {
            let key = match set {
                Set::Sources4 | Set::Targets4 => member.ipv4.octets().to_vec(),
                Set::Sources6 | Set::Targets6 => member.ipv6.octets().to_vec(),
                of_members => of_members.key(installation, member),
            };
            self.sets.get(&set)?.get(&key).map(|(entry, _)| entry.clone())
        };
        sets.map(|set| Change::delete(set, members.iter().filter_map(|member| there(set, member)))).collect()
    }

    pub(crate) fn counters(&self, installation: &InstallationId, member: &MemberSpec) -> MemberCounters {
        let sum = |sets: [Set; 2]| self.sum(installation, member, sets);
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

    /// What these two sets counted for the member.
    pub(crate) fn sum(&self, installation: &InstallationId, member: &MemberSpec, sets: [Set; 2]) -> Traffic {
        let [four, six] = sets.map(|set| self.traffic(set, &set.key(installation, member)));
        four.plus(six)
    }
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

/// `NFTA_SET_ELEM_KEY`, `…_KEY_END` and `…_DATA`, each with an `NFTA_DATA_VALUE`.
fn put(element: Message, entry: &Entry) -> Message {
    let parts = [(1, Some(&entry.key)), (10, entry.end.as_ref()), (2, entry.data.as_ref())];
    parts.into_iter().fold(element, |element, (kind, value)| match value {
        Some(value) => element.nest(kind, |data| data.put(1, value)),
        None => element,
    })
}

fn parse(element: Attributes<'_>) -> Option<Element> {
    let value = |kind| Some(element.nested(kind)?.find(1)?.to_vec());
    let entry = Entry { key: value(1)?, end: value(10), data: value(2) };
    let flags = element.find(3).and_then(be32).unwrap_or(0);
    let traffic = element.nested(7).and_then(|expression| expression.nested(2)).map(counter).unwrap_or_default();
    Some(Element { entry, flags, traffic })
}

/// `NFTA_COUNTER_BYTES` and `NFTA_COUNTER_PACKETS`.
fn counter(data: Attributes<'_>) -> Traffic {
    let value = |kind| data.find(kind).and_then(be64).unwrap_or(0);
    Traffic { bytes: value(1), packets: value(2) }
}
