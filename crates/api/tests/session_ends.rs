//! What ends an operator session besides its operator, its time and its key.

mod common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Lab, lab, lab_with};
use jiff::SignedDuration;
use serde_json::{Value, json};
use warren_model::keypair::PrivateKey;
use warren_model::session::UNHEARD_SECONDS;
use warren_store::{TxnBuilder, Typed, schema};

const SESSIONS: &str = "/v1/networks/default/sessions";

/// A public key that nobody else has.
fn public_key(n: u8) -> String {
    PrivateKey::from_random(&[n; 32]).public_key().to_string()
}

async fn open(lab: &Lab, key: &str, body: Value) -> String {
    lab.post(key, SESSIONS, body).await.expect(201).at("/id")
}

async fn close(lab: &Lab, id: &str) {
    lab.delete(&lab.root, &format!("/v1/sessions/{id}")).await.expect(204);
}

async fn is_open(lab: &Lab, id: &str) -> bool {
    lab.get(&lab.root, &format!("/v1/sessions/{id}")).await.status == 200
}

async fn told(lab: &Lab) -> String {
    lab.get(&lab.root, "/v1/events?follow=false&limit=1000").await.expect(200).text
}

/// A server that looks for operators all the time, and to which none comes.
async fn silent() -> Lab {
    let lab = lab_with(|config| config.look_for_operators_every = Duration::from_millis(10)).await;
    lab.tunnels.silent.store(true, Ordering::Relaxed);
    lab
}

/// Lets a session have been opened so many seconds earlier.
async fn age(lab: &Lab, id: &str, seconds: i64) {
    let key = schema::session(id.parse().unwrap());
    let mut read = lab.store.read(&key).await.unwrap().unwrap();
    read.record.created_at -= SignedDuration::from_secs(seconds);
    TxnBuilder::new().put(&key, &read.record).unwrap().commit(&*lab.store).await.unwrap();
}

/// Waits until nobody is waited for any more.
async fn heard(lab: &Lab) {
    let waited = async {
        while !lab.keys_below("session-unheard/").await.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waited).await.unwrap();
}

#[tokio::test]
async fn a_key_with_which_nobody_comes_is_held_for_ten_minutes_and_not_longer() {
    let lab = silent().await;
    let other = lab.account("other").await;
    let squatted = open(&lab, &lab.root, json!({ "public_key": public_key(1), "idle_seconds": 86_400 })).await;
    lab.post(&other, SESSIONS, json!({ "public_key": public_key(1) })).await.expect(409).refused("public_key_in_use");
    let (made_here, fresh) =
        (open(&lab, &lab.root, json!({})).await, open(&lab, &lab.root, json!({ "public_key": public_key(2) })).await);
    for id in [&squatted, &made_here] {
        age(&lab, id, UNHEARD_SECONDS).await;
    }
    age(&lab, &fresh, UNHEARD_SECONDS - 60).await;
    let waited = async {
        while is_open(&lab, &squatted).await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waited).await.unwrap();
    assert!(told(&lab).await.contains(&format!("({squatted}) was closed: nobody came with its public key in time")));
    open(&lab, &other, json!({ "public_key": public_key(1) })).await;
    // One whose private key was made here is nobody else's, and one that is still waited for is not cut short.
    assert!(is_open(&lab, &made_here).await && is_open(&lab, &fresh).await);
}

#[tokio::test]
async fn a_key_with_which_nobody_came_does_not_rest() {
    let lab = silent().await;
    let other = lab.account("other").await;
    let id = open(&lab, &lab.root, json!({ "public_key": public_key(1) })).await;
    close(&lab, &id).await;
    assert_eq!(lab.keys_below("session").await, Vec::<String>::new());
    open(&lab, &other, json!({ "public_key": public_key(1) })).await;
}

#[tokio::test]
async fn a_key_with_which_somebody_came_rests_and_its_session_goes_on() {
    let lab = lab_with(|config| config.look_for_operators_every = Duration::from_millis(10)).await;
    let other = lab.account("other").await;
    let ask = json!({ "public_key": public_key(1) });
    let id = open(&lab, &lab.root, ask.clone()).await;
    heard(&lab).await;
    // What was seen once counts, whatever the tunnels say later.
    lab.tunnels.silent.store(true, Ordering::Relaxed);
    age(&lab, &id, 2 * UNHEARD_SECONDS).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(is_open(&lab, &id).await);
    close(&lab, &id).await;
    lab.post(&other, SESSIONS, ask.clone()).await.expect(409).refused("public_key_in_use");
    // Its own account has shown once that the key is its own.
    let again = open(&lab, &lab.root, ask.clone()).await;
    assert_eq!(lab.keys_below("session-unheard/").await, Vec::<String>::new());
    close(&lab, &again).await;
    lab.post(&other, SESSIONS, ask).await.expect(409).refused("public_key_in_use");
}

#[tokio::test]
async fn who_came_a_moment_before_the_close_counts_as_one_who_came() {
    let lab = lab().await;
    let other = lab.account("other").await;
    let id = open(&lab, &lab.root, json!({ "public_key": public_key(1) })).await;
    assert_eq!(lab.keys_below("session-unheard/").await.len(), 1);
    close(&lab, &id).await;
    assert_eq!(lab.keys_below("session-unheard/").await.len(), 0);
    lab.post(&other, SESSIONS, json!({ "public_key": public_key(1) })).await.expect(409).refused("public_key_in_use");
}

