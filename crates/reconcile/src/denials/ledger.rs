//! The denials that are remembered: a ring for each account, in memory, and their log.

use std::collections::{HashMap, VecDeque};

use jiff::{SignedDuration, Timestamp};
use warren_model::denial::Denial;
use warren_model::{AccountId, DenialId, MemberId};

/// How many records of one account are kept.
const KEPT: usize = 10_000;
/// Refusals alike within this time are one record.
const ALIKE_WITHIN: SignedDuration = SignedDuration::from_secs(1);
/// How many of an account's newest records a refusal is compared with.
const COMPARED: usize = 64;

/// Everything that was refused of late.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    accounts: HashMap<AccountId, Ring>,
}

/// The records of one account, oldest first.
#[derive(Debug, Default)]
struct Ring {
    entries: VecDeque<Entry>,
    /// How many of them are about each member.
    shares: HashMap<Option<MemberId>, usize>,
}

#[derive(Debug)]
struct Entry {
    denial: Denial,
    /// When it was last counted on.
    last: Timestamp,
}

impl From<Denial> for Entry {
    fn from(denial: Denial) -> Self {
        Self { last: denial.time, denial }
    }
}

impl Ledger {
    /// Adds a refusal: as a record of its own, or counted on one that says the same. Returns the record as it is now, and
    /// how many refusals are new.
    pub fn add(&mut self, denial: Denial, now: Timestamp) -> (Denial, u64) {
        let ring = self.accounts.entry(denial.account).or_default();
        let recent =
            || ring.entries.iter().enumerate().rev().take_while(|(_, known)| known.denial.time >= denial.time - SLACK);
        let known = recent()
            .find(|(_, known)| known.denial.id == denial.id)
            .or_else(|| recent().take(COMPARED).find(|(_, known)| is_alike(&known.denial, &denial)))
            .map(|(place, _)| place);
        let known = known.and_then(|place| ring.entries.get_mut(place));
        let before = known.as_ref().filter(|known| known.denial.id == denial.id).map_or(0, |known| known.denial.count);
        // A record that its layer counts on by itself comes again, with a higher count.
        let more = denial.count.saturating_sub(before);
        if let Some(known) = known {
            known.denial.count += more;
            if more > 0 {
                known.last = now;
            }
            return (known.denial.clone(), more);
        }
        ring.push(Entry { denial: denial.clone(), last: now });
        (denial, more)
    }

    /// Puts back what was remembered before, oldest first.
    pub fn restore(&mut self, denials: impl IntoIterator<Item = Denial>) {
        for denial in denials {
            let ring = self.accounts.entry(denial.account).or_default();
            let recent = ring.entries.iter_mut().rev().take_while(|known| known.denial.time >= denial.time - SLACK);
            match recent.into_iter().find(|known| known.denial.id == denial.id) {
                Some(known) => *known = denial.into(),
                None => ring.push(denial.into()),
            }
        }
    }

    /// Oldest first: those after `after`, or else the newest.
    pub fn list(
        &self,
        account: AccountId,
        member: Option<MemberId>,
        after: Option<DenialId>,
        limit: usize,
    ) -> Vec<Denial> {
        let Some(ring) = self.accounts.get(&account) else { return Vec::new() };
        let ring = || ring.entries.iter().map(|entry| &entry.denial);
        let wanted = |denial: &&Denial| member.is_none_or(|member| denial.member == Some(member));
        match after {
            Some(after) => {
                let first = ring().position(|denial| denial.id == after).map_or_else(
                    // The record itself may be gone; ids are in the order of time.
                    || ring().position(|denial| denial.id > after).unwrap_or(KEPT),
                    |position| position + 1,
                );
                ring().skip(first).filter(wanted).take(limit).cloned().collect()
            }
            None => {
                let mut newest: Vec<_> = ring().rev().filter(wanted).take(limit).cloned().collect();
                newest.reverse();
                newest
            }
        }
    }

    /// What this member was refused since then, oldest first; also what was counted since then on an earlier record.
    pub fn since(&self, account: AccountId, member: MemberId, since: Timestamp, limit: usize) -> Vec<Denial> {
        let ring = self.accounts.get(&account);
        let recent = ring
            .into_iter()
            .flat_map(|ring| ring.entries.iter().rev())
            .take_while(|entry| entry.denial.time >= since - SLACK)
            .filter(|entry| entry.denial.member == Some(member) && entry.last >= since);
        let mut found: Vec<_> = recent.take(limit).map(|entry| entry.denial.clone()).collect();
        found.reverse();
        found
    }
}

impl Ring {
    fn push(&mut self, entry: Entry) {
        if self.entries.len() == KEPT {
            self.make_room();
        }
        *self.shares.entry(entry.denial.member).or_default() += 1;
        self.entries.push_back(entry);
    }

    /// Drops the oldest record of whoever has most of them, so that nobody who is refused often hides the others.
    fn make_room(&mut self) {
        let most = self.shares.values().copied().max();
        // Shares of one each are the whole ring of as many members: then the oldest goes.
        let oldest = self.entries.iter().position(|entry| self.shares.get(&entry.denial.member).copied() == most);
        let Some(gone) = oldest.and_then(|place| self.entries.remove(place)) else { return };
        if let Some(share) = self.shares.get_mut(&gone.denial.member) {
            *share -= 1;
            if *share == 0 {
                self.shares.remove(&gone.denial.member);
            }
        }
    }
}

/// Records of different layers come a little out of order, and one may be counted on for a while.
const SLACK: SignedDuration = SignedDuration::from_secs(2);

