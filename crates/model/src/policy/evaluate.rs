//! One flow, one verdict.

use std::net::IpAddr;

use jiff::Timestamp;

use super::{Directory, HostName, Member, Policy, Protocol, Rule, RuleId};

/// A flow that a member begins.
#[derive(Debug, Clone, Copy)]
pub struct Flow<'a> {
    pub from: &'a Member,
    pub to: Destination<'a>,
    pub protocol: Protocol,
    /// `None` for protocols without ports.
    pub port: Option<u16>,
}

/// Where a flow goes.
#[derive(Debug, Clone, Copy)]
pub enum Destination<'a> {
    /// A member of the same network or of another one.
    Member(&'a Member),
    /// An address that no member of the sender's network has, as the sender sees it.
    Address(IpAddr),
    Name(&'a HostName),
}

/// What policy says about a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub allowed: bool,
    /// The rule that decided; `None` when none did and the answer is no.
    pub rule: Option<RuleId>,
    /// A sentence for a person.
    pub reason: String,
}
