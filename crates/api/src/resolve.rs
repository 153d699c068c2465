//! Things by id or name. What is not the caller's is answered like what does not exist.

use warren_model::record::{Account, Machine, Network};
use warren_model::{AccountId, Label, MachineId, NetworkId};
use warren_store::{Typed, Versioned, schema};

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

pub(crate) async fn machine(api: &Api, account: AccountId, given: &str) -> Answer<Versioned<Machine>> {
    let id = match (given.parse::<MachineId>(), given.parse::<Label>()) {
        (Ok(id), _) => Some(id),
        (_, Ok(name)) => api.store.read(&schema::machine_name(account, &name)).await?.map(|found| found.record),
        _ => None,
    };
    let found = match id {
        Some(id) => api.store.read(&schema::machine(id)).await?,
        None => None,
    };
    found
        .filter(|machine| machine.record.account == account)
        .ok_or_else(|| ApiError::not_found("machine", given, "/v1/machines"))
}