fn is_alike(known: &Denial, new: &Denial) -> bool {
    known.member == new.member
        && known.network == new.network
        && known.to == new.to
        && known.name == new.name
        && known.port == new.port
        && known.protocol == new.protocol
        && known.layer == new.layer
        && known.rule == new.rule
        && new.time.duration_since(known.time).abs() < ALIKE_WITHIN
}

#[cfg(test)]
mod tests {
    use super::*;
    use ulid::Ulid;
    use warren_model::NetworkId;
    use warren_model::denial::Layer;
    use warren_model::policy::Protocol;

    fn denial(id: u64, member: u64, port: u16, second: i64) -> Denial {
        Denial {
            id: DenialId::from_ulid(Ulid::from_parts(id, 0)),
            time: Timestamp::from_second(second).unwrap(),
            account: AccountId::from_ulid(Ulid::from_parts(1, 1)),
            network: NetworkId::from_ulid(Ulid::from_parts(1, 1)),
            member: Some(warren_model::MachineId::from_ulid(Ulid::from_parts(member, 1)).into()),
            to: Some([10, 0, 1, 11].into()),
            name: None,
            port: Some(port),
            protocol: Protocol::Tcp,
            layer: Layer::Network,
            rule: None,
            reason: "no rule allows it".into(),
            suggested_rule: None,
            count: 1,
        }
    }

    /// At the time that the denial itself says.
    fn add(ledger: &mut Ledger, denial: Denial) -> (Denial, u64) {
        let now = denial.time;
        ledger.add(denial, now)
    }

    #[test]
    fn what_is_counted_on_an_earlier_record_is_told_again() {
        let mut ledger = Ledger::default();
        let at = |millisecond| Timestamp::from_millisecond(millisecond).unwrap();
        let first = Denial { time: at(100_000), ..denial(1, 1, 80, 100) };
        ledger.add(first.clone(), at(100_000));
        ledger.add(Denial { time: at(100_600), ..denial(2, 1, 80, 100) }, at(100_600));
        let told = ledger.since(first.account, first.member.unwrap(), at(100_500), 10);
        assert_eq!(told, [Denial { count: 2, ..first.clone() }]);
        assert_eq!(ledger.since(first.account, first.member.unwrap(), at(100_700), 10), []);
    }

    #[test]
    fn one_member_does_not_hide_the_refusals_of_others() {
        let mut ledger = Ledger::default();
        add(&mut ledger, denial(1, 2, 80, 1));
        for n in 0..KEPT as u64 + 100 {
            add(&mut ledger, denial(2 + n, 1, 80, 10 + 2 * n as i64));
        }
        let first = denial(1, 2, 80, 1);
        assert_eq!(ledger.list(first.account, first.member, None, 10), std::slice::from_ref(&first));
        assert_eq!(ledger.list(first.account, None, None, usize::MAX).len(), KEPT);
    }

    #[test]
    fn where_nobody_has_more_than_others_the_oldest_record_goes() {
        let mut ledger = Ledger::default();
        let kept = KEPT as u64;
        for n in 0..kept + 10 {
            add(&mut ledger, denial(1 + n, n, 80, 2 * n as i64));
        }
        let first = denial(1, 0, 80, 0);
        let listed = ledger.list(first.account, None, None, usize::MAX);
        assert_eq!((listed.len(), listed[0].member), (KEPT, denial(1, 10, 80, 0).member));
        assert_eq!(ledger.accounts[&first.account].shares.len(), KEPT);
    }

    #[test]
    fn refusals_alike_are_counted_on_one_record() {
        let mut ledger = Ledger::default();
        let first = denial(1, 1, 80, 100);
        assert_eq!(add(&mut ledger, first.clone()), (first.clone(), 1));
        assert_eq!(add(&mut ledger, denial(2, 1, 80, 100)), (Denial { count: 2, ..first }, 1));
        // Another port, another member, and later: each is told by itself.
        for other in [denial(3, 1, 81, 100), denial(4, 2, 80, 100), denial(5, 1, 80, 102)] {
            assert_eq!(add(&mut ledger, other.clone()), (other, 1));
        }
        let account = denial(1, 1, 80, 100).account;
        let listed = ledger.list(account, None, None, 100);
        assert_eq!(listed.iter().map(|denial| denial.count).collect::<Vec<_>>(), [2, 1, 1, 1]);
    }

    #[test]
    fn a_record_that_comes_again_is_not_counted_twice() {
        let mut ledger = Ledger::default();
        add(&mut ledger, denial(1, 1, 80, 100));
        let again = Denial { count: 5, ..denial(1, 1, 80, 100) };
        for more in [4, 0] {
            assert_eq!(add(&mut ledger, again.clone()), (again.clone(), more));
        }
    }

    #[test]
    fn a_list_goes_on_after_a_record() {
        let mut ledger = Ledger::default();
        for n in 1..=5 {
            add(&mut ledger, denial(n, n % 2, 80 + n as u16, 100 + n as i64));
        }
        let (account, odd) = (denial(1, 1, 1, 1).account, denial(1, 1, 1, 1).member);
        let ids = |list: Vec<Denial>| list.iter().map(|denial| denial.port.unwrap() - 80).collect::<Vec<_>>();
        assert_eq!(ids(ledger.list(account, None, Some(denial(2, 0, 0, 0).id), 2)), [3, 4]);
        assert_eq!(ids(ledger.list(account, None, None, 2)), [4, 5]);
        assert_eq!(ids(ledger.list(account, odd, None, 100)), [1, 3, 5]);
        assert_eq!(ids(ledger.since(account, odd.unwrap(), Timestamp::from_second(103).unwrap(), 10)), [3, 5]);
    }
}
