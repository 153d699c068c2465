//! Which parts a network's rules have, as far as its policy decides it.
//!
//! Two networks of the same shape have the same chains and sets; what differs is what the sets hold. So a change of
//! policy is a change of elements as long as the shape stays.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use warren_model::policy::compile::{Default as ByDefault, Group, OUTSIDE};

use crate::spec::NetworkSpec;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// What members do among each other.
    pub(crate) inside: Scope,
    /// What goes to the public internet by address; `None` where nothing leaves.
    pub(crate) outside: Option<Scope>,
    /// There are links to other networks.
    pub(crate) links: bool,
}

/// What passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Everything, and nothing is looked up.
    All,
    /// Everything but what is listed.
    Except,
    /// Nothing but what is listed.
    Only,
}

impl Shape {
    pub(crate) fn of(spec: &NetworkSpec) -> Self {
        let rules = &spec.rules;
        let own: BTreeSet<Group> =
            rules.groups.iter().filter(|(address, _)| is_inside(spec, **address)).map(|(_, group)| *group).collect();
        let classes: BTreeSet<Group> = rules.classes.values().copied().chain([OUTSIDE]).collect();
        let among_members = || rules.exceptions.iter().any(|one| own.contains(&one.from) && own.contains(&one.to));
        let to_classes = || rules.exceptions.iter().any(|one| classes.contains(&one.to));
        let scope = |default, listed: &dyn Fn() -> bool| match default {
            ByDefault::Refuse => Scope::Only,
            ByDefault::Accept if listed() => Scope::Except,
            ByDefault::Accept => Scope::All,
        };
        Self {
            inside: scope(rules.inside, &among_members),
            outside: rules.exits.then(|| scope(rules.outside, &to_classes)),
            links: !rules.links.is_empty(),
        }
    }

    /// With every part that there is: what every other shape is a part of.
    pub(crate) const WHOLE: Self = Self { inside: Scope::Only, outside: Some(Scope::Only), links: true };
    /// The fast path of a sealed network.
    pub(crate) const BARE: Self = Self { inside: Scope::All, outside: None, links: false };

    /// Connections are tracked, at least some.
    pub(crate) fn tracks(self) -> bool {
        self != Self::BARE
    }

    /// Groups are looked up for some packets.
    pub(crate) fn has_groups(self) -> bool {
        self.inside != Scope::All || self.links || self.has_classes()
    }

    /// Ranges outside are looked up.
    pub(crate) fn has_classes(self) -> bool {
        self.outside.is_some_and(|scope| scope != Scope::All)
    }
}

pub(crate) fn is_inside(spec: &NetworkSpec, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(four) => spec.cidr.net().contains(&four),
        IpAddr::V6(six) => spec.cidr6.contains(&six),
    }
}

const SCOPES: [(&str, Option<Scope>); 4] =
    [("none", None), ("all", Some(Scope::All)), ("except", Some(Scope::Except)), ("only", Some(Scope::Only))];

fn word(scope: Option<Scope>) -> &'static str {
    SCOPES.iter().find(|(_, one)| *one == scope).map_or("none", |(word, _)| word)
}

/// `all none alone`, `only except linked`: inside, outside, links.
impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let links = if self.links { "linked" } else { "alone" };
        write!(f, "{} {} {links}", word(Some(self.inside)), word(self.outside))
    }
}

/// A text that is no shape.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoShape;

impl FromStr for Shape {
    type Err = NoShape;

    fn from_str(text: &str) -> Result<Self, NoShape> {
        let [inside, outside, links] = text.split(' ').collect::<Vec<_>>()[..] else { return Err(NoShape) };
        let scope = |text: &str| SCOPES.iter().find(|(word, _)| *word == text).map(|(_, scope)| *scope).ok_or(NoShape);
        let links = match links {
            "linked" => true,
            "alone" => false,
            _ => return Err(NoShape),
        };
        Ok(Self { inside: scope(inside)?.ok_or(NoShape)?, outside: scope(outside)?, links })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_reads_back_as_written() {
        for (_, inside) in SCOPES {
            for (_, outside) in SCOPES {
                for links in [false, true] {
                    let Some(inside) = inside else { continue };
                    let shape = Shape { inside, outside, links };
                    assert_eq!(shape.to_string().parse(), Ok(shape));
                }
            }
        }
        for no in ["", "open", "none all alone", "all all", "all all alone more"] {
            assert_eq!(no.parse::<Shape>(), Err(NoShape), "{no}");
        }
    }
}
