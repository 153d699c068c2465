//! What a machine is told of the place where it is: `/etc/warren/facts.md`. Pure.
//!
//! It says what the machine could find out by asking, and nothing that does not exist for it.

use std::fmt::{self, Write as _};

use warren_edge::PROXY_PORT;
use warren_model::UlaPrefix;
use warren_model::policy::compile::{Carrier, Default as Treatment, OUTSIDE};
use warren_model::policy::{Group, NameRule, PortRange, Ports};
use warren_model::record::{Network, Protocol};

use crate::sight::{Known, Sight};

/// How many members the facts list by name; more are counted, and found through DNS.
pub const MEMBERS_LIST: usize = 200;
/// How many names or ranges outside the facts list; more are counted.
pub const OUTSIDE_LIST: usize = 100;

/// The part of the facts that is the same for every member of a group.
pub(crate) fn of_group(network: &Network, ula: UlaPrefix, sight: &Sight, group: Group) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail, so the result is of no interest.
    let _ = write(&mut text, network, ula, sight, group);
    text
}

fn write(text: &mut String, network: &Network, ula: UlaPrefix, sight: &Sight, group: Group) -> fmt::Result {
    let rules = &sight.rules;
    let (names, ranges) = (rules.names.get(&group).map_or(&[][..], Vec::as_slice), ranges(sight, group));
    let some = !ranges.is_empty() || names.iter().any(|rule| !rule.forbid);
    let egress = match rules.outside {
        Treatment::Accept => "open to the public internet; private ranges are not reachable",
        Treatment::Refuse if some => "denied, except to what is listed below",
        Treatment::Refuse => "denied: there is no way out of this network",
    };
    writeln!(text, "## Network {}\n", network.name)?;
    writeln!(text, "- Range: {} and {}", network.cidr, ula.network(network.number))?;
    writeln!(text, "- DNS: {} and {}", network.cidr.gateway(), ula.gateway(network.number))?;
    writeln!(text, "- Egress: {egress}")?;
    members(text, sight, group)?;
    outside(text, network, ula, names, &ranges)?;
    refusals(text)
}

fn members(text: &mut String, sight: &Sight, group: Group) -> fmt::Result {
    let (seen, total) = sight.seen_by(group, MEMBERS_LIST);
    writeln!(text, "\n## Members ({total})\n")?;
    if sight.scoped {
        writeln!(text, "Only those with whom policy allows traffic are listed, and only they have names here.")?;
        if total > 0 {
            writeln!(text)?;
        }
    }
    for known in seen {
        let Known { machine, ipv4, ipv6, network, .. } = known;
        let network = network.as_ref().map(|network| format!(" (network {network})")).unwrap_or_default();
        let four = ipv4.map(|ipv4| format!("{ipv4}, ")).unwrap_or_default();
        writeln!(text, "- {}{network}: {four}{ipv6}", machine.hostname())?;
        // Who is met only as far as rules say is met on some ports.
        let ruled = sight.scoped || known.network.is_some();
        let open: Vec<(Carrier, PortRange)> = sight.open(group, known.group).collect();
        for port in &machine.ports {
            let carrier = if port.protocol == Protocol::Udp { Carrier::Udp } else { Carrier::Tcp };
            if ruled && !open.iter().any(|(on, range)| *on == carrier && range.contains(port.port)) {
                continue;
            }
            let protocol = port.protocol.as_str();
            match ipv4 {
                Some(ipv4) => writeln!(text, "  - {}: {protocol}://{ipv4}:{}", port.name, port.port)?,
                None => writeln!(text, "  - {}: {protocol}://[{ipv6}]:{}", port.name, port.port)?,
            }
        }
        if ruled && open.is_empty() {
            writeln!(text, "  - it may reach this machine, but not the other way round")?;
        } else if ruled {
            writeln!(text, "  - may be reached on {}", listed(open.into_iter()))?;
        }
    }
    if total > MEMBERS_LIST {
        writeln!(text, "- and {} more: ask DNS for NAME.vm.internal", total - MEMBERS_LIST)?;
    }
    Ok(())
}

