//! Operator sessions: what opens, what is refused, what stays of them, and what ends them.

mod common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Answered, FakeTunnels, Lab, lab, lab_with, request, with_header};
use serde_json::{Value, json};
use warren_model::SessionId;
use warren_model::keypair::PrivateKey;
use warren_model::session::MAX_SESSIONS;
use warren_store::{TxnBuilder, Typed, schema};

const SESSIONS: &str = "/v1/networks/default/sessions";

async fn open(lab: &Lab, key: &str) -> Answered {
    lab.post(key, SESSIONS, json!({})).await.expect(201)
}

/// A key pair that nobody else has.
fn pair(n: u8) -> String {
    PrivateKey::from_random(&[n; 32]).public_key().to_string()
}

fn line<'a>(config: &'a str, name: &str) -> Option<&'a str> {
    config.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "))
}

async fn records(lab: &Lab, prefix: &str) -> Vec<Value> {
    let stored = lab.stored().await.into_iter().filter(|(key, _)| key.starts_with(prefix));
    stored.map(|(_, value)| serde_json::from_slice(&value).unwrap()).collect()
}

/// What there is of sessions; the keys of those that are over rest.
async fn left(lab: &Lab) -> Vec<String> {
    let mut keys = lab.keys_below("session").await;
    keys.retain(|key| !key.starts_with("session-key/"));
    keys
}

#[tokio::test]
async fn a_session_comes_with_all_that_wireguard_needs() {
    let lab = lab().await;
    let network = lab.get(&lab.root, "/v1/networks/default").await.expect(200);
    let opened = open(&lab, &lab.root).await;
    let id = opened.at("/session_id");
    assert_eq!((opened.at("/id"), opened.at("/network/name")), (id.clone(), "default".into()));
    assert_eq!(opened.headers["location"], format!("/v1/sessions/{id}"));
    assert_eq!((opened.at("/private_ip"), opened.at("/operator")), ("10.0.5.10".into(), "root".into()));
    assert_eq!((opened.at("/endpoint"), opened.at("/only")), ("vpn.example:51820".into(), "null".into()));
    assert_eq!(opened.at("/server_public_key"), FakeTunnels::public_key().to_string());
    assert_eq!(opened.at("/idle_seconds"), "1800");
    let (created, expires): (jiff::Timestamp, jiff::Timestamp) =
        (opened.at("/created_at").parse().unwrap(), opened.at("/expires_at").parse().unwrap());
    assert_eq!(expires.duration_since(created).as_secs(), 3600);

    let (config, private) = (opened.at("/client_config"), opened.at("/client_private_key"));
    assert_eq!(line(&config, "PrivateKey"), Some(private.as_str()));
    let address6 = opened.at("/private_ip6");
    assert_eq!(line(&config, "Address"), Some(format!("10.0.5.10/32, {address6}/128").as_str()));
    assert_eq!((line(&config, "MTU"), line(&config, "DNS")), (Some("1420"), None));
    // The network's own /80 and the one of names outside are in one /64.
    let wide = network.at("/cidr6").replace("/80", "/64");
    assert_eq!(line(&config, "AllowedIPs"), Some(format!("10.0.0.0/16, {wide}").as_str()));
    assert_eq!(line(&config, "Endpoint"), Some("vpn.example:51820"));
    assert_eq!(line(&config, "PersistentKeepalive"), Some("25"));
    assert_eq!(opened.body["addresses"], json!(["10.0.5.10/32", format!("{address6}/128")]));
    // The pair is one.
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(&private).unwrap();
    let public = PrivateKey::from_random(&bytes.try_into().unwrap()).public_key();
    assert_eq!(opened.at("/public_key"), public.to_string());

    let shown = lab.get(&lab.root, &format!("/v1/sessions/{id}")).await.expect(200);
    assert_eq!(lab.get(&lab.root, &format!("/v1/sessions/{}", shown.at("/name"))).await.expect(200).body, shown.body);
    assert_eq!(shown.at("/status/endpoint"), "198.51.100.7:40000");
    let traffic = json!({ "sent_bytes": 1, "sent_packets": 2, "received_bytes": 3, "received_packets": 4 });
    assert_eq!((&shown.body["status"]["traffic"], shown.at("/status/refused_packets")), (&traffic, "5".into()));
    assert!(shown.body.get("client_config").is_none());
    for path in ["/v1/sessions", SESSIONS] {
        let listed = lab.get(&lab.root, path).await.expect(200);
        assert_eq!(listed.body["items"], json!([shown.body]), "{path}");
    }

    lab.delete(&lab.root, &format!("/v1/sessions/{id}")).await.expect(204);
    assert!(lab.tunnels.was_cut(&id));
    lab.get(&lab.root, &format!("/v1/sessions/{id}")).await.expect(404).refused("not_found");
    lab.delete(&lab.root, &format!("/v1/sessions/{id}")).await.expect(404).refused("not_found");
    assert_eq!(left(&lab).await, Vec::<String>::new());
    // Its address rests, and its number is never given again.
    let next = open(&lab, &lab.root).await;
    assert_eq!(next.at("/private_ip"), "10.0.5.11");
    assert_ne!(next.at("/private_ip6"), address6);
}

