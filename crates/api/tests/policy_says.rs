//! What a policy says: explanations and the matrix.

mod common;

use std::sync::atomic::Ordering;

use common::places::{POLICY, apply, places, strings};
use common::{Answered, Lab, lab, lab_with};
use serde_json::{Value, json};

async fn explain(lab: &Lab, from: &str, to: &str, port: &str) -> Answered {
    lab.post(&lab.root, "/v1/explain", json!({ "from": from, "to": to, "port": port })).await
}

#[tokio::test]
async fn an_explanation_names_the_rule_or_the_one_that_is_missing() {
    let lab = places().await;
    let policy = apply(&lab, POLICY).await.expect(200).at("/hash");
    let allowed = explain(&lab, "agent", "dev/db", "tcp/5432").await.expect(200);
    assert_eq!((allowed.at("/verdict"), allowed.at("/rule")), ("allow".into(), "agent-db".into()));
    assert_eq!((allowed.at("/policy"), allowed.at("/missing_rule")), (policy, "null".into()));
    assert_eq!(
        strings(&allowed.body["path"]),
        ["dev/agent (192.168.10.2)", "network dev", "dev/db (192.168.10.3)"],
        "{}",
        allowed.text
    );

    let denied = explain(&lab, "dev/tag:agent", "net:prod", "tcp/5432").await.expect(200);
    assert_eq!((denied.at("/verdict"), denied.at("/rule")), ("deny".into(), "no-prod".into()));
    assert_eq!((denied.at("/missing_rule"), denied.at("/to")), ("null".into(), "prod/store".into()));

    let missing = explain(&lab, "dev/agent", "db", "tcp/80").await.expect(200);
    assert_eq!((missing.at("/verdict"), missing.at("/rule")), ("deny".into(), "null".into()));
    assert_eq!(missing.at("/near_misses/0/rule"), "agent-db");
    let rule = &missing.body["missing_rule"];
    // What is missing can be pasted, and then it is allowed.
    let fixed = POLICY.replace("tests:", &format!("  - {rule}\ntests:"));
    apply(&lab, &fixed).await.expect(200);
    assert_eq!(explain(&lab, "dev/agent", "db", "tcp/80").await.expect(200).at("/rule"), rule["id"].as_str().unwrap());
}

#[tokio::test]
async fn several_are_allowed_only_when_all_are_and_the_first_that_is_not_is_shown() {
    let lab = places().await;
    apply(&lab, POLICY).await.expect(200);
    lab.post(&lab.root, "/v1/machines", json!({ "name": "plain", "network": "dev" })).await.expect(201);
    let all = explain(&lab, "net:dev", "db", "tcp/5432").await.expect(200);
    assert_eq!((all.at("/verdict"), all.at("/from")), ("deny".into(), "dev/plain".into()));
    assert_eq!(all.at("/pairs"), "3");
    let ports = explain(&lab, "agent", "db", "tcp/5430-5432").await.expect(200);
    assert_eq!((ports.at("/verdict"), ports.at("/port")), ("deny".into(), "tcp/5430-5431".into()));
    assert_eq!(explain(&lab, "default/tag:none", "net:default", "tcp").await.expect(200).at("/verdict"), "allow");
    let nobody = explain(&lab, "net:default", "net:prod", "tcp/1").await.expect(200);
    assert_eq!(nobody.at("/verdict"), "deny");
    assert!(nobody.at("/reason").contains("no such machine is there yet"), "{}", nobody.text);
}

#[tokio::test]
async fn names_and_addresses_outside_are_explained() {
    let lab = places().await;
    apply(&lab, POLICY).await.expect(200);
    let verdict = |answer: Answered| (answer.at("/verdict"), answer.at("/rule"));
    let ask = |to: &'static str, port: &'static str| explain(&lab, "agent", to, port);
    assert_eq!(verdict(ask("api.github.com", "tcp/443").await), ("allow".into(), "gh".into()));
    assert_eq!(verdict(ask("API.GitHub.com.", "tcp/443").await), ("allow".into(), "gh".into()));
    assert_eq!(verdict(ask("github.com", "tcp/443").await), ("deny".into(), "null".into()));
    assert_eq!(verdict(ask("api.github.com", "udp/443").await), ("deny".into(), "null".into()));
    assert_eq!(verdict(ask("169.254.169.254", "tcp/80").await), ("deny".into(), "builtin:metadata".into()));
    assert_eq!(ask("169.254.169.254", "tcp/80").await.at("/missing_rule"), "null");
    let outside = ask("8.8.8.8", "udp/53").await;
    assert_eq!(outside.at("/missing_rule/to"), "8.8.8.8/32");
    assert_eq!(strings(&outside.body["path"])[1], "network dev: refused");
    assert_eq!(ask("0.0.0.0/0", "tcp/443").await.at("/verdict"), "deny");
    // An address of its own network is the machine that has it.
    assert_eq!(verdict(ask("192.168.10.3", "tcp/5432").await), ("allow".into(), "agent-db".into()));
    assert_eq!(verdict(ask("db.vm.internal", "tcp/5432").await), ("allow".into(), "agent-db".into()));
}

