//! Two namespaces that reach each other: over a raw veth pair, or over Warren's data plane.

use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::de::DeserializeOwned;
use warren_kernel::{Kernel, MemberSpec, NetworkSpec};
use warren_model::policy::NetworkRules;
use warren_model::record::Egress;
use warren_model::{Access, InstallationId, MemberNumber, NetworkCidr, NetworkNumber, UlaPrefix};

use crate::interrupt;
use crate::namespace::Namespace;
use crate::process::{self, Owned};
use crate::traffic::{RoundTrips, Throughput};

const RAW_NEAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const RAW_FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// Which processors the two ends keep to, the same on every wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Wherever the kernel puts them.
    Free,
    /// Both on the same processor: nothing waits for another one to wake up, so what the path costs shows undiluted.
    Together,
    /// The near end on the first processor, the far end on the last one.
    Apart,
}

impl Placement {
    pub fn cpus(self) -> anyhow::Result<(Option<usize>, Option<usize>)> {
        let all = process::processors()?;
        Ok(match self {
            Self::Free => (None, None),
            Self::Together => (all.last().copied(), all.last().copied()),
            Self::Apart => (all.first().copied(), all.last().copied()),
        })
    }
}

/// A raw veth pair between two namespaces, the most that this kernel gives.
#[derive(Debug)]
pub struct RawPair {
    pub near: Namespace,
    pub far: Namespace,
}

impl RawPair {
    pub const FAR: IpAddr = IpAddr::V4(RAW_FAR);

    pub fn new() -> anyhow::Result<Self> {
        let (near, far) = (Namespace::new()?, Namespace::new()?);
        let path = far.path();
        let path = path.to_str().context("the path of a namespace is text")?;
        near.ip(&["link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", path])?;
        for (end, address) in [(&near, RAW_NEAR), (&far, RAW_FAR)] {
            end.ip(&["address", "add", &format!("{address}/24"), "dev", "eth0"])?;
            end.ip(&["link", "set", "eth0", "up"])?;
        }
        Ok(Self { near, far })
    }
}

/// Warren's data plane with an installation id of its own; everything it made goes with it.
pub struct DataPlane {
    kernel: Kernel,
    ula: UlaPrefix,
}

impl DataPlane {
    pub fn new() -> anyhow::Result<Self> {
        let mut random = [0; 9];
        getrandom::fill(&mut random).context("the kernel gives no random numbers")?;
        let [a, b, c, d, global_id @ ..] = random;
        let installation = InstallationId::from_random(u32::from_be_bytes([a, b, c, d]));
        let ula = UlaPrefix::from_random(global_id);
        Ok(Self { kernel: Kernel::new(installation, ula)?, ula })
    }

    /// A network with this many members, each in a namespace of its own.
    pub fn network(&self, number: u16, members: usize) -> anyhow::Result<Network> {
        let number = NetworkNumber::new(number)?;
        let cidr = NetworkCidr::default_range();
        let spec = NetworkSpec {
            number,
            gateway4: cidr.gateway(),
            gateway6: self.ula.gateway(number),
            cidr,
            cidr6: self.ula.network(number),
            egress: Egress::Deny,
            rules: Arc::new(NetworkRules::unrestricted(Egress::Deny)),
            names6: self.ula.names(number),
        };
        let mut network = Network { kernel: self.kernel.clone(), ula: self.ula, spec, members: Vec::new() };
        let specs: Vec<MemberSpec> = (0..members).map(|index| network.member(index)).collect::<Result<_, _>>()?;
        self.kernel.create_network(&network.spec, &specs)?;
        for spec in specs {
            interrupt::check()?;
            let namespace = Namespace::bare()?;
            self.kernel.attach(&network.spec, &spec, namespace.as_fd())?;
            network.members.push((spec, namespace));
        }
        Ok(network)
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        for number in self.kernel.networks().unwrap_or_default() {
            if let Err(error) = self.kernel.remove_network(number) {
                eprintln!("network {number} of the benchmark could not be removed: {error}");
            }
        }
    }
}

/// A network of the data plane.
pub struct Network {
    pub kernel: Kernel,
    ula: UlaPrefix,
    pub spec: NetworkSpec,
    pub members: Vec<(MemberSpec, Namespace)>,
}

