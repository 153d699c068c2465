use super::*;
use std::net::Ipv4Addr;
use std::sync::Arc;

use ulid::Ulid;
use warren_model::policy::Group;
use warren_model::record::Power;
use warren_model::{MachineId, NetworkId, NetworkNumber};

use crate::facts;
use crate::samples::{machine, network};

/// A second network of the account.
fn other(cidr: &str) -> Network {
    Network {
        id: NetworkId::from_ulid(Ulid::from_parts(1, 7)),
        name: "prod".parse().unwrap(),
        number: NetworkNumber::new(2).unwrap(),
        cidr: cidr.parse().unwrap(),
        ..network(Egress::Deny)
    }
}

/// A machine of [`other`].
fn elsewhere(number: u32, name: &str, network: &Network) -> Machine {
    let ipv4 = Ipv4Addr::from(u32::from(network.cidr.net().network()) + number);
    let id = MachineId::from_ulid(Ulid::from_parts(u64::from(number), 9));
    Machine { id, network: network.id, ipv4, ..machine(number, name, Power::On) }
}

fn ula() -> UlaPrefix {
    UlaPrefix::from_random([1, 2, 3, 4, 5])
}

fn sight(network: &Network, machines: &[Machine], policy: &AccountPolicy) -> Sight {
    let machines: Vec<Arc<Machine>> = machines.iter().cloned().map(Arc::new).collect();
    let own = machines.iter().filter(|machine| machine.network == network.id);
    let find = |id: MachineId| machines.iter().find(|machine| machine.id == id).map(Arc::clone);
    Sight::of(network, ula(), policy.rules(network.id), &policy.directory, own, find)
}

/// What one machine is told of the first of these networks.
fn told(networks: &[&Network], machines: &[Machine], policy: &str, who: &str) -> String {
    let policy = AccountPolicy::of(networks, machines, policy, ula());
    let machine = machines.iter().find(|machine| machine.name.as_str() == who).unwrap();
    let sight = sight(networks[0], machines, &policy);
    facts::of_group(networks[0], ula(), &sight, sight.group(machine.ipv4))
}

/// Which names are there for each of these: the name or the address, and the names.
fn seen(networks: &[&Network], machines: &[Machine], policy: &str) -> Vec<String> {
    let policy = AccountPolicy::of(networks, machines, policy, ula());
    let view = network_view(networks[0], ula(), &sight(networks[0], machines, &policy), &policy, Vec::new(), &[]);
    let group = |machine: &Machine| view.groups.get(&IpAddr::V4(machine.ipv4)).copied();
    let own = machines.iter().filter(|machine| machine.network == networks[0].id && machine.power != Power::Gone);
    own.map(|machine| {
        let scopes = group(machine).and_then(|group| view.sight.get(&group)).cloned().unwrap_or_default();
        let is_there = |record: &&NameRecord| {
            record.name == machine.hostname() || record.scope.is_none_or(|s| scopes.contains(&s))
        };
        let names = view.names.iter().filter(is_there).map(|record| {
            let short = record.name.trim_end_matches(".vm.internal");
            if record.ipv4.is_some() { short.to_owned() } else { format!("{short} (IPv6)") }
        });
        format!("{}: {}", machine.name, names.collect::<Vec<_>>().join(" "))
    })
    .collect()
}

fn tagged(mut machine: Machine, tag: &str) -> Machine {
    machine.tags.insert(tag.parse().unwrap());
    machine
}

fn four() -> Vec<Machine> {
    vec![
        tagged(machine(2, "agent", Power::On), "agent"),
        tagged(machine(3, "db", Power::On), "db"),
        machine(4, "lonely", Power::On),
        machine(5, "old", Power::Gone),
    ]
}

const CLOSED: &str = "networks:\n  lab: {intra: deny}\n";
const SCOPED: &str = "networks:\n  lab: {intra: deny}\nallow:\n  - {id: agent-db, from: lab/tag:agent, to: \
                      lab/tag:db, ports: [tcp/5432]}\n";
const LINKED: &str = "allow:\n  - {id: out, from: lab/tag:agent, to: prod/store, ports: [tcp/8080]}\n  - {id: in, \
                      from: prod/watch, to: lab/tag:db, ports: [icmp]}\n";
