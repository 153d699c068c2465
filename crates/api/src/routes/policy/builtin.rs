//! The rules that no policy holds, as they show beside it.

use warren_model::policy::{Directory, Expect, Intra, NAMES_V4, PROTECTED, Policy};
use warren_model::record::Egress;
use warren_model::wire::BuiltinRule;

/// What holds in every network, whatever a policy says, beside [`PROTECTED`].
const EVERYWHERE: [(&str, Expect, &str); 3] = [
    ("gateway", Expect::Allow, "the gateway answers the resolver's port 53, the proxy's port 3128 and pings"),
    ("host", Expect::Deny, "nothing else of the host is reached by any of its addresses"),
    ("spoofing", Expect::Deny, "a machine sends with its own MAC, IPv4 and IPv6 address only"),
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
