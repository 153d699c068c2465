//! Which keys there are, and the records behind them.
//!
//! | key | record |
//! | --- | --- |
//! | `installation` | [`Installation`] |
//! | `account/{id}`, `account-name/{name}` | [`Account`], its id |
//! | `key/{hash}`, `key-id/{account}/{id}`, `key-used/{id}` | [`ApiKey`], its hash, when it was last used |
//! | `identity/{id}`, `identity-of/{account}/{id}`, `identity-name/{account}/{name}` | [`Identity`], empty, its id |
//! | `grant/{identity}/{machine or network}` | [`Grant`] |
//! | `token/{hash}`, `token-id/{account}/{id}`, `token-of/{identity}/{id}`, `token-used/{id}` | [`Token`], its hash, its hash, when it was last used |
//! | `network/{id}`, `network-name/{account}/{name}`, `network-number/{number}` | [`Network`], its id, its id |
//! | `network-problem/{id}` | [`NetworkProblem`], while there is one |
//! | `next-network` , `next-member/{network}` | the next number |
//! | `address/{network}/{address in hex}` | [`AddressHold`] |
//! | `machine/{id}`, `machine-name/{account}/{name}`, `member/{network}/{id}` | [`Machine`], its id, empty |
//! | `status/{machine}` | [`MachineStatus`] |
//! | `session/{id}`, `session-of/{account}/{network}/{id}`, `session-key/{public key in hex}` | [`Session`], empty, [`KeyHold`] |
//! | `session-for/{machine}/{id}` | empty: the session reaches this machine and nothing else |
//! | `session-unheard/{id}` | empty, while nobody has come with the public key that was given for it |
//! | `domain/{host}`, `domain-of/{account}/{host}`, `domain-at/{machine}/{host}` | [`Domain`], empty, empty |
//! | `domain-id/{id}` | the host name of this domain |
//! | `domain-tree/{host, the last label first}` | the account that has it |
//! | `domain-label/{label below the preview suffix}` | the account that has every name at and below it |
//! | `domain-claim/{account}/{host}` | [`DomainClaim`] |
//! | `uid-slot/{slot}` | the machine that has it |
//! | `event/{id}` | [`Event`] |
//! | `audit/{id}` | [`AuditEntry`], until it is in the log |
//! | `policy/{account}/{version}`, `policy-now/{account}` | [`PolicyVersion`], the version in force |
//! | `audit-schedule/{account}` | [`AuditSchedule`] |
//! | `idempotency/{account}/{key}` | [`IdempotencyRecord`] |

use std::net::Ipv4Addr;

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::marker::PhantomData;
use warren_model::audit::AuditSchedule;
use warren_model::domain::{Domain, DomainClaim};
use warren_model::grant::GrantTarget;
use warren_model::policy::HostName;
use warren_model::record::{
    Account, AddressHold, ApiKey, AuditEntry, Event, Grant, IdempotencyRecord, Identity, Installation, Machine,
    MachineStatus, Network, NetworkProblem, PolicyVersion, Token,
};
use warren_model::session::{KeyHold, Session, WireGuardKey};
use warren_model::{
    AccountId, DomainId, EventId, IdentityId, KeyId, Label, MachineId, MemberNumber, NetworkId, NetworkNumber,
    SessionId, TokenId,
};

/// A key and the type of the record behind it.
pub struct Key<T> {
    text: String,
    record: PhantomData<fn() -> T>,
}

