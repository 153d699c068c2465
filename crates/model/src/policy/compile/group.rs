//! Who the rules tell apart.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::rc::Rc;

use super::{CompileError, Default, Group, Scene, Work, link};
use crate::name::Label;
use crate::policy::people::People;
use crate::policy::{Member, Rule, Subject, Target};

/// A rule that makes a difference in this network.
pub(super) struct Ruling<'a> {
    pub rule: &'a Rule,
    pub forbid: bool,
    /// Which groups it is from.
    pub from: Rc<Side>,
    /// Which groups it is to; nobody for a rule about the outside only.
    pub to: Rc<Side>,
}

/// Groups that a subject means, as sorted indexes.
#[derive(Debug, std::default::Default)]
pub(super) struct Side {
    pub own: Vec<u32>,
    pub linked: Vec<u32>,
}

/// A group with its number.
pub(super) struct Kin<'a> {
    pub number: Group,
    pub network: &'a Label,
    /// Its network's IPv4 range overlaps the compiled one's.
    pub overlaps: bool,
}

/// Groups, and rules in terms of groups.
pub(super) struct Draft<'a> {
    pub groups: Vec<Kin<'a>>,
    /// How many of them, the first ones, are of the network itself.
    pub own: usize,
    pub rules: Vec<Ruling<'a>>,
    pub numbers: Numbers,
    members: Vec<(&'a Member, u32)>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(scene: &Scene<'a>, work: &mut Work<'a>) -> Result<Self, CompileError> {
        let here = |member: &&Member| member.network == *scene.network || scene.links.contains_key(&member.network);
        let people = People::new(scene.directory.members.iter().filter(here));
        let mut meant: HashMap<&'a Subject, Meant> = HashMap::new();
        let mut relevant = Vec::new();
        let in_force = || scene.policy.rules().filter(|(rule, _)| rule.is_in_force(scene.now));
        for (rule, _) in in_force() {
            for subject in rule.subjects() {
                if !meant.contains_key(subject) {
                    let found = meant_by(subject, &people, scene.network);
                    work.spend(found.own.len() + found.linked.len())?;
                    meant.insert(subject, found);
                }
            }
        }
        let nobody = Meant::default();
        for (rule, forbid) in in_force() {
            let (from, to) = (&meant[&rule.from], of_target(rule, &meant, &nobody));
            let members = concerns_members(scene, forbid, from, to);
            if members || concerns_outside(scene, rule, forbid, from) {
                relevant.push((rule, forbid, members));
            }
        }

        // A subject that means everybody of a network tells nobody in it apart.
        let mut telling: Vec<(String, &Subject)> = Vec::new();
        let mut seen: HashSet<&Subject> = HashSet::new();
        for (rule, _, members) in &relevant {
            let to = match &rule.to {
                Target::Inside(subject) if *members => Some(subject),
                _ => None,
            };
            for subject in std::iter::once(&rule.from).chain(to) {
                if seen.insert(subject) && !matches!(subject, Subject::Network(_)) {
                    telling.push((subject.to_string(), subject));
                }
            }
        }
        telling.sort_unstable();
        let mut signatures: Vec<Vec<u32>> = vec![Vec::new(); people.members.len()];
        for (index, (_, subject)) in (0u32..).zip(&telling) {
            let meant = &meant[subject];
            for member in meant.own.iter().chain(&meant.linked) {
                signatures[*member as usize].push(index);
            }
        }
        let mut kinds: BTreeMap<(bool, &Label, Vec<u32>), Vec<u32>> = BTreeMap::new();
        for ((index, member), signature) in (0u32..).zip(&people.members).zip(signatures) {
            kinds.entry((member.network != *scene.network, &member.network, signature)).or_default().push(index);
        }

        let mut numbers = Numbers::default();
        let mut groups = Vec::with_capacity(kinds.len());
        let mut group_of = vec![0u32; people.members.len()];
        let mut own = 0;
        for ((foreign, network, signature), members) in kinds {
            let texts = signature.iter().map(|index| telling[*index as usize].0.as_str());
            let number = numbers.of("group", std::iter::once(network.as_str()).chain(texts));
            own += usize::from(!foreign);
            let overlaps = foreign && scene.links.get(network).is_some_and(|link| link::overlap(link.entry, scene.own));
            for member in members {
                group_of[member as usize] = groups.len() as u32;
            }
            groups.push(Kin { number, network, overlaps });
        }

        let mut sides: HashMap<&Subject, Rc<Side>> = HashMap::new();
        let mut side = |subject: &'a Subject| -> Rc<Side> {
            let found = sides.entry(subject).or_insert_with(|| {
                let meant = &meant[subject];
                Rc::new(Side { own: groups_of(&meant.own, &group_of), linked: groups_of(&meant.linked, &group_of) })
            });
            Rc::clone(found)
        };
        let nowhere = Rc::new(Side::default());
        let mut rules = Vec::with_capacity(relevant.len());
        for (rule, forbid, members) in relevant {
            let from = side(&rule.from);
            let to = match &rule.to {
                Target::Inside(subject) if members => side(subject),
                _ => Rc::clone(&nowhere),
            };
            rules.push(Ruling { rule, forbid, from, to });
        }
        let members = people.members.into_iter().zip(group_of).collect();
        Ok(Self { groups, own, rules, numbers, members })
    }

    /// Every address of a group's members by which they are reached.
    pub(super) fn addresses(&self, scene: &Scene<'_>) -> BTreeMap<IpAddr, Group> {
        let mut addresses = BTreeMap::new();
        for (member, group) in &self.members {
            let number = self.groups[*group as usize].number;
            let four = match scene.links.get(&member.network) {
                Some(link) => link.ipv4,
                None => true,
            };
            if four {
                addresses.insert(IpAddr::V4(member.ipv4), number);
            }
            addresses.insert(IpAddr::V6(member.ipv6), number);
        }
        addresses
    }
}

