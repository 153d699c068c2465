//! Policies from apply to rollback.

mod common;

use std::sync::atomic::Ordering;

use common::places::{POLICY, apply, places, strings};
use common::{Answered, lab, lab_with, request};
use serde_json::{Value, json};
use warren_model::wire;
use warren_store::{Typed, schema};

#[tokio::test]
async fn an_account_begins_with_the_empty_policy() {
    let lab = lab().await;
    let policy = lab.get(&lab.root, "/v1/policy").await.expect(200);
    assert_eq!((policy.at("/version"), policy.at("/applied_at")), ("0".into(), "null".into()));
    assert_eq!(policy.at("/hash"), warren_model::policy::Policy::default().hash());
    let ids: Vec<_> =
        policy.body["builtin"].as_array().unwrap().iter().map(|rule| rule["id"].as_str().unwrap()).collect();
    for id in ["intra", "metadata", "multicast", "loopback", "host", "spoofing", "names", "gateway"] {
        assert!(ids.contains(&&*format!("builtin:{id}")), "{id}: {ids:?}");
    }
    assert!(!ids.contains(&"builtin:open-egress"));
    assert_eq!(lab.get(&lab.root, "/v1/policy/versions").await.expect(200).body["items"], json!([]));
    let same = lab.get(&lab.root, "/v1/policy/versions/0").await.expect(200);
    assert_eq!((same.at("/hash"), same.at("/text")), (policy.at("/hash"), policy.at("/text")));
}

#[tokio::test]
async fn an_apply_is_a_version_that_is_waited_for() {
    let lab = places().await;
    let applied = apply(&lab, POLICY).await.expect(200);
    assert_eq!((applied.at("/version"), applied.at("/dry_run")), ("1".into(), "false".into()));
    let asked = lab.boundaries.asked.lock().unwrap().clone();
    assert_eq!(asked.last().unwrap().1, 1);

    let policy = lab.get(&lab.root, "/v1/policy").await.expect(200);
    assert_eq!((policy.at("/text"), policy.at("/hash")), (POLICY.to_owned(), applied.at("/hash")));
    assert_eq!(policy.at("/policy/allow/0/id"), "agent-db");
    assert_eq!(policy.at("/policy/allow/1/to/name"), "*.github.com");
    let intra = policy.body["builtin"].as_array().unwrap().iter().filter(|rule| rule["id"] == "builtin:intra");
    let intra: Vec<_> = intra.map(|rule| rule["network"].as_str().unwrap()).collect();
    assert_eq!(intra, ["default", "prod"], "dev denies it");

    // The same text makes no new version.
    let again = apply(&lab, POLICY).await.expect(200);
    assert_eq!((again.at("/version"), again.at("/unchanged")), ("1".into(), "true".into()));
    assert_eq!(lab.keys_below("policy/").await.len(), 1);

    let events = lab.get(&lab.root, "/v1/events?follow=false&limit=1000").await.expect(200);
    let applied = events.body["items"].as_array().unwrap().iter().filter(|event| event["kind"] == "policy_applied");
    assert_eq!(applied.count(), 1);
    let audits = lab.store.list_all(&schema::audits()).await.unwrap().0;
    let entry = audits.iter().find(|entry| entry.record.action == "policy.apply").unwrap();
    assert_eq!((entry.record.target.as_str(), &entry.record.request["version"]), ("policy/1", &json!(1)));
}

#[tokio::test]
async fn what_is_applied_but_not_yet_enforced_is_said_to_be() {
    let lab = places().await;
    lab.boundaries.stuck.store(true, Ordering::Relaxed);
    let answer = apply(&lab, POLICY).await.expect(504).refused("deadline_exceeded");
    assert!(answer.at("/detail").contains("the edge does not answer"), "{}", answer.text);
    assert_eq!(lab.get(&lab.root, "/v1/policy").await.at("/version"), "1");
}

