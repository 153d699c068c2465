//! Every route for every kind of caller, and what a key that is not valid gets.

mod common;

use axum::body::Body;
use common::{lab, request, with_header};
use http::Request;
use serde_json::json;
use warren_api::table::{self, CallerKind};
use warren_model::{Code, Verb};

/// One caller of every kind, and what it gets of a route that its row opens or closes to it.
struct Who {
    name: &'static str,
    kind: CallerKind,
    secret: String,
    /// Whether the machine `m` is there for it.
    knows: bool,
}

#[tokio::test]
async fn every_route_lets_in_whom_its_row_lets_in_and_nobody_else() {
    let lab = lab().await;
    let account = lab.account("other").await;
    let token = async |key: &str, grant: Option<&str>| {
        let identity = lab.post(key, "/v1/identities", json!({})).await.expect(201).at("/id");
        if let Some(machine) = grant {
            let path = format!("/v1/identities/{identity}/machines/{machine}");
            lab.put(key, &path, json!({ "verbs": ["view", "exec", "shell", "files", "start", "stop", "ports"] }))
                .await
                .expect(200);
        }
        lab.post(key, &format!("/v1/identities/{identity}/tokens"), json!({})).await.expect(201)
    };
    lab.post(&lab.root, "/v1/machines", json!({ "name": "m" })).await.expect(201);
    lab.post(&account, "/v1/machines", json!({ "name": "theirs" })).await.expect(201);
    let granted = token(&lab.root, Some("m")).await.at("/token");
    let ungranted = token(&lab.root, None).await.at("/token");
    let foreign = token(&account, Some("theirs")).await.at("/token");
    let revoked = token(&lab.root, Some("m")).await;
    lab.delete(&lab.root, &format!("/v1/tokens/{}", revoked.at("/id"))).await.expect(204);
    let expired = token(&lab.root, Some("m")).await.at("/token");
    expire(&lab, &expired).await;
    let who = |name, kind, secret: &str, knows| Who { name, kind, secret: secret.to_owned(), knows };
    let callers = [
        who("none", CallerKind::Nobody, "", false),
        who("a forged token", CallerKind::Nobody, &format!("wt_{}", "A".repeat(43)), false),
        who("an expired token", CallerKind::Nobody, &expired, false),
        who("a revoked token", CallerKind::Nobody, &revoked.at("/token"), false),
        who("an ungranted token", CallerKind::Token, &ungranted, false),
        who("a token of another account", CallerKind::Token, &foreign, false),
        who("a granted token", CallerKind::Token, &granted, true),
        who("another account", CallerKind::Account, &account, false),
        who("root", CallerKind::Root, &lab.root, true),
    ];
    assert!(table::rows().len() > 50);
    for row in table::rows() {
        let path = row.path.replace("{network}", "none").replace("{key}", "none").replace("{token}", "none");
        let path = path.replace("{account}", "none").replace("{image}", "none").replace("{version}", "9");
        let path = path.replace("{identity}", "none").replace("{snapshot}", "none").replace("{request}", "none");
        let path = path.replace("{domain}", "none").replace("{filepath}", "%2Fa");
        // A machine that is there shows that a token gets through; whatever would change it gets one that is not.
        let about_machine = path.contains("/{machine}") && !path.contains("{session}") && row.token.is_some();
        let path = path.replace("{session}", "none");
        let path = path.replace("{machine}", "none");
        let (path, body) = if about_machine { about(row, "m") } else { (path, None) };
        for caller in &callers {
            let request = request(row.method, &path, &caller.secret, body.clone());
            let response = lab.send(request).await;
            let code = response.extensions().get::<warren_model::Problem>().map(|problem| problem.code);
            let media_type = response.headers().get("content-type").and_then(|value| value.to_str().ok());
            if code.is_some() {
                let own = if row.is_native() { "application/problem+json" } else { "application/json" };
                assert_eq!(media_type, Some(own), "{} {} as {}", row.method, row.path, caller.name);
            }
            let expected = match (row.allows(caller.kind), caller.kind) {
                (true, _) => None,
                (false, CallerKind::Nobody) => Some(Code::Unauthorized),
                (false, _) => Some(Code::Forbidden),
            };
            let found = code.filter(|code| matches!(code, Code::Unauthorized | Code::Forbidden));
            assert_eq!(found, expected, "{} {} as {}: {}", row.method, row.path, caller.name, response.status());
            if about_machine && row.allows(caller.kind) && caller.kind != CallerKind::Nobody {
                let absent = code == Some(Code::NotFound);
                assert_eq!(absent, !caller.knows, "{} {} as {}: {code:?}", row.method, row.path, caller.name);
            }
        }
    }
}

