//! What comes in: who sends, where it may go at all, and what is for the gateway itself.

use warren_model::policy::NAMES_V4;

use super::refusing::chain;
use super::{Chain, Context};
use crate::firewall::Refusal;
use crate::firewall::shape::Scope;
use crate::sockets::{PROXY_PORT, TRANSPARENT_PORT};

/// The ports that the kernel takes for connections (`ip_local_port_range`), and those above.
const DIALERS: &str = "32768-65535";

pub(super) fn chains(context: &Context<'_>) -> Vec<Chain> {
    let mut all = vec![arriving(context), arriving6(context), arriving4(context), names(context)];
    all.push(to_gateway(context));
    if context.shape.tracks() {
        let spec = context.spec;
        all.push(
            Chain::hooked("answering", "filter hook output priority raw; policy accept")
                .rule(format!("ip daddr {} notrack", spec.cidr))
                .rule(format!("ip6 daddr {} notrack", spec.cidr6)),
        );
    }
    all
}

fn arriving(context: &Context<'_>) -> Chain {
    let Context { spec, shape, uplink, .. } = context;
    Chain::hooked("arriving", "filter hook prerouting priority raw; policy drop")
        .rule("iifname . ether saddr . ip saddr @senders4 goto arriving4")
        .rule("iifname . ether saddr . ip6 saddr @senders6 goto arriving6")
        .rule("iifname \"lo\" accept")
        .rules_if(shape.outside.is_some(), [format!("iifname \"{uplink}\" accept")])
        .rules_if(
            shape.links,
            [
                format!("iifname . ip saddr @linked4 ip daddr {} accept", spec.cidr),
                format!("iifname . ip6 saddr @linked6 ip6 daddr {} accept", spec.cidr6),
            ],
        )
        .rule("# what every IPv6 host says when it comes up: nobody needs it, and it is no attack")
        .rule("icmpv6 type mld-listener-report drop")
        .rule("icmpv6 type mld-listener-done drop")
        .rule("icmpv6 type mld2-listener-report drop")
        .rule("icmpv6 type nd-router-solicit drop")
        .rule("ip6 saddr :: icmpv6 type nd-neighbor-solicit drop")
        .rule(format!("goto {}", chain(Refusal::Spoofed)))
}

fn arriving6(context: &Context<'_>) -> Chain {
    let spoofed = chain(Refusal::Spoofed);
    let spec = context.spec;
    let first = Chain::new("arriving6")
        .rule("# the router has fixed neighbours and asks nobody")
        .rule(format!("icmpv6 type nd-router-advert goto {spoofed}"))
        .rule(format!("icmpv6 type nd-neighbor-advert goto {spoofed}"))
        .rule(format!("icmpv6 type nd-redirect goto {spoofed}"));
    onward(context, first, "ip6", &spec.cidr6.to_string(), &spec.gateway6.to_string(), &spec.names6.to_string())
}

fn arriving4(context: &Context<'_>) -> Chain {
    let spec = context.spec;
    onward(context, Chain::new("arriving4"), "ip", &spec.cidr.to_string(), &spec.gateway4.to_string(), NAMES_V4)
}

/// Where a member's packet may go: before the routing table, which answers refusals only once a second.
fn onward(context: &Context<'_>, first: Chain, family: &str, cidr: &str, gateway: &str, names: &str) -> Chain {
    let shape = context.shape;
    let untracked = untracked(context);
    let checked = shape.inside != Scope::All;
    let onward = if checked {
        first.rule(format!("{family} daddr {gateway} notrack accept")).rule(format!("{family} daddr {cidr} accept"))
    } else {
        first.rule(format!("{family} daddr {cidr} {untracked}accept"))
    }
    .rule(format!("{family} daddr {names} goto names"));
    if shape.outside.is_some() {
        return onward.rule("accept");
    }
    let beyond = if family == "ip6" { "beyond6" } else { "beyond4" };
    onward
        .rules_if(shape.links, [format!("meta nfproto . {family} daddr @{beyond} accept")])
        .rules_if(family == "ip6", ["ip6 daddr fe80::/10 accept", "ip6 daddr ff02::/16 accept"])
        .rule(format!("goto {}", chain(Refusal::Egress)))
}

/// Addresses that stand for names outside: TCP goes to the transparent proxy, as long as one listens. Nothing else has a
/// way, so that whoever tries QUIC falls back to TCP at once.
fn names(context: &Context<'_>) -> Chain {
    let untracked = untracked(context);
    let tcp = |proto: &str, family: &str| {
        format!("meta nfproto {proto} meta l4proto tcp {untracked}tproxy {family} to :{TRANSPARENT_PORT} accept")
    };
    Chain::new("names").rule(tcp("ipv4", "ip")).rule(tcp("ipv6", "ip6")).rule(format!("goto {}", chain(Refusal::Names)))
}

fn untracked(context: &Context<'_>) -> &'static str {
    if context.shape.tracks() { "notrack " } else { "" }
}

fn to_gateway(context: &Context<'_>) -> Chain {
    let Context { spec, shape, uplink, .. } = context;
    let (gateway4, gateway6) = (spec.gateway4, spec.gateway6);
    let refused = chain(Refusal::Gateway);
    Chain::hooked("to_gateway", "filter hook input priority filter; policy drop")
        .rule("iifname \"lo\" accept")
        .rules_if(shape.outside.is_some(), [format!("iifname \"{uplink}\" drop")])
        .rule("icmpv6 type nd-neighbor-solicit accept")
        .rule(format!("meta pkttype != host meta l4proto udp goto {}", chain(Refusal::Egress)))
        .rule("meta pkttype != host drop")
        .rules_if(
            shape.links,
            [
                format!("ip saddr != {} goto {refused}", spec.cidr),
                format!("ip6 saddr != {} goto {refused}", spec.cidr6),
            ],
        )
        .rule(format!("ip daddr {NAMES_V4} meta l4proto tcp accept"))
        .rule(format!("ip6 daddr {} meta l4proto tcp accept", spec.names6))
        .rule(format!("ip daddr {gateway4} udp dport 53 accept"))
        .rule(format!("ip daddr {gateway4} tcp dport {{ 53, {PROXY_PORT} }} accept"))
        .rule("# what machines answer to connections that the edge makes; none of theirs begins here")
        .rule(format!("ip daddr {gateway4} tcp dport {DIALERS} tcp flags & (syn | ack) != syn accept"))
        .rule(format!("ip daddr {gateway4} icmp type echo-request accept"))
        .rule(format!("ip6 daddr {gateway6} udp dport 53 accept"))
        .rule(format!("ip6 daddr {gateway6} tcp dport {{ 53, {PROXY_PORT} }} accept"))
        .rule(format!("ip6 daddr {gateway6} icmpv6 type echo-request accept"))
        .rule(format!("goto {refused}"))
}
