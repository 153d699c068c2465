//! The daemon is killed at every step of making and removing a machine and a network. Afterwards nothing is orphaned,
//! nothing that was answered is lost, and everything that was begun is finished or undone.

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use common::{Options, Server, eventually};
use warren_reconcile::crash;

/// How long a server has to finish or undo what an earlier one began.
const SETTLES_WITHIN: Duration = Duration::from_secs(60);
/// Steps that only mend what somebody else changed; making and removing never takes them.
const MENDING: [&str; 5] =
    ["network-repair-gateway", "network-load-rules", "network-detach-stray", "network-admit", "network-expel"];

#[test]
fn a_crash_at_any_step_loses_and_orphans_nothing() {
    let is_mending = |point: &String| MENDING.iter().any(|step| point.ends_with(&format!(":{step}")));
    let points: Vec<String> = crash::points().into_iter().filter(|point| !is_mending(point)).collect();
    assert!(points.len() >= 54, "{points:?}");
    // Two at a time, as many as the smallest host has processors. Each server dies at many points, one after the other,
    // while a machine that was there from the beginning runs on.
    let queue = Mutex::new(points.into_iter());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut server = Server::start();
                server.ok(&["network", "create", "kept", "--cidr", "10.7.0.0/24"]);
                server.ok(&["machine", "create", "kept", "--network", "kept", "--ip", "10.7.0.10"]);
                server.exec("kept", "echo safe > /root/file");
                let born = server.exec("kept", BORN);
                loop {
                    let Some(point) = queue.lock().unwrap().next() else { break };
                    dies_and_comes_back(&mut server, &point);
                    assert_eq!(server.exec("kept", BORN), born, "the kept machine was restarted after {point}");
                }
                let left = server.uninstall();
                assert!(left.is_empty(), "{left:#?}");
            });
        }
    });
}

/// When the machine's first process was started.
const BORN: &str = "cut -d' ' -f22 /proc/1/stat";

/// What was asked for and answered before the daemon died.
#[derive(Debug, Default)]
struct Answered {
    made: bool,
    stopped: bool,
    removal_asked: bool,
    removed: bool,
    network_made: bool,
    network_removed: bool,
}

fn dies_and_comes_back(server: &mut Server, point: &str) {
    server.ok(&["network", "create", "doomed", "--cidr", "10.8.0.0/24"]);
    server.kill();
    let answered = die_at(server, point);
    die_again_at(server, point);
    server.set_options(Options::default());
    server.up().unwrap_or_else(|log| panic!("no start after {point}:\n{log}"));

    let settled = eventually(SETTLES_WITHIN, || {
        let machines = server.json(&["machine", "ls"]);
        let mut states = machines["items"].as_array().unwrap().iter().map(|machine| machine["state"].as_str().unwrap());
        states.all(|state| ["running", "stopped"].contains(&state)) && disagreements(server).is_empty()
    });
    let now = || format!("{:#?}\n{}\n{}", disagreements(server), server.json(&["machine", "ls"]), server.log());
    assert!(settled, "after {point}: {}", now());
    let exists = |kind: &str, name: &str| server.run(&[kind, "show", name]).status.success();
    assert!(
        !answered.made || answered.removal_asked || exists("machine", "new"),
        "answered and lost at {point}: {}",
        now()
    );
    assert!(!answered.removed || !exists("machine", "new"), "removed and back at {point}: {}", now());
    assert!(!answered.network_made || exists("network", "fresh"), "answered and lost at {point}: {}", now());
    assert!(!answered.network_removed || !exists("network", "doomed"), "removed and back at {point}: {}", now());

    assert_eq!(server.exec("kept", "cat /root/file").trim(), "safe", "at {point}");
    let named = server.try_exec("kept", "getent ahosts new.vm.internal").0 == 0;
    assert_eq!(named, exists("machine", "new"), "the name and the machine differ after {point}");
    if exists("machine", "new") {
        server.ok(&["machine", "start", "new"]);
        server.exec("new", "ping -n -c 1 -W 5 10.7.0.10");
        server.ok(&["machine", "rm", "new"]);
    }
    // Whichever policy was in force, the next one is: a network that it names would not go.
    assert!(apply(server, "{}"), "after {point}: {}", now());
    // One that was not answered is there all the same, until it is closed.
    for session in server.json(&["vpn", "ls"])["items"].as_array().unwrap() {
        server.ok(&["vpn", "close", session["id"].as_str().unwrap()]);
    }
    for network in ["fresh", "doomed"].iter().filter(|network| exists("network", network)) {
        server.ok(&["network", "rm", network]);
    }
    let left = disagreements(server);
    assert!(left.is_empty(), "after {point} and removing everything: {left:#?}");
}

const JOINED: &str = "allow: [{id: join, from: net:kept, to: net:doomed, ports: [tcp/5432]}]";

/// Whether the policy was put in force.
fn apply(server: &Server, policy: &str) -> bool {
    let path = server.data_dir().join("policy.yaml");
    std::fs::write(&path, policy).unwrap();
    let applied = server.run(&["policy", "apply", path.to_str().unwrap()]).status.success();
    std::fs::remove_file(&path).unwrap();
    applied
}

