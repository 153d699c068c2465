//! The daemon may die at any instant.

mod common;

use std::time::Duration;

use common::{Options, Server, eventually, text};

const PATIENCE: Duration = Duration::from_secs(60);

/// A transfer inside the network goes on, and every byte arrives, while the daemon is killed and comes back.
fn survives_a_kill_under_traffic(netns_exec: bool) {
    const BYTES: u64 = 40 << 20;
    let mut server = Server::start_with(Options { netns_exec, ..Options::default() });
    server.ok(&["machine", "create", "a"]);
    server.ok(&["machine", "create", "b"]);
    server.serve("b", "hello");
    let sent = server.exec("b", &format!("head -c {BYTES} /dev/urandom > /srv/www/big; sha256sum < /srv/www/big"));
    let started = "sed 's/.*) //' /proc/1/stat | cut -d' ' -f20";
    let started_at = server.exec("b", started);
    // At most 6.25 MiB a second, so it takes six seconds at least.
    server.exec(
        "a",
        "cat > /root/fetch.py <<'X'\n\
         import time,urllib.request\n\
         with urllib.request.urlopen('http://10.0.1.11:8080/big',timeout=15) as page, open('/root/copy','wb') as copy:\n\
         \x20 while piece:=page.read(262144):\n\
         \x20   copy.write(piece); time.sleep(0.04)\n\
         X\n\
         nohup sh -c 'python3 /root/fetch.py; echo $? > /root/done' >/dev/null 2>&1 &",
    );
    assert!(eventually(PATIENCE, || arrived(&server, "10.0.1.10") > BYTES / 10));
    server.kill();
    assert!(arrived(&server, "10.0.1.10") < BYTES, "the transfer was over before the daemon was killed");
    assert!(
        eventually(PATIENCE, || arrived(&server, "10.0.1.10") > BYTES),
        "without a daemon the transfer stood still"
    );
    server.up().unwrap();
    assert!(eventually(PATIENCE, || server.try_exec("a", "cat /root/done").1.trim() == "0"));
    assert_eq!(server.exec("a", "sha256sum < /root/copy"), sent);
    assert_eq!(server.exec("b", started), started_at, "the machine was restarted");
    assert_eq!(server.fetch("a", "http://b.vm.internal:8080/"), "hello");
    server.ok(&["machine", "create", "c"]);
    assert_eq!(server.fetch("c", "http://b.vm.internal:8080/"), "hello");
    let left = server.uninstall();
    assert!(left.is_empty(), "{left:#?}");
}

/// The bytes that the router has let through to an address, with their headers. Needs no daemon.
fn arrived(server: &Server, address: &str) -> u64 {
    let set = text(&server.in_router(1, &["nft", "list", "set", "inet", "warren", "receivers4"]).stdout);
    let element = set.split(&format!("{address} counter ")).nth(1);
    let bytes = element.and_then(|rest| rest.split("bytes ").nth(1)?.split([' ', ',']).next()?.trim().parse().ok());
    bytes.unwrap_or_else(|| panic!("{address} is not in {set}"))
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
    // It begins when the daemon is dead. The mark shows in the host's list of processes.
    let mark = format!("asking-{}", server.installation());
    server.exec(
        "a",
        &format!(
            "nohup sh -c ': {mark}; sleep 3; for i in $(seq 20); do getent ahosts b.vm.internal >/dev/null && echo yes \
             || echo no; sleep 0.2; done > /root/names' >/dev/null 2>&1 &"
        ),
    );
    server.kill();
    let asking =
        || text(&std::process::Command::new("ps").args(["-eo", "args"]).output().unwrap().stdout).contains(&mark);
    assert!(asking(), "the script does not run");
    assert!(eventually(PATIENCE, || !asking()));
    server.up().unwrap();
    assert_eq!(server.exec("a", "sort /root/names | uniq -c").trim(), "20 yes");
}

#[test]
fn the_edge_is_started_anew_when_it_ends() {
    let server = Server::start();
    server.ok(&["machine", "create", "a"]);
    let installation = server.installation();
    server.ok(&["machine", "create", "b"]);
    let edge = || {
        let processes = text(&std::process::Command::new("ps").args(["-eo", "pid,args"]).output().unwrap().stdout);
        processes
            .lines()
            .find(|line| line.contains("edge") && line.contains(&installation))
            .and_then(|line| line.split_whitespace().next()?.parse::<i32>().ok())
    };
    let resolves = |name: &str| server.try_exec("a", &format!("getent -s dns hosts {name}")).0 == 0;
    assert!(resolves("b.vm.internal"));
    let first = edge().expect("an edge runs");
    assert!(std::process::Command::new("kill").args(["-9", &first.to_string()]).status().unwrap().success());
    assert!(eventually(PATIENCE, || edge().is_some_and(|pid| pid != first)));
    assert!(eventually(PATIENCE, || resolves("b.vm.internal")));
    server.ok(&["machine", "rm", "b"]);
    assert!(!resolves("b.vm.internal"));
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
    assert!(text(&output.stderr).contains("another server (process "), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty());
}

#[test]
fn machines_end_with_the_server_only_when_that_is_asked_for() {
    let mut server = Server::start();
    server.ok(&["machine", "create", "a"]);
    server.exec("a", "echo kept > /root/file");
    let started = server.json(&["machine", "show", "a"])["started_at"].clone();
    server.stop();
    let traces = Server::traces(&server.installation());
    assert!(traces.iter().any(|trace| trace.starts_with("cgroup:")), "{traces:#?}");
    server.set_options(Options { arguments: vec!["--stop-machines".into()], ..Options::default() });
    server.up().unwrap();
    assert_eq!(server.json(&["machine", "show", "a"])["started_at"], started, "it went on without the server");
    server.stop();
    let traces = Server::traces(&server.installation());
    assert!(!traces.iter().any(|trace| trace.starts_with("cgroup:")), "{traces:#?}");
    server.up().unwrap();
    assert!(eventually(PATIENCE, || server.try_exec("a", "cat /root/file").1 == "kept\n"));
}

#[test]
fn uninstall_works_when_the_daemon_is_dead() {
    let mut server = Server::start();
    server.ok(&["machine", "create", "a"]);
    server.kill();
    let left = server.uninstall();
    assert!(left.is_empty(), "{left:#?}");
}
