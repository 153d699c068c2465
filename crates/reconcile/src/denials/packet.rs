//! What a packet that the kernel refused means.

use std::net::IpAddr;

use jiff::Timestamp;
use ulid::Ulid;
use warren_kernel::{DeniedPacket, Refusal, names};
use warren_model::denial::{Denial, Layer};
use warren_model::policy::{Destination, Flow, Protocol, RuleId, Verdict, evaluate, suggest};
use warren_model::{DenialId, InstallationId, MemberId, MemberNumber, NetworkNumber};

use crate::world::World;

/// The record of a refused packet; `None` when it is of nobody that is known any more.
pub(super) fn explain(world: &World, packet: &DeniedPacket, now: Timestamp) -> Option<Denial> {
    let network = world.desired.read().network_by_number(packet.network)?;
    let known = world.policy(network.account);
    let directory = &known.directory;
    let protocol = Protocol::of_number(packet.protocol);
    let sender = directory.at(&network.name, packet.source);
    let port = packet.destination_port.filter(|_| protocol.has_ports());
    let denial = |layer, verdict: Verdict, member, name, suggested_rule| Denial {
        id: DenialId::from_ulid(Ulid::generate()),
        time: now,
        account: network.account,
        network: network.id,
        member,
        to: Some(packet.destination),
        name,
        port,
        protocol,
        layer,
        rule: verdict.rule,
        reason: verdict.reason,
        suggested_rule,
        count: 1,
    };
    let forged = packet.kind == Refusal::Spoofed;
    let sender = sender.filter(|_| !forged);
    let Some(sender) = sender else {
        // The address says nothing about whose packet it is; the way that it came does.
        let number = came_from(&world.installation.id, packet);
        let mut members = directory.members.iter().filter(|member| member.network == network.name);
        let member = members.find(|member| Some(member.number) == number).map(|member| member.id);
        let way = if matches!(member, Some(MemberId::Session(_))) { "session" } else { "link" };
        let verdict = builtin("spoofing", format!("{} is not the address of the {way} it came by", packet.source));
        return Some(denial(Layer::Network, verdict, member, None, None));
    };
    let member = Some(sender.id);
    let rules = known.rules(network.id);
    let linked = |number: &NetworkNumber| {
        let name = directory.networks.iter().find(|(_, entry)| entry.number == *number).map(|(name, _)| name)?;
        directory.at(name, packet.destination)
    };
    let by_link = || {
        let mut links = rules.links.iter().filter(|(_, to)| to.iter().any(|range| range.contains(&packet.destination)));
        links.find_map(|(number, _)| linked(number))
    };
    let inside = directory
        .at(&network.name, packet.destination)
        .or_else(by_link)
        .or_else(|| directory.members.iter().find(|member| IpAddr::V6(member.ipv6) == packet.destination));
    let name = inside.map(|member| format!("{}/{}", member.network, member.name));
    if is_own(world, &network, packet.destination) {
        let verdict = builtin("host", "the gateway answers DNS, pings and the proxy's port only".to_owned());
        return Some(denial(Layer::Network, verdict, member, name, None));
    }
    let to = inside.map_or(Destination::Address(packet.destination), Destination::Member);
    let flow = Flow { from: sender, to, protocol, port };
    let mut verdict = evaluate(&known.policy, directory, &flow, now);
    let is_missing = !verdict.allowed && verdict.rule.is_none();
    if verdict.allowed {
        // The policy has changed since, or this is the answer to a flow that is no longer allowed.
        verdict = Verdict { allowed: false, rule: None, reason: "it belongs to no flow that is allowed".to_owned() };
    }
    // A rule that forbids would still forbid, and what is allowed by now needs none.
    let suggested = if is_missing { suggest(&flow) } else { None };
    let in_range = match packet.destination {
        IpAddr::V4(four) => network.cidr.contains(four),
        IpAddr::V6(six) => world.installation.ula.range().contains(&six),
    };
    let layer = if inside.is_some() || in_range { Layer::Network } else { Layer::Egress };
    Some(denial(layer, verdict, member, name, suggested))
}

/// Who sent the packet: whose link it came by, or whose MAC it had on the device of all operators. There it is the edge
/// that writes it, and not the operator.
fn came_from(installation: &InstallationId, packet: &DeniedPacket) -> Option<MemberNumber> {
    let link = packet.inbound.as_deref()?;
    if link == names::tunnel_link(installation) {
        packet.mac?.member()
    } else {
        names::parse_member_link(installation, link)
    }
}

fn builtin(name: &str, reason: String) -> Verdict {
    Verdict { allowed: false, rule: Some(RuleId::builtin(name)), reason }
}

fn is_own(world: &World, network: &warren_model::record::Network, address: IpAddr) -> bool {
    let gateway6 = world.installation.ula.gateway(network.number);
    address == IpAddr::V4(network.cidr.gateway()) || address == IpAddr::V6(gateway6)
}

#[cfg(test)]
mod tests {
    use warren_model::MacAddress;

    use super::*;

    #[test]
    fn a_forged_packet_is_of_whom_it_came_from() {
        let installation: InstallationId = "abcde".parse().unwrap();
        let [machine, operator] = [2, 9].map(|number| MemberNumber::new(number).unwrap());
        let (link, tunnel) = (names::member_link(&installation, machine), names::tunnel_link(&installation));
        let mac = Some(MacAddress::of_member(operator));
        let from = |inbound: Option<&str>, mac| {
            let packet = DeniedPacket {
                network: NetworkNumber::FIRST,
                kind: Refusal::Spoofed,
                source: [10, 0, 7, 7].into(),
                destination: [10, 0, 0, 3].into(),
                protocol: 1,
                source_port: None,
                destination_port: None,
                inbound: inbound.map(str::to_owned),
                mac,
            };
            came_from(&installation, &packet)
        };
        assert_eq!(from(Some(&tunnel), mac), Some(operator));
        // A machine may write any MAC; its link is its own.
        assert_eq!(from(Some(&link), mac), Some(machine));
        for (inbound, mac) in [(Some(tunnel.as_str()), None), (Some("eth0"), mac), (None, mac)] {
            assert_eq!(from(inbound, mac), None, "{inbound:?}");
        }
        assert_eq!(from(Some(&tunnel), Some(MacAddress::ROUTER)), None);
    }
}
