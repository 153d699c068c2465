//! Which flows are tried, and what policy says about each.
//!
//! Between any two machines few ports say all: those that the target declares, those at which a rule changes the answer,
//! one TCP and one UDP port that nobody speaks of, and an echo request. Machines of networks without a link to each other
//! are tried on fewer. Beyond its network, each machine tries the host's own addresses and its API, cloud metadata,
//! addresses outside, and names.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use warren_model::MemberId;
use warren_model::policy::{Destination, Directory, HostName, HostPattern, Member, Policy, Protocol, Sender, Target};
use warren_model::probe::{Attempt, Holder, Listening, MOST_ATTEMPTS, Setup, Token};
use warren_model::record::{DeclaredPort, Egress, Protocol as Declared};

use crate::report::{Canary, Expected, Party};

/// The most ports of a target that are tried because it declares them or a rule speaks of them.
const MOST_TCP: usize = 6;
const MOST_UDP: usize = 3;
/// Of those, how many are tried from a network that has no link to the target's.
const MOST_ACROSS: usize = 1;
/// How many listed names each machine looks up.
const MOST_NAMES: usize = 3;
/// How many addresses outside each machine tries.
pub const MOST_OUTSIDE: usize = 6;

/// A name that no policy lists: RFC 2606 keeps the domain out of the world.
pub const UNLISTED: &str = "unlisted.warren-audit.example";

/// Where cloud providers keep the secrets of a host.
const METADATA: [&str; 2] = ["169.254.169.254", "fd00:ec2::254"];
const METADATA_PORT: u16 = 80;
const DNS: u16 = 53;

/// A machine of the account, as a sender and as a target.
#[derive(Debug, Clone)]
pub struct Host {
    pub member: Member,
    pub ports: Vec<DeclaredPort>,
    /// It begins flows.
    pub sends: bool,
    /// What its probe listens on; `None` when there is none.
    pub listening: Option<Listening>,
}

impl Host {
    /// `network/machine`
    fn name(&self) -> String {
        format!("{}/{}", self.member.network, self.member.name)
    }
}

/// A machine of another account.
#[derive(Debug, Clone)]
pub struct Foreign {
    pub account: String,
    pub machine: MemberId,
    pub addresses: Vec<IpAddr>,
    /// The gateway of its network, and its own name there.
    pub gateway: IpAddr,
    pub name: String,
    pub listening: Listening,
}

/// A place outside at which something answers.
#[derive(Debug, Clone)]
pub struct Outside {
    pub at: SocketAddr,
    /// `resolver 1 of this host`
    pub what: String,
    /// Whether the host itself reaches it.
    pub reached: bool,
    /// The report may say its address.
    pub named: bool,
}

/// Everything that the matrix is made of.
#[derive(Debug)]
pub struct Setting<'a> {
    pub policy: &'a Policy,
    pub directory: &'a Directory,
    pub now: Timestamp,
    pub hosts: &'a [Host],
    pub foreign: &'a [Foreign],
    /// Canaries on the host's own addresses.
    pub host_canaries: &'a [SocketAddr],
    /// The report may say the host's addresses.
    pub host_named: bool,
    /// The port of the host's API.
    pub api_port: Option<u16>,
    pub outside: &'a [Outside],
}

/// One flow to be tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub sender: MemberId,
    pub from: Party,
    pub to: Party,
    pub protocol: Protocol,
    pub port: Option<u16>,
    pub free_port: bool,
    pub expected: Expected,
    pub canary: Canary,
    /// Whose canary has to see the token.
    pub at: At,
    pub attempt: Attempt,
}

/// Where a flow goes to, for its positive control.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum At {
    /// A machine with a probe, at this address and port.
    Machine(MemberId, IpAddr, Protocol, Option<u16>),
    /// A canary on the host.
    Host(SocketAddr),
    Api,
    Outside(SocketAddr),
    /// The sender's own resolver.
    Resolver,
    /// Nobody can be there.
    Nowhere,
}

/// What is tried, and what could not be.
#[derive(Debug, Default)]
pub struct Matrix {
    pub checks: Vec<Check>,
    /// The positive controls: each target reaches its own canaries, and each machine its resolver.
    pub controls: Vec<SelfControl>,
    pub gaps: Vec<String>,
}

/// A flow of a machine that nothing restricts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelfControl {
    pub machine: MemberId,
    /// [`At::Machine`] for a canary of its own, [`At::Resolver`] for its network's resolver.
    pub at: At,
    pub attempt: Attempt,
}

