//! What would have to be in the policy for a flow to be allowed, and which rules nearly are.

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::protect::{as_sent, protection};
use super::{
    Destination, Directory, Flow, Member, Policy, PortRange, Ports, Protocol, Rule, RuleId, Sender, Subject, Target,
    evaluate,
};

/// The most near misses that are listed.
pub const MAX_NEAR_MISSES: usize = 20;

/// A rule that would have decided but for one thing, or that stands in the way of one that allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NearMiss {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub rule: RuleId,
    /// A sentence for a person.
    pub why: String,
}

/// The smallest rule that allows a flow where nothing forbids it; `None` where no rule can: what is built in, and a name
/// over anything but TCP. It knows no policy: whoever has one asks [`missing_rule`].
pub fn suggest(flow: &Flow<'_>) -> Option<Rule> {
    let from = machine(flow.from);
    let (to, named) = match flow.to {
        Destination::Member(member) => (Target::Inside(machine(member)), member.name.to_string()),
        Destination::Address(address) => {
            if protection(address).is_some() {
                return None;
            }
            let address = as_sent(address);
            (Target::Inside(Subject::Range(None, IpNet::from(address))), in_an_id(address))
        }
        Destination::Name(_) if flow.protocol != Protocol::Tcp => return None,
        // No rule may be about some names, such as the shared outer names of encrypted ClientHello.
        Destination::Name(name) => (Target::Outside(name.as_str().parse().ok()?), name.to_string()),
    };
    let ports = match (flow.protocol, flow.port) {
        (Protocol::Other, _) => Vec::new(),
        (protocol, Some(port)) if protocol.has_ports() && port > 0 => {
            vec![Ports { protocol, range: PortRange { first: port, last: port } }]
        }
        (protocol, _) => vec![Ports { protocol, range: PortRange::ALL }],
    };
    let port = ports.first().map_or_else(|| "any".to_owned(), |ports| ports.to_string().replace('/', "-"));
    let id = id(&format!("allow-{}-{named}-{port}", flow.from.name));
    Some(Rule { id, from, to, ports, application: None, owner: None, expires: None, reason: None })
}

/// What [`suggest`] says, for a flow that the policy does not allow; `None` for one that it allows already, such as one
/// that was refused before the policy changed: a rule that adds nothing is no help.
pub fn missing_rule(policy: &Policy, directory: &Directory, flow: &Flow<'_>, now: Timestamp) -> Option<Rule> {
    if evaluate(policy, directory, flow, now).allowed { None } else { suggest(flow) }
}

/// Rules that miss a flow by one thing alone (who, where to, which ports, when), and forbidding rules without which it
/// would be allowed by another. At most [`MAX_NEAR_MISSES`].
pub fn near_misses(policy: &Policy, directory: &Directory, flow: &Flow<'_>, now: Timestamp) -> Vec<NearMiss> {
    let sender = Sender::new(policy, directory, flow.from, now);
    let mut allowing = None;
    let mut forbidding = Vec::new();
    let mut misses = Vec::new();
    for (rule, forbid) in policy.rules() {
        let from = flow.from.is_meant_by(&rule.from);
        let to = sender.is_meant(flow.to, rule);
        let ports = rule.covers(flow.protocol, flow.port);
        let in_force = rule.is_in_force(now);
        let why = match (from, to, ports, in_force) {
            (true, true, true, true) => {
                if forbid {
                    forbidding.push(rule);
                } else {
                    allowing.get_or_insert(rule);
                }
                continue;
            }
            // A forbidding rule that is about something else has nothing to do with it.
            _ if forbid => continue,
            (false, true, true, true) => {
                format!("it is from {}, not {}", rule.from, flow.from.full_name())
            }
            (true, false, true, true) => format!("it is to {}, not {}", rule.to, flow.to),
            (true, true, false, true) => format!("it is for {}, not {}", listed(&rule.ports), asked(flow)),
            (true, true, true, false) => match rule.expires {
                Some(at) => format!("it expired at {at}"),
                None => continue,
            },
            _ => continue,
        };
        misses.push(NearMiss { rule: rule.id.clone(), why });
    }
    let shadows = forbidding.into_iter().filter_map(|rule| {
        let why = format!("it forbids what rule {} allows", allowing?.id);
        Some(NearMiss { rule: rule.id.clone(), why })
    });
    let mut all: Vec<NearMiss> = shadows.collect();
    all.extend(misses);
    all.truncate(MAX_NEAR_MISSES);
    all
}

fn machine(member: &Member) -> Subject {
    Subject::Machine(member.network.clone(), member.name.clone())
}

fn listed(ports: &[Ports]) -> String {
    let texts: Vec<String> = ports.iter().take(8).map(Ports::to_string).collect();
    let more = if ports.len() > texts.len() { " and others" } else { "" };
    format!("{}{more}", texts.join(", "))
}

fn asked(flow: &Flow<'_>) -> String {
    match flow.port {
        Some(port) => format!("{}/{port}", flow.protocol),
        None => flow.protocol.to_string(),
    }
}

fn in_an_id(address: IpAddr) -> String {
    address.to_string().replace(':', "-")
}

/// A valid id like the text: too long a one ends in a part of its hash instead.
fn id(text: &str) -> RuleId {
    const LONGEST: usize = 63;
    let text: String = text
        .chars()
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c) { c } else { '-' })
        .collect();
    if text.len() <= LONGEST {
        return RuleId(text);
    }
    let hash = blake3::hash(text.as_bytes()).to_hex();
    RuleId(format!("{}-{}", &text[..LONGEST - 9], &hash[..8]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_rule_is_suggested_that_no_policy_may_hold() {
        let member: Member = serde_json::from_value(serde_json::json!({
            "id": "mch_01m80p9pd7vhxnyw255xxk75p1", "network": "dev", "name": "agent", "number": 2,
            "ipv4": "10.0.1.10", "ipv6": "fd00::2", "tags": [],
        }))
        .unwrap();
        let suggested = |name: &str| {
            let (to, protocol, port) = (name.parse().unwrap(), Protocol::Tcp, Some(443));
            suggest(&Flow { from: &member, to: Destination::Name(&to), protocol, port })
        };
        let rule = suggested("api.example.com").unwrap();
        assert_eq!(serde_json::from_value::<Rule>(serde_json::to_value(&rule).unwrap()).unwrap(), rule);
        assert_eq!(suggested("cloudflare-ech.com"), None);
    }

    #[test]
    fn an_id_is_valid_however_long_the_names_are() {
        for text in ["allow-agent-db-tcp-5432", &format!("allow-{}-tcp-1", "x".repeat(200)), "allow-a-fd00--1-icmp"] {
            let id = id(text);
            assert_eq!(id.as_str().parse::<RuleId>().unwrap(), id);
        }
        assert_eq!(id("allow-agent-db-tcp-5432").as_str(), "allow-agent-db-tcp-5432");
    }
}
