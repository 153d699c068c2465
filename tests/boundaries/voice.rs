//! One denial, one voice: wherever a refusal shows, it has the same id, rule, reason and missing rule.

use std::io::BufRead as _;
use std::time::Duration;

use serde_json::Value;

use crate::common::{eventually, text};
use crate::world::{API, CANARY, CANARY_AT, Driver, World, is_of};

const POLICY: &str = r#"
forbid:
  - {id: never, from: net:dev, to: {name: "bad.allowed.example"}}
allow:
  - {id: web, from: dev/tag:agent, to: {name: "*.allowed.example"}, ports: [tcp/80, tcp/443]}
"#;

fn world() -> World {
    let world = World::new(Driver::Container);
    world.server.ok(&["network", "create", "dev"]);
    world.create("agent", "dev", &["--tag", "agent"]);
    world.apply(POLICY);
    world.outside.names.addresses("bad.allowed.example", &["151.101.1.66"]);
    world
}

/// Runs Python in the machine, and answers what `exec` says of it.
fn exec(world: &World, code: &str) -> Value {
    let code = format!("import sys; sys.path.insert(0, '/root'); from probe import *\n{code}");
    let said = world.server.ok(&["exec", "--json", "agent", "--", "python3", "-c", &code]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["status"], 0, "{said}");
    said
}

/// The ids of the refusals that `exec` tells of.
fn told_by_exec(said: &Value) -> Vec<String> {
    let id = |item: &Value| item["id"].as_str().unwrap_or_default().to_owned();
    said["denials"].as_array().map(|items| items.iter().map(id).collect()).unwrap_or_default()
}

/// The record with this id.
fn record(world: &World, id: &str) -> Value {
    let find = || world.server.denials().into_iter().find(|item| item["id"] == id);
    assert!(eventually(Duration::from_secs(30), || find().is_some()), "{id} is not in {:?}", world.server.denials());
    find().unwrap()
}

/// The ids in a text.
fn ids(text: &str) -> Vec<String> {
    let is_end = |c: char| !c.is_ascii_alphanumeric() && c != '_';
    let mut all: Vec<String> = text
        .match_indices("dny_")
        .map(|(at, _)| text[at..].split(is_end).next().unwrap_or_default().to_owned())
        .filter(|id| id.len() > 8)
        .collect();
    all.sort();
    all.dedup();
    all
}

#[test]
fn the_same_id_shows_in_dns_http_exec_and_the_list() {
    let world = world();
    // A question about a name that no rule is about.
    let said = exec(&world, &format!("print(json.dumps(lookup({CANARY:?})))"));
    let answer = said["stdout"].as_str().unwrap();
    let dns = ids(answer);
    assert_eq!(dns.len(), 1, "{answer}");
    assert!(told_by_exec(&said).contains(&dns[0]), "exec does not tell: {said}");
    let told = record(&world, &dns[0]);
    assert_eq!(told["layer"], "dns", "{told}");
    assert_eq!(told["name"], CANARY, "{told}");
    assert_eq!(told["rule"], Value::Null, "{told}");
    assert!(is_of(&told, "agent"), "{told}");
    assert_eq!(told["suggested_rule"]["to"]["name"], CANARY, "{told}");
    assert!(answer.contains(told["reason"].as_str().unwrap()), "{answer}\n{told}");

    // A request that a rule forbids, and one for a host that is not the connection's.
    let plain = format!("print(ask(tcp({API:?}, 80), request({CANARY:?}, '/')))");
    let proxied = "print(ask(tcp(GATEWAY, 3128), request('bad.allowed.example', 'http://bad.allowed.example/')))";
    for (code, rule, layer) in [(plain.as_str(), Value::Null, "http"), (proxied, Value::from("never"), "proxy")] {
        let said = exec(&world, code);
        let answer = said["stdout"].as_str().unwrap();
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        assert!(answer.contains("application/problem+json"), "{answer}");
        let problem: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap().trim()).unwrap();
        let id = ids(&problem.to_string());
        assert_eq!(id.len(), 1, "{problem}");
        assert!(told_by_exec(&said).contains(&id[0]), "exec does not tell: {said}");
        let told = record(&world, &id[0]);
        assert_eq!(told["layer"], layer, "{told}");
        assert_eq!(told["rule"], rule, "{told}");
        assert!(problem.to_string().contains(told["reason"].as_str().unwrap()), "{problem}\n{told}");
    }

    // A packet: the machine sees a reset, exec and the list tell why.
    let said = exec(&world, &format!("print(touch({:?}, 443))", CANARY_AT[0]));
    let packet = told_by_exec(&said);
    assert_eq!(packet.len(), 1, "{said}");
    let told = record(&world, &packet[0]);
    assert_eq!((told["layer"].as_str(), told["port"].as_u64()), (Some("egress"), Some(443)), "{told}");
    assert!(told["suggested_rule"].is_object(), "{told}");
    // For a person: after the command's own words, on stderr.
    let output = world.py_output("agent", "lookup('person.unlisted.example')");
    let said = text(&output.stderr);
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    assert!(said.contains("refused") && said.contains("person.unlisted.example"), "{said}");
}

