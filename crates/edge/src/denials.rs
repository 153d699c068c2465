//! Refusals, kept until the daemon has them.
//!
//! Every refusal is counted, by member and layer, and these totals are exact. Refusals alike within a second are one
//! record, which says how many they were. Records are numbered in the order in which they last changed; the daemon takes
//! those after a number, and with its next question says that it has them. A record that has been taken and grows
//! afterwards gets a new number, so that it is taken again, with the same id.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use ulid::Ulid;
use warren_model::denial::{Denial, Layer};
use warren_model::policy::{Protocol, RuleId};
use warren_model::{DenialId, MemberId, NetworkNumber};

use crate::outside::Outside;

/// How long refusals alike are one record.
const ALIKE: Duration = Duration::from_secs(1);
/// Records that wait for the daemon; the oldest gives way to a new one.
const RECORDS: usize = 8192;
/// The same for one member.
const MACHINE_RECORDS: usize = 512;
/// The most records in one answer to the daemon.
const BATCH: usize = 1024;
/// The longest name in a record, and the longest reason, which may quote names, in bytes.
const NAME: usize = 255;
const REASON: usize = 1024;

/// A refusal as the part that refused knows it: of TCP, or of a name that a connection needs.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    /// The address of who was refused.
    pub source: IpAddr,
    /// The address that was dialled, where there was one.
    pub to: Option<IpAddr>,
    pub name: Option<String>,
    pub port: Option<u16>,
    pub layer: Layer,
    pub rule: Option<RuleId>,
    pub reason: String,
}

/// What waits for the daemon.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TakenDenials {
    /// What to ask after the next time: everything up to here has been seen then, and is forgotten.
    pub last: u64,
    /// More is waiting.
    pub more: bool,
    /// Records in the order in which they last changed. One with an id that was seen before takes its place. One that
    /// cannot be read, as an edge of another version may write it, is left out.
    #[serde(deserialize_with = "readable")]
    pub denials: Vec<Denial>,
    /// Refusals since the edge started.
    pub totals: Vec<DenialTotal>,
}

fn readable<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Denial>, D::Error> {
    let values = Vec::<serde_json::Value>::deserialize(d)?;
    Ok(values.into_iter().filter_map(|value| serde_json::from_value(value).ok()).collect())
}

/// How often one member was refused by one layer since the edge started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DenialTotal {
    pub network: NetworkNumber,
    /// `None`: members that are gone, and addresses that no member has.
    pub member: Option<MemberId>,
    pub layer: Layer,
    pub count: u64,
}

/// Where one network's refusals go.
#[derive(Debug, Clone)]
pub(crate) struct Refuser {
    denials: Arc<Denials>,
    outside: Arc<ArcSwap<Outside>>,
}

impl Refuser {
    pub fn new(denials: Arc<Denials>, outside: Arc<ArcSwap<Outside>>) -> Self {
        Self { denials, outside }
    }

    /// Counts and records a refusal; returns the record as it is now, to be told to who was refused.
    pub fn refuse(&self, refusal: Refusal) -> Denial {
        self.denials.refuse(&self.outside.load(), refusal, Instant::now())
    }
}

/// The refusals of every network.
#[derive(Debug)]
pub(crate) struct Denials(Mutex<Book>);

/// What makes two refusals alike. A reason may hold figures that differ each time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    network: NetworkNumber,
    source: IpAddr,
    to: Option<IpAddr>,
    name: Option<String>,
    port: Option<u16>,
    layer: Layer,
    rule: Option<RuleId>,
}

type Owner = (NetworkNumber, Option<MemberId>);

#[derive(Debug)]
struct Book {
    next: u64,
    /// The highest number that the daemon was given.
    taken: u64,
    records: BTreeMap<u64, (NetworkNumber, Denial)>,
    by_owner: HashMap<Owner, BTreeSet<u64>>,
    /// The records that may still grow, and in the order in which they began.
    growing: HashMap<Key, Growing>,
    begun: VecDeque<(Instant, Key)>,
    totals: BTreeMap<(Owner, Layer), u64>,
}

#[derive(Debug)]
struct Growing {
    number: u64,
    denial: Denial,
}

