//! Synthetic addresses: what a member dials in place of a name outside.
//!
//! An address belongs to one name **of one member**: two members may have the same address for different names, and a
//! member keeps the address of a name as long as it may remember it. Where an address lies in the range follows from a
//! hash of the name, so that it is nearly always the same everywhere; what was given is in the [`Ledger`] before it is
//! said, so that an edge that was killed gives nothing twice.

mod ledger;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnet::Ipv6Net;
use warren_model::MemberId;
use warren_model::policy::{HostName, RuleId};

pub(crate) use ledger::Ledger;
pub use ledger::LedgerError;

/// How long an answer with a synthetic address may be remembered, in seconds.
pub(crate) const TTL: u32 = 60;
/// The names that a member has addresses for at the same time.
const NAMES: usize = 4096;
/// A name that was neither asked for nor dialled for so long may lose its address to another.
const REST: Duration = Duration::from_secs(3600);
/// The new names that a member gets through wildcards in [`PERIOD`].
const FRESH: u32 = 60;
const PERIOD: Duration = Duration::from_secs(60);
/// 198.18.0.0/15 ([`warren_model::policy::NAMES_V4`]).
const FIRST: u32 = u32::from_be_bytes([198, 18, 0, 0]);
/// How many addresses it has without the first and the last.
const SLOTS: u32 = (1 << 17) - 2;

/// The names of one network's members.
#[derive(Debug)]
pub(crate) struct Names {
    ledger: Arc<Ledger>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    range6: Ipv6Net,
    members: HashMap<MemberId, Member>,
}

#[derive(Debug)]
struct Member {
    by_name: HashMap<HostName, Given>,
    by_slot: HashMap<u32, HostName>,
    /// Since when the new names are counted, and how many there were.
    fresh: (Instant, u32),
}

#[derive(Debug)]
struct Given {
    slot: u32,
    /// When it was last asked for or dialled.
    used: Instant,
}

/// Why a name gets no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AssignError {
    #[error("it is not a member")]
    NoMember,
    #[error("more than {FRESH} new names through wildcards within a minute")]
    TooFast,
    #[error("more than {NAMES} names within an hour")]
    Full,
    #[error("the address could not be recorded")]
    Unrecorded,
}

impl AssignError {
    /// The built-in rule that says so.
    pub fn rule(&self) -> RuleId {
        RuleId::builtin("name-limit")
    }
}

impl Names {
    pub fn new(ledger: Arc<Ledger>, range6: Ipv6Net) -> Self {
        Self { ledger, state: Mutex::new(State { range6, members: HashMap::new() }) }
    }

    /// The addresses that a member dials for this name. `wildcard`: the rule that allows it has one, so that what a
    /// member could say by choosing names is bounded.
    pub fn assign(
        &self,
        member: MemberId,
        host: &HostName,
        wildcard: bool,
    ) -> Result<(Ipv4Addr, Ipv6Addr), AssignError> {
        self.assign_at(member, host, wildcard, Instant::now())
    }

    /// The name that this address is given for, to this member.
    pub fn name_of(&self, member: MemberId, address: IpAddr) -> Option<HostName> {
        self.name_of_at(member, address, Instant::now())
    }

    /// Takes over what the ledger has for members that are new here, and forgets those that are gone for good.
    pub fn keep(&self, range6: Ipv6Net, members: impl Iterator<Item = MemberId>) {
        let now = Instant::now();
        let mut state = self.state();
        state.range6 = range6;
        let mut before = std::mem::take(&mut state.members);
        state.members = members
            .map(|member| {
                let kept = before.remove(&member).unwrap_or_else(|| Member::new(self.ledger.claim(member), now));
                (member, kept)
            })
            .collect();
        for gone in before.into_keys() {
            self.ledger.forget(gone);
        }
    }

    /// Takes over what the ledger has for a member that is new here.
    pub fn join(&self, member: MemberId) {
        let now = Instant::now();
        self.state().members.entry(member).or_insert_with(|| Member::new(self.ledger.claim(member), now));
    }

    /// Forgets a member that is gone for good.
    pub fn leave(&self, member: MemberId) {
        if self.state().members.remove(&member).is_some() {
            self.ledger.forget(member);
        }
    }

    /// Forgets every member.
    pub fn clear(&self) {
        let range6 = self.state().range6;
        self.keep(range6, std::iter::empty());
    }

    /// How many names have addresses.
    pub fn count(&self) -> usize {
        self.state().members.values().map(|member| member.by_name.len()).sum()
    }

