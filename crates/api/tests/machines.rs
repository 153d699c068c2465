//! Machines and networks from create to delete.

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{Lab, lab, lab_with, request, with_header};
use futures::future::join_all;
use serde_json::{Value, json};

async fn make(lab: &Lab, body: Value) -> common::Answered {
    lab.post(&lab.root, "/v1/machines", body).await.expect(201)
}

#[tokio::test]
async fn a_machine_made_with_no_arguments_runs_with_a_private_address() {
    let lab = lab().await;
    let machine = lab.call(request("POST", "/v1/machines", &lab.root, None)).await.expect(201);
    assert_eq!(machine.at("/state"), "running");
    assert_eq!(machine.at("/private_ip"), "10.0.1.10");
    assert_eq!(machine.at("/address"), "1:0001.0000.0002");
    assert_eq!(machine.at("/network/name"), "default");
    assert_eq!(machine.at("/image"), "debian");
    assert_eq!(machine.at("/hostname"), format!("{}.vm.internal", machine.at("/name")));
    assert!(machine.at("/private_ip6").ends_with(":1::2"));
    assert_eq!(machine.headers["location"], format!("/v1/machines/{}", machine.at("/id")));
    for given in [machine.at("/id"), machine.at("/name")] {
        let shown = lab.get(&lab.root, &format!("/v1/machines/{given}")).await.expect(200);
        assert_eq!(shown.body, machine.body);
    }
}