impl Denials {
    pub fn new() -> Self {
        // Numbers go on growing over a restart of the edge, so that what the new one numbers is not taken for seen.
        let next = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_micros() as u64);
        Self(Mutex::new(Book {
            next,
            taken: 0,
            records: BTreeMap::new(),
            by_owner: HashMap::new(),
            growing: HashMap::new(),
            begun: VecDeque::new(),
            totals: BTreeMap::new(),
        }))
    }

    /// What waits after this number; everything up to it is forgotten.
    pub fn take(&self, after: u64) -> TakenDenials {
        let mut book = self.book();
        // A number that was never given out acknowledges nothing: it is another edge's.
        let seen = if after <= book.taken { after } else { 0 };
        while let Some(number) = book.records.first_key_value().map(|(number, _)| *number).filter(|n| *n <= seen) {
            book.remove(number);
        }
        let denials: Vec<Denial> = book.records.values().take(BATCH).map(|(_, denial)| denial.clone()).collect();
        let last = book.records.keys().take(BATCH).next_back().copied().unwrap_or(seen);
        book.taken = book.taken.max(last);
        TakenDenials { last, more: book.records.len() > denials.len(), denials, totals: book.totals() }
    }

    /// Counts what members that are gone were refused under nobody, so that their number does not grow for ever.
    pub fn keep(&self, network: NetworkNumber, is_member: impl Fn(MemberId) -> bool) {
        let mut book = self.book();
        let gone = |owner: &Owner| owner.0 == network && owner.1.is_some_and(|member| !is_member(member));
        let (mut folded, kept): (BTreeMap<_, _>, _) =
            std::mem::take(&mut book.totals).into_iter().partition(|((owner, _), _)| gone(owner));
        book.totals = kept;
        while let Some(((_, layer), count)) = folded.pop_first() {
            *book.totals.entry(((network, None), layer)).or_default() += count;
        }
    }

    fn refuse(&self, outside: &Outside, mut refusal: Refusal, now: Instant) -> Denial {
        // Members choose what is in them.
        refusal.name = refusal.name.map(|name| printable(name, NAME));
        refusal.reason = printable(refusal.reason, REASON);
        let mut book = self.book();
        let member = outside.member(refusal.source);
        let owner = (outside.number, member.map(|member| member.id));
        *book.totals.entry((owner, refusal.layer)).or_default() += 1;
        book.settle(now);
        let key = Key::of(outside.number, &refusal);
        if let Some(denial) = book.grow(&key, owner) {
            return denial;
        }
        let denial = Denial {
            id: new_id(),
            time: Timestamp::now(),
            account: outside.account,
            network: outside.network,
            member: owner.1,
            suggested_rule: outside.suggest(&refusal),
            to: refusal.to,
            name: refusal.name,
            port: refusal.port,
            protocol: Protocol::Tcp,
            layer: refusal.layer,
            rule: refusal.rule,
            reason: refusal.reason,
            count: 1,
        };
        let number = book.insert(owner, denial.clone());
        book.begun.push_back((now, key.clone()));
        book.growing.insert(key, Growing { number, denial: denial.clone() });
        denial
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Key {
    fn of(network: NetworkNumber, refusal: &Refusal) -> Self {
        Self {
            network,
            source: refusal.source,
            to: refusal.to,
            name: refusal.name.clone(),
            port: refusal.port,
            layer: refusal.layer,
            rule: refusal.rule.clone(),
        }
    }
}

impl Book {
    /// Closes the records that began a while ago.
    fn settle(&mut self, now: Instant) {
        while let Some((begun, _)) = self.begun.front()
            && (now.saturating_duration_since(*begun) >= ALIKE || self.begun.len() >= RECORDS)
            && let Some((_, key)) = self.begun.pop_front()
        {
            self.growing.remove(&key);
        }
    }

    fn grow(&mut self, key: &Key, owner: Owner) -> Option<Denial> {
        let growing = self.growing.get_mut(key).filter(|growing| growing.denial.member == owner.1)?;
        growing.denial.count += 1;
        let (number, denial) = (growing.number, growing.denial.clone());
        if number > self.taken
            && let Some((_, waiting)) = self.records.get_mut(&number)
        {
            waiting.count = denial.count;
            return Some(denial);
        }
        self.remove(number);
        let number = self.insert(owner, denial.clone());
        if let Some(growing) = self.growing.get_mut(key) {
            growing.number = number;
        }
        Some(denial)
    }

    fn insert(&mut self, owner: Owner, denial: Denial) -> u64 {
        let own = self.by_owner.get(&owner).filter(|own| own.len() >= MACHINE_RECORDS);
        let oldest_own = own.and_then(BTreeSet::first).copied();
        let oldest = oldest_own.or_else(|| {
            let full = self.records.len() >= RECORDS;
            self.records.first_key_value().map(|(number, _)| *number).filter(|_| full)
        });
        if let Some(oldest) = oldest {
            self.remove(oldest);
        }
        let number = self.next;
        self.next += 1;
        self.records.insert(number, (owner.0, denial));
        self.by_owner.entry(owner).or_default().insert(number);
        number
    }

    fn remove(&mut self, number: u64) {
        let Some((network, denial)) = self.records.remove(&number) else { return };
        let owner = (network, denial.member);
        if let Some(own) = self.by_owner.get_mut(&owner) {
            own.remove(&number);
            if own.is_empty() {
                self.by_owner.remove(&owner);
            }
        }
    }

    fn totals(&self) -> Vec<DenialTotal> {
        let total = |(((network, member), layer), count): (&(Owner, Layer), &u64)| DenialTotal {
            network: *network,
            member: *member,
            layer: *layer,
            count: *count,
        };
        self.totals.iter().map(total).collect()
    }
}

/// The text with what cannot be seen escaped, and cut to so many bytes; no name of a host can come of that.
fn printable(text: String, most: usize) -> String {
    if text.len() <= most && text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
        return text;
    }
    const CUT: char = '\u{2026}';
    let mut shown = String::new();
    for character in text.chars() {
        let before = shown.len();
        match character {
            '\'' | '"' | '\\' => shown.push(character),
            other => shown.extend(other.escape_debug()),
        }
        if shown.len() > most {
            shown.truncate(before);
            while shown.len() + CUT.len_utf8() > most {
                shown.pop();
            }
            shown.push(CUT);
            break;
        }
    }
    shown
}

fn new_id() -> DenialId {
    let milliseconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64);
    let mut random = [0; 16];
    // Without randomness the id still holds the time; a request for randomness does not fail once the host has started.
    let _ = getrandom::fill(&mut random);
    DenialId::from_ulid(Ulid::from_parts(milliseconds, u128::from_be_bytes(random)))
}

#[cfg(test)]
#[path = "denials_tests.rs"]
mod tests;
