//! What a report says beside the flows: who is there, the policy and who applied it, the live rules, refusals, the log.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use warren_audit::report::{
    Applied, Approval, Denials, ExceptionRule, LiveRules, MachineItem, Named, NetworkItem, PolicyEvidence, Probed,
};
use warren_model::policy::{Intra, Rule};
use warren_model::record::{ApiKey, Egress, MachineState, Network, PolicyVersion};
use warren_model::{AccountId, KeyId, Label, MachineId, MemberId};
use warren_plan::network::{ObservedNetwork, plan};
use warren_store::{Typed, schema};

use crate::ReconcileError;
use crate::desired::Desired;
use crate::network::{desired_of, observe_router};
use crate::policy::AccountPolicy;
use crate::world::World;

/// Refusals of so long before the audit are summed up.
const OF_LATE: SignedDuration = SignedDuration::from_hours(24);
/// The most records that are looked at.
const MOST_DENIALS: usize = 10_000;
const MOST_MEMBERS: usize = 50;
/// The most versions of the policy that are told since the report before.
const MOST_VERSIONS: u64 = 20;
/// How often rules that differ are looked at again: a change may be under way.
const LOOKS: u32 = 8;
const BETWEEN: Duration = Duration::from_millis(250);

/// The policy in force, who applied it, and what came into force after version `before`; and how many versions of those
/// are left out.
pub(crate) async fn policy(
    world: &World,
    account: AccountId,
    policy: &AccountPolicy,
    before: Option<u64>,
    now: Timestamp,
) -> Result<(PolicyEvidence, u64), ReconcileError> {
    let (keys, _) = world.store.list_all(&schema::api_keys()).await?;
    let keys: BTreeMap<KeyId, ApiKey> = keys.into_iter().map(|key| (key.record.id, key.record)).collect();
    let approval = |version: &PolicyVersion| Approval {
        key: version.key.to_string(),
        key_name: keys.get(&version.key).and_then(|key| key.name.as_ref()).map(ToString::to_string),
        at: version.applied_at,
    };
    let read = async |version: u64| {
        let read = world.store.read(&schema::policy(account, version)).await?;
        Ok::<_, ReconcileError>(read.map(|version| version.record))
    };
    // One version has up to 1 MiB, so that they are read one by one.
    let in_force = read(policy.version).await?;
    let after = before.map_or(0..0, |before| listed(before, policy.version));
    let mut since_previous = Vec::new();
    for number in after.clone() {
        // Old versions are not kept for ever.
        if let Some(version) = read(number).await? {
            since_previous.push(Applied { version: number, hash: version.hash.clone(), approved: approval(&version) });
        }
    }
    let new = before.map_or(0, |before| policy.version.saturating_sub(before));
    let left_out = new.saturating_sub(since_previous.len() as u64);
    let evidence = PolicyEvidence {
        version: policy.version,
        hash: policy.hash.clone(),
        approved: in_force.as_ref().map(&approval),
        text: in_force.map(|version| version.text).unwrap_or_default(),
        since_previous,
        exceptions: exceptions(policy, now),
    };
    Ok((evidence, left_out))
}

/// The versions after `before` that are told one by one: the last ones up to the one in force.
fn listed(before: u64, in_force: u64) -> Range<u64> {
    let end = in_force.saturating_add(1);
    before.saturating_add(1).max(end.saturating_sub(MOST_VERSIONS)).min(end)..end
}

/// Everything that opens what would be closed without it: rules, and what a network opens as a whole.
fn exceptions(policy: &AccountPolicy, now: Timestamp) -> Vec<ExceptionRule> {
    let built_in = |id: &str, network: &str, to: String, reason: &str| ExceptionRule {
        id: format!("builtin:{id}"),
        from: format!("net:{network}"),
        to,
        ports: Vec::new(),
        owner: None,
        expires: None,
        expired: false,
        reason: Some(reason.to_owned()),
    };
    let mut found = Vec::new();
    for (name, entry) in &policy.directory.networks {
        if policy.policy.intra(name) == Intra::Allow {
            let to = format!("net:{name}");
            found.push(built_in("intra", name.as_str(), to, "its members reach each other: intra is allow"));
        }
        if entry.egress == Egress::Open {
            let to = "the public internet".to_owned();
            found.push(built_in("open-egress", name.as_str(), to, "its egress is open"));
        }
    }
    found.extend(policy.policy.allow.iter().map(|rule: &Rule| ExceptionRule {
        id: rule.id.to_string(),
        from: rule.from.to_string(),
        to: rule.to.to_string(),
        ports: rule.ports.clone(),
        owner: rule.owner.clone(),
        expires: rule.expires,
        expired: !rule.is_in_force(now),
        reason: rule.reason.clone(),
    }));
    found
}

