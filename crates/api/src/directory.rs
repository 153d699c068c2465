//! Who is there in an account, as policy sees it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use warren_model::policy::{Directory, HostLimits, Member, NetworkEntry};
use warren_model::record::{Machine, Network, Power};
use warren_model::{AccountId, Label, NetworkId, UlaPrefix};
use warren_store::{StoreError, Typed, Versioned, schema};

use crate::bootstrap;
use crate::state::Api;

/// Up to so many machines are read one by one; beyond, one listing of all machines is faster.
const ONE_BY_ONE: usize = 64;

/// An account's networks and machines at one moment.
#[derive(Debug)]
pub(crate) struct Census {
    pub directory: Directory,
    pub networks: BTreeMap<Label, Versioned<Network>>,
    /// Every machine of [`Directory::members`], in the same order: by network and name.
    pub machines: Vec<Machine>,
}

/// Reads who is there. Machines that are being deleted are there no more.
pub(crate) async fn census(api: &Api, account: AccountId) -> Result<Census, StoreError> {
    let (names, _) = api.store.list_all(&schema::network_names(account)).await?;
    let mut networks = BTreeMap::new();
    let mut by_id: BTreeMap<NetworkId, Label> = BTreeMap::new();
    for id in names {
        if let Some(read) = api.store.read(&schema::network(id.record)).await? {
            by_id.insert(read.record.id, read.record.name.clone());
            networks.insert(read.record.name.clone(), read);
        }
    }
    let mut machines = machines(api, account).await?;
    machines.retain(|machine| machine.power != Power::Gone && by_id.contains_key(&machine.network));
    machines.sort_by(|one, other| (&by_id[&one.network], &one.name).cmp(&(&by_id[&other.network], &other.name)));

    let ula = api.config.installation.ula;
    let host = HostLimits { addresses: api.host.addresses(), private_ranges: Some(api.config.private_ranges.clone()) };
    let mut directory = Directory { host, ..Directory::default() };
    for (name, read) in &networks {
        directory.networks.insert(name.clone(), entry(&read.record, ula));
    }
    for machine in &machines {
        let network = by_id[&machine.network].clone();
        let number = directory.networks[&network].number;
        directory.members.push(Member {
            id: machine.id.into(),
            network,
            name: machine.name.clone(),
            number: machine.member,
            ipv4: machine.ipv4,
            ipv6: machine.ipv6(ula, number),
            tags: machine.tags.clone(),
        });
    }
    Ok(Census { directory, networks, machines })
}

/// A network as policy sees it.
pub(crate) fn entry(network: &Network, ula: UlaPrefix) -> NetworkEntry {
    let Network { id, number, cidr, egress, .. } = *network;
    NetworkEntry { id, number, cidr, cidr6: ula.network(number), egress }
}

async fn machines(api: &Api, account: AccountId) -> Result<Vec<Machine>, StoreError> {
    let (names, _) = api.store.list_all(&schema::machine_names(account)).await?;
    if names.len() > ONE_BY_ONE {
        let (all, _) = api.store.list_all(&schema::machines()).await?;
        return Ok(all.into_iter().map(|read| read.record).filter(|machine| machine.account == account).collect());
    }
    let mut machines = Vec::with_capacity(names.len());
    for id in names {
        machines.extend(api.store.read(&schema::machine(id.record)).await?.map(|read| read.record));
    }
    Ok(machines)
}

/// The names of the account's keys that are valid, for the owners of tags.
pub(crate) async fn key_names(api: &Api, account: AccountId, now: Timestamp) -> Result<BTreeSet<Label>, StoreError> {
    let keys = bootstrap::keys(&*api.store, account).await?.into_iter().map(|read| read.record);
    let valid = keys.filter(|key| key.revoked_at.is_none() && key.expires_at.is_none_or(|until| now < until));
    Ok(valid.filter_map(|key| key.name).collect())
}