#[tokio::test]
async fn a_dry_run_says_what_would_open_close_and_be_cut_and_changes_nothing() {
    let lab = places().await;
    let before = lab.stored().await;
    let flow =
        |name: &str| wire::LiveFlow { machine: "dev/agent".into(), name: name.into(), port: 443, rule: "gh".into() };
    *lab.boundaries.flows.lock().unwrap() = vec![flow("api.github.com"), flow("example.com")];
    let body = json!({ "text": POLICY, "dry_run": true });
    let answer = lab.put(&lab.root, "/v1/policy", body).await.expect(200);
    assert_eq!((answer.at("/version"), answer.at("/dry_run")), ("1".into(), "true".into()));
    assert_eq!(
        answer.body["change"],
        json!({
            "opens": { "items": [{ "from": "dev/agent", "to": "*.github.com", "ports": ["tcp/443"] }], "more": 0 },
            "closes": {
                "items": [
                    { "from": "dev/agent", "to": "dev/db", "ports": ["tcp/0-5431", "tcp/5433-65535", "udp", "icmp", "other"] },
                    { "from": "dev/db", "to": "dev/agent", "ports": ["any"] },
                ],
                "more": 0,
            },
        }),
        "{}",
        answer.text
    );
    assert_eq!(answer.body["cuts"].as_array().unwrap().len(), 1);
    assert_eq!(answer.at("/cuts/0/name"), "example.com");
    assert_eq!(lab.stored().await, before);
    assert!(lab.boundaries.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_list_of_changes_is_bounded_and_says_how_many_more_there_are() {
    let lab = lab().await;
    for n in 0..16 {
        lab.post(&lab.root, "/v1/machines", json!({ "name": format!("m{n:02}") })).await.expect(201);
    }
    let body = json!({ "text": "networks: {default: {intra: deny}}", "dry_run": true });
    let answer = lab.put(&lab.root, "/v1/policy", body).await.expect(200);
    let closes = &answer.body["change"]["closes"];
    assert_eq!(closes["items"].as_array().unwrap().len() as u64 + closes["more"].as_u64().unwrap(), 16 * 15);
    assert!(closes["more"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn what_is_wrong_with_a_policy_is_said_with_its_place_and_nothing_is_applied() {
    let lab = places().await;
    apply(&lab, POLICY).await.expect(200);
    let before = lab.stored().await;
    let cases = [
        ("allow: [", "policy_invalid"),
        ("alow: []", "policy_invalid"),
        ("allow:\n  - {id: a, from: net:none, to: net:dev}", "policy_invalid"),
        ("allow:\n  - {id: a, from: dev/tag:nobody, to: net:dev}", "policy_invalid"),
        ("tagOwners: {agent: [stranger]}", "policy_invalid"),
        ("allow:\n  - {id: a, from: net:dev, to: {name: 10.0.0.1}}", "policy_invalid"),
        ("allow:\n  - {id: a, from: net:dev, to: {name: \"*.com\"}}", "policy_invalid"),
        ("tests:\n  - {from: net:dev, to: net:none, port: tcp/1, expect: deny}", "policy_invalid"),
        ("tests:\n  - {from: net:dev, to: net:prod, port: tcp/1, expect: allow}", "policy_test_failed"),
    ];
    for (text, code) in cases {
        let answer = apply(&lab, text).await.expect(422).refused(code);
        let errors: Vec<_> = answer.body["errors"].as_array().unwrap().clone();
        assert!(!errors.is_empty(), "{text}: {}", answer.text);
        for error in &errors {
            assert!(error["line"].as_u64().unwrap() >= 1 && error["column"].as_u64().unwrap() >= 1, "{error}");
        }
        let first = errors[0]["message"].as_str().unwrap();
        assert!(answer.at("/detail").contains(first), "{}", answer.text);
    }
    let two =
        apply(&lab, "allow:\n  - {id: a, from: net:x, to: net:dev}\n  - {id: b, from: net:dev, to: net:y}\n").await;
    let two = two.expect(422).refused("policy_invalid");
    assert_eq!((two.at("/errors/0/line"), two.at("/errors/1/line")), ("2".into(), "3".into()));
    assert!(two.at("/detail").ends_with("(and one more error)"), "{}", two.text);
    assert_eq!(lab.stored().await, before);
    assert_eq!(lab.get(&lab.root, "/v1/policy").await.at("/text"), POLICY);
}

#[tokio::test]
async fn bad_requests_are_refused() {
    let lab = places().await;
    let before = lab.stored().await;
    let long = "x".repeat(400);
    let question = |field: &str, value: Value| {
        let mut body = json!({ "from": "agent", "to": "db", "port": "tcp/1" });
        body[field] = value;
        body
    };
    for (method, path, body, status, code) in [
        ("PUT", "/v1/policy", json!({}), 422, "invalid_request"),
        ("PUT", "/v1/policy", json!({ "text": 1 }), 422, "invalid_request"),
        ("PUT", "/v1/policy", json!({ "text": "{}", "force": true }), 422, "invalid_request"),
        ("PUT", "/v1/policy", json!({ "text": "{}", "based_on": 7 }), 409, "policy_conflict"),
        ("PUT", "/v1/policy", json!({ "text": "x".repeat(1_100_000) }), 422, "policy_invalid"),
        ("PUT", "/v1/policy", json!({ "text": "x".repeat(4_000_000) }), 413, "body_too_large"),
        ("GET", "/v1/policy?x=1", Value::Null, 400, "invalid_query"),
        ("GET", "/v1/policy/versions/1", Value::Null, 404, "policy_version_not_found"),
        ("GET", "/v1/policy/versions/x", Value::Null, 404, "policy_version_not_found"),
        ("GET", "/v1/policy/versions?limit=0", Value::Null, 400, "invalid_query"),
        ("GET", "/v1/policy/versions?cursor=x", Value::Null, 400, "invalid_cursor"),
        ("GET", "/v1/policy/diff?from=5", Value::Null, 404, "policy_version_not_found"),
        ("GET", "/v1/policy/diff?from=-1", Value::Null, 400, "invalid_query"),
        ("POST", "/v1/policy/rollback", json!({ "version": 5 }), 404, "policy_version_not_found"),
        ("POST", "/v1/policy/rollback", json!({}), 422, "invalid_request"),
        ("POST", "/v1/policy/test", json!({ "text": "[" }), 422, "policy_invalid"),
        ("POST", "/v1/policy/test", json!({ "file": "x" }), 422, "invalid_request"),
        ("POST", "/v1/explain", json!({ "from": "agent", "to": "db" }), 422, "invalid_request"),
        ("POST", "/v1/explain", question("more", json!(1)), 422, "invalid_request"),
        ("POST", "/v1/explain", question("port", json!("5432")), 422, "invalid_request"),
        ("POST", "/v1/explain", question("port", json!("tcp/0")), 422, "invalid_request"),
        ("POST", "/v1/explain", question("from", json!("")), 422, "invalid_request"),
        ("POST", "/v1/explain", question("from", json!(long)), 422, "invalid_request"),
        ("POST", "/v1/explain", question("from", json!("none")), 404, "not_found"),
        ("POST", "/v1/explain", question("from", json!("dev/none")), 404, "not_found"),
        ("POST", "/v1/explain", question("from", json!("net:none")), 404, "not_found"),
        ("POST", "/v1/explain", question("from", json!("10.0.0.1/8")), 422, "invalid_request"),
        ("POST", "/v1/explain", question("from", json!("203.0.113.1")), 404, "not_found"),
        ("POST", "/v1/explain", question("from", json!("api.example.com")), 404, "not_found"),
        ("POST", "/v1/explain", question("to", json!("none")), 404, "not_found"),
        ("POST", "/v1/explain", question("to", json!("none.vm.internal")), 404, "not_found"),
        ("POST", "/v1/explain", question("to", json!("a..b")), 422, "invalid_request"),
        ("POST", "/v1/explain", question("to", json!("agent")), 422, "invalid_request"),
        ("GET", "/v1/reach?network=none", Value::Null, 404, "not_found"),
        ("GET", "/v1/reach?colour=red", Value::Null, 400, "invalid_query"),
        ("GET", "/v1/denials?machine=none", Value::Null, 404, "not_found"),
        ("GET", "/v1/denials?after=x", Value::Null, 400, "invalid_query"),
        ("GET", "/v1/denials?limit=1001", Value::Null, 400, "invalid_query"),
        ("GET", "/v1/denials?follow=true&limit=5", Value::Null, 400, "invalid_query"),
        ("GET", "/v1/denials?follow=perhaps", Value::Null, 400, "invalid_query"),
    ] {
        let body = (!body.is_null()).then(|| body.to_string());
        let answer = lab.call(request(method, path, &lab.root, body)).await;
        assert_eq!((answer.status, answer.code()), (status, code), "{method} {path}: {}", answer.text);
        answer.refused(code);
    }
    assert_eq!(lab.stored().await, before);
}

#[tokio::test]
async fn versions_are_kept_compared_and_brought_back() {
    let lab = places().await;
    apply(&lab, POLICY).await.expect(200);
    let second = POLICY.replace("[tcp/5432]", "[tcp/5432, icmp]").replace("  - {id: gh", "  - {id: hub");
    apply(&lab, &second).await.expect(200);
    let back = lab.post(&lab.root, "/v1/policy/rollback", json!({ "version": 1 })).await.expect(200);
    assert_eq!(back.at("/version"), "3");
    assert_eq!(lab.get(&lab.root, "/v1/policy").await.at("/text"), POLICY);

    let first = lab.get(&lab.root, "/v1/policy/versions?limit=2").await.expect(200);
    let shown = |page: &Answered| -> Vec<(u64, Value, bool)> {
        let items = page.body["items"].as_array().unwrap().iter();
        items
            .map(|item| {
                (
                    item["version"].as_u64().unwrap(),
                    item["rolled_back_from"].clone(),
                    item["current"].as_bool().unwrap(),
                )
            })
            .collect()
    };
    assert_eq!(shown(&first), [(3, json!(1), true), (2, Value::Null, false)]);
    let rest =
        lab.get(&lab.root, &format!("/v1/policy/versions?limit=2&cursor={}", first.at("/next"))).await.expect(200);
    assert_eq!((shown(&rest), rest.at("/next")), (vec![(1, Value::Null, false)], "null".into()));
    assert_eq!(lab.get(&lab.root, "/v1/policy/versions/2").await.expect(200).at("/text"), second);

    let diff = lab.get(&lab.root, "/v1/policy/diff?from=1&to=2").await.expect(200);
    assert_eq!((diff.at("/added/0/rule/id"), diff.at("/removed/0/rule/id")), ("hub".into(), "gh".into()));
    assert_eq!((diff.at("/changed/0/id"), diff.at("/changed/0/after/effect")), ("agent-db".into(), "allow".into()));
    assert_eq!(diff.body["opens"]["items"], json!([{ "from": "dev/agent", "to": "dev/db", "ports": ["icmp"] }]));
    assert_eq!(diff.body["closes"]["items"], json!([]), "a rule under another id is no change");
    let newest = lab.get(&lab.root, "/v1/policy/diff").await.expect(200);
    assert_eq!((newest.at("/from"), newest.at("/to")), ("2".into(), "3".into()));
    assert_eq!(newest.body["closes"], diff.body["opens"]);

    let empty = lab.post(&lab.root, "/v1/policy/rollback", json!({ "version": 0 })).await.expect(200);
    assert_eq!(empty.at("/version"), "4");
    assert_eq!(empty.at("/hash"), warren_model::policy::Policy::default().hash());
}

#[tokio::test]
async fn a_rollback_is_checked_anew() {
    let lab = places().await;
    apply(&lab, "allow:\n  - {id: a, from: net:prod, to: net:dev}\n").await.expect(200);
    lab.post(&lab.root, "/v1/policy/rollback", json!({ "version": 0 })).await.expect(200);
    lab.delete(&lab.root, "/v1/networks/prod?force=true").await.expect(204);
    let answer = lab.post(&lab.root, "/v1/policy/rollback", json!({ "version": 1 })).await;
    answer.expect(422).refused("policy_invalid");
    assert_eq!(lab.get(&lab.root, "/v1/policy").await.at("/version"), "2");
}

#[tokio::test]
async fn an_apply_that_was_made_for_another_version_is_a_conflict() {
    let lab = places().await;
    apply(&lab, POLICY).await.expect(200);
    let body = |based_on: u64| json!({ "text": "{}", "based_on": based_on });
    let answer = lab.put(&lab.root, "/v1/policy", body(0)).await.expect(409).refused("policy_conflict");
    assert!(answer.at("/detail").contains("version 1"), "{}", answer.text);
    lab.put(&lab.root, "/v1/policy", body(1)).await.expect(200);
}

#[tokio::test]
async fn applies_at_once_are_all_versions_of_their_own() {
    let lab = places().await;
    let texts: Vec<String> =
        (0..8).map(|n| format!("allow:\n  - {{id: r{n}, from: net:dev, to: net:dev}}\n")).collect();
    let answers = futures::future::join_all(texts.iter().map(|text| apply(&lab, text))).await;
    let mut versions: Vec<u64> =
        answers.into_iter().map(|answer| answer.expect(200).body["version"].as_u64().unwrap()).collect();
    versions.sort();
    assert_eq!(versions, (1..=8).collect::<Vec<_>>());
    assert_eq!(lab.keys_below("policy/").await.len(), 8);
}

#[tokio::test]
async fn tests_run_without_applying() {
    let lab = places().await;
    let test = |body: Value| lab.post(&lab.root, "/v1/policy/test", body);
    let none = test(json!({})).await.expect(200);
    assert_eq!((none.at("/tests"), none.at("/passed")), ("0".into(), "true".into()));
    let good = test(json!({ "text": POLICY })).await.expect(200);
    assert_eq!((good.at("/tests"), good.at("/passed")), ("2".into(), "true".into()));
    let wrong = POLICY.replace("expect: deny", "expect: allow");
    let bad = test(json!({ "text": wrong })).await.expect(200);
    assert_eq!((bad.at("/passed"), bad.at("/failures/0/line")), ("false".into(), "13".into()));
    assert_eq!(lab.get(&lab.root, "/v1/policy").await.at("/version"), "0");
    apply(&lab, POLICY).await.expect(200);
    assert_eq!(test(json!({})).await.expect(200).at("/tests"), "2");
    assert_eq!(lab.call(request("POST", "/v1/policy/test", &lab.root, None)).await.expect(200).at("/tests"), "2");
}

#[tokio::test]
async fn a_network_that_the_policy_names_keeps_its_name() {
    let lab = places().await;
    apply(&lab, POLICY).await.expect(200);
    lab.post(&lab.root, "/v1/networks", json!({ "name": "other" })).await.expect(201);
    let before = lab.stored().await;
    let renamed = lab.patch(&lab.root, "/v1/networks/dev", json!({ "name": "test" })).await;
    let renamed = renamed.expect(409).refused("network_in_policy");
    assert!(renamed.at("/detail").contains("dev"), "{}", renamed.text);
    lab.delete(&lab.root, "/v1/machines/store").await.expect(204);
    lab.delete(&lab.root, "/v1/networks/prod").await.expect(409).refused("network_in_policy");
    lab.patch(&lab.root, "/v1/networks/dev", json!({ "name": "dev" })).await.expect(200);
    lab.patch(&lab.root, "/v1/networks/other", json!({ "name": "another" })).await.expect(200);
    assert_ne!(lab.stored().await, before);

    lab.delete(&lab.root, "/v1/networks/prod?force=true").await.expect(204);
    let warnings = lab.get(&lab.root, "/v1/policy").await.expect(200).body["warnings"].clone();
    assert!(strings(&warnings).iter().any(|warning| warning.contains("no network prod")), "{warnings}");
}

#[tokio::test]
async fn a_rule_about_a_machine_that_is_gone_is_a_warning() {
    let lab = places().await;
    let text = "allow:\n  - {id: a, from: dev/agent, to: dev/db}\n  - {id: old, from: net:dev, to: net:prod, expires: 2020-01-01T00:00:00Z}\n";
    let applied = apply(&lab, text).await.expect(200);
    assert!(
        strings(&applied.body["warnings"]).iter().any(|said| said.contains("rule old expired")),
        "{}",
        applied.text
    );
    lab.delete(&lab.root, "/v1/machines/db").await.expect(204);
    let warnings = lab.get(&lab.root, "/v1/policy").await.expect(200).body["warnings"].clone();
    assert!(strings(&warnings).contains(&"rule a is about dev/db, and there is no such machine"), "{warnings}");
}

#[tokio::test]
async fn a_tag_with_owners_is_given_by_their_keys_only() {
    let lab = places().await;
    apply(&lab, POLICY).await.expect(200);
    let named = |name: &str| lab.post(&lab.root, "/v1/keys", json!({ "name": name }));
    let owner = named("platform").await.expect(201).at("/key");
    let other = named("ci").await.expect(201).at("/key");
    let unnamed = lab.post(&lab.root, "/v1/keys", json!({})).await.expect(201).at("/key");
    let tagged = |name: &str| json!({ "name": name, "network": "dev", "tags": ["agent", "free"] });
    for key in [&other, &unnamed] {
        let answer = lab.post(key, "/v1/machines", tagged("x")).await.expect(403).refused("tag_not_owned");
        assert!(answer.at("/detail").contains("platform"), "{}", answer.text);
    }
    lab.post(&owner, "/v1/machines", tagged("x")).await.expect(201);
    lab.post(&lab.root, "/v1/machines", tagged("y")).await.expect(201);
    let free = json!({ "name": "z", "network": "dev", "tags": ["free"] });
    lab.post(&other, "/v1/machines", free).await.expect(201);

    // Neither given nor taken by a change.
    for tags in [json!(["agent"]), json!(["free", "db"])] {
        lab.patch(&other, "/v1/machines/z", json!({ "tags": tags })).await.expect(403).refused("tag_not_owned");
    }
    lab.patch(&other, "/v1/machines/x", json!({ "tags": ["free"] })).await.expect(403).refused("tag_not_owned");
    lab.patch(&other, "/v1/machines/x", json!({ "tags": ["agent", "free", "more"] })).await.expect(200);
    lab.patch(&owner, "/v1/machines/z", json!({ "tags": ["agent"] })).await.expect(200);
}

#[tokio::test]
async fn private_ranges_are_opened_only_as_far_as_the_operator_permits() {
    let rule = |to: &str| format!("allow:\n  - {{id: lan, from: net:default, to: \"{to}\", ports: [tcp/445]}}\n");
    let closed = lab().await;
    closed.host.forwards.store(true, Ordering::Relaxed);
    for to in ["192.168.0.0/16", "192.168.7.1", "0.0.0.0/0", "fd00:1::/64", "100.64.0.0/10"] {
        let answer = apply(&closed, &rule(to)).await.expect(403).refused("range_not_permitted");
        let detail = answer.at("/detail");
        assert!(detail.contains("rule lan") && detail.contains("--private-range"), "{detail}");
    }
    let detail = apply(&closed, &rule("192.168.0.0/16")).await.at("/detail");
    assert!(detail.contains("reach 192.168.0.0/16,"), "{detail}");
    apply(&closed, &rule("45.33.32.0/24")).await.expect(200);
    apply(&closed, &rule("169.254.0.0/16")).await.expect(200);

    let ranges = ["192.168.0.0/17", "192.168.128.0/17"].map(|range| range.parse().unwrap());
    let open = lab_with(|config| config.private_ranges = ranges.into_iter().collect()).await;
    open.host.forwards.store(true, Ordering::Relaxed);
    // What else is in the last one is the public internet.
    for to in ["192.168.0.0/16", "192.168.7.1", "192.160.0.0/12"] {
        apply(&open, &rule(to)).await.expect(200);
    }
    for to in ["10.0.0.0/8", "0.0.0.0/0", "192.0.0.0/8", "::/0"] {
        apply(&open, &rule(to)).await.expect(403).refused("range_not_permitted");
    }
    // The rule that is permitted is not the one that is blamed.
    let two = rule("192.168.0.0/16") + "  - {id: ten, from: net:default, to: 10.9.0.0/16}\n";
    let detail = apply(&open, &two).await.expect(403).at("/detail");
    assert!(detail.contains("rule ten") && detail.contains("10.9.0.0/16"), "{detail}");
    assert_eq!(open.get(&open.root, "/v1/policy").await.at("/version"), "3");
}

#[tokio::test]
async fn a_network_does_not_bring_a_range_that_is_not_permitted() {
    let lab = lab().await;
    lab.host.forwards.store(true, Ordering::Relaxed);
    // Nobody is in the range yet.
    apply(&lab, "allow:\n  - {id: lan, from: 10.99.0.0/16, to: 192.168.0.0/16}\n").await.expect(200);
    let network = |cidr: &str| lab.post(&lab.root, "/v1/networks", json!({ "name": "n", "cidr": cidr }));
    let answer = network("10.99.0.0/24").await.expect(403).refused("range_not_permitted");
    assert!(answer.at("/detail").contains("rule lan lets network n reach 192.168.0.0/16"), "{}", answer.text);
    network("10.98.0.0/24").await.expect(201);
}

#[tokio::test]
async fn an_open_network_hinders_no_policy_where_nothing_is_forwarded_any_more() {
    let lab = places().await;
    lab.host.forwards.store(true, Ordering::Relaxed);
    lab.post(&lab.root, "/v1/networks", json!({ "name": "wide", "egress": "open" })).await.expect(201);
    lab.host.forwards.store(false, Ordering::Relaxed);
    apply(&lab, POLICY).await.expect(200);
    let rule = "allow:\n  - {id: out, from: net:dev, to: 45.33.32.0/24}\n";
    let answer = apply(&lab, rule).await.expect(409).refused("forwarding_required");
    assert!(answer.at("/detail").contains("network dev"), "{}", answer.text);
}

#[tokio::test]
async fn an_open_network_that_a_forbidden_name_would_hold_for_is_refused() {
    let lab = lab().await;
    lab.host.forwards.store(true, Ordering::Relaxed);
    apply(&lab, "forbid:\n  - {id: no, from: 10.40.0.0/16, to: {name: evil.example.com}}\n").await.expect(200);
    let network = |name: &str, cidr: &str, egress: &str| {
        lab.post(&lab.root, "/v1/networks", json!({ "name": name, "cidr": cidr, "egress": egress }))
    };
    let before = lab.stored().await;
    let answer = network("wide", "10.40.0.0/24", "open").await.expect(403).refused("denied_by_policy");
    let detail = answer.at("/detail");
    assert!(detail.contains("evil.example.com") && detail.contains("wide has open egress"), "{detail}");
    assert_eq!(lab.stored().await, before);
    network("apart", "10.41.0.0/24", "open").await.expect(201);
    network("closed", "10.40.0.0/24", "deny").await.expect(201);
}

#[tokio::test]
async fn a_history_that_has_become_too_large_loses_its_oldest_versions() {
    let lab = lab_with(|config| config.policy_history = 10_000).await;
    let text = |n: usize, size: usize| {
        format!("# {}\nallow: [{{id: r{n}, from: net:default, to: 1.1.1.{n}}}]\n", "x".repeat(size))
    };
    lab.host.forwards.store(true, Ordering::Relaxed);
    for n in 1..=6 {
        apply(&lab, &text(n, 3000)).await.expect(200);
    }
    let versions = async || {
        let page = lab.get(&lab.root, "/v1/policy/versions").await.expect(200);
        let items = page.body["items"].as_array().unwrap().clone();
        items.iter().map(|item| item["version"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(versions().await, [6, 5, 4, 3]);
    lab.get(&lab.root, "/v1/policy/versions/2").await.expect(404).refused("policy_version_not_found");
    // One that is larger than all of it is in force all the same.
    apply(&lab, &text(7, 20_000)).await.expect(200);
    assert_eq!(versions().await, [7, 6, 5, 4]);
    apply(&lab, &text(8, 10)).await.expect(200);
    assert_eq!(versions().await, [8]);
    assert_eq!(lab.get(&lab.root, "/v1/policy").await.expect(200).at("/version"), "8");
    assert_eq!(lab.keys_below("policy/").await.len(), 1);
}