#[tokio::test]
async fn every_verb_that_a_row_names_counts() {
    let lab = lab().await;
    lab.post(&lab.root, "/v1/machines", json!({ "name": "m" })).await.expect(201);
    lab.post(&lab.root, "/v1/identities", json!({ "name": "alice" })).await.expect(201);
    let token = lab.post(&lab.root, "/v1/identities/alice/tokens", json!({})).await.expect(201).at("/token");
    let mut tried = 0;
    for row in table::rows().iter().filter(|row| !row.path.contains("{session}")) {
        for verb in row.token.unwrap_or_default() {
            // Whoever may start or stop may view.
            let others = Verb::ALL.into_iter().filter(|other| other != verb);
            let others: Vec<_> =
                others.filter(|other| *verb != Verb::View || ![Verb::Start, Verb::Stop].contains(other)).collect();
            lab.put(&lab.root, "/v1/identities/alice/machines/m", json!({ "verbs": others })).await.expect(200);
            let (path, body) = about(row, "m");
            let answer = lab.send(request(row.method, &path, &token, body)).await;
            let code = answer.extensions().get::<warren_model::Problem>().map(|problem| problem.code);
            assert_eq!(code, Some(Code::Forbidden), "{} {} without {verb}", row.method, row.path);
            tried += 1;
        }
    }
    assert!(tried >= 15);
}

/// A request for what the row does to this machine, which nothing refuses before the machine is looked for.
fn about(row: &table::Row, machine: &str) -> (String, Option<String>) {
    let mut path = row.path.replace("{machine}", machine).replace("{filepath}", "%2Fa");
    if row.is_native() && path.contains("/files") && !path.ends_with("/directories") {
        path += "?path=/a";
    }
    let body = match (path.rsplit('/').next(), row.method) {
        (Some("exec"), "POST") => Some(json!({ "command": ["env"] })),
        (Some("exec-await"), _) => Some(json!({ "command": "true" })),
        (Some("%2Fa"), "PUT") => Some(json!({ "content": "" })),
        (Some("directories"), _) => Some(json!({ "path": "/a" })),
        _ => None,
    };
    (path, body.map(|body| body.to_string()))
}

/// Time passes in the record instead of on the clock; the watch brings it to the cache.
async fn expire(lab: &common::Lab, token: &str) {
    use warren_store::{TxnBuilder, Typed, schema};
    let hash = blake3::hash(token.as_bytes()).to_hex().to_string();
    let mut read = lab.store.read(&schema::token(&hash)).await.unwrap().unwrap();
    read.record.expires_at = jiff::Timestamp::now();
    TxnBuilder::new().put(&schema::token(&hash), &read.record).unwrap().commit(&*lab.store).await.unwrap();
}

