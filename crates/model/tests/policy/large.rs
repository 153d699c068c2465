//! Many rules between many machines.

use std::time::Instant;

use warren_model::policy::{
    CompileError, Directory, Expect, Intra, NetworkSettings, Policy, Rule, Target, Test, TestTarget, compile, read,
    run_tests,
};
use warren_model::record::Egress;

use super::common::{keys, label, member, network, now};

/// One network with this many machines.
fn crowd(count: usize) -> Directory {
    let mut directory = Directory::default();
    network(&mut directory, "dev", "10.0.0.0/16", Egress::Deny);
    for index in 0..count {
        member(&mut directory, &format!("dev/m{index}@10.0.{}.{} t{}", index / 250 + 1, index % 250 + 2, index % 10));
    }
    directory
}

fn rule(id: String, from: &str, to: &str, port: u16) -> Rule {
    let to = Target::Inside(to.parse().unwrap());
    let ports = vec![format!("tcp/{port}").parse().unwrap()];
    Rule {
        id: id.parse().unwrap(),
        from: from.parse().unwrap(),
        to,
        ports,
        application: None,
        owner: None,
        expires: None,
        reason: None,
    }
}

/// Rules between machines named one by one, spread evenly.
fn between_machines(rules: usize, machines: usize) -> Policy {
    let settings = NetworkSettings { join: None, intra: Intra::Deny };
    let allow = (0..rules)
        .map(|index| {
            let (from, to) = (index % machines, (index * 7 + index / machines + 1) % machines);
            rule(format!("r{index}"), &format!("dev/m{from}"), &format!("dev/m{to}"), 1000 + (index % 100) as u16)
        })
        .collect();
    Policy { networks: [(label("dev"), settings)].into(), allow, ..Policy::default() }
}

#[test]
fn ten_thousand_rules_between_a_thousand_machines_compile_at_once() {
    let (directory, policy) = (crowd(1000), between_machines(10_000, 1000));
    let before = Instant::now();
    let rules = compile(&policy, &directory, &label("dev"), now()).unwrap();
    let took = before.elapsed();
    println!("compiled {} rules for {} members in {took:?}", policy.allow.len(), directory.members.len());
    assert_eq!(rules.exceptions.len(), 10_000);
    assert_eq!(rules.groups.len(), 2000);
    // Much room: without optimization, and beside other tests.
    assert!(took.as_secs() < 60, "{took:?}");
}

#[test]
fn ten_thousand_rules_are_read_and_checked_at_once() {
    let (directory, mut policy) = (crowd(1000), between_machines(10_000, 1000));
    policy.forbid.push(rule("no".to_owned(), "dev/tag:t1", "dev/tag:t2", 22));
    let text = serde_json::to_string(&policy).unwrap();
    let before = Instant::now();
    let found = read(&text).unwrap();
    let read_in = before.elapsed();
    assert_eq!(found.policy, policy);
    found.check(&directory, &keys(&[]), now()).unwrap();
    println!("read {} bytes in {read_in:?}, checked after {:?}", text.len(), before.elapsed());
}

#[test]
fn rules_that_expand_too_far_are_refused_by_name() {
    let (directory, mut policy) = (crowd(1000), between_machines(10_000, 1000));
    policy.allow.push(rule("everybody".to_owned(), "net:dev", "net:dev", 22));
    let error = compile(&policy, &directory, &label("dev"), now()).unwrap_err();
    let CompileError::TooMany { rule, count, .. } = error else { panic!("{error}") };
    assert_eq!((rule.as_str(), count), ("everybody", 1_000_000));
}

#[test]
fn a_broad_rule_among_few_groups_is_cheap() {
    let directory = crowd(1000);
    let mut policy = between_machines(0, 1000);
    policy.allow.push(rule("everybody".to_owned(), "net:dev", "net:dev", 22));
    policy.allow.push(rule("some".to_owned(), "dev/tag:t1", "dev/tag:t2", 25));
    let rules = compile(&policy, &directory, &label("dev"), now()).unwrap();
    assert_eq!(rules.exceptions.len(), 3 * 3 + 1);
}

#[test]
fn ranges_that_are_cut_into_too_many_pieces_are_refused() {
    let directory = crowd(2);
    let mut policy = between_machines(0, 2);
    policy.allow.push(rule("wide".to_owned(), "net:dev", "fd00::/8", 443));
    for index in 0..5000 {
        policy.forbid.push(rule(format!("hole-{index}"), "net:dev", &format!("fd00:{:x}::1", index + 1), 443));
    }
    let before = Instant::now();
    let error = compile(&policy, &directory, &label("dev"), now()).unwrap_err();
    assert!(matches!(error, CompileError::TooMany { .. }), "{error}");
    assert!(before.elapsed().as_secs() < 60);
}

#[test]
fn tests_that_take_too_long_to_judge_are_refused_in_bounded_time() {
    let directory = crowd(100);
    let mut policy = between_machines(0, 100);
    // Everybody is told apart, and every one of these is compared for every pair.
    policy.allow.extend((0..100).map(|index| rule(format!("m{index}"), &format!("dev/m{index}"), "dev/nobody", 1)));
    policy.forbid.extend((0..10_000).map(|index| rule(format!("f{index}"), "net:dev", "dev/nobody", 22)));
    let test = |from: &str, to: &str| Test {
        from: from.parse().unwrap(),
        to: TestTarget::Inside(to.parse().unwrap()),
        port: "tcp/80".parse().unwrap(),
        expect: Expect::Deny,
        by: None,
    };
    policy.tests = vec![test("net:dev", "net:dev"); 20_000];
    let before = Instant::now();
    let outcomes = run_tests(&policy, &directory, now());
    let took = before.elapsed();
    println!("{} tests were given up after {took:?}", outcomes.len());
    let refused = outcomes.iter().filter(|outcome| outcome.found.reason.contains("name fewer members"));
    assert_eq!(refused.count(), 20_000);
    assert!(took.as_secs() < 120, "{took:?}");

    // What is said about machines one by one is judged, however many rules there are.
    policy.tests = vec![test("dev/m1", "dev/m2"); 1000];
    assert!(run_tests(&policy, &directory, now()).iter().all(|outcome| outcome.passed));
}