#[tokio::test]
async fn a_private_key_is_in_one_answer_and_nowhere_else() {
    let lab = lab().await;
    let send = || {
        let request = request("POST", SESSIONS, &lab.root, Some("{}".into()));
        lab.call(with_header(request, "idempotency-key", "once"))
    };
    let (first, second) = (send().await.expect(201), send().await.expect(200));
    assert_eq!(first.at("/session_id"), second.at("/session_id"));
    assert_eq!(second.headers["idempotency-replayed"], "true");
    let private = first.at("/client_private_key");
    assert!(second.body.get("client_private_key").is_none() && !second.text.contains(&private), "{}", second.text);
    assert!(second.at("/detail").contains("stored nowhere") && first.body.get("detail").is_none());
    let config = second.at("/client_config");
    assert_eq!(line(&config, "PrivateKey"), None);
    assert!(config.contains("# PrivateKey") && config.starts_with("# Not complete"), "{config}");

    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(&private).unwrap();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    lab.delete(&lab.root, &format!("/v1/sessions/{}", first.at("/id"))).await.expect(204);
    open(&lab, &lab.root).await;
    for (key, value) in lab.stored().await {
        let text = format!("{key} {}", String::from_utf8_lossy(&value));
        assert!(!text.contains(&private) && !text.contains(&hex), "{text}");
        assert!(!value.windows(32).any(|window| window == bytes), "{text}");
        // The log of what was done has no keys at all.
        assert!(!key.starts_with("audit/") || !text.contains(&first.at("/public_key")), "{text}");
    }
    // What was opened with this key is gone, and says so.
    send().await.expect(404).refused("not_found");
}

#[tokio::test]
async fn who_opened_what_for_whom_is_in_the_audit_log_and_among_the_events() {
    let lab = lab().await;
    let key = lab.post(&lab.root, "/v1/keys", json!({ "name": "anna" })).await.expect(201);
    lab.post(&lab.root, "/v1/machines", json!({ "name": "web" })).await.expect(201);
    let body = json!({ "only": { "machine": "web", "port": 8080 }, "ttl_seconds": 60 });
    let opened = lab.post(&key.at("/key"), SESSIONS, body).await.expect(201);
    let (id, name) = (opened.at("/id"), opened.at("/name"));
    assert_eq!((opened.at("/operator"), opened.at("/opened_by")), ("anna".into(), key.at("/id")));
    assert_eq!((opened.at("/only/machine/name"), opened.at("/only/port")), ("web".into(), "8080".into()));
    lab.delete(&lab.root, &format!("/v1/sessions/{name}")).await.expect(204);

    let audit = records(&lab, "audit/").await;
    let of = |action: &str| audit.iter().find(|entry| entry["action"] == action).unwrap();
    assert_eq!((&of("session.open")["target"], &of("session.open")["key"]), (&json!(id), &json!(key.at("/id"))));
    let request = &of("session.open")["request"];
    assert_eq!((&request["operator"], &request["address"]), (&json!("anna"), &json!("10.0.5.10")));
    assert_eq!(request["only"]["port"], 8080);
    let request = &of("session.close")["request"];
    assert_eq!((&request["operator"], &request["by"]), (&json!("anna"), &json!("root")));
    assert_eq!(request["reason"], "was closed");

    let events = lab.get(&lab.root, "/v1/events?follow=false").await.expect(200).body;
    let of = |kind: &str| {
        let event = events["items"].as_array().unwrap().iter().find(|event| event["kind"] == kind).unwrap();
        event["message"].as_str().unwrap().to_owned()
    };
    let told = of("session_opened");
    assert!(told.starts_with(&format!("{name} ({id}) was opened by anna in network default with 10.0.5.10")), "{told}");
    assert!(told.ends_with("for web:8080 only"), "{told}");
    assert_eq!(of("session_closed"), format!("{name} ({id}) was closed"));
}

