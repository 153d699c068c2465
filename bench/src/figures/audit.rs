//! An audit of many machines in several networks, through the API, until its report is signed and here.

use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use warren_model::audit::{AuditEvent, AuditFile, Verdict};
use warren_model::wire;

use crate::api::Client;
use crate::interrupt;
use crate::options::Options;
use crate::report::{Row, Unit, Wanted};
use crate::stats::Samples;

const MACHINES: usize = 50;
const NETWORKS: usize = 5;

/// Nobody reaches anybody without a rule in two of the networks, two are linked, and a name is listed.
const POLICY: &str = "\
networks:
  net0: {intra: deny}
  net1: {intra: deny}
forbid:
  - {id: no-ssh, from: net:net2, to: net:net2, ports: [tcp/22]}
allow:
  - {id: client-server, from: net0/tag:client, to: net0/tag:server, ports: [tcp/8080]}
  - {id: among, from: net:net1, to: net1/tag:server, ports: [tcp/5432, udp/5000-5010]}
  - {id: across, from: net3/tag:client, to: net4/tag:server, ports: [tcp/8080]}
  - {id: www, from: net:net2, to: {name: www.example.com}, ports: [tcp/443]}
";

pub fn measure(options: &Options, client: &mut Client) -> anyhow::Result<Row> {
    let machines = options.many(MACHINES);
    eprintln!("making {machines} machines in {NETWORKS} networks");
    for network in 0..NETWORKS {
        let _: Value = client.post("/v1/networks", &json!({ "name": format!("net{network}") }))?;
    }
    for machine in 0..machines {
        interrupt::check()?;
        let tag = if (machine / NETWORKS).is_multiple_of(2) { "client" } else { "server" };
        let asked = json!({
            "name": format!("m{machine}"), "network": format!("net{}", machine % NETWORKS), "tags": [tag],
        });
        let _: wire::Machine = client.post("/v1/machines", &asked)?;
    }
    let _: Value = client.put("/v1/policy", &json!({ "text": POLICY }))?;

    eprintln!("an audit of {machines} machines");
    let began = Instant::now();
    let mut events: Vec<AuditEvent> = client.post_lines("/v1/audit", &json!({}))?;
    let taken = began.elapsed().as_secs_f64();
    let audit = match events.pop().context("the audit answered nothing")? {
        AuditEvent::Done { audit } => audit,
        AuditEvent::Failed { problem } => bail!("the audit failed: {problem:?}"),
        _ => bail!("the audit broke off"),
    };
    // An audit that does not come to the right result may be quick for the wrong reasons.
    ensure!(audit.result == Verdict::Pass, "the audit of machines in order was no pass: {}", audit.summary);
    let flows = flows(&events)?;
    let what = format!("audit of {machines} machines in {NETWORKS} networks, until signed");
    let row = Row::alone("audit", what, Unit::Seconds, Samples::new(vec![taken])?, Wanted::AtMost(60.0));
    Ok(row.note([format!("{flows} flows tried; {}", audit.summary)]))
}

/// How many flows the report has.
fn flows(events: &[AuditEvent]) -> anyhow::Result<usize> {
    let pieces = events.iter().filter_map(|event| match event {
        AuditEvent::Piece { file: AuditFile::Report, text } => Some(text.as_str()),
        _ => None,
    });
    let report: Value = serde_json::from_str(&pieces.collect::<String>()).context("the report is not JSON")?;
    Ok(report["cells"].as_array().context("the report has no flows")?.len())
}
