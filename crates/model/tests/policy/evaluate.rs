use warren_model::policy::{Directory, HostLimits, Policy};

use super::common::{judge, policy, world};

/// A sender, a destination, a port, and the rule that decides: `+id` allows, `-id` forbids, `-` is no rule at all.
fn assert_judged(policy: &Policy, cases: &[(&str, &str, &str, &str)]) {
    assert_judged_in(&world(), policy, cases);
}

fn assert_judged_in(directory: &Directory, policy: &Policy, cases: &[(&str, &str, &str, &str)]) {
    for (from, to, port, expected) in cases {
        let verdict = judge(policy, directory, from, to, port);
        let sign = if verdict.allowed { "+" } else { "-" };
        let rule = verdict.rule.map(|rule| rule.to_string()).unwrap_or_default();
        assert_eq!(format!("{sign}{rule}"), *expected, "{from} to {to} on {port}: {}", verdict.reason);
        assert!(!verdict.reason.is_empty());
    }
}

#[test]
fn without_a_policy_a_network_is_open_inside_and_closed_outside() {
    assert_judged(
        &Policy::default(),
        &[
            ("dev/agent", "dev/db", "tcp/5432", "+builtin:intra"),
            ("dev/agent", "10.0.2.1", "other", "+builtin:intra"),
            ("dev/agent", "prod/db", "tcp/5432", "-"),
            ("dev/agent", "10.1.2.1", "tcp/5432", "-"),
            ("dev/agent", "8.8.8.8", "udp/53", "-"),
            ("dev/agent", "example.com", "tcp/443", "-"),
            ("lab/rat", "8.8.8.8", "other", "+builtin:open-egress"),
            ("lab/rat", "example.com", "tcp/443", "+builtin:open-egress"),
            ("lab/rat", "example.com", "udp/443", "-"),
            ("lab/rat", "192.168.0.1", "tcp/80", "-"),
            ("lab/rat", "dev/db", "tcp/5432", "-"),
        ],
    );
}