#[tokio::test]
async fn a_session_for_one_machine_sends_only_its_addresses_into_the_tunnel() {
    let lab = lab().await;
    let machine = lab.post(&lab.root, "/v1/machines", json!({ "name": "web" })).await.expect(201);
    let network = lab.get(&lab.root, "/v1/networks/default").await.expect(200);
    let own = [format!("{}/32", machine.at("/private_ip")), format!("{}/128", machine.at("/private_ip6"))];
    let gateways = [network.at("/gateway"), network.at("/gateway6")];
    // Nothing of it goes to the resolver.
    let body = json!({ "only": { "machine": "web" }, "dns": true });
    let refused = lab.post(&lab.root, SESSIONS, body).await.expect(422).refused("invalid_request");
    assert!(refused.at("/detail").contains("leave `dns` out"), "{}", refused.text);
    let opened = lab.post(&lab.root, SESSIONS, json!({ "dns": true })).await.expect(201);
    assert_eq!(line(&opened.at("/client_config"), "DNS"), Some(gateways.join(", ").as_str()));
    assert_eq!(opened.body["dns"], json!(gateways));
    let body = json!({ "only": { "machine": machine.at("/id") }, "dns": false });
    let opened = lab.post(&lab.root, SESSIONS, body).await.expect(201);
    assert_eq!(opened.body["allowed_ips"], json!(own));
    assert!(opened.body.get("dns").is_none());
    let shown = lab.get(&lab.root, &format!("/v1/sessions/{}", opened.at("/id"))).await.expect(200);
    assert_eq!(shown.at("/only/machine/name"), "web");
}

#[tokio::test]
async fn an_operator_can_be_called_only_where_that_was_asked_for() {
    let lab = lab().await;
    for (body, reachable) in
        [(json!({}), false), (json!({ "reachable": false }), false), (json!({ "reachable": true }), true)]
    {
        let opened = lab.post(&lab.root, SESSIONS, body).await.expect(201);
        assert_eq!(opened.body["reachable"], reachable);
        let shown = lab.get(&lab.root, &format!("/v1/sessions/{}", opened.at("/id"))).await.expect(200);
        assert_eq!(shown.body["reachable"], reachable);
        let record = schema::session(opened.at("/id").parse().unwrap());
        assert_eq!(lab.store.read(&record).await.unwrap().unwrap().record.reachable, reachable);
        let audit = records(&lab, "audit/").await;
        let of = |entry: &&Value| entry["target"] == opened.at("/id").as_str();
        assert_eq!(audit.iter().find(of).unwrap()["request"]["reachable"], reachable);
        let events = lab.get(&lab.root, "/v1/events?follow=false").await.expect(200).body;
        let told = |event: &&Value| event["message"].as_str().unwrap().contains(&opened.at("/id"));
        let message = events["items"].as_array().unwrap().iter().find(told).unwrap()["message"].as_str().unwrap();
        assert_eq!(message.ends_with(", reachable"), reachable, "{message}");
    }
}

#[tokio::test]
async fn an_operator_may_keep_the_private_key_to_themselves() {
    let lab = lab().await;
    let body = json!({ "public_key": pair(1) });
    let opened = lab.post(&lab.root, SESSIONS, body.clone()).await.expect(201);
    let config = opened.at("/client_config");
    assert!(opened.body.get("client_private_key").is_none() && opened.at("/public_key") == pair(1));
    assert!(line(&config, "PrivateKey").is_none() && config.contains("# PrivateKey = (put"), "{config}");
    // One key is one peer, in whatever network and account.
    let other = lab.account("other").await;
    lab.post(&lab.root, SESSIONS, body.clone()).await.expect(409).refused("public_key_in_use");
    lab.post(&other, SESSIONS, body.clone()).await.expect(409).refused("public_key_in_use");
    lab.delete(&lab.root, &format!("/v1/sessions/{}", opened.at("/id"))).await.expect(204);
    // The operator's program may go on calling with it, and must not get into somebody else's network.
    lab.post(&other, SESSIONS, body.clone()).await.expect(409).refused("public_key_in_use");
    lab.post(&lab.root, SESSIONS, body).await.expect(201);
}

