//! Policies, what they say, and what was refused by them.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

#[cfg(feature = "openapi")]
use utoipa::ToSchema;

use crate::denial::Layer;
use crate::policy::{Expect, NearMiss, NetworkSettings, Policy, Protocol, Rule};
use crate::problem::TextError;

shape! {
    /// A policy to put in force, as YAML or JSON.
    #[serde(deny_unknown_fields)]
    pub struct ApplyPolicy {
        pub text: String,
        /// Only say what it would change.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub dry_run: Option<bool>,
        /// Refuse with `policy_conflict` unless this version is the one in force.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub based_on: Option<u64>,
    }
}

shape! {
    #[serde(deny_unknown_fields)]
    pub struct RollBackPolicy {
        /// The version whose text is to be in force again; 0 is the empty policy.
        pub version: u64,
        /// Only say what it would change.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub dry_run: Option<bool>,
    }
}

shape! {
    #[serde(deny_unknown_fields)]
    pub struct TestPolicy {
        /// The policy in force when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub text: Option<String>,
    }
}

shape! {
    /// What an apply did, or would do in a dry run.
    pub struct AppliedPolicy {
        /// The version that is in force; in a dry run, the one that would be.
        pub version: u64,
        pub hash: String,
        pub dry_run: bool,
        /// The text was the one in force already, so nothing was done.
        pub unchanged: bool,
        /// What its owner should know, such as a rule about a machine that is not there.
        pub warnings: Vec<String>,
        /// Only in a dry run.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub change: Option<PolicyChange>,
        /// Open connections to names outside, which pass the proxy, that would be cut; only in a dry run. Which flows to
        /// addresses and members would be cut is not known: those are checked packet by packet.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub cuts: Vec<LiveFlow>,
    }
}

shape! {
    /// How two policies differ for the machines that there are now.
    #[derive(Default)]
    pub struct PolicyChange {
        pub opens: Passages,
        pub closes: Passages,
    }
}

shape! {
    /// Who reaches whom. The list is bounded.
    #[derive(Default)]
    pub struct Passages {
        pub items: Vec<Passage>,
        /// How many there are beside the items.
        pub more: u64,
    }
}

shape! {
    pub struct Passage {
        /// `network/machine`
        pub from: String,
        /// `network/machine`, a name outside or an address range.
        pub to: String,
        /// `tcp/5432`, `udp`, `icmp`, `other`, or `any` alone.
        pub ports: Vec<String>,
    }
}

shape! {
    /// A proxied connection to a name outside that is open now.
    pub struct LiveFlow {
        /// `network/machine`
        pub machine: String,
        pub name: String,
        pub port: u16,
        /// The rule that allowed it.
        pub rule: String,
    }
}

shape! {
    /// A policy with what is built in.
    pub struct PolicyInForce {
        /// 0 before the first was applied.
        pub version: u64,
        pub hash: String,
        /// As it was written.
        pub text: String,
        #[cfg_attr(feature = "openapi", schema(value_type = Object))]
        pub policy: Policy,
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
        pub applied_at: Option<Timestamp>,
        /// The key that applied it.
        pub key: Option<String>,
        /// The version whose text this is, when it was rolled back to.
        pub rolled_back_from: Option<u64>,
        /// Rules that are in force beside it; none for a version that is not in force.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub builtin: Vec<BuiltinRule>,
        pub warnings: Vec<String>,
    }
}

shape! {
    /// A rule that no policy holds.
    pub struct BuiltinRule {
        /// `builtin:…`
        pub id: String,
        /// Whether it allows or denies; what it denies, no rule of the policy allows.
        pub effect: Expect,
        /// The network that it is about; every one when null.
        pub network: Option<String>,
        pub description: String,
    }
}

shape! {
    /// A version of the policy, without its text.
    pub struct PolicySummary {
        pub version: u64,
        pub hash: String,
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub applied_at: Timestamp,
        /// The key that applied it.
        pub key: String,
        /// That key's name.
        pub key_name: Option<String>,
        pub rolled_back_from: Option<u64>,
        /// How many rules allow and forbid.
        pub rules: u64,
        /// Whether it is in force.
        pub current: bool,
    }
}

shape! {
    /// How one version of the policy differs from another.
    pub struct PolicyDiff {
        pub from: u64,
        pub to: u64,
        pub added: Vec<PolicyRule>,
        pub removed: Vec<PolicyRule>,
        pub changed: Vec<ChangedRule>,
        pub networks: Vec<ChangedNetwork>,
        /// For the machines that there are now.
        pub opens: Passages,
        pub closes: Passages,
    }
}

