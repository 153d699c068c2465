//! Identities, what is granted to them, and their tokens: a token does what it was granted and nothing else.

mod common;

use std::time::Duration;

use axum::body::Body;
use common::{Lab, lab, lab_with, request, with_header};
use futures::{SinkExt, StreamExt};
use http::Request;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

/// Longer than anything here should take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A machine `m`, an identity `alice` who was granted this on it, and her token.
async fn alice(grant: Value) -> (Lab, String) {
    let lab = lab().await;
    lab.post(&lab.root, "/v1/machines", json!({ "name": "m" })).await.expect(201);
    lab.post(&lab.root, "/v1/identities", json!({ "name": "alice" })).await.expect(201);
    lab.put(&lab.root, "/v1/identities/alice/machines/m", grant).await.expect(200);
    let token = token(&lab).await.at("/token");
    (lab, token)
}

async fn token(lab: &Lab) -> common::Answered {
    lab.post(&lab.root, "/v1/identities/alice/tokens", json!({})).await.expect(201)
}

async fn run(lab: &Lab, token: &str, user: Option<&str>) -> common::Answered {
    let mut body = json!({ "command": ["env"] });
    if let Some(user) = user {
        body["user"] = json!(user);
    }
    lab.post(token, "/v1/machines/m/exec", body).await
}

#[tokio::test]
async fn a_token_does_what_was_granted_and_nothing_else() {
    let (lab, token) = alice(json!({ "verbs": ["exec", "ports"] })).await;
    run(&lab, &token, None).await.expect(200);
    lab.get(&token, "/v1/machines/m/ports").await.expect(200);
    lab.get(&token, "/v1/machines/m").await.expect(403).refused("forbidden");
    lab.get(&token, "/v1/machines/m/files?path=/a").await.expect(403).refused("forbidden");
    lab.post(&token, "/v1/machines/m/stop", json!({})).await.expect(403).refused("forbidden");
    lab.get(&token, "/v1/networks").await.expect(403).refused("forbidden");
    let me = lab.get(&token, "/v1/whoami").await.expect(200);
    assert!(me.at("/identity").starts_with("idn_") && me.at("/token").starts_with("tok_"));
    assert!(me.body.get("key").is_none());
}

#[tokio::test]
async fn what_is_not_granted_does_not_exist() {
    let (lab, token) = alice(json!({ "verbs": ["view"] })).await;
    lab.post(&lab.root, "/v1/machines", json!({ "name": "other" })).await.expect(201);
    let there = lab.get(&token, "/v1/machines/other").await.expect(404).refused("not_found");
    let absent = lab.get(&token, "/v1/machines/absent").await.expect(404).refused("not_found");
    let same = |answer: &common::Answered, name: &str| answer.without_request_id().to_string().replace(name, "NAME");
    assert_eq!(same(&there, "other"), same(&absent, "absent"));

    let seen = lab.get(&token, "/v1/machines").await.expect(200);
    assert_eq!(seen.body["items"].as_array().unwrap().len(), 1);
    assert_eq!(seen.at("/items/0/name"), "m");
    // A network without a machine that it sees is like one that does not exist.
    lab.post(&lab.root, "/v1/networks", json!({ "name": "hidden" })).await.expect(201);
    for (network, count) in [("default", 1), ("hidden", 0), ("absent", 0)] {
        let seen = lab.get(&token, &format!("/v1/machines?network={network}")).await.expect(200);
        assert_eq!(seen.body["items"].as_array().unwrap().len(), count, "{network}");
    }
    // Without `view` it is there, but not in a list.
    lab.put(&lab.root, "/v1/identities/alice/machines/m", json!({ "verbs": ["exec"] })).await.expect(200);
    assert_eq!(lab.get(&token, "/v1/machines").await.expect(200).body["items"], json!([]));
}

