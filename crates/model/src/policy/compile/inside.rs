//! Exceptions between members.

use super::{CompileError, Default, Draft, Exceptions, Ruling, Scene, Traffic, Work};
use crate::policy::{Subject, Target};

/// Exceptions among the network's own groups, and to and from those of linked networks.
pub(super) fn compile<'a>(
    scene: &Scene<'a>,
    draft: &Draft<'a>,
    exceptions: &mut Exceptions,
    work: &mut Work<'a>,
) -> Result<(), CompileError> {
    let forbids = Forbids::new(draft, work)?;
    let mut pairs: Vec<(u32, u32, u32)> = Vec::new();
    for (index, ruling) in (0u32..).zip(&draft.rules) {
        let (from, to) = (&ruling.from, &ruling.to);
        let inside = ruling.forbid == (scene.inside == Default::Accept);
        let across = !ruling.forbid;
        for (meant, from, to) in
            [(inside, &from.own, &to.own), (across, &from.own, &to.linked), (across, &from.linked, &to.own)]
        {
            if meant && !from.is_empty() && !to.is_empty() {
                work.expands(&ruling.rule.id, from.len().saturating_mul(to.len()))?;
                pairs.extend(from.iter().flat_map(|from| to.iter().map(move |to| (*from, *to, index))));
            }
        }
    }
    pairs.sort_unstable();
    for pair in pairs.chunk_by(|one, other| (one.0, one.1) == (other.0, other.1)) {
        let (from, to, _) = pair[0];
        let drivers = || {
            let rulings = pair.iter().map(|(_, _, rule)| &draft.rules[*rule as usize]);
            Traffic::of(
                rulings.filter(|ruling| applies(ruling, draft, from, to)).map(|ruling| ruling.rule.ports.as_slice()),
            )
        };
        let same = (from as usize) < draft.own && (to as usize) < draft.own;
        let traffic = if same && scene.inside == Default::Accept {
            drivers()
        } else {
            drivers().without(&forbids.of(draft, from, to, work)?)
        };
        exceptions.add(draft.groups[from as usize].number, draft.groups[to as usize].number, &traffic, work)?;
    }
    Ok(())
}

/// Forbidding rules, each filed under the side on which it means fewer groups.
struct Forbids {
    by_from: Vec<Vec<u32>>,
    by_to: Vec<Vec<u32>>,
}

impl Forbids {
    fn new<'a>(draft: &Draft<'a>, work: &mut Work<'a>) -> Result<Self, CompileError> {
        let mut forbids =
            Self { by_from: vec![Vec::new(); draft.groups.len()], by_to: vec![Vec::new(); draft.groups.len()] };
        for (index, ruling) in (0u32..).zip(&draft.rules).filter(|(_, ruling)| ruling.forbid) {
            let count = |side: &super::group::Side| side.own.len() + side.linked.len();
            let (side, filed) = if count(&ruling.from) <= count(&ruling.to) {
                (&ruling.from, &mut forbids.by_from)
            } else {
                (&ruling.to, &mut forbids.by_to)
            };
            work.spend(count(side))?;
            for group in side.own.iter().chain(&side.linked) {
                filed[*group as usize].push(index);
            }
        }
        Ok(forbids)
    }

    /// What is forbidden from one group to another.
    fn of(&self, draft: &Draft<'_>, from: u32, to: u32, work: &mut Work<'_>) -> Result<Traffic, CompileError> {
        let (by_from, by_to) = (&self.by_from[from as usize], &self.by_to[to as usize]);
        work.spend(by_from.len() + by_to.len())?;
        let rulings = by_from.iter().chain(by_to).map(|rule| &draft.rules[*rule as usize]);
        let about =
            |ruling: &&Ruling<'_>| ruling.from.holds(from) && ruling.to.holds(to) && applies(ruling, draft, from, to);
        Ok(Traffic::of(rulings.filter(about).map(|ruling| ruling.rule.ports.as_slice())))
    }
}

impl super::group::Side {
    fn holds(&self, group: u32) -> bool {
        self.own.binary_search(&group).is_ok() || self.linked.binary_search(&group).is_ok()
    }
}

/// Whether the sender sees the members by the address that the rule names: not by IPv4 where both networks have it.
fn applies(ruling: &Ruling<'_>, draft: &Draft<'_>, from: u32, to: u32) -> bool {
    let (from, to) = (&draft.groups[from as usize], &draft.groups[to as usize]);
    let by_ipv4 = matches!(&ruling.rule.to, Target::Inside(Subject::Range(None, ipnet::IpNet::V4(_))));
    !(by_ipv4 && from.network != to.network && (from.overlaps || to.overlaps))
}