fn outside(
    text: &mut String,
    network: &Network,
    ula: UlaPrefix,
    names: &[NameRule],
    ranges: &[(String, String)],
) -> fmt::Result {
    if names.is_empty() && ranges.is_empty() {
        return Ok(());
    }
    writeln!(text, "\n## Outside")?;
    for (title, forbid) in [("Names that may be reached", false), ("Names that may not, even if listed above", true)] {
        let rules: Vec<&NameRule> = names.iter().filter(|rule| rule.forbid == forbid).collect();
        let lines = rules.iter().map(|rule| {
            let ports: Vec<String> = rule.ports.iter().map(Ports::to_string).collect();
            let ports = if ports.is_empty() { "tcp".to_owned() } else { ports.join(", ") };
            format!("{} on {ports} (rule {})", rule.pattern, rule.id)
        });
        list(text, title, rules.len(), lines)?;
    }
    list(
        text,
        "Addresses that may be reached",
        ranges.len(),
        ranges.iter().map(|(range, on)| format!("{range} on {on}")),
    )?;
    if names.iter().any(|rule| !rule.forbid) {
        writeln!(
            text,
            "\nNothing has to be set up for these names: connections to them are let through as they are. Tools that want a \
             proxy find one, with the same rules, at http://gateway.internal:{PROXY_PORT}. It does not lead to members, and \
             many programs understand no ranges in no_proxy, so its variables are not set. For one command:\n"
        )?;
        let proxy = format!("http://{}:{PROXY_PORT}", network.cidr.gateway());
        let own = format!("localhost,127.0.0.1,::1,.internal,{},{}", network.cidr, ula.network(network.number));
        writeln!(text, "    # https_proxy={proxy} http_proxy={proxy} no_proxy={own} COMMAND")?;
    }
    Ok(())
}

fn refusals(text: &mut String) -> fmt::Result {
    writeln!(
        text,
        "\n## What a refusal looks like\n\n\
         - A name that is not allowed does not exist: NXDOMAIN, with the reason as an extended DNS error.\n\
         - A request over HTTP or to the proxy gets 403 and a JSON document with the rule and the reason; to curl, an HTTPS \
         one says `CONNECT tunnel failed, response 403`.\n\
         - Other connections by name are reset, TLS ones with an alert.\n\
         - A connection to an address that is not allowed fails at once: reset, or \"administratively prohibited\".\n\
         - It is policy and no fault: trying again changes nothing, and whoever runs this machine sees the refusal."
    )
}

/// The ranges outside that a group may reach, and on what. None where egress is open.
fn ranges(sight: &Sight, group: Group) -> Vec<(String, String)> {
    if sight.rules.outside == Treatment::Accept {
        return Vec::new();
    }
    let classes = sight.rules.classes.iter().map(|(range, class)| (range.to_string(), *class));
    let rest = std::iter::once(("every other public address".to_owned(), OUTSIDE));
    let on = |class| Some(listed(sight.open(group, class))).filter(|on| !on.is_empty());
    classes.chain(rest).filter_map(|(range, class)| Some((range, on(class)?))).collect()
}

fn list(text: &mut String, title: &str, total: usize, lines: impl Iterator<Item = String>) -> fmt::Result {
    if total == 0 {
        return Ok(());
    }
    writeln!(text, "\n{title}:\n")?;
    for line in lines.take(OUTSIDE_LIST) {
        writeln!(text, "- {line}")?;
    }
    if total > OUTSIDE_LIST {
        writeln!(text, "- and {} more", total - OUTSIDE_LIST)?;
    }
    Ok(())
}

fn listed(open: impl Iterator<Item = (Carrier, PortRange)>) -> String {
    let text = |(carrier, PortRange { first, last }): (Carrier, PortRange)| {
        let carrier = match carrier {
            Carrier::Tcp => "tcp",
            Carrier::Udp => "udp",
            Carrier::Icmp => "icmp",
            Carrier::Other => "other protocols",
        };
        match (first, last) {
            (0, u16::MAX) => carrier.to_owned(),
            (first, last) if first == last => format!("{carrier}/{first}"),
            (first, last) => format!("{carrier}/{first}-{last}"),
        }
    };
    open.map(text).collect::<Vec<_>>().join(", ")
}
