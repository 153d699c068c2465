//! What people are told of policies.

use super::*;
use warren_model::wire::{BuiltinRule, ChangedNetwork, ChangedRule, LiveFlow, Passage, PolicyChange};

fn passage(from: &str, to: &str, ports: &[&str]) -> Passage {
    Passage { from: from.into(), to: to.into(), ports: ports.iter().map(|port| (*port).to_owned()).collect() }
}

fn a_rule(effect: Expect, json: &str) -> PolicyRule {
    PolicyRule { effect, rule: serde_json::from_str(json).unwrap() }
}

#[test]
fn an_apply_says_the_version_and_a_dry_run_what_it_would_change() {
    let mut applied = AppliedPolicy {
        version: 4,
        hash: "0123456789abcdef".into(),
        dry_run: false,
        unchanged: false,
        warnings: vec![],
        change: None,
        cuts: vec![],
    };
    assert_eq!(render_applied(&applied), "version 4 (0123456789ab) is in force\n");
    let opens = Passages { items: vec![passage("dev/agent", "dev/db", &["tcp/5432", "icmp"])], more: 12 };
    applied.change = Some(PolicyChange { opens, closes: Passages::default() });
    applied.cuts =
        vec![LiveFlow { machine: "dev/agent".into(), name: "api.github.com".into(), port: 443, rule: "gh".into() }];
    insta::assert_snapshot!(render_applied(&applied), @r"
    would be version 4 (0123456789ab)
    opens:
      dev/agent -> dev/db  tcp/5432 icmp
      and 12 more
    closes nothing
    cuts open connections:
      dev/agent -> api.github.com tcp/443, allowed by gh
    ");
}

#[test]
fn a_policy_is_shown_so_that_it_can_be_applied_again() {
    let policy = PolicyInForce {
        version: 3,
        hash: "0123456789abcdef".into(),
        text: "allow:\n  - {id: a, from: net:dev, to: net:dev}\n".into(),
        policy: Default::default(),
        applied_at: Some("2026-11-20T09:30:00Z".parse().unwrap()),
        key: Some("key_01".into()),
        rolled_back_from: Some(1),
        builtin: vec![BuiltinRule {
            id: "builtin:intra".into(),
            effect: Expect::Allow,
            network: Some("dev".into()),
            description: "members of dev reach each other".into(),
        }],
        warnings: vec!["rule a is about dev/x, and there is no such machine".into()],
    };
    let shown = render_policy(&policy);
    insta::assert_snapshot!(shown, @r"
    # version 3, 0123456789ab, applied 2026-11-20 09:30:00Z with key_01, version 1 again
    allow:
      - {id: a, from: net:dev, to: net:dev}

    # Built in:
    #   EFFECT  RULE           NETWORK  WHAT IT SAYS
    #   allow   builtin:intra  dev      members of dev reach each other
    # Warning: rule a is about dev/x, and there is no such machine
    ");
    let bare: String = shown.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(bare, policy.text.lines().collect::<String>());
}

#[test]
fn a_difference_is_read_like_a_patch() {
    let old = r#"{"id":"b","from":"dev/tag:agent","to":"dev/tag:db","ports":["tcp/5432"]}"#;
    let new = r#"{"id":"b","from":"dev/tag:agent","to":"dev/tag:db","ports":["tcp/5432","icmp"]}"#;
    let name =
        r#"{"id":"gh","from":"net:dev","to":{"name":"*.github.com"},"ports":["tcp/443"],"as":"tls","owner":"ann"}"#;
    let diff = PolicyDiff {
        from: 2,
        to: 3,
        added: vec![a_rule(Expect::Allow, name)],
        removed: vec![a_rule(Expect::Deny, r#"{"id":"no","from":"net:dev","to":"net:prod"}"#)],
        changed: vec![ChangedRule {
            id: "b".into(),
            before: a_rule(Expect::Allow, old),
            after: a_rule(Expect::Allow, new),
        }],
        networks: vec![ChangedNetwork {
            network: "dev".into(),
            before: None,
            after: Some(serde_json::from_str(r#"{"intra":"deny"}"#).unwrap()),
        }],
        opens: Passages::default(),
        closes: Passages { items: vec![passage("dev/a", "dev/b", &["any"])], more: 0 },
    };
    insta::assert_snapshot!(render_diff(&diff), @r#"
    version 2 -> version 3
    ~ network dev: nothing -> {"intra":"deny"}
    - forbid no: net:dev -> net:prod  any
    - allow b: dev/tag:agent -> dev/tag:db  tcp/5432
    + allow b: dev/tag:agent -> dev/tag:db  tcp/5432 icmp
    + allow gh: net:dev -> name *.github.com  tcp/443  as tls  owner ann
    opens nothing
    closes:
      dev/a -> dev/b  any
    "#);
}

#[test]
fn history_says_which_one_is_in_force() {
    let version = |version, rolled_back_from, current| PolicySummary {
        version,
        hash: "0123456789abcdef".into(),
        applied_at: "2026-11-20T09:30:00Z".parse().unwrap(),
        key: "key_01".into(),
        key_name: (version == 2).then(|| "ci".into()),
        rolled_back_from,
        rules: 10 * version,
        current,
    };
    insta::assert_snapshot!(render_history(&[version(3, Some(1), true), version(2, None, false)]), @r"
    VERSION  APPLIED               KEY     RULES  HASH
          3  2026-11-20 09:30:00Z  key_01     30  0123456789ab  in force; version 1 again
          2  2026-11-20 09:30:00Z  ci         20  0123456789ab
    ");
}

#[test]
fn as_many_failing_tests_as_are_listed_are_not_said_to_be_all() {
    let tested = |tests, failures: usize| TestedPolicy {
        passed: failures == 0,
        tests,
        failures: vec![TextError { line: 1, column: 1, message: "test fails".into() }; failures],
        hash: "0123456789abcdef".into(),
    };
    assert_eq!(render_tested(&tested(250, 100)), "at least 100 of 250 tests fail\n");
    assert_eq!(render_tested(&tested(250, 99)), "99 of 250 tests fail\n");
    assert_eq!(render_tested(&tested(100, 100)), "100 of 100 tests fail\n");
}
