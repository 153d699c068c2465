//! Policies from end to end, between machines.

use std::time::Duration;

use serde_json::Value;

use crate::common::{Server, eventually};
use crate::world::is_of;

const SOON: Duration = Duration::from_secs(30);

/// Network `dev` with `web`, `db` and `other`, each serving its name on port 8080.
fn three() -> Server {
    let server = Server::start();
    server.ok(&["network", "create", "dev", "--cidr", "10.20.0.0/24"]);
    for (name, tag) in [("web", "web"), ("db", "db"), ("other", "none")] {
        server.ok(&["machine", "create", name, "--network", "dev", "--tag", tag]);
        server.serve(name, name);
    }
    server
}

fn address(server: &Server, machine: &str, key: &str) -> String {
    server.json(&["machine", "show", machine])[key].as_str().unwrap().to_owned()
}

/// Which machines reach which, in both families, on port 8080.
fn reached(server: &Server) -> Vec<String> {
    let machines = ["web", "db", "other"];
    let mut all = Vec::new();
    for from in machines {
        for to in machines.into_iter().filter(|to| *to != from) {
            let families =
                ["private_ip", "private_ip6"].map(|key| server.reaches(from, &address(server, to, key), 8080));
            assert_eq!(families[0], families[1], "{from} to {to}: the families differ");
            if families[0] {
                all.push(format!("{from}>{to}"));
            }
        }
    }
    all
}

fn policy_hash(server: &Server) -> Value {
    server.json(&["policy", "show"])["hash"].clone()
}

#[test]
fn tags_say_who_talks_and_a_forbid_wins() {
    let server = three();
    assert_eq!(reached(&server).len(), 6, "the control: without a policy everybody talks");
    server.apply("networks:\n  dev: {intra: deny}\n");
    assert_eq!(reached(&server), Vec::<String>::new());
    let allow = "networks:\n  dev: {intra: deny}\n\
                 allow:\n  - {id: web-db, from: dev/tag:web, to: dev/tag:db, ports: [tcp/8080]}\n";
    server.apply(allow);
    assert_eq!(reached(&server), ["web>db"]);
    assert!(!server.reaches("web", &address(&server, "db", "private_ip"), 8081));
    assert_eq!(server.explain("web", "dev/db", "tcp/8080"), (true, Some("web-db".to_owned())));
    assert_eq!(server.explain("db", "dev/web", "tcp/8080"), (false, None));

    server.apply(&format!("{allow}forbid:\n  - {{id: never, from: net:dev, to: dev/db}}\n"));
    assert_eq!(reached(&server), Vec::<String>::new());
    assert_eq!(server.explain("web", "dev/db", "tcp/8080"), (false, Some("never".to_owned())));
    let by_rule = |item: &Value| is_of(item, "web") && item["rule"] == "never" && item["port"] == 8080;
    assert!(eventually(SOON, || server.denials().iter().any(by_rule)), "{:?}", server.denials());

    // A tag that comes opens, and one that goes closes.
    server.apply(allow);
    server.ok(&["machine", "set", "other", "--tag", "web"]);
    assert!(eventually(SOON, || reached(&server) == ["web>db", "other>db"]), "{:?}", reached(&server));
    server.ok(&["machine", "set", "web", "--clear", "tags"]);
    assert!(eventually(SOON, || reached(&server) == ["other>db"]), "{:?}", reached(&server));
}

#[test]
fn a_network_that_is_open_inside_can_still_forbid() {
    let server = three();
    server.apply("forbid:\n  - {id: keep-out, from: dev/tag:none, to: dev/tag:db, ports: [tcp/1-9000]}\n");
    assert_eq!(reached(&server), ["web>db", "web>other", "db>web", "db>other", "other>web"]);
    let reach = server.json(&["reach"]);
    assert!(reach["items"].as_array().is_some_and(|items| items.len() == 3), "{reach}");
}

#[test]
fn a_rule_that_expires_closes_by_itself() {
    let server = three();
    let expires = text_of(std::process::Command::new("date").args(["-u", "-d", "+10 seconds", "+%Y-%m-%dT%H:%M:%SZ"]));
    server.apply(&format!(
        "networks:\n  dev: {{intra: deny}}\n\
         allow:\n  - {{id: for-now, from: dev/tag:web, to: dev/tag:db, ports: [tcp/8080], owner: someone, expires: {expires}}}\n"
    ));
    let db = address(&server, "db", "private_ip");
    assert!(server.reaches("web", &db, 8080), "it is open before it expires");
    assert!(eventually(Duration::from_secs(20), || !server.reaches("web", &db, 8080)), "it stays open");
}

fn text_of(command: &mut std::process::Command) -> String {
    crate::common::text(&command.output().unwrap().stdout).trim().to_owned()
}

