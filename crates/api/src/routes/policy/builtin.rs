//! The rules that no policy holds, as they show beside it.

use warren_model::policy::{Directory, Expect, Intra, NAMES_V4, PROTECTED, Policy};
use warren_model::record::Egress;
use warren_model::wire::BuiltinRule;

/// What holds in every network, whatever a policy says, beside [`PROTECTED`].
const EVERYWHERE: [(&str, Expect, &str); 9] = [
    ("gateway", Expect::Allow, "the gateway answers the resolver's port 53, the proxy's port 3128 and pings"),
    ("host", Expect::Deny, "nothing else of the host is reached by any of its addresses"),
    (
        "private-range",
        Expect::Deny,
        "what is not the public internet is not reached, but where the operator permits it",
    ),
    ("spoofing", Expect::Deny, "a machine sends with its own MAC, IPv4 and IPv6 address only"),
    ("not-global", Expect::Deny, "a name outside is not reached at an address that is not of the public internet"),
    ("name-limit", Expect::Deny, "how many names outside a machine may ask for is bounded"),
    ("wildcard-limit", Expect::Deny, "a wildcard is not about names that are very long or have many more labels"),
    ("name-types", Expect::Deny, "of names outside that only a wildcard lists, no unusual records are answered"),
    ("connection-limit", Expect::Deny, "how many connections by name may be open at once is bounded"),
];

/// Every built-in rule that is in force.
pub(super) fn rules(policy: &Policy, directory: &Directory) -> Vec<BuiltinRule> {
    let rule = |name: &str, effect, network: Option<&str>, description: String| BuiltinRule {
        id: format!("builtin:{name}"),
        effect,
        network: network.map(str::to_owned),
        description,
    };
    let mut rules = Vec::new();
    for (network, entry) in &directory.networks {
        if policy.intra(network) == Intra::Allow {
            let said = format!("members of {network} reach each other, as its intra is allow");
            rules.push(rule("intra", Expect::Allow, Some(network.as_str()), said));
        }
        if entry.egress == Egress::Open {
            let said = format!("members of {network} reach the public internet, as its egress is open");
            rules.push(rule("open-egress", Expect::Allow, Some(network.as_str()), said));
        }
    }
    for (name, effect, said) in EVERYWHERE {
        rules.push(rule(name, effect, None, said.to_owned()));
    }
    let mut names: Vec<&str> = PROTECTED.iter().map(|(_, name)| *name).collect();
    names.dedup();
    for name in names {
        let ranges: Vec<_> = PROTECTED.iter().filter(|(_, of)| *of == name).map(|(range, _)| *range).collect();
        let said = match name {
            "names" => format!("{NAMES_V4} stands for names outside, and only the name counts"),
            _ => format!("{} {} closed", ranges.join(", "), if ranges.len() == 1 { "is" } else { "are" }),
        };
        rules.push(rule(name, Expect::Deny, None, said));
    }
    rules
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use warren_model::policy::{BUILTIN, NetworkEntry};
    use warren_model::{NetworkId, NetworkNumber, UlaPrefix};

    use super::*;

    #[test]
    fn every_built_in_rule_that_a_verdict_or_denial_can_cite_is_shown() {
        let number = NetworkNumber::new(1).unwrap();
        let entry = NetworkEntry {
            id: NetworkId::from_ulid(ulid::Ulid::nil()),
            number,
            cidr: "10.0.0.0/16".parse().unwrap(),
            cidr6: UlaPrefix::from_random([1, 2, 3, 4, 5]).network(number),
            egress: Egress::Open,
        };
        let directory = Directory {
            networks: [("lab".parse().unwrap(), entry)].into(),
            members: Vec::new(),
            host: Default::default(),
        };
        let shown = rules(&Policy::default(), &directory);
        let shown: BTreeSet<&str> = shown.iter().map(|rule| rule.id.trim_start_matches("builtin:")).collect();
        assert_eq!(shown, BUILTIN.into());
    }
}
