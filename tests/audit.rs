//! Audits on the real kernel: probes in real machines, reports that are checked without the server, the log of mutations.

mod common;

use std::path::Path;
use std::time::Duration;

use common::{Server, eventually, text};
use serde_json::Value;

const POLICY: &str = "\
networks:
  dev: {intra: deny}
allow:
  - {id: agent-db, from: dev/tag:agent, to: dev/tag:db, ports: [tcp/8080], owner: platform, expires: 2999-01-01T00:00:00Z}
";

/// Two machines in `dev`, of which one may reach the other on one port, one in `prod` with the same addresses, and a
/// machine of another account.
fn house() -> Server {
    let server = Server::start();
    for network in ["dev", "prod"] {
        server.ok(&["network", "create", network, "--cidr", "10.9.0.0/24"]);
    }
    server.ok(&["machine", "create", "agent", "--network", "dev", "--tag", "agent"]);
    server.ok(&["machine", "create", "db", "--network", "dev", "--tag", "db", "--port", "web=8080/http"]);
    server.ok(&["machine", "create", "billing", "--network", "prod"]);
    server.ok(&["account", "create", "acme"]);
    server.ok(&["--account", "acme", "machine", "create", "theirs"]);
    server.serve("db", "hello");
    server.apply(POLICY);
    server
}

fn report(directory: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(directory.join("report.json")).unwrap()).unwrap()
}

#[test]
fn an_audit_of_a_house_in_order_passes_and_is_checked_without_the_server() {
    let mut server = house();
    let directory = tempfile::tempdir().unwrap();
    let (reports, key) = (directory.path().join("reports"), directory.path().join("audit.pub"));
    let (reports_text, key_text) = (reports.to_str().unwrap(), key.to_str().unwrap());
    server.ok(&["audit", "run", "--report", reports_text]);
    let first = report(&reports);
    assert_eq!(first["result"], "pass", "{}", first["reasons"]);
    let cells = first["cells"].as_array().unwrap();
    let allowed: Vec<&Value> =
        cells.iter().filter(|cell| cell["expected"]["rule"] == "agent-db" && cell["port"] == 8080).collect();
    assert!(!allowed.is_empty());
    // The machine's own server has the port, and is not replaced by the probe.
    assert!(allowed.iter().all(|cell| cell["evidence"]["canary"] == "service" && cell["observed"] == "reached"));
    let kinds = |kind: &str| cells.iter().filter(|cell| cell["to"]["kind"] == kind).count();
    assert!(kinds("foreign") > 0 && kinds("name") > 0 && kinds("address") > 0);
    assert!(cells.iter().any(|cell| cell["from"]["network"] == "prod" && cell["to"]["network"] == "dev"));
    let rules = first["policy"]["exceptions"].as_array().unwrap();
    let rule = rules.iter().find(|rule| rule["id"] == "agent-db").unwrap();
    assert_eq!((&rule["owner"], &rule["expired"]), (&"platform".into(), &false.into()));
    let live: Vec<&Value> = first["live"].as_array().unwrap().iter().map(|rules| &rules["reconciled"]).collect();
    // Those two, and the one that the account has from its start.
    assert_eq!(live, [&Value::Bool(true); 3]);
    assert!(first["denials"]["total"].as_u64().unwrap() > 0);

    std::fs::write(&key, server.ok(&["audit", "key"])).unwrap();
    server.restart();
    server.ok(&["audit", "run", "--report", reports_text]);
    let log = directory.path().join("audit.log");
    std::fs::write(&log, server.ok(&["audit", "log", "--raw"])).unwrap();
    let log_text = log.to_str().unwrap();
    server.stop();
    let verified = server.json(&["audit", "verify", reports_text, "--key", key_text]);
    assert_eq!((&verified["number"], &verified["reports_checked"]), (&2.into(), &2.into()));
    assert_eq!(verified["chain_whole"], true);
    server.json(&["audit", "verify-log", log_text, "--report", reports_text, "--key", key_text]);

    let whole = std::fs::read_to_string(&log).unwrap();
    let shortened: String = whole.lines().take(3).map(|line| format!("{line}\n")).collect();
    std::fs::write(&log, shortened).unwrap();
    server.refused(&["audit", "verify-log", log_text, "--report", reports_text, "--key", key_text]);
    server.json(&["audit", "verify-log", log_text]);
    let page = reports.join("report.html");
    let bent = std::fs::read_to_string(&page).unwrap().replacen("pass", "fail", 1);
    std::fs::write(&page, bent).unwrap();
    server.refused(&["audit", "verify", reports_text, "--key", key_text]);
}