#[test]
fn a_dry_run_says_what_would_change_and_changes_nothing() {
    let server = three();
    let before = policy_hash(&server);
    let said = server.dry_run(
        "networks:\n  dev: {intra: deny}\n\
         allow:\n  - {id: web-db, from: dev/tag:web, to: dev/tag:db, ports: [tcp/8080]}\n",
    );
    assert_eq!(said["dry_run"], true, "{said}");
    let closes = said["change"]["closes"]["items"].as_array().unwrap();
    assert!(closes.iter().any(|passage| passage["from"] == "dev/db" && passage["to"] == "dev/web"), "{said}");
    assert_eq!(policy_hash(&server), before);
    assert_eq!(reached(&server).len(), 6);
}

#[test]
fn a_policy_that_is_refused_leaves_the_old_one_in_force() {
    let server = three();
    let good = "networks:\n  dev: {intra: deny}\n\
                allow:\n  - {id: web-db, from: dev/tag:web, to: dev/tag:db, ports: [tcp/8080]}\n";
    server.apply(good);
    let before = policy_hash(&server);
    let wide = "allow:\n  - {id: all, from: net:dev, to: net:dev}\n";
    let refused = [
        // A test that fails, one whose rule is another one, and what cannot be read.
        format!("{wide}tests:\n  - {{from: dev/tag:web, to: dev/tag:db, port: tcp/8080, expect: deny}}\n"),
        format!("{wide}tests:\n  - {{from: dev/tag:web, to: dev/tag:db, port: tcp/8080, expect: allow, by: other}}\n"),
        format!("{wide}  - {{id: all, from: net:dev, to: net:dev}}\n"),
        format!("{wide}  - {{id: missing, from: net:nowhere, to: net:dev}}\n"),
        format!("{wide}  - {{id: port, from: net:dev, to: net:dev, ports: [tcp/70000]}}\n"),
        format!("{wide}  - {{id: name, from: net:dev, to: {{name: \"*.com\"}}}}\n"),
        format!("{wide}  - {{id: address, from: net:dev, to: {{name: 1.2.3.4}}}}\n"),
        format!("{wide}  - {{id: outer, from: net:dev, to: {{name: cloudflare-ech.com}}}}\n"),
        format!("{wide}surprise: true\n"),
        format!("{wide}  - [\n"),
    ];
    for policy in &refused {
        let problem = server.refuses(policy);
        let said = problem.to_string();
        assert!(said.contains("\"line\"") || said.contains("line "), "{policy}\n{problem}");
    }
    assert_eq!(policy_hash(&server), before);
    assert_eq!(reached(&server), ["web>db"]);
}

#[test]
fn versions_are_kept_and_rolled_back_to() {
    let server = three();
    let closed = "networks:\n  dev: {intra: deny}\n";
    let first = server.apply(closed)["version"].as_u64().unwrap();
    server
        .apply(&format!("{closed}allow:\n  - {{id: web-db, from: dev/tag:web, to: dev/tag:db, ports: [tcp/8080]}}\n"));
    assert_eq!(reached(&server), ["web>db"]);
    assert!(server.json(&["policy", "history"])["items"].as_array().unwrap().len() >= 2);
    assert!(server.json(&["policy", "diff"]).to_string().contains("web-db"));
    server.ok(&["policy", "rollback", &first.to_string()]);
    assert_eq!(reached(&server), Vec::<String>::new());
}

#[test]
fn what_belongs_to_another_account_does_not_exist() {
    let mut server = three();
    server.apply("networks:\n  dev: {intra: deny}\n");
    assert_eq!(reached(&server), Vec::<String>::new());
    assert!(eventually(SOON, || !server.denials().is_empty()));
    let foreign = address(&server, "db", "private_ip");
    let id = server.denials()[0]["id"].as_str().unwrap().to_owned();

    server.act_as_new("stranger");
    server.ok(&["machine", "create", "mine"]);
    assert_eq!(server.denials(), Vec::<Value>::new());
    assert!(server.json(&["policy", "history"])["items"].as_array().is_some_and(Vec::is_empty));
    let reach = server.json(&["reach"]).to_string();
    assert!(!reach.contains("dev/") && reach.contains("mine"), "{reach}");
    // A machine that exists elsewhere, and one that exists nowhere: word for word the same.
    let told = |from: &str, to: &str| {
        let mut problem = server.refused(&["explain", from, to, "--port", "tcp/8080"]);
        problem["request_id"] = Value::Null;
        problem.to_string()
    };
    assert_eq!(told("mine", "dev/db").replace("db", "X"), told("mine", "dev/nobody").replace("nobody", "X"));
    assert_eq!(told("web", "mine").replace("web", "X"), told("nobody", "mine").replace("nobody", "X"));
    assert!(!server.reaches("mine", &foreign, 8080));
    let problem = server.refuses("allow:\n  - {id: a, from: net:dev, to: net:dev}\n");
    assert!(!problem.to_string().contains("web") && !problem.to_string().contains("10.20"), "{problem}");
    let (status, body) = server.http(
        "GET",
        &format!("/v1/denials/{id}"),
        &[&format!("X-API-Key: {}", server.key.as_deref().unwrap())],
        b"",
    );
    assert_eq!(status, 404, "{body}");
}