#[tokio::test]
async fn a_grant_on_a_network_covers_the_machines_that_come_later_and_adds_to_their_own() {
    let (lab, token) = alice(json!({ "verbs": ["exec"] })).await;
    lab.put(&lab.root, "/v1/identities/alice/networks/default", json!({ "verbs": ["view"] })).await.expect(200);
    lab.post(&lab.root, "/v1/machines", json!({ "name": "later" })).await.expect(201);
    lab.get(&token, "/v1/machines/later").await.expect(200);
    lab.get(&token, "/v1/machines/m").await.expect(200);
    run(&lab, &token, None).await.expect(200);
    let granted = lab.get(&lab.root, "/v1/identities/alice/grants").await.expect(200);
    assert_eq!(granted.body["items"].as_array().unwrap().len(), 2);
    lab.delete(&lab.root, "/v1/identities/alice/networks/default").await.expect(204);
    lab.get(&token, "/v1/machines/later").await.expect(404).refused("not_found");
    lab.get(&token, "/v1/machines/m").await.expect(403).refused("forbidden");
}

#[tokio::test]
async fn a_grant_for_certain_users_is_for_those() {
    let (lab, token) = alice(json!({ "users": ["bob"] })).await;
    let granted = lab.get(&lab.root, "/v1/identities/alice/grants").await.expect(200);
    assert!(!granted.at("/items/0/verbs").contains("files"), "files are root's");
    // The only one is who is meant.
    for asked in [None, Some("bob")] {
        assert!(run(&lab, &token, asked).await.expect(200).at("/stderr").starts_with("Some(\"bob\")"));
    }
    for asked in ["root", "0", "alice", "bob "] {
        run(&lab, &token, Some(asked)).await.expect(403).refused("forbidden");
    }
    lab.get(&token, "/v1/machines/m/files?path=/a").await.expect(403).refused("forbidden");
    // With several somebody has to be named.
    lab.put(&lab.root, "/v1/identities/alice/machines/m", json!({ "users": ["bob", "carol"] })).await.expect(200);
    run(&lab, &token, None).await.expect(403).refused("forbidden");
    run(&lab, &token, Some("carol")).await.expect(200);
}

#[tokio::test]
async fn a_token_stops_at_once_when_it_its_grant_or_its_identity_goes() {
    let (lab, token) = alice(json!({})).await;
    run(&lab, &token, None).await.expect(200);
    lab.delete(&lab.root, "/v1/identities/alice/machines/m").await.expect(204);
    run(&lab, &token, None).await.expect(404).refused("not_found");
    lab.put(&lab.root, "/v1/identities/alice/machines/m", json!({})).await.expect(200);
    run(&lab, &token, None).await.expect(200);
    let id = lab.get(&token, "/v1/whoami").await.at("/token");
    lab.delete(&lab.root, &format!("/v1/tokens/{id}")).await.expect(204);
    run(&lab, &token, None).await.expect(401).refused("unauthorized");
    lab.delete(&lab.root, &format!("/v1/tokens/{id}")).await.expect(204);

    let other = self::token(&lab).await.at("/token");
    run(&lab, &other, None).await.expect(200);
    lab.delete(&lab.root, "/v1/identities/alice").await.expect(204);
    run(&lab, &other, None).await.expect(401).refused("unauthorized");
    for prefix in ["identity", "grant/", "token"] {
        assert_eq!(lab.keys_below(prefix).await, Vec::<String>::new());
    }
}

async fn open(lab: &Lab, token: &str) -> WebSocketStream<TcpStream> {
    let address = lab.listen().await;
    let mut request = format!("ws://{address}/v1/machines/m/exec").into_client_request().unwrap();
    // As a browser does it, which cannot set another header.
    let protocols = format!("warren, warren.secret.{token}");
    request.headers_mut().insert("sec-websocket-protocol", protocols.parse().unwrap());
    let stream = TcpStream::connect(address).await.unwrap();
    let (socket, answer) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    assert_eq!(answer.headers()["sec-websocket-protocol"], "warren");
    socket
}

fn start(terminal: bool) -> Message {
    let mut exec = json!({ "command": ["cat"] });
    if terminal {
        exec["terminal"] = json!({ "rows": 24, "cols": 80 });
    }
    Message::text(json!({ "type": "start", "exec": exec }).to_string())
}

