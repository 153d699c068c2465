//! What follows from the records for names: the files in a machine and a network's DNS view. Pure.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};

use warren_edge::{NameRecord, NetworkView, Operator};
use warren_model::UlaPrefix;
use warren_model::record::{Egress, Machine, Network};
use warren_runtime::agent::{GuestConfig, GuestFile};

use crate::policy::AccountPolicy;
use crate::sight::{Known, Sight};

/// The names and files that a machine is given.
pub fn guest_config(machine: &Machine, network: &Network, ula: UlaPrefix, facts: &str) -> GuestConfig {
    let ipv6 = machine.ipv6(ula, network.number);
    let hosts = format!(
        "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{} {} {}\n{} {} {}\n",
        machine.ipv4,
        machine.hostname(),
        machine.name,
        ipv6,
        machine.hostname(),
        machine.name,
    );
    let resolv = format!("nameserver {}\noptions edns0 timeout:2 attempts:3\n", network.cidr.gateway());
    let facts = format!(
        "# This machine\n\n- Name: {}\n- Address: {}, {}\n- 48-bit address: {}\n\n{facts}",
        machine.hostname(),
        machine.ipv4,
        ipv6,
        machine.address(network.number),
    );
    let file = |path: &str, content: String| GuestFile { path: path.to_owned(), mode: 0o644, content };
    GuestConfig {
        hostname: machine.name.to_string(),
        files: vec![file("/etc/hosts", hosts), file("/etc/resolv.conf", resolv), file("/etc/warren/facts.md", facts)],
    }
}

/// What the edge answers for a network, and whom it lets reach what by name. The generation is a hash of the content, so
/// that a daemon that comes back can tell whether the edge already has it.
pub(crate) fn network_view(
    network: &Network,
    ula: UlaPrefix,
    sight: &Sight,
    policy: &AccountPolicy,
    operators: Vec<Operator>,
    resolvers: &[SocketAddr],
) -> NetworkView {
    let record = |known: &Known| NameRecord {
        name: known.machine.hostname(),
        ipv4: known.ipv4,
        ipv6: known.ipv6,
        scope: (sight.scoped || known.network.is_some()).then_some(known.group),
    };
    let names = sight.own.iter().chain(&sight.linked).map(record).collect();
    let forward = match network.egress {
        Egress::Deny => Vec::new(),
        Egress::Open => resolvers.to_vec(),
    };
    let rules = &sight.rules;
    let members: Vec<_> = policy.directory.members.iter().filter(|member| member.network == network.name).collect();
    let groups = members.iter().flat_map(|member| [IpAddr::V4(member.ipv4), IpAddr::V6(member.ipv6)]);
    stamped(NetworkView {
        account: network.account,
        network: network.id,
        name: network.name.clone(),
        number: network.number,
        generation: 0,
        gateway4: network.cidr.gateway(),
        gateway6: ula.gateway(network.number),
        cidr: network.cidr,
        cidr6: ula.network(network.number),
        names,
        sight: sight.pairs.clone(),
        forward,
        names6: ula.names(network.number),
        groups: groups.filter_map(|address| Some((address, *rules.groups.get(&address)?))).collect(),
        members: members.into_iter().cloned().collect(),
        rules: rules.names.clone(),
        resolvers: resolvers.to_vec(),
        operators,
        policy: policy.hash.clone(),
    })
}

/// The same, with nothing outside that anybody may reach by name.
pub(crate) fn closed_view(view: &NetworkView) -> NetworkView {
    stamped(NetworkView { generation: 0, rules: BTreeMap::new(), forward: Vec::new(), ..view.clone() })
}

fn stamped(mut view: NetworkView) -> NetworkView {
    let mut hasher = DefaultHasher::new();
    // Everything in a view can be written as JSON, and in one way only.
    serde_json::to_vec(&view).unwrap_or_default().hash(&mut hasher);
    view.generation = hasher.finish();
    view
}

#[cfg(test)]
#[path = "names_tests.rs"]
mod tests;
