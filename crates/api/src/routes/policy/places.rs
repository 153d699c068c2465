//! Who is meant by the `from` and the `to` of a question.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use warren_model::policy::{Destination, Directory, HostName, Member, Policy, Subject, edges};
use warren_model::{Code, Label, MachineId, MemberNumber};

use crate::error::{Answer, ApiError};

/// The most characters that a question's `from` or `to` can have: a host name, which is the longest.
const LONGEST: usize = 300;

/// Members that a text means.
#[derive(Debug)]
pub(super) struct Meant {
    pub members: Vec<Member>,
    /// Nobody is there yet; the one member stands for whoever comes.
    pub made_up: bool,
}

/// Something that a flow goes to.
#[derive(Debug, Clone)]
pub(super) enum Goal {
    Member(Member),
    Address(IpAddr),
    Name(HostName),
}

impl Goal {
    pub fn destination(&self) -> Destination<'_> {
        match self {
            Self::Member(member) => Destination::Member(member),
            Self::Address(address) => Destination::Address(*address),
            Self::Name(name) => Destination::Name(name),
        }
    }
}

/// Who sends.
pub(super) fn senders(given: &str, directory: &Directory) -> Answer<Meant> {
    bounded("from", given)?;
    if let Some(member) = machine(given, directory) {
        return Ok(Meant { members: vec![member.clone()], made_up: false });
    }
    match given.parse::<Subject>() {
        Ok(subject) => members(&subject, directory),
        Err(error) if given.contains(['/', ':']) => Err(ApiError::invalid(format!("from: {error}"))),
        Err(_) => Err(ApiError::not_found("machine", given, "/v1/machines")),
    }
}

/// Where it goes, and whether nobody is there yet.
pub(super) fn goals(given: &str, directory: &Directory, policy: &Policy) -> Answer<(Vec<Goal>, bool)> {
    bounded("to", given)?;
    if let Some(member) = machine(given, directory) {
        return Ok((vec![Goal::Member(member.clone())], false));
    }
    match given.parse::<Subject>() {
        Ok(Subject::Range(None, range)) => Ok((addresses(range, directory, policy), false)),
        Ok(subject) => {
            let Meant { members, made_up } = members(&subject, directory)?;
            Ok((members.into_iter().map(Goal::Member).collect(), made_up))
        }
        Err(error) if given.contains(['/', ':']) => Err(ApiError::invalid(format!("to: {error}"))),
        Err(_) if !given.contains('.') || given.ends_with(".vm.internal") => {
            Err(ApiError::not_found("machine", given, "/v1/machines"))
        }
        Err(_) => match given.parse::<HostName>() {
            Ok(name) => Ok((vec![Goal::Name(name)], false)),
            Err(error) => Err(ApiError::invalid(format!("to: {error}"))),
        },
    }
}

/// Refuses what nothing can be called.
pub(super) fn bounded(field: &str, given: &str) -> Answer<()> {
    if (1..=LONGEST).contains(&given.len()) {
        return Ok(());
    }
    Err(ApiError::invalid(format!(
        "{field} has 1 to {LONGEST} characters: write MACHINE, NETWORK/MACHINE, NETWORK/tag:TAG, net:NETWORK, a session, \
         an address or a CIDR"
    )))
}

/// A machine by its id, its name or its name in the resolver.
fn machine<'a>(given: &str, directory: &'a Directory) -> Option<&'a Member> {
    let name = given.strip_suffix(".vm.internal").unwrap_or(given);
    let id = given.parse::<MachineId>().ok();
    directory.members.iter().find(|member| id.is_some_and(|id| member.id == id.into()) || member.name.as_str() == name)
}

fn members(subject: &Subject, directory: &Directory) -> Answer<Meant> {
    let network = subject.network();
    if let Some(network) = network.filter(|network| !directory.networks.contains_key(*network)) {
        return Err(ApiError::not_found("network", network.as_str(), "/v1/networks"));
    }
    let members: Vec<_> = directory.members.iter().filter(|member| member.is_meant_by(subject)).cloned().collect();
    if !members.is_empty() {
        return Ok(Meant { members, made_up: false });
    }
    let tags = match subject {
        Subject::Network(_) => BTreeSet::new(),
        Subject::Tag(_, tag) => BTreeSet::from([tag.clone()]),
        Subject::Machine(..) => return Err(ApiError::not_found("machine", &subject.to_string(), "/v1/machines")),
        Subject::Range(..) => {
            return Err(ApiError::new(
                Code::NotFound,
                format!("no machine of this account has an address in {subject}: see GET /v1/machines"),
            ));
        }
    };
    let made_up = network.and_then(|network| some_member(network, tags, directory));
    made_up
        .map(|member| Meant { members: vec![member], made_up: true })
        .ok_or_else(|| ApiError::not_found("machine", &subject.to_string(), "/v1/machines"))
}

/// A member as it could come: one that nobody knows by its name or address.
fn some_member(network: &Label, tags: BTreeSet<warren_model::Tag>, directory: &Directory) -> Option<Member> {
    let entry = directory.networks.get(network)?;
    Some(Member {
        id: MachineId::from_ulid(ulid::Ulid::nil()).into(),
        network: network.clone(),
        name: "any".parse().ok()?,
        number: MemberNumber::FIRST,
        ipv4: entry.cidr.network(),
        ipv6: entry.cidr6.network(),
        tags,
    })
}

/// A single address, or addresses that stand for a whole range: the members in it, and one of each part of the rest that
/// a rule or what is built in could treat in a way of its own. To whom a part belongs depends on the sender.
fn addresses(range: IpNet, directory: &Directory, policy: &Policy) -> Vec<Goal> {
    if range.prefix_len() == range.max_prefix_len() {
        return vec![Goal::Address(range.addr())];
    }
    let mut found = edges(policy, directory, range);
    let held = directory.members.iter().flat_map(|member| [IpAddr::V4(member.ipv4), IpAddr::V6(member.ipv6)]);
    found.extend(held.filter(|address| range.contains(address)));
    found.into_iter().map(Goal::Address).collect()
}
