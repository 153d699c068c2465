//! The rules as text.
//!
//! A packet of a member meets, in this order: `arriving` (is it who it says it is: interface, MAC and address in one
//! lookup, which also counts it), the routing table, and then either `to_gateway` or `between`. In a sealed network
//! nothing tracks connections; in an open one only what leaves is tracked.

use std::collections::BTreeSet;
use std::fmt::Write;

use warren_model::policy::{GLOBAL_V6, NOT_GLOBAL_V4, NOT_GLOBAL_V6};
use warren_model::record::Egress;
use warren_model::{InstallationId, MacAddress};

use super::digest::CONSTANT_SETS;
use super::elements::{Listing, Set};
use super::{MemberSpec, Traffic};
use crate::host::transit;
use crate::spec::NetworkSpec;
use crate::{names, route::LINK_GROUP};

/// What is there before a load.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// The network whose chains and sets are there, complete and with nothing beside them.
    ///
    /// Then they stay, and only the rules in them are replaced. A new chain would meet packets with its policy, which
    /// is to drop, for as long as the transaction is prepared.
    pub(crate) skeleton: Option<Egress>,
    pub(crate) elements: Listing,
    pub(crate) spoofed: Traffic,
    pub(crate) flooded: Traffic,
    pub(crate) arp_spoofed: Traffic,
}

/// How fast one member may begin flows to the internet, and how many at once. Each takes a place in the connection
/// tables of the router and of the host until it times out, and those tables are everybody's.
const BEGINNING: &str = "limit rate over 200/second burst 1000 packets";

/// Who began flows of late: a family's set, the type of its keys, and where a packet has the key. An idle member's
/// allowance is whole again after five seconds, so forgetting it after ten gives nothing away. There is room for all
/// members, since whoever did not fit in would not be limited.
const BEGINNERS: [(&str, &str, &str); 2] =
    [("beginners4", "ipv4_addr", "ip saddr"), ("beginners6", "ipv6_addr", "ip6 saddr")];
const OF_BEGINNERS: &str = "size 65535; flags dynamic; timeout 10s;";

