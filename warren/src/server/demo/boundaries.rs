//! An agent tries to reach production, and the proof that it cannot.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use warren_lab::outside::Outside;

use super::stage::{Stage, path_text};
use super::{claim, title};

/// The one name that the agent may reach, and another one at the same address.
const ALLOWED: &str = "api.example.com";
const NEIGHBOUR: &str = "admin.example.com";
const ADDRESSES: [&str; 2] = ["151.101.1.69", "2a04:4e42::645"];
/// Within this time a flow has to be cut after the policy without its rule is in force.
const CUT_WITHIN: Duration = Duration::from_secs(1);

const POLICY: &str = "\
networks:
  agents: {intra: allow}
  prod: {intra: deny}
forbid:
  - {id: no-prod, from: net:agents, to: net:prod}
allow:
  - {id: api, from: agents/agent, to: {name: api.example.com}, ports: [tcp/443]}
tests:
  - {from: agents/agent, to: {name: api.example.com}, port: tcp/443, expect: allow, by: api}
  - {from: agents/agent, to: prod/db, port: tcp/5432, expect: deny, by: no-prod}
";
const REVOKED: &str = "\
networks:
  agents: {intra: allow}
  prod: {intra: deny}
forbid:
  - {id: no-prod, from: net:agents, to: net:prod}
";

pub(super) fn play(stage: &mut Stage, outside: &Outside) -> anyhow::Result<()> {
    for name in [ALLOWED, NEIGHBOUR] {
        outside.names.addresses(name, &ADDRESSES);
    }
    title("A policy");
    stage.say_and_run(&["network", "create", "prod", "--cidr", "10.20.0.0/24"])?;
    stage.create_machine("db", "prod", "10.20.0.10", Some("sql=5432"))?;
    stage.exec("db", "nohup python3 -m http.server 5432 >/dev/null 2>&1 &")?;
    apply(stage, "policy.yaml", POLICY)?;
    let authority = stage.data_dir.join("demo-authority.pem");
    std::fs::write(&authority, outside.certificate())?;
    stage.say_and_run(&["cp", path_text(&authority)?, "agent:/root/authority.pem"])?;

    title("The agent tries production, six ways");
    let db6 = stage.json(&["machine", "show", "db"])?["private_ip6"].as_str().context("db has no ULA")?.to_owned();
    let mut known = BTreeSet::new();
    for (way, script) in [
        ("by its address", "curl -sS --max-time 5 http://10.20.0.10:5432/".to_owned()),
        ("by its IPv6 address", format!("curl -sS --max-time 5 'http://[{db6}]:5432/'")),
        (
            "through the proxy",
            "curl -sS --max-time 5 -p -x http://gateway.internal:3128 http://10.20.0.10:5432/".to_owned(),
        ),
        ("the metadata service", "curl -sS --max-time 5 http://169.254.169.254/latest/meta-data/".to_owned()),
        ("a name that nobody allowed", format!("curl -sS --max-time 5 https://{NEIGHBOUR}/")),
        (
            "that name, through the connection to the allowed one",
            format!("curl -sSk --max-time 5 --connect-to {NEIGHBOUR}:443:{ALLOWED}:443 https://{NEIGHBOUR}/"),
        ),
    ] {
        refused(stage, outside, way, &script, &mut known)?;
    }
    claim("six attempts, six refusals in the same words; none of them was met outside");

    title("The one name that it may reach");
    let page = format!(
        "curl -sS --max-time 10 --cacert /root/authority.pem -o /dev/null -w '%{{http_code}}' https://{ALLOWED}/"
    );
    println!("$ warren exec agent -- {page}");
    let status = stage.exec("agent", &page)?;
    println!("    {status}");
    ensure!(status.trim() == "200", "{ALLOWED} answered {status}");
    stage.say_and_run(&["explain", "agents/agent", ALLOWED, "--port", "tcp/443"])?;
    claim("TLS from end to end: the certificate is the server's own");

    title("The rule is revoked under an open connection");
    let download = format!(
        "nohup sh -c 'curl -sS --http1.1 --cacert /root/authority.pem -o /root/part \
         \"https://{ALLOWED}/bytes?count=100000000&rate=1000000\"; echo $? > /root/ended' >/dev/null 2>&1 &"
    );
    stage.exec("agent", &download)?;
    std::thread::sleep(Duration::from_millis(1500));
    let arrived: u64 = stage.exec("agent", "stat -c %s /root/part")?.trim().parse()?;
    ensure!(arrived > 0, "nothing of the download has arrived");
    apply(stage, "revoked.yaml", REVOKED)?;
    let began = Instant::now();
    let ended = loop {
        let ended = stage.exec("agent", "cat /root/ended 2>/dev/null || true")?;
        if !ended.is_empty() || began.elapsed() > 5 * CUT_WITHIN {
            break ended;
        }
    };
    let took = began.elapsed();
    println!("    {arrived} bytes had arrived; {} ms after the policy was in force, curl had ended", took.as_millis());
    ensure!(!ended.is_empty() && ended.trim() != "0", "the download went on");
    ensure!(took < CUT_WITHIN, "it was cut only after {took:?}");
    claim("the open connection was cut, within a second");

    title("The proof");
    let report = stage.data_dir.join("demo-report");
    let key = stage.data_dir.join("demo-audit.key");
    stage.say_and_run(&["audit", "run", "--report", path_text(&report)?])?;
    println!("$ warren audit key > {}", key.display());
    let printed = stage.command(&["audit", "key"]).output()?;
    ensure!(printed.status.success(), "the key was not printed");
    std::fs::write(&key, printed.stdout)?;
    stage.say_and_run(&["audit", "verify", path_text(&report)?, "--key", path_text(&key)?])?;
    claim("real packets from inside every machine agree with the policy, and the report is signed");
    for file in [&authority, &key] {
        std::fs::remove_file(file)?;
    }
    std::fs::remove_dir_all(&report)?;
    Ok(())
}

fn apply(stage: &Stage, name: &str, text: &str) -> anyhow::Result<()> {
    let path = stage.data_dir.join(name);
    std::fs::write(&path, text)?;
    println!("$ cat {}", path.display());
    text.lines().for_each(|line| println!("    {line}"));
    let applied = stage.say_and_run(&["policy", "apply", path_text(&path)?]);
    std::fs::remove_file(&path)?;
    applied
}

/// Runs an attempt that has to fail, and shows the denial that it left.
fn refused(
    stage: &Stage,
    outside: &Outside,
    way: &str,
    script: &str,
    known: &mut BTreeSet<String>,
) -> anyhow::Result<()> {
    println!("{way}\n$ warren exec agent -- {script}");
    let mark = outside.log.mark();
    let attempt = stage.attempt("agent", script)?;
    ensure!(!attempt.status.success(), "{way}: it was reached");
    String::from_utf8_lossy(&attempt.stderr).lines().for_each(|line| println!("    {line}"));
    let met: Vec<_> = outside.log.packets(mark);
    ensure!(met.is_empty() || way.contains("through the connection"), "{way}: {met:?} arrived outside");
    let denials = stage.json(&["denials", "--machine", "agent"])?;
    let new: Vec<_> = denials["items"]
        .as_array()
        .context("denials are a list")?
        .iter()
        .filter_map(|denial| denial["id"].as_str())
        .filter(|id| known.insert((*id).to_owned()))
        .collect();
    ensure!(!new.is_empty(), "{way}: no denial was recorded");
    Ok(())
}
