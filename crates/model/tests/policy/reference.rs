//! The same questions answered the slow way: rules as texts, ranges as bits, and no shortcut.

use std::net::IpAddr;

use warren_model::policy::{Directory, Intra, Member, Policy, Protocol, Rule};
use warren_model::record::Egress;

use super::common::now;

/// Where to, as a question.
pub enum Goal<'a> {
    Address(IpAddr),
    Name(&'a str),
}

/// `Some(id)` of the rule that decides, with whether it allows; no id when nothing is about it.
pub fn judge(
    policy: &Policy,
    directory: &Directory,
    from: &Member,
    goal: &Goal<'_>,
    protocol: Protocol,
    port: u16,
) -> (bool, Option<String>) {
    let open = directory.networks[&from.network].egress == Egress::Open;
    let mut place = None;
    if let Goal::Address(address) = goal {
        if let Some(name) = closed(*address) {
            return (false, Some(format!("builtin:{name}")));
        }
        place = holder(policy, directory, from, *address);
    }
    let hits: Vec<(&Rule, bool)> = policy
        .rules()
        .filter(|(rule, _)| rule.expires.is_none_or(|at| at > now()))
        .filter(|(rule, _)| means(&rule.from.to_string(), from, None, directory))
        .filter(|(rule, _)| {
            let text = serde_json::to_value(&rule.to).unwrap();
            match (goal, &place, text.as_str()) {
                (Goal::Name(name), _, None) => fits(text["name"].as_str().unwrap(), name),
                (Goal::Address(_), Some(Holder::Member(member)), Some(text)) => {
                    means(text, member, Some(from), directory)
                }
                (Goal::Address(address), Some(Holder::Nobody) | None, Some(text)) => contains(text, *address),
                _ => false,
            }
        })
        .filter(|(rule, _)| covers(rule, protocol, port))
        .collect();
    if let Some((rule, _)) = hits.iter().find(|(_, forbid)| *forbid) {
        return (false, Some(rule.id.to_string()));
    }
    let allow = hits.iter().find(|(_, forbid)| !forbid).map(|(rule, _)| rule.id.to_string());
    match (goal, place) {
        (Goal::Address(_), Some(Holder::Nobody)) => (false, None),
        (Goal::Address(_), Some(Holder::Member(to))) => {
            if to.network == from.network && policy.intra(&from.network) == Intra::Allow {
                (true, Some("builtin:intra".to_owned()))
            } else {
                (allow.is_some(), allow)
            }
        }
        (Goal::Address(address), None) if open && public(*address) => (true, Some("builtin:open-egress".to_owned())),
        (Goal::Name(_), _) if open => (true, Some("builtin:open-egress".to_owned())),
        _ => (allow.is_some(), allow),
    }
}

enum Holder<'a> {
    Member(&'a Member),
    /// In a network's range, and nobody's.
    Nobody,
}

/// Who has an address, as one member sees it; nothing for what is outside.
fn holder<'d>(policy: &Policy, directory: &'d Directory, from: &Member, address: IpAddr) -> Option<Holder<'d>> {
    let mut visible = vec![from.network.to_string()];
    if address.is_ipv4() {
        let links = |of: &str| -> Vec<String> {
            let names = directory.networks.keys().map(|name| name.to_string());
            names.filter(|name| *name != of && linked(policy, directory, of, name)).collect()
        };
        // One end's range is unlike the other end's, and unlike that of whatever else the other end is linked with.
        let alone = |name: &str, seen_by: &str| {
            let all = links(seen_by).into_iter().chain([seen_by.to_owned()]);
            all.filter(|other| other != name).all(|other| !same_addresses(directory, name, &other))
        };
        let own = visible[0].clone();
        visible.extend(links(&own).into_iter().filter(|name| alone(name, &own) && alone(&own, name)));
    } else {
        visible.extend(directory.networks.keys().map(|name| name.to_string()));
    }
    let of_them = |member: &&Member| visible.iter().any(|name| *name == member.network.to_string());
    let has = |member: &&Member| IpAddr::V4(member.ipv4) == address || IpAddr::V6(member.ipv6) == address;
    if let Some(member) = directory.members.iter().filter(of_them).find(has) {
        return Some(Holder::Member(member));
    }
    let in_range = visible.iter().any(|name| {
        let entry = directory.networks.iter().find(|(other, _)| other.to_string() == *name).unwrap().1;
        contains(&entry.cidr.to_string(), address) || contains(&entry.cidr6.to_string(), address)
    });
    // The installation's other addresses are nobody's, either.
    (in_range || contains("fd01:203:405::/48", address)).then_some(Holder::Nobody)
}

fn linked(policy: &Policy, directory: &Directory, one: &str, other: &str) -> bool {
    let in_force = policy.allow.iter().filter(|rule| rule.expires.is_none_or(|at| at > now()));
    in_force.into_iter().any(|rule| {
        let to = serde_json::to_value(&rule.to).unwrap();
        let Some(to) = to.as_str() else { return false };
        let from = rule.from.to_string();
        [(one, other), (other, one)].into_iter().any(|(sender, receiver)| {
            touches(&from, sender, directory)
                && touches(to, receiver, directory)
                && !(is_bare(to) && !to.contains(':') && same_addresses(directory, sender, receiver))
        })
    })
}

