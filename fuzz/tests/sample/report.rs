//! A report with everything that one can hold once, and an entry of the log.

use jiff::Timestamp;
use ulid::Ulid;
use warren_audit::report::*;
use warren_audit::sign::{SigningKey, sha256};
use warren_audit::standards;
use warren_model::audit::Verdict;
use warren_model::policy::Protocol;
use warren_model::probe::Outcome;
use warren_model::record::AuditEntry;
use warren_model::{AccountId, EventId, KeyId};

/// The page of every sample: it is not looked into.
pub const PAGE: &str = "page\n";

/// The content of `report.json`.
pub fn report(key: &SigningKey) -> Vec<u8> {
    let mut report = contents(1, None, vec![cell(Verdict::Pass)]);
    report.installation.key_id = key.public().id();
    report.page_sha256 = sha256(PAGE.as_bytes());
    serde_json::to_vec(&report).unwrap()
}

pub fn entry(number: u64) -> AuditEntry {
    let ulid = Ulid::from_parts(number, 1);
    AuditEntry {
        id: EventId::from_ulid(ulid),
        time: Timestamp::UNIX_EPOCH,
        account: AccountId::from_ulid(ulid),
        key: KeyId::from_ulid(ulid),
        action: "machine.create".into(),
        target: "mch".into(),
        request_id: "r".into(),
        request: serde_json::json!({"n": number, "cpus": 0.1}),
    }
}

fn named(name: &str) -> Named {
    Named { id: format!("id_{name}"), name: name.to_owned() }
}

fn machine(name: &str, probed: Probed) -> MachineItem {
    MachineItem {
        id: format!("mch_{name}"),
        name: name.to_owned(),
        network: "agents".to_owned(),
        ipv4: "10.0.1.10".parse().unwrap(),
        ipv6: "fd00::10".parse().unwrap(),
        tags: vec!["agent".to_owned()],
        state: "running".to_owned(),
        probed,
    }
}

fn cell(verdict: Verdict) -> Cell {
    let party = |name: &str| Party::Machine {
        id: format!("mch_{name}"),
        name: name.to_owned(),
        network: "agents".to_owned(),
        address: "10.0.1.10".parse().unwrap(),
    };
    let control = |what: &str| Control { reached: true, what: what.to_owned() };
    Cell {
        from: party("a"),
        to: party("<b onload=\"x\">"),
        protocol: Protocol::Tcp,
        port: Some(5432),
        free_port: false,
        expected: Expected {
            allowed: false,
            rule: Some("no-prod".to_owned()),
            reason: "rule no-prod forbids it".to_owned(),
        },
        observed: Observed::NotReached,
        verdict,
        because: "it did not get through, and both controls did".to_owned(),
        evidence: Evidence {
            canary: Canary::Token,
            outcome: Some(Outcome::Reset),
            token_seen: false,
            canary_control: control("far"),
            sender_control: control("near"),
            counter: Some(Counter { before: 1, after: 3, attempts: 2 }),
        },
    }
}

fn contents(number: u64, previous: Option<Link>, cells: Vec<Cell>) -> Report {
    let inventory = Inventory {
        networks: Vec::new(),
        machines: vec![machine("a", Probed::Yes)],
        gaps: Vec::new(),
        notes: vec!["flows of other protocols".to_owned()],
    };
    let (result, reasons) = result(&cells, &inventory, &[], None);
    Report {
        format: FORMAT,
        result,
        reasons,
        number,
        previous,
        installation: Installation {
            id: "abcde".to_owned(),
            host: "host".to_owned(),
            kernel: "6.18".to_owned(),
            warren: "0.1.0".to_owned(),
            key_id: String::new(),
        },
        scope: Scope { account: named("default"), network: None, across_accounts: true, asked_by: "key_1".to_owned() },
        started_at: Timestamp::UNIX_EPOCH,
        finished_at: Timestamp::UNIX_EPOCH,
        policy: PolicyEvidence {
            version: 1,
            hash: "h".to_owned(),
            text: "allow: [] # </pre><script>alert(1)</script>".to_owned(),
            approved: None,
            since_previous: Vec::new(),
            exceptions: Vec::new(),
        },
        counts: Counts::of(&cells, &inventory),
        inventory,
        live: Vec::new(),
        cells,
        denials: Denials::default(),
        log: None,
        differences: Vec::new(),
        standards: standards::table(),
        page_sha256: String::new(),
    }
}