/// Where the probe of this machine has to listen.
pub fn setup(policy: &Policy, host: &Host, lifetime_ms: u64) -> Setup {
    let (tcp, udp) = fixed_ports(policy, host);
    Setup { addresses: vec![host.member.ipv4.into(), host.member.ipv6.into()], tcp, udp, lifetime_ms }
}

/// Every flow that is tried. `token` makes a new random token each time.
pub fn matrix(setting: &Setting<'_>, mut token: impl FnMut() -> Token) -> Matrix {
    let mut matrix = Matrix::default();
    for host in setting.hosts {
        let Some(listening) = &host.listening else { continue };
        let addresses = [host.member.ipv4.into(), host.member.ipv6.into()];
        matrix.gaps.extend(blind_spots(host, listening));
        let canaries = canaries(listening);
        matrix.controls.extend(self_controls(host.member.id, &addresses, &canaries, &mut token));
        if let Some(gateway) = setting.directory.networks.get(&host.member.network) {
            let gateway = IpAddr::V4(gateway.cidr.gateway());
            matrix.controls.push(link_control(host.member.id, gateway, host.member.name.as_str()));
        }
    }
    for foreign in setting.foreign {
        matrix.controls.push(link_control(foreign.machine, foreign.gateway, &foreign.name));
        let canaries = free_canaries(&foreign.listening);
        matrix.controls.extend(self_controls(foreign.machine, &foreign.addresses, &canaries, &mut token));
    }
    for host in setting.hosts.iter().filter(|host| host.sends && host.listening.is_some()) {
        let controls = matrix.controls.iter().filter(|control| control.machine == host.member.id).count();
        let mut tries = Tries::new(setting, host, &mut token);
        tries.everything();
        let mut checks = tries.checks;
        let room = MOST_ATTEMPTS.saturating_sub(controls);
        let left_out = checks.len().saturating_sub(room);
        checks.truncate(room);
        if left_out > 0 {
            let name = host.name();
            matrix.gaps.push(format!("{name} has more flows to try than one probe makes: {left_out} were left out"));
        }
        matrix.checks.append(&mut checks);
    }
    matrix
}

/// One place in a machine at which a token can arrive: protocol, port, whether the port was chosen for the audit, and
/// what tells.
type CanaryAt = (Protocol, Option<u16>, bool, Canary);

/// The canaries of a machine, by what its probe says.
fn canaries(listening: &Listening) -> Vec<CanaryAt> {
    let told = |holder: &Holder, seen: bool| match holder {
        Holder::Probe => Some(Canary::Token),
        // What arrives at somebody else's socket is seen all the same, but of a connection only its handshake.
        Holder::Service if seen => Some(Canary::Token),
        Holder::Service => Some(Canary::Service),
        Holder::Nobody => None,
    };
    let tcp = listening
        .tcp
        .iter()
        .filter_map(|(port, holder)| told(holder, false).map(|canary| (Protocol::Tcp, Some(*port), false, canary)));
    // A datagram to a service that nobody sees come in proves nothing.
    let udp = listening.udp.iter().filter_map(|(port, holder)| {
        let canary = told(holder, listening.sees_all).filter(|canary| *canary == Canary::Token)?;
        Some((Protocol::Udp, Some(*port), false, canary))
    });
    let mut all: Vec<CanaryAt> = tcp.chain(udp).collect();
    all.extend(free_canaries(listening));
    all
}

/// The ports of a machine at which nothing can tell whether a flow arrived.
fn blind_spots(host: &Host, listening: &Listening) -> Vec<String> {
    let name = host.name();
    let mut found = Vec::new();
    for (protocol, ports, seen) in [("tcp", &listening.tcp, true), ("udp", &listening.udp, listening.sees_all)] {
        for (port, holder) in ports {
            match holder {
                Holder::Service if !seen => found.push(format!(
                    "{protocol}/{port} of {name} belongs to a service, and the probe cannot see what arrives there"
                )),
                Holder::Nobody => found.push(format!("the probe in {name} could not listen on {protocol}/{port}")),
                _ => {}
            }
        }
    }
    if listening.free_tcp.is_none() || listening.free_udp.is_none() {
        let why = listening.problems.first().map_or("it does not say why", String::as_str);
        found.push(format!("the probe in {name} could not listen on ports of its own: {why}"));
    }
    found
}

