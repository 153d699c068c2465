//! Identities and their tokens, against machines that are real.

mod common;

use std::time::Duration;

use common::{Server, eventually, text};

/// How long something that happens at once may take on a busy host.
const SOON: Duration = Duration::from_secs(30);

/// A token of a new identity.
fn token(server: &Server, identity: &str) -> (String, String) {
    let made = server.json(&["token", "create", identity, "--ttl", "1h"]);
    let field = |name: &str| made[name].as_str().unwrap().to_owned();
    (field("id"), field("token"))
}

#[test]
fn a_token_operates_what_was_granted_and_its_streams_end_with_it() {
    let mut server = Server::start();
    server.ok(&["machine", "create", "worker"]);
    server.ok(&["machine", "create", "other"]);
    server.exec("worker", "useradd bob");
    server.ok(&["identity", "create", "alice", "--metadata", "user=4711"]);
    server.ok(&["identity", "grant", "alice", "worker"]);
    let (id, secret) = token(&server, "alice");

    server.key = Some(secret.clone());
    assert_eq!(server.exec("worker", "echo $((6 * 7))"), "42\n");
    assert_eq!(server.run_with_input(&["cp", "-", "worker:/root/note"], b"hello").status.code(), Some(0));
    assert_eq!(server.ok(&["cp", "worker:/root/note", "-"]), "hello");
    let listed = server.json(&["machine", "ls"]);
    assert_eq!(listed["items"].as_array().unwrap().len(), 1, "{listed}");
    server.refused_as("not_found", &["machine", "show", "other"]);
    server.refused_as("forbidden", &["machine", "stop", "worker"]);
    server.refused_as("forbidden", &["machine", "create", "more"]);
    server.refused_as("forbidden", &["token", "create", "alice"]);

    // A daemon that was killed knows it all again.
    server.restart();
    let mut stream = server.spawn(&["exec", "worker", "--", "sh", "-c", "echo on; exec sleep 600"]);
    let runs = |server: &Server| server.try_exec("worker", "pgrep -x sleep").0 == 0;
    assert!(eventually(SOON, || runs(&server)));
    server.key = None;
    server.ok(&["token", "revoke", &id]);
    assert!(eventually(SOON, || stream.try_wait().unwrap().is_some()), "the stream goes on");
    let output = stream.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(125), "{}", text(&output.stderr));
    assert!(eventually(SOON, || !runs(&server)), "the command goes on");
    server.restart();
    server.key = Some(secret);
    server.refused_as("unauthorized", &["machine", "ls"]);
}

#[test]
fn a_grant_for_a_user_runs_commands_as_that_user() {
    let mut server = Server::start();
    server.ok(&["machine", "create", "worker"]);
    server.exec("worker", "useradd bob");
    server.ok(&["identity", "create", "alice"]);
    server.ok(&["identity", "grant", "alice", "worker", "--verbs", "exec", "--user", "bob"]);
    let (_, secret) = token(&server, "alice");
    server.key = Some(secret);
    assert_eq!(server.exec("worker", "id -un"), "bob\n");
    assert_eq!(server.run(&["exec", "--user", "root", "worker", "--", "id"]).status.code(), Some(125));
    assert_eq!(server.run(&["cp", "worker:/etc/hostname", "-"]).status.code(), Some(1));
}