#[tokio::test]
async fn bad_input_is_refused_and_changes_nothing() {
    let lab = lab().await;
    lab.post(&lab.root, "/v1/machines", json!({ "name": "web" })).await.expect(201);
    lab.post(&lab.root, "/v1/networks", json!({ "name": "far" })).await.expect(201);
    lab.post(&lab.root, "/v1/machines", json!({ "name": "away", "network": "far" })).await.expect(201);
    let before = lab.stored().await;
    let low_order = format!("{}=", "A".repeat(43));
    for (body, status, code) in [
        (json!({ "ttl_seconds": 4 }), 422, "invalid_request"),
        (json!({ "ttl_seconds": 86_401 }), 422, "invalid_request"),
        (json!({ "ttl_seconds": -1 }), 422, "invalid_request"),
        (json!({ "ttl_seconds": u64::MAX }), 422, "invalid_request"),
        (json!({ "idle_seconds": 4 }), 422, "invalid_request"),
        (json!({ "idle_seconds": 86_401 }), 422, "invalid_request"),
        (json!({ "reachable": "yes" }), 422, "invalid_request"),
        (json!({ "only": { "machine": "web" }, "dns": true }), 422, "invalid_request"),
        (json!({ "forever": true }), 422, "invalid_request"),
        (json!({ "only": {} }), 422, "invalid_request"),
        (json!({ "only": { "machine": "web", "port": 65_536 } }), 422, "invalid_request"),
        (json!({ "only": { "machine": "web", "port": 0 } }), 422, "invalid_port"),
        (json!({ "only": { "machine": "away" } }), 422, "invalid_request"),
        (json!({ "only": { "machine": "none" } }), 404, "not_found"),
        (json!({ "public_key": "" }), 422, "invalid_public_key"),
        (json!({ "public_key": "nonsense" }), 422, "invalid_public_key"),
        (json!({ "public_key": low_order }), 422, "invalid_public_key"),
        (json!({ "public_key": FakeTunnels::public_key().to_string() }), 422, "invalid_public_key"),
    ] {
        let answer = lab.post(&lab.root, SESSIONS, body.clone()).await;
        assert_eq!(answer.status, status, "{body} {}", answer.text);
        answer.refused(code);
    }
    lab.post(&lab.root, "/v1/networks/none/sessions", json!({})).await.expect(404).refused("not_found");
    for name in ["none", "session-", "session-00000000", "ses_00000000000000000000000001", "%00"] {
        let path = format!("/v1/sessions/{name}");
        lab.get(&lab.root, &path).await.expect(404).refused("not_found");
        lab.delete(&lab.root, &path).await.expect(404).refused("not_found");
    }
    assert_eq!(lab.stored().await, before);
}

#[tokio::test]
async fn without_a_gateway_sessions_are_refused_with_the_reason() {
    let lab = lab().await;
    *lab.tunnels.gateway.lock().unwrap() = Err("0.0.0.0:51820 is in use".into());
    let before = lab.stored().await;
    let refused = lab.post(&lab.root, SESSIONS, json!({})).await.expect(503).refused("vpn_unavailable");
    assert!(refused.at("/detail").ends_with("0.0.0.0:51820 is in use"), "{}", refused.text);
    assert_eq!(lab.stored().await, before);
    assert_eq!(lab.get(&lab.root, "/v1/sessions").await.expect(200).body["items"], json!([]));
}

#[tokio::test]
async fn a_session_of_which_nothing_passes_says_why() {
    let lab = lab().await;
    let path = format!("/v1/sessions/{}", open(&lab, &lab.root).await.at("/id"));
    assert_eq!(lab.get(&lab.root, &path).await.expect(200).body.get("hindrance"), None);
    *lab.tunnels.hindrance.lock().unwrap() = Some("UDP port 51820 cannot be had".into());
    assert_eq!(lab.get(&lab.root, &path).await.expect(200).at("/hindrance"), "UDP port 51820 cannot be had");
    for list in ["/v1/sessions", SESSIONS] {
        let listed = lab.get(&lab.root, list).await.expect(200);
        assert_eq!(listed.at("/items/0/hindrance"), "UDP port 51820 cannot be had", "{list}");
    }
}