impl Network {
    /// What the member with this index, counted from 0, is or would be; not yet admitted.
    pub fn member(&self, index: usize) -> anyhow::Result<MemberSpec> {
        let index = u32::try_from(index)?;
        let number = MemberNumber::new(MemberNumber::FIRST.get() + index)?;
        // Machines begin at x.x.1.10.
        let ipv4 = Ipv4Addr::from(u32::from(self.spec.cidr.network()) + 0x010a + index);
        ensure!(self.spec.cidr.contains(ipv4), "a network of this size does not fit");
        Ok(MemberSpec { number, access: Access::Link, ipv4, ipv6: self.ula.member(self.spec.number, number) })
    }

    /// The first and the last member.
    pub fn ends(&self) -> anyhow::Result<(&Namespace, &Namespace, IpAddr)> {
        let [(_, near), .., (spec, far)] = self.members.as_slice() else { anyhow::bail!("two members are needed") };
        Ok((near, far, spec.ipv4.into()))
    }
}

/// The server at the far end of a wire; ends with this value.
pub struct Far {
    _server: Owned,
    pub at: SocketAddr,
}

impl Far {
    pub fn serve(namespace: &Namespace, address: IpAddr, cpu: Option<usize>) -> anyhow::Result<Self> {
        Self::spawn(namespace, address, cpu, &[])
    }

    /// Where every connection begins like TLS, at this port.
    pub fn serve_tls(namespace: &Namespace, at: SocketAddr, cpu: Option<usize>) -> anyhow::Result<Self> {
        Self::spawn(namespace, at.ip(), cpu, &["--tls", "--port", &at.port().to_string()])
    }

    fn spawn(namespace: &Namespace, address: IpAddr, cpu: Option<usize>, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut command = namespace.command(std::env::current_exe()?)?;
        command.args(["traffic", "serve"]).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(cpu) = cpu {
            command.arg("--cpu").arg(cpu.to_string());
        }
        let mut server = Owned::spawn(&mut command)?;
        let stdout = server.child().stdout.take().context("the server has no stdout")?;
        let mut port = String::new();
        BufReader::new(stdout).read_line(&mut port)?;
        let port: u16 = port.trim().parse().context("the server at the far end did not start")?;
        Ok(Self { _server: server, at: SocketAddr::new(address, port) })
    }
}

/// The end of a wire from which measurements are made.
pub struct Near<'n> {
    pub namespace: &'n Namespace,
    pub cpu: Option<usize>,
    /// What is dialled.
    pub to: SocketAddr,
    /// The name for which connections begin like TLS.
    pub hello: Option<&'static str>,
}

/// Both ends of a wire, ready for measurements.
pub struct Wire<'n> {
    near: Near<'n>,
    _far: Far,
}

impl<'n> Wire<'n> {
    pub fn new(near: &'n Namespace, far: &Namespace, address: IpAddr, placement: Placement) -> anyhow::Result<Self> {
        let (cpu, far_cpu) = placement.cpus()?;
        let far = Far::serve(far, address, far_cpu)?;
        Ok(Self { near: Near { namespace: near, cpu, to: far.at, hello: None }, _far: far })
    }

    /// Gigabits per second that arrived.
    pub fn throughput(&self, streams: usize, duration: Duration) -> anyhow::Result<f64> {
        self.near.throughput(streams, duration)
    }

    pub fn round_trips(&self, count: usize) -> anyhow::Result<RoundTrips> {
        self.near.run(&["round-trips", "--count", &count.to_string()])
    }
}

impl Near<'_> {
    /// Gigabits per second that arrived.
    pub fn throughput(&self, streams: usize, duration: Duration) -> anyhow::Result<f64> {
        let (streams, milliseconds) = (streams.to_string(), duration.as_millis().to_string());
        let seen: Throughput = self.run(&["throughput", "--streams", &streams, "--milliseconds", &milliseconds])?;
        Ok(seen.bytes as f64 * 8e-9 / seen.seconds)
    }

    /// From dialling to the first byte of the answer.
    pub fn connects(&self, count: usize) -> anyhow::Result<RoundTrips> {
        self.run(&["connects", "--count", &count.to_string()])
    }

    fn run<T: DeserializeOwned>(&self, role: &[&str]) -> anyhow::Result<T> {
        let mut command = self.namespace.command(std::env::current_exe()?)?;
        command.arg("traffic").args(role).arg("--to").arg(self.to.to_string());
        if let Some(name) = self.hello {
            command.args(["--hello", name]);
        }
        if let Some(cpu) = self.cpu {
            command.arg("--cpu").arg(cpu.to_string());
        }
        let output = command.stdin(Stdio::null()).output()?;
        ensure!(output.status.success(), "the near end failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        serde_json::from_slice(&output.stdout).context("the near end said something else than a measurement")
    }
}
