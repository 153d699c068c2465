//! What follows from the records for names: the files in a machine and a network's DNS view. Pure.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};

use warren_edge::{NameRecord, NetworkView};
use warren_model::UlaPrefix;
use warren_model::record::{Egress, Machine, Network, Power};
use warren_runtime::agent::{GuestConfig, GuestFile};

use crate::policy::AccountPolicy;

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
            let protocol = port.protocol.as_str();
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

/// What the edge answers for a network, and whom it lets reach what by name. The generation is a hash of the content, so
/// that a daemon that comes back can tell whether the edge already has it.
pub(crate) fn network_view<'a>(
    network: &Network,
    ula: UlaPrefix,
    members: impl Iterator<Item = &'a Machine>,
    policy: &AccountPolicy,
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
    let rules = policy.rules(network.id);
    let members: Vec<_> = policy.directory.members.iter().filter(|member| member.network == network.name).collect();
    let groups = members.iter().flat_map(|member| [IpAddr::V4(member.ipv4), IpAddr::V6(member.ipv6)]);
    let mut view = NetworkView {
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
        forward,
        names6: ula.names(network.number),
        groups: groups.filter_map(|address| Some((address, *rules.groups.get(&address)?))).collect(),
        members: members.into_iter().cloned().collect(),
        rules: rules.names.clone(),
        resolvers: resolvers.to_vec(),
        policy: policy.hash.clone(),
    };
    let mut hasher = DefaultHasher::new();
    // Everything in a view can be written as JSON, and in one way only.
    serde_json::to_vec(&view).unwrap_or_default().hash(&mut hasher);
    view.generation = hasher.finish();
    view
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};
    use ulid::Ulid;
    use warren_model::record::{DeclaredPort, Limits, Protocol};
    use warren_model::{AccountId, ImageName, MachineId, MemberNumber, NetworkId, NetworkNumber};

    fn network(egress: Egress) -> Network {
        Network {
            id: NetworkId::from_ulid(Ulid::from_parts(1, 1)),
            account: AccountId::from_ulid(Ulid::from_parts(1, 2)),
            name: "lab".parse().unwrap(),
            number: NetworkNumber::FIRST,
            cidr: "192.168.10.0/24".parse().unwrap(),
            egress,
            created_at: jiff::Timestamp::UNIX_EPOCH,
            deleting: false,
        }
    }

    fn machine(number: u32, name: &str, power: Power) -> Machine {
        Machine {
            id: MachineId::from_ulid(Ulid::from_parts(u64::from(number), 3)),
            account: AccountId::from_ulid(Ulid::from_parts(1, 2)),
            network: network(Egress::Deny).id,
            name: name.parse().unwrap(),
            member: MemberNumber::new(number).unwrap(),
            ipv4: std::net::Ipv4Addr::from(0xc0a8_0a00 + number),
            image: ImageName::default_image(),
            limits: Limits { cpus_milli: 1000, memory_mib: 512, disk_gib: None },
            ports: vec![DeclaredPort { name: "web".parse().unwrap(), port: 8080, protocol: Protocol::Http }],
            tags: BTreeSet::new(),
            labels: BTreeMap::new(),
            uid_slot: 8,
            power,
            boot: 1,
            created_at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    fn ula() -> UlaPrefix {
        UlaPrefix::from_random([1, 2, 3, 4, 5])
    }

    #[test]
    fn a_machine_is_told_the_truth() {
        let members =
            [machine(2, "agent", Power::On), machine(3, "worker", Power::Off), machine(4, "old", Power::Gone)];
        let network = network(Egress::Deny);
        let config = guest_config(&members[0], &network, ula(), &network_facts(&network, ula(), members.iter()));
        let files: Vec<String> =
            config.files.iter().map(|file| format!("--- {} {:o}\n{}", file.path, file.mode, file.content)).collect();
        insta::assert_snapshot!(format!("hostname {}\n{}", config.hostname, files.concat()));
    }

    #[test]
    fn a_long_list_of_members_is_cut_and_counted() {
        let members: Vec<Machine> = (2..=252).map(|n| machine(n, &format!("m{n}"), Power::On)).collect();
        let facts = network_facts(&network(Egress::Open), ula(), members.iter());
        assert!(facts.contains("## Members (251)") && facts.contains("- and 51 more"), "{facts}");
        assert_eq!(facts.matches(".vm.internal: ").count(), FACTS_LIST);
    }

    #[test]
    fn a_view_names_who_is_there_and_changes_its_generation_with_them() {
        let members = [machine(2, "agent", Power::On), machine(4, "old", Power::Gone)];
        let resolvers = ["192.0.2.53:53".parse().unwrap()];
        let view = |egress, members: &[Machine]| {
            let network = network(egress);
            let policy = AccountPolicy::of(&network, members, ula());
            network_view(&network, ula(), members.iter(), &policy, &resolvers)
        };
        let sealed = view(Egress::Deny, &members);
        assert_eq!((sealed.names.len(), sealed.members.len()), (1, 1));
        assert!(sealed.forward.is_empty(), "a sealed network asks nobody");
        assert_eq!(sealed.generation, view(Egress::Deny, &members).generation);
        let open = view(Egress::Open, &members);
        assert_eq!(open.forward, resolvers);
        assert_ne!(open.generation, sealed.generation);
        assert_ne!(view(Egress::Deny, &[]).generation, sealed.generation);
    }
}
