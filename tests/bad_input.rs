//! Wrong input of every kind: a code of its own, a sentence that says what to do, and no change.

mod common;

use common::{Server, text};

/// Everything that a refused request must not have changed.
fn state(server: &Server) -> String {
    [["network", "ls"], ["machine", "ls"], ["account", "ls"]]
        .map(|arguments| server.json(&arguments).to_string())
        .join("\n")
}

#[test]
fn every_kind_of_wrong_input_is_refused_by_its_code() {
    let server = Server::start();
    server.ok(&["network", "create", "lab", "--cidr", "192.168.10.0/24"]);
    server.ok(&["machine", "create", "taken", "--network", "lab", "--ip", "192.168.10.10"]);
    let before = state(&server);
    let long = "x".repeat(64);
    let rows: &[(&str, &[&str])] = &[
        ("cidr_malformed", &["network", "create", "n", "--cidr", "10.0.0.0"]),
        ("cidr_malformed", &["network", "create", "n", "--cidr", "10.0.0.1/16"]),
        ("cidr_malformed", &["network", "create", "n", "--cidr", "fd00::/64"]),
        ("cidr_not_private", &["network", "create", "n", "--cidr", "8.8.8.0/24"]),
        ("cidr_not_private", &["network", "create", "n", "--cidr", "172.32.0.0/16"]),
        ("cidr_too_wide", &["network", "create", "n", "--cidr", "0.0.0.0/0"]),
        ("cidr_too_narrow", &["network", "create", "n", "--cidr", "10.0.0.0/30"]),
        ("address_malformed", &["machine", "create", "m", "--network", "lab", "--ip", "192.168.10"]),
        ("address_outside_network", &["machine", "create", "m", "--network", "lab", "--ip", "192.168.11.10"]),
        ("address_reserved", &["machine", "create", "m", "--network", "lab", "--ip", "192.168.10.0"]),
        ("address_reserved", &["machine", "create", "m", "--network", "lab", "--ip", "192.168.10.1"]),
        ("address_reserved", &["machine", "create", "m", "--network", "lab", "--ip", "192.168.10.255"]),
        ("address_taken", &["machine", "create", "m", "--network", "lab", "--ip", "192.168.10.10"]),
        ("invalid_name", &["network", "create", "Not_A_Label"]),
        ("invalid_name", &["machine", "create", "m-"]),
        ("invalid_name", &["machine", "create", &long]),
        ("invalid_name", &["machine", "create", "a.b"]),
        ("name_in_use", &["network", "create", "lab"]),
        ("name_in_use", &["machine", "create", "taken"]),
        ("not_found", &["machine", "create", "m", "--network", "nowhere"]),
        ("image_not_found", &["machine", "create", "m", "--image", "nothing"]),
        ("limit_unavailable", &["machine", "create", "m", "--cpus", "4096"]),
        ("limit_unavailable", &["machine", "create", "m", "--memory", "99999999"]),
        ("limit_out_of_range", &["machine", "create", "m", "--memory", "1"]),
        ("forwarding_required", &["network", "create", "n", "--egress", "open"]),
    ];
    for (code, arguments) in rows {
        let problem = server.refused(arguments);
        assert_eq!(problem["code"], *code, "{arguments:?}: {problem}");
        assert!(problem["request_id"].is_string(), "{problem}");
    }
    assert!(server.refused(&["machine", "create", "m", "--network", "lab", "--ip", "192.168.10.10"])["detail"]
        .as_str()
        .unwrap()
        .contains("taken"));
    assert_eq!(state(&server), before);
}

#[test]
fn wrong_usage_and_a_server_that_is_away_have_exit_statuses_of_their_own() {
    let mut server = Server::start();
    assert_eq!(server.run(&["network", "create"]).status.code(), Some(2));
    assert_eq!(server.run(&["no-such-command"]).status.code(), Some(2));
    assert_eq!(server.run(&["machine", "create", "m", "--ip"]).status.code(), Some(2));
    server.kill();
    let output = server.run(&["network", "ls"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("warren up"), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty());
    server.up().unwrap();
}

#[test]
fn another_accounts_things_do_not_exist() {
    let mut server = Server::start();
    server.ok(&["network", "create", "secret"]);
    let network = server.json(&["network", "show", "secret"])["id"].as_str().unwrap().to_owned();
    let machine = server.json(&["machine", "create", "hidden"])["id"].as_str().unwrap().to_owned();
    server.act_as_new("stranger");
    let absent = |mut problem: serde_json::Value, name: &str| {
        problem["request_id"] = serde_json::Value::Null;
        problem.to_string().replace(name, "NAME")
    };
    for (thing, other) in [(&network, "net_00000000000000000000000000"), (&machine, "mch_00000000000000000000000000")] {
        let kind = if thing.starts_with("net") { "network" } else { "machine" };
        assert_eq!(
            absent(server.refused(&[kind, "show", thing]), thing),
            absent(server.refused(&[kind, "show", other]), other),
        );
        server.refused_as("not_found", &[kind, "rm", thing]);
    }
    let lists = [server.json(&["network", "ls"]), server.json(&["machine", "ls"]), server.json(&["topology"])];
    for list in lists {
        assert!(!list.to_string().contains("secret") && !list.to_string().contains("hidden"), "{list}");
    }
    assert_eq!(server.run(&["exec", &machine, "--", "true"]).status.code(), Some(125));
    server.refused_as("forbidden", &["account", "ls"]);
    server.key = Some("wk_wrong".into());
    server.refused_as("unauthorized", &["network", "ls"]);
}

#[test]
fn a_missing_runtime_is_named_and_nothing_stays() {
    let mut server = Server::start();
    server.stop();
    server.set_options(common::Options {
        arguments: vec!["--runtime".into(), "/nowhere/runc".into()],
        ..Default::default()
    });
    server.up().unwrap();
    server.refused_as("runtime_missing", &["machine", "create", "m"]);
    server.refused_as("not_found", &["machine", "show", "m"]);
    let traces = Server::traces(&server.installation());
    assert!(!traces.iter().any(|trace| trace.starts_with("mount:") && trace.contains("/roots/")), "{traces:#?}");
}