/// The whole content of a router namespace; loading it replaces whatever was there, in one transaction.
pub(crate) fn router(installation: &InstallationId, spec: &NetworkSpec, members: &[MemberSpec], kept: &Kept) -> String {
    let elements = |set| elements(installation, set, members, &kept.elements);
    let open = spec.egress == Egress::Open;
    let uplink = names::uplink(installation, spec.number);
    let (cidr4, cidr6) = (spec.cidr, spec.cidr6);
    let (gateway4, gateway6) = (spec.gateway4, spec.gateway6);
    let mut text = prelude(installation, spec.egress, members, kept);
    let _ = write!(
        text,
        "table inet {table} {{
	counter spoofed {{ {spoofed} }}
	# who may send, from where, under which address; counts everything that a member sends
	set senders4 {{ type ifname . ether_addr . ipv4_addr; counter; {senders4}}}
	set senders6 {{ type ifname . ether_addr . ipv6_addr; counter; {senders6}}}
	# who is here; counts what other members sent to it
	set receivers4 {{ type ipv4_addr; counter; {receivers4}}}
	set receivers6 {{ type ipv6_addr; counter; {receivers6}}}
",
        table = names::TABLE,
        spoofed = counter(kept.spoofed),
        senders4 = elements(Set::Senders4),
        senders6 = elements(Set::Senders6),
        receivers4 = elements(Set::Receivers4),
        receivers6 = elements(Set::Receivers6),
    );
    if open {
        for set in [Set::EgressSent4, Set::EgressReceived4] {
            push(&mut text, &format!("set {} {{ type ipv4_addr; counter; {}}}", set.name(), elements(set)));
        }
        for set in [Set::EgressSent6, Set::EgressReceived6] {
            push(&mut text, &format!("set {} {{ type ipv6_addr; counter; {}}}", set.name(), elements(set)));
        }
        push(&mut text, &format!("counter flooded {{ {} }}", counter(kept.flooded)));
        push(&mut text, "# who began flows to the internet of late, and how many");
        for (set, kind, _) in BEGINNERS {
            push(&mut text, &format!("set {set} {{ type {kind}; {OF_BEGINNERS} }}"));
        }
        text.push_str(&not_global());
    }
    push(&mut text, "chain arriving {");
    push(&mut text, "	type filter hook prerouting priority raw; policy drop;");
    if open {
        push(&mut text, &format!("	ip daddr {cidr4} notrack"));
        push(&mut text, &format!("	ip6 daddr {cidr6} notrack"));
    }
    // A sealed network refuses the outside before the routing table does, which answers only one packet a second.
    let known4 = if open { "accept" } else { "goto arriving4" };
    let _ = write!(
        text,
        "		iifname . ether saddr . ip saddr @senders4 {known4}
		iifname . ether saddr . ip6 saddr @senders6 goto arriving6
		iifname \"lo\" accept
"
    );
    if open {
        push(&mut text, &format!("	iifname \"{uplink}\" accept"));
    }
    text.push_str(
        "		# what every IPv6 host says when it comes up: nobody needs it, and it is no attack
		icmpv6 type mld-listener-report drop
		icmpv6 type mld-listener-done drop
		icmpv6 type mld2-listener-report drop
		icmpv6 type nd-router-solicit drop
		ip6 saddr :: icmpv6 type nd-neighbor-solicit drop
		counter name spoofed drop
	}
	chain arriving6 {
		# the router has fixed neighbours and asks nobody
		icmpv6 type nd-router-advert counter name spoofed drop
		icmpv6 type nd-neighbor-advert counter name spoofed drop
		icmpv6 type nd-redirect counter name spoofed drop
",
    );
    if open {
        push(&mut text, "	accept");
        push(&mut text, "}");
    } else {
        let _ = write!(
            text,
            "		ip6 daddr {cidr6} accept
		ip6 daddr fe80::/10 accept
		ip6 daddr ff02::/16 accept
		reject with icmpx admin-prohibited
	}}
	chain arriving4 {{
		ip daddr {cidr4} accept
		reject with icmpx admin-prohibited
	}}
"
        );
    }
    text.push_str(
        "	chain to_gateway {
		type filter hook input priority filter; policy drop;
		iifname \"lo\" accept
",
    );
    if open {
        push(&mut text, &format!("	iifname \"{uplink}\" drop"));
    }
    let _ = write!(
        text,
        "		icmpv6 type nd-neighbor-solicit accept
		meta pkttype != host drop
		ip daddr {gateway4} udp dport 53 accept
		ip daddr {gateway4} tcp dport 53 accept
		ip daddr {gateway4} icmp type echo-request accept
		ip6 daddr {gateway6} udp dport 53 accept
		ip6 daddr {gateway6} tcp dport 53 accept
		ip6 daddr {gateway6} icmpv6 type echo-request accept
		meta l4proto tcp reject with tcp reset
		reject with icmpx admin-prohibited
	}}
	chain between {{
		type filter hook forward priority filter; policy drop;
"
    );
    if open {
        push(&mut text, &format!("	iifname \"{uplink}\" goto from_internet"));
    }
    text.push_str(
        "		ip daddr @receivers4 accept
		ip6 daddr @receivers6 accept
",
    );
    if open {
        push(&mut text, &format!("	oifname \"{uplink}\" goto to_internet"));
    }
    text.push_str(
        "		reject with icmpx admin-prohibited
	}
",
    );
    if open {
        let _ = write!(
            text,
            "	chain to_internet {{
{refusals}		# what masquerade would not touch must not leave with its private source
		ct state invalid drop
		# what is not in the table yet and would come into it; not every packet that nobody answered
{beginnings}		ip saddr @egress_sent4 accept
		ip6 saddr @egress_sent6 accept
		drop
	}}
	chain from_internet {{
		ct state established ip daddr @egress_received4 accept
		ct state related ip daddr @egress_received4 accept
		ct state established ip6 daddr @egress_received6 accept
		ct state related ip6 daddr @egress_received6 accept
		drop
	}}
	chain answering {{
		type filter hook output priority raw; policy accept;
		ip daddr {cidr4} notrack
		ip6 daddr {cidr6} notrack
	}}
	chain leaving {{
		type nat hook postrouting priority srcnat; policy accept;
		oifname \"{uplink}\" masquerade
	}}
",
            refusals = refusals(),
            beginnings = beginnings(),
        );
    }
    let _ = write!(
        text,
        "}}
table arp {table} {{
	counter spoofed {{ {spoofed} }}
	set senders {{ type ifname . ether_addr . ether_addr . ipv4_addr; counter; {senders}}}
	chain arriving {{
		type filter hook input priority filter; policy drop;
		iifname . ether saddr . arp saddr ether . arp saddr ip @senders accept
		counter name spoofed drop
	}}
}}
",
        table = names::TABLE,
        spoofed = counter(kept.arp_spoofed),
        senders = elements(Set::ArpSenders),
    );
    text
}