#[test]
fn what_is_built_in_no_rule_lifts() {
    let policy = policy(
        "allow:
- {id: four, from: net:lab, to: 0.0.0.0/0}
- {id: six, from: net:lab, to: \"::/0\"}
- {id: link-local, from: net:lab, to: 169.254.169.254}",
    );
    assert_judged(
        &policy,
        &[
            ("lab/rat", "169.254.169.254", "tcp/80", "-builtin:metadata"),
            ("lab/rat", "::ffff:169.254.169.254", "tcp/80", "-builtin:metadata"),
            ("lab/rat", "fd00:ec2::254", "tcp/80", "-builtin:metadata"),
            ("lab/rat", "fe80::1", "icmp", "-builtin:metadata"),
            ("lab/rat", "224.0.0.251", "udp/5353", "-builtin:multicast"),
            ("lab/rat", "ff02::fb", "udp/5353", "-builtin:multicast"),
            ("lab/rat", "255.255.255.255", "udp/67", "-builtin:multicast"),
            ("lab/rat", "0.0.0.0", "tcp/7070", "-builtin:loopback"),
            ("lab/rat", "::", "tcp/7070", "-builtin:loopback"),
            ("lab/rat", "127.0.0.1", "tcp/7070", "-builtin:loopback"),
            ("lab/rat", "::ffff:127.0.0.1", "tcp/7070", "-builtin:loopback"),
            ("lab/rat", "64:ff9b::7f00:1", "tcp/7070", "-builtin:loopback"),
            ("lab/rat", "64:ff9b::808:808", "tcp/443", "-builtin:embedded"),
            ("lab/rat", "198.18.0.5", "tcp/443", "-builtin:names"),
            ("lab/rat", "10.2.0.1", "tcp/7070", "-builtin:host"),
            ("lab/rat", "10.2.0.1", "udp/53", "+builtin:gateway"),
            ("lab/rat", "fd01:203:405:3::1", "tcp/3128", "+builtin:gateway"),
            ("lab/rat", "10.2.9.9", "tcp/80", "-"),
            ("lab/rat", "::ffff:8.8.8.8", "udp/53", "+builtin:open-egress"),
            ("lab/rat", "192.168.7.7", "udp/53", "+four"),
            ("lab/rat", "fd77::1", "udp/53", "+six"),
        ],
    );
}

#[test]
fn a_forbidding_rule_wins_over_everything_but_what_is_built_in() {
    let policy = policy(
        "forbid:
- {id: no-db, from: dev/tag:agent, to: dev/db, ports: [tcp/1-5431, tcp/5433-65535]}
- {id: no-dns, from: net:lab, to: 8.8.8.0/24, ports: [udp/53]}
- {id: gone, from: net:dev, to: net:dev, expires: 2026-01-01T12:00:00Z}
allow:
- {id: all, from: net:dev, to: net:dev}
- {id: dns, from: net:lab, to: 8.8.8.8, ports: [udp/53]}",
    );
    assert_judged(
        &policy,
        &[
            ("dev/agent", "dev/db", "tcp/5432", "+builtin:intra"),
            ("dev/agent", "dev/db", "tcp/22", "-no-db"),
            ("dev/agent", "10.0.2.1", "tcp/22", "-no-db"),
            ("dev/agent", "fd01:203:405:1::4", "tcp/22", "-no-db"),
            ("dev/agent", "dev/db", "tcp", "+builtin:intra"),
            ("dev/agent", "dev/db", "icmp", "+builtin:intra"),
            ("dev/web", "dev/db", "tcp/22", "+builtin:intra"),
            ("lab/rat", "8.8.8.8", "udp/53", "-no-dns"),
            ("lab/rat", "8.8.8.8", "tcp/53", "+builtin:open-egress"),
            ("lab/rat", "8.8.9.8", "udp/53", "+builtin:open-egress"),
        ],
    );
}

#[test]
fn a_closed_network_needs_a_rule_for_everything() {
    let policy = policy(
        "networks: {dev: {intra: deny}}
allow:
- {id: db, from: dev/tag:agent, to: dev/tag:db, ports: [tcp/5432]}
- {id: ping, from: net:dev, to: 10.0.0.0/16, ports: [icmp]}
- {id: later, from: dev/web, to: dev/db, expires: 2026-01-01T12:00:01Z}",
    );
    assert_judged(
        &policy,
        &[
            ("dev/agent", "dev/db", "tcp/5432", "+db"),
            ("dev/agent", "dev/db", "udp/5432", "-"),
            ("dev/agent", "dev/db", "tcp/5433", "-"),
            ("dev/db", "dev/agent", "tcp/5432", "-"),
            ("dev/agent", "dev/agent-2", "tcp/22", "-"),
            ("dev/agent", "dev/agent-2", "icmp", "+ping"),
            ("dev/agent", "fd01:203:405:1::3", "icmp", "+ping"),
            ("dev/web", "dev/db", "other", "+later"),
        ],
    );
}

#[test]
fn another_network_is_reached_by_rule_alone_and_by_the_addresses_that_tell_it_apart() {
    let policy = policy(
        "allow:
- {id: to-prod, from: dev/agent, to: 10.1.2.0/24, ports: [tcp/5432]}
- {id: to-api, from: dev/tag:agent, to: prod/api, ports: [tcp/443]}
- {id: to-twin, from: dev/agent, to: net:twin, ports: [tcp/22]}
- {id: by-range, from: dev/agent, to: 10.0.0.0/16, ports: [tcp/80]}
- {id: by-twin-range, from: dev/agent, to: twin/10.0.0.0/16, ports: [tcp/81]}
forbid:
- {id: no-api, from: dev/agent-2, to: net:prod}",
    );
    assert_judged(
        &policy,
        &[
            ("dev/agent", "prod/db", "tcp/5432", "+to-prod"),
            ("dev/agent", "10.1.2.1", "tcp/5432", "+to-prod"),
            ("dev/agent", "fd01:203:405:2::2", "tcp/5432", "+to-prod"),
            ("dev/agent", "10.1.2.99", "tcp/5432", "-"),
            ("dev/agent", "prod/api", "tcp/443", "+to-api"),
            ("dev/agent-2", "prod/api", "tcp/443", "-no-api"),
            ("prod/api", "dev/agent", "tcp/443", "-"),
            ("dev/agent", "twin/agent", "tcp/22", "+to-twin"),
            ("dev/agent", "fd01:203:405:4::2", "tcp/22", "+to-twin"),
            // The same IPv4 address is the own network's.
            ("dev/db", "10.0.1.1", "tcp/22", "+builtin:intra"),
            ("dev/agent", "twin/agent", "tcp/80", "-"),
            ("dev/agent", "twin/agent", "tcp/81", "+by-twin-range"),
        ],
    );
}

#[test]
fn a_name_is_judged_by_rules_about_names() {
    let policy = policy(
        "forbid:
- {id: no-gist, from: dev/tag:agent, to: {name: gist.github.com}}
- {id: no-range, from: net:dev, to: 0.0.0.0/0}
allow:
- {id: gh, from: dev/tag:agent, to: {name: \"*.github.com\"}, ports: [tcp/443]}
- {id: deep, from: dev/web, to: {name: \"**.github.com\"}}",
    );
    assert_judged(
        &policy,
        &[
            ("dev/agent", "api.github.com", "tcp/443", "+gh"),
            ("dev/agent", "api.github.com", "tcp", "+gh"),
            ("dev/agent", "api.github.com", "tcp/22", "-"),
            ("dev/agent", "github.com", "tcp/443", "-"),
            ("dev/agent", "a.b.github.com", "tcp/443", "-"),
            ("dev/agent", "evilgithub.com", "tcp/443", "-"),
            ("dev/agent", "github.com.evil.example", "tcp/443", "-"),
            ("dev/agent", "gist.github.com", "tcp/443", "-no-gist"),
            ("dev/web", "a.b.github.com", "tcp/22", "+deep"),
            ("dev/web", "a.b.github.com", "udp/443", "-"),
            ("dev/web", "a.b.github.com", "icmp", "-"),
            ("dev/db", "api.github.com", "tcp/443", "-"),
        ],
    );
}

#[test]
fn a_protocol_without_a_name_needs_a_rule_without_ports() {
    let policy = policy(
        "networks: {dev: {intra: deny}}
allow:
- {id: ports, from: dev/agent, to: dev/db, ports: [tcp, udp, icmp]}
- {id: all, from: dev/agent, to: dev/web}",
    );
    assert_judged(&policy, &[("dev/agent", "dev/db", "other", "-"), ("dev/agent", "dev/web", "other", "+all")]);
}

#[test]
fn the_reason_of_a_rule_is_said() {
    let policy = policy("forbid: [{id: no, from: net:dev, to: net:dev, reason: frozen until the audit}]");
    let verdict = judge(&policy, &world(), "dev/agent", "dev/db", "tcp/1");
    assert_eq!(verdict.reason, "rule no forbids it: frozen until the audit");
}

#[test]
fn what_its_host_keeps_closed_no_rule_lifts() {
    let addresses = ["203.0.113.9", "8.8.4.4", "192.168.7.1", "2001:4860::4", "10.2.1.1"];
    let host = HostLimits {
        addresses: addresses.map(|address| address.parse().unwrap()).into(),
        private_ranges: Some(["192.168.0.0/16".parse().unwrap()].into_iter().collect()),
    };
    let directory = Directory { host, ..world() };
    let policy = policy(
        "forbid: [{id: no, from: lab/mouse, to: 8.8.4.4}]
allow:
- {id: four, from: net:lab, to: 0.0.0.0/0}
- {id: dev, from: net:dev, to: 8.8.0.0/16}",
    );
    assert_judged_in(
        &directory,
        &policy,
        &[
            ("lab/rat", "8.8.4.4", "tcp/22", "-builtin:host"),
            ("lab/rat", "::ffff:8.8.4.4", "tcp/22", "-builtin:host"),
            ("lab/rat", "2001:4860::4", "tcp/22", "-builtin:host"),
            ("dev/agent", "8.8.4.4", "icmp", "-builtin:host"),
            ("dev/agent", "203.0.113.9", "tcp/22", "-builtin:host"),
            ("lab/rat", "192.168.7.1", "tcp/22", "-builtin:host"),
            ("lab/rat", "192.168.7.2", "tcp/22", "+four"),
            ("lab/rat", "172.16.0.1", "tcp/22", "-builtin:private-range"),
            ("dev/agent", "172.16.0.1", "tcp/22", "-builtin:private-range"),
            ("lab/mouse", "8.8.4.4", "tcp/22", "-no"),
            ("lab/rat", "8.8.8.8", "tcp/22", "+builtin:open-egress"),
            ("dev/agent", "8.8.8.8", "tcp/22", "+dev"),
            // Where a member has it, it is the member's.
            ("lab/mouse", "10.2.1.1", "tcp/22", "+builtin:intra"),
        ],
    );
}
