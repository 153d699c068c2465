//! A report with everything that one can hold once.

use jiff::Timestamp;
use warren_audit::report::*;
use warren_audit::standards;
use warren_model::audit::Verdict;
use warren_model::policy::Protocol;
use warren_model::probe::Outcome;

pub fn named(name: &str) -> Named {
    Named { id: format!("id_{name}"), name: name.to_owned() }
}

pub fn machine(name: &str, probed: Probed) -> MachineItem {
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

/// A flow that policy refuses, to a machine with markup in its name.
pub fn cell(verdict: Verdict) -> Cell {
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

/// A report of these flows.
pub fn report(number: u64, previous: Option<Link>, cells: Vec<Cell>) -> Report {
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
            host: Some("host".to_owned()),
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