fn free_canaries(listening: &Listening) -> Vec<CanaryAt> {
    let tcp = listening.free_tcp.map(|port| (Protocol::Tcp, Some(port), true, Canary::Token));
    let udp = listening.free_udp.map(|port| (Protocol::Udp, Some(port), true, Canary::Token));
    // Without a view of what comes in, the kernel's own answer tells.
    let echo = if listening.sees_all { Canary::Token } else { Canary::Service };
    [tcp, udp, Some((Protocol::Icmp, None, false, echo))].into_iter().flatten().collect()
}

fn self_controls(
    machine: MemberId,
    addresses: &[IpAddr],
    canaries: &[CanaryAt],
    token: &mut impl FnMut() -> Token,
) -> Vec<SelfControl> {
    let mut controls = Vec::new();
    for address in addresses {
        for (protocol, port, _, _) in canaries {
            let attempt = attempt(*address, *protocol, *port, token());
            controls.push(SelfControl { machine, at: At::Machine(machine, *address, *protocol, *port), attempt });
        }
    }
    controls
}

/// A machine asks its network's resolver for its own name: what every link carries.
fn link_control(machine: MemberId, gateway: IpAddr, name: &str) -> SelfControl {
    let attempt = Attempt::Lookup { server: (gateway, DNS).into(), name: format!("{name}.vm.internal") };
    SelfControl { machine, at: At::Resolver, attempt }
}

fn attempt(to: IpAddr, protocol: Protocol, port: Option<u16>, token: Token) -> Attempt {
    match (protocol, port) {
        (Protocol::Udp, Some(port)) => Attempt::Udp { to: (to, port).into(), token },
        (Protocol::Tcp, Some(port)) => Attempt::Tcp { to: (to, port).into(), token },
        _ => Attempt::Icmp { to, token },
    }
}

/// The ports at which the target is worth trying: what it declares, and where a rule about it begins.
fn fixed_ports(policy: &Policy, host: &Host) -> (BTreeSet<u16>, BTreeSet<u16>) {
    let declared = host.ports.iter().map(|port| match port.protocol {
        Declared::Udp => (Protocol::Udp, port.port),
        Declared::Tcp | Declared::Http | Declared::Https => (Protocol::Tcp, port.port),
    });
    let ruled = policy.rules().flat_map(|(rule, _)| {
        let about = matches!(&rule.to, Target::Inside(subject) if host.member.is_meant_by(subject));
        rule.ports.iter().filter(move |_| about).map(|ports| (ports.protocol, ports.range.first.max(1)))
    });
    let (mut tcp, mut udp) = (BTreeSet::new(), BTreeSet::new());
    for (protocol, port) in declared.chain(ruled) {
        match protocol {
            Protocol::Tcp if tcp.len() < MOST_TCP => drop(tcp.insert(port)),
            Protocol::Udp if udp.len() < MOST_UDP => drop(udp.insert(port)),
            _ => {}
        }
    }
    (tcp, udp)
}

/// The flows of one sender.
struct Tries<'a, T> {
    setting: &'a Setting<'a>,
    host: &'a Host,
    policy: Sender<'a>,
    token: &'a mut T,
    checks: Vec<Check>,
}

impl<'a, T: FnMut() -> Token> Tries<'a, T> {
    fn new(setting: &'a Setting<'a>, host: &'a Host, token: &'a mut T) -> Self {
        let policy = Sender::new(setting.policy, setting.directory, &host.member, setting.now);
        Self { setting, host, policy, token, checks: Vec::new() }
    }

    fn everything(&mut self) {
        // What matters most comes first, so that it is not left out where there is too much.
        self.host_itself();
        self.metadata();
        self.outside();
        self.names();
        for foreign in self.setting.foreign {
            self.foreign(foreign);
        }
        let own = &self.host.member;
        let (near, far): (Vec<&Host>, Vec<&Host>) = self
            .setting
            .hosts
            .iter()
            .filter(|target| target.member.id != own.id)
            .partition(|target| target.member.network == own.network);
        near.into_iter().for_each(|target| self.neighbour(target));
        far.into_iter().for_each(|target| self.elsewhere(target));
    }

    fn neighbour(&mut self, target: &'a Host) {
        let Some(listening) = &target.listening else { return };
        for (protocol, port, free, canary) in canaries(listening) {
            let fixed = IpAddr::V4(target.member.ipv4);
            self.member(target, fixed, protocol, port, free, canary);
            // The same rules hold for both families; one flow of each kind shows that they do.
            if free || protocol == Protocol::Icmp {
                self.member(target, target.member.ipv6.into(), protocol, port, free, canary);
            }
        }
    }