#[tokio::test]
async fn what_was_asked_for_is_what_the_machine_has() {
    let lab = lab().await;
    lab.post(&lab.root, "/v1/networks", json!({ "name": "lan", "cidr": "192.168.10.0/24" })).await.expect(201);
    let asked = json!({
        "name": "worker", "network": "lan", "private_ip": "192.168.10.10", "image": "slim", "cpus": 0.5,
        "memory_mib": 256, "ports": [{ "name": "web", "port": 8080, "protocol": "http" }], "tags": ["b", "a"],
        "labels": { "team": "red" }
    });
    let machine = make(&lab, asked).await;
    assert_eq!(machine.at("/private_ip"), "192.168.10.10");
    assert_eq!((machine.at("/cpus"), machine.at("/memory_mib")), ("0.5".into(), "256".into()));
    assert_eq!(machine.at("/disk_gib"), "null");
    assert_eq!((machine.at("/image"), machine.at("/tags")), ("slim".into(), r#"["a","b"]"#.into()));
    assert_eq!(machine.at("/labels/team"), "red");
    assert_eq!(machine.body["ports"], json!([{ "name": "web", "port": 8080, "protocol": "http" }]));

    let change = json!({ "name": "boss", "tags": ["c"], "labels": {}, "ports": [] });
    let changed = lab.patch(&lab.root, "/v1/machines/worker", change).await.expect(200);
    assert_eq!(
        (changed.at("/name"), changed.at("/tags"), changed.at("/labels")),
        ("boss".into(), r#"["c"]"#.into(), "{}".into())
    );
    assert_eq!(changed.at("/hostname"), "boss.vm.internal");
    lab.get(&lab.root, "/v1/machines/worker").await.expect(404);
    assert_eq!(make(&lab, json!({ "name": "worker" })).await.at("/name"), "worker");
}

#[tokio::test]
async fn power_follows_what_is_asked() {
    let lab = lab().await;
    make(&lab, json!({ "name": "m" })).await;
    let state = |answer: common::Answered| answer.expect(200).at("/state");
    let call = |verb: &'static str| lab.call(request("POST", format!("/v1/machines/m/{verb}").leak(), &lab.root, None));
    assert_eq!(state(call("stop").await), "stopped");
    assert_eq!(state(call("stop").await), "stopped");
    assert_eq!(state(call("start").await), "running");
    assert_eq!(state(call("start").await), "running");
    assert_eq!(state(call("restart").await), "running");
    assert_eq!(state(call("stop").await), "stopped");
    assert_eq!(state(call("restart").await), "running");
}

#[tokio::test]
async fn delete_leaves_nothing_and_frees_the_name_and_rests_the_address() {
    let lab = lab().await;
    let before: BTreeSet<_> = lab.keys_below("").await.into_iter().collect();
    let machine = make(&lab, json!({ "name": "m" })).await;
    lab.delete(&lab.root, "/v1/machines/m").await.expect(204);
    let after: BTreeSet<_> = lab.keys_below("").await.into_iter().collect();
    let left: Vec<_> =
        after.difference(&before).filter(|key| !key.starts_with("event/") && !key.starts_with("audit/")).collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(left[0].starts_with("address/"));
    lab.get(&lab.root, &format!("/v1/machines/{}", machine.at("/id"))).await.expect(404).refused("not_found");
    let again = make(&lab, json!({ "name": "m" })).await;
    assert_eq!(again.at("/private_ip"), "10.0.1.11");
    assert_eq!(again.at("/address"), "1:0001.0000.0003");
    assert_eq!(make(&lab, json!({ "private_ip": "10.0.1.10" })).await.at("/private_ip"), "10.0.1.10");
}

#[tokio::test]
async fn a_machine_that_cannot_start_leaves_nothing_and_says_why() {
    let lab = lab().await;
    let before: BTreeSet<_> = lab.keys_below("").await.into_iter().collect();
    let body = json!({ "name": "fail-1" }).to_string();
    let request =
        || with_header(request("POST", "/v1/machines", &lab.root, Some(body.clone())), "idempotency-key", "k1");
    for _ in 0..2 {
        let answer = lab.call(request()).await.expect(503).refused("runtime_missing");
        assert!(answer.at("/detail").contains("apt install runc"), "{}", answer.text);
    }
    let after: BTreeSet<_> = lab.keys_below("").await.into_iter().collect();
    for key in after.difference(&before) {
        assert!(["event/", "audit/", "address/"].iter().any(|kept| key.starts_with(kept)), "{key}");
    }
}

#[tokio::test]
async fn a_deadline_says_that_it_goes_on_and_a_stuck_machine_can_be_seen() {
    let lab = lab_with(|config| config.operation_deadline = Duration::from_secs(1)).await;
    let answer = lab.post(&lab.root, "/v1/machines", json!({ "name": "stuck" })).await.expect(504);
    let answer = answer.refused("deadline_exceeded");
    assert!(answer.at("/detail").contains("/v1/machines/mch_"), "{}", answer.text);
    assert_eq!(lab.get(&lab.root, "/v1/machines/stuck").await.expect(200).at("/state"), "creating");
    lab.post(&lab.root, "/v1/machines/stuck/restart", json!({})).await.expect(409).refused("machine_busy");
    lab.delete(&lab.root, "/v1/machines/stuck").await.expect(504).refused("deadline_exceeded");
    assert_eq!(lab.get(&lab.root, "/v1/machines/stuck").await.expect(200).at("/state"), "deleting");
}

#[tokio::test]
async fn concurrent_creates_never_share_an_address_or_a_number() {
    let lab = lab().await;
    lab.post(&lab.root, "/v1/networks", json!({ "name": "tiny", "cidr": "10.9.0.0/28" })).await.expect(201);
    let all = join_all((0..20).map(|_| lab.post(&lab.root, "/v1/machines", json!({ "network": "tiny" })))).await;
    let (made, refused): (Vec<_>, Vec<_>) = all.into_iter().partition(|answer| answer.status == 201);
    assert_eq!((made.len(), refused.len()), (13, 7));
    assert!(refused.iter().all(|answer| answer.code() == "network_full"));
    for field in ["/private_ip", "/address", "/name", "/id"] {
        assert_eq!(made.iter().map(|machine| machine.at(field)).collect::<BTreeSet<_>>().len(), 13);
    }
    assert_eq!(lab.keys_below("uid-slot/").await.len(), 13);
}

#[tokio::test]
async fn the_same_request_twice_creates_once() {
    let lab = lab().await;
    let body = json!({ "name": "once" }).to_string();
    let send = |path: &'static str, body: &str| {
        let request = request("POST", path, &lab.root, Some(body.to_owned()));
        lab.call(with_header(request, "idempotency-key", "0b7c/x"))
    };
    let all = join_all((0..8).map(|_| send("/v1/machines", &body))).await;
    assert_eq!(all.iter().filter(|answer| answer.status == 201).count(), 1);
    assert!(all.iter().all(|answer| answer.at("/id") == all[0].at("/id") && answer.at("/state") == "running"));
    let again = send("/v1/machines", &body).await.expect(200);
    assert_eq!(again.headers["idempotency-replayed"], "true");
    assert_eq!(lab.keys_below("machine/").await.len(), 1);
    send("/v1/machines", r#"{"name":"two"}"#).await.expect(409).refused("idempotency_key_reused");
    send("/v1/networks", &body).await.expect(409).refused("idempotency_key_reused");
    lab.delete(&lab.root, "/v1/machines/once").await.expect(204);
    send("/v1/machines", &body).await.expect(404).refused("not_found");
}

#[tokio::test]
async fn a_repeated_answer_says_that_its_secret_is_not_repeated() {
    let lab = lab().await;
    for (path, body) in [("/v1/accounts", json!({ "name": "a" })), ("/v1/keys", json!({ "name": "k" }))] {
        let send = || {
            let request = request("POST", path, &lab.root, Some(body.to_string()));
            lab.call(with_header(request, "idempotency-key", path))
        };
        let first = send().await.expect(201);
        assert!(first.at("/key").starts_with("wk_") && first.at("/key").len() == 46);
        let second = send().await.expect(200);
        assert_eq!(second.at("/id"), first.at("/id"));
        assert!(second.body.get("key").is_none() && second.at("/detail").contains("not repeated"));
        let secret = first.at("/key");
        assert!(lab.stored().await.iter().all(|(_, value)| !String::from_utf8_lossy(value).contains(&secret)));
    }
}

#[tokio::test]
async fn lists_come_in_pages_and_filters_hold() {
    let lab = lab().await;
    lab.post(&lab.root, "/v1/networks", json!({ "name": "lan" })).await.expect(201);
    for n in 0..7 {
        let network = if n % 2 == 0 { "lan" } else { "default" };
        let body = json!({ "name": format!("m{n}"), "network": network, "tags": [format!("t{n}"), "all"], "labels": { "n": n.to_string() } });
        make(&lab, body).await;
    }
    lab.post(&lab.root, "/v1/machines/m0/stop", json!({})).await.expect(200);
    let names = |answer: &common::Answered| -> Vec<String> {
        answer.body["items"].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect()
    };
    for (filter, limit, expected) in [
        ("", 3, "m0 m1 m2 m3 m4 m5 m6"),
        ("&network=lan", 2, "m0 m2 m4 m6"),
        ("&tag=all,t3", 5, "m3"),
        ("&label=n=4", 1, "m4"),
        ("&label=n", 7, "m0 m1 m2 m3 m4 m5 m6"),
        ("&state=stopped", 1, "m0"),
        ("&tag=none", 1, ""),
    ] {
        let (mut found, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = lab.get(&lab.root, &format!("/v1/machines?limit={limit}{filter}{cursor}")).await.expect(200);
            found.extend(names(&page));
            match page.body["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(found.join(" "), expected, "{filter}");
    }
    let next = lab.get(&lab.root, "/v1/machines?limit=1").await.at("/next");
    for path in [format!("/v1/networks?cursor={next}"), format!("/v1/machines?tag=all&cursor={next}")] {
        lab.get(&lab.root, &path).await.expect(400).refused("invalid_cursor");
    }
    let other = lab.account("other").await;
    lab.get(&other, &format!("/v1/machines?cursor={next}")).await.expect(400).refused("invalid_cursor");
}

#[tokio::test]
async fn a_network_is_derived_where_nothing_else_is() {
    let lab = lab().await;
    lab.host.routes.lock().unwrap().push("10.2.0.0/15".into());
    let network = |name: &'static str| lab.post(&lab.root, "/v1/networks", json!({ "name": name }));
    let one = network("a").await.expect(201);
    assert_eq!(
        (one.at("/cidr"), one.at("/number"), one.at("/gateway")),
        ("10.1.0.0/16".into(), "2".into(), "10.1.0.1".into())
    );
    assert_eq!((one.at("/egress"), one.at("/members")), ("deny".into(), "0".into()));
    assert_eq!(network("b").await.expect(201).at("/cidr"), "10.4.0.0/16");
    let body = json!({ "name": "c", "cidr": "10.2.0.0/24" });
    let overlapping = lab.post(&lab.root, "/v1/networks", body).await.expect(201);
    assert!(overlapping.at("/warnings/0").contains("10.2.0.0/15"), "{}", overlapping.text);
    for name in ["d", "e"] {
        let body = json!({ "name": name, "cidr": "10.1.0.0/16" });
        lab.post(&lab.root, "/v1/networks", body).await.expect(201);
    }
    lab.host.forwards.store(true, std::sync::atomic::Ordering::Relaxed);
    let body = json!({ "name": "f", "egress": "open" });
    assert_eq!(lab.post(&lab.root, "/v1/networks", body).await.expect(201).at("/egress"), "open");
}

#[tokio::test]
async fn a_network_is_renamed_and_deleted_and_its_number_rests() {
    let lab = lab().await;
    let network = lab.post(&lab.root, "/v1/networks", json!({ "name": "a" })).await.expect(201);
    let renamed = lab.patch(&lab.root, "/v1/networks/a", json!({ "name": "b" })).await.expect(200);
    assert_eq!((renamed.at("/id"), renamed.at("/name")), (network.at("/id"), "b".into()));
    lab.get(&lab.root, "/v1/networks/a").await.expect(404).refused("not_found");
    make(&lab, json!({ "name": "m", "network": "b" })).await;
    let refused = lab.delete(&lab.root, "/v1/networks/b").await.expect(409).refused("network_not_empty");
    assert!(refused.at("/detail").contains("force"), "{}", refused.text);
    lab.delete(&lab.root, "/v1/networks/b?force=true").await.expect(204);
    lab.get(&lab.root, "/v1/networks/b").await.expect(404);
    lab.get(&lab.root, "/v1/machines/m").await.expect(404);
    for prefix in ["machine/", "member/", "address/", "uid-slot/", "status/"] {
        assert!(lab.keys_below(prefix).await.is_empty(), "{prefix}");
    }
    let next = lab.post(&lab.root, "/v1/networks", json!({ "name": "b" })).await.expect(201);
    assert_eq!(next.at("/number"), "3");
}

#[tokio::test]
async fn every_mutation_is_audited_with_its_request_and_without_secrets() {
    let lab = lab().await;
    let send = with_header(
        request("POST", "/v1/machines", &lab.root, Some(json!({ "name": "m" }).to_string())),
        "x-request-id",
        "my-request",
    );
    lab.call(send).await.expect(201);
    lab.account("acme").await;
    lab.post(&lab.root, "/v1/keys", json!({})).await.expect(201);
    lab.post(&lab.root, "/v1/machines/m/stop", json!({})).await.expect(200);
    lab.delete(&lab.root, "/v1/machines/m").await.expect(204);
    let stored = lab.stored().await;
    let entries: Vec<Value> = stored
        .iter()
        .filter(|(key, _)| key.starts_with("audit/"))
        .map(|(_, value)| serde_json::from_slice(value).unwrap())
        .collect();
    let actions: BTreeSet<_> = entries.iter().map(|entry| entry["action"].as_str().unwrap()).collect();
    let expected = ["account.create", "key.create", "machine.create", "machine.delete", "machine.stop"];
    assert_eq!(actions, BTreeSet::from(expected));
    let create = entries.iter().find(|entry| entry["action"] == "machine.create").unwrap();
    assert_eq!((&create["request_id"], &create["request"]["name"]), (&json!("my-request"), &json!("m")));
    assert!(entries.iter().all(|entry| !entry.to_string().contains("wk_")));
}

#[tokio::test]
async fn the_topology_holds_every_network_and_what_is_in_it() {
    let lab = lab().await;
    make(&lab, json!({ "name": "b" })).await;
    make(&lab, json!({ "name": "a" })).await;
    lab.post(&lab.root, "/v1/networks", json!({ "name": "lan" })).await.expect(201);
    let topology = lab.get(&lab.root, "/v1/topology").await.expect(200);
    assert_eq!(topology.at("/items/0/private_cidr"), "10.0.0.0/16");
    assert_eq!(topology.at("/items/0/resources/0/name"), "b");
    assert_eq!(topology.at("/items/0/resources/1/private_ip"), "10.0.1.11");
    assert_eq!(
        (topology.at("/items/0/resources/1/type"), topology.at("/items/1/resources")),
        ("vm".into(), "[]".into())
    );
}
