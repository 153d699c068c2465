//! A host with Warren's networks on it, and namespaces that stand for machines.
#![allow(dead_code, reason = "each test uses a part")]

pub mod trio;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use warren_kernel::{Kernel, MemberSpec, NetworkSpec};
use warren_lab::{Lab, Namespace};
use warren_model::policy::NetworkRules;
use warren_model::record::Egress;
use warren_model::{Access, InstallationId, MemberNumber, NetworkCidr, NetworkNumber, UlaPrefix};

pub struct Fixture {
    pub kernel: Kernel,
    pub installation: InstallationId,
    pub ula: UlaPrefix,
    pub host: Namespace,
    pub lab: Lab,
}

impl Fixture {
    pub fn new() -> Self {
        let lab = Lab::new();
        let host = lab.namespace("host");
        Self::on(lab, host)
    }

    pub fn on(lab: Lab, host: Namespace) -> Self {
        // The lab's prefix ends in random digits.
        let random = u32::from_str_radix(&lab.prefix()[lab.prefix().len() - 6..], 16).unwrap();
        let installation = InstallationId::from_random(random);
        let [_, a, b, c] = random.to_be_bytes();
        let ula = UlaPrefix::from_random([7, a, b, c, 1]);
        let kernel = host.enter(|| Kernel::new(installation.clone(), ula)).unwrap();
        Self { kernel, installation, ula, host, lab }
    }

    /// Another daemon of the same installation.
    pub fn restarted(&self) -> Kernel {
        self.host.enter(|| Kernel::new(self.installation.clone(), self.ula)).unwrap()
    }

    pub fn spec(&self, number: u16, cidr: &str, egress: Egress) -> NetworkSpec {
        let number = NetworkNumber::new(number).unwrap();
        let cidr: NetworkCidr = cidr.parse().unwrap();
        NetworkSpec {
            number,
            gateway4: cidr.gateway(),
            gateway6: self.ula.gateway(number),
            cidr,
            cidr6: self.ula.network(number),
            egress,
            rules: Arc::new(NetworkRules::unrestricted(egress)),
            names6: self.ula.names(number),
        }
    }

    pub fn member(&self, spec: &NetworkSpec, number: u32) -> MemberSpec {
        let member = MemberNumber::new(number).unwrap();
        let ipv4 = u32::from(spec.cidr.network()) + number;
        MemberSpec {
            number: member,
            access: Access::Link,
            ipv4: ipv4.into(),
            ipv6: self.ula.member(spec.number, member),
        }
    }

    /// A namespace attached as this member; the member must be admitted, too.
    pub fn machine(&self, spec: &NetworkSpec, member: &MemberSpec) -> Namespace {
        let machine = self.lab.namespace(&format!("n{}m{}", spec.number, member.number));
        self.kernel.attach(spec, member, machine.fd()).unwrap();
        machine
    }

    /// A network with two machines.
    pub fn pair(&self, spec: &NetworkSpec) -> [(MemberSpec, Namespace); 2] {
        let members = [2, 3].map(|number| self.member(spec, number));
        self.kernel.create_network(spec, &members).unwrap();
        members.map(|member| (member.clone(), self.machine(spec, &member)))
    }

    pub fn router(&self, spec: &NetworkSpec) -> String {
        warren_kernel::names::namespace(&self.installation, spec.number)
    }

    /// Runs inside the router namespace, as an operator would.
    pub fn in_router(&self, spec: &NetworkSpec, line: &str) -> String {
        self.host.run(&format!("ip netns exec {} {line}", self.router(spec)))
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        for number in self.kernel.networks().unwrap_or_default() {
            let _ = self.kernel.remove_network(number);
        }
        let _ = self.kernel.forwarding().restore();
    }
}

/// Whether a connection from one machine to the other carries bytes both ways.
pub fn talks(from: &Namespace, to: &Namespace, address: IpAddr) -> bool {
    let listener = to.enter(|| TcpListener::bind(SocketAddr::new(address, 0))).unwrap();
    let target = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let Ok(mut stream) = from.enter(|| TcpStream::connect_timeout(&target, Duration::from_secs(3))) else {
        println!("no connection to {target}");
        return false;
    };
    let (mut other, _) = listener.accept().unwrap();
    other.set_nonblocking(false).unwrap();
    stream.write_all(b"there").unwrap();
    let mut bytes = [0u8; 5];
    other.read_exact(&mut bytes).unwrap();
    other.write_all(b"again").unwrap();
    stream.read_exact(&mut bytes).unwrap();
    &bytes == b"again"
}