    fn elsewhere(&mut self, target: &'a Host) {
        let Some(listening) = &target.listening else { return };
        let all = canaries(listening);
        let to = Destination::Member(&target.member);
        let linked = all.iter().any(|(protocol, port, ..)| self.policy.judge(to, *protocol, *port).allowed);
        let mut fixed = 0;
        for (protocol, port, free, canary) in all {
            let wanted = linked
                || match (protocol, free) {
                    (Protocol::Tcp, true) => true,
                    (Protocol::Tcp, false) => {
                        fixed += 1;
                        fixed <= MOST_ACROSS
                    }
                    _ => false,
                };
            if wanted {
                self.member(target, target.member.ipv6.into(), protocol, port, free, canary);
            }
            if wanted && free && protocol == Protocol::Tcp {
                self.by_ipv4(target, port, canary);
            }
        }
    }

    /// The IPv4 address of a machine in another network: here it may mean somebody else.
    fn by_ipv4(&mut self, target: &'a Host, port: Option<u16>, canary: Canary) {
        let address = target.member.ipv4;
        let networks = &self.setting.directory.networks;
        let Some(own) = networks.get(&self.host.member.network) else { return };
        let third = networks.iter().any(|(name, entry)| {
            *name != self.host.member.network && *name != target.member.network && entry.cidr.contains(address)
        });
        if own.cidr.contains(address) {
            let reason = format!("in {} the address means its own range", self.host.member.network);
            let expected = Expected { allowed: false, rule: None, reason };
            self.push_member(target, address.into(), Protocol::Tcp, port, true, Canary::TokenOnly, expected);
        } else if !third {
            let expected = self.judge(Destination::Address(address.into()), Protocol::Tcp, port);
            self.push_member(target, address.into(), Protocol::Tcp, port, true, canary, expected);
        }
    }

    fn member(&mut self, target: &Host, to: IpAddr, protocol: Protocol, port: Option<u16>, free: bool, canary: Canary) {
        let expected = self.judge(Destination::Member(&target.member), protocol, port);
        self.push_member(target, to, protocol, port, free, canary, expected);
    }

    #[expect(clippy::too_many_arguments, reason = "they are the fields of a check")]
    fn push_member(
        &mut self,
        target: &Host,
        to: IpAddr,
        protocol: Protocol,
        port: Option<u16>,
        free_port: bool,
        canary: Canary,
        expected: Expected,
    ) {
        let machine = target.member.id;
        let at = At::Machine(machine, to, protocol, port);
        let attempt = attempt(to, protocol, port, (self.token)());
        let (from, to) = (party(&self.host.member, to), party(&target.member, to));
        let sender = self.host.member.id;
        self.checks.push(Check { sender, from, to, protocol, port, free_port, expected, canary, at, attempt });
    }

    fn foreign(&mut self, target: &Foreign) {
        let expected = Expected {
            allowed: false,
            rule: None,
            reason: "it is a machine of another account, and no policy reaches across accounts".to_owned(),
        };
        let Some(port) = target.listening.free_tcp else { return };
        for address in &target.addresses {
            let at = At::Machine(target.machine, *address, Protocol::Tcp, Some(port));
            let to = Party::Foreign { account: target.account.clone(), address: *address };
            // An IPv4 address may mean a machine of the own network.
            let canary = if address.is_ipv4() { Canary::TokenOnly } else { Canary::Token };
            self.beyond(to, SocketAddr::from((*address, port)), true, canary, at, expected.clone());
        }
    }

    /// A TCP flow to what is no member.
    fn beyond(&mut self, to: Party, address: SocketAddr, free_port: bool, canary: Canary, at: At, expected: Expected) {
        let attempt = Attempt::Tcp { to: address, token: (self.token)() };
        self.checks.push(Check {
            sender: self.host.member.id,
            from: party(&self.host.member, address.ip()),
            to,
            protocol: Protocol::Tcp,
            port: Some(address.port()),
            free_port,
            expected,
            canary,
            at,
            attempt,
        });
    }