/// The networks of the account.
pub(crate) fn networks(policy: &AccountPolicy) -> Vec<NetworkItem> {
    let members = |name: &Label| policy.directory.members.iter().filter(|member| member.network == *name).count();
    let item = |(name, entry): (&Label, &warren_model::policy::NetworkEntry)| NetworkItem {
        id: entry.id.to_string(),
        name: name.to_string(),
        cidr: entry.cidr.to_string(),
        cidr6: entry.cidr6.to_string(),
        egress: match entry.egress {
            Egress::Deny => "deny",
            Egress::Open => "open",
        }
        .to_owned(),
        intra: match policy.policy.intra(name) {
            Intra::Allow => "allow",
            Intra::Deny => "deny",
        }
        .to_owned(),
        machines: members(name),
    };
    policy.directory.networks.iter().map(item).collect()
}

/// The machines of the account, and of each whether it was probed.
pub(crate) fn machines(
    world: &World,
    policy: &AccountPolicy,
    failures: &BTreeMap<MemberId, String>,
    in_scope: impl Fn(&Label) -> bool,
) -> Vec<MachineItem> {
    let mut machines: Vec<MachineItem> = policy
        .directory
        .members
        .iter()
        .filter_map(|member| {
            let state = state(world, member.id.machine()?);
            let probed = match (state, failures.get(&member.id)) {
                (_, Some(why)) => Probed::No { why: why.clone() },
                (MachineState::Running, None) if in_scope(&member.network) => Probed::Yes,
                (MachineState::Running, None) => Probed::OutOfScope,
                (other, None) => Probed::No { why: format!("it is {}", other.as_str()) },
            };
            Some(MachineItem {
                id: member.id.to_string(),
                name: member.name.to_string(),
                network: member.network.to_string(),
                ipv4: member.ipv4.into(),
                ipv6: member.ipv6.into(),
                tags: member.tags.iter().map(ToString::to_string).collect(),
                state: state.as_str().to_owned(),
                probed,
            })
        })
        .collect();
    machines.sort_by(|one, other| (&one.network, &one.name).cmp(&(&other.network, &other.name)));
    machines
}

/// The state that is shown of a machine.
pub(crate) fn state(world: &World, machine: MachineId) -> MachineState {
    world.shown(machine).map_or(MachineState::Creating, |status| status.state)
}

/// The live rules of each network of the account, against what its policy compiles to.
pub(crate) async fn live(world: &World, account: AccountId) -> Vec<LiveRules> {
    let mut networks: Vec<Arc<Network>> = {
        let desired = world.desired.read();
        desired.networks_of(account).filter(|network| !network.deleting).map(Arc::clone).collect()
    };
    networks.sort_by(|one, other| one.name.as_str().cmp(other.name.as_str()));
    let mut found = Vec::with_capacity(networks.len());
    for network in networks {
        found.push(live_of(world, &network).await);
    }
    found
}

async fn live_of(world: &World, network: &Network) -> LiveRules {
    let named = Named { id: network.id.to_string(), name: network.name.to_string() };
    let mut detail = String::new();
    for look in 0..LOOKS {
        if look > 0 {
            tokio::time::sleep(BETWEEN).await;
        }
        match differences(world, network).await {
            Ok(steps) if steps.is_empty() => {
                let detail =
                    "namespace, links, rules and members were read back from the kernel and are as compiled; the \
                              edge says that it answers from the generation of names that was compiled; the names \
                              themselves were not read back"
                        .to_owned();
                return LiveRules { network: named, reconciled: true, detail };
            }
            Ok(steps) => detail = steps.join(", "),
            Err(error) => detail = error.chain(),
        }
    }
    LiveRules { network: named, reconciled: false, detail }
}

