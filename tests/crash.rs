//! The daemon is killed at every step of making and removing a machine and a network. Afterwards nothing is orphaned,
//! nothing that was answered is lost, and everything that was begun is finished or undone.

mod common;

use std::time::Duration;

use common::{Options, Server, eventually};
use warren_reconcile::crash;

/// Steps that only a failing host takes; they are never reached by making and removing.
fn is_reached(point: &str) -> bool {
    !["repair-gateway", "load-rules", "detach-stray", "network-admit", "network-expel", "stop-container"]
        .iter()
        .any(|step| point.ends_with(step))
}

fn survives(point: &str) {
    let mut server = Server::start();
    server.ok(&["network", "create", "kept", "--cidr", "10.7.0.0/24"]);
    server.ok(&["machine", "create", "kept", "--network", "kept", "--ip", "10.7.0.10"]);
    server.exec("kept", "echo safe > /root/file");
    server.ok(&["network", "create", "doomed", "--cidr", "10.8.0.0/24"]);
    server.stop();

    server.set_options(Options {
        environment: vec![(crash::VARIABLE.into(), point.into())],
        ..Options::default()
    });
    // The point may be reached while the server starts: it has crashed then before it was ready.
    let started = server.up().is_ok();
    let mut answered = false;
    if started {
        answered = server.run(&["machine", "create", "new", "--network", "kept"]).status.success();
        if server.is_running() {
            server.run(&["network", "create", "fresh"]);
        }
        if server.is_running() {
            server.run(&["machine", "rm", "new"]);
            answered = false;
        }
        if server.is_running() {
            server.run(&["network", "rm", "doomed"]);
        }
        assert!(server.wait_for_end(Duration::from_secs(20)), "{point} was never reached\n{}", server.log());
    }

    server.set_options(Options::default());
    server.up().unwrap();
    assert_eq!(server.exec("kept", "cat /root/file").trim(), "safe", "at {point}");
    if answered {
        assert_eq!(server.exec("new", "echo there").trim(), "there", "answered and lost at {point}");
    }
    // What was begun comes to an end: no machine stays in between.
    assert!(
        eventually(Duration::from_secs(20), || {
            let machines = server.json(&["machine", "ls"]);
            machines["items"].as_array().unwrap().iter().all(|machine| {
                ["running", "stopped"].contains(&machine["state"].as_str().unwrap())
            })
        }),
        "after {point}: {}\n{}",
        server.json(&["machine", "ls"]),
        server.log()
    );
    // As many containers, disks and namespaces as there are machines and networks.
    let machines = server.json(&["machine", "ls"])["items"].as_array().unwrap().len();
    let networks = server.json(&["network", "ls"])["items"].as_array().unwrap().len();
    let installation = server.installation();
    let settled = eventually(Duration::from_secs(10), || {
        let containers = std::fs::read_dir(format!("/run/warren-{installation}/oci")).map_or(0, Iterator::count);
        let namespaces = Server::traces(&installation).iter().filter(|t| t.starts_with("namespace:")).count();
        containers == machines && namespaces == networks
    });
    assert!(settled, "after {point}: {machines} machines, {networks} networks\n{:#?}", Server::traces(&installation));
    let left = server.uninstall();
    assert!(left.is_empty(), "after {point}: {left:#?}");
}

#[test]
fn a_crash_at_any_step_loses_and_orphans_nothing() {
    let points: Vec<String> = crash::points().into_iter().filter(|point| is_reached(point)).collect();
    assert!(points.len() > 30);
    // Two at a time, as many as the smallest machine has processors.
    let queue = std::sync::Mutex::new(points.into_iter());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some(point) = queue.lock().unwrap().next() else { return };
                    survives(&point);
                }
            });
        }
    });
}