/// Clears the way for the new rules, within their transaction.
fn prelude(installation: &InstallationId, egress: Egress, members: &[MemberSpec], kept: &Kept) -> String {
    let Some(before) = kept.skeleton else { return String::from("flush ruleset\n") };
    let table = names::TABLE;
    let mut text = format!("flush table inet {table}\nflush table arp {table}\n");
    let closing = before == Egress::Open && egress == Egress::Deny;
    if closing {
        for chain in ["to_internet", "from_internet", "answering", "leaving"] {
            let _ = writeln!(text, "delete chain inet {table} {chain}");
        }
        // Declared first, since a table that an earlier release loaded has none of them.
        for (set, kind, _) in BEGINNERS {
            let _ = writeln!(text, "add set inet {table} {set} {{ type {kind}; {OF_BEGINNERS} }}");
            let _ = writeln!(text, "delete set inet {table} {set}");
        }
        let _ = writeln!(text, "add counter inet {table} flooded\ndelete counter inet {table} flooded");
    }
    if before == Egress::Open {
        let action = if closing { "delete" } else { "flush" };
        for set in CONSTANT_SETS {
            let _ = writeln!(text, "{action} set inet {table} {set}");
        }
    }
    if before == Egress::Deny && egress == Egress::Open {
        let _ = writeln!(text, "delete chain inet {table} arriving4");
    }
    for set in Set::all(before) {
        let family = if *set == Set::ArpSenders { "arp" } else { "inet" };
        let wanted: BTreeSet<_> = members.iter().map(|member| set.key(installation, member)).collect();
        let strays = kept.elements.sets.get(set).is_some_and(|keys| keys.keys().any(|key| !wanted.contains(key)));
        if closing && !Set::all(egress).contains(set) {
            let _ = writeln!(text, "delete set {family} {table} {}", set.name());
        } else if strays {
            let _ = writeln!(text, "flush set {family} {table} {}", set.name());
        }
    }
    text
}

