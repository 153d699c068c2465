//! Small worlds.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use jiff::Timestamp;
use ulid::Ulid;
use warren_model::policy::{
    Destination, Directory, Flow, Member, NetworkEntry, Policy, Ports, Protocol, Verdict, evaluate, read,
};
use warren_model::record::Egress;
use warren_model::{Label, MachineId, MemberNumber, NetworkId, NetworkNumber, UlaPrefix};

pub const ULA: [u8; 5] = [1, 2, 3, 4, 5];

/// Noon of the first day of 2026.
pub fn now() -> Timestamp {
    "2026-01-01T12:00:00Z".parse().unwrap()
}

pub fn label(text: &str) -> Label {
    text.parse().unwrap()
}

/// Adds a network; its number is its place.
pub fn network(directory: &mut Directory, name: &str, cidr: &str, egress: Egress) {
    let number = NetworkNumber::new(directory.networks.len() as u16 + 1).unwrap();
    let entry = NetworkEntry {
        id: NetworkId::from_ulid(Ulid::from_parts(0, u128::from(number.get()))),
        number,
        cidr: cidr.parse().unwrap(),
        cidr6: UlaPrefix::from_random(ULA).network(number),
        egress,
    };
    directory.networks.insert(label(name), entry);
}

/// Adds a member: `dev/db@10.0.1.2 tag tag`.
pub fn member(directory: &mut Directory, text: &str) {
    let mut words = text.split_whitespace();
    let (place, ipv4) = words.next().unwrap().split_once('@').unwrap();
    let (network, name) = place.split_once('/').unwrap();
    let entry = &directory.networks[&label(network)];
    let count = directory.members.iter().filter(|member| member.network == label(network)).count();
    let number = MemberNumber::new(count as u32 + 2).unwrap();
    directory.members.push(Member {
        id: MachineId::from_ulid(Ulid::from_parts(1, directory.members.len() as u128)).into(),
        network: label(network),
        name: label(name),
        number,
        ipv4: ipv4.parse().unwrap(),
        ipv6: Ipv6Addr::from(u128::from(entry.cidr6.network()) | u128::from(number.get())),
        tags: words.map(|tag| tag.parse().unwrap()).collect(),
    });
}

/// `dev` and `prod` with closed egress, `lab` with open egress; `twin` has the range of `dev`.
pub fn world() -> Directory {
    let mut directory = Directory::default();
    network(&mut directory, "dev", "10.0.0.0/16", Egress::Deny);
    network(&mut directory, "prod", "10.1.0.0/16", Egress::Deny);
    network(&mut directory, "lab", "10.2.0.0/16", Egress::Open);
    network(&mut directory, "twin", "10.0.0.0/16", Egress::Deny);
    for text in [
        "dev/agent@10.0.1.1 agent",
        "dev/agent-2@10.0.1.2 agent",
        "dev/db@10.0.2.1 db",
        "dev/web@10.0.3.1 web",
        "prod/db@10.1.2.1 db",
        "prod/api@10.1.3.1 api",
        "lab/rat@10.2.1.1 agent",
        "lab/mouse@10.2.1.2",
        "twin/agent@10.0.1.1 agent",
    ] {
        member(&mut directory, text);
    }
    directory
}

pub fn find<'d>(directory: &'d Directory, place: &str) -> &'d Member {
    let (network, name) = place.split_once('/').unwrap();
    let found = directory.members.iter().find(|member| member.network == label(network) && member.name == label(name));
    found.unwrap_or_else(|| panic!("no {place}"))
}

pub fn policy(text: &str) -> Policy {
    read(text).unwrap_or_else(|errors| panic!("{errors:#?}\n{text}")).policy
}

/// Judges `dev/agent` to `prod/db`, an address or a name, on `tcp/5432`, `icmp` or `other`.
pub fn judge(policy: &Policy, directory: &Directory, from: &str, to: &str, port: &str) -> Verdict {
    let (protocol, port) = match port {
        "other" => (Protocol::Other, None),
        text => {
            let ports: Ports = text.parse().unwrap();
            (ports.protocol, ports.single())
        }
    };
    let name = to.parse();
    let to = match (to.parse::<IpAddr>(), &name) {
        (Ok(address), _) => Destination::Address(address),
        (Err(_), Ok(name)) => Destination::Name(name),
        (Err(_), Err(_)) => Destination::Member(find(directory, to)),
    };
    let flow = Flow { from: find(directory, from), to, protocol, port };
    evaluate(policy, directory, &flow, now())
}

pub fn keys(names: &[&str]) -> BTreeSet<Label> {
    names.iter().map(|name| label(name)).collect()
}
