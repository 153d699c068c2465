//! Records as the API shows them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use warren_model::record::{Machine, MachineState, MachineStatus, Network, Power};
use warren_model::{NetworkId, wire};
use warren_store::{StoreError, Typed, schema};

use crate::error::{Answer, ApiError};
use crate::state::Api;

/// What a machine's owner sees: what it is, seen in the light of what was asked for, so that an answer never
/// contradicts the request before it.
pub(crate) fn state(machine: &Machine, status: Option<&MachineStatus>) -> MachineState {
    let (now, boot) = status.map_or((MachineState::Creating, machine.boot), |status| (status.state, status.boot));
    match (machine.power, now) {
        (Power::Gone, _) => MachineState::Deleting,
        (Power::Off, MachineState::Running | MachineState::Starting) => MachineState::Stopping,
        (Power::On, MachineState::Stopped | MachineState::Stopping) => MachineState::Starting,
        (Power::On, MachineState::Running | MachineState::Failed) if boot < machine.boot => MachineState::Starting,
        _ => now,
    }
}

pub(crate) fn machine(
    api: &Api,
    machine: &Machine,
    status: Option<&MachineStatus>,
    network: &Network,
) -> wire::Machine {
    let state = state(machine, status);
    wire::Machine {
        id: machine.id.to_string(),
        name: machine.name.to_string(),
        state,
        failure: status.filter(|_| state == MachineState::Failed).and_then(|status| status.failure.clone()),
        private_ip: machine.ipv4,
        private_ip6: machine.ipv6(api.config.installation.ula, network.number),
        address: machine.address(network.number).to_string(),
        hostname: machine.hostname(),
        network: wire::Reference { id: network.id.to_string(), name: network.name.to_string() },
        image: machine.image.to_string(),
        cpus: f64::from(machine.limits.cpus_milli) / 1000.0,
        memory_mib: machine.limits.memory_mib,
        disk_gib: machine.limits.disk_gib,
        ports: ports(machine),
        tags: machine.tags.iter().map(ToString::to_string).collect(),
        labels: machine.labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        created_at: machine.created_at,
        started_at: status
            .filter(|_| matches!(state, MachineState::Running | MachineState::Stopping))
            .and_then(|status| status.started_at),
    }
}

pub(crate) fn ports(machine: &Machine) -> Vec<wire::Port> {
    let port = |port: &warren_model::record::DeclaredPort| wire::Port {
        name: port.name.to_string(),
        port: port.port,
        protocol: port.protocol,
    };
    machine.ports.iter().map(port).collect()
}

/// Reads what a machine's view needs beside it.
pub(crate) async fn read_machine(api: &Api, record: &Machine) -> Answer<wire::Machine> {
    Networks::default().machine(api, record).await?.ok_or_else(ApiError::internal)
}

/// Networks that were read while a list is put together.
#[derive(Default)]
pub(crate) struct Networks(HashMap<NetworkId, Network>);

impl Networks {
    /// `None` when the machine's network went away while the list was put together.
    pub async fn machine(&mut self, api: &Api, record: &Machine) -> Result<Option<wire::Machine>, StoreError> {
        let status = api.store.read(&schema::status(record.id)).await?.map(|read| read.record);
        let network = match self.0.entry(record.network) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => match api.store.read(&schema::network(record.network)).await? {
                Some(read) => unknown.insert(read.record),
                None => return Ok(None),
            },
        };
        Ok(Some(machine(api, record, status.as_ref(), network)))
    }
}

/// A network without warnings. Its members are counted by reading their keys.
pub(crate) async fn network(api: &Api, network: &Network) -> Result<wire::Network, StoreError> {
    let ula = api.config.installation.ula;
    Ok(wire::Network {
        id: network.id.to_string(),
        name: network.name.to_string(),
        number: network.number.get(),
        cidr: network.cidr.to_string(),
        cidr6: ula.network(network.number).to_string(),
        gateway: network.cidr.gateway(),
        gateway6: ula.gateway(network.number),
        egress: network.egress,
        members: api.store.count(schema::members(network.id).as_str()).await? as u64,
        created_at: network.created_at,
        warnings: Vec::new(),
    })
}

/// A network with what its owner should know.
pub(crate) async fn network_with_warnings(api: &Api, record: &Network) -> Result<wire::Network, StoreError> {
    let mut view = network(api, record).await?;
    view.warnings = api
        .host
        .overlapping_routes(record.cidr)
        .into_iter()
        .map(|route| {
            format!(
                "{} overlaps the host's route {route}: machines cannot reach those hosts, and nothing else is affected",
                record.cidr
            )
        })
        .collect();
    if let Some(problem) = api.store.read(&schema::network_problem(record.id)).await? {
        view.warnings.push(format!("the network {}", problem.record));
    }
    if record.deleting {
        view.warnings.push("the network is being deleted".to_owned());
    }
    Ok(view)
}