/// Warren's table in the host's namespace; loading it replaces the one that was there.
///
/// `closed4` and `closed6` say that Warren switched forwarding on for that family: then only Warren's own links gain
/// by it. Links of all installations share a device group, so that one does not cut off the other.
pub(crate) fn host(
    installation: &InstallationId,
    ula: &warren_model::UlaPrefix,
    closed4: bool,
    closed6: bool,
) -> String {
    let table = names::host_table(installation);
    let uplinks = format!("\"{}*\"", names::uplink_prefix(installation));
    let (transit4, transit6) = (transit::range4(installation), transit::range6(ula));
    let mut text = format!(
        "table inet {table} {{}}
delete table inet {table}
table inet {table} {{
{not_global}	chain input {{
		type filter hook input priority filter; policy accept;
		# none of the host's own addresses is reachable from a network, not even its public ones
		iifname {uplinks} reject with icmpx admin-prohibited
	}}
	chain forward {{
		type filter hook forward priority filter; policy accept;
		iifname {uplinks} goto from_network
		oifname {uplinks} goto to_network
",
        not_global = not_global(),
    );
    for (family, closed) in [("ipv4", closed4), ("ipv6", closed6)] {
        if closed {
            push(&mut text, &format!("	meta nfproto {family} iifgroup != {LINK_GROUP} oifgroup != {LINK_GROUP} drop"));
        }
    }
    let _ = write!(
        text,
        "	}}
	chain from_network {{
		oifname {uplinks} drop
{refusals}		ct state invalid drop
		ip saddr != {transit4} drop
		ip6 saddr != {transit6} drop
		# the way out may have a smaller MTU than the networks, and not everybody answers with its size
		tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
		accept
	}}
	chain to_network {{
		ct state established accept
		ct state related accept
		drop
	}}
	chain leaving {{
		type nat hook postrouting priority srcnat; policy accept;
		iifname {uplinks} masquerade
	}}
}}
",
        refusals = refusals(),
    );
    text
}

fn not_global() -> String {
    format!(
        "	# everything but the public internet (RFC 6890 and the IANA registries)
	set not_global4 {{ type ipv4_addr; flags interval; elements = {{ {} }} }}
	set not_global6 {{ type ipv6_addr; flags interval; elements = {{ {} }} }}
",
        NOT_GLOBAL_V4.join(", "),
        NOT_GLOBAL_V6.join(", "),
    )
}

fn refusals() -> String {
    format!(
        "		ip daddr @not_global4 reject with icmpx admin-prohibited
		ip6 daddr != {GLOBAL_V6} reject with icmpx admin-prohibited
		ip6 daddr @not_global6 reject with icmpx admin-prohibited
"
    )
}

fn beginnings() -> String {
    BEGINNERS
        .map(|(set, _, key)| {
            format!(
                "		ct state new ct status ! confirmed update @{set} {{ {key} {BEGINNING} }} counter name flooded drop\n"
            )
        })
        .concat()
}

fn elements(installation: &InstallationId, set: Set, members: &[MemberSpec], kept: &Listing) -> String {
    if members.is_empty() {
        return String::new();
    }
    let mut text = String::from("elements = {");
    for (position, member) in members.iter().enumerate() {
        text.push_str(if position == 0 { "\n\t\t" } else { ",\n\t\t" });
        let MemberSpec { number, ipv4, ipv6 } = member;
        let link = names::member_link(installation, *number);
        let mac = MacAddress::of_member(*number);
        let _ = match set {
            Set::Senders4 => write!(text, "\"{link}\" . {mac} . {ipv4}"),
            Set::Senders6 => write!(text, "\"{link}\" . {mac} . {ipv6}"),
            Set::ArpSenders => write!(text, "\"{link}\" . {mac} . {mac} . {ipv4}"),
            Set::Receivers4 | Set::EgressSent4 | Set::EgressReceived4 => write!(text, "{ipv4}"),
            Set::Receivers6 | Set::EgressSent6 | Set::EgressReceived6 => write!(text, "{ipv6}"),
        };
        let traffic = kept.traffic(set, &set.key(installation, member));
        if traffic != Traffic::default() {
            let _ = write!(text, " counter {}", counter(traffic));
        }
    }
    text.push_str("\n\t} ");
    text
}

fn counter(traffic: Traffic) -> String {
    format!("packets {} bytes {}", traffic.packets, traffic.bytes)
}

fn push(text: &mut String, line: &str) {
    text.push('\t');
    text.push_str(line);
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_model::{MemberNumber, NetworkNumber, UlaPrefix};

    fn spec(egress: Egress) -> (InstallationId, UlaPrefix, NetworkSpec, Vec<MemberSpec>) {
        let ula = UlaPrefix::from_random([1, 2, 3, 4, 5]);
        let number = NetworkNumber::new(7).unwrap();
        let cidr: warren_model::NetworkCidr = "10.0.0.0/16".parse().unwrap();
        let spec = NetworkSpec {
            number,
            gateway4: cidr.gateway(),
            gateway6: ula.gateway(number),
            cidr,
            cidr6: ula.network(number),
            egress,
        };
        let members = [2, 3].map(|n| {
            let number = MemberNumber::new(n).unwrap();
            MemberSpec { number, ipv4: [10, 0, 1, n as u8].into(), ipv6: ula.member(spec.number, number) }
        });
        ("abcde".parse().unwrap(), ula, spec, members.to_vec())
    }

    #[test]
    fn a_sealed_network_has_these_rules() {
        let (installation, _, spec, members) = spec(Egress::Deny);
        insta::assert_snapshot!(router(&installation, &spec, &members, &Kept::default()));
    }

    #[test]
    fn an_open_network_has_these_rules() {
        let (installation, _, spec, members) = spec(Egress::Open);
        let mut kept = Kept { spoofed: Traffic { packets: 3, bytes: 120 }, ..Kept::default() };
        let key = Set::Senders4.key(&installation, &members[1]);
        let counted = Traffic { packets: 9, bytes: 900 };
        kept.elements.sets.entry(Set::Senders4).or_default().insert(key, counted);
        insta::assert_snapshot!(router(&installation, &spec, &members, &kept));
    }

    #[test]
    fn a_reload_replaces_rules_and_leaves_chains_and_sets() {
        let (installation, _, spec, members) = spec(Egress::Deny);
        let kept = Kept { skeleton: Some(Egress::Open), ..Kept::default() };
        let text = router(&installation, &spec, &members, &kept);
        insta::assert_snapshot!(text.split("table inet warren {").next().unwrap());
    }

    #[test]
    fn the_host_has_these_rules() {
        let (installation, ula, ..) = spec(Egress::Open);
        insta::assert_snapshot!(host(&installation, &ula, true, false));
    }
}
