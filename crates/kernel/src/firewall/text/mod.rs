//! The rules as text.
//!
//! A packet of a member meets, in this order: `arriving` (is it who it says it is: interface, MAC and address in one
//! lookup, which also counts it), the routing table, and then either `to_gateway` or `between`. Where policy leaves
//! members alone among each other, what they say passes in a single lookup and nothing tracks it. Otherwise it is
//! `inside` that decides, for every packet anew: see [`checks`].
//!
//! | part | what it does |
//! | --- | --- |
//! | [`arriving`] | who sends, and whether it may go further at all; names outside; the gateway's ports |
//! | [`checks`] | what policy says about one packet |
//! | [`between`] | among members, to linked networks, and out |
//! | [`refusing`] | counting, reporting and answering what is refused |
//! | [`host`] | the table in the host's namespace |

mod arriving;
mod between;
mod checks;
pub(crate) mod host;
mod refusing;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt::Write;

use warren_model::InstallationId;
use warren_model::policy::{NOT_GLOBAL_V4, NOT_GLOBAL_V6};

use super::digest::CONSTANT_SETS;
use super::elements::Listing;
use super::item::Item;
use super::sets::Set;
use super::shape::Shape;
use super::{MemberSpec, Traffic, policy};
use crate::names;
use crate::spec::NetworkSpec;

pub(crate) use host::host;

/// What is there before a load.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// The shape whose chains and sets are there, complete and with nothing beside them.
    ///
    /// Then they stay, and only the rules in them are replaced. A new chain would meet packets with its policy, which
    /// is to drop, for as long as the transaction is prepared.
    pub(crate) skeleton: Option<Shape>,
    /// With the members' counters.
    pub(crate) elements: Listing,
    pub(crate) spoofed: Traffic,
    pub(crate) flooded: Traffic,
    pub(crate) arp_spoofed: Traffic,
}

/// What the rules of one network are made of.
struct Context<'a> {
    installation: &'a InstallationId,
    spec: &'a NetworkSpec,
    shape: Shape,
    uplink: String,
}

/// One chain and its rules.
struct Chain {
    name: String,
    /// Where packets come from by themselves: type, hook, priority and policy.
    hook: Option<&'static str>,
    rules: Vec<String>,
}

impl Chain {
    fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), hook: None, rules: Vec::new() }
    }

    fn hooked(name: &str, hook: &'static str) -> Self {
        Self { hook: Some(hook), ..Self::new(name) }
    }

    fn rule(mut self, rule: impl Into<String>) -> Self {
        self.rules.push(rule.into());
        self
    }

    fn rules<R: Into<String>>(mut self, rules: impl IntoIterator<Item = R>) -> Self {
        self.rules.extend(rules.into_iter().map(Into::into));
        self
    }

    fn rules_if<R: Into<String>>(self, condition: bool, rules: impl IntoIterator<Item = R>) -> Self {
        if condition { self.rules(rules) } else { self }
    }
}

/// The whole content of a router namespace; loading it replaces whatever was there, in one transaction.
pub(crate) fn router(installation: &InstallationId, spec: &NetworkSpec, members: &[MemberSpec], kept: &Kept) -> String {
    let shape = Shape::of(spec);
    let items = policy::items(installation, shape, &spec.rules);
    of_shape(installation, spec, shape, members, items, kept)
}

/// The rules of this shape without any element: what they are made of, whoever is a member and whatever policy names.
pub(crate) fn fixed(installation: &InstallationId, spec: &NetworkSpec, shape: Shape) -> String {
    of_shape(installation, spec, shape, &[], Vec::new(), &Kept::default())
}

fn of_shape(
    installation: &InstallationId,
    spec: &NetworkSpec,
    shape: Shape,
    members: &[MemberSpec],
    items: Vec<(Set, Item)>,
    kept: &Kept,
) -> String {
    let context = Context { installation, spec, shape, uplink: names::uplink(installation, spec.number) };
    let table = names::TABLE;
    let mut text = prelude(&context, members, kept);
    let _ = writeln!(text, "table inet {table} {{");
    let _ = writeln!(text, "\tcounter spoofed {{ {} }}", counter(kept.spoofed));
    for set in Set::of_members(shape).iter().filter(|set| **set != Set::ArpSenders) {
        text.push_str(&declaration(*set, &of_members(&context, *set, members, kept)));
    }
    for set in Set::of_policy(shape) {
        let elements: Vec<String> =
            items.iter().filter(|(of, _)| *of == set).map(|(_, item)| item.to_string()).collect();
        text.push_str(&declaration(set, &elements));
    }
    for set in Set::of_cache(shape) {
        text.push_str(&declaration(set, &[]));
    }
    for (set, kind) in dynamic_sets(shape) {
        let _ = writeln!(text, "\tset {set} {{ {kind} }}");
    }
    if shape.outside.is_some() {
        let _ = writeln!(text, "\tcounter flooded {{ {} }}", counter(kept.flooded));
        text.push_str(&not_global());
    }
    for chain in chains(&context) {
        let _ = writeln!(text, "\tchain {} {{", chain.name);
        if let Some(hook) = chain.hook {
            let _ = writeln!(text, "\t\ttype {hook};");
        }
        for rule in &chain.rules {
            let _ = writeln!(text, "\t\t{rule}");
        }
        text.push_str("\t}\n");
    }
    let _ = write!(
        text,
        "}}
table arp {table} {{
	counter spoofed {{ {spoofed} }}
{senders}	chain arriving {{
		type filter hook input priority filter; policy drop;
		iifname . ether saddr . arp saddr ether . arp saddr ip @senders accept
		counter name spoofed drop
	}}
}}
",
        spoofed = counter(kept.arp_spoofed),
        senders = declaration(Set::ArpSenders, &of_members(&context, Set::ArpSenders, members, kept)),
    );
    text
}

