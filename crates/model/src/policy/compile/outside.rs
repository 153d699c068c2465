//! Ranges outside, cut into classes, and exceptions to them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use super::{CompileError, Default, Draft, Exceptions, Group, MAX_EXCEPTIONS, Ruling, Scene, Traffic, Work, link};
use crate::policy::global::not_global;
use crate::policy::{RuleId, Subject, Target, protected_ranges};

/// What is known of the outside once it is cut.
#[derive(std::default::Default)]
pub(super) struct Cut {
    pub classes: BTreeMap<IpNet, Group>,
    /// Some range outside is allowed to somebody who may be in the network.
    pub exits: bool,
    pub private_exits: BTreeSet<IpNet>,
}

/// Cuts the ranges that rules name, and adds the exceptions to each piece.
pub(super) fn compile<'a>(
    scene: &Scene<'a>,
    draft: &mut Draft<'a>,
    exceptions: &mut Exceptions,
    work: &mut Work<'a>,
) -> Result<Cut, CompileError> {
    let open = scene.outside == Default::Accept;
    let ranges = Ranges::new(scene, draft);
    let mut cut = Cut::default();
    let mut classes: BTreeMap<(Vec<u32>, bool), Vec<Piece>> = BTreeMap::new();
    for piece in ranges.pieces(scene) {
        work.spend(1)?;
        let allowed = piece.chain.iter().any(|range| ranges.list[*range as usize].exits);
        cut.exits |= allowed;
        if allowed && !piece.global {
            fill(&mut cut.private_exits, &piece, ranges.first_rule(&piece.chain, draft), work)?;
        }
        // Where egress is open, what is not the public internet stays closed by itself, except in private exits.
        if open && !piece.global && !allowed {
            continue;
        }
        let pieces = classes.entry((piece.chain.clone(), open && !piece.global)).or_default();
        match pieces.last_mut() {
            Some(last) if last.six == piece.six && last.last.checked_add(1) == Some(piece.first) => {
                last.last = piece.last
            }
            _ => pieces.push(piece),
        }
    }
    cut.private_exits = IpNet::aggregate(&cut.private_exits.into_iter().collect()).into_iter().collect();

    for ((chain, private), pieces) in classes {
        let texts: Vec<String> = chain.iter().map(|range| ranges.list[*range as usize].range.to_string()).collect();
        let kind = if private { "private" } else { "class" };
        let class = draft.numbers.of(kind, texts.iter().map(String::as_str));
        let rulings = |forbid: bool| {
            let listed = chain.iter().flat_map(|range| &ranges.list[*range as usize].rules);
            listed.map(|rule| &draft.rules[*rule as usize]).filter(move |ruling| ruling.forbid == forbid)
        };
        // What is not as the default has it: allowed where egress is closed, refused where it is open.
        let drivers = open && !private;
        let mut sources: Vec<u32> = Vec::new();
        if private {
            sources.extend(0..draft.own as u32);
        } else {
            for ruling in rulings(drivers) {
                work.expands(&ruling.rule.id, ruling.from.own.len())?;
                sources.extend(&ruling.from.own);
            }
            sources.sort_unstable();
            sources.dedup();
        }
        let mut used = false;
        for source in sources {
            let mut of = |forbid: bool| -> Result<Traffic, CompileError> {
                work.spend(rulings(forbid).count())?;
                let from = |ruling: &&Ruling<'_>| ruling.from.own.binary_search(&source).is_ok();
                Ok(Traffic::of(rulings(forbid).filter(from).map(|ruling| ruling.rule.ports.as_slice())))
            };
            let traffic = match (open, private) {
                (false, _) => of(false)?.without(&of(true)?),
                (true, false) => of(true)?,
                (true, true) => Traffic::all().without(&of(false)?.without(&of(true)?)),
            };
            used |= traffic.ranges().next().is_some();
            exceptions.add(draft.groups[source as usize].number, class, &traffic, work)?;
        }
        if used {
            let mut nets = BTreeSet::new();
            for piece in &pieces {
                fill(&mut nets, piece, ranges.first_rule(&chain, draft), work)?;
            }
            if nets.len() + cut.classes.len() > MAX_EXCEPTIONS {
                return Err(work.too_many());
            }
            cut.classes.extend(nets.into_iter().map(|net| (net, class)));
        }
    }
    Ok(cut)
}

/// Adds a piece as ranges, of which there may not be too many.
fn fill<'a>(
    nets: &mut BTreeSet<IpNet>,
    piece: &Piece,
    rule: Option<&'a RuleId>,
    work: &mut Work<'a>,
) -> Result<(), CompileError> {
    let before = nets.len();
    nets.extend(piece.nets());
    let added = nets.len() - before;
    match rule {
        Some(rule) => work.expands(rule, added)?,
        None => work.spend(added)?,
    }
    if nets.len() > MAX_EXCEPTIONS { Err(work.too_many()) } else { Ok(()) }
}

/// Whether a range is the public internet from end to end.
pub(super) fn is_wholly_global(range: IpNet) -> bool {
    !not_global().iter().any(|other| link::intersect(*other, range))
}

/// A range that rules name as a destination.
struct Named {
    range: IpNet,
    /// Indexes of the rules.
    rules: Vec<u32>,
    /// A rule allows it to somebody who may be in the network, whether anybody is there now or not.
    exits: bool,
}

struct Ranges {
    /// Sorted by text, so that a chain is the same whatever else there is.
    list: Vec<Named>,
}

/// Addresses that the same ranges contain, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    six: bool,
    first: u128,
    last: u128,
    /// Which ranges contain it.
    chain: Vec<u32>,
    global: bool,
}

