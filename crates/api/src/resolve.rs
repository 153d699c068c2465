//! Things by id or name. What is not the caller's is answered like what does not exist.

use warren_model::record::{Account, Identity, Machine, Network};
use warren_model::{AccountId, IdentityId, Label, MachineId, NetworkId};
use warren_store::{Typed, Versioned, schema};

use crate::caller::Caller;
use crate::error::{Answer, ApiError};
use crate::state::Api;

pub(crate) async fn account(api: &Api, given: &str) -> Answer<Versioned<Account>> {
    let id = match (given.parse::<AccountId>(), given.parse::<Label>()) {
        (Ok(id), _) => Some(id),
        (_, Ok(name)) => api.store.read(&schema::account_name(&name)).await?.map(|found| found.record),
        _ => None,
    };
    let found = match id {
        Some(id) => api.store.read(&schema::account(id)).await?,
        None => None,
    };
    let given: String = given.chars().take(80).collect();
    found.ok_or_else(|| {
        ApiError::new(warren_model::Code::NotFound, format!("there is no account {given:?}: see GET /v1/accounts"))
    })
}

pub(crate) async fn network(api: &Api, account: AccountId, given: &str) -> Answer<Versioned<Network>> {
    let id = match (given.parse::<NetworkId>(), given.parse::<Label>()) {
        (Ok(id), _) => Some(id),
        (_, Ok(name)) => api.store.read(&schema::network_name(account, &name)).await?.map(|found| found.record),
        _ => None,
    };
    let found = match id {
        Some(id) => api.store.read(&schema::network(id)).await?,
        None => None,
    };
    found
        .filter(|network| network.record.account == account)
        .ok_or_else(|| ApiError::not_found("network", given, "/v1/networks"))
}

/// The machine, if the caller may do with it what the route does.
pub(crate) async fn machine(api: &Api, caller: &Caller, given: &str) -> Answer<Versioned<Machine>> {
    let id = match (given.parse::<MachineId>(), given.parse::<Label>()) {
        (Ok(id), _) => Some(id),
        (_, Ok(name)) => api.store.read(&schema::machine_name(caller.account, &name)).await?.map(|found| found.record),
        _ => None,
    };
    let found = match id {
        Some(id) => api.store.read(&schema::machine(id)).await?,
        None => None,
    };
    let found = found
        .filter(|machine| caller.knows(&machine.record))
        .ok_or_else(|| ApiError::not_found("machine", given, "/v1/machines"))?;
    caller.permit(&found.record)?;
    Ok(found)
}

pub(crate) async fn identity(api: &Api, account: AccountId, given: &str) -> Answer<Versioned<Identity>> {
    let id = match (given.parse::<IdentityId>(), given.parse::<Label>()) {
        (Ok(id), _) => Some(id),
        (_, Ok(name)) => api.store.read(&schema::identity_name(account, &name)).await?.map(|found| found.record),
        _ => None,
    };
    let found = match id {
        Some(id) => api.store.read(&schema::identity(id)).await?,
        None => None,
    };
    found
        .filter(|identity| identity.record.account == account)
        .ok_or_else(|| ApiError::not_found("identity", given, "/v1/identities"))
}
