//! The rules of one network as they are in the kernel: loading, changing and knowing them.
//!
//! What was loaded or changed here is known as long as the kernel's generation says that nobody else changed anything;
//! so a change of policy costs one small transaction, and no listing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use warren_model::policy::NetworkRules;
use warren_model::{InstallationId, MemberNumber, NetworkNumber};

use super::cache::{self, Cache};
use super::elements::{self, Change, Listing};
use super::policy::{self, Groups};
use super::sets::Set;
use super::shape::{Shape, is_inside};
use super::text::{self, Kept};
use super::{MemberCounters, MemberSpec, RulesState, Traffic, digest, process};
use crate::error::KernelError;
use crate::names;
use crate::namespace;
use crate::netlink::{BatchError, Socket};
use crate::network::{record_path, refused};
use crate::record::Record;
use crate::spec::NetworkSpec;

/// What nobody answered is forgotten soon, and so is a closed connection, in seconds. Of a TCP connection the beginning
/// is what tells who began it, so one that was not seen to begin is not taken up half-way. A packet outside of its window
/// or with a wrong checksum is no other connection's: that is for its receiver to find (the kernel's
/// `nf_conntrack-sysctl.rst`).
const TRACKING: [(&str, &str); 5] = [
    ("netfilter/nf_conntrack_udp_timeout", "10"),
    ("netfilter/nf_conntrack_tcp_timeout_time_wait", "30"),
    ("netfilter/nf_conntrack_checksum", "0"),
    ("netfilter/nf_conntrack_tcp_loose", "0"),
    ("netfilter/nf_conntrack_tcp_be_liberal", "1"),
];

pub(crate) struct Rules {
    installation: InstallationId,
    number: NetworkNumber,
    nft: Socket,
    known: Option<Known>,
}

/// What the rules are as long as their generation is this one.
struct Known {
    generation: u32,
    record: Record,
    admitted: BTreeSet<MemberSpec>,
    /// `None`: the elements say something else than any policy that was asked for here.
    policy: Option<Policy>,
    cache: Cache,
}

struct Policy {
    rules: Arc<NetworkRules>,
    /// The groups that the elements name: of members that were expelled since, none.
    groups: Groups,
}

/// What is wanted of the rules, compared with what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) state: RulesState,
    pub(crate) policy: bool,
    pub(crate) admitted: BTreeSet<MemberSpec>,
}

/// Why elements were not changed.
enum NotChanged {
    /// Somebody else changed the rules meanwhile.
    Raced,
    Refused(Errno),
}

impl Rules {
    /// `nft` is a socket in the network's namespace.
    pub(crate) fn new(installation: InstallationId, number: NetworkNumber, nft: Socket) -> Self {
        Self { installation, number, nft, known: None }
    }

    /// Without a new generation, as remembered.
    pub(crate) fn observe(&mut self, spec: &NetworkSpec) -> Result<Seen, KernelError> {
        self.look(spec).map_err(self.failed("show its rules"))
    }

    fn look(&mut self, spec: &NetworkSpec) -> Result<Seen, Errno> {
        let generation = digest::generation(&mut self.nft)?;
        if let Some(known) = &self.known
            && known.generation == generation
        {
            return Ok(known.judge(&self.installation, spec));
        }
        self.known = None;
        let record = Record::read(&self.record_path());
        let shape = record.as_ref().map_or(Shape::BARE, |record| record.shape);
        let listing = Listing::read(&mut self.nft, Set::all(shape))?;
        let (admitted, stray) = listing.members(&self.installation, shape);
        let Some(kernel) = digest::digest(&mut self.nft, None)? else {
            return Ok(Seen { state: RulesState::Missing, policy: false, admitted });
        };
        let Some(record) = record.filter(|record| !stray && record.is_in(&kernel)) else {
            return Ok(Seen { state: RulesState::Altered, policy: false, admitted });
        };
        let wanted = policy::entries(&policy::items(&self.installation, shape, &spec.rules));
        let policy = policy::is_listed(shape, &listing, &wanted).then(|| Policy::of(spec));
        let cache = Cache::of(&listing);
        let known = self.known.insert(Known { generation, record, admitted, policy, cache });
        Ok(known.judge(&self.installation, spec))
    }