    fn host_itself(&mut self) {
        let expected = Expected {
            allowed: false,
            rule: Some("builtin:host".to_owned()),
            reason: "none of the host's own addresses is reachable from a network".to_owned(),
        };
        for (at, canary) in self.setting.host_canaries.iter().enumerate() {
            let to = match self.setting.host_named {
                true => Party::Host { address: canary.ip() },
                false => Party::Unnamed { what: format!("address {} of the host", at + 1) },
            };
            self.beyond(to, *canary, true, Canary::Token, At::Host(*canary), expected.clone());
        }
        let gateway = self.setting.directory.networks.get(&self.host.member.network);
        if let (Some(port), Some(network)) = (self.setting.api_port, gateway) {
            let gateway = IpAddr::V4(network.cidr.gateway());
            let expected = self.judge(Destination::Address(gateway), Protocol::Tcp, Some(port));
            let to = Party::Address { address: gateway, what: "the gateway, at the port of the host's API".to_owned() };
            self.beyond(to, SocketAddr::from((gateway, port)), false, Canary::Service, At::Api, expected);
        }
    }

    fn metadata(&mut self) {
        for address in METADATA.iter().filter_map(|text| text.parse::<IpAddr>().ok()) {
            let expected = self.judge(Destination::Address(address), Protocol::Udp, Some(METADATA_PORT));
            // Over TCP a reset could come from the very service; of a datagram the refusal says who refused.
            let attempt = Attempt::Udp { to: (address, METADATA_PORT).into(), token: (self.token)() };
            self.checks.push(Check {
                sender: self.host.member.id,
                from: party(&self.host.member, address),
                to: Party::Address { address, what: "cloud metadata".to_owned() },
                protocol: Protocol::Udp,
                port: Some(METADATA_PORT),
                free_port: false,
                expected,
                canary: Canary::Refusal,
                at: At::Nowhere,
                attempt,
            });
        }
    }

    fn outside(&mut self) {
        let gated = self.setting.directory.networks.get(&self.host.member.network);
        let open = gated.is_some_and(|network| network.egress == Egress::Open);
        for outside in self.setting.outside.iter().take(MOST_OUTSIDE) {
            let expected = self.judge(Destination::Address(outside.at.ip()), Protocol::Tcp, Some(outside.at.port()));
            // Of a resolver that answers only over UDP nothing can be told.
            if outside.at.port() == DNS && expected.allowed && !outside.reached {
                continue;
            }
            // A sealed network is shown to be sealed by the host's own canaries, too.
            if !outside.reached && !expected.allowed && !open {
                continue;
            }
            let what = outside.what.clone();
            let to = match outside.named {
                true => Party::Address { address: outside.at.ip(), what },
                false => Party::Unnamed { what },
            };
            self.beyond(to, outside.at, false, Canary::Outside, At::Outside(outside.at), expected);
        }
    }

    fn names(&mut self) {
        let Some(network) = self.setting.directory.networks.get(&self.host.member.network) else { return };
        // Where everything is open, names are those of the world, and prove nothing here.
        if network.egress == Egress::Open {
            return;
        }
        let server = SocketAddr::from((network.cidr.gateway(), DNS));
        let listed = self.setting.policy.allow.iter().filter(|rule| self.host.member.is_meant_by(&rule.from));
        let listed = listed.filter_map(|rule| match &rule.to {
            Target::Outside(HostPattern::Exact(name)) => Some(name.clone()),
            _ => None,
        });
        let mut names: Vec<HostName> = Vec::new();
        for name in listed {
            if names.len() < MOST_NAMES && !names.contains(&name) {
                names.push(name);
            }
        }
        names.extend(UNLISTED.parse::<HostName>());
        for name in names {
            // The resolver answers where any port is allowed: a question for addresses names none.
            let expected = self.judge(Destination::Name(&name), Protocol::Tcp, None);
            self.checks.push(Check {
                sender: self.host.member.id,
                from: party(&self.host.member, server.ip()),
                to: Party::Name { name: name.to_string() },
                protocol: Protocol::Tcp,
                port: None,
                free_port: false,
                expected,
                canary: Canary::Resolver,
                at: At::Resolver,
                attempt: Attempt::Lookup { server, name: name.to_string() },
            });
        }
    }

    fn judge(&self, to: Destination<'_>, protocol: Protocol, port: Option<u16>) -> Expected {
        let verdict = self.policy.judge(to, protocol, port);
        Expected {
            allowed: verdict.allowed,
            rule: verdict.rule.map(|rule| rule.as_str().to_owned()),
            reason: verdict.reason,
        }
    }
}

/// A member with its address of the family that is spoken.
fn party(member: &Member, spoken: IpAddr) -> Party {
    Party::Machine {
        id: member.id.to_string(),
        name: member.name.to_string(),
        network: member.network.to_string(),
        address: if spoken.is_ipv4() { member.ipv4.into() } else { member.ipv6.into() },
    }
}
