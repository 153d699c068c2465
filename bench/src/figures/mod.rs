//! The figures. To add one, write a file like the others, and name it here and in [`Name`].

mod add_member;
mod audit;
mod create;
mod exec;
mod ingress;
mod names;
mod policy;
mod proxy;
mod round_trip;
mod session;
mod throughput;
mod token;
mod tunnel;

use crate::ingresses::{self, Protocol};
use crate::interrupt;
use crate::options::{Name, Options};
use crate::proxies::Kind;
use crate::report::Report;
use crate::server::Server;
use crate::tunnels;
use crate::wires::{DataPlane, Network, RawPair};

/// Members of the large network.
const MANY: usize = 1000;

/// Measures what is asked for. A figure that cannot be measured does not keep the others from being measured.
pub fn measure(options: &Options, report: &mut Report) {
    let wants = |names: &[Name]| names.iter().any(|name| options.wants(*name));
    // The large network comes last: its removal keeps the kernel busy for seconds.
    let parts: [(&str, &[Name], Part); 9] = [
        ("machines", &[Name::Create, Name::Exec, Name::Token], machines),
        ("two members", &[Name::Throughput1, Name::Throughput4, Name::RoundTrip], two_members),
        (
            "the proxy",
            &[Name::ProxyRelay, Name::ProxyHaproxy, Name::ProxySquid, Name::ProxyConnect, Name::ProxyRevocation],
            proxied,
        ),
        (
            "the tunnel",
            &[Name::TunnelWireguardGo, Name::TunnelGotatun, Name::TunnelMemory, Name::TunnelHandshakes],
            tunnelled,
        ),
        ("sessions", &[Name::SessionOpen, Name::SessionMemory], sessions),
        (
            "the ingress",
            &[Name::IngressHaproxy, Name::IngressCaddy, Name::IngressH2Haproxy, Name::IngressH2Caddy],
            published,
        ),
        ("an audit", &[Name::Audit], audited),
        ("10,000 rules", &[Name::PolicyThroughput, Name::PolicyRoundTrip, Name::PolicyChange], many_rules),
        ("a network of 1,000", &[Name::RoundTrip1000, Name::AddMember, Name::Names], many_members),
    ];
    for (what, names, part) in parts {
        if wants(names)
            && !interrupt::happened()
            && let Err(error) = part(options, report)
        {
            report.fail(what, &error);
        }
    }
    if interrupt::happened() {
        report.fail("the rest", &anyhow::anyhow!("interrupted"));
    }
}

type Part = fn(&Options, &mut Report) -> anyhow::Result<()>;

/// Figures of the API, each with the same server.
fn machines(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("starting a server");
    let server = Server::start(options)?;
    let mut client = server.client()?;
    if options.wants(Name::Create) {
        add(report, "create to first exec", create::measure(options, &server, &mut client));
    }
    if options.wants(Name::Exec) {
        add(report, "exec of true", exec::measure(options, &mut client));
    }
    if options.wants(Name::Token) {
        add(report, "checking a token", token::measure(options, &server, &mut client));
    }
    Ok(())
}

fn two_members(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let plane = DataPlane::new()?;
    let (raw, network) = (RawPair::new()?, plane.network(1, 2)?);
    for (name, streams) in [(Name::Throughput1, 1), (Name::Throughput4, 4)] {
        if options.wants(name) {
            add(report, "throughput", throughput::measure(options, streams, &raw, &network));
        }
    }
    if options.wants(Name::RoundTrip) {
        add(report, "1-byte round trip", round_trip::measure(options, &raw, &network));
    }
    Ok(())
}

fn proxied(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let world = proxy::World::new(options)?;
    for (name, kind) in
        [(Name::ProxyRelay, Kind::Relay), (Name::ProxyHaproxy, Kind::Haproxy), (Name::ProxySquid, Kind::Squid)]
    {
        if options.wants(name) {
            add(report, &format!("throughput against {kind:?}"), proxy::measure_throughput(options, &world, kind));
        }
    }
    if options.wants(Name::ProxyConnect) {
        add(report, "connecting through the proxy", proxy::measure_connect(options, &world));
    }
    if options.wants(Name::ProxyRevocation) {
        add(report, "cutting proxied connections", proxy::measure_revocation(options, &world));
    }
    Ok(())
}