    /// Replaces all rules in one transaction. Counters go on from where they are.
    pub(crate) fn load(
        &mut self,
        inside: BorrowedFd<'_>,
        spec: &NetworkSpec,
        members: &[MemberSpec],
    ) -> Result<(), KernelError> {
        let failed = self.failed("show its rules");
        let place = format!("network {}", self.number);
        let shape = Shape::of(spec);
        self.known = None;
        if shape.tracks() {
            namespace::set_sysctls(inside, &place, &TRACKING)?;
        }
        // Somebody may change the rules between loading and reading back: then what is read is not what was loaded.
        for _ in 0..3 {
            let before = digest::generation(&mut self.nft).map_err(&failed)?;
            let kept = self.keep().map_err(&failed)?;
            process::load(inside, &place, &text::router(&self.installation, spec, members, &kept))?;
            if shape.tracks() {
                // A kernel whose connection tracking is a module has its settings from the first rule on.
                namespace::set_sysctls(inside, &place, &TRACKING)?;
            }
            let kernel = digest::digest(&mut self.nft, None).map_err(&failed)?;
            let generation = digest::generation(&mut self.nft).map_err(&failed)?;
            if let Some(kernel) = kernel
                && generation == following(before)
            {
                let fixed = text::fixed(&self.installation, spec, shape);
                let record = Record::new(&base(&self.installation, spec), &fixed, kernel, shape);
                record.write(&self.record_path())?;
                let admitted = members.iter().cloned().collect();
                let policy = Some(Policy::of(spec));
                let cache = Cache::Suspended;
                self.known = Some(Known { generation, record, admitted, policy, cache });
                return Ok(());
            }
        }
        Record::remove(&self.record_path())
    }

    /// Makes the elements say what the policy says; where that takes other rules, loads them with these members.
    pub(crate) fn apply_policy(
        &mut self,
        inside: BorrowedFd<'_>,
        spec: &NetworkSpec,
        members: &[MemberSpec],
    ) -> Result<(), KernelError> {
        if self.change(spec, |_| Vec::new())? { Ok(()) } else { self.load(inside, spec, members) }
    }

    /// Lets the members in, and makes the elements say what the policy says about them and everybody.
    pub(crate) fn admit(
        &mut self,
        inside: BorrowedFd<'_>,
        spec: &NetworkSpec,
        members: &[MemberSpec],
    ) -> Result<(), KernelError> {
        let installation = self.installation.clone();
        if self.change(spec, |shape| elements::add_members(&installation, shape, members))? {
            if let Some(known) = &mut self.known {
                known.admitted.extend(members.iter().cloned());
            }
            return Ok(());
        }
        let mut all = self.observe(spec)?.admitted;
        all.extend(members.iter().cloned());
        self.load(inside, spec, &all.into_iter().collect::<Vec<_>>())
    }

    /// Stops the members' packets. Fine for those that are not admitted.
    pub(crate) fn expel(&mut self, members: &[MemberSpec]) -> Result<(), KernelError> {
        let failed = self.failed("change the members in its rules");
        if let Some(known) = &self.known
            && let Some(policy) = &known.policy
        {
            let there: Vec<_> = members.iter().filter(|member| known.admitted.contains(member)).cloned().collect();
            let mut changes = elements::delete_members(&self.installation, known.record.shape, &there);
            let addresses = || there.iter().flat_map(|member| [IpAddr::from(member.ipv4), member.ipv6.into()]);
            if known.record.shape.has_groups() {
                let groups = addresses().filter_map(|address| Some((address, *policy.groups.get(&address)?)));
                changes.extend(policy::group_changes(groups));
            }
            match self.commit(&changes) {
                Ok(()) => {
                    if let Some(known) = &mut self.known {
                        known.admitted.retain(|member| !there.contains(member));
                        if let Some(policy) = &mut known.policy {
                            for address in addresses() {
                                policy.groups.remove(&address);
                            }
                        }
                    }
                    return Ok(());
                }
                Err(NotChanged::Raced) => {}
                Err(NotChanged::Refused(errno)) => return Err(failed(errno)),
            }
        }
        self.known = None;
        let sets = Set::MEMBERS.iter().copied().chain(Set::GROUPS_OF_MEMBERS);
        let there = Listing::read(&mut self.nft, sets).map_err(&failed)?;
        let changes = there.elements_of(&self.installation, members);
        elements::apply(&mut self.nft, &changes, None).map_err(first).map_err(failed)
    }

