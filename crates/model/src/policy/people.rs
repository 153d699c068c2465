//! Members by what subjects say of them, so that a subject finds its own quickly.

use std::collections::{BTreeMap, HashMap};

use ipnet::IpNet;

use super::{Member, Subject};
use crate::name::{Label, Tag};

#[derive(Debug)]
pub(super) struct People<'a> {
    pub members: Vec<&'a Member>,
    networks: HashMap<&'a Label, Vec<u32>>,
    tags: HashMap<(&'a Label, &'a Tag), Vec<u32>>,
    names: HashMap<(&'a Label, &'a Label), Vec<u32>>,
    four: Vec<(u32, u32)>,
    six: Vec<(u128, u32)>,
}

impl<'a> People<'a> {
    pub(super) fn new(members: impl Iterator<Item = &'a Member>) -> Self {
        let mut people = Self {
            members: members.collect(),
            networks: HashMap::new(),
            tags: HashMap::new(),
            names: HashMap::new(),
            four: Vec::new(),
            six: Vec::new(),
        };
        for (index, member) in (0u32..).zip(&people.members) {
            people.networks.entry(&member.network).or_default().push(index);
            people.names.entry((&member.network, &member.name)).or_default().push(index);
            for tag in &member.tags {
                people.tags.entry((&member.network, tag)).or_default().push(index);
            }
            people.four.push((member.ipv4.into(), index));
            people.six.push((member.ipv6.into(), index));
        }
        people.four.sort_unstable();
        people.six.sort_unstable();
        people
    }

    /// Whom a subject means, as sorted indexes into `members`.
    pub(super) fn meant(&self, subject: &Subject) -> Vec<u32> {
        let listed = |found: Option<&Vec<u32>>| found.cloned().unwrap_or_default();
        match subject {
            Subject::Network(network) => listed(self.networks.get(network)),
            Subject::Tag(network, tag) => listed(self.tags.get(&(network, tag))),
            Subject::Machine(network, name) => listed(self.names.get(&(network, name))),
            Subject::Range(network, range) => {
                let mut found = match range {
                    IpNet::V4(four) => between(&self.four, four.network().into(), four.broadcast().into()),
                    IpNet::V6(six) => between(&self.six, six.network().into(), six.broadcast().into()),
                };
                if let Some(network) = network {
                    found.retain(|index| self.members[*index as usize].network == *network);
                }
                found.sort_unstable();
                found
            }
        }
    }

    /// Members that none of these subjects tells apart, together; in the order of their first.
    pub(super) fn kinds<'s>(&self, subjects: impl Iterator<Item = &'s Subject>) -> Vec<Vec<u32>> {
        let mut signatures: Vec<Vec<u32>> = vec![Vec::new(); self.members.len()];
        // A subject that means everybody of a network tells nobody in it apart.
        let telling = subjects.filter(|subject| !matches!(subject, Subject::Network(_)));
        for (index, subject) in (0u32..).zip(telling) {
            for member in self.meant(subject) {
                signatures[member as usize].push(index);
            }
        }
        let mut kinds: BTreeMap<(&Label, Vec<u32>), Vec<u32>> = BTreeMap::new();
        for ((index, member), signature) in (0u32..).zip(&self.members).zip(signatures) {
            kinds.entry((&member.network, signature)).or_default().push(index);
        }
        let mut kinds: Vec<Vec<u32>> = kinds.into_values().collect();
        kinds.sort_unstable();
        kinds
    }
}

fn between<N: Ord + Copy>(sorted: &[(N, u32)], first: N, last: N) -> Vec<u32> {
    let start = sorted.partition_point(|(address, _)| *address < first);
    sorted[start..].iter().take_while(|(address, _)| *address <= last).map(|(_, index)| *index).collect()
}