#[tokio::test]
async fn a_key_that_is_not_valid_gets_the_same_answer_whatever_is_wrong_with_it() {
    let lab = lab().await;
    let key = lab.post(&lab.root, "/v1/keys", json!({ "name": "old" })).await.expect(201);
    lab.get(&key.at("/key"), "/v1/whoami").await.expect(200);
    lab.delete(&lab.root, &format!("/v1/keys/{}", key.at("/id"))).await.expect(204);
    let revoked = key.at("/key");
    let wrong = format!("wk_{}", "A".repeat(43));

    let mut answers = Vec::new();
    for key in ["", &revoked, &wrong, "wk_", "nonsense", "a b"] {
        answers.push(lab.get(key, "/v1/whoami").await.expect(401).refused("unauthorized"));
    }
    for (name, value) in
        [("authorization", "Basic d3Q6"), ("authorization", "Bearer"), ("x-api-key", wrong.as_str()), ("x-api-key", "")]
    {
        let request = Request::get("/v1/whoami").header(name, value).body(Body::empty()).unwrap();
        answers.push(lab.call(request).await.expect(401));
    }
    let both = with_header(request("GET", "/v1/whoami", &lab.root, None), "x-api-key", &wrong);
    answers.push(lab.call(both).await.expect(401));
    for answer in &answers {
        assert_eq!(answer.without_request_id(), answers[0].without_request_id());
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
    }
}

