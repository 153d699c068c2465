//! `warren edge`, started as the daemon starts it and given the gateway's sockets.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use ulid::Ulid;
use warren_edge::{EdgeClient, EdgeLog, NetworkView, Sockets, SpawnConfig};
use warren_kernel::{GatewaySockets, MemberSpec};
use warren_model::policy::{Directory, Member, NetworkEntry};
use warren_model::record::Egress;
use warren_model::{AccountId, Label, MachineId, NetworkId};

use crate::process;
use crate::wires::Network;

/// Debian's `nobody`.
const UNPRIVILEGED: u32 = 65_534;

pub struct Edge {
    runtime: Runtime,
    client: EdgeClient,
    _directory: TempDir,
}

impl Edge {
    /// The edge dials outside from the namespace of the calling thread. Without a processor of its own, it takes what
    /// it finds.
    pub fn start(warren: &Path, network: &Network, view: NetworkView, cpu: Option<usize>) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("warren-bench-edge-").tempdir_in("/run")?;
        let executable =
            warren.canonicalize().with_context(|| format!("there is no program at {}", warren.display()))?;
        let config = SpawnConfig {
            executable,
            arguments: Vec::new(),
            control: directory.path().join("edge.sock"),
            uid: UNPRIVILEGED,
            gid: UNPRIVILEGED,
            log: EdgeLog::Discard,
        };
        let GatewaySockets { udp4, udp6, tcp4, tcp6, transparent4, transparent6, proxy4, proxy6 } =
            network.kernel.gateway_sockets(&network.spec)?;
        let sockets = Sockets { udp4, udp6, tcp4, tcp6, transparent4, transparent6, proxy4, proxy6 };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = process::on_processor(cpu, || {
            runtime.block_on(EdgeClient::spawn(&config)).context("the edge did not start")
        })?;
        // From here on the edge is ended also when the next step fails.
        let edge = Self { runtime, client, _directory: directory };
        edge.runtime.block_on(edge.client.put_network(&view, Some(sockets), None))?;
        Ok(edge)
    }

    /// Gives it another snapshot; returns when that is in force.
    pub fn put(&self, view: &NetworkView) -> anyhow::Result<()> {
        self.runtime.block_on(self.client.put_network(view, None, None))?;
        Ok(())
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        if let Err(error) = self.runtime.block_on(self.client.shutdown()) {
            eprintln!("the benchmark's edge (process {}) did not end: {error}", self.client.pid());
        }
    }
}

/// What the edge is told of a network: its members, and what its rules say about names.
pub fn view(network: &Network) -> anyhow::Result<NetworkView> {
    let spec = &network.spec;
    let members: Vec<MemberSpec> = network.members.iter().map(|(member, _)| member.clone()).collect();
    Ok(NetworkView {
        account: AccountId::from_ulid(Ulid::from_parts(1, 1)),
        network: NetworkId::from_ulid(Ulid::from_parts(1, 1)),
        name: network_name()?,
        number: spec.number,
        generation: 1,
        gateway4: spec.gateway4,
        gateway6: spec.gateway6,
        cidr: spec.cidr,
        cidr6: spec.cidr6,
        names: Vec::new(),
        sight: BTreeMap::new(),
        forward: Vec::new(),
        names6: spec.names6,
        members: directory(network, &members)?.members,
        groups: spec.rules.groups.clone(),
        rules: spec.rules.names.clone(),
        resolvers: Vec::new(),
        operators: Vec::new(),
        policy: String::new(),
    })
}

/// What a benchmark's network is called in policies.
pub fn network_name() -> anyhow::Result<Label> {
    Ok("bench".parse()?)
}

/// The network as policy sees it, its members called `m0` and so on.
pub fn directory(network: &Network, members: &[MemberSpec]) -> anyhow::Result<Directory> {
    let name = network_name()?;
    let spec = &network.spec;
    let entry = NetworkEntry {
        id: NetworkId::from_ulid(Ulid::from_parts(1, 1)),
        number: spec.number,
        cidr: spec.cidr,
        cidr6: spec.cidr6,
        egress: Egress::Deny,
    };
    let member = |(index, member): (usize, &MemberSpec)| -> anyhow::Result<Member> {
        Ok(Member {
            id: MachineId::from_ulid(Ulid::from_parts(1, index as u128)).into(),
            network: name.clone(),
            name: format!("m{index}").parse()?,
            number: member.number,
            ipv4: member.ipv4,
            ipv6: member.ipv6,
            tags: Default::default(),
        })
    };
    Ok(Directory {
        networks: BTreeMap::from([(name.clone(), entry)]),
        members: members.iter().enumerate().map(member).collect::<anyhow::Result<_>>()?,
        host: Default::default(),
    })
}