const NAMES: &str = "networks:\n  lab: {intra: deny}\nforbid:\n  - {id: no-gist, from: lab/tag:agent, to: {name: \
                     gist.github.com}}\nallow:\n  - {id: gh, from: lab/tag:agent, to: {name: \"*.github.com\"}, ports: \
                     [tcp/443, tcp/22]}\n  - {id: dns, from: lab/tag:db, to: 1.1.1.0/24, ports: [udp/53]}\n";

#[test]
fn a_machine_is_told_the_truth() {
    let members = [machine(2, "agent", Power::On), machine(3, "worker", Power::Off), machine(4, "old", Power::Gone)];
    let network = network(Egress::Deny);
    let config = guest_config(&members[0], &network, ula(), &told(&[&network], &members, "", "agent"));
    let files: Vec<String> =
        config.files.iter().map(|file| format!("--- {} {:o}\n{}", file.path, file.mode, file.content)).collect();
    insta::assert_snapshot!(format!("hostname {}\n{}", config.hostname, files.concat()));
}

#[test]
fn a_machine_is_told_of_those_whom_policy_lets_it_meet() {
    let lab = network(Egress::Deny);
    let told = |who| told(&[&lab], &four(), SCOPED, who);
    insta::assert_snapshot!(format!("{}\n=== db\n{}\n=== lonely\n{}", told("agent"), told("db"), told("lonely")));
}

#[test]
fn a_machine_is_told_of_those_elsewhere_and_how_they_are_reached() {
    let lab = network(Egress::Deny);
    let prod = other("192.168.20.0/24");
    let mut machines = four();
    machines.extend([(2, "store"), (3, "watch"), (4, "vault")].map(|(n, name)| elsewhere(n, name, &prod)));
    let told = |who| told(&[&lab, &prod], &machines, LINKED, who);
    insta::assert_snapshot!(format!("{}\n=== db\n{}", told("agent"), told("db")));
}

#[test]
fn a_machine_is_told_what_it_may_reach_outside() {
    let lab = network(Egress::Deny);
    let told = |who| told(&[&lab], &four(), NAMES, who);
    insta::assert_snapshot!(format!("{}\n=== db\n{}", told("agent"), told("db")));
}

#[test]
fn a_long_list_of_members_is_cut_and_counted() {
    let members: Vec<Machine> = (2..=252).map(|n| machine(n, &format!("m{n}"), Power::On)).collect();
    let lab = network(Egress::Open);
    let everybody = "allow:\n  - {id: all, from: net:lab, to: net:lab}\n";
    for policy in ["", &format!("{CLOSED}{everybody}")] {
        let facts = told(&[&lab], &members, policy, "m2");
        assert!(facts.contains("## Members (251)") && facts.contains("- and 51 more"), "{facts}");
        assert_eq!(facts.matches(".vm.internal: ").count(), facts::MEMBERS_LIST);
    }
}

#[test]
fn members_that_policy_keeps_apart_have_no_names_for_each_other() {
    let lab = network(Egress::Deny);
    let open = ["agent: agent db lonely", "db: agent db lonely", "lonely: agent db lonely"];
    assert_eq!(seen(&[&lab], &four(), ""), open);
    let forbidden = "forbid:\n  - {id: no, from: lab/tag:agent, to: net:lab}\n";
    assert_eq!(seen(&[&lab], &four(), forbidden), open, "who is there by itself is not hidden by a rule");
    assert_eq!(seen(&[&lab], &four(), CLOSED), ["agent: agent", "db: db", "lonely: lonely"]);
    assert_eq!(seen(&[&lab], &four(), SCOPED), ["agent: agent db", "db: agent db", "lonely: lonely"]);
    // What is outside makes nobody visible.
    assert_eq!(seen(&[&lab], &four(), NAMES), ["agent: agent", "db: db", "lonely: lonely"]);
    let undone = format!("{SCOPED}forbid:\n  - {{id: no, from: net:lab, to: net:lab, ports: [tcp]}}\n");
    assert_eq!(seen(&[&lab], &four(), &undone), ["agent: agent", "db: db", "lonely: lonely"]);
}