    fn assign_at(
        &self,
        id: MemberId,
        host: &HostName,
        wildcard: bool,
        now: Instant,
    ) -> Result<(Ipv4Addr, Ipv6Addr), AssignError> {
        let mut state = self.state();
        let range6 = state.range6;
        let member = state.members.get_mut(&id).ok_or(AssignError::NoMember)?;
        if let Some(given) = member.by_name.get_mut(host) {
            given.used = now;
            return Ok(addresses(range6, given.slot));
        }
        if wildcard {
            member.count_fresh(now)?;
        }
        let unrecorded = |error: std::io::Error| {
            tracing::error!(%error, "an address for a name could not be recorded, and is not given");
            AssignError::Unrecorded
        };
        if member.by_name.len() >= NAMES {
            let slot = member.drop_oldest(now)?;
            self.ledger.take_back(id, slot).map_err(unrecorded)?;
        }
        let slot = member.free_slot(host);
        self.ledger.give(id, slot, host).map_err(unrecorded)?;
        member.by_slot.insert(slot, host.clone());
        member.by_name.insert(host.clone(), Given { slot, used: now });
        Ok(addresses(range6, slot))
    }

    fn name_of_at(&self, id: MemberId, address: IpAddr, now: Instant) -> Option<HostName> {
        let mut state = self.state();
        let slot = slot(state.range6, address)?;
        let member = state.members.get_mut(&id)?;
        let host = member.by_slot.get(&slot)?.clone();
        if let Some(given) = member.by_name.get_mut(&host) {
            given.used = now;
        }
        Some(host)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Member {
    /// What is known from before counts as just used: nobody knows when it was.
    fn new(known: Vec<(u32, HostName)>, now: Instant) -> Self {
        let by_name = known.iter().map(|(slot, host)| (host.clone(), Given { slot: *slot, used: now })).collect();
        Self { by_name, by_slot: known.into_iter().collect(), fresh: (now, 0) }
    }

    fn count_fresh(&mut self, now: Instant) -> Result<(), AssignError> {
        if now.saturating_duration_since(self.fresh.0) >= PERIOD {
            self.fresh = (now, 0);
        }
        if self.fresh.1 >= FRESH {
            return Err(AssignError::TooFast);
        }
        self.fresh.1 += 1;
        Ok(())
    }

    fn drop_oldest(&mut self, now: Instant) -> Result<u32, AssignError> {
        let oldest = self.by_name.iter().min_by_key(|(_, given)| given.used);
        let rested = |given: &Given| now.saturating_duration_since(given.used) >= REST;
        let (host, slot) = oldest
            .filter(|(_, given)| rested(given))
            .map(|(host, given)| (host.clone(), given.slot))
            .ok_or(AssignError::Full)?;
        self.by_name.remove(&host);
        self.by_slot.remove(&slot);
        Ok(slot)
    }

    /// There is one: a member has far fewer names than there are slots.
    fn free_slot(&self, host: &HostName) -> u32 {
        let hash = blake3::hash(host.as_str().as_bytes());
        let [a, b, c, d, ..] = *hash.as_bytes();
        let mut slot = u32::from_be_bytes([a, b, c, d]) % SLOTS;
        while self.by_slot.contains_key(&slot) {
            slot = (slot + 1) % SLOTS;
        }
        slot
    }
}

fn addresses(range6: Ipv6Net, slot: u32) -> (Ipv4Addr, Ipv6Addr) {
    let four = FIRST + 1 + slot;
    let network = u128::from(range6.network()) & !u128::from(u32::MAX);
    (Ipv4Addr::from(four), Ipv6Addr::from(network | u128::from(four)))
}

fn slot(range6: Ipv6Net, address: IpAddr) -> Option<u32> {
    let four = match address.to_canonical() {
        IpAddr::V4(four) => u32::from(four),
        IpAddr::V6(six) => {
            let four = u128::from(six) as u32;
            let ours = addresses(range6, 0).1;
            (u128::from(six) >> 32 == u128::from(ours) >> 32).then_some(four)?
        }
    };
    four.checked_sub(FIRST + 1).filter(|slot| *slot < SLOTS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;
    use ulid::Ulid;

    fn member(number: u64) -> MemberId {
        warren_model::MachineId::from_ulid(Ulid::from_parts(number, 1)).into()
    }

    fn host(text: &str) -> HostName {
        text.parse().unwrap()
    }

    fn range6() -> Ipv6Net {
        "fd12:3456:789a:1:ffff::/80".parse().unwrap()
    }

    fn names(directory: &std::path::Path) -> Names {
        let names = Names::new(Arc::new(Ledger::open(directory, "names").unwrap()), range6());
        names.keep(range6(), [member(1), member(2)].into_iter());
        names
    }

    #[test]
    fn an_address_belongs_to_one_name_of_one_member_and_is_found_by_both_families() {
        let directory = tempfile::tempdir().unwrap();
        let names = names(directory.path());
        let (four, six) = names.assign(member(1), &host("api.example.com"), false).unwrap();
        assert_eq!((four.octets()[0], four.octets()[1] & 0xfe), (198, 18));
        assert_eq!(&six.octets()[..12], &range6().addr().octets()[..12]);
        assert_eq!(six.octets()[12..], four.octets());
        for address in [IpAddr::V4(four), IpAddr::V6(six)] {
            assert_eq!(names.name_of(member(1), address), Some(host("api.example.com")));
            assert_eq!(names.name_of(member(2), address), None, "of another member");
        }
        assert_eq!(names.assign(member(1), &host("api.example.com"), false), Ok((four, six)));
        assert_eq!(names.assign(member(3), &host("api.example.com"), false), Err(AssignError::NoMember));
        for foreign in ["198.18.0.0", "198.19.255.255", "10.0.0.1", "fd12:3456:789a:2:ffff::c612:1"] {
            assert_eq!(names.name_of(member(1), foreign.parse().unwrap()), None, "{foreign}");
        }
    }

    #[test]
    fn a_name_gives_way_only_when_it_rested_and_the_oldest_goes_first() {
        let directory = tempfile::tempdir().unwrap();
        let names = names(directory.path());
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut seen = HashSet::new();
        for index in 0..NAMES {
            let name = host(&format!("n{index}.example.com"));
            let (four, _) = names.assign_at(member(1), &name, false, at(index as u64 / 10)).unwrap();
            assert!(seen.insert(four), "{four} was given twice");
        }
        let late = host("late.example.com");
        assert_eq!(names.assign_at(member(1), &late, false, at(3599)), Err(AssignError::Full));
        assert!(names.assign_at(member(1), &host("n5.example.com"), false, at(3599)).is_ok(), "known already");
        // Dialled is used as well.
        let first = names.assign_at(member(2), &host("n0.example.com"), false, at(0)).unwrap().0;
        assert!(names.name_of_at(member(1), first.into(), at(3599)).is_some());
        let given = names.assign_at(member(1), &late, false, at(3600)).unwrap().0;
        assert_eq!(names.name_of_at(member(1), given.into(), at(3600)), Some(late));
        assert!(names.state().members[&member(1)].by_name.contains_key(&host("n5.example.com")));
        assert!(names.state().members[&member(1)].by_name.contains_key(&host("n0.example.com")));
        assert_eq!(names.state().members[&member(1)].by_name.len(), NAMES);
    }

    #[test]
    fn new_names_through_wildcards_are_bounded_by_the_minute() {
        let directory = tempfile::tempdir().unwrap();
        let names = names(directory.path());
        let start = Instant::now();
        let ask = |index: u32, at: Instant| {
            names.assign_at(member(1), &host(&format!("n{index}.example.com")), true, at).map(|_| ())
        };
        for index in 0..FRESH {
            ask(index, start).unwrap();
        }
        assert_eq!(ask(FRESH, start), Err(AssignError::TooFast));
        assert_eq!(ask(0, start), Ok(()), "a name that it has is not new");
        assert_eq!(ask(FRESH, start + PERIOD), Ok(()));
        assert!(names.assign_at(member(2), &host("n.example.com"), true, start).is_ok(), "another member");
    }

    #[test]
    fn what_was_given_outlives_the_edge_and_what_is_gone_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let before = names(directory.path());
        let given = before.assign(member(1), &host("a.example.com"), false).unwrap();
        before.assign(member(2), &host("b.example.com"), false).unwrap();
        before.keep(range6(), [member(1)].into_iter());
        drop(before);
        let after = names(directory.path());
        assert_eq!(after.name_of(member(1), given.0.into()), Some(host("a.example.com")));
        assert_eq!(after.count(), 1, "the second member was gone");
        after.clear();
        assert_eq!((after.count(), names(directory.path()).count()), (0, 0));
    }

    proptest! {
        #[test]
        fn whatever_is_asked_for_no_address_has_two_names(
            asked in proptest::collection::vec((1u64..3, 0u32..200), 1..300),
            cut in 0usize..300,
        ) {
            let directory = tempfile::tempdir().unwrap();
            let mut kept = names(directory.path());
            let mut given: HashMap<(u64, Ipv4Addr), u32> = HashMap::new();
            for (index, (number, name)) in asked.into_iter().enumerate() {
                if index == cut {
                    drop(kept);
                    kept = names(directory.path());
                }
                let text = host(&format!("n{name}.example.com"));
                let (four, _) = kept.assign(member(number), &text, false).unwrap();
                prop_assert_eq!(*given.entry((number, four)).or_insert(name), name);
            }
        }
    }
}
