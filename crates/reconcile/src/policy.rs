//! Policies, compiled for the networks that they are about.
//!
//! What was compiled holds until something of the account changes (its policy, its networks, who is in them) or a rule
//! expires. Whatever goes wrong leaves the account's networks closed.

use std::collections::{BTreeMap, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use warren_edge::OpenFlow;
use warren_model::policy::compile::{Default as Treatment, compile};
use warren_model::policy::{Directory, Member, NetworkEntry, NetworkRules, Policy, PrivateRanges};
use warren_model::record::{Failure, NetworkProblem, Power};
use warren_model::session::OPERATOR_TAG;
use warren_model::{AccountId, Code, Label, MemberId, MemberNumber, NetworkId, NetworkNumber, UlaPrefix, wire};

use crate::desired::Desired;
use crate::world::{World, blocking, lock};

/// The longest that an expiry is slept for: the host's clock may be set meanwhile.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// An account's policy with all that follows from it.
#[derive(Debug)]
pub(crate) struct AccountPolicy {
    /// Of [`Desired::account_version`].
    seen: u64,
    /// Counts how often anything was compiled, so that no two are taken for each other.
    compiled: u64,
    /// The policy's own version; 0 where none was ever applied.
    pub version: u64,
    pub hash: String,
    pub policy: Arc<Policy>,
    pub directory: Directory,
    /// Compiled when first asked for, and so without holding up anybody who asks for something else.
    rules: HashMap<NetworkId, (Label, OnceLock<Compiled>)>,
    /// What the rules may open besides the public internet.
    private_ranges: PrivateRanges,
    /// The instant for which the rules are compiled.
    at: Timestamp,
    expires: Option<Timestamp>,
}

#[derive(Debug)]
struct Compiled {
    rules: Arc<NetworkRules>,
    /// Why nothing could be compiled and the rules are closed.
    failure: Option<Failure>,
}

impl AccountPolicy {
    fn build(
        desired: &Desired,
        (ula, private_ranges): (UlaPrefix, &PrivateRanges),
        account: AccountId,
        compiled: u64,
        now: Timestamp,
    ) -> Self {
        let applied = desired.policy(account);
        let policy = applied.as_ref().map(|applied| Arc::new(applied.policy.clone())).unwrap_or_default();
        let mut directory = directory(desired, ula, account);
        directory.host.private_ranges = Some(private_ranges.clone());
        let rules = desired.networks_of(account).map(|network| (network.id, (network.name.clone(), OnceLock::new())));
        let rules = rules.collect();
        Self {
            seen: desired.account_version(account),
            compiled,
            version: applied.as_ref().map_or(0, |applied| applied.version),
            hash: policy.hash(),
            private_ranges: private_ranges.clone(),
            at: now,
            expires: policy.next_expiry(now),
            policy,
            directory,
            rules,
        }
    }

    fn holds(&self, desired: &Desired, account: AccountId, now: Timestamp) -> bool {
        self.seen == desired.account_version(account) && self.expires.is_none_or(|expires| now < expires)
    }

    /// Differs between any two that were compiled.
    pub fn compiled_at(&self) -> u64 {
        self.compiled
    }

    /// The rules of one of the account's networks; closed for one that it has not.
    pub fn rules(&self, network: NetworkId) -> Arc<NetworkRules> {
        self.compiled(network).map_or_else(|| Arc::new(closed()), |compiled| Arc::clone(&compiled.rules))
    }

    /// Why one of the account's networks is closed although the policy may allow something in it.
    pub fn problem(&self, network: NetworkId) -> Option<NetworkProblem> {
        let failure = self.compiled(network)?.failure.clone()?;
        Some(NetworkProblem { closed: true, failure })
    }

    fn compiled(&self, network: NetworkId) -> Option<&Compiled> {
        let (name, compiled) = self.rules.get(&network)?;
        let compile = || {
            let (mut rules, failure) = match rules_of(&self.policy, &self.directory, name, self.at) {
                Ok(rules) => (rules, None),
                Err(failure) => (closed(), Some(failure)),
            };
            // Also what was applied while more was permitted, or came to mean more since.
            self.private_ranges.limit(&mut rules);
            Compiled { rules: Arc::new(rules), failure }
        };
        Some(compiled.get_or_init(compile))
    }
}

/// What has been compiled, and what of it the data plane enforces.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    compiled: AtomicU64,
    accounts: Mutex<HashMap<AccountId, Arc<AccountPolicy>>>,
    /// Told of every policy that is built: its next rule may expire sooner than those before.
    built: Notify,
    enforced: watch::Sender<BTreeMap<NetworkId, u64>>,
}