#[tokio::test]
async fn a_session_is_explained_by_its_id_and_its_name() {
    let lab = places().await;
    let text = "networks: {dev: {intra: deny}}\nallow:\n  - {id: ops, from: dev/tag:operator, to: dev/tag:db, ports: [tcp/5432]}\n  \
                - {id: call, from: dev/tag:db, to: dev/tag:operator}";
    apply(&lab, text).await.expect(200);
    let open = async |body: Value| lab.post(&lab.root, "/v1/networks/dev/sessions", body).await.expect(201);
    let whole = open(json!({ "reachable": true })).await;
    let (id, name) = (whole.at("/id"), whole.at("/name"));
    for from in [id.clone(), name.clone(), format!("dev/{name}")] {
        let allowed = explain(&lab, &from, "db", "tcp/5432").await.expect(200);
        assert_eq!((allowed.at("/verdict"), allowed.at("/rule")), ("allow".into(), "ops".into()), "{}", allowed.text);
        assert_eq!((allowed.at("/from"), allowed.at("/pairs")), (format!("dev/{name}"), "1".into()));
        assert!(allowed.at("/path/0").ends_with(&format!("({})", whole.at("/private_ip"))), "{}", allowed.text);
    }
    let denied = explain(&lab, &id, "db", "tcp/80").await.expect(200);
    assert_eq!((denied.at("/verdict"), denied.at("/near_misses/0/rule")), ("deny".into(), "ops".into()));
    assert_eq!(explain(&lab, "db", &id, "tcp/80").await.expect(200).at("/rule"), "call");
    assert_eq!(explain(&lab, "agent", &id, "tcp/80").await.expect(200).at("/verdict"), "deny");
    // Whom its network, and its tag, means besides.
    assert_eq!(explain(&lab, &id, "dev/tag:operator", "tcp/80").await.expect(200).at("/verdict"), "deny");
    explain(&lab, &id, &name, "tcp/80").await.expect(422).refused("invalid_request");
}

#[tokio::test]
async fn a_session_reaches_no_more_than_it_was_opened_for_whatever_policy_allows() {
    let lab = places().await;
    let open = async |body: Value| lab.post(&lab.root, "/v1/networks/dev/sessions", body).await.expect(201).at("/id");
    let withheld = async |from: &str, to: &str, port: &str| {
        let answer = explain(&lab, from, to, port).await.expect(200);
        let said = (answer.at("/verdict"), answer.at("/rule"), answer.at("/missing_rule"));
        assert_eq!(said, ("deny".into(), "null".into(), "null".into()), "{}", answer.text);
        assert_eq!(answer.body["near_misses"], json!([]));
        answer.at("/reason")
    };
    let passes = async |from: &str, to: &str, port: &str| {
        assert_eq!(explain(&lab, from, to, port).await.expect(200).at("/verdict"), "allow", "{from} {to} {port}");
    };
    let silent = open(json!({})).await;
    passes(&silent, "db", "tcp/80").await;
    assert!(withheld("db", &silent, "tcp/80").await.contains("is sent only what answers it"));

    let one = open(json!({ "only": { "machine": "db" }, "reachable": true })).await;
    let address = lab.get(&lab.root, "/v1/machines/db").await.at("/private_ip");
    for to in ["db", &address] {
        passes(&one, to, "icmp").await;
    }
    passes("db", &one, "tcp/80").await;
    for to in ["agent", "net:dev", "192.168.10.1"] {
        assert!(withheld(&one, to, "tcp/53").await.contains("was opened for dev/db only"), "{to}");
    }
    assert!(withheld("agent", &one, "tcp/80").await.contains("was opened for dev/db only"));

    let port = open(json!({ "only": { "machine": "db", "port": 5432 }, "reachable": true })).await;
    passes(&port, "db", "tcp/5432").await;
    passes(&port, "db", "udp/5432").await;
    for other in ["tcp/5431", "tcp/5432-5433", "tcp", "icmp"] {
        assert!(withheld(&port, "db", other).await.contains("was opened for port 5432 of dev/db only"), "{other}");
    }
    withheld("db", &port, "tcp/5432").await;
}

