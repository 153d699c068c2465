//! Which requirement which part of a report answers.

use serde::{Deserialize, Serialize};

/// One requirement of a standard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Standard {
    /// `NIST SP 800-53 SC-7(5)`
    pub id: String,
    pub title: String,
    /// The parts of this report that are evidence for it.
    pub evidence: Vec<String>,
    /// What they show.
    pub shows: String,
}

/// Every requirement that a report speaks to.
pub fn table() -> Vec<Standard> {
    const ROWS: [(&str, &str, &[&str], &str); 11] = [
        (
            "NIST SP 800-53 SC-7(4)",
            "External telecommunications services",
            &["policy.exceptions", "policy.approved"],
            "each exception to the traffic policy with its owner, its reason and the time until which it holds",
        ),
        (
            "NIST SP 800-53 SC-7(5)",
            "Deny by default, allow by exception",
            &["cells", "policy", "live"],
            "flows that no rule allows were tried from inside and did not get through; those that a rule allows did",
        ),
        (
            "NIST SP 800-53 SC-7(10)",
            "Prevent exfiltration",
            &["cells", "denials"],
            "attempts to reach outside addresses, other networks, the host and unlisted names, with what became of each",
        ),
        (
            "NIST SP 800-53 AU-9",
            "Protection of audit information",
            &["log", "previous"],
            "the log of mutations is a hash chain whose end is signed here; reports are signed and chained",
        ),
        (
            "NIST SP 800-53 AU-10",
            "Non-repudiation",
            &["policy.approved", "policy.since_previous", "log"],
            "which key applied which version of the policy, bound into the signed chain",
        ),
        (
            "SOC 2 CC6.1",
            "Logical access security over protected assets",
            &["policy", "inventory", "live"],
            "what there is, what may talk to what, and that the rules in force are those of the policy",
        ),
        (
            "SOC 2 CC6.6",
            "Protection against threats from outside the system's boundaries",
            &["cells", "live"],
            "flows across each network's boundary, tried in both directions",
        ),
        (
            "SOC 2 CC7.2",
            "Monitoring of components for anomalies",
            &["denials", "differences"],
            "refusals by machine and layer, and what changed since the report before",
        ),
        (
            "ISO/IEC 27001:2022 A.8.15",
            "Logging",
            &["log", "denials"],
            "mutations and refusals are on record, and the record is protected against change",
        ),
        (
            "ISO/IEC 27001:2022 A.8.20",
            "Networks security",
            &["policy", "live", "cells"],
            "networks are controlled by policy, and the control was tested",
        ),
        (
            "ISO/IEC 27001:2022 A.8.22",
            "Segregation of networks",
            &["cells", "inventory"],
            "flows between networks and between accounts were tried and judged",
        ),
    ];
    let row = |(id, title, evidence, shows): &(&str, &str, &[&str], &str)| Standard {
        id: (*id).to_owned(),
        title: (*title).to_owned(),
        evidence: evidence.iter().map(|part| (*part).to_owned()).collect(),
        shows: (*shows).to_owned(),
    };
    ROWS.iter().map(row).collect()
}