#[tokio::test]
async fn nothing_stays_of_a_session_whose_packets_do_not_pass() {
    let lab = lab_with(|config| config.operation_deadline = Duration::from_secs(2)).await;
    let send = || {
        let request = request("POST", SESSIONS, &lab.root, Some("{}".into()));
        lab.call(with_header(request, "idempotency-key", "once"))
    };
    lab.tunnels.failing.store(true, Ordering::Relaxed);
    let refused = send().await.expect(503).refused("vpn_unavailable");
    assert!(refused.at("/detail").ends_with("nothing of it stays: the edge does not answer"), "{}", refused.text);
    lab.tunnels.stuck.store(true, Ordering::Relaxed);
    send().await.expect(504).refused("deadline_exceeded");
    assert_eq!(left(&lab).await, Vec::<String>::new());
    let audit = records(&lab, "audit/").await;
    assert_eq!(audit.iter().filter(|entry| entry["action"] == "session.open.undo").count(), 2);
    // The same request may try again.
    lab.tunnels.failing.store(false, Ordering::Relaxed);
    lab.tunnels.stuck.store(false, Ordering::Relaxed);
    let id = send().await.expect(201).at("/id");
    // A session that cannot be cut is closed all the same, and its closer is told.
    lab.tunnels.stuck.store(true, Ordering::Relaxed);
    lab.delete(&lab.root, &format!("/v1/sessions/{id}")).await.expect(504).refused("deadline_exceeded");
    assert_eq!(left(&lab).await, Vec::<String>::new());
}

#[tokio::test]
async fn other_accounts_sessions_are_like_sessions_that_do_not_exist() {
    let lab = lab().await;
    let (mine, other) = (lab.account("mine").await, lab.account("other").await);
    let theirs = open(&lab, &other).await;
    let (id, name) = (theirs.at("/id"), theirs.at("/name"));
    let network = theirs.at("/network/id");
    let before = lab.stored().await;
    for (given, absent) in [(&id, "ses_00000000000000000000000001"), (&name, "session-00000000")] {
        let one = lab.get(&mine, &format!("/v1/sessions/{given}")).await.expect(404).refused("not_found");
        let two = lab.get(&mine, &format!("/v1/sessions/{absent}")).await.expect(404).refused("not_found");
        let same = |answer: &Answered, id: &str| answer.without_request_id().to_string().replace(id, "ID");
        assert_eq!(same(&one, given), same(&two, absent));
        lab.delete(&mine, &format!("/v1/sessions/{given}")).await.expect(404).refused("not_found");
    }
    let path = format!("/v1/networks/{network}/sessions");
    lab.get(&mine, &path).await.expect(404).refused("not_found");
    lab.post(&mine, &path, json!({})).await.expect(404).refused("not_found");
    assert_eq!(lab.get(&mine, "/v1/sessions").await.expect(200).body, json!({ "items": [], "next": null }));
    assert_eq!(lab.stored().await, before);

    // Root acts in any account, and is named there.
    let as_root = with_header(request("POST", SESSIONS, &lab.root, Some("{}".into())), "x-warren-account", "other");
    let opened = lab.call(as_root).await.expect(201);
    assert_eq!((opened.at("/network/id"), opened.at("/operator")), (network, "root".into()));
    lab.delete(&other, &format!("/v1/sessions/{}", opened.at("/id"))).await.expect(204);
}

#[tokio::test]
async fn an_identitys_token_opens_lists_and_closes_nothing() {
    let lab = lab().await;
    let id = open(&lab, &lab.root).await.at("/id");
    lab.post(&lab.root, "/v1/identities", json!({ "name": "alice" })).await.expect(201);
    let verbs = json!({ "verbs": ["view", "exec", "shell", "files", "start", "stop", "ports"] });
    lab.put(&lab.root, "/v1/identities/alice/networks/default", verbs).await.expect(200);
    let token = lab.post(&lab.root, "/v1/identities/alice/tokens", json!({})).await.expect(201).at("/token");
    lab.post(&token, SESSIONS, json!({})).await.expect(403).refused("forbidden");
    for path in [SESSIONS, "/v1/sessions", &format!("/v1/sessions/{id}")] {
        lab.get(&token, path).await.expect(403).refused("forbidden");
    }
    lab.delete(&token, &format!("/v1/sessions/{id}")).await.expect(403).refused("forbidden");
    lab.get(&lab.root, &format!("/v1/sessions/{id}")).await.expect(200);
}