#[tokio::test]
async fn a_session_that_is_not_there_is_not_explained() {
    let lab = places().await;
    let opened = lab.post(&lab.root, "/v1/networks/dev/sessions", json!({})).await.expect(201);
    let (id, name) = (opened.at("/id"), opened.at("/name"));
    explain(&lab, &format!("prod/{name}"), "db", "tcp/80").await.expect(404).refused("not_found");
    let mine = lab.account("mine").await;
    lab.post(&mine, "/v1/machines", json!({ "name": "worker" })).await.expect(201);
    for from in [&id, &name] {
        let asked = json!({ "from": from, "to": "worker", "port": "tcp/80" });
        lab.post(&mine, "/v1/explain", asked).await.expect(404).refused("not_found");
    }
    // A machine may be called like one.
    lab.post(&mine, "/v1/machines", json!({ "name": "session-00000000" })).await.expect(201);
    let asked = json!({ "from": "session-00000000", "to": "worker", "port": "tcp/80" });
    assert_eq!(lab.post(&mine, "/v1/explain", asked).await.expect(200).at("/verdict"), "allow");
    lab.delete(&lab.root, &format!("/v1/sessions/{id}")).await.expect(204);
    let gone = explain(&lab, &id, "db", "tcp/80").await.expect(404).refused("not_found");
    assert!(gone.at("/detail").contains("/v1/sessions"), "{}", gone.text);
}