impl Piece {
    fn nets(&self) -> Box<dyn Iterator<Item = IpNet>> {
        if self.six {
            let (first, last) = (Ipv6Addr::from(self.first), Ipv6Addr::from(self.last));
            Box::new(Ipv6Subnets::new(first, last, 0).map(IpNet::V6))
        } else {
            // Both are below 2^32: they came from IPv4 addresses.
            let (first, last) = (Ipv4Addr::from(self.first as u32), Ipv4Addr::from(self.last as u32));
            Box::new(Ipv4Subnets::new(first, last, 0).map(IpNet::V4))
        }
    }
}

/// What a range means to the cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// An index into the ranges that rules name.
    Named(u32),
    /// Never outside: the network's own range, linked ones, what is protected.
    Hole,
    NotGlobal,
}

impl Ranges {
    fn new(scene: &Scene<'_>, draft: &Draft<'_>) -> Self {
        let mut found: HashMap<IpNet, Named> = HashMap::new();
        for rule in scene.policy.allow.iter().filter(|rule| rule.is_in_force(scene.now)) {
            if let Target::Inside(Subject::Range(None, range)) = &rule.to
                && link::may_mean(&rule.from, scene.network, scene.own)
            {
                found.entry(*range).or_insert_with(|| Named::new(*range)).exits = true;
            }
        }
        for (index, ruling) in (0u32..).zip(&draft.rules).filter(|(_, ruling)| !ruling.from.own.is_empty()) {
            if let Target::Inside(Subject::Range(None, range)) = &ruling.rule.to {
                found.entry(*range).or_insert_with(|| Named::new(*range)).rules.push(index);
            }
        }
        let mut list: Vec<Named> = found.into_values().collect();
        list.sort_by_cached_key(|named| named.range.to_string());
        Self { list }
    }

    /// A rule about one of these ranges.
    fn first_rule<'a>(&self, chain: &[u32], draft: &Draft<'a>) -> Option<&'a RuleId> {
        let rules = chain.iter().flat_map(|range| &self.list[*range as usize].rules);
        rules.map(|rule| &draft.rules[*rule as usize].rule.id).next()
    }

    fn pieces(&self, scene: &Scene<'_>) -> Vec<Piece> {
        let own = [IpNet::V4(scene.own.cidr.net()), IpNet::V6(link::installation(scene.own))];
        let networks = scene.directory.networks.values().map(|entry| IpNet::V6(entry.cidr6));
        let links = scene.links.values().filter(|link| link.ipv4).map(|link| IpNet::V4(link.entry.cidr.net()));
        let protected = protected_ranges().iter().map(|(range, _)| *range);
        let holes = own.into_iter().chain(networks).chain(links).chain(protected);
        let named = (0u32..).zip(&self.list).map(|(index, named)| (named.range, Mark::Named(index)));
        let marks: Vec<(IpNet, Mark)> = named
            .chain(holes.map(|range| (range, Mark::Hole)))
            .chain(not_global().iter().map(|range| (*range, Mark::NotGlobal)))
            .collect();
        let mut pieces = sweep(false, &marks);
        pieces.extend(sweep(true, &marks));
        pieces
    }
}

impl Named {
    fn new(range: IpNet) -> Self {
        Self { range, rules: Vec::new(), exits: false }
    }
}

/// Walks through one family's addresses. Of two ranges one contains the other or they are apart, so what contains an
/// address is a stack.
fn sweep(six: bool, marks: &[(IpNet, Mark)]) -> Vec<Piece> {
    let mut spans: Vec<(u128, std::cmp::Reverse<u128>, Mark)> = marks
        .iter()
        .filter_map(|(range, mark)| match range {
            IpNet::V4(four) if !six => {
                Some((u32::from(four.network()).into(), std::cmp::Reverse(u32::from(four.broadcast()).into()), *mark))
            }
            IpNet::V6(net) if six => Some((net.network().into(), std::cmp::Reverse(net.broadcast().into()), *mark)),
            _ => None,
        })
        .collect();
    spans.sort_by_key(|(first, last, _)| (*first, *last));
    let mut pieces = Vec::new();
    let mut stack: Vec<(u128, Mark)> = Vec::new();
    // The first address not yet dealt with; nothing after the last one there is.
    let mut next: Option<u128> = Some(0);
    let mut emit = |stack: &[(u128, Mark)], first: u128, last: u128| {
        if first > last || stack.iter().any(|(_, mark)| *mark == Mark::Hole) {
            return;
        }
        let mut chain: Vec<u32> = stack
            .iter()
            .filter_map(|(_, mark)| match mark {
                Mark::Named(index) => Some(*index),
                _ => None,
            })
            .collect();
        chain.sort_unstable();
        if !chain.is_empty() {
            let global = !stack.iter().any(|(_, mark)| *mark == Mark::NotGlobal);
            pieces.push(Piece { six, first, last, chain, global });
        }
    };
    for (first, std::cmp::Reverse(last), mark) in spans {
        while let Some((end, _)) = stack.last().copied().filter(|(end, _)| *end < first) {
            if let Some(start) = next {
                emit(&stack, start, end);
            }
            stack.pop();
            next = next.map(|start| start.max(end.saturating_add(1)));
        }
        if let Some(start) = next.filter(|start| *start < first) {
            emit(&stack, start, first - 1);
        }
        next = next.map(|start| start.max(first));
        stack.push((last, mark));
    }
    while let Some((end, _)) = stack.last().copied() {
        if let Some(start) = next {
            emit(&stack, start, end);
        }
        stack.pop();
        next = next.and_then(|start| if end < start { Some(start) } else { end.checked_add(1) });
    }
    pieces
}