async fn end(socket: &mut WebSocketStream<TcpStream>) -> Value {
    let end = async {
        loop {
            match socket.next().await.unwrap().unwrap() {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                Message::Close(_) => panic!("closed without a last word"),
                _ => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, end).await.expect("the stream goes on")
}

#[tokio::test]
async fn a_stream_ends_when_what_it_lives_on_is_taken_back() {
    for way in ["token", "grant", "identity"] {
        let (lab, token) = alice(json!({})).await;
        let id = lab.get(&token, "/v1/whoami").await.at("/token");
        let mut socket = open(&lab, &token).await;
        socket.send(start(false)).await.unwrap();
        socket.send(Message::binary(b"hello".to_vec())).await.unwrap();
        while !matches!(socket.next().await.unwrap().unwrap(), Message::Binary(_)) {}
        match way {
            "token" => lab.delete(&lab.root, &format!("/v1/tokens/{id}")).await.expect(204),
            "grant" => lab.delete(&lab.root, "/v1/identities/alice/machines/m").await.expect(204),
            _ => lab.delete(&lab.root, "/v1/identities/alice").await.expect(204),
        };
        let last = end(&mut socket).await;
        assert_eq!((&last["type"], &last["problem"]["code"]), (&json!("failed"), &json!("unauthorized")), "{way}");
    }
}

#[tokio::test]
async fn a_stream_goes_on_when_something_else_is_granted_or_taken_back() {
    let (lab, token) = alice(json!({})).await;
    lab.post(&lab.root, "/v1/machines", json!({ "name": "other" })).await.expect(201);
    let mut socket = open(&lab, &token).await;
    socket.send(start(false)).await.unwrap();
    lab.put(&lab.root, "/v1/identities/alice/machines/other", json!({})).await.expect(200);
    lab.delete(&lab.root, "/v1/identities/alice/machines/other").await.expect(204);
    socket.send(Message::binary(b"hello".to_vec())).await.unwrap();
    while !matches!(socket.next().await.unwrap().unwrap(), Message::Binary(_)) {}
    socket.send(Message::text(json!({ "type": "stdin_closed" }).to_string())).await.unwrap();
    assert_eq!(end(&mut socket).await["type"], "exit");
}

#[tokio::test]
async fn a_command_that_is_waited_for_ends_with_its_caller() {
    let (lab, token) = alice(json!({})).await;
    let id = lab.get(&token, "/v1/whoami").await.at("/token");
    let waiting = lab.post(&token, "/v1/machines/m/exec", json!({ "command": ["hang"] }));
    let revoke = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        lab.delete(&lab.root, &format!("/v1/tokens/{id}")).await.expect(204);
    };
    let (answer, ()) = tokio::join!(tokio::time::timeout(PATIENCE, waiting), revoke);
    answer.expect("the command goes on").expect(401).refused("unauthorized");
}

#[tokio::test]
async fn a_key_that_is_revoked_ends_its_streams_too() {
    let lab = lab().await;
    lab.post(&lab.root, "/v1/machines", json!({ "name": "m" })).await.expect(201);
    let key = lab.post(&lab.root, "/v1/keys", json!({})).await.expect(201);
    let mut socket = open(&lab, &key.at("/key")).await;
    socket.send(start(false)).await.unwrap();
    lab.delete(&lab.root, &format!("/v1/keys/{}", key.at("/id"))).await.expect(204);
    assert_eq!(end(&mut socket).await["problem"]["code"], "unauthorized");
}

#[tokio::test]
async fn a_terminal_needs_shell_and_a_command_without_one_exec() {
    for (verb, terminal, runs) in [("shell", true, true), ("shell", false, false), ("exec", true, false)] {
        let (lab, token) = alice(json!({ "verbs": [verb] })).await;
        let mut socket = open(&lab, &token).await;
        socket.send(start(terminal)).await.unwrap();
        socket.send(Message::text(json!({ "type": "stdin_closed" }).to_string())).await.unwrap();
        let last = end(&mut socket).await;
        assert_eq!(last["type"] == "exit", runs, "{verb} {terminal}: {last}");
        assert_eq!(last["problem"]["code"] == "forbidden", !runs, "{verb} {terminal}: {last}");
    }
}

#[tokio::test]
async fn an_identity_is_made_changed_and_found_by_its_name() {
    let lab = lab().await;
    let made =
        lab.post(&lab.root, "/v1/identities", json!({ "name": "a", "metadata": { "k": "v" } })).await.expect(201);
    lab.post(&lab.root, "/v1/identities", json!({ "name": "a" })).await.expect(409).refused("name_in_use");
    lab.post(&lab.root, "/v1/identities", json!({})).await.expect(201);
    let changed = lab.patch(&lab.root, "/v1/identities/a", json!({ "name": "b", "metadata": {} })).await.expect(200);
    assert_eq!(
        (changed.at("/id"), changed.at("/name"), changed.at("/metadata")),
        (made.at("/id"), "b".into(), "{}".into())
    );
    lab.get(&lab.root, "/v1/identities/a").await.expect(404).refused("not_found");
    assert_eq!(lab.get(&lab.root, "/v1/identities/b").await.expect(200).at("/id"), made.at("/id"));
    assert_eq!(lab.get(&lab.root, "/v1/identities").await.expect(200).body["items"].as_array().unwrap().len(), 2);
    // The old name is free.
    lab.post(&lab.root, "/v1/identities", json!({ "name": "a" })).await.expect(201);
}

#[tokio::test]
async fn a_repeated_create_answers_what_it_made_without_the_secret() {
    let (lab, _) = alice(json!({})).await;
    let create = || {
        let request = request("POST", "/v1/identities/alice/tokens", &lab.root, Some("{}".into()));
        lab.call(with_header(request, "idempotency-key", "once"))
    };
    let (first, second) = (create().await.expect(201), create().await.expect(200));
    assert_eq!(first.at("/id"), second.at("/id"));
    assert!(first.at("/token").starts_with("wt_") && second.body.get("token").is_none());
    assert!(second.at("/detail").contains("not repeated"));
    let listed = lab.get(&lab.root, "/v1/identities/alice/tokens").await.expect(200);
    assert!(!listed.text.contains("wt_"), "{}", listed.text);
}

#[tokio::test]
async fn bad_input_is_refused_and_changes_nothing() {
    let (lab, _) = alice(json!({})).await;
    let other = lab.account("other").await;
    let before = lab.stored().await;
    let grant = "/v1/identities/alice/machines/m";
    for (path, body, status, code) in [
        (grant, json!({ "verbs": [] }), 422, "invalid_request"),
        (grant, json!({ "verbs": ["fly"] }), 422, "invalid_request"),
        (grant, json!({ "users": [] }), 422, "invalid_request"),
        (grant, json!({ "users": ["0"] }), 422, "invalid_name"),
        (grant, json!({ "verbs": ["files"], "users": ["bob"] }), 422, "invalid_request"),
        (grant, json!({ "more": 1 }), 422, "invalid_request"),
        ("/v1/identities/alice/machines/none", json!({}), 404, "not_found"),
        ("/v1/identities/none/machines/m", json!({}), 404, "not_found"),
        ("/v1/identities/alice/networks/none", json!({}), 404, "not_found"),
    ] {
        lab.put(&lab.root, path, body).await.expect(status).refused(code);
    }
    for seconds in [0, 31_536_001] {
        let body = json!({ "expires_in_seconds": seconds });
        lab.post(&lab.root, "/v1/identities/alice/tokens", body).await.expect(422).refused("invalid_request");
    }
    let many: serde_json::Map<_, _> = (0..65).map(|n| (format!("k{n}"), json!("v"))).collect();
    lab.post(&lab.root, "/v1/identities", json!({ "metadata": many })).await.expect(422).refused("invalid_request");
    lab.post(&lab.root, "/v1/identities", json!({ "name": "A" })).await.expect(422).refused("invalid_name");
    lab.delete(&lab.root, "/v1/tokens/alice").await.expect(404).refused("not_found");
    // Another account's are like those that do not exist.
    lab.get(&other, "/v1/identities/alice").await.expect(404).refused("not_found");
    lab.put(&other, grant, json!({})).await.expect(404).refused("not_found");
    lab.delete(&other, "/v1/identities/alice").await.expect(404).refused("not_found");
    assert_eq!(lab.stored().await, before);
}

#[tokio::test]
async fn what_a_token_did_is_in_the_audit_log_as_its_own() {
    let (lab, token) = alice(json!({})).await;
    let id = lab.get(&token, "/v1/whoami").await.at("/token");
    lab.put(&lab.root, "/v1/identities/alice/machines/m", json!({ "verbs": ["start", "stop"] })).await.expect(200);
    lab.post(&token, "/v1/machines/m/stop", json!({})).await.expect(200);
    let entries: Vec<Value> = lab
        .stored()
        .await
        .into_iter()
        .filter(|(key, _)| key.starts_with("audit/"))
        .map(|(_, value)| serde_json::from_slice(&value).unwrap())
        .collect();
    let stop = entries.iter().find(|entry| entry["action"] == "machine.stop").unwrap();
    assert_eq!((&stop["token"], stop.get("key")), (&json!(id), None));
    assert!(entries.iter().any(|entry| entry["action"] == "identity.grant" && entry["key"].is_string()));
}

#[tokio::test]
async fn only_pages_that_are_named_may_call_from_a_browser() {
    let preflight = |origin: &str| {
        Request::options("/v1/machines/m/exec")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type")
            .body(Body::empty())
            .unwrap()
    };
    let lab = lab_with(|config| config.cors_origins = vec!["https://app.example".into()]).await;
    let allowed = lab.call(preflight("https://app.example")).await.expect(200);
    assert_eq!(allowed.headers["access-control-allow-origin"], "https://app.example");
    assert!(allowed.headers["access-control-allow-headers"].to_str().unwrap().contains("authorization"));
    assert!(allowed.headers.get("access-control-allow-credentials").is_none());
    let refused = lab.call(preflight("https://evil.example")).await;
    assert!(refused.headers.get("access-control-allow-origin").is_none());
    // A refusal can be read by the page as well.
    let request = with_header(request("GET", "/v1/whoami", "", None), "origin", "https://app.example");
    let answer = lab.call(request).await.expect(401);
    assert_eq!(answer.headers["access-control-allow-origin"], "https://app.example");

    let lab = self::lab().await;
    let silent = lab.call(preflight("https://app.example")).await.expect(405);
    assert!(silent.headers.get("access-control-allow-origin").is_none());
}

#[tokio::test]
async fn streams_that_began_together_end_together() {
    let (lab, token) = alice(json!({})).await;
    // Nothing has asked for this token before, so all of them look it up at once.
    let sockets = futures::future::join_all((0..16).map(|_| open(&lab, &token))).await;
    let mut sockets = futures::future::join_all(sockets.into_iter().map(async |mut socket| {
        socket.send(start(false)).await.unwrap();
        socket.send(Message::binary(b"hello".to_vec())).await.unwrap();
        while !matches!(socket.next().await.unwrap().unwrap(), Message::Binary(_)) {}
        socket
    }))
    .await;
    lab.delete(&lab.root, "/v1/identities/alice/machines/m").await.expect(204);
    for socket in &mut sockets {
        assert_eq!(end(socket).await["problem"]["code"], "unauthorized");
    }
}

#[tokio::test]
async fn what_is_taken_back_before_a_command_was_named_is_not_allowed_any_more() {
    let (lab, token) = alice(json!({})).await;
    let mut socket = open(&lab, &token).await;
    lab.delete(&lab.root, "/v1/identities/alice/machines/m").await.expect(204);
    // The socket's own look at the change comes some time after it.
    tokio::time::sleep(Duration::from_millis(100)).await;
    // Refused, or hung up on already.
    let _ = socket.send(start(false)).await;
    let last = end(&mut socket).await;
    assert!(["forbidden", "unauthorized"].contains(&last["problem"]["code"].as_str().unwrap()), "{last}");
}

#[tokio::test]
async fn a_secret_that_is_revoked_while_the_body_comes_does_nothing() {
    let lab = lab().await;
    let key = lab.post(&lab.root, "/v1/keys", json!({})).await.expect(201);
    let (mut pieces, body) = futures::channel::mpsc::unbounded::<Result<&str, std::io::Error>>();
    let request = Request::post("/v1/keys")
        .header("authorization", format!("Bearer {}", key.at("/key")))
        .header("content-type", "application/json")
        .body(Body::from_stream(body))
        .unwrap();
    let answer = tokio::spawn({
        let router = lab.router.clone();
        async move { tower::ServiceExt::oneshot(router, request).await.unwrap().status() }
    });
    pieces.send(Ok("{")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    lab.delete(&lab.root, &format!("/v1/keys/{}", key.at("/id"))).await.expect(204);
    pieces.send(Ok("}")).await.unwrap();
    drop(pieces);
    assert_eq!(answer.await.unwrap(), 401);
}

#[tokio::test]
async fn an_identity_that_is_deleted_leaves_no_token_behind_whoever_makes_one_meanwhile() {
    let lab = lab().await;
    lab.post(&lab.root, "/v1/machines", json!({ "name": "m" })).await.expect(201);
    for n in 0..30 {
        let name = format!("i{n}");
        lab.post(&lab.root, "/v1/identities", json!({ "name": name })).await.expect(201);
        let path = format!("/v1/identities/{name}");
        let (tokens, grant) = (format!("{path}/tokens"), format!("{path}/machines/m"));
        let (token, _, deleted) = tokio::join!(
            lab.post(&lab.root, &tokens, json!({})),
            lab.put(&lab.root, &grant, json!({})),
            lab.delete(&lab.root, &path),
        );
        deleted.expect(204);
        if token.status == 201 {
            lab.get(&token.at("/token"), "/v1/whoami").await.expect(401);
        }
    }
    for prefix in ["identity", "grant/", "token"] {
        assert_eq!(lab.keys_below(prefix).await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn pages_tell_a_token_nothing_of_what_it_does_not_see() {
    let (lab, token) = alice(json!({})).await;
    for name in ["a", "z"] {
        lab.post(&lab.root, "/v1/machines", json!({ "name": name })).await.expect(201);
    }
    let page = lab.get(&token, "/v1/machines?limit=1").await.expect(200);
    assert_eq!((page.at("/items/0/name"), page.at("/next")), ("m".into(), "null".into()));
    // Over several of its own it goes as usual.
    lab.put(&lab.root, "/v1/identities/alice/networks/default", json!({ "verbs": ["view"] })).await.expect(200);
    let mut names = Vec::new();
    let mut path = "/v1/machines?limit=1".to_owned();
    loop {
        let page = lab.get(&token, &path).await.expect(200);
        names.push(page.at("/items/0/name"));
        match page.body["next"].as_str() {
            Some(next) => path = format!("/v1/machines?limit=1&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(names, ["a", "m", "z"]);
}

#[tokio::test]
async fn a_token_leaves_its_account_room_to_revoke_it() {
    let lab = lab_with(|config| config.max_streams = 32).await;
    lab.post(&lab.root, "/v1/machines", json!({ "name": "m" })).await.expect(201);
    let key = lab.post(&lab.root, "/v1/keys", json!({})).await.expect(201).at("/key");
    lab.post(&lab.root, "/v1/identities", json!({ "name": "alice" })).await.expect(201);
    lab.put(&lab.root, "/v1/identities/alice/machines/m", json!({})).await.expect(200);
    let token = token(&lab).await.at("/token");
    let held = [open(&lab, &token).await, open(&lab, &token).await];
    lab.post(&token, "/v1/machines/m/exec", json!({ "command": ["env"] })).await.expect(503).refused("server_busy");
    lab.post(&key, "/v1/machines/m/exec", json!({ "command": ["env"] })).await.expect(200);
    drop(held);
}