    pub(crate) fn counters(&mut self) -> Result<BTreeMap<MemberNumber, MemberCounters>, KernelError> {
        self.of_members(|listing, installation, member| listing.counters(installation, member))
    }

    pub(crate) fn refused(&mut self) -> Result<BTreeMap<MemberNumber, Traffic>, KernelError> {
        self.of_members(|listing, installation, member| {
            listing.sum(installation, member, [Set::Refused4, Set::Refused6])
        })
    }

    pub(crate) fn spoofed(&mut self) -> Result<Traffic, KernelError> {
        let [ip, arp] = spoofed(&mut self.nft).map_err(self.failed("show its counters"))?;
        Ok(Traffic { packets: ip.packets + arp.packets, bytes: ip.bytes + arp.bytes })
    }

    fn of_members<T>(
        &mut self,
        count: impl Fn(&Listing, &InstallationId, &MemberSpec) -> T,
    ) -> Result<BTreeMap<MemberNumber, T>, KernelError> {
        let sets = Set::MEMBERS.iter().copied();
        let listing = Listing::read(&mut self.nft, sets).map_err(self.failed("show its counters"))?;
        let (members, _) = listing.members(&self.installation, Shape::BARE);
        Ok(members.iter().map(|member| (member.number, count(&listing, &self.installation, member))).collect())
    }

    /// Changes elements, those of the policy among them, as one transaction. `false` when that is not enough.
    fn change(&mut self, spec: &NetworkSpec, more: impl Fn(Shape) -> Vec<Change>) -> Result<bool, KernelError> {
        for _ in 0..3 {
            let seen = self.observe(spec)?;
            let failed = self.failed("change the elements of its rules");
            let Some(known) = &self.known else { return Ok(false) };
            let shape = known.record.shape;
            let same = seen.state == RulesState::Intact && shape == Shape::of(spec);
            if !same || !known.record.is_of(&text::fixed(&self.installation, spec, shape)) {
                return Ok(false);
            }
            let mut changes = match &known.policy {
                Some(policy) if policy.says(spec) => Vec::new(),
                Some(Policy { rules, groups }) => {
                    policy::between(&self.installation, shape, (rules, groups), &spec.rules)
                }
                None => {
                    let there = Listing::read(&mut self.nft, Set::of_policy(shape)).map_err(&failed)?;
                    let wanted = policy::entries(&policy::items(&self.installation, shape, &spec.rules));
                    policy::from_listing(shape, &there, &wanted)
                }
            };
            let judged_anew = changes.iter().any(|change| !change.is_empty()) || known.cache == Cache::Altered;
            if judged_anew {
                changes.extend(cache::suspend(shape));
            }
            changes.extend(more(shape));
            match self.commit(&changes) {
                Ok(()) => {
                    if let Some(known) = &mut self.known {
                        known.policy = Some(Policy::of(spec));
                        if judged_anew {
                            known.cache = Cache::Suspended;
                        }
                    }
                    return Ok(true);
                }
                Err(NotChanged::Raced) => {}
                // What was believed of the elements is wrong.
                Err(NotChanged::Refused(_)) => return Ok(false),
            }
        }
        Ok(false)
    }

    /// The generation since which nothing changed, where flows that pass could be remembered and are not.
    pub(crate) fn unsettled(&self) -> Option<u32> {
        let known = self.known.as_ref()?;
        let can = known.record.shape.has_groups() && known.policy.is_some();
        (can && known.cache == Cache::Suspended).then_some(known.generation)
    }

    /// Lets flows that pass be remembered, if nothing changed since this generation: for a caller who has waited for
    /// every packet since. Where somebody interferes they are not remembered, which harms nobody.
    pub(crate) fn settle(&mut self, generation: u32) -> Result<(), KernelError> {
        let Some(known) = self.known.as_ref().filter(|_| self.unsettled() == Some(generation)) else { return Ok(()) };
        // The transaction's own number; it fails if it gets another one.
        let number = following(generation);
        match self.commit(&cache::resume(known.record.shape, number)) {
            Ok(()) => {
                if let Some(known) = &mut self.known {
                    known.cache = Cache::Current(number);
                }
                Ok(())
            }
            Err(NotChanged::Raced) => Ok(()),
            Err(NotChanged::Refused(errno)) => Err(self.failed("change the elements of its rules")(errno)),
        }
    }