/// Numbers that follow from what they stand for.
#[derive(Debug, std::default::Default)]
pub(super) struct Numbers {
    taken: HashSet<u32>,
}

impl Numbers {
    /// 31 bits of a hash. The next hash where two things have the same, which depends on their order only.
    pub(super) fn of<'t>(&mut self, kind: &str, parts: impl Iterator<Item = &'t str>) -> Group {
        let mut hasher = blake3::Hasher::new();
        hasher.update(kind.as_bytes());
        for part in parts {
            hasher.update(b"\0");
            hasher.update(part.as_bytes());
        }
        let mut words = hasher.finalize_xof();
        loop {
            let mut word = [0u8; 4];
            words.fill(&mut word);
            let number = u32::from_be_bytes(word) & 0x7fff_ffff;
            // 0 is nobody, 1 is the outside.
            if number > super::OUTSIDE.0 && self.taken.insert(number) {
                return Group(number);
            }
        }
    }
}

/// Members that a subject means, as sorted indexes.
#[derive(std::default::Default)]
struct Meant {
    own: Vec<u32>,
    linked: Vec<u32>,
}

/// Whom a subject means, here and in linked networks.
fn meant_by(subject: &Subject, people: &People<'_>, network: &Label) -> Meant {
    let (own, linked) =
        people.meant(subject).into_iter().partition(|index| people.members[*index as usize].network == *network);
    Meant { own, linked }
}

/// Whether a rule can make a difference between members. What else the policy holds does not count, so that another
/// rule does not change what this one tells apart.
fn concerns_members(scene: &Scene<'_>, forbid: bool, from: &Meant, to: &Meant) -> bool {
    let some = |meant: &[u32]| !meant.is_empty();
    let inside = some(&from.own) && some(&to.own);
    let across = some(&from.own) && some(&to.linked) || some(&from.linked) && some(&to.own);
    inside && (forbid || scene.inside == Default::Refuse) || across
}

/// Whether a rule can make a difference to what is outside.
fn concerns_outside(scene: &Scene<'_>, rule: &Rule, forbid: bool, from: &Meant) -> bool {
    let open = scene.outside == Default::Accept;
    !from.own.is_empty()
        && match &rule.to {
            Target::Inside(Subject::Range(None, range)) => forbid || !open || !super::outside::is_wholly_global(*range),
            Target::Inside(_) => false,
            Target::Outside(_) => forbid || !open,
        }
}

fn of_target<'m>(rule: &Rule, meant: &'m HashMap<&Subject, Meant>, nobody: &'m Meant) -> &'m Meant {
    match &rule.to {
        Target::Inside(subject) => &meant[subject],
        Target::Outside(_) => nobody,
    }
}

fn groups_of(members: &[u32], group_of: &[u32]) -> Vec<u32> {
    let mut groups: Vec<u32> = members.iter().map(|member| group_of[*member as usize]).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}