/// Starts the server, and asks for one thing after the other until it dies at the point.
fn die_at(server: &mut Server, point: &str) -> Answered {
    let armed = server.data_dir().join("crash");
    let _ = std::fs::remove_file(&armed);
    server.set_options(Options {
        environment: vec![
            (crash::VARIABLE.into(), point.into()),
            (crash::ARMED.into(), armed.to_str().unwrap().into()),
        ],
        ..Options::default()
    });
    server.up().unwrap_or_else(|log| panic!("no start before {point}:\n{log}"));
    std::fs::write(&armed, "").unwrap();

    let mut answered = Answered::default();
    if ["apply-policy", "link", "unlink"].iter().any(|step| point.ends_with(&format!(":network-{step}"))) {
        // One joins two networks, the other separates them again.
        for policy in [JOINED, "{}"] {
            if !apply(server, policy) || !server.is_running() {
                break;
            }
        }
        assert!(server.wait_for_end(SETTLES_WITHIN), "{point} was never reached\n{}", server.log());
        return answered;
    }
    if point.ends_with(":network-fit-tunnel") {
        let opened = server.run(&["vpn", "open", "doomed"]).status.success();
        assert!(!opened, "a session was answered although the daemon died before its packets passed");
        assert!(server.wait_for_end(SETTLES_WITHIN), "{point} was never reached\n{}", server.log());
        return answered;
    }
    type Flag = fn(&mut Answered) -> &mut bool;
    let stops = point.ends_with(":stop-container");
    let wishes: &[(&[&str], Flag)] = &[
        (&["machine", "create", "new", "--network", "kept", "--memory", "64"], |answered| &mut answered.made),
        match stops {
            true => (&["machine", "stop", "new"], |answered| &mut answered.stopped),
            false => (&["network", "create", "fresh"], |answered| &mut answered.network_made),
        },
        (&["machine", "rm", "new"], |answered| &mut answered.removed),
        (&["network", "rm", "doomed"], |answered| &mut answered.network_removed),
    ];
    for (arguments, flag) in wishes {
        answered.removal_asked |= arguments.starts_with(&["machine", "rm"]);
        let success = server.run(arguments).status.success();
        *flag(&mut answered) = success;
        if !success || !server.is_running() {
            break;
        }
    }
    assert!(server.wait_for_end(SETTLES_WITHIN), "{point} was never reached: {answered:?}\n{}", server.log());
    answered
}

/// Where finishing or undoing gets to the same point, it dies there too; elsewhere it is killed half way.
fn die_again_at(server: &mut Server, point: &str) {
    server.set_options(Options { environment: vec![(crash::VARIABLE.into(), point.into())], ..Options::default() });
    if server.up().is_ok() && !server.wait_for_end(Duration::from_millis(200)) {
        server.kill();
    }
}

/// A machine's id without its kind, as it stands in names on the host.
const ID_LENGTH: usize = 26;

/// Where the host and the records differ.
fn disagreements(server: &Server) -> Vec<String> {
    let installation = server.installation();
    let machines = server.json(&["machine", "ls"]);
    let machines = machines["items"].as_array().unwrap();
    let bare = |machine: &serde_json::Value| machine["id"].as_str().unwrap().rsplit('_').next().unwrap().to_owned();
    let all: BTreeSet<String> = machines.iter().map(bare).collect();
    let running: BTreeSet<String> = machines.iter().filter(|machine| machine["state"] == "running").map(bare).collect();
    let networks = server.json(&["network", "ls"])["items"].as_array().unwrap().len();

    let run = Path::new("/run").join(format!("warren-{installation}"));
    let disks = common::pool().join("fs/disks").join(&installation);
    let prefix = format!("warren-{installation}-");
    let mut differ = Vec::new();
    for (what, directory, expected) in [
        ("containers", run.join("oci"), &running),
        ("bundles", run.join("machines"), &running),
        ("agents", run.join("agents"), &running),
        ("boots", run.join("boots"), &running),
        ("disks", disks, &all),
    ] {
        let entries = std::fs::read_dir(&directory).into_iter().flatten();
        let found: BTreeSet<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .map(|name| name.strip_prefix(&prefix).unwrap_or(&name).to_owned())
            .filter(|name| name.len() == ID_LENGTH)
            .collect();
        if found != *expected {
            differ.push(format!("{what}: {found:?} instead of {expected:?}"));
        }
    }
    let traces = Server::traces(&installation);
    let namespaces = traces.iter().filter(|trace| trace.starts_with("namespace:")).count();
    if namespaces != networks {
        differ.push(format!("{namespaces} namespaces for {networks} networks"));
    }
    // A root is mounted only for as long as a container is being made.
    differ.extend(traces.iter().filter(|trace| trace.contains("/roots/")).cloned());
    let named = |trace: &&String| running.iter().any(|machine| trace.contains(machine.as_str()));
    differ.extend(traces.iter().filter(|trace| trace.starts_with("cgroup:")).filter(|trace| !named(trace)).cloned());
    differ
}