impl Policies {
    /// The accounts in which a rule has expired since their policy was built, and how long it is until the next one does;
    /// `None` when none will.
    fn expiries(&self, now: Timestamp) -> (Vec<AccountId>, Option<Duration>) {
        let accounts = lock(&self.accounts);
        let expiries = accounts.iter().filter_map(|(account, known)| Some((*account, known.expires?)));
        let (due, later): (Vec<_>, Vec<_>) = expiries.partition(|(_, expires)| *expires <= now);
        let next = later.iter().map(|(_, expires)| *expires).min();
        // A later instant is never before an earlier one.
        let rest = next.map(|next| Duration::try_from(next.duration_since(now)).unwrap_or_default());
        (due.into_iter().map(|(account, _)| account).collect(), rest)
    }

    /// The data plane of the network says what this version says.
    pub fn is_enforced(&self, network: NetworkId, version: u64) {
        self.enforced.send_if_modified(|enforced| enforced.insert(network, version) != Some(version));
    }

    pub fn forget(&self, network: NetworkId) {
        self.enforced.send_if_modified(|enforced| enforced.remove(&network).is_some());
    }
}

impl World {
    /// The account's policy as it is now.
    pub(crate) fn policy(&self, account: AccountId) -> Arc<AccountPolicy> {
        let now = Timestamp::now();
        let desired = self.desired.read();
        let mut accounts = lock(&self.policies.accounts);
        if let Some(known) = accounts.get(&account)
            && known.holds(&desired, account, now)
        {
            return Arc::clone(known);
        }
        let compiled = self.policies.compiled.fetch_add(1, Ordering::Relaxed);
        let built = Arc::new(AccountPolicy::build(
            &desired,
            (self.installation.ula, &self.private_ranges),
            account,
            compiled,
            now,
        ));
        accounts.insert(account, Arc::clone(&built));
        self.policies.built.notify_one();
        built
    }

    /// Waits until every network of the account enforces this version of its policy, or a later one.
    pub async fn enforced(&self, account: AccountId, version: u64) {
        let mut enforced = self.policies.enforced.subscribe();
        loop {
            enforced.mark_unchanged();
            if self.not_enforced(account, version).is_empty() || enforced.changed().await.is_err() {
                return;
            }
        }
    }

    /// The connections to names outside that the account's machines have open; those that the edge tells of.
    pub async fn open_flows(&self, account: AccountId) -> Vec<wire::LiveFlow> {
        let networks: Vec<_> = self.desired.read().networks_of(account).map(|network| network.number).collect();
        let mut open = Vec::new();
        for network in networks {
            match self.edge.open_flows(network).await {
                Ok(flows) => open.extend(flows),
                // It is as gone for the other networks.
                Err(_) => break,
            }
        }
        let desired = self.desired.read();
        let flow = |flow: OpenFlow| {
            let network = desired.network_by_number(flow.network).filter(|network| network.account == account)?;
            let name = match flow.member {
                MemberId::Machine(id) => desired.machine(id)?.name.clone(),
                MemberId::Session(id) => desired.session(id)?.name(),
            };
            Some(wire::LiveFlow {
                machine: format!("{}/{name}", network.name),
                name: flow.host.to_string(),
                port: flow.port,
                rule: flow.rule.to_string(),
            })
        };
        open.into_iter().filter_map(flow).collect()
    }