#[tokio::test]
async fn what_a_key_opened_ends_when_it_is_revoked() {
    let lab = lab().await;
    let key = lab.post(&lab.root, "/v1/keys", json!({ "name": "anna" })).await.expect(201);
    let (hers, root) = (open(&lab, &key.at("/key")).await.at("/id"), open(&lab, &lab.root).await.at("/id"));
    lab.delete(&lab.root, &format!("/v1/keys/{}", key.at("/id"))).await.expect(204);
    assert!(lab.tunnels.was_cut(&hers) && !lab.tunnels.was_cut(&root));
    let listed = lab.get(&lab.root, "/v1/sessions").await.expect(200);
    assert_eq!(listed.body["items"].as_array().unwrap().len(), 1);
    assert_eq!(listed.at("/items/0/id"), root);
    let events = lab.get(&lab.root, "/v1/events?follow=false").await.expect(200).text;
    assert!(events.contains("was closed: the key that opened it was revoked"), "{events}");
    // A new root key revokes the old one.
    warren_api::bootstrap::new_root_key(&*lab.store).await.unwrap();
    assert_eq!(left(&lab).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_key_that_is_being_revoked_leaves_no_session_behind() {
    let lab = lab().await;
    for _ in 0..20 {
        let key = lab.post(&lab.root, "/v1/keys", json!({})).await.expect(201);
        let (secret, path) = (key.at("/key"), format!("/v1/keys/{}", key.at("/id")));
        let (one, two, revoked) = tokio::join!(
            lab.post(&secret, SESSIONS, json!({})),
            lab.post(&secret, SESSIONS, json!({})),
            lab.delete(&lab.root, &path),
        );
        revoked.expect(204);
        for opened in [one, two] {
            assert!([201, 401, 404].contains(&opened.status), "{}", opened.text);
        }
    }
    assert_eq!(left(&lab).await, Vec::<String>::new());
}

#[tokio::test]
async fn opening_a_session_leaves_the_key_as_it_is() {
    let lab = lab().await;
    let keys = || async { lab.store.list_all(&schema::api_keys()).await.unwrap().0 };
    let before = keys().await;
    open(&lab, &lab.root).await;
    assert_eq!(keys().await, before, "a key that is written is proved anew by everybody who uses it");
}

#[tokio::test]
async fn no_session_outlives_the_key_that_opened_it() {
    let lab = lab().await;
    let key = lab.post(&lab.root, "/v1/keys", json!({ "expires_in_seconds": 120 })).await.expect(201);
    let end = key.at("/expires_at");
    let opened = lab.post(&key.at("/key"), SESSIONS, json!({ "ttl_seconds": 86_400 })).await.expect(201);
    assert_eq!(opened.at("/expires_at"), end);
    let opened = lab.post(&key.at("/key"), SESSIONS, json!({ "ttl_seconds": 60 })).await.expect(201);
    assert!(opened.at("/expires_at") < end);
}

#[tokio::test]
async fn a_session_that_has_expired_is_there_no_more() {
    let lab = lab().await;
    let id = open(&lab, &lab.root).await.at("/id");
    let key = schema::session(id.parse().unwrap());
    let mut read = lab.store.read(&key).await.unwrap().unwrap();
    read.record.expires_at = jiff::Timestamp::now();
    TxnBuilder::new().put(&key, &read.record).unwrap().commit(&*lab.store).await.unwrap();
    for path in ["/v1/sessions", SESSIONS] {
        assert_eq!(lab.get(&lab.root, path).await.expect(200).body["items"], json!([]), "{path}");
    }
    lab.get(&lab.root, &format!("/v1/sessions/{id}")).await.expect(404).refused("not_found");
    // Nor does it keep its network.
    lab.delete(&lab.root, "/v1/networks/default").await.expect(204);
    assert_eq!(left(&lab).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_network_with_sessions_is_deleted_only_by_force() {
    let lab = lab().await;
    let opened = open(&lab, &lab.root).await;
    let refused = lab.delete(&lab.root, "/v1/networks/default").await.expect(409).refused("network_not_empty");
    assert!(refused.at("/detail").contains(&format!("has 1 members ({})", opened.at("/name"))), "{}", refused.text);
    lab.delete(&lab.root, "/v1/networks/default?force=true").await.expect(204);
    assert_eq!(left(&lab).await, Vec::<String>::new());
    assert_eq!(lab.keys_below("address/").await, Vec::<String>::new());
    let events = lab.get(&lab.root, "/v1/events?follow=false").await.expect(200).text;
    assert!(events.contains("was closed: its network is being deleted"), "{events}");
}

#[tokio::test]
async fn an_account_has_so_many_sessions_in_all_its_networks_and_no_more() {
    let lab = lab().await;
    lab.post(&lab.root, "/v1/networks", json!({ "name": "far" })).await.expect(201);
    let network = lab.get(&lab.root, "/v1/networks/default").await.at("/id").parse().unwrap();
    let account = lab.store.read(&schema::network(network)).await.unwrap().unwrap().record.account;
    let mut txn = TxnBuilder::new();
    for n in 1..MAX_SESSIONS as u64 {
        let id = SessionId::from_ulid(ulid::Ulid::from_parts(n, 1));
        txn = txn.put(&schema::session_of(account, network, id), &()).unwrap();
    }
    txn.commit(&*lab.store).await.unwrap();
    let last = open(&lab, &lab.root).await.at("/session_id");
    for path in [SESSIONS, "/v1/networks/far/sessions"] {
        lab.post(&lab.root, path, json!({})).await.expect(409).refused("session_limit");
    }
    let other = lab.account("other").await;
    open(&lab, &other).await;
    lab.delete(&lab.root, &format!("/v1/sessions/{last}")).await.expect(204);
    lab.post(&lab.root, "/v1/networks/far/sessions", json!({})).await.expect(201);
}

#[tokio::test]
async fn sessions_that_open_at_once_have_addresses_of_their_own() {
    let lab = lab().await;
    let all = futures::future::join_all((0..12).map(|_| open(&lab, &lab.root))).await;
    let addresses: std::collections::BTreeSet<_> = all.iter().map(|opened| opened.at("/private_ip")).collect();
    assert_eq!(addresses.len(), 12);
    let addresses: std::collections::BTreeSet<_> = all.iter().map(|opened| opened.at("/private_ip6")).collect();
    assert_eq!(addresses.len(), 12);
    // The account's are listed over networks, page by page, and nobody else's between them.
    let other = lab.account("other").await;
    open(&lab, &other).await;
    lab.post(&lab.root, "/v1/networks", json!({ "name": "far" })).await.expect(201);
    lab.post(&lab.root, "/v1/networks/far/sessions", json!({})).await.expect(201);
    for (path, expected) in [("/v1/sessions?limit=5", 13), ("/v1/networks/default/sessions?limit=5", 12)] {
        let (mut ids, mut next) = (std::collections::BTreeSet::new(), path.to_owned());
        loop {
            let page = lab.get(&lab.root, &next).await.expect(200);
            ids.extend(page.body["items"].as_array().unwrap().iter().map(|item| item["id"].to_string()));
            match page.body["next"].as_str() {
                Some(cursor) => next = format!("{path}&cursor={cursor}"),
                None => break,
            }
        }
        assert_eq!(ids.len(), expected, "{path}");
    }
}

#[tokio::test]
async fn a_guessed_endpoint_is_said_to_be_one() {
    let lab = lab().await;
    lab.tunnels.forget_endpoint();
    let ask = async |host: &str| {
        let request = with_header(request("POST", SESSIONS, &lab.root, Some("{}".into())), "host", host);
        let opened = lab.call(request).await.expect(201);
        (opened.at("/endpoint"), opened.at("/client_config"))
    };
    let (endpoint, config) = ask("warren.example:7070").await;
    assert_eq!((endpoint.as_str(), line(&config, "Endpoint")), ("warren.example:51820", Some("warren.example:51820")));
    assert!(config.starts_with("# The endpoint is a guess") && config.contains("--vpn-endpoint"), "{config}");
    assert_eq!(ask("127.0.0.1:7070").await.0, "10.9.9.9:51820");
    assert_eq!(ask("localhost").await.0, "10.9.9.9:51820");
}