#[tokio::test]
async fn another_accounts_machines_do_not_exist_and_their_addresses_are_just_addresses() {
    let lab = places().await;
    let mine = lab.account("mine").await;
    let id = lab.get(&lab.root, "/v1/machines/db").await.at("/id");
    let ask = |to: String| lab.post(&mine, "/v1/explain", json!({ "from": "worker", "to": to, "port": "tcp/5432" }));
    lab.post(&mine, "/v1/machines", json!({ "name": "worker" })).await.expect(201);
    for to in ["db".to_owned(), id, "dev/db".to_owned(), "net:dev".to_owned(), "dev/tag:db".to_owned()] {
        ask(to).await.expect(404).refused("not_found");
    }
    let address = ask("192.168.10.3".to_owned()).await.expect(200);
    assert_eq!((address.at("/verdict"), address.at("/to")), ("deny".into(), "192.168.10.3".into()));
    assert!(!address.text.contains("dev"), "{}", address.text);

    apply(&lab, POLICY).await.expect(200);
    assert_eq!(lab.get(&mine, "/v1/policy").await.at("/version"), "0");
    lab.get(&mine, "/v1/policy/versions/1").await.expect(404).refused("policy_version_not_found");
    let body = json!({ "text": "allow:\n  - {id: a, from: net:dev, to: net:dev}" });
    lab.put(&mine, "/v1/policy", body).await.expect(422).refused("policy_invalid");
    let body = json!({ "text": "tagOwners: {x: [platform]}" });
    lab.put(&mine, "/v1/policy", body).await.expect(422).refused("policy_invalid");
    assert_eq!(lab.get(&mine, "/v1/reach").await.expect(200).body["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn reach_is_the_whole_matrix_page_by_page() {
    let lab = places().await;
    apply(&lab, POLICY).await.expect(200);
    let all = lab.get(&lab.root, "/v1/reach").await.expect(200);
    let from: Vec<_> =
        all.body["items"].as_array().unwrap().iter().map(|item| item["from"].as_str().unwrap()).collect();
    assert_eq!(from, ["dev/agent", "dev/db", "prod/store"]);
    let agent = &all.body["items"][0];
    assert_eq!(agent["to"][0]["to"], "dev/db");
    assert_eq!(agent["to"][0]["open"], json!(["tcp/5432"]));
    assert_eq!(agent["to"][0]["declared"][0]["verdict"], "allow");
    assert_eq!(agent["to"][0]["declared"][0]["rule"], "agent-db");
    assert_eq!(agent["to"][0]["declared"][1]["verdict"], "deny");
    assert_eq!((&agent["to"][1]["to"], &agent["to"][1]["open"]), (&json!("prod/store"), &json!([])));
    assert_eq!(agent["names"], json!([{ "name": "*.github.com", "open": ["tcp/443"], "rules": ["gh"] }]));
    assert_eq!(agent["internet"], false);

    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = lab.get(&lab.root, &format!("/v1/reach?limit=1{cursor}")).await.expect(200);
        assert_eq!(page.body["items"].as_array().unwrap().len(), 1);
        seen.push(page.body["items"][0].clone());
        match page.body["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(json!(seen), all.body["items"]);
    let prod = lab.get(&lab.root, "/v1/reach?network=prod").await.expect(200);
    assert_eq!(prod.body["items"].as_array().unwrap().len(), 1);
    assert_eq!(prod.at("/items/0/from"), "prod/store");
}

#[tokio::test]
async fn open_egress_reaches_the_internet() {
    let lab = lab().await;
    lab.host.forwards.store(true, Ordering::Relaxed);
    lab.post(&lab.root, "/v1/networks", json!({ "name": "out", "egress": "open" })).await.expect(201);
    lab.post(&lab.root, "/v1/machines", json!({ "name": "m", "network": "out" })).await.expect(201);
    assert_eq!(lab.get(&lab.root, "/v1/reach").await.expect(200).at("/items/0/internet"), "true");
    let policy = lab.get(&lab.root, "/v1/policy").await.expect(200);
    assert!(policy.text.contains("builtin:open-egress"));
    let answer = explain(&lab, "m", "8.8.8.8", "tcp/443").await.expect(200);
    assert_eq!(answer.at("/rule"), "builtin:open-egress");
    apply(&lab, "forbid:\n  - {id: none, from: net:out, to: 0.0.0.0/0}\n").await.expect(200);
    assert_eq!(lab.get(&lab.root, "/v1/reach").await.expect(200).at("/items/0/internet"), "false");
}

#[tokio::test]
async fn what_the_host_keeps_closed_is_said_to_be_closed() {
    let lab = lab().await;
    lab.host.forwards.store(true, Ordering::Relaxed);
    lab.host.addresses.lock().unwrap().insert("45.33.32.10".parse().unwrap());
    lab.post(&lab.root, "/v1/networks", json!({ "name": "out", "egress": "open" })).await.expect(201);
    lab.post(&lab.root, "/v1/machines", json!({ "name": "m", "network": "out" })).await.expect(201);
    apply(&lab, "allow:\n  - {id: range, from: net:out, to: 45.33.32.0/24}\n").await.expect(200);
    let verdict = |answer: Answered| (answer.at("/verdict"), answer.at("/rule"));
    let ask = |to: &'static str| explain(&lab, "m", to, "tcp/22");
    assert_eq!(verdict(ask("45.33.32.9").await).0, "allow");
    let own = ask("45.33.32.10").await.expect(200);
    assert_eq!((own.at("/missing_rule"), own.at("/path/1")), ("null".into(), "network out: refused".into()));
    assert_eq!(verdict(own), ("deny".into(), "builtin:host".into()));
    let range = ask("45.33.32.0/24").await;
    assert_eq!((range.at("/to"), range.at("/rule")), ("45.33.32.10".into(), "builtin:host".into()));
    assert_eq!(verdict(ask("45.33.32.16/28").await).0, "allow");

    let private = ask("192.168.99.1").await;
    assert!(private.at("/reason").contains("--private-range"), "{}", private.text);
    assert_eq!(private.at("/missing_rule"), "null", "no rule can");
    assert_eq!(verdict(private), ("deny".into(), "builtin:private-range".into()));
}

#[tokio::test]
async fn of_a_range_that_a_network_out_of_sight_has_every_part_counts() {
    let lab = lab_with(|config| config.private_ranges = ["10.50.0.0/24".parse().unwrap()].into_iter().collect()).await;
    lab.host.forwards.store(true, Ordering::Relaxed);
    // Neither of the first two is seen by IPv4 from the third: they have the same addresses.
    for (name, cidr) in [("a", "10.50.0.0/24"), ("b", "10.50.0.0/24"), ("c", "10.51.0.0/24")] {
        lab.post(&lab.root, "/v1/networks", json!({ "name": name, "cidr": cidr })).await.expect(201);
    }
    lab.post(&lab.root, "/v1/machines", json!({ "name": "m", "network": "c" })).await.expect(201);
    let policy = "allow:\n  - {id: all, from: net:c, to: 10.50.0.0/24}\nforbid:\n  - {id: half, from: net:c, to: 10.50.0.128/25}\n";
    apply(&lab, policy).await.expect(200);
    assert_eq!(explain(&lab, "m", "10.50.0.0/25", "tcp/22").await.expect(200).at("/rule"), "all");
    let whole = explain(&lab, "m", "10.50.0.0/24", "tcp/22").await.expect(200);
    assert_eq!((whole.at("/to"), whole.at("/rule")), ("10.50.0.128".into(), "half".into()));

    // Of its own network's range, those who are there count.
    lab.post(&lab.root, "/v1/machines", json!({ "name": "n", "network": "c" })).await.expect(201);
    assert_eq!(explain(&lab, "m", "10.51.0.0/24", "tcp/22").await.expect(200).at("/rule"), "builtin:intra");
    assert_eq!(explain(&lab, "m", "10.51.0.128/25", "tcp/22").await.expect(200).at("/verdict"), "deny");
}