#[test]
fn members_alike_have_names_for_each_other_only_where_rules_let_them_meet() {
    let lab = network(Egress::Deny);
    let mut machines = four();
    machines.push(tagged(machine(6, "agent2", Power::On), "agent"));
    let seen = |policy: &str| seen(&[&lab], &machines, policy);
    assert_eq!(seen(SCOPED), ["agent: agent db", "db: agent db agent2", "lonely: lonely", "agent2: db agent2"]);
    let peers = format!("{SCOPED}  - {{id: peers, from: lab/tag:agent, to: lab/tag:agent, ports: [tcp/1]}}\n");
    let all = ["agent: agent db agent2", "db: agent db agent2", "lonely: lonely", "agent2: agent db agent2"];
    assert_eq!(seen(&peers), all);
}

#[test]
fn members_of_a_linked_network_have_names_for_those_who_have_traffic_with_them() {
    let lab = network(Egress::Deny);
    for (cidr, ip) in [("192.168.20.0/24", ""), ("192.168.0.0/16", " (IPv6)")] {
        let prod = other(cidr);
        let mut machines = four();
        machines.extend([(2, "store"), (3, "watch"), (4, "vault")].map(|(n, name)| elsewhere(n, name, &prod)));
        let seen = |networks: [&Network; 2], policy: &str| seen(&networks, &machines, policy);
        let agent = format!("agent: agent db lonely store{ip}");
        let db = format!("db: agent db lonely watch{ip}");
        assert_eq!(seen([&lab, &prod], LINKED), [&agent, &db, "lonely: agent db lonely"]);
        let closed = format!("{CLOSED}{LINKED}");
        let (agent, db) = (format!("agent: agent store{ip}"), format!("db: db watch{ip}"));
        assert_eq!(seen([&lab, &prod], &closed), [&agent, &db, "lonely: lonely"]);
        let store = format!("store: store watch vault agent{ip}");
        let watch = format!("watch: store watch vault db{ip}");
        assert_eq!(seen([&prod, &lab], LINKED), [&store, &watch, "vault: store watch vault"]);
    }
}

#[test]
fn a_view_names_who_is_there_and_changes_its_generation_with_them() {
    let members = [machine(2, "agent", Power::On), machine(4, "old", Power::Gone)];
    let resolvers = ["192.0.2.53:53".parse().unwrap()];
    let view = |egress, members: &[Machine], policy: &str| {
        let network = network(egress);
        let policy = AccountPolicy::of(&[&network], members, policy, ula());
        network_view(&network, ula(), &sight(&network, members, &policy), &policy, Vec::new(), &resolvers)
    };
    let sealed = view(Egress::Deny, &members, "");
    assert_eq!((sealed.names.len(), sealed.members.len()), (1, 1));
    assert!(sealed.forward.is_empty(), "a sealed network asks nobody");
    assert_eq!(sealed.generation, view(Egress::Deny, &members, "").generation);
    let open = view(Egress::Open, &members, "");
    assert_eq!(open.forward, resolvers);
    assert_ne!(open.generation, sealed.generation);
    assert_ne!(view(Egress::Deny, &[], "").generation, sealed.generation);
    assert_eq!((&sealed.names[0].scope, &sealed.sight), (&None, &BTreeMap::new()));
    let alone = view(Egress::Deny, &members, CLOSED);
    assert_eq!(alone.names[0].scope, Some(Group(0)));
    assert_ne!(alone.generation, sealed.generation);
}

#[test]
fn a_closed_view_opens_nothing_outside_and_is_another_one() {
    let network = network(Egress::Open);
    let policy = AccountPolicy::of(&[&network], &four(), NAMES, ula());
    let resolvers = ["192.0.2.53:53".parse().unwrap()];
    let view = network_view(&network, ula(), &sight(&network, &four(), &policy), &policy, Vec::new(), &resolvers);
    assert!(view.rules.values().any(|rules| !rules.is_empty()) && !view.forward.is_empty());
    let closed = closed_view(&view);
    assert!(closed.rules.is_empty() && closed.forward.is_empty());
    assert_eq!((&closed.names, &closed.members), (&view.names, &view.members));
    assert_ne!(closed.generation, view.generation);
}