#[test]
fn the_suggested_rule_is_what_was_missing() {
    let world = world();
    let visit = format!("print(curl('https://{CANARY}/voice'))");
    let arrived = || world.outside.log.requests(world.beginning()).iter().any(|head| head.contains("/voice"));
    world.py("agent", &visit);
    assert!(!arrived());
    let said = world.server.json(&["explain", "agent", CANARY, "--port", "tcp/443"]);
    assert_eq!(said["verdict"], "deny", "{said}");
    let missing = said["missing_rule"].clone();
    assert!(missing.is_object(), "{said}");
    world.apply(&format!("{POLICY}  - {missing}\n"));
    let open = eventually(Duration::from_secs(30), || {
        world.py("agent", &visit);
        arrived()
    });
    assert!(open, "with {missing} it is still closed");
}

#[test]
fn many_refusals_are_few_records_and_no_count_is_lost() {
    const TRIES: u64 = 400;
    let world = world();
    world.py("agent", &format!("for _ in range({TRIES}): udp({:?}, 4100, listen=False)", CANARY_AT[0]));
    let mine = |item: &Value| is_of(item, "agent") && item["port"] == 4100;
    assert!(eventually(Duration::from_secs(30), || world.server.denials().iter().any(mine)), "nothing was recorded");
    let records = world.server.denials().iter().filter(|item| mine(item)).count();
    assert!(records <= 40, "{records} records");
    let address = world.server.json(&["machine", "show", "agent"])["private_ip"].as_str().unwrap().to_owned();
    let counted = text(&world.server.in_router(2, &["nft", "list", "set", "inet", "warren", "refused4"]).stdout);
    let element = counted.split(&format!("{address} counter packets ")).nth(1).unwrap_or_default();
    let packets: u64 = element.split(' ').next().unwrap_or_default().parse().unwrap_or_default();
    assert!(packets >= TRIES, "{packets} of {TRIES}: {counted}");
}

#[test]
fn a_refusal_is_followed_as_it_happens() {
    let world = world();
    let mut following = world.server.spawn(&["denials", "--follow", "--json"]);
    let (tell, told) = std::sync::mpsc::channel();
    let stdout = following.stdout.take().unwrap();
    std::thread::spawn(move || {
        let mut line = String::new();
        let _ = std::io::BufReader::new(stdout).read_line(&mut line);
        let _ = tell.send(line);
    });
    // It may not follow yet when the first ones happen. Each is a refusal of its own.
    let line = (0..10).find_map(|number| {
        world.py("agent", &format!("lookup('follow-{number}.unlisted.example')"));
        told.recv_timeout(Duration::from_secs(2)).ok()
    });
    following.kill().unwrap();
    following.wait().unwrap();
    let item: Value = serde_json::from_str(&line.expect("a line")).unwrap();
    let name = item["name"].as_str().unwrap();
    assert!(name.starts_with("follow-") && name.ends_with(".unlisted.example"), "{item}");
}