    /// What a member of a network did by name, and how often it was refused, packets included.
    pub async fn named_traffic(&self, network: NetworkNumber, member: MemberNumber) -> (Vec<wire::NameTraffic>, u64) {
        let machine = {
            let desired = self.desired.read();
            let network = desired.network_by_number(network);
            let machine = network.and_then(|network| desired.members(network.id).find(|m| m.member == member).cloned());
            let Some(machine) = machine else { return (Vec::new(), 0) };
            MemberId::Machine(machine.id)
        };
        self.fetch_denials().await;
        let kernel = self.kernel.clone();
        let packets = blocking(move || kernel.refused(network)).await.ok();
        let packets = packets.and_then(|refused| Some(refused.get(&member)?.packets)).unwrap_or(0);
        let flows = self.edge.flow_counters(network).await.unwrap_or_default();
        let names = flows.into_iter().filter(|flow| flow.member == machine).map(|flow| wire::NameTraffic {
            rule: flow.rule.to_string(),
            open: flow.open,
            opened: flow.opened,
            sent_bytes: flow.sent,
            received_bytes: flow.received,
        });
        (names.collect(), packets + self.denials.by_edge(machine))
    }

    /// What does not yet enforce this version of the account's policy.
    pub fn not_enforced(&self, account: AccountId, version: u64) -> Vec<String> {
        let enforced = self.policies.enforced.borrow();
        let desired = self.desired.read();
        // The watch of the store may not have come this far.
        if desired.policy(account).map_or(0, |applied| applied.version) < version {
            return vec!["the policy is not known on this host yet".to_owned()];
        }
        desired
            .networks_of(account)
            .filter(|network| !network.deleting)
            .filter(|network| enforced.get(&network.id).is_none_or(|applied| *applied < version))
            .map(|network| format!("network {}", network.name))
            .collect()
    }
}

/// Builds the policies anew in which a rule expires, at the instant at which it does, and wakes their networks.
pub(crate) async fn keep(world: Arc<World>) {
    let policies = &world.policies;
    loop {
        let (due, rest) = policies.expiries(Timestamp::now());
        for account in due {
            world.policy(account);
            world.enqueue_networks_of(account);
        }
        match rest {
            None => policies.built.notified().await,
            Some(rest) => drop(tokio::time::timeout(rest.min(LONGEST_REST), policies.built.notified()).await),
        }
    }
}

/// Who is in the account.
fn directory(desired: &Desired, ula: UlaPrefix, account: AccountId) -> Directory {
    let mut directory = Directory::default();
    for network in desired.networks_of(account) {
        let entry = NetworkEntry {
            id: network.id,
            number: network.number,
            cidr: network.cidr,
            cidr6: ula.network(network.number),
            egress: network.egress,
        };
        directory.networks.insert(network.name.clone(), entry);
        let there = desired.members(network.id).filter(|machine| machine.power != Power::Gone);
        directory.members.extend(there.map(|machine| Member {
            id: machine.id.into(),
            network: network.name.clone(),
            name: machine.name.clone(),
            number: machine.member,
            ipv4: machine.ipv4,
            ipv6: machine.ipv6(ula, network.number),
            tags: machine.tags.clone(),
        }));
        let operators = desired.sessions_in(network.id).map(|session| Member {
            id: session.id.into(),
            network: network.name.clone(),
            name: session.name(),
            number: session.member,
            ipv4: session.ipv4,
            ipv6: session.ipv6(ula, network.number),
            tags: OPERATOR_TAG.parse().into_iter().collect(),
        });
        directory.members.extend(operators);
    }
    directory
}

fn rules_of(policy: &Policy, directory: &Directory, network: &Label, now: Timestamp) -> Result<NetworkRules, Failure> {
    let compiled = std::panic::catch_unwind(AssertUnwindSafe(|| compile(policy, directory, network, now)));
    match compiled {
        Ok(Ok(rules)) => Ok(rules),
        Ok(Err(error)) => Err(Failure { code: Code::PolicyInvalid, detail: error.to_string() }),
        Err(_) => Err(Failure { code: Code::Internal, detail: "its policy cannot be put into rules".to_owned() }),
    }
}

fn closed() -> NetworkRules {
    NetworkRules {
        inside: Treatment::Refuse,
        outside: Treatment::Refuse,
        groups: BTreeMap::new(),
        classes: BTreeMap::new(),
        exceptions: Default::default(),
        links: BTreeMap::new(),
        exits: false,
        private_exits: Default::default(),
        names: BTreeMap::new(),
    }
}

#[cfg(test)]
use warren_model::record;

