use warren_model::policy::{Directory, HostLimits, TestOutcome, run_tests};
use warren_model::record::Egress;

use super::common::{network, now, policy, world};

fn outcomes(rules: &str, tests: &[&str], directory: &Directory) -> Vec<TestOutcome> {
    let tests: String = tests.iter().map(|test| format!("- {{{test}}}\n")).collect();
    run_tests(&policy(&format!("{rules}\ntests:\n{tests}")), directory, now())
}

#[track_caller]
fn assert_passed(rules: &str, tests: &[(&str, bool)]) {
    let texts: Vec<&str> = tests.iter().map(|(test, _)| *test).collect();
    for (outcome, (test, expected)) in outcomes(rules, &texts, &world()).iter().zip(tests) {
        assert_eq!(outcome.passed, *expected, "{test}: {outcome:#?}");
    }
}

#[test]
fn a_test_holds_for_every_pair() {
    assert_passed(
        "networks: {dev: {intra: deny}}
allow:
- {id: a, from: dev/tag:agent, to: dev/tag:db, ports: [tcp/5432]}
- {id: b, from: dev/tag:agent, to: dev/tag:agent}",
        &[
            ("from: dev/tag:agent, to: dev/tag:db, port: tcp/5432, expect: allow, by: a", true),
            ("from: dev/tag:agent, to: dev/tag:db, port: tcp/5432, expect: allow, by: b", false),
            ("from: dev/tag:agent, to: dev/tag:agent, port: tcp/22, expect: allow, by: b", true),
            ("from: net:dev, to: dev/tag:db, port: tcp/5432, expect: allow", false),
            ("from: net:dev, to: dev/tag:db, port: tcp/5432, expect: deny", false),
            ("from: dev/web, to: net:dev, port: icmp, expect: deny", true),
            ("from: 10.0.1.0/24, to: 10.0.2.1, port: tcp/5432, expect: allow", true),
            ("from: 10.0.0.0/16, to: 10.0.2.1, port: tcp/5432, expect: allow", false),
        ],
    );
}

#[test]
fn a_test_about_ports_holds_for_each_of_them() {
    assert_passed(
        "networks: {dev: {intra: deny}}
allow: [{id: a, from: dev/web, to: dev/db, ports: [tcp/20-30]}]
forbid: [{id: f, from: dev/web, to: dev/db, ports: [tcp/25]}]",
        &[
            ("from: dev/web, to: dev/db, port: tcp/20-24, expect: allow", true),
            ("from: dev/web, to: dev/db, port: tcp/20-30, expect: allow", false),
            ("from: dev/web, to: dev/db, port: tcp/20-30, expect: deny", false),
            ("from: dev/web, to: dev/db, port: tcp/31-65535, expect: deny", true),
            ("from: dev/web, to: dev/db, port: tcp, expect: deny", false),
            ("from: dev/web, to: dev/db, port: udp, expect: deny", true),
        ],
    );
}

#[test]
fn a_test_about_a_range_holds_for_each_address() {
    assert_passed(
        "allow: [{id: a, from: dev/web, to: 8.8.0.0/16}]
forbid: [{id: f, from: dev/web, to: 8.8.8.8}]",
        &[
            ("from: dev/web, to: 8.8.4.0/24, port: tcp/53, expect: allow", true),
            ("from: dev/web, to: 8.8.8.0/24, port: tcp/53, expect: allow", false),
            ("from: dev/web, to: 8.8.8.0/29, port: tcp/53, expect: allow", true),
            ("from: dev/web, to: 8.8.8.8, port: tcp/53, expect: deny, by: f", true),
            ("from: dev/web, to: 9.0.0.0/8, port: tcp/53, expect: deny", true),
            ("from: dev/web, to: 169.254.169.254, port: tcp/80, expect: deny, by: \"builtin:metadata\"", true),
            ("from: lab/rat, to: 8.0.0.0/7, port: tcp/53, expect: allow, by: \"builtin:open-egress\"", true),
            ("from: lab/rat, to: 192.0.0.0/8, port: tcp/53, expect: allow", false),
        ],
    );
}

#[test]
fn a_test_about_names_is_judged() {
    assert_passed(
        "allow: [{id: gh, from: dev/tag:agent, to: {name: \"*.github.com\"}, ports: [tcp/443]}]",
        &[
            ("from: dev/tag:agent, to: {name: api.github.com}, port: tcp/443, expect: allow, by: gh", true),
            ("from: dev/tag:agent, to: {name: api.github.com}, port: tcp/22, expect: deny", true),
            ("from: dev/tag:agent, to: {name: api.github.com}, port: udp/443, expect: deny", true),
            ("from: net:dev, to: {name: api.github.com}, port: tcp/443, expect: allow", false),
        ],
    );
}

#[test]
fn a_test_may_be_written_before_anybody_is_there() {
    let mut directory = Directory::default();
    network(&mut directory, "dev", "10.0.0.0/16", Egress::Deny);
    network(&mut directory, "prod", "10.1.0.0/16", Egress::Deny);
    let rules = "networks: {dev: {intra: deny}}
allow:
- {id: a, from: dev/tag:agent, to: dev/tag:db, ports: [tcp/5432]}
- {id: b, from: dev/10.0.7.7, to: prod/api}
- {id: c, from: dev/tag:agent, to: dev/tag:agent}";
    let tests = [
        ("from: dev/tag:agent, to: dev/tag:db, port: tcp/5432, expect: allow, by: a", true),
        ("from: dev/tag:other, to: dev/tag:db, port: tcp/5432, expect: deny", true),
        ("from: net:dev, to: dev/tag:db, port: tcp/5432, expect: deny", true),
        ("from: 10.0.7.7, to: prod/api, port: tcp/1, expect: allow, by: b", true),
        ("from: 10.0.7.8, to: prod/api, port: tcp/1, expect: deny", true),
        ("from: dev/tag:agent, to: dev/tag:agent, port: tcp/1, expect: allow, by: c", true),
        ("from: dev/one, to: dev/two, port: tcp/1, expect: deny", true),
        ("from: dev/one, to: 10.0.9.9, port: tcp/1, expect: deny", true),
        ("from: 192.168.0.1, to: dev/two, port: tcp/1, expect: deny", false),
    ];
    let texts: Vec<&str> = tests.iter().map(|(test, _)| *test).collect();
    for (outcome, (test, expected)) in outcomes(rules, &texts, &directory).iter().zip(tests) {
        assert_eq!(outcome.passed, expected, "{test}: {outcome:#?}");
    }
}

#[test]
fn the_hosts_own_addresses_count_only_in_a_test_about_them() {
    let addresses = ["8.8.4.0".parse().unwrap(), "8.8.4.4".parse().unwrap()].into();
    let directory = Directory { host: HostLimits { addresses, private_ranges: None }, ..world() };
    let rules = "allow: [{id: a, from: dev/web, to: 8.8.0.0/16}]";
    let tests = [
        ("from: dev/web, to: 8.8.4.0/24, port: tcp/53, expect: allow, by: a", true),
        ("from: dev/web, to: 8.8.4.4, port: tcp/53, expect: deny, by: \"builtin:host\"", true),
        ("from: dev/web, to: 8.8.4.4, port: tcp/53, expect: allow", false),
    ];
    let texts: Vec<&str> = tests.iter().map(|(test, _)| *test).collect();
    for (outcome, (test, expected)) in outcomes(rules, &texts, &directory).iter().zip(tests) {
        assert_eq!(outcome.passed, expected, "{test}: {outcome:#?}");
    }
}