shape! {
    pub struct PolicyRule {
        pub effect: Expect,
        #[cfg_attr(feature = "openapi", schema(value_type = Object))]
        pub rule: Rule,
    }
}

shape! {
    /// A rule that both versions have, but not alike.
    pub struct ChangedRule {
        pub id: String,
        pub before: PolicyRule,
        pub after: PolicyRule,
    }
}

shape! {
    /// A network about which the versions say different things.
    pub struct ChangedNetwork {
        pub network: String,
        #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
        pub before: Option<NetworkSettings>,
        #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
        pub after: Option<NetworkSettings>,
    }
}

shape! {
    /// What came of the tests of a policy.
    pub struct TestedPolicy {
        /// None failed.
        pub passed: bool,
        pub tests: u64,
        /// Those that failed, 100 at most.
        pub failures: Vec<TextError>,
        pub hash: String,
    }
}

shape! {
    /// A question about the policy in force.
    #[serde(deny_unknown_fields)]
    pub struct Explain {
        /// `machine`, `network/machine`, `network/tag:T`, `net:N`, a session by its id or name, an address or a CIDR.
        pub from: String,
        /// The same, or the name of a host outside.
        pub to: String,
        /// `tcp/5432`, `udp/5000-5010`, `tcp` or `icmp`.
        pub port: String,
    }
}

shape! {
    pub struct Explanation {
        /// `allow` only when every member that `from` means reaches everything that `to` and `port` mean.
        pub verdict: Expect,
        /// The rule that decided; null when none did.
        pub rule: Option<String>,
        /// A sentence for a person.
        pub reason: String,
        /// The flow that this is about: the first that is denied, else the first.
        pub from: String,
        pub to: String,
        pub port: String,
        /// How many pairs of senders and destinations were looked at.
        pub pairs: u64,
        /// The rule that would allow it, to paste into the policy; null where no rule can, or none is missing.
        #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
        pub missing_rule: Option<Rule>,
        pub near_misses: Vec<NearMiss>,
        /// Where it passes, as far as it comes.
        pub path: Vec<String>,
        /// The hash of the policy.
        pub policy: String,
    }
}

shape! {
    /// What one machine reaches.
    pub struct Reach {
        /// `network/machine`
        pub from: String,
        pub machine: String,
        pub network: String,
        pub to: Vec<ReachedMachine>,
        /// Names outside that a rule is about.
        pub names: Vec<ReachedName>,
        /// Whether the public internet is reached by address.
        pub internet: bool,
    }
}

shape! {
    pub struct ReachedMachine {
        /// `network/machine`
        pub to: String,
        /// Everything that is open: `tcp/5432`, `udp`, `icmp`, `other`, or `any` alone. Empty when nothing is.
        pub open: Vec<String>,
        /// The ports that the machine declares.
        pub declared: Vec<ReachedPort>,
    }
}

shape! {
    pub struct ReachedPort {
        pub name: String,
        /// `tcp/5432`
        pub port: String,
        pub verdict: Expect,
        pub rule: Option<String>,
    }
}

shape! {
    pub struct ReachedName {
        /// A name or a pattern, as its rule has it.
        pub name: String,
        /// Empty when nothing is open.
        pub open: Vec<String>,
        /// The rules that allow it.
        pub rules: Vec<String>,
    }
}

shape! {
    /// A refusal by policy, or several alike in a row.
    pub struct Denial {
        /// Hand this back as `after` or `Last-Event-ID` to go on after it.
        pub id: String,
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub time: Timestamp,
        /// The name of the machine or operator session that was refused; its id when it is gone.
        pub machine: Option<String>,
        /// The address, where there was one.
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
        pub to: Option<IpAddr>,
        /// The name, where there was one: of a member as `network/machine`, or outside.
        pub name: Option<String>,
        pub port: Option<u16>,
        pub protocol: Protocol,
        pub layer: Layer,
        /// The rule that forbade it; null when no rule allowed it.
        pub rule: Option<String>,
        pub reason: String,
        /// The rule that would allow it, to paste into the policy; null where no rule can.
        #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
        pub suggested_rule: Option<Rule>,
        /// How many refusals this stands for, at least 1. Exact for names; of packets (layers `network` and `egress`), at
        /// most 10 a second of one machine are told of after the first 20. `refused` of its traffic counts every one.
        pub count: u64,
    }
}