/// Whether anybody in a network could be meant.
fn touches(subject: &str, network: &str, directory: &Directory) -> bool {
    if subject.starts_with("net:") || !is_bare(subject) && !is_bare(subject.split_once('/').unwrap().1) {
        let named = subject.strip_prefix("net:").unwrap_or(subject).split('/').next().unwrap();
        return named == network;
    }
    let range = if is_bare(subject) {
        subject
    } else {
        let (named, range) = subject.split_once('/').unwrap();
        if named != network {
            return false;
        }
        range
    };
    let entry = directory.networks.iter().find(|(name, _)| name.as_str() == network).unwrap().1;
    [entry.cidr.to_string(), entry.cidr6.to_string()].iter().any(|own| {
        let first = |text: &str| text.split('/').next().unwrap().parse::<IpAddr>().unwrap();
        contains(own, first(range)) || contains(range, first(own))
    })
}

/// Whether a text means a member; as a destination for somebody, or as whoever sends.
fn means(text: &str, member: &Member, seen_by: Option<&Member>, directory: &Directory) -> bool {
    let network = member.network.to_string();
    let mut names = vec![format!("net:{network}"), format!("{network}/{}", member.name)];
    names.extend(member.tags.iter().map(|tag| format!("{network}/tag:{tag}")));
    if names.iter().any(|name| name == text) {
        return true;
    }
    let (own, six) = (IpAddr::V4(member.ipv4), IpAddr::V6(member.ipv6));
    if is_bare(text) {
        let foreign = seen_by.filter(|from| from.network != member.network);
        let hidden = foreign.is_some_and(|from| same_addresses(directory, from.network.as_str(), &network));
        return contains(text, six) || !hidden && contains(text, own);
    }
    match text.split_once('/') {
        Some((named, range)) if is_bare(range) => named == network && (contains(range, own) || contains(range, six)),
        _ => false,
    }
}

/// Whether a text is a range without a network in front.
fn is_bare(text: &str) -> bool {
    text.split('/').next().unwrap().parse::<IpAddr>().is_ok()
}

fn same_addresses(directory: &Directory, one: &str, other: &str) -> bool {
    let cidr = |name: &str| {
        let entry = directory.networks.iter().find(|(network, _)| network.as_str() == name).unwrap().1;
        entry.cidr.to_string()
    };
    let first = |text: &str| text.split('/').next().unwrap().parse::<IpAddr>().unwrap();
    contains(&cidr(one), first(&cidr(other))) || contains(&cidr(other), first(&cidr(one)))
}

/// Compares bit by bit.
fn contains(range: &str, address: IpAddr) -> bool {
    let Some((base, length)) = range.split_once('/') else { return range.parse() == Ok(address) };
    let (Ok(base), Ok(length)) = (base.parse::<IpAddr>(), length.parse::<usize>()) else { return false };
    let bits = |address: IpAddr| -> Vec<bool> {
        let octets = match address {
            IpAddr::V4(four) => four.octets().to_vec(),
            IpAddr::V6(six) => six.octets().to_vec(),
        };
        octets.iter().flat_map(|octet| (0..8).map(move |bit| octet & (0x80 >> bit) != 0)).collect()
    };
    base.is_ipv4() == address.is_ipv4() && bits(base)[..length] == bits(address)[..length]
}

fn fits(pattern: &str, name: &str) -> bool {
    let labels = |text: &str| text.split('.').map(str::to_owned).collect::<Vec<_>>();
    let (pattern, name) = (labels(pattern), labels(name));
    match pattern[0].as_str() {
        "*" => name.len() == pattern.len() && name[1..] == pattern[1..],
        "**" => name.len() >= pattern.len() && name[name.len() + 1 - pattern.len()..] == pattern[1..],
        _ => pattern == name,
    }
}

fn covers(rule: &Rule, protocol: Protocol, port: u16) -> bool {
    let texts: Vec<String> = rule.ports.iter().map(ToString::to_string).collect();
    texts.is_empty()
        || texts.iter().any(|text| match text.split_once('/') {
            None => *text == protocol.to_string(),
            Some((name, range)) => {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                let ports = first.parse::<u16>().unwrap()..=last.parse::<u16>().unwrap();
                name == protocol.to_string() && ports.contains(&port)
            }
        })
}

/// The built-in protection of the addresses that are tried.
fn closed(address: IpAddr) -> Option<&'static str> {
    let table = [
        ("169.254.0.0/16", "metadata"),
        ("fe80::/10", "metadata"),
        ("fd00:ec2::254/128", "metadata"),
        ("0.0.0.0/8", "loopback"),
        ("127.0.0.0/8", "loopback"),
        ("::1/128", "loopback"),
        ("::/128", "loopback"),
        ("224.0.0.0/4", "multicast"),
        ("255.255.255.255/32", "multicast"),
        ("ff00::/8", "multicast"),
        ("198.18.0.0/15", "names"),
        ("64:ff9b::/96", "embedded"),
        ("2002::/16", "embedded"),
    ];
    table.iter().find(|(range, _)| contains(range, address)).map(|(_, name)| *name)
}

/// The public internet among the addresses that are tried.
fn public(address: IpAddr) -> bool {
    ["8.0.0.0/8", "1.0.0.0/8", "2606:4700::/31"].iter().any(|range| contains(range, address))
}
