//! An operator's session as one end of a question: who that is, and what keeps its packets back though policy allows them.

use jiff::Timestamp;
use warren_model::SessionId;
use warren_model::policy::{Directory, Member, PortRange, Protocol};
use warren_model::session::{NAME_PREFIX, OPERATOR_TAG, Session, SessionScope};

use super::pieces::Piece;
use super::places::{self, Goal};
use crate::caller::Caller;
use crate::directory::Census;
use crate::error::{Answer, ApiError};
use crate::routes::sessions;
use crate::state::Api;

/// A session that was named, as policy sees it.
#[derive(Debug, Clone)]
pub(super) struct Operator {
    pub member: Member,
    reachable: bool,
    only: Option<SessionScope>,
}

/// The session that is meant by its id, its name, or `NETWORK/` and one of these; `None` where no session is meant.
pub(super) async fn named(
    api: &Api,
    caller: &Caller,
    field: &str,
    given: &str,
    census: &Census,
) -> Answer<Option<Operator>> {
    places::bounded(field, given)?;
    let (network, bare) = match given.split_once('/') {
        Some((network, bare)) => (Some(network), bare),
        None => (None, given),
    };
    let is_machine = || census.directory.members.iter().any(|member| member.name.as_str() == bare);
    if bare.parse::<SessionId>().is_err() && (!bare.starts_with(NAME_PREFIX) || is_machine()) {
        return Ok(None);
    }
    let none = || ApiError::not_found("session", given, "/v1/sessions");
    let session = sessions::find(api, caller, bare).await.map_err(|error| match error.problem.status {
        404 => none(),
        _ => error,
    })?;
    let session = session.record;
    let own = census.networks.iter().find(|(_, read)| read.record.id == session.network);
    let (label, read) =
        own.filter(|(label, _)| network.is_none_or(|named| label.as_str() == named)).ok_or_else(none)?;
    if session.expires_at <= Timestamp::now() {
        return Err(none());
    }
    let Session { id, member, ipv4, reachable, only, .. } = session;
    let member = Member {
        id: id.into(),
        network: label.clone(),
        name: session.name(),
        number: member,
        ipv4,
        ipv6: session.ipv6(api.config.installation.ula, read.record.number),
        tags: OPERATOR_TAG.parse().into_iter().collect(),
    };
    Ok(Some(Operator { member, reachable, only }))
}

impl Operator {
    /// Why a flow that it begins does not pass, though policy allows it.
    pub fn keeps_from(&self, to: &Goal, piece: &Piece, directory: &Directory) -> Option<String> {
        let SessionScope { machine, port } = self.only?;
        let receiver = match to {
            Goal::Member(member) => Some(member),
            Goal::Address(address) => directory.at(&self.member.network, *address),
            Goal::Name(_) => None,
        };
        let reaches = receiver.is_some_and(|member| member.id == machine.into())
            && port.is_none_or(|port| {
                matches!(piece.protocol, Protocol::Tcp | Protocol::Udp)
                    && piece.range == PortRange { first: port, last: port }
            });
        let scope = self.scope(directory);
        (!reaches).then(|| format!("{} was opened for {scope} only, whatever policy allows", self.member.full_name()))
    }

    /// Why a flow that somebody else begins does not reach it, though policy allows it.
    pub fn keeps_out(&self, from: &Member, directory: &Directory) -> Option<String> {
        let own = self.member.full_name();
        if !self.reachable {
            return Some(format!(
                "nothing begins towards {own}, whatever policy allows: it was opened without `reachable`, and is sent only \
                 what answers it"
            ));
        }
        let SessionScope { machine, port } = self.only?;
        let scope = self.scope(directory);
        (from.id != machine.into() || port.is_some())
            .then(|| format!("{own} was opened for {scope} only, and is sent nothing but what comes from there"))
    }

    /// What it was opened for: `agents/worker`, or a port of that.
    fn scope(&self, directory: &Directory) -> String {
        let Some(SessionScope { machine, port }) = self.only else { return "the whole network".to_owned() };
        let found = directory.members.iter().find(|member| member.id == machine.into());
        let name = found.map_or_else(|| machine.to_string(), Member::full_name);
        port.map_or_else(|| name.clone(), |port| format!("port {port} of {name}"))
    }
}