#[tokio::test]
async fn a_key_expires_and_the_cache_does_not_outlive_it() {
    let lab = lab().await;
    let made = lab.post(&lab.root, "/v1/keys", json!({ "expires_in_seconds": 60 })).await.expect(201);
    let key = made.at("/key");
    lab.get(&key, "/v1/whoami").await.expect(200);
    // Time passes in the record instead of on the clock; the watch has to bring it to the cache.
    let hash = blake3::hash(key.as_bytes()).to_hex().to_string();
    use warren_store::{TxnBuilder, Typed, schema};
    let mut read = lab.store.read(&schema::api_key(&hash)).await.unwrap().unwrap();
    read.record.expires_at = Some(jiff::Timestamp::now());
    let txn = TxnBuilder::new().put(&schema::api_key(&hash), &read.record).unwrap();
    txn.commit(&*lab.store).await.unwrap();
    for _ in 0..3000 {
        if lab.get(&key, "/v1/whoami").await.status == 401 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("an expired key still works");
}

#[tokio::test]
async fn both_headers_carry_a_key() {
    let lab = lab().await;
    let request = Request::get("/v1/whoami").header("x-api-key", &lab.root).body(Body::empty()).unwrap();
    let answer = lab.call(request).await.expect(200);
    assert_eq!((answer.at("/root"), answer.at("/account/name")), ("true".into(), "default".into()));
    assert_eq!(answer.at("/version"), "1.2.3");
}

#[tokio::test]
async fn only_the_root_key_acts_in_another_account() {
    let lab = lab().await;
    let key = lab.account("other").await;
    let as_account =
        |key: &str, account: &str| with_header(request("GET", "/v1/whoami", key, None), "x-warren-account", account);
    let own = lab.get(&key, "/v1/whoami").await.expect(200).at("/account/id");
    for name in ["other", own.as_str()] {
        assert_eq!(lab.call(as_account(&lab.root, name)).await.expect(200).at("/account/id"), own);
        assert_eq!(lab.call(as_account(&key, name)).await.expect(200).at("/account/id"), own);
    }
    let one = lab.call(as_account(&key, "default")).await.expect(403).refused("forbidden");
    let other = lab.call(as_account(&key, "no-such")).await.expect(403).refused("forbidden");
    assert_eq!(one.without_request_id(), other.without_request_id());
    lab.call(as_account(&lab.root, "no-such")).await.expect(404).refused("not_found");
}

#[tokio::test]
async fn another_accounts_things_are_like_things_that_do_not_exist() {
    let lab = lab().await;
    let (mine, other) = (lab.account("mine").await, lab.account("other").await);
    let machine = lab.post(&other, "/v1/machines", json!({ "name": "secret" })).await.expect(201).at("/id");
    let network = lab.post(&other, "/v1/networks", json!({ "name": "hidden" })).await.expect(201).at("/id");
    let key = lab.get(&other, "/v1/keys").await.expect(200).at("/items/0/id");
    for path in [
        "machines/{m}",
        "machines/{m}/ports",
        "machines/{m}/logs",
        "machines/{m}/traffic",
        "machines/{m}/exec",
        "machines/{m}/files?path=/a",
        "networks/{n}",
        "machines?network={n}",
        "reach?network={n}",
        "denials?machine={m}",
    ] {
        let there = path.replace("{m}", &machine).replace("{n}", &network);
        let absent =
            path.replace("{m}", "mch_00000000000000000000000001").replace("{n}", "net_00000000000000000000000001");
        let one = lab.get(&mine, &format!("/v1/{there}")).await.expect(404).refused("not_found");
        let two = lab.get(&mine, &format!("/v1/{absent}")).await.expect(404).refused("not_found");
        let same = |answer: &common::Answered, id: &str| answer.without_request_id().to_string().replace(id, "ID");
        let (id, none) = if path.contains("{m}") {
            (&machine, "mch_00000000000000000000000001")
        } else {
            (&network, "net_00000000000000000000000001")
        };
        assert_eq!(same(&one, id), same(&two, none));
        let named = there.replace(&machine, "secret").replace(&network, "hidden");
        lab.get(&mine, &format!("/v1/{named}")).await.expect(404).refused("not_found");
    }
    let before = lab.stored().await;
    for path in
        [format!("/v1/machines/{machine}"), format!("/v1/networks/{network}?force=true"), format!("/v1/keys/{key}")]
    {
        lab.delete(&mine, &path).await.expect(404).refused("not_found");
    }
    lab.patch(&mine, &format!("/v1/machines/{machine}"), json!({ "name": "x" })).await.expect(404);
    lab.post(&mine, "/v1/machines", json!({ "network": network })).await.expect(404).refused("not_found");
    assert_eq!(lab.stored().await, before);
}

#[tokio::test]
async fn the_root_key_is_neither_shown_to_nor_revoked_by_others() {
    let lab = lab().await;
    let plain = lab.post(&lab.root, "/v1/keys", json!({})).await.expect(201).at("/key");
    let root = lab.get(&lab.root, "/v1/whoami").await.at("/key");
    assert!(!lab.get(&plain, "/v1/keys").await.expect(200).text.contains(&root));
    lab.delete(&plain, &format!("/v1/keys/{root}")).await.expect(404).refused("not_found");
    lab.delete(&lab.root, &format!("/v1/keys/{root}")).await.expect(403).refused("forbidden");
    lab.get(&plain, "/v1/accounts").await.expect(403).refused("forbidden");
}

#[tokio::test]
async fn a_new_root_key_revokes_the_old_one() {
    let lab = lab().await;
    lab.get(&lab.root, "/v1/whoami").await.expect(200);
    let new = warren_api::bootstrap::new_root_key(&*lab.store).await.unwrap();
    assert_eq!(lab.get(&new, "/v1/whoami").await.expect(200).at("/root"), "true");
    for _ in 0..3000 {
        if lab.get(&lab.root, "/v1/whoami").await.status == 401 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the old root key still works");
}

#[tokio::test]
async fn the_root_key_is_listed_by_name_and_stays() {
    let lab = lab().await;
    let listed = lab.get(&lab.root, "/v1/keys").await.expect(200);
    assert_eq!(listed.at("/items/0/name"), "root");
    lab.delete(&lab.root, "/v1/keys/root").await.expect(403).refused("forbidden");
    let plain = lab.post(&lab.root, "/v1/keys", json!({ "name": "ci" })).await.expect(201).at("/key");
    let seen = lab.get(&plain, "/v1/keys").await.expect(200);
    assert_eq!((seen.at("/items/0/name"), seen.body["items"].as_array().unwrap().len()), ("ci".to_owned(), 1));
}
