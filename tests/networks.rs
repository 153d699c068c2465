//! Networks on the real kernel: who meets whom, by which address and name.

mod common;

use std::time::Duration;

use common::{Server, eventually};

#[test]
fn machines_of_one_network_meet_by_address_and_name_in_both_families() {
    let server = Server::start();
    server.ok(&["network", "create", "lab", "--cidr", "192.168.10.0/24"]);
    server.ok(&["machine", "create", "a", "--network", "lab", "--ip", "192.168.10.10"]);
    let worker = server.json(&["machine", "create", "b", "--network", "lab", "--ip", "192.168.10.11"]);
    assert_eq!(worker["private_ip"], "192.168.10.11");
    assert_eq!(worker["hostname"], "b.vm.internal");
    assert_eq!(worker["address"], "2:0002.0000.0003");
    server.serve("b", "hello");
    let ipv6 = worker["private_ip6"].as_str().unwrap();
    assert_eq!(server.fetch("a", "http://192.168.10.11:8080/"), "hello");
    assert_eq!(server.fetch("a", &format!("http://[{ipv6}]:8080/")), "hello");
    assert_eq!(server.fetch("a", "http://b.vm.internal:8080/"), "hello");
    server.exec("a", "ping -c1 -W2 192.168.10.11");
    server.exec("a", &format!("ping -c1 -W2 {ipv6}"));
    server.exec("a", "ping -c1 -W2 192.168.10.1");
    let reverse = server.exec("a", "getent hosts 192.168.10.11");
    assert!(reverse.contains("b.vm.internal"), "{reverse}");
}

#[test]
fn equal_addresses_of_two_accounts_never_meet() {
    let mut server = Server::start();
    server.act_as_new("acme");
    server.ok(&["network", "create", "n", "--cidr", "10.5.0.0/24"]);
    server.ok(&["machine", "create", "a", "--network", "n", "--ip", "10.5.0.10"]);
    server.ok(&["machine", "create", "b", "--network", "n", "--ip", "10.5.0.11"]);
    server.serve("b", "acme");
    let acme = server.key.clone();
    server.act_as_new("globex");
    server.ok(&["network", "create", "n", "--cidr", "10.5.0.0/24"]);
    server.ok(&["machine", "create", "c", "--network", "n", "--ip", "10.5.0.12"]);
    server.ok(&["machine", "create", "d", "--network", "n", "--ip", "10.5.0.11"]);
    server.serve("d", "globex");
    assert_eq!(server.fetch("c", "http://10.5.0.11:8080/"), "globex");
    assert!(!server.reaches("c", "10.5.0.10", 22));
    let other = server.json(&["machine", "show", "d"])["private_ip6"].as_str().unwrap().to_owned();
    server.key = acme;
    assert_eq!(server.fetch("a", "http://10.5.0.11:8080/"), "acme");
    assert!(!server.reaches("a", &other, 8080), "a unique address of another network is not reachable either");
    let (_, answer, _) = server.try_exec("a", "getent hosts d.vm.internal");
    assert_eq!(answer, "", "another account's name resolved");
}

#[test]
fn a_sealed_network_has_no_way_out_and_says_so() {
    let server = Server::start();
    server.ok(&["machine", "create", "a"]);
    let routes = common::text(&server.in_router(1, &["ip", "route"]).stdout);
    assert!(routes.contains("prohibit default"), "{routes}");
    let (status, output, _) = server.try_exec("a", "ping -c1 -W2 1.1.1.1");
    assert_ne!(status, 0);
    assert!(output.contains("Packet filtered") || output.contains("prohibited"), "{output}");
    for target in ["1.1.1.1", "169.254.169.254", "10.99.0.1", "192.168.0.1", "127.0.0.53"] {
        assert!(!server.reaches("a", target, 80), "{target} was reached");
    }
    let (status, _, _) = server.try_exec("a", "getent hosts example.com");
    assert_ne!(status, 0);
}

#[test]
fn the_host_is_not_reachable_from_a_machine() {
    let server = Server::start();
    server.ok(&["machine", "create", "a"]);
    let port: u16 = server.url().rsplit(':').next().unwrap().parse().unwrap();
    for target in ["10.0.0.1", "169.254.1.1", "127.0.0.1"] {
        assert!(!server.reaches("a", target, port), "the API was reached at {target}");
    }
}

#[test]
fn a_name_is_gone_at_once_when_its_machine_is_deleted() {
    let server = Server::start();
    server.ok(&["machine", "create", "a"]);
    server.ok(&["machine", "create", "b"]);
    server.exec("a", "getent hosts b.vm.internal");
    server.ok(&["machine", "rename", "b", "c"]);
    assert!(eventually(Duration::from_secs(30), || server.try_exec("a", "getent hosts c.vm.internal").0 == 0));
    assert_ne!(server.try_exec("a", "getent hosts b.vm.internal").0, 0);
    server.ok(&["machine", "rm", "c"]);
    assert_ne!(server.try_exec("a", "getent hosts c.vm.internal").0, 0);
    assert_eq!(server.refused(&["machine", "show", "c"])["code"], "not_found");
}

#[test]
fn a_network_with_members_is_deleted_only_by_force() {
    let server = Server::start();
    server.ok(&["network", "create", "n"]);
    server.ok(&["machine", "create", "a", "--network", "n"]);
    server.refused_as("network_not_empty", &["network", "rm", "n"]);
    assert_eq!(server.exec("a", "echo there").trim(), "there");
    server.ok(&["network", "rm", "n", "--force"]);
    server.refused_as("not_found", &["machine", "show", "a"]);
    server.refused_as("not_found", &["network", "show", "n"]);
    // An account's own network has the same range whenever it is made.
    server.ok(&["network", "rm", "default"]);
    assert_eq!(server.json(&["network", "create", "default"])["cidr"], "10.0.0.0/16");
    let left = Server::traces(&server.installation());
    assert!(!left.iter().any(|trace| trace.ends_with("-n2")), "{left:?}");
}

#[test]
fn facts_tell_a_machine_of_its_neighbours() {
    let server = Server::start();
    server.ok(&["machine", "create", "a"]);
    server.ok(&["machine", "create", "b", "--port", "web=8080/http"]);
    let told = || server.exec("a", "cat /etc/warren/facts.md");
    assert!(eventually(Duration::from_secs(30), || told().contains("web: http://10.0.1.11:8080")), "{}", told());
    server.ok(&["machine", "rm", "b"]);
    assert!(eventually(Duration::from_secs(30), || !told().contains("b.vm.internal")), "{}", told());
    server.ok(&["network", "rename", "default", "home"]);
    assert!(eventually(Duration::from_secs(30), || told().contains("Network home")), "{}", told());
    assert_eq!(server.exec("a", "hostname").trim(), "a");
    assert!(server.exec("a", "cat /etc/resolv.conf").contains("nameserver 10.0.0.1"));
}