#[cfg(test)]
impl AccountPolicy {
    /// Of the account of these networks and members, with this policy.
    pub fn of(networks: &[&record::Network], members: &[record::Machine], policy: &str, ula: UlaPrefix) -> Self {
        let mut desired = Desired::default();
        networks.iter().for_each(|network| desired.insert_network((*network).clone()));
        members.iter().for_each(|machine| desired.insert_machine(machine.clone()));
        let policy = match policy {
            "" => Policy::default(),
            text => warren_model::policy::read(text).unwrap().policy,
        };
        let (account, key) = (networks[0].account, warren_model::KeyId::from_ulid(ulid::Ulid::from_parts(1, 1)));
        let version = record::PolicyVersion {
            version: 1,
            hash: policy.hash(),
            text: String::new(),
            policy,
            applied_at: Timestamp::UNIX_EPOCH,
            key,
            rolled_back_from: None,
        };
        desired.insert_policy(account, version);
        Self::build(&desired, (ula, &PrivateRanges::default()), account, 0, Timestamp::UNIX_EPOCH)
    }
}

#[cfg(test)]
mod tests {
    use warren_model::record::Egress;

    use super::*;
    use crate::samples;

    fn ula() -> UlaPrefix {
        UlaPrefix::from_random([1, 2, 3, 4, 5])
    }

    #[test]
    fn what_the_operator_does_not_permit_stays_closed_whatever_was_applied() {
        let network = samples::network(Egress::Deny);
        let policy = "allow: [{id: lan, from: net:lab, to: 172.16.0.0/12}]";
        let mut known = AccountPolicy::of(&[&network], &[], policy, ula());
        assert!(known.rules(network.id).private_exits.is_empty());
        for rules in known.rules.values_mut() {
            rules.1 = OnceLock::new();
        }
        known.private_ranges = ["172.16.7.0/24".parse().unwrap()].into_iter().collect();
        assert_eq!(known.rules(network.id).private_exits, ["172.16.7.0/24".parse().unwrap()].into());
    }

    #[test]
    fn a_network_whose_policy_cannot_be_compiled_is_closed_and_says_why() {
        let network = samples::network(Egress::Deny);
        let machines: Vec<_> = (2..152).map(|n| samples::machine(n, &format!("m{n}"), Power::On)).collect();
        // Each machine is a group of its own, and each pair of them has each of the ports.
        let single = (2..152).map(|n| format!("  - {{id: r{n}, from: lab/m{n}, to: lab/m2, ports: [udp/{n}]}}\n"));
        let ports: Vec<_> = (1..=20).map(|n| format!("tcp/{}", n * 10)).collect();
        let all = format!("  - {{id: all, from: net:lab, to: net:lab, ports: [{}]}}\n", ports.join(", "));
        let start = "networks: {lab: {intra: deny}}\nallow:\n";
        let policy = |rules: &str| AccountPolicy::of(&[&network], &machines, &format!("{start}{rules}"), ula());

        let known = policy(&format!("{}{all}", single.collect::<String>()));
        let problem = known.problem(network.id).unwrap();
        assert!(problem.closed && problem.failure.code == Code::PolicyInvalid, "{problem:?}");
        assert!(problem.to_string().starts_with("is closed: the rules of network lab come to more than"), "{problem}");
        assert_eq!(*known.rules(network.id), closed());
        assert_eq!(policy(&all).problem(network.id), None);
    }

    #[test]
    fn an_expiry_is_due_at_its_instant_and_known_before() {
        let network = samples::network(Egress::Deny);
        let rule = |id: &str, expires: &str| {
            format!("  - {{id: {id}, from: net:lab, to: net:lab, ports: [tcp/1], expires: {expires}}}\n")
        };
        let text = format!("allow:\n{}{}", rule("one", "1970-01-01T00:01:00Z"), rule("two", "1970-01-01T00:02:00Z"),);
        let policies = Policies::default();
        assert_eq!(policies.expiries(Timestamp::UNIX_EPOCH), (vec![], None));
        let known = AccountPolicy::of(&[&network], &[], &text, ula());
        lock(&policies.accounts).insert(network.account, Arc::new(known));
        let at = |millisecond| policies.expiries(Timestamp::from_millisecond(millisecond).unwrap());
        assert_eq!(at(0), (vec![], Some(Duration::from_secs(60))));
        assert_eq!(at(59_999), (vec![], Some(Duration::from_millis(1))));
        assert_eq!(at(60_000), (vec![network.account], None));
    }
}
