//! Which number and address a new member of a network gets: a machine, or an operator's session.

use std::net::Ipv4Addr;

use jiff::Timestamp;
use warren_model::allocate::{self, AllocateError, Holds, MemberKind};
use warren_model::record::{AddressHold, Network};
use warren_model::{Code, MemberId, MemberNumber};
use warren_store::{TxnBuilder, Typed, Versioned, schema};

use crate::error::{Answer, ApiError};
use crate::state::Api;

/// What a new member was given, and what must still be so when it is written.
pub(crate) struct Seat {
    pub network: Versioned<Network>,
    pub number: MemberNumber,
    pub ipv4: Ipv4Addr,
    kind: MemberKind,
    hold: Option<Versioned<AddressHold>>,
    next_member: Option<Versioned<MemberNumber>>,
}

/// Nothing new begins in a network that is being deleted.
fn refuse_deleting(network: &Network) -> Answer<()> {
    if network.deleting {
        return Err(ApiError::new(
            Code::NotFound,
            format!("network {} is being deleted: name another one", network.name),
        ));
    }
    Ok(())
}

/// Chooses the address that was asked for, or a free one.
pub(crate) async fn choose(
    api: &Api,
    network: Versioned<Network>,
    kind: MemberKind,
    asked: Option<Ipv4Addr>,
    now: Timestamp,
) -> Answer<Seat> {
    refuse_deleting(&network.record)?;
    let (ipv4, hold) = address(api, &network.record, kind, asked, now).await?;
    let next_member = api.store.read(&schema::next_member(network.record.id)).await?;
    let number = next_member.as_ref().map_or(MemberNumber::FIRST, |next| next.record);
    Ok(Seat { network, number, ipv4, kind, hold, next_member })
}

impl Seat {
    /// Takes the address and the number. The network is compared unchanged, so that it cannot be deleted meanwhile.
    pub fn put(&self, txn: TxnBuilder, holder: impl Into<MemberId>) -> Answer<TxnBuilder> {
        let network = self.network.record.id;
        let (address, next_member) = (schema::address(network, self.ipv4), schema::next_member(network));
        let hold = AddressHold { kind: self.kind, holder: Some(holder.into()), resting_until: None };
        let following = self.number.next().ok_or_else(|| {
            ApiError::new(
                Code::NetworkFull,
                "this network has used up its 4,294,967,294 member numbers: use another network",
            )
        })?;
        Ok(txn
            .unchanged(&self.network)
            .same(&address, self.hold.as_ref())
            .same(&next_member, self.next_member.as_ref())
            .put(&address, &hold)?
            .put(&next_member, &following)?)
    }
}

async fn address(
    api: &Api,
    network: &Network,
    kind: MemberKind,
    asked: Option<Ipv4Addr>,
    now: Timestamp,
) -> Answer<(Ipv4Addr, Option<Versioned<AddressHold>>)> {
    if let Some(asked) = asked {
        let hold = api.store.read(&schema::address(network.id, asked)).await?;
        let holds = hold.iter().map(|hold| (asked, hold.record.as_hold())).collect();
        if let Err(error) = allocate::check_explicit(network.cidr, asked, &holds) {
            let holder = hold.and_then(|hold| hold.record.holder);
            return Err(refused(api, network, error, holder).await?);
        }
        return Ok((asked, hold));
    }
    let (read, _) = api.store.list_all(&schema::addresses(network.id)).await?;
    let holds: Holds =
        read.iter().filter_map(|hold| Some((schema::address_of(&hold.key)?, hold.record.as_hold()))).collect();
    match allocate::allocate(network.cidr, kind, &holds, now) {
        Ok(given) => {
            let hold = read.into_iter().find(|hold| schema::address_of(&hold.key) == Some(given));
            Ok((given, hold))
        }
        Err(error) => Err(refused(api, network, error, None).await?),
    }
}

async fn refused(api: &Api, network: &Network, error: AllocateError, holder: Option<MemberId>) -> Answer<ApiError> {
    let detail = match (error, holder) {
        (AllocateError::Taken(address), Some(holder)) => {
            // A network and all its members belong to one account, so the name is the caller's own.
            let name = match holder {
                MemberId::Machine(id) => {
                    api.store.read(&schema::machine(id)).await?.map(|read| read.record.name.to_string())
                }
                MemberId::Session(id) => {
                    api.store.read(&schema::session(id)).await?.map(|read| read.record.name().to_string())
                }
            };
            let name = name.unwrap_or_else(|| "something that is just going away".to_owned());
            format!("{address} is held by {name} ({holder}): choose another address, or leave private_ip out")
        }
        (AllocateError::Full(cidr), _) => format!(
            "every address of network {} ({cidr}) is held: delete a machine or close a session, or use a wider network",
            network.name
        ),
        (AllocateError::Reserved(_), _) => {
            format!("{error}: choose another address, or leave private_ip out")
        }
        _ => format!("{error}: choose an address inside it, or leave private_ip out"),
    };
    Ok(ApiError::new(error.code(), detail))
}
