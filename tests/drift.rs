//! What somebody changes by hand is put right within seconds, and told.

mod common;

use std::time::Duration;

use common::{Server, eventually, text};

const SOON: Duration = Duration::from_secs(30);

fn pair() -> Server {
    let server = Server::start();
    server.ok(&["machine", "create", "a"]);
    server.ok(&["machine", "create", "b"]);
    server.serve("b", "hello");
    assert_eq!(server.fetch("a", "http://b.vm.internal:8080/"), "hello");
    server
}

fn works_again(server: &Server) -> bool {
    eventually(SOON, || server.try_exec("a", "curl -sS --max-time 1 http://b.vm.internal:8080/").1.trim() == "hello")
}

#[test]
fn a_deleted_link_is_made_anew() {
    let server = pair();
    let links = text(&server.in_router(1, &["ip", "-o", "link", "show", "type", "veth"]).stdout);
    let link = links.split_whitespace().nth(1).unwrap().split('@').next().unwrap().to_owned();
    assert!(server.in_router(1, &["ip", "link", "del", &link]).status.success());
    assert!(works_again(&server), "{}", server.log());
    assert!(server.waits_for_event("drift_repaired", SOON));
}

#[test]
fn flushed_rules_are_loaded_again_and_nothing_passes_meanwhile() {
    let server = pair();
    assert!(server.in_router(1, &["nft", "flush", "ruleset"]).status.success());
    assert!(eventually(SOON, || {
        text(&server.in_router(1, &["nft", "list", "ruleset"]).stdout).contains("10.0.1.11")
    }));
    assert!(works_again(&server));
    assert!(server.waits_for_event("drift_repaired", SOON));
}

#[test]
fn an_added_rule_is_removed() {
    let server = pair();
    let before = text(&server.in_router(1, &["nft", "-s", "list", "chain", "inet", "warren", "between"]).stdout);
    let added = server.in_router(1, &["nft", "insert", "rule", "inet", "warren", "between", "accept"]);
    assert!(added.status.success(), "{}", text(&added.stderr));
    assert!(eventually(SOON, || {
        text(&server.in_router(1, &["nft", "-s", "list", "chain", "inet", "warren", "between"]).stdout) == before
    }));
}

#[test]
fn a_killed_machine_is_started_again_with_its_disk() {
    let server = pair();
    server.exec("b", "echo kept > /root/file");
    let state = std::fs::read_dir(format!("/run/warren-{}/oci", server.installation())).unwrap();
    let machine = server.json(&["machine", "show", "b"])["id"].as_str().unwrap().replace("mch_", "");
    let directory = state.flatten().find(|entry| entry.file_name().to_string_lossy().contains(&machine)).unwrap();
    let record = std::fs::read_to_string(directory.path().join("state.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    let pid = record["init_process_pid"].as_i64().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    assert!(server.waits_for_event("drift_repaired", SOON), "{}", server.log());
    assert!(eventually(SOON, || server.try_exec("b", "cat /root/file").1 == "kept\n"), "{}", server.log());
    server.serve("b", "hello");
    assert!(works_again(&server));
}

#[test]
fn a_lost_gateway_address_returns() {
    let server = pair();
    assert!(server.in_router(1, &["ip", "addr", "del", "10.0.0.1/32", "dev", "lo"]).status.success());
    assert!(eventually(SOON, || server.try_exec("a", "ping -c1 -W1 10.0.0.1").0 == 0));
}

#[test]
fn a_deleted_namespace_is_made_anew() {
    let server = pair();
    let namespace = format!("warren-{}-n1", server.installation());
    assert!(std::process::Command::new("ip").args(["netns", "del", &namespace]).status().unwrap().success());
    assert!(works_again(&server), "{}", server.log());
}

#[test]
fn a_machine_that_deletes_its_interface_gets_it_back() {
    let server = pair();
    server.exec("a", "ip link del eth0");
    assert!(works_again(&server), "{}", server.log());
}

#[test]
fn a_machine_that_readdresses_its_interface_only_silences_itself() {
    let server = pair();
    server.ok(&["machine", "create", "c"]);
    server.exec("a", "ip addr add 10.0.1.11/32 dev eth0; ip addr add 10.0.1.99/32 dev eth0");
    let (status, _, _) = server.try_exec("a", "ping -c1 -W1 -I 10.0.1.99 10.0.1.12");
    assert_ne!(status, 0, "a source that is not its own passed");
    assert_eq!(server.fetch("c", "http://10.0.1.11:8080/"), "hello", "another machine's address was taken over");
}
