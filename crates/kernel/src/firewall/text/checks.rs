//! What policy says about one packet.
//!
//! A flow is judged by who began it, with which protocol, to which port, and every packet of it anew, in both
//! directions: so a flow that is no longer allowed ends with its next packet, and nothing has to be flushed. Connection
//! tracking only knows who began. A packet that begins a TCP connection is judged by itself, whatever is known. A flow
//! that was judged under the policy in force has the mark that says so, and is not looked up again.
//!
//! TCP that is not known began before anything was tracked here. Then ports tell who is the client: an operating system
//! takes its own from 32768 on (`ip_local_port_range`), and services are below. Where both ports are above, the packet
//! passes if either direction is allowed; where both are below, which only a client that chose its port itself has, only
//! if both are. Every other unknown packet begins something.

use warren_model::policy::compile::Default as ByDefault;

use super::Chain;
use super::refusing::chain;
use crate::firewall::Refusal;
use crate::firewall::item::Field;

/// A packet with this begins a TCP connection.
const BEGINS: &str = "tcp flags & (fin | syn | rst | ack) == syn";
/// The protocols that are told apart.
const KNOWN: &str = "{ tcp, udp, icmp, ipv6-icmp }";
/// The flow of a packet was judged under the policy in force, and passes.
pub(super) const JUDGED: &str = "ct state established ct mark @current";
/// Where an operating system's own choice of ports begins.
const EPHEMERAL: u16 = 32768;

/// The chain `{name}` and those that it needs. What is listed is the opposite of the default; what passes goes to the
/// chain `pass`, everything else to `refusal`.
pub(super) fn of_members(name: &str, default: ByDefault, pass: &str, refusal: Refusal) -> Vec<Chain> {
    let refuse = format!("goto {}", chain(refusal));
    let only = |view: &str| Chain::new(format!("{name}_{view}")).rule(format!("jump {name}_by_{view}")).rule(&refuse);
    let both = format!("{name}_both");
    let either_way = match default {
        ByDefault::Accept => both.clone(),
        // An answer would have to be allowed by itself.
        ByDefault::Refuse => format!("{name}_begins"),
    };
    // Conntrack takes an ICMP error for a part of the flow that it says it is about. Whoever sends one may have made that
    // up, so it is judged by its own addresses: as an answer to a flow that policy allows between them, or as any ICMP.
    let error = match default {
        ByDefault::Accept => format!("{name}_begins"),
        ByDefault::Refuse => format!("{name}_error"),
    };
    let mut all = vec![
        Chain::new(name)
            .rule(format!("{BEGINS} goto {name}_begins"))
            .rule(format!("{JUDGED} goto {name}_known"))
            .rule(format!("ct state related goto {error}"))
            .rule(format!("ct state invalid goto {name}_unknown"))
            .rule(format!("jump {name}_by_origin"))
            // An answer to what is not allowed may still be allowed for its own sake; of TCP that would be a new flow.
            .rule(format!("ct direction reply meta l4proto != tcp jump {name}_by_begins"))
            .rule(&refuse),
        // Nothing was written to such a packet that would have to be wiped off, and most go to a member.
        Chain::new(format!("{name}_known"))
            .rule("ip daddr @receivers4 accept")
            .rule("ip6 daddr @receivers6 accept")
            .rule(format!("goto {pass}")),
        Chain::new(format!("{name}_unknown"))
            .rule(format!("tcp sport < {EPHEMERAL} tcp dport >= {EPHEMERAL} goto {name}_answers"))
            .rule(format!("tcp sport >= {EPHEMERAL} tcp dport >= {EPHEMERAL} jump {name}_by_answers"))
            .rule(format!("tcp sport < {EPHEMERAL} tcp dport < {EPHEMERAL} goto {either_way}"))
            .rule(format!("goto {name}_begins")),
        only("begins"),
        only("answers"),
    ];
    let targets = Targets { maps: ["@targets4", "@targets6"], otherwise: None };
    all.push(judged(name, pass));
    all.extend(BY_ORIGIN.chains(name, targets, &Outcome::of(default, &format!("{name}_judged"))));
    for view in [&BY_PACKET, &BY_ANSWER] {
        all.extend(view.chains(name, targets, &Outcome::of(default, pass)));
    }
    if default == ByDefault::Refuse {
        all.push(Chain::new(error).rule(format!("jump {name}_by_error")).rule(format!("goto {name}_begins")));
        all.extend(BY_ERROR.chains(name, targets, &Outcome::of(default, pass)));
    }
    if default == ByDefault::Accept {
        all.push(
            Chain::new(&both)
                .rule(format!("jump {both}_by_begins"))
                .rule(format!("jump {both}_by_answers"))
                .rule(format!("goto {pass}")),
        );
        for view in [&BY_PACKET, &BY_ANSWER] {
            all.extend(view.chains(&both, targets, &Outcome { listed: refuse.clone(), other: None }));
        }
    }
    all
}