#[tokio::test]
async fn whatever_ends_a_session_the_key_of_who_came_rests_and_of_nobody_is_free() {
    for came in [true, false] {
        let lab = lab().await;
        lab.tunnels.silent.store(!came, Ordering::Relaxed);
        let other = lab.account("other").await;
        let key = lab.post(&lab.root, "/v1/keys", json!({})).await.expect(201);
        lab.post(&lab.root, "/v1/machines", json!({ "name": "web" })).await.expect(201);
        open(&lab, &lab.root, json!({ "public_key": public_key(1), "only": { "machine": "web" } })).await;
        open(&lab, &key.at("/key"), json!({ "public_key": public_key(2) })).await;
        open(&lab, &lab.root, json!({ "public_key": public_key(3) })).await;
        lab.delete(&lab.root, "/v1/machines/web").await.expect(204);
        lab.delete(&lab.root, &format!("/v1/keys/{}", key.at("/id"))).await.expect(204);
        lab.delete(&lab.root, "/v1/networks/default?force=true").await.expect(204);
        assert_eq!(lab.keys_below("session-key/").await.len(), if came { 3 } else { 0 });
        let again = lab.post(&other, SESSIONS, json!({ "public_key": public_key(2) })).await;
        again.expect(if came { 409 } else { 201 });
    }
}

#[tokio::test]
async fn where_the_tunnels_do_not_say_who_came_a_key_rests() {
    let lab = silent().await;
    lab.tunnels.mute.store(true, Ordering::Relaxed);
    let id = open(&lab, &lab.root, json!({ "public_key": public_key(1) })).await;
    close(&lab, &id).await;
    assert_eq!(lab.keys_below("session-key/").await.len(), 1);
}

#[tokio::test]
async fn tunnels_that_do_not_answer_end_no_session() {
    let lab = silent().await;
    lab.tunnels.mute.store(true, Ordering::Relaxed);
    let id = open(&lab, &lab.root, json!({ "public_key": public_key(1) })).await;
    age(&lab, &id, 2 * UNHEARD_SECONDS).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(is_open(&lab, &id).await);
}

#[tokio::test]
async fn a_session_for_one_machine_ends_with_it() {
    let lab = lab().await;
    for name in ["web", "db"] {
        lab.post(&lab.root, "/v1/machines", json!({ "name": name })).await.expect(201);
    }
    let all = open(&lab, &lab.root, json!({ "only": { "machine": "web" } })).await;
    let port = open(&lab, &lab.root, json!({ "only": { "machine": "web", "port": 80 } })).await;
    let (network, other) =
        (open(&lab, &lab.root, json!({})).await, open(&lab, &lab.root, json!({ "only": { "machine": "db" } })).await);
    lab.delete(&lab.root, "/v1/machines/web").await.expect(204);
    let (events, stored) = (told(&lab).await, lab.stored().await);
    for id in [&all, &port] {
        assert!(!is_open(&lab, id).await && lab.tunnels.was_cut(id));
        assert!(events.contains(&format!("({id}) was closed: the only machine that it reached is being deleted")));
        let entries = stored.iter().filter(|(key, _)| key.starts_with("audit/"));
        let mut entries = entries.map(|(_, value)| serde_json::from_slice::<Value>(value).unwrap());
        let closed = entries.find(|entry| entry["action"] == "session.close" && entry["target"] == id.as_str());
        let reason = &closed.unwrap()["request"]["reason"];
        assert_eq!(reason, "was closed: the only machine that it reached is being deleted");
        assert!(!stored.iter().any(|(key, _)| key.starts_with("session") && key.contains(id.as_str())));
    }
    assert!(is_open(&lab, &network).await && is_open(&lab, &other).await);
    assert!(!lab.tunnels.was_cut(&network) && !lab.tunnels.was_cut(&other));
    // With its network it ends once, and for that reason.
    lab.delete(&lab.root, "/v1/networks/default?force=true").await.expect(204);
    assert!(told(&lab).await.contains(&format!("({other}) was closed: its network is being deleted")));
}

#[tokio::test]
async fn no_session_outlives_a_machine_that_is_deleted_while_it_is_opened() {
    let lab = lab().await;
    for _ in 0..10 {
        lab.post(&lab.root, "/v1/machines", json!({ "name": "web" })).await.expect(201);
        let only = json!({ "only": { "machine": "web" } });
        let (one, two, deleted) = tokio::join!(
            lab.post(&lab.root, SESSIONS, only.clone()),
            lab.post(&lab.root, SESSIONS, only.clone()),
            lab.delete(&lab.root, "/v1/machines/web"),
        );
        deleted.expect(204);
        for opened in [one, two] {
            assert!([201, 404, 409].contains(&opened.status), "{}", opened.text);
        }
        for prefix in ["session/", "session-of/", "session-for/"] {
            assert_eq!(lab.keys_below(prefix).await, Vec::<String>::new());
        }
    }
}