#[test]
fn what_was_not_probed_is_named_and_is_no_pass() {
    let server = house();
    let directory = tempfile::tempdir().unwrap();
    let reports = directory.path().join("reports");
    server.ok(&["machine", "stop", "billing"]);
    let output = server.run(&["audit", "run", "--report", reports.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    assert!(text(&output.stdout).contains("prod/billing was not probed: it is stopped"), "{}", text(&output.stdout));
    assert_eq!(report(&reports)["result"], "inconclusive");

    // Of one network alone, the machines elsewhere are targets only.
    server.ok(&["machine", "start", "billing"]);
    server.ok(&["audit", "run", "--network", "dev", "--report", reports.to_str().unwrap()]);
    let narrow = report(&reports);
    let cells = narrow["cells"].as_array().unwrap();
    assert!(!cells.is_empty() && cells.iter().all(|cell| cell["from"]["network"] == "dev"));
    server.refused_as("not_found", &["audit", "run", "--network", "none", "--report", reports.to_str().unwrap()]);
}

#[test]
fn a_machine_without_its_link_makes_flows_inconclusive_and_not_passed() {
    let server = house();
    let directory = tempfile::tempdir().unwrap();
    let reports = directory.path().join("reports");
    // Root in the machine drops what its resolver answers, so that its own control fails.
    server.exec("agent", "ip route add blackhole 10.9.0.1/32");
    let output = server.run(&["audit", "run", "--report", reports.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    let found = report(&reports);
    let cells = found["cells"].as_array().unwrap();
    let from_agent =
        cells.iter().filter(|cell| cell["from"]["name"] == "agent" && cell["expected"]["allowed"] == false);
    let verdicts: std::collections::BTreeSet<&str> = from_agent.map(|cell| cell["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, std::collections::BTreeSet::from(["inconclusive"]));
}

#[test]
fn a_schedule_runs_by_itself_and_tells_what_is_not_a_pass() {
    let server = house();
    let directory = tempfile::tempdir().unwrap();
    let reports = directory.path().join("scheduled");
    server.ok(&["machine", "stop", "billing"]);
    server.ok(&["audit", "schedule", "--every", "1m", "--report", reports.to_str().unwrap()]);
    assert_eq!(server.json(&["audit", "schedule"])["every_seconds"], 60);
    let told = || server.ok(&["events", "--json"]).contains("audit_failed");
    assert!(eventually(Duration::from_secs(100), told), "{}", server.log());
    assert_eq!(report(&reports)["scope"]["asked_by"], "schedule");
    server.ok(&["audit", "schedule", "--off"]);
    server.refused_as("not_found", &["audit", "schedule"]);
}

#[test]
fn only_roots_report_names_the_host_and_both_try_the_same() {
    let mut server = Server::start();
    server.host.run("ip addr add 192.0.2.77/32 dev lo");
    server.act_as_new("acme");
    server.ok(&["machine", "create", "theirs"]);
    let directory = tempfile::tempdir().unwrap();
    let (own, roots) = (directory.path().join("own"), directory.path().join("roots"));
    server.ok(&["audit", "run", "--report", own.to_str().unwrap()]);
    server.key = None;
    server.ok(&["--account", "acme", "audit", "run", "--report", roots.to_str().unwrap()]);
    let (own, roots) = (report(&own), report(&roots));
    let about_host = |report: &Value, kind: &str| {
        report["cells"].as_array().unwrap().iter().filter(|cell| cell["to"]["kind"] == kind).count()
    };
    assert!(about_host(&roots, "host") > 0);
    assert_eq!((about_host(&own, "unnamed"), about_host(&own, "host")), (about_host(&roots, "host"), 0));
    let host = roots["installation"]["host"].as_str().unwrap();
    assert_eq!(own["installation"]["host"], Value::Null);
    for secret in ["192.0.2.77", &format!("\"{host}\"")] {
        assert!(roots.to_string().contains(secret) && !own.to_string().contains(secret), "{secret}");
    }
}