/// What the planner would have to do to make the network what it should be.
async fn differences(world: &World, network: &Network) -> Result<Vec<String>, ReconcileError> {
    let known = world.known_network(network.id);
    let _known = known.lock().await;
    let desired = desired_of(world, network);
    // What the edge itself says, and not what it was last told.
    let at_edge = world.edge.status().await?.networks.get(&network.number).copied();
    let observed = ObservedNetwork {
        router: observe_router(world, network).await?,
        published: at_edge == Some(world.derived(network).view.generation),
        at_edge: at_edge.is_some(),
    };
    Ok(plan(&desired, &observed).iter().map(ToString::to_string).collect())
}

/// Refusals on record, summed up.
pub(crate) async fn denials(world: &World, account: AccountId, now: Timestamp) -> Denials {
    world.fetch_denials().await;
    let records = world.denials.list(account, None, None, MOST_DENIALS);
    let mut found = Denials::default();
    let desired = world.desired.read();
    let mut by_member: BTreeMap<String, u64> = BTreeMap::new();
    for denial in records.iter().filter(|denial| now.duration_since(denial.time) < OF_LATE) {
        found.total += denial.count;
        *found.by_layer.entry(denial.layer.as_str().to_owned()).or_default() += denial.count;
        *by_member.entry(called(&desired, denial.member)).or_default() += denial.count;
    }
    found.by_machine = by_member.into_iter().collect();
    found.by_machine.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
    found.by_machine.truncate(MOST_MEMBERS);
    found
}

/// What the report calls the sender of what was refused.
fn called(desired: &Desired, member: Option<MemberId>) -> String {
    let (name, gone) = match member {
        Some(MemberId::Machine(id)) => {
            (desired.machine(id).map(|machine| machine.name.to_string()), "a machine that is gone")
        }
        Some(MemberId::Session(id)) => {
            (desired.session(id).map(|session| session.name().to_string()), "a session that is over")
        }
        None => (None, "a sender that is not known"),
    };
    name.unwrap_or_else(|| gone.to_owned())
}

#[cfg(test)]
mod tests {
    use ulid::Ulid;
    use warren_model::session::{Session, WireGuardKey};
    use warren_model::{MemberNumber, NetworkId, SessionId};

    use super::*;

    #[test]
    fn refusals_of_a_session_are_under_its_name() {
        let id = SessionId::from_ulid(Ulid::from_parts(1, 7));
        let session = Session {
            id,
            account: AccountId::from_ulid(Ulid::nil()),
            network: NetworkId::from_ulid(Ulid::nil()),
            member: MemberNumber::new(2).unwrap(),
            ipv4: [10, 0, 5, 10].into(),
            public_key: WireGuardKey::from_bytes([1; 32]),
            only: None,
            reachable: true,
            created_at: Timestamp::UNIX_EPOCH,
            expires_at: Timestamp::UNIX_EPOCH,
            idle_seconds: 1,
            opened_by: KeyId::from_ulid(Ulid::nil()),
        };
        let name = session.name().to_string();
        let mut desired = Desired::default();
        desired.insert_session(session);
        assert_eq!(called(&desired, Some(id.into())), name);
        desired.remove_session(id);
        assert_eq!(called(&desired, Some(id.into())), "a session that is over");
        let machine = MachineId::from_ulid(Ulid::from_parts(1, 7));
        assert_eq!(called(&desired, Some(machine.into())), "a machine that is gone");
        assert_eq!(called(&desired, None), "a sender that is not known");
    }

    #[test]
    fn of_the_versions_since_a_report_the_last_ones_are_told() {
        assert_eq!(listed(3, 3), 4..4);
        assert_eq!(listed(3, 5), 4..6);
        assert_eq!(listed(0, 1000), 981..1001);
        assert_eq!(listed(980, 1000), 981..1001);
        // A report may have seen more than there is in a store that was put back.
        assert!(listed(9, 5).is_empty());
    }
}