impl<T> Key<T> {
    fn new(text: String) -> Self {
        Self { text, record: PhantomData }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// A prefix below which every key has this type of record.
pub struct Prefix<T> {
    text: String,
    record: PhantomData<fn() -> T>,
}

impl<T> Prefix<T> {
    fn new(text: String) -> Self {
        Self { text, record: PhantomData }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Anything that the store can hold.
pub trait Record: Serialize + DeserializeOwned + Send + 'static {}
impl<T: Serialize + DeserializeOwned + Send + 'static> Record for T {}

pub fn installation() -> Key<Installation> {
    Key::new("installation".into())
}

pub fn account(id: AccountId) -> Key<Account> {
    Key::new(format!("account/{id}"))
}

pub fn accounts() -> Prefix<Account> {
    Prefix::new("account/".into())
}

pub fn account_name(name: &Label) -> Key<AccountId> {
    Key::new(format!("account-name/{name}"))
}

/// By the blake3 hash of its secret, in hex.
pub fn api_key(hash: &str) -> Key<ApiKey> {
    Key::new(format!("key/{hash}"))
}

pub fn api_keys() -> Prefix<ApiKey> {
    Prefix::new("key/".into())
}

pub fn api_key_hash(account: AccountId, id: KeyId) -> Key<String> {
    Key::new(format!("key-id/{account}/{id}"))
}

pub fn api_key_hashes(account: AccountId) -> Prefix<String> {
    Prefix::new(format!("key-id/{account}/"))
}

pub fn api_key_used(id: KeyId) -> Key<jiff::Timestamp> {
    Key::new(format!("key-used/{id}"))
}

pub fn identity(id: IdentityId) -> Key<Identity> {
    Key::new(format!("identity/{id}"))
}

pub fn identity_of(account: AccountId, id: IdentityId) -> Key<()> {
    Key::new(format!("identity-of/{account}/{id}"))
}

/// Every identity of one account, the oldest first.
pub fn identities_of(account: AccountId) -> Prefix<()> {
    Prefix::new(format!("identity-of/{account}/"))
}

/// The identity in a key made by [`identity_of`].
pub fn identity_in(key: &str) -> Option<IdentityId> {
    key.rsplit('/').next()?.parse().ok()
}

pub fn identity_name(account: AccountId, name: &Label) -> Key<IdentityId> {
    Key::new(format!("identity-name/{account}/{name}"))
}

pub fn grant(identity: IdentityId, target: GrantTarget) -> Key<Grant> {
    Key::new(format!("grant/{identity}/{target}"))
}

pub fn grants_of(identity: IdentityId) -> Prefix<Grant> {
    Prefix::new(format!("grant/{identity}/"))
}

/// Every grant, of every identity.
pub fn grants() -> Prefix<Grant> {
    Prefix::new("grant/".into())
}

/// By the blake3 hash of its secret, in hex.
pub fn token(hash: &str) -> Key<Token> {
    Key::new(format!("token/{hash}"))
}

pub fn tokens() -> Prefix<Token> {
    Prefix::new("token/".into())
}

pub fn token_hash(account: AccountId, id: TokenId) -> Key<String> {
    Key::new(format!("token-id/{account}/{id}"))
}

pub fn token_of(identity: IdentityId, id: TokenId) -> Key<String> {
    Key::new(format!("token-of/{identity}/{id}"))
}

/// The hashes of every token of one identity, the oldest first.
pub fn tokens_of(identity: IdentityId) -> Prefix<String> {
    Prefix::new(format!("token-of/{identity}/"))
}

pub fn token_used(id: TokenId) -> Key<jiff::Timestamp> {
    Key::new(format!("token-used/{id}"))
}

pub fn network(id: NetworkId) -> Key<Network> {
    Key::new(format!("network/{id}"))
}

pub fn networks() -> Prefix<Network> {
    Prefix::new("network/".into())
}

pub fn network_name(account: AccountId, name: &Label) -> Key<NetworkId> {
    Key::new(format!("network-name/{account}/{name}"))
}

pub fn network_problem(id: NetworkId) -> Key<NetworkProblem> {
    Key::new(format!("network-problem/{id}"))
}

pub fn network_problems() -> Prefix<NetworkProblem> {
    Prefix::new("network-problem/".into())
}

/// The network in a key made by [`network_problem`].
pub fn network_of_problem(key: &str) -> Option<NetworkId> {
    key.strip_prefix("network-problem/")?.parse().ok()
}

/// Every network of one account, by name.
pub fn network_names(account: AccountId) -> Prefix<NetworkId> {
    Prefix::new(format!("network-name/{account}/"))
}

pub fn network_number(number: NetworkNumber) -> Key<NetworkId> {
    Key::new(format!("network-number/{:05}", number.get()))
}

pub fn network_numbers() -> Prefix<NetworkId> {
    Prefix::new("network-number/".into())
}

pub fn next_network() -> Key<NetworkNumber> {
    Key::new("next-network".into())
}

pub fn next_member(network: NetworkId) -> Key<MemberNumber> {
    Key::new(format!("next-member/{network}"))
}

pub fn address(network: NetworkId, address: Ipv4Addr) -> Key<AddressHold> {
    Key::new(format!("address/{network}/{:08x}", u32::from(address)))
}

pub fn addresses(network: NetworkId) -> Prefix<AddressHold> {
    Prefix::new(format!("address/{network}/"))
}

/// The address in a key made by [`address`].
pub fn address_of(key: &str) -> Option<Ipv4Addr> {
    u32::from_str_radix(key.rsplit('/').next()?, 16).ok().map(Ipv4Addr::from)
}

pub fn machine(id: MachineId) -> Key<Machine> {
    Key::new(format!("machine/{id}"))
}

pub fn machines() -> Prefix<Machine> {
    Prefix::new("machine/".into())
}

pub fn machine_name(account: AccountId, name: &Label) -> Key<MachineId> {
    Key::new(format!("machine-name/{account}/{name}"))
}

/// Every machine of one account, by name.
pub fn machine_names(account: AccountId) -> Prefix<MachineId> {
    Prefix::new(format!("machine-name/{account}/"))
}

/// Marks that a machine is in a network, so that a network can be deleted only while nothing is below its prefix.
pub fn member(network: NetworkId, machine: MachineId) -> Key<()> {
    Key::new(format!("member/{network}/{machine}"))
}

pub fn members(network: NetworkId) -> Prefix<()> {
    Prefix::new(format!("member/{network}/"))
}

/// The machine in a key made by [`member`], [`machine`] or [`status`].
pub fn machine_of(key: &str) -> Option<MachineId> {
    key.rsplit('/').next()?.parse().ok()
}

pub fn status(machine: MachineId) -> Key<MachineStatus> {
    Key::new(format!("status/{machine}"))
}

pub fn statuses() -> Prefix<MachineStatus> {
    Prefix::new("status/".into())
}

pub fn session(id: SessionId) -> Key<Session> {
    Key::new(format!("session/{id}"))
}

pub fn sessions() -> Prefix<Session> {
    Prefix::new("session/".into())
}

pub fn session_of(account: AccountId, network: NetworkId, id: SessionId) -> Key<()> {
    Key::new(format!("session-of/{account}/{network}/{id}"))
}

/// Every session of one account, by network.
pub fn sessions_of(account: AccountId) -> Prefix<()> {
    Prefix::new(format!("session-of/{account}/"))
}

/// Every session in one network of an account, the oldest first.
pub fn sessions_in(account: AccountId, network: NetworkId) -> Prefix<()> {
    Prefix::new(format!("session-of/{account}/{network}/"))
}

pub fn session_for(machine: MachineId, id: SessionId) -> Key<()> {
    Key::new(format!("session-for/{machine}/{id}"))
}

/// Every session that reaches this machine and nothing else.
pub fn sessions_for(machine: MachineId) -> Prefix<()> {
    Prefix::new(format!("session-for/{machine}/"))
}

/// Marks that the session has a public key of which nobody has shown yet to have the private one.
pub fn session_unheard(id: SessionId) -> Key<()> {
    Key::new(format!("session-unheard/{id}"))
}

pub fn sessions_unheard() -> Prefix<()> {
    Prefix::new("session-unheard/".into())
}

/// The session in a key made by [`session`], [`session_of`], [`session_for`] or [`session_unheard`].
pub fn session_in(key: &str) -> Option<SessionId> {
    key.rsplit('/').next()?.parse().ok()
}

pub fn session_keys() -> Prefix<KeyHold> {
    Prefix::new("session-key/".into())
}

/// A public key is of one session at most, whatever its network, and of one account for long afterwards.
pub fn session_key(public_key: &WireGuardKey) -> Key<KeyHold> {
    Key::new(format!("session-key/{}", public_key.hex()))
}

/// A host name leads to one place at most in the whole installation.
pub fn domain(host: &HostName) -> Key<Domain> {
    Key::new(format!("domain/{host}"))
}

/// Every domain, of every account.
pub fn domains() -> Prefix<Domain> {
    Prefix::new("domain/".into())
}

/// Which host name the domain with this id has.
pub fn domain_id(id: DomainId) -> Key<HostName> {
    Key::new(format!("domain-id/{id}"))
}

pub fn domain_ids() -> Prefix<HostName> {
    Prefix::new("domain-id/".into())
}

pub fn domain_of(account: AccountId, host: &HostName) -> Key<()> {
    Key::new(format!("domain-of/{account}/{host}"))
}

/// Every domain of one account, by host name.
pub fn domains_of(account: AccountId) -> Prefix<()> {
    Prefix::new(format!("domain-of/{account}/"))
}

pub fn domain_at(machine: MachineId, host: &HostName) -> Key<()> {
    Key::new(format!("domain-at/{machine}/{host}"))
}

/// Whose a host name is, in an order in which every name is followed by those below it.
pub fn domain_tree(host: &HostName) -> Key<AccountId> {
    Key::new(tree(host))
}

/// Whose every domain is, of every account.
pub fn domain_trees() -> Prefix<AccountId> {
    Prefix::new("domain-tree/".into())
}

/// Every domain below a host name, and not the name itself.
pub fn domains_below(host: &HostName) -> Prefix<AccountId> {
    Prefix::new(format!("{}.", tree(host)))
}

/// Whose every name at and below this one is, which is one label below the preview suffix. Absent where nobody has taken
/// one since there are such records.
pub fn domain_label(label: &HostName) -> Key<AccountId> {
    Key::new(format!("domain-label/{label}"))
}

fn tree(host: &HostName) -> String {
    let labels: Vec<_> = host.as_str().rsplit('.').collect();
    format!("domain-tree/{}", labels.join("."))
}

/// Every domain that leads to one machine.
pub fn domains_at(machine: MachineId) -> Prefix<()> {
    Prefix::new(format!("domain-at/{machine}/"))
}

/// The host name in a key made by [`domain`], [`domain_of`], [`domain_at`] or [`domain_claim`].
pub fn host_in(key: &str) -> Option<HostName> {
    key.rsplit('/').next()?.parse().ok()
}

pub fn domain_claim(account: AccountId, host: &HostName) -> Key<DomainClaim> {
    Key::new(format!("domain-claim/{account}/{host}"))
}

/// Every claim, of every account.
pub fn all_domain_claims() -> Prefix<DomainClaim> {
    Prefix::new("domain-claim/".into())
}

/// Every claim of one account, by host name.
pub fn domain_claims(account: AccountId) -> Prefix<DomainClaim> {
    Prefix::new(format!("domain-claim/{account}/"))
}

pub fn uid_slot(slot: u16) -> Key<MachineId> {
    Key::new(format!("uid-slot/{slot:05}"))
}

pub fn event(id: EventId) -> Key<Event> {
    Key::new(format!("event/{id}"))
}

pub fn events() -> Prefix<Event> {
    Prefix::new("event/".into())
}

pub fn audit(id: EventId) -> Key<AuditEntry> {
    Key::new(format!("audit/{id}"))
}

pub fn audits() -> Prefix<AuditEntry> {
    Prefix::new("audit/".into())
}

pub fn policy(account: AccountId, version: u64) -> Key<PolicyVersion> {
    Key::new(format!("policy/{account}/{version:08}"))
}

/// Every version of an account's policy, the oldest first.
pub fn policies(account: AccountId) -> Prefix<PolicyVersion> {
    Prefix::new(format!("policy/{account}/"))
}

/// The account in a key made by [`policy`].
pub fn account_of_policy(key: &str) -> Option<AccountId> {
    key.strip_prefix("policy/")?.split('/').next()?.parse().ok()
}

/// The version that is in force; absent before the first.
pub fn policy_now(account: AccountId) -> Key<u64> {
    Key::new(format!("policy-now/{account}"))
}

/// Which version is in force in every account.
pub fn policies_now() -> Prefix<u64> {
    Prefix::new("policy-now/".into())
}

/// The account in a key made by [`policy_now`] or [`audit_schedule`].
pub fn account_of(key: &str) -> Option<AccountId> {
    key.rsplit('/').next()?.parse().ok()
}

pub fn audit_schedule(account: AccountId) -> Key<AuditSchedule> {
    Key::new(format!("audit-schedule/{account}"))
}

/// The schedule of every account; [`account_of`] reads the account from its key.
pub fn audit_schedules() -> Prefix<AuditSchedule> {
    Prefix::new("audit-schedule/".into())
}

pub fn idempotency(account: AccountId, key: &str) -> Key<IdempotencyRecord> {
    Key::new(format!("idempotency/{account}/{key}"))
}

pub fn idempotencies() -> Prefix<IdempotencyRecord> {
    Prefix::new("idempotency/".into())
}