fn tunnelled(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    for (name, kind) in
        [(Name::TunnelWireguardGo, tunnels::Kind::WireguardGo), (Name::TunnelGotatun, tunnels::Kind::Gotatun)]
    {
        if options.wants(name) {
            add(report, &format!("throughput against {kind:?}"), tunnel::measure_throughput(options, kind));
        }
    }
    if options.wants(Name::TunnelMemory) {
        add(report, "memory of sessions", tunnel::measure_memory(options));
    }
    if options.wants(Name::TunnelHandshakes) {
        add(report, "handshakes", tunnel::measure_handshakes(options));
    }
    Ok(())
}

/// Each with a server of its own.
fn sessions(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    if options.wants(Name::SessionOpen) {
        add(report, "opening sessions", session::measure_open(options));
    }
    if options.wants(Name::SessionMemory) {
        add(report, "memory of sessions of a server", session::measure_memory(options));
    }
    Ok(())
}

fn published(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let world = ingresses::World::new()?;
    for (name, kind, protocol) in [
        (Name::IngressHaproxy, ingresses::Kind::Haproxy, Protocol::Http1),
        (Name::IngressCaddy, ingresses::Kind::Caddy, Protocol::Http1),
        (Name::IngressH2Haproxy, ingresses::Kind::Haproxy, Protocol::Http2),
        (Name::IngressH2Caddy, ingresses::Kind::Caddy, Protocol::Http2),
    ] {
        if options.wants(name) {
            match ingress::measure(options, &world, kind, protocol) {
                Ok(rows) => rows.into_iter().for_each(|row| report.add(row)),
                Err(error) => report.fail(format!("the ingress against {kind:?} by {protocol:?}"), &error),
            }
        }
    }
    Ok(())
}

fn audited(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    // Of its own: an audit is about every machine that there is.
    let server = Server::start(options)?;
    let mut client = server.client()?;
    add(report, "an audit", audit::measure(options, &mut client));
    eprintln!("removing the machines");
    Ok(())
}

fn many_members(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let plane = DataPlane::new()?;
    eprintln!("making a network of {MANY} members");
    let mut large = plane.network(2, MANY)?;
    if options.wants(Name::RoundTrip1000) {
        let row = plane.network(1, 2).and_then(|small: Network| round_trip::measure_sizes(options, &large, &small));
        add(report, "round trip among 1,000", row);
    }
    if options.wants(Name::Names) {
        add(report, ".internal queries", names::measure(options, &large));
    }
    if options.wants(Name::AddMember) {
        add(report, "adding a member", add_member::measure(options, &mut large));
    }
    eprintln!("removing the network of {MANY} members");
    Ok(())
}

fn many_rules(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let plane = DataPlane::new()?;
    eprintln!("making two networks of {MANY} members");
    let without = plane.network(1, MANY)?;
    let mut with = plane.network(2, MANY)?;
    let members: Vec<_> = with.members.iter().map(|(member, _)| member.clone()).collect();
    with.spec.rules = std::sync::Arc::new(policy::rules(&with, &members)?);
    with.kernel.apply_policy(&with.spec, &members)?;
    if options.wants(Name::PolicyThroughput) {
        add(report, "throughput under a policy", policy::measure_throughput(options, &with, &without));
    }
    if options.wants(Name::PolicyRoundTrip) {
        add(report, "round trip under a policy", policy::measure_round_trip(options, &with, &without));
    }
    if options.wants(Name::PolicyChange) {
        match policy::measure_change(options, &mut with) {
            Ok(rows) => rows.into_iter().for_each(|row| report.add(row)),
            Err(error) => report.fail("a change of policy", &error),
        }
    }
    eprintln!("removing two networks of {MANY} members");
    Ok(())
}

fn add(report: &mut Report, what: &str, row: anyhow::Result<crate::report::Row>) {
    match row {
        Ok(row) => report.add(row),
        Err(error) => report.fail(what, &error),
    }
}