    /// One transaction on what is known. It is known after, too, unless somebody else changed the rules meanwhile.
    fn commit(&mut self, changes: &[Change]) -> Result<(), NotChanged> {
        let Some(known) = self.known.take() else { return Err(NotChanged::Raced) };
        match elements::apply(&mut self.nft, changes, Some(known.generation)) {
            Ok(()) => {}
            Err(BatchError::Whole(Errno::ERESTART)) => return Err(NotChanged::Raced),
            Err(error) => return Err(NotChanged::Refused(first(error))),
        }
        let generation = digest::generation(&mut self.nft).map_err(NotChanged::Refused)?;
        if generation == known.generation || generation == following(known.generation) {
            self.known = Some(Known { generation, ..known });
        }
        Ok(())
    }

    fn keep(&mut self) -> Result<Kept, Errno> {
        let [spoofed, arp_spoofed] = spoofed(&mut self.nft)?;
        let flooded = elements::named_counter(&mut self.nft, elements::INET, names::TABLE, "flooded")?;
        let elements = Listing::read(&mut self.nft, Set::MEMBERS.iter().copied())?;
        let there = digest::digest(&mut self.nft, None)?;
        let skeleton = Record::read(&self.record_path())
            .filter(|record| there.as_ref().is_some_and(|there| record.has_skeleton(there)))
            .map(|record| record.shape);
        Ok(Kept { skeleton, elements, spoofed, flooded, arp_spoofed })
    }

    fn record_path(&self) -> PathBuf {
        record_path(&self.installation, self.number)
    }

    fn failed(&self, action: &'static str) -> impl Fn(Errno) -> KernelError + use<> {
        refused(self.number, action)
    }
}

impl Known {
    fn judge(&self, installation: &InstallationId, spec: &NetworkSpec) -> Seen {
        let intact = self.record.is_based_on(&base(installation, spec));
        let policy = intact
            && self.record.shape == Shape::of(spec)
            && self.cache != Cache::Altered
            && self.policy.as_ref().is_some_and(|policy| policy.is_as_wanted(spec, &self.admitted));
        let state = if intact { RulesState::Intact } else { RulesState::Altered };
        Seen { state, policy, admitted: self.admitted.clone() }
    }
}

impl Policy {
    fn of(spec: &NetworkSpec) -> Self {
        Self { rules: Arc::clone(&spec.rules), groups: spec.rules.groups.clone() }
    }

    /// Not one element has to change.
    fn says(&self, spec: &NetworkSpec) -> bool {
        (Arc::ptr_eq(&self.rules, &spec.rules) || policy::are_alike(&self.rules, &spec.rules))
            && self.groups == spec.rules.groups
    }

    /// The same, but that a group is missing of a member that is not here.
    fn is_as_wanted(&self, spec: &NetworkSpec, admitted: &BTreeSet<MemberSpec>) -> bool {
        if self.says(spec) {
            return true;
        }
        let here: BTreeSet<IpAddr> =
            admitted.iter().flat_map(|member| [IpAddr::from(member.ipv4), member.ipv6.into()]).collect();
        let matters = |address| !is_inside(spec, address) || here.contains(&address);
        let wanted = &spec.rules.groups;
        (Arc::ptr_eq(&self.rules, &spec.rules) || policy::are_alike(&self.rules, &spec.rules))
            && self.groups.iter().all(|(address, group)| wanted.get(address) == Some(group))
            && wanted.keys().all(|address| self.groups.contains_key(address) || !matters(*address))
    }
}

/// What every policy of this network has to do with: a change of this is no change of policy.
fn base(installation: &InstallationId, spec: &NetworkSpec) -> String {
    text::fixed(installation, spec, Shape::BARE) + &text::fixed(installation, spec, Shape::WHOLE)
}

fn spoofed(socket: &mut Socket) -> Result<[Traffic; 2], Errno> {
    Ok([
        elements::named_counter(socket, elements::INET, names::TABLE, "spoofed")?,
        elements::named_counter(socket, elements::ARP, names::TABLE, "spoofed")?,
    ])
}

fn first(error: BatchError) -> Errno {
    match error {
        BatchError::Whole(errno) => errno,
        BatchError::Refused(refused) => refused.first().map_or(Errno::EINVAL, |(_, errno)| *errno),
    }
}

/// Generations leave out zero (`nf_tables_commit`).
fn following(generation: u32) -> u32 {
    generation.checked_add(1).unwrap_or(1)
}
