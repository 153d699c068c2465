//! Domains: what is mapped is public, nothing else is, and nobody takes what is another's.

mod common;

use std::sync::atomic::Ordering;

use common::domains::{claim, machine, map, public};
use common::{Answered, Lab, lab, lab_with, request, with_header};
use serde_json::{Value, json};
use warren_api::{PublicInfo, bootstrap};
use warren_model::domain::{CertificateState, DomainCertificate, DomainStatus, DomainTraffic};
use warren_store::{TxnBuilder, Typed, schema};

/// What was written to the audit log: action, target and request.
async fn audited(lab: &Lab, action: &str) -> Vec<Value> {
    let entries = lab.stored().await.into_iter().filter(|(key, _)| key.starts_with("audit/"));
    let entries = entries.map(|(_, value)| serde_json::from_slice::<Value>(&value).unwrap());
    entries.filter(|entry| entry["action"] == action).collect()
}

async fn told(lab: &Lab, kind: &str) -> Vec<Value> {
    let page = lab.get(&lab.root, "/v1/events?follow=false&limit=1000").await.expect(200);
    page.body["items"].as_array().unwrap().iter().filter(|event| event["kind"] == kind).cloned().collect()
}

#[tokio::test]
async fn nothing_is_public_until_it_is_mapped_and_nothing_stays_public_after() {
    let lab = public().await;
    assert_eq!(lab.get(&lab.root, "/v1/domains").await.expect(200).body, json!({ "items": [], "next": null }));
    let made = map(&lab, &lab.root, "Shop.Preview.Example.").await.expect(201);
    assert_eq!(made.headers["location"], "/v1/domains/shop.preview.example");
    assert_eq!(made.at("/host"), "shop.preview.example");
    assert_eq!(made.at("/url"), "https://shop.preview.example:8443");
    assert_eq!((made.at("/machine/name"), made.at("/network/name")), ("web".into(), "default".into()));
    assert_eq!((made.at("/port"), made.at("/proof")), ("8080".into(), "suffix".into()));
    assert_eq!(made.at("/certificate/state"), "pending");
    assert!(made.body.get("auth").is_none());
    assert!(lab.publisher.serves("shop.preview.example"));

    let id = made.at("/id");
    for given in ["shop.preview.example", "SHOP.preview.example", id.as_str()] {
        let shown = lab.get(&lab.root, &format!("/v1/domains/{given}")).await.expect(200);
        assert_eq!(shown.body, made.body, "{given}");
    }
    assert_eq!(lab.get(&lab.root, "/v1/domains").await.expect(200).body["items"], json!([made.body]));

    lab.delete(&lab.root, "/v1/domains/shop.preview.example").await.expect(204);
    assert!(!lab.publisher.serves("shop.preview.example"));
    lab.get(&lab.root, "/v1/domains/shop.preview.example").await.expect(404).refused("not_found");
    lab.delete(&lab.root, "/v1/domains/shop.preview.example").await.expect(404).refused("not_found");
    assert_eq!(lab.keys_below("domain").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_server_without_listeners_maps_nothing_and_says_how_to_start_it() {
    let lab = lab().await;
    machine(&lab, &lab.root, "web").await;
    let refused = map(&lab, &lab.root, "a.preview.example").await.expect(503).refused("ingress_unavailable");
    assert!(refused.at("/detail").contains("--https-listen"), "{}", refused.text);
    lab.patch(&lab.root, "/v1/domains/a.example", json!({})).await.expect(503).refused("ingress_unavailable");
    assert_eq!(lab.keys_below("domain").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_listener_that_is_not_there_is_said_with_its_reason() {
    let lab = public().await;
    map(&lab, &lab.root, "a.preview.example").await.expect(201);
    lab.publisher.info.lock().unwrap().hindrance = Some("0.0.0.0:443 is in use".into());
    let refused = map(&lab, &lab.root, "b.preview.example").await.expect(503).refused("ingress_unavailable");
    assert!(refused.at("/detail").contains("0.0.0.0:443 is in use"), "{}", refused.text);
    let shown = lab.get(&lab.root, "/v1/domains/a.preview.example").await.expect(200);
    assert!(shown.at("/certificate/detail").contains("0.0.0.0:443 is in use"), "{}", shown.text);
    // The edge knows the name all the same, where it is only a port that is missing.
    let host = "a.preview.example".parse().unwrap();
    lab.publisher.known.lock().unwrap().insert(host, DomainStatus::default());
    let listed = lab.get(&lab.root, "/v1/domains").await.expect(200);
    let why = listed.at("/items/0/hindrance");
    assert!(why.contains("0.0.0.0:443 is in use") && why.contains("--https-listen"), "{}", listed.text);
    // What is public can be withdrawn all the same.
    lab.delete(&lab.root, "/v1/domains/a.preview.example").await.expect(204);
}

#[tokio::test]
async fn a_name_that_nobody_can_own_is_refused() {
    let lab = public().await;
    for host in [
        "",
        "localhost",
        "a..example",
        "*.preview.example",
        "203.0.113.7",
        "[2001:db8::1]",
        "vm.internal",
        "a.local",
        "co.uk",
        "github.io",
        "a_b.preview.example",
        "b\u{fc}cher.example",
        "a.preview.example:8080",
        "https://a.preview.example",
        "a.preview.example/x",
    ] {
        map(&lab, &lab.root, host).await.expect(422).refused("domain_invalid");
        claim(&lab, &lab.root, host).await.expect(422).refused("domain_invalid");
    }
    // The suffix is its operator's.
    map(&lab, &lab.root, "preview.example").await.expect(403).refused("domain_not_verified");
    map(&lab, &lab.root, "a.preview.example.com").await.expect(403).refused("domain_not_verified");
    assert_eq!(lab.keys_below("domain").await, Vec::<String>::new());
}

#[tokio::test]
async fn only_a_declared_port_of_an_own_machine_is_made_public() {
    let lab = public().await;
    let other = lab.account("other").await;
    let theirs = machine(&lab, &other, "theirs").await;
    let ask = async |machine: &str, port: Value| {
        let asked = json!({ "host": "a.preview.example", "machine": machine, "port": port });
        lab.post(&lab.root, "/v1/domains", asked).await
    };
    let refused = ask("web", json!(8081)).await.expect(422).refused("port_not_declared");
    assert!(refused.at("/detail").contains("--port web=8081/http"), "{}", refused.text);
    // The edge speaks HTTP over TCP, and no TLS to machines.
    ask("web", json!(8443)).await.expect(422).refused("port_not_declared");
    ask("web", json!(53)).await.expect(422).refused("port_not_declared");
    ask("web", json!(0)).await.expect(422).refused("invalid_port");
    ask("web", json!(65536)).await.expect(422).refused("invalid_request");
    ask("nothing", json!(8080)).await.expect(404).refused("not_found");
    ask(&theirs, json!(8080)).await.expect(404).refused("not_found");
    assert_eq!(lab.keys_below("domain").await, Vec::<String>::new());
    ask("web", json!(5432)).await.expect(201);
}

#[tokio::test]
async fn secrets_and_limits_have_bounds() {
    let lab = public().await;
    let ask = async |field: &str, value: Value| {
        let mut asked = json!({ "host": "a.preview.example", "machine": "web", "port": 8080 });
        asked[field] = value;
        lab.post(&lab.root, "/v1/domains", asked).await
    };
    for auth in [
        json!({ "kind": "bearer", "token": "short" }),
        json!({ "kind": "bearer", "token": "with a space, and long" }),
        json!({ "kind": "bearer" }),
        json!({ "kind": "basic", "user": "a:b", "password": "long enough" }),
        json!({ "kind": "basic", "user": "a", "password": "short" }),
        json!({ "kind": "basic", "user": "a", "password": "long enough", "realm": "x" }),
        json!({ "kind": "digest" }),
        json!("bearer"),
    ] {
        ask("auth", auth).await.expect(422).refused("invalid_request");
    }
    for limits in [
        json!({ "requests_per_second": 0 }),
        json!({ "requests_per_second": 1_000_001 }),
        json!({ "requests_per_second": 100, "burst": 99 }),
        json!({ "max_body_bytes": 1023 }),
        json!({ "idle_seconds": 0 }),
        json!({ "concurrent": 8193 }),
    ] {
        ask("limits", limits).await.expect(422).refused("limit_out_of_range");
    }
    ask("limits", json!({ "speed": 1 })).await.expect(422).refused("invalid_request");
    assert_eq!(lab.keys_below("domain").await, Vec::<String>::new());
    let made = ask("limits", json!({ "requests_per_second": 7, "max_body_bytes": 2048 })).await.expect(201);
    let limits = json!({ "requests_per_second": 7, "burst": 14, "max_body_bytes": 2048, "idle_seconds": 300, "concurrent": 512 });
    assert_eq!(made.body["limits"], limits);
}

#[tokio::test]
async fn a_preview_is_named_for_the_asking() {
    let lab = public().await;
    let ask = json!({ "machine": "web", "port": 8080 });
    let (one, other) = (
        lab.post(&lab.root, "/v1/domains", ask.clone()).await.expect(201).at("/host"),
        lab.post(&lab.root, "/v1/domains", ask.clone()).await.expect(201).at("/host"),
    );
    assert_ne!(one, other);
    let letters = one.strip_prefix("web-8080-").and_then(|rest| rest.strip_suffix(".preview.example")).unwrap();
    assert!(letters.len() == 6 && letters.bytes().all(|byte| byte.is_ascii_lowercase()), "{one}");

    let long = format!("{}-{}", "m".repeat(50), "n".repeat(12));
    machine(&lab, &lab.root, &long).await;
    let made = lab.post(&lab.root, "/v1/domains", json!({ "machine": long, "port": 5432 })).await.expect(201);
    let host = made.at("/host");
    assert!(host.split('.').next().unwrap().len() <= 63 && host.contains("m-5432-"), "{host}");

    lab.publisher.info.lock().unwrap().suffix = None;
    let refused = lab.post(&lab.root, "/v1/domains", ask).await.expect(422).refused("invalid_request");
    assert!(refused.at("/detail").contains("--preview-suffix"), "{}", refused.text);
}

#[tokio::test]
async fn publishing_is_written_down_without_secrets() {
    let lab = public().await;
    let (bearer, password) = ("a-bearer-token-0123456789", "a password of alice");
    let ask = |host: &str, auth: Value| json!({ "host": host, "machine": "web", "port": 8080, "auth": auth });
    let one = ask("a.preview.example", json!({ "kind": "bearer", "token": bearer }));
    let other = ask("b.preview.example", json!({ "kind": "basic", "user": "alice", "password": password }));
    let one = lab.post(&lab.root, "/v1/domains", one).await.expect(201);
    let other = lab.post(&lab.root, "/v1/domains", other).await.expect(201);
    assert_eq!((one.at("/auth"), other.at("/auth")), ("bearer".into(), "basic".into()));
    lab.patch(&lab.root, "/v1/domains/a.preview.example", json!({ "auth": { "kind": "open" } })).await.expect(200);
    lab.delete(&lab.root, "/v1/domains/b.preview.example").await.expect(204);

    let mapped = audited(&lab, "domain.map").await;
    assert_eq!(mapped.len(), 2);
    let first = &mapped[0];
    assert_eq!(first["target"], one.at("/id"));
    assert_eq!(first["request"]["host"], "a.preview.example");
    assert_eq!(first["request"]["machine"], one.at("/machine/id"));
    assert_eq!((&first["request"]["port"], &first["request"]["auth"]), (&json!(8080), &json!("bearer")));
    assert_eq!(audited(&lab, "domain.update").await[0]["request"]["auth"], Value::Null);
    assert_eq!(audited(&lab, "domain.unmap").await[0]["request"]["host"], "b.preview.example");

    let hash = |secret: &str| blake3::hash(secret.as_bytes()).to_hex().to_string();
    let (bearer_hash, password_hash) = (hash(bearer), hash(password));
    for (key, value) in lab.stored().await {
        let text = String::from_utf8(value).unwrap();
        assert!(!text.contains(bearer) && !text.contains(password), "{key}");
        let hashed = text.contains(&bearer_hash) || text.contains(&password_hash);
        assert!(!hashed || key.starts_with("domain/"), "{key}");
    }
    for text in [&one.text, &other.text] {
        assert!(!text.contains(&bearer_hash) && !text.contains(&password_hash), "{text}");
    }
    let published = told(&lab, "domain_published").await;
    assert_eq!(published.len(), 2);
    assert_eq!(published[0]["machine"], one.at("/machine/id"));
    assert!(published[0]["message"].as_str().unwrap().contains("a.preview.example"));
    assert_eq!(told(&lab, "domain_withdrawn").await.len(), 1);
}

#[tokio::test]
async fn a_domain_can_be_changed_and_what_is_not_named_stays() {
    let lab = public().await;
    let other = machine(&lab, &lab.root, "other").await;
    let asked = json!({ "host": "a.preview.example", "machine": "web", "port": 8080,
        "auth": { "kind": "bearer", "token": "0123456789abcdef" }, "limits": { "burst": 900 } });
    let made = lab.post(&lab.root, "/v1/domains", asked).await.expect(201);
    let path = "/v1/domains/a.preview.example";

    let entries = audited(&lab, "domain.update").await.len();
    assert_eq!(lab.patch(&lab.root, path, json!({})).await.expect(200).body, made.body);
    assert_eq!(audited(&lab, "domain.update").await.len(), entries);

    let limited = lab.patch(&lab.root, path, json!({ "limits": { "idle_seconds": 5 } })).await.expect(200);
    assert_eq!((limited.at("/limits/idle_seconds"), limited.at("/limits/burst")), ("5".into(), "900".into()));
    assert_eq!(limited.at("/auth"), "bearer");
    let moved = lab.patch(&lab.root, path, json!({ "machine": "other", "port": 5432 })).await.expect(200);
    assert_eq!((moved.at("/machine/id"), moved.at("/port")), (other.clone(), "5432".into()));
    assert_eq!((moved.at("/id"), moved.at("/created_at")), (made.at("/id"), made.at("/created_at")));
    assert_eq!(told(&lab, "domain_published").await.len(), 2);
    let withdrawn = told(&lab, "domain_withdrawn").await;
    assert_eq!(withdrawn.len(), 1, "the machine that it led to is told");
    assert_eq!(withdrawn[0]["machine"], made.at("/machine/id"));
    assert_eq!(lab.keys_below("domain-at/").await, [format!("domain-at/{other}/a.preview.example")]);

    lab.patch(&lab.root, path, json!({ "machine": "web" })).await.expect(422).refused("invalid_request");
    lab.patch(&lab.root, path, json!({ "port": 9 })).await.expect(422).refused("port_not_declared");
    lab.patch(&lab.root, path, json!({ "limits": { "burst": 1 } })).await.expect(422).refused("limit_out_of_range");
    lab.patch(&lab.root, path, json!({ "host": "b.preview.example" })).await.expect(422).refused("invalid_request");
    // The machine that it left is free of it.
    lab.delete(&lab.root, "/v1/machines/web").await.expect(204);
    lab.get(&lab.root, path).await.expect(200);
}

#[tokio::test]
async fn a_domain_of_an_older_server_is_found_by_its_id_once_the_server_has_started() {
    let lab = public().await;
    let id = map(&lab, &lab.root, "a.preview.example").await.expect(201).at("/id");
    let path = format!("/v1/domains/{id}");
    TxnBuilder::new().delete(&schema::domain_id(id.parse().unwrap())).commit(&*lab.store).await.unwrap();
    lab.get(&lab.root, &path).await.expect(404);
    bootstrap::ensure(&*lab.store, jiff::Timestamp::now()).await.unwrap();
    assert_eq!(lab.get(&lab.root, &path).await.expect(200).at("/host"), "a.preview.example");
    // Another account's is not found by it either.
    let other = lab.account("other").await;
    lab.get(&other, &path).await.expect(404).refused("not_found");
}

#[tokio::test]
async fn a_burst_follows_the_rate_until_somebody_asks_for_one() {
    let lab = public().await;
    let path = "/v1/domains/a.preview.example";
    let set = |limits: Value| lab.patch(&lab.root, path, json!({ "limits": limits }));
    let rate_and_burst = |shown: &Answered| (shown.at("/limits/requests_per_second"), shown.at("/limits/burst"));
    let pair = |rate: &str, burst: &str| (rate.to_owned(), burst.to_owned());
    map(&lab, &lab.root, "a.preview.example").await.expect(201);
    assert_eq!(rate_and_burst(&set(json!({ "requests_per_second": 50 })).await.expect(200)), pair("50", "100"));
    // Also where what was asked for is what it would have been.
    assert_eq!(rate_and_burst(&set(json!({ "burst": 100 })).await.expect(200)), pair("50", "100"));
    assert_eq!(rate_and_burst(&set(json!({ "requests_per_second": 70 })).await.expect(200)), pair("70", "100"));
    assert_eq!(rate_and_burst(&set(json!({ "idle_seconds": 9 })).await.expect(200)), pair("70", "100"));
    let refused = set(json!({ "requests_per_second": 101 })).await.expect(422).refused("limit_out_of_range");
    assert!(refused.at("/detail").contains("name one that fits the new rate"), "{}", refused.text);
    let both = json!({ "requests_per_second": 101, "burst": 300 });
    assert_eq!(rate_and_burst(&set(both).await.expect(200)), pair("101", "300"));

    // Of a record that does not say, the numbers do.
    let key = schema::domain(&"a.preview.example".parse().unwrap());
    for (burst, after) in [(202, "20"), (300, "300")] {
        let mut record = lab.store.read(&key).await.unwrap().unwrap().record;
        record.burst_asked_for = None;
        (record.limits.requests_per_second, record.limits.burst) = (101, burst);
        TxnBuilder::new().put(&key, &record).unwrap().commit(&*lab.store).await.unwrap();
        assert_eq!(rate_and_burst(&set(json!({ "requests_per_second": 10 })).await.expect(200)), pair("10", after));
    }
}

#[tokio::test]
async fn a_port_that_is_public_stays_declared() {
    let lab = public().await;
    map(&lab, &lab.root, "a.preview.example").await.expect(201);
    let declare = async |ports: Value| lab.patch(&lab.root, "/v1/machines/web", json!({ "ports": ports })).await;
    let refused = declare(json!([])).await.expect(409).refused("port_published");
    assert!(refused.at("/detail").contains("a.preview.example"), "{}", refused.text);
    declare(json!([{ "name": "web", "port": 8080, "protocol": "udp" }])).await.expect(409).refused("port_published");
    declare(json!([{ "name": "site", "port": 8080, "protocol": "tcp" }])).await.expect(200);
    lab.patch(&lab.root, "/v1/machines/web", json!({ "labels": { "a": "b" } })).await.expect(200);
    lab.delete(&lab.root, "/v1/domains/a.preview.example").await.expect(204);
    declare(json!([])).await.expect(200);
}

#[tokio::test]
async fn domains_go_with_their_machine_and_its_network() {
    let lab = public().await;
    map(&lab, &lab.root, "a.preview.example").await.expect(201);
    map(&lab, &lab.root, "b.preview.example").await.expect(201);
    machine(&lab, &lab.root, "stays").await;
    let stays = json!({ "host": "c.preview.example", "machine": "stays", "port": 8080 });
    lab.post(&lab.root, "/v1/domains", stays).await.expect(201);
    lab.delete(&lab.root, "/v1/machines/web").await.expect(204);
    let left = lab.get(&lab.root, "/v1/domains").await.expect(200);
    assert_eq!(
        (left.at("/items/0/host"), left.body["items"].as_array().unwrap().len()),
        ("c.preview.example".into(), 1)
    );
    assert_eq!(told(&lab, "domain_withdrawn").await.len(), 2);
    let hosts: Vec<_> =
        audited(&lab, "domain.unmap").await.iter().map(|entry| entry["request"]["host"].clone()).collect();
    assert!(hosts.contains(&json!("a.preview.example")) && hosts.contains(&json!("b.preview.example")), "{hosts:?}");
    lab.delete(&lab.root, "/v1/networks/default?force=true").await.expect(204);
    assert_eq!(lab.keys_below("domain").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_machine_that_is_being_deleted_is_not_made_public() {
    let lab = lab_with(|config| config.operation_deadline = std::time::Duration::from_secs(2)).await;
    lab.publisher.listen();
    let id = machine(&lab, &lab.root, "web").await;
    map(&lab, &lab.root, "a.preview.example").await.expect(201);
    // The reconciler leaves it where it is.
    lab.patch(&lab.root, "/v1/machines/web", json!({ "name": "stuck" })).await.expect(200);
    lab.delete(&lab.root, "/v1/machines/stuck").await.expect(504).refused("deadline_exceeded");
    let asked = json!({ "host": "b.preview.example", "machine": id, "port": 8080 });
    lab.post(&lab.root, "/v1/domains", asked).await.expect(409).refused("machine_busy");
    assert_eq!(lab.keys_below("domain").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_domain_does_not_outlive_a_machine_that_is_deleted_while_it_is_mapped() {
    let lab = public().await;
    for round in 0..10 {
        let host = format!("n{round}.preview.example");
        let (mapped, deleted) = tokio::join!(map(&lab, &lab.root, &host), lab.delete(&lab.root, "/v1/machines/web"));
        deleted.expect(204);
        assert!([201, 404, 409].contains(&mapped.status), "{}", mapped.text);
        assert_eq!(lab.keys_below("domain").await, Vec::<String>::new());
        machine(&lab, &lab.root, "web").await;
    }
}

#[tokio::test]
async fn an_edge_that_is_stuck_is_said_and_what_was_asked_for_stays_asked_for() {
    let lab = public().await;
    lab.publisher.stuck.store(true, Ordering::Relaxed);
    let late = map(&lab, &lab.root, "a.preview.example").await.expect(504).refused("deadline_exceeded");
    assert!(late.at("/detail").contains("the edge does not answer"), "{}", late.text);
    lab.get(&lab.root, "/v1/domains/a.preview.example").await.expect(200);
    lab.delete(&lab.root, "/v1/domains/a.preview.example").await.expect(504).refused("deadline_exceeded");
    lab.get(&lab.root, "/v1/domains/a.preview.example").await.expect(404);
}

#[tokio::test]
async fn what_the_edge_knows_is_shown() {
    let lab = public().await;
    let made = map(&lab, &lab.root, "a.preview.example").await.expect(201);
    assert_eq!(made.at("/certificate/detail"), "the edge does not know it yet");
    assert_eq!(made.at("/hindrance"), "the edge does not know it yet");
    let status = DomainStatus {
        certificate: DomainCertificate {
            state: CertificateState::Valid,
            detail: None,
            not_after: Some("2027-01-01T00:00:00Z".parse().unwrap()),
        },
        traffic: DomainTraffic { requests: 3, refused: 2, sent_bytes: 10, received_bytes: 20, open: 1 },
    };
    lab.publisher.known.lock().unwrap().insert("a.preview.example".parse().unwrap(), status);
    let shown = lab.get(&lab.root, "/v1/domains/a.preview.example").await.expect(200);
    assert_eq!(shown.body["certificate"], json!({ "state": "valid", "not_after": "2027-01-01T00:00:00Z" }));
    let traffic = json!({ "requests": 3, "refused": 2, "sent_bytes": 10, "received_bytes": 20, "open": 1 });
    assert_eq!(shown.body["traffic"], traffic);
    assert_eq!(shown.body.get("hindrance"), None);
    *lab.publisher.info.lock().unwrap() = PublicInfo::nothing();
    let shown = lab.get(&lab.root, "/v1/domains/a.preview.example").await.expect(200);
    assert!(shown.at("/hindrance").contains("publishes nothing: start it with --https-listen"), "{}", shown.text);
}

#[tokio::test]
async fn the_authority_is_shown_where_there_is_one() {
    let lab = public().await;
    lab.get(&lab.root, "/v1/domains/authority").await.expect(404).refused("not_found");
    *lab.publisher.authority.lock().unwrap() = Some("-----BEGIN CERTIFICATE-----\n".into());
    let shown = lab.get(&lab.root, "/v1/domains/authority").await.expect(200);
    assert_eq!(shown.headers["content-type"], "application/pem-certificate-chain");
    assert_eq!(shown.text, "-----BEGIN CERTIFICATE-----\n");
}

#[tokio::test]
async fn the_same_request_maps_once() {
    let lab = public().await;
    let ask = || {
        let body = json!({ "machine": "web", "port": 8080 }).to_string();
        with_header(request("POST", "/v1/domains", &lab.root, Some(body)), "idempotency-key", "one")
    };
    let first = lab.call(ask()).await.expect(201);
    let again = lab.call(ask()).await.expect(200);
    assert_eq!(
        (again.at("/host"), again.headers["idempotency-replayed"].as_bytes()),
        (first.at("/host"), &b"true"[..])
    );
    lab.delete(&lab.root, &format!("/v1/domains/{}", first.at("/host"))).await.expect(204);
    lab.call(ask()).await.expect(404).refused("not_found");
}

#[tokio::test]
async fn an_account_has_at_most_a_thousand_domains_and_claims() {
    let lab = public().await;
    let made = map(&lab, &lab.root, "a.preview.example").await.expect(201);
    let host = "a.preview.example".parse().unwrap();
    let read = lab.store.read(&schema::domain(&host)).await.unwrap().unwrap().record;
    let mut txn = TxnBuilder::new();
    for n in 1..1000 {
        txn = txn.put(&schema::domain_of(read.account, &format!("n{n}.example").parse().unwrap()), &()).unwrap();
    }
    txn.commit(&*lab.store).await.unwrap();
    map(&lab, &lab.root, "b.preview.example").await.expect(409).refused("quota_exceeded");
    lab.delete(&lab.root, &format!("/v1/domains/{}", made.at("/id"))).await.expect(204);
    map(&lab, &lab.root, "b.preview.example").await.expect(201);

    claim(&lab, &lab.root, "n0.example").await.expect(201);
    let first = lab.store.list_all(&schema::domain_claims(read.account)).await.unwrap().0.remove(0).record;
    let mut txn = TxnBuilder::new();
    for n in 1..1000 {
        txn = txn.put(&schema::domain_claim(read.account, &format!("n{n}.example").parse().unwrap()), &first).unwrap();
    }
    txn.commit(&*lab.store).await.unwrap();
    claim(&lab, &lab.root, "m.example").await.expect(409).refused("quota_exceeded");
    let page = lab.get(&lab.root, "/v1/domain-claims?limit=999").await.expect(200);
    assert!(page.body["next"].is_string());
}