fn chains(context: &Context<'_>) -> Vec<Chain> {
    let mut all = refusing::chains(context);
    all.extend(arriving::chains(context));
    all.extend(between::chains(context));
    all
}

/// The sets that packets themselves fill, and how they are declared.
fn dynamic_sets(shape: Shape) -> Vec<(&'static str, String)> {
    let beginners = between::BEGINNERS.map(|(set, kind, _)| (set, format!("type {kind}; {FORGETFUL}")));
    let talkers = refusing::TALKERS.map(|(set, kind, _)| (set, format!("type {kind}; {FORGETFUL}")));
    let beginners = beginners.into_iter().filter(|_| shape.outside.is_some());
    talkers.into_iter().chain(beginners).collect()
}

/// An idle member's allowance is whole again after five seconds at most, so forgetting it after ten gives nothing away.
/// There is room for all members, since whoever did not fit in would not be limited.
const FORGETFUL: &str = "size 65535; flags dynamic; timeout 10s;";

/// Clears the way for the new rules, within their transaction.
fn prelude(context: &Context<'_>, members: &[MemberSpec], kept: &Kept) -> String {
    let Some(before) = kept.skeleton else { return String::from("flush ruleset\n") };
    let Context { installation, spec, shape, .. } = *context;
    let table = names::TABLE;
    let mut text = format!("flush table inet {table}\nflush table arp {table}\n");
    let there = Context { installation, spec, shape: before, uplink: String::new() };
    let stay: BTreeSet<String> = chains(context).into_iter().map(|chain| chain.name).collect();
    for chain in chains(&there).iter().filter(|chain| !stay.contains(&chain.name)) {
        let _ = writeln!(text, "delete chain inet {table} {}", chain.name);
    }
    let stay: BTreeSet<&str> = dynamic_sets(shape).into_iter().map(|(set, _)| set).collect();
    for (set, _) in dynamic_sets(before).iter().filter(|(set, _)| !stay.contains(set)) {
        let _ = writeln!(text, "delete set inet {table} {set}");
    }
    if before.outside.is_some() {
        let action = if shape.outside.is_none() { "delete" } else { "flush" };
        for set in CONSTANT_SETS {
            let _ = writeln!(text, "{action} set inet {table} {set}");
        }
        if shape.outside.is_none() {
            let _ = writeln!(text, "delete counter inet {table} flooded");
        }
    }
    let stay: BTreeSet<Set> = Set::all(shape).collect();
    for set in Set::all(before) {
        let family = if set == Set::ArpSenders { "arp" } else { "inet" };
        let what = if set.is_map() { "map" } else { "set" };
        // A member's element stays, with its counter; what policy says is said anew.
        let wanted = || members.iter().map(|member| set.key(installation, member)).collect::<BTreeSet<_>>();
        if !stay.contains(&set) {
            let _ = writeln!(text, "delete {what} {family} {table} {}", set.name());
        } else if !Set::MEMBERS.contains(&set) || strays(&kept.elements, set, &wanted()) {
            let _ = writeln!(text, "flush {what} {family} {table} {}", set.name());
        }
    }
    text
}

fn strays(there: &Listing, set: Set, wanted: &BTreeSet<Vec<u8>>) -> bool {
    there.of(set).any(|entry| !wanted.contains(&entry.key))
}

fn of_members(context: &Context<'_>, set: Set, members: &[MemberSpec], kept: &Kept) -> Vec<String> {
    let element = |member| {
        let item = set.member(context.installation, member);
        let traffic = kept.elements.traffic(set, &item.entry(false).key);
        if traffic == Traffic::default() { item.to_string() } else { format!("{item} counter {}", counter(traffic)) }
    };
    members.iter().map(element).collect()
}

fn declaration(set: Set, elements: &[String]) -> String {
    let what = if set.is_map() { "map" } else { "set" };
    let elements = match elements {
        [] => String::new(),
        elements => format!(" elements = {{\n\t\t{}\n\t}}", elements.join(",\n\t\t")),
    };
    format!("\t{what} {} {{ {}{elements} }}\n", set.name(), set.kind())
}

fn not_global() -> String {
    format!(
        "	# everything but the public internet (RFC 6890 and the IANA registries)
	set not_global4 {{ type ipv4_addr; flags interval; elements = {{ {} }} }}
	set not_global6 {{ type ipv6_addr; flags interval; elements = {{ {} }} }}
",
        NOT_GLOBAL_V4.join(", "),
        NOT_GLOBAL_V6.join(", "),
    )
}

fn counter(traffic: Traffic) -> String {
    format!("packets {} bytes {}", traffic.packets, traffic.bytes)
}
