//! Whether the data plane can take a policy over, and may.

use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use warren_model::policy::compile::Default as Treatment;
use warren_model::policy::{self as model, Directory, Finding, NetworkRules, Policy, PrivateRanges, Subject, Target};
use warren_model::{Code, Label};

use super::apart;
use crate::error::{Answer, ApiError};
use crate::state::Api;

/// Refuses a policy that the data plane could not take over: too large, or with ways out that the host does not give.
/// Answers which networks it links by IPv6 only.
pub(super) async fn can_be_enforced(
    api: &Api,
    policy: &Policy,
    directory: Arc<Directory>,
    now: Timestamp,
) -> Answer<Vec<String>> {
    let (policy, permitted, forwarding) = (policy.clone(), api.config.private_ranges.clone(), api.host.forwarding());
    apart(move || {
        let rules = directory.networks.keys().map(|network| model::compile(&policy, &directory, network, now));
        let rules: Vec<NetworkRules> = rules
            .collect::<Result<_, _>>()
            .map_err(|error| ApiError::new(Code::PolicyInvalid, format!("the policy cannot be enforced: {error}")))?;
        for (network, rules) in directory.networks.keys().zip(&rules) {
            is_permitted(&policy, network, rules, &permitted, now)?;
            // A network with open egress is not the policy's doing.
            if rules.exits && rules.outside != Treatment::Accept && !forwarding {
                return Err(ApiError::new(
                    Code::ForwardingRequired,
                    format!(
                        "a rule lets network {network} reach a range outside, and this host does not forward: start the \
                         server with --forwarding, or name hosts instead of ranges"
                    ),
                ));
            }
        }
        Ok(overlaps(&directory, &rules))
    })
    .await?
}

/// Refuses a network that the policy in force does not fit: `directory` has it, and the others.
pub(crate) async fn fits(
    api: &Api,
    policy: &Policy,
    directory: Directory,
    network: &Label,
    now: Timestamp,
) -> Answer<()> {
    let (policy, permitted, network) = (policy.clone(), api.config.private_ranges.clone(), network.clone());
    apart(move || {
        if let Some(finding) = unenforceable(&policy, &directory, &network, now) {
            return Err(ApiError::new(
                Code::PolicyDenied,
                format!("the policy in force does not fit network {network}: {}", finding.message),
            ));
        }
        // What cannot be compiled is closed.
        for other in directory.networks.keys() {
            if let Ok(rules) = model::compile(&policy, &directory, other, now) {
                is_permitted(&policy, other, &rules, &permitted, now)?;
            }
        }
        Ok(())
    })
    .await?
}

/// A forbidding rule that cannot be enforced because of this network.
fn unenforceable(policy: &Policy, directory: &Directory, network: &Label, now: Timestamp) -> Option<Finding> {
    // The rest was checked when it was applied, and does not count here.
    let policy = Policy { allow: Vec::new(), tests: Vec::new(), ..policy.clone() };
    let findings = |directory: &Directory| {
        let found = model::check(&policy, directory, &Default::default(), now).err().unwrap_or_default();
        found.into_iter().filter(|finding| finding.pointer.starts_with("/forbid/")).collect::<Vec<_>>()
    };
    let mut without = directory.clone();
    without.networks.remove(network);
    let before = findings(&without);
    findings(directory).into_iter().find(|finding| !before.contains(finding))
}

/// Refuses rules that open private ranges which the host's operator does not permit.
fn is_permitted(
    policy: &Policy,
    network: &Label,
    rules: &NetworkRules,
    permitted: &PrivateRanges,
    now: Timestamp,
) -> Answer<()> {
    let Some(exit) = permitted.exceeded_by(rules) else { return Ok(()) };
    let overlap = |range: &IpNet| range.contains(&exit) || exit.contains(range);
    let rule = policy.allow.iter().filter(|rule| rule.is_in_force(now)).find_map(|rule| match &rule.to {
        Target::Inside(Subject::Range(None, range)) if overlap(range) && !permitted.permit(*range) => {
            Some(format!("rule {} lets network {network} reach {range}", rule.id))
        }
        _ => None,
    });
    let rule = rule.unwrap_or_else(|| format!("the policy lets network {network} reach {exit}"));
    Err(ApiError::new(
        Code::RangeNotPermitted,
        format!(
            "{rule}, and the operator of this host does not permit {exit}, which is not the public internet: name a range \
             without it, or have the server started with --private-range {exit} (private_ranges in its settings)"
        ),
    ))
}

fn overlaps(directory: &Directory, rules: &[NetworkRules]) -> Vec<String> {
    let mut found = Vec::new();
    for ((one, entry), rules) in directory.networks.iter().zip(rules) {
        let by_ipv6_only = rules.links.iter().filter(|(number, ranges)| {
            // Each pair is told once.
            **number > entry.number && !ranges.iter().any(|range| matches!(range, IpNet::V4(_)))
        });
        for (number, _) in by_ipv6_only {
            let other = directory.networks.iter().find(|(_, other)| other.number == *number);
            let other = other.map_or_else(String::new, |(name, _)| name.to_string());
            found.push(format!("networks {one} and {other} share IPv4 addresses: they reach each other by IPv6 only"));
        }
    }
    found
}
