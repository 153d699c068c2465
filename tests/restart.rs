//! The daemon may die at any instant.

mod common;

use std::time::Duration;

use common::{Options, Server, eventually, text};

/// A transfer inside the network goes on, and every byte arrives, while the daemon is killed and comes back.
fn survives_a_kill_under_traffic(netns_exec: bool) {
    let mut server = Server::start_with(Options { netns_exec, ..Options::default() });
    server.ok(&["machine", "create", "a"]);
    server.ok(&["machine", "create", "b"]);
    server.serve("b", "hello");
    let sent = server.exec("b", "head -c 41943040 /dev/urandom > /srv/www/big; sha256sum < /srv/www/big");
    server.exec(
        "a",
        "nohup sh -c 'curl -sS --limit-rate 12M -o /root/copy http://b.vm.internal:8080/big; echo $? > /root/done' \
         >/dev/null 2>&1 &",
    );
    std::thread::sleep(Duration::from_millis(700));
    let uptime = server.exec("b", "stat -c %Y /proc/1");
    server.kill();
    // The transfer needs about three seconds more, all of them without a daemon.
    std::thread::sleep(Duration::from_millis(3500));
    server.up().unwrap();
    assert!(eventually(Duration::from_secs(20), || server.try_exec("a", "cat /root/done").1.trim() == "0"));
    assert_eq!(server.exec("a", "sha256sum < /root/copy"), sent);
    assert_eq!(server.exec("b", "stat -c %Y /proc/1"), uptime, "the machine was restarted");
    assert_eq!(server.fetch("a", "http://b.vm.internal:8080/"), "hello");
    server.ok(&["machine", "create", "c"]);
    assert_eq!(server.fetch("c", "http://b.vm.internal:8080/"), "hello");
    let left = server.uninstall();
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn traffic_survives_the_daemon_that_was_started_plainly() {
    survives_a_kill_under_traffic(false);
}

#[test]
fn traffic_survives_the_daemon_that_was_started_by_ip_netns_exec() {
    survives_a_kill_under_traffic(true);
}

#[test]
fn names_are_answered_while_the_daemon_is_dead() {
    let mut server = Server::start();
    server.ok(&["machine", "create", "a"]);
    server.ok(&["machine", "create", "b"]);
    server.exec(
        "a",
        "nohup sh -c 'for i in $(seq 40); do getent ahosts b.vm.internal >/dev/null && echo yes || echo no; sleep 0.1; \
         done > /root/names; touch /root/finished' >/dev/null 2>&1 &",
    );
    std::thread::sleep(Duration::from_millis(500));
    server.kill();
    std::thread::sleep(Duration::from_secs(4));
    server.up().unwrap();
    assert!(eventually(Duration::from_secs(10), || server.try_exec("a", "test -e /root/finished").0 == 0));
    let names = server.exec("a", "sort /root/names | uniq -c");
    assert!(names.contains("yes") && !names.contains("no"), "{names}");
}

#[test]
fn the_edge_is_started_anew_when_it_ends() {
    let server = Server::start();
    server.ok(&["machine", "create", "a"]);
    let installation = server.installation();
    let edge = || {
        let processes = text(&std::process::Command::new("ps").args(["-eo", "pid,args"]).output().unwrap().stdout);
        processes
            .lines()
            .find(|line| line.contains("edge") && line.contains(&installation))
            .and_then(|line| line.split_whitespace().next()?.parse::<i32>().ok())
    };
    let first = edge().expect("an edge runs");
    assert!(std::process::Command::new("kill").args(["-9", &first.to_string()]).status().unwrap().success());
    assert!(eventually(Duration::from_secs(5), || edge().is_some_and(|pid| pid != first)));
    assert!(eventually(Duration::from_secs(5), || server.try_exec("a", "getent hosts a.vm.internal").0 == 0));
    assert!(eventually(Duration::from_secs(5), || {
        server.exec("a", "getent ahosts gateway.internal || true").contains("10.0.0.1")
    }));
}

#[test]
fn two_servers_live_on_one_host_with_one_pool() {
    let first = Server::start();
    let mut second = Server::start();
    for server in [&first, &second] {
        server.ok(&["machine", "create", "a"]);
        server.ok(&["machine", "create", "b"]);
        server.serve("b", &server.installation());
    }
    assert_eq!(first.fetch("a", "http://10.0.1.11:8080/"), first.installation());
    assert_eq!(second.fetch("a", "http://10.0.1.11:8080/"), second.installation());
    let left = second.uninstall();
    assert!(left.is_empty(), "{left:#?}");
    assert_eq!(first.fetch("a", "http://b.vm.internal:8080/"), first.installation());
}

#[test]
fn a_second_server_on_one_data_directory_is_refused() {
    let server = Server::start();
    let data_dir = server.data_dir();
    let output = server.run(&["up", "--listen", "127.0.0.1:0", "--data-dir", data_dir.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("in use by another server"), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty());
}

#[test]
fn machines_end_with_the_server_only_when_that_is_asked_for() {
    let mut server = Server::start();
    server.ok(&["machine", "create", "a"]);
    server.exec("a", "echo kept > /root/file");
    let started = server.json(&["machine", "show", "a"])["started_at"].clone();
    server.stop();
    server.set_options(Options { arguments: vec!["--stop-machines".into()], ..Options::default() });
    server.up().unwrap();
    assert_eq!(server.json(&["machine", "show", "a"])["started_at"], started, "it went on without the server");
    server.stop();
    let traces = Server::traces(&server.installation());
    assert!(!traces.iter().any(|trace| trace.starts_with("cgroup:") && trace.contains("/mch")), "{traces:#?}");
    server.up().unwrap();
    assert!(eventually(Duration::from_secs(20), || server.try_exec("a", "cat /root/file").1 == "kept\n"));
}

#[test]
fn uninstall_works_when_the_daemon_is_dead() {
    let mut server = Server::start();
    server.ok(&["machine", "create", "a"]);
    server.kill();
    let left = server.uninstall();
    assert!(left.is_empty(), "{left:#?}");
}
