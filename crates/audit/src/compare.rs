//! What differs from the report before.

use std::collections::BTreeMap;

use warren_model::policy::Protocol;

use crate::report::{Cell, Party, Report};

/// How many differences are told one by one.
const TOLD: usize = 50;

/// The differences in what was found, each in a sentence, oldest facts first. Reports of different scopes say so and no
/// more.
pub fn differences(before: &Report, now: &Report) -> Vec<String> {
    let mut found = Vec::new();
    if (&before.scope.account, &before.scope.network, before.scope.across_accounts)
        != (&now.scope.account, &now.scope.network, now.scope.across_accounts)
    {
        found.push(format!("report {} had another scope, so that flows are not compared", before.number));
        return found;
    }
    if before.policy.hash != now.policy.hash {
        found.push(format!("policy version {} is in force instead of {}", now.policy.version, before.policy.version));
    }
    let machines = |report: &Report| {
        let machines = report.inventory.machines.iter();
        machines
            .map(|machine| (format!("{}/{}", machine.network, machine.name), machine.id.clone()))
            .collect::<BTreeMap<_, _>>()
    };
    let (had, has) = (machines(before), machines(now));
    found.extend(
        has.iter().filter(|(name, id)| had.get(*name) != Some(id)).map(|(name, _)| format!("machine {name} is new")),
    );
    found.extend(
        had.iter().filter(|(name, id)| has.get(*name) != Some(id)).map(|(name, _)| format!("machine {name} is gone")),
    );
    let live = |report: &Report| {
        report.live.iter().map(|rules| (rules.network.name.clone(), rules.reconciled)).collect::<BTreeMap<_, _>>()
    };
    let (was, is) = (live(before), live(now));
    for (network, reconciled) in &is {
        match was.get(network) {
            None => found.push(format!("network {network} is new")),
            Some(before) if before != reconciled => {
                let said =
                    if *reconciled { "are those of the policy again" } else { "are no longer those of the policy" };
                found.push(format!("the live rules of network {network} {said}"));
            }
            Some(_) => {}
        }
    }
    found.extend(
        was.keys().filter(|network| !is.contains_key(*network)).map(|network| format!("network {network} is gone")),
    );
    let old: BTreeMap<Flow, &Cell> = before.cells.iter().map(|cell| (flow(cell), cell)).collect();
    let changed = now.cells.iter().filter_map(|cell| {
        let before = old.get(&flow(cell))?;
        let same = before.verdict == cell.verdict
            && before.expected.allowed == cell.expected.allowed
            && before.observed == cell.observed;
        (!same).then(|| {
            let word = |allowed| if allowed { "allowed" } else { "refused" };
            let port = cell.port.map(|port| format!("/{port}")).unwrap_or_default();
            format!(
                "{} to {} {}{port}: {} and {}, before {} and {}",
                cell.from.label(),
                cell.to.label(),
                cell.protocol.as_str(),
                word(cell.expected.allowed),
                cell.verdict.as_str(),
                word(before.expected.allowed),
                before.verdict.as_str(),
            )
        })
    });
    let changed: Vec<String> = changed.collect();
    let more = changed.len().saturating_sub(TOLD);
    found.extend(changed.into_iter().take(TOLD));
    if more > 0 {
        found.push(format!("{more} more flows differ"));
    }
    found
}

/// What makes a flow the same in two reports. A port that was chosen for the audit is another one each time.
type Flow = (Party, Party, Protocol, Option<u16>, bool);

fn flow(cell: &Cell) -> Flow {
    let port = cell.port.filter(|_| !cell.free_port);
    (cell.from.clone(), cell.to.clone(), cell.protocol, port, cell.free_port)
}
