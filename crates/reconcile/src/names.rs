//! What follows from the records for names: the files in a machine and a network's DNS view. Pure.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;

use warren_edge::{NameRecord, NetworkView};
use warren_model::UlaPrefix;
use warren_model::record::{Egress, Machine, Network, Power};
use warren_runtime::agent::{GuestConfig, GuestFile};

/// How many members the facts list by name; more are counted, and found through DNS.
pub const FACTS_LIST: usize = 200;

/// The part of the facts that is the same for every member of a network.
pub fn network_facts<'a>(
    network: &Network,
    ula: UlaPrefix,
    members: impl Iterator<Item = &'a Machine> + Clone,
) -> String {
    let there = members.filter(|machine| machine.power != Power::Gone);
    let total = there.clone().count();
    let mut text = String::new();
    let egress = match network.egress {
        Egress::Deny => "denied: there is no way out of this network",
        Egress::Open => "open to the public internet; private ranges are not reachable",
    };
    // Writing to a String cannot fail, so the results are of no interest.
    let _ = writeln!(text, "## Network {}", network.name);
    let _ = writeln!(text);
    let _ = writeln!(text, "- Range: {} and {}", network.cidr, ula.network(network.number));
    let _ = writeln!(text, "- DNS: {} and {}", network.cidr.gateway(), ula.gateway(network.number));
    let _ = writeln!(text, "- Egress: {egress}");
    let _ = writeln!(text);
    let _ = writeln!(text, "## Members ({total})");
    let _ = writeln!(text);
    for machine in there.take(FACTS_LIST) {
        let _ = writeln!(text, "- {}: {}, {}", machine.hostname(), machine.ipv4, machine.ipv6(ula, network.number));
        for port in &machine.ports {
            let protocol = format!("{:?}", port.protocol).to_ascii_lowercase();
            let _ = writeln!(text, "  - {}: {protocol}://{}:{}", port.name, machine.ipv4, port.port);
        }
    }
    if total > FACTS_LIST {
        let _ = writeln!(text, "- and {} more: ask DNS for NAME.vm.internal", total - FACTS_LIST);
    }
    text
}

/// The names and files that a machine is given.
pub fn guest_config(machine: &Machine, network: &Network, ula: UlaPrefix, network_facts: &str) -> GuestConfig {
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
        "# This machine\n\n- Name: {}\n- Address: {}, {}\n- 48-bit address: {}\n\n{network_facts}",
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

/// What the edge answers for a network. The generation is a hash of the content, so that a daemon that comes back can
/// tell whether the edge already has it.
pub fn network_view<'a>(
    network: &Network,
    ula: UlaPrefix,
    members: impl Iterator<Item = &'a Machine>,
    resolvers: &[SocketAddr],
) -> NetworkView {
    let names: Vec<NameRecord> = members
        .filter(|machine| machine.power != Power::Gone)
        .map(|machine| NameRecord {
            name: machine.hostname(),
            ipv4: machine.ipv4,
            ipv6: machine.ipv6(ula, network.number),
        })
        .collect();
    let forward = match network.egress {
        Egress::Deny => Vec::new(),
        Egress::Open => resolvers.to_vec(),
    };
    let mut hasher = DefaultHasher::new();
    (network.number, network.cidr, ula, &forward).hash(&mut hasher);
    for name in &names {
        (&name.name, name.ipv4, name.ipv6).hash(&mut hasher);
    }
    NetworkView {
        number: network.number,
        generation: hasher.finish(),
        gateway4: network.cidr.gateway(),
        gateway6: ula.gateway(network.number),
        cidr: network.cidr,
        cidr6: ula.network(network.number),
        names,
        forward,
    }
}
