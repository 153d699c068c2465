use warren_model::policy::read;

use super::common::{keys, now, policy, world};

fn errors(text: &str) -> Vec<String> {
    match read(text).unwrap().check(&world(), &keys(&["platform", "data"]), now()) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

#[track_caller]
fn assert_refused(text: &str, expected: &[&str]) {
    let errors = errors(text);
    assert_eq!(errors.len(), expected.len(), "{errors:#?}");
    for (error, expected) in errors.iter().zip(expected) {
        assert!(error.starts_with(expected), "{error:?} is not {expected:?}");
    }
}

#[test]
fn what_fits_passes() {
    let text = "networks: {dev: {intra: deny}, lab: {}}
tagOwners: {agent: [platform], future: [data]}
forbid: [{id: f, from: net:dev, to: net:prod}]
allow:
- {id: a, from: dev/tag:agent, to: dev/tag:db, ports: [tcp/5432]}
- {id: b, from: dev/tag:future, to: dev/machine-to-come}
- {id: c, from: dev/tag:operator, to: dev/tag:db}
tests: [{from: dev/tag:agent, to: dev/tag:db, port: tcp/5432, expect: allow, by: a}]";
    assert_refused(text, &[]);
}

#[test]
fn unknown_networks_tags_owners_and_rules_are_found_where_they_stand() {
    assert_refused(
        "networks: {dve: {}}
tagOwners: {db: [platfrom, nobody]}
forbid: [{id: f, from: net:nowhere, to: prod/tag:agnet}]
allow: [{id: a, from: nowhere/10.0.0.0/8, to: {name: a.example}}]
tests: [{from: dev/tag:agent, to: elsewhere/db, port: tcp/1, expect: deny, by: aa}]",
        &[
            "line 1, column 12: there is no network dve; did you mean dev?",
            "line 2, column 18: there is no key platfrom in this account; did you mean platform?",
            "line 2, column 28: there is no key nobody in this account",
            "line 3, column 24: there is no network nowhere",
            "line 3, column 41: nobody has the tag agnet, and tagOwners does not list it; did you mean agent?",
            "line 4, column 23: there is no network nowhere",
            "line 5, column 35: there is no network elsewhere",
            "line 5, column 80: there is no rule aa; did you mean a?",
        ],
    );
}

#[test]
fn a_name_cannot_be_forbidden_where_egress_is_open() {
    assert_refused(
        "forbid:
- {id: f, from: lab/tag:agent, to: {name: a.example}}
- {id: g, from: dev/tag:agent, to: {name: a.example}}
- {id: h, from: 10.0.0.0/8, to: {name: a.example}}
- {id: i, from: lab/rat, to: {name: a.example}, expires: 2025-12-31T00:00:00Z}",
        &[
            "line 2, column 36: forbidding a.example cannot be enforced: lab has open egress",
            "line 4, column 33: forbidding a.example cannot be enforced: lab has open egress",
        ],
    );
}

#[test]
fn an_allowing_rule_of_which_nothing_is_left_is_a_contradiction() {
    assert_refused(
        "forbid:
- {id: prod, from: net:dev, to: net:prod}
- {id: low, from: dev/web, to: dev/db, ports: [tcp/1-1000]}
- {id: high, from: net:dev, to: dev/db, ports: [tcp/1001-65535]}
- {id: names, from: net:dev, to: {name: \"**.example.com\"}}
- {id: range, from: 10.0.0.0/8, to: 8.8.0.0/16}
- {id: brief, from: dev/db, to: dev/web, expires: 2026-02-01T00:00:00Z}
allow:
- {id: a1, from: dev/tag:agent, to: prod/tag:db, ports: [tcp/5432]}
- {id: a2, from: dev/web, to: dev/db, ports: [tcp/900-1100]}
- {id: a3, from: dev/web, to: dev/db, ports: [tcp/900-1100, udp/1]}
- {id: a4, from: dev/agent, to: dev/db, ports: [tcp/900-1100]}
- {id: a5, from: dev/agent, to: {name: api.example.com}}
- {id: a6, from: dev/agent, to: {name: \"*.b.example.com\"}}
- {id: a7, from: dev/agent, to: {name: example.com}}
- {id: a8, from: 10.0.0.0/16, to: 8.8.8.8}
- {id: a9, from: net:dev, to: 8.8.8.8}
- {id: a10, from: dev/db, to: dev/web}
- {id: a11, from: dev/db, to: dev/web, expires: 2026-01-31T00:00:00Z}
- {id: a12, from: net:prod, to: net:dev}",
        &[
            "line 9, column 3: rule a1 allows nothing: prod forbids all of it",
            "line 10, column 3: rule a2 allows nothing: low with high forbids all of it",
            "line 13, column 3: rule a5 allows nothing: names forbids all of it",
            "line 14, column 3: rule a6 allows nothing: names forbids all of it",
            "line 16, column 3: rule a8 allows nothing: range forbids all of it",
            "line 19, column 3: rule a11 allows nothing: brief forbids all of it",
        ],
    );
}

#[test]
fn a_test_that_fails_is_found_with_what_is_true_instead() {
    assert_refused(
        "allow: [{id: a, from: dev/tag:agent, to: prod/db, ports: [tcp/5432]}]
tests:
- {from: dev/tag:agent, to: prod/db, port: tcp/5432, expect: allow, by: a}
- {from: dev/tag:agent, to: prod/db, port: tcp/5433, expect: allow}
- {from: net:dev, to: prod/db, port: tcp/5432, expect: deny}",
        &[
            "line 4, column 3: test fails: from dev/agent to prod/db on tcp/5433 should be allow, and is denied (no rule allows dev/agent",
            "line 5, column 3: test fails: from dev/agent to prod/db on tcp/5432 should be deny, and is allowed by a",
        ],
    );
}

#[test]
fn a_policy_from_elsewhere_may_not_have_an_id_twice() {
    let mut policy = policy("allow: [{id: a, from: net:dev, to: net:prod}]");
    policy.forbid.push(warren_model::policy::Rule { from: "net:lab".parse().unwrap(), ..policy.allow[0].clone() });
    let findings = warren_model::policy::check(&policy, &world(), &keys(&[]), now()).unwrap_err();
    assert_eq!((findings.len(), findings[0].pointer.as_str()), (1, "/allow/0/id"));
}
