//! Warren's table in the host's namespace.

use std::fmt::Write;

use warren_model::policy::GLOBAL_V6;
use warren_model::{InstallationId, UlaPrefix};

use super::not_global;
use crate::host::exits::Exits;
use crate::host::transit;
use crate::{names, route::LINK_GROUP};

/// How many flows of one network the host tracks at once: 32 networks have to use that up before its table is full, by
/// the default size on a host with more than 4 GiB (the kernel's `nf_conntrack-sysctl.rst`). The kernel looks through a
/// network's flows up to once a tick, so that much more would cost too much. Rules that are loaded anew count anew.
const FLOWS: u32 = 8192;

/// Loading it replaces the one that was there.
///
/// `closed4` and `closed6` say that Warren switched forwarding on for that family: then only Warren's own links gain
/// by it. Links of all installations share a device group, so that one does not cut off the other. `counts` says that
/// this kernel can count flows.
pub(crate) fn host(
    installation: &InstallationId,
    ula: &UlaPrefix,
    [closed4, closed6]: [bool; 2],
    exits: &Exits,
    counts: bool,
) -> String {
    let table = names::host_table(installation);
    let uplinks = format!("\"{}*\"", names::uplink_prefix(installation));
    let (transit4, transit6) = (transit::range4(installation), transit::range6(ula));
    let mut text = format!(
        "table inet {table} {{}}
delete table inet {table}
table inet {table} {{
{not_global}{exits}{flows}	chain input {{
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
        exits = exits.sets(installation),
        flows = if counts { COUNTED } else { "" },
    );
    for (family, closed) in [("ipv4", closed4), ("ipv6", closed6)] {
        if closed {
            let _ = writeln!(text, "\t\tmeta nfproto {family} iifgroup != {LINK_GROUP} oifgroup != {LINK_GROUP} drop");
        }
    }
    let _ = write!(
        text,
        "	}}
	chain from_network {{
		oifname {uplinks} drop
		ip daddr @never4 reject with icmpx admin-prohibited
		ip6 daddr @never6 reject with icmpx admin-prohibited
		iifname . ip daddr @private4 goto from_member
		iifname . ip6 daddr @private6 goto from_member
		ip daddr @not_global4 reject with icmpx admin-prohibited
		ip6 daddr != {GLOBAL_V6} reject with icmpx admin-prohibited
		ip6 daddr @not_global6 reject with icmpx admin-prohibited
		goto from_member
	}}
	chain from_member {{
		ct state invalid drop
		ip saddr != {transit4} drop
		ip6 saddr != {transit6} drop
		# the way out may have a smaller MTU than the networks, and not everybody answers with its size
		tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
{crowded}		accept
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
        crowded = if counts { crowded() } else { String::new() },
    );
    text
}

/// Whether this kernel can count flows (`CONFIG_NFT_CONNLIMIT`) is seen by loading this into a namespace of its own.
pub(crate) fn counting() -> String {
    format!("table inet probe {{\n{COUNTED}	chain one {{\n{}	}}\n}}\n", crowded())
}

const COUNTED: &str = "	# which network has how many flows that are tracked here
	counter crowded { }
	set flows { type ifname; size 65535; flags dynamic; }
";

fn crowded() -> String {
    format!(
        "		ct state new ct status ! confirmed add @flows {{ iifname ct count over {FLOWS} }} counter name crowded drop\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_has_these_rules() {
        let ula = UlaPrefix::from_random([1, 2, 3, 4, 5]);
        let text = host(&"abcde".parse().unwrap(), &ula, [true, false], &Exits::default(), true);
        insta::assert_snapshot!(text);
    }

    #[test]
    fn a_kernel_that_cannot_count_flows_is_not_asked_to() {
        let ula = UlaPrefix::from_random([1, 2, 3, 4, 5]);
        let text = host(&"abcde".parse().unwrap(), &ula, [true, false], &Exits::default(), false);
        assert!(!text.contains("ct count") && !text.contains("@flows"), "{text}");
    }
}