/// The chain `{name}_by_origin`: it goes on to `pass` or returns.
pub(super) fn of_outside(name: &str, default: ByDefault, pass: &str, otherwise: u32) -> Vec<Chain> {
    let targets = Targets { maps: ["@classes4", "@classes6"], otherwise: Some(otherwise) };
    let mut all = vec![judged(name, pass)];
    all.extend(BY_ORIGIN.chains(name, targets, &Outcome::of(default, &format!("{name}_judged"))));
    all
}

/// Marks the flow of what passes, if anything is current.
fn judged(name: &str, pass: &str) -> Chain {
    Chain::new(format!("{name}_judged")).rule("ct mark set meta nfproto map @generation").rule(format!("goto {pass}"))
}

/// Where the group is found that is sent to, by IPv4 and IPv6.
#[derive(Clone, Copy)]
struct Targets {
    maps: [&'static str; 2],
    /// The maps are of ranges; this is the group of what is in none.
    otherwise: Option<u32>,
}

/// What happens to what is listed, and to everything else: a verdict, or going back.
struct Outcome {
    listed: String,
    other: Option<String>,
}

impl Outcome {
    fn of(default: ByDefault, pass: &str) -> Self {
        let pass = format!("goto {pass}");
        match default {
            ByDefault::Accept => Self { listed: "return".to_owned(), other: Some(pass) },
            ByDefault::Refuse => Self { listed: pass, other: None },
        }
    }
}

/// Where a packet, or what is known of its flow, has what policy asks for.
struct View {
    name: &'static str,
    /// Who began, and to whom, by IPv4 and IPv6.
    addresses: [[&'static str; 2]; 2],
    /// What `port` may need in front.
    ported: &'static str,
    protocol: &'static str,
    port: &'static str,
}

/// Of what conntrack knows.
const BY_ORIGIN: View = View {
    name: "origin",
    addresses: [["ct original ip saddr", "ct original ip daddr"], ["ct original ip6 saddr", "ct original ip6 daddr"]],
    // Nothing else has a flow with ports; nft asks for it to know what kind of number the port is.
    ported: "meta l4proto { tcp, udp, icmp, ipv6-icmp } ",
    protocol: "ct original protocol",
    port: "ct original proto-dst",
};

/// An ICMP error as the answer of whoever sends it to a flow that began with whom it is sent to.
const BY_ERROR: View = View { name: "error", addresses: BY_ANSWER.addresses, ..BY_ORIGIN };

const BY_PACKET: View = View {
    name: "begins",
    addresses: [["ip saddr", "ip daddr"], ["ip6 saddr", "ip6 daddr"]],
    ported: "",
    protocol: "meta l4proto",
    port: "th dport",
};

const BY_ANSWER: View = View {
    name: "answers",
    addresses: [["ip daddr", "ip saddr"], ["ip6 daddr", "ip6 saddr"]],
    port: "th sport",
    ..BY_PACKET
};

impl View {
    /// The chain `{name}_by_{view}`, and those that it needs. Whoever is in no group is not listed.
    fn chains(&self, name: &str, targets: Targets, outcome: &Outcome) -> Vec<Chain> {
        let listed = format!("{name}_listed_by_{}", self.name);
        let mut first = Chain::new(format!("{name}_by_{}", self.name));
        let mut classes = Vec::new();
        let views = self.addresses.iter().zip(["4", "6"]).zip(targets.maps);
        for (([source, target], family), map) in views {
            let marked = format!("meta mark set {source} map @sources{family}");
            let Some(class) = targets.otherwise else {
                first = first.rule(format!("{marked} meta priority set {target} map {map} goto {listed}"));
                continue;
            };
            let classed = format!("{name}_classed{family}");
            first = first.rule(format!("{marked} goto {classed}"));
            classes.push(
                Chain::new(classed)
                    .rule(format!("meta priority set {}", Field::Class(class)))
                    .rule(format!("meta priority set meta nfproto . {target} map {map}"))
                    .rule(format!("goto {listed}")),
            );
        }
        let mut all = vec![first.rules(outcome.other.clone())];
        all.append(&mut classes);
        all.push(self.lookups(listed, outcome));
        all
    }

    fn lookups(&self, name: String, outcome: &Outcome) -> Chain {
        const GROUPS: &str = "meta mark . meta priority";
        let View { ported, protocol, port, .. } = self;
        let Outcome { listed, other } = outcome;
        let chain = Chain::new(name)
            .rule(format!("{GROUPS} . {protocol} @talk {listed}"))
            .rule(format!("{ported}{GROUPS} . {protocol} . {port} @talk_ports {listed}"))
            .rule(format!("{ported}{GROUPS} . {protocol} . {port} @talk_ranges {listed}"));
        // A packet without a protocol that anybody could read is of another one.
        let unlisted = other.as_deref().unwrap_or("return");
        chain
            .rule(format!("{protocol} {KNOWN} {unlisted}"))
            .rule(format!("{GROUPS} @talk_other {listed}"))
            .rules(other.clone())
    }
}
