//! What no rule can open.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use ipnet::IpNet;

use super::{PrivateRanges, RuleId, is_global};

/// Ranges that no rule opens, each with the name of the built-in rule that says so.
///
/// None of them is the public internet, so `open` egress leaves them closed as well.
pub const PROTECTED: [(&str, &str); 20] = [
    // Metadata services of cloud providers: link-local (RFC 3927, RFC 4291 §2.5.6), Alibaba's, Oracle's, Amazon's and
    // Google's.
    ("169.254.0.0/16", "metadata"),
    ("100.100.100.200/32", "metadata"),
    ("192.0.0.192/32", "metadata"),
    ("fe80::/10", "metadata"),
    ("fd00:ec2::254/128", "metadata"),
    ("fd20:ce::254/128", "metadata"),
    // Multicast (RFC 5771, RFC 4291 §2.7) and the limited broadcast (RFC 919).
    ("224.0.0.0/4", "multicast"),
    ("255.255.255.255/32", "multicast"),
    ("ff00::/8", "multicast"),
    // "This network" (RFC 1122 §3.2.1.3) and loopback: a host takes both for itself.
    ("0.0.0.0/8", "loopback"),
    ("127.0.0.0/8", "loopback"),
    ("::/128", "loopback"),
    ("::1/128", "loopback"),
    // Stand for names outside, and only the name counts.
    (super::NAMES_V4, "names"),
    // IPv6 addresses that carry an IPv4 address: compatible and mapped (RFC 4291 §2.5.5), NAT64 (RFC 6052, RFC 8215),
    // Teredo (RFC 4380), 6to4 (RFC 3056).
    ("::/96", "embedded"),
    ("::ffff:0:0/96", "embedded"),
    ("64:ff9b::/96", "embedded"),
    ("64:ff9b:1::/48", "embedded"),
    ("2001::/32", "embedded"),
    ("2002::/16", "embedded"),
];

/// The built-in rules, without the `builtin:` in front. The last six are of what cannot be judged beforehand, such as
/// how many connections there are: only denials cite them.
pub const BUILTIN: [&str; 16] = [
    "metadata",
    "multicast",
    "loopback",
    "names",
    "embedded",
    "host",
    "private-range",
    "gateway",
    "intra",
    "open-egress",
    "spoofing",
    "not-global",
    "name-limit",
    "wildcard-limit",
    "name-types",
    "connection-limit",
];

/// What a host keeps closed to its networks whatever a policy says, beside [`PROTECTED`]. Nothing by default, for whoever
/// does not know the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostLimits {
    /// The host's own addresses, public ones as well.
    pub addresses: BTreeSet<IpAddr>,
    /// What rules may open besides the public internet; `None` where that is not known.
    pub private_ranges: Option<PrivateRanges>,
}

impl HostLimits {
    /// The built-in rule that keeps an address outside closed on this host, and why.
    pub(super) fn closes(&self, address: IpAddr) -> Option<(RuleId, String)> {
        let address = as_sent(address);
        if self.is_own(address) {
            let reason = format!("{address} is the host's: no network reaches any of its addresses");
            return Some((RuleId::builtin("host"), reason));
        }
        let permitted = self.private_ranges.as_ref()?;
        if is_global(address) || permitted.permit(IpNet::from(address)) {
            return None;
        }
        let reason = format!(
            "{address} is not of the public internet, and the operator of this host does not permit it (warren up \
             --private-range)"
        );
        Some((RuleId::builtin("private-range"), reason))
    }

    pub(super) fn is_own(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    /// The ranges in which this host differs from another.
    pub(super) fn parts(&self) -> impl Iterator<Item = IpNet> {
        let own = self.addresses.iter().map(|address| IpNet::from(*address));
        own.chain(self.private_ranges.iter().flat_map(PrivateRanges::iter))
    }
}

/// [`PROTECTED`] as ranges, in the same order.
pub fn protected_ranges() -> &'static [(IpNet, &'static str)] {
    static RANGES: LazyLock<Vec<(IpNet, &str)>> =
        LazyLock::new(|| PROTECTED.iter().filter_map(|(range, name)| Some((range.parse().ok()?, *name))).collect());
    &RANGES
}

/// The built-in rule that keeps this address closed whatever the policy says. An IPv6 address that carries an IPv4
/// address is judged by that one first.
pub fn protection(address: IpAddr) -> Option<RuleId> {
    let listed =
        |address: IpAddr| protected_ranges().iter().find(|(range, _)| range.contains(&address)).map(|(_, name)| *name);
    let name = match as_sent(address) {
        IpAddr::V6(six) => match embedded(six) {
            _ if six.is_unspecified() || six.is_loopback() => listed(address),
            Some(four) => listed(IpAddr::V4(four)).or(Some("embedded")),
            None => listed(address),
        },
        four => listed(four),
    };
    name.map(RuleId::builtin)
}

/// The address that a packet carries: sockets send to an IPv4-mapped address over IPv4 (RFC 4291 §2.5.5.2).
pub fn as_sent(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// The IPv4 address inside an IPv6 address that carries one at a fixed place.
fn embedded(six: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = six.segments();
    let of = |high: u16, low: u16| Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    match (a, b) {
        (0, 0) if [c, d, e, f] == [0; 4] => of(g, h),
        (0x64, 0xff9b) if [c, d, e, f] == [0; 4] => of(g, h),
        (0x2002, _) => of(b, c),
        // Teredo has the client's address with every bit turned over.
        (0x2001, 0) => of(!g, !h),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_range_parses_and_none_is_the_public_internet() {
        assert_eq!(protected_ranges().len(), PROTECTED.len());
        for (range, _) in protected_ranges() {
            assert!(!is_global(range.network()) && !is_global(range.broadcast()), "{range}");
        }
    }

    #[test]
    fn the_manual_has_every_built_in_rule_and_every_range_of_metadata_services() {
        let manual = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/policy.md");
        let manual = std::fs::read_to_string(manual).unwrap();
        let row = |name: &str| manual.lines().find(|line| line.starts_with(&format!("| `builtin:{name}` |")));
        for name in BUILTIN {
            assert!(row(name).is_some(), "{name}");
        }
        for (range, name) in PROTECTED {
            assert!(BUILTIN.contains(&name), "{name}");
            let shown = range.trim_end_matches("/32").trim_end_matches("/128");
            // The mapped addresses are in the row's text.
            assert!(range == "::ffff:0:0/96" || row(name).unwrap().contains(shown), "{range}");
        }
    }

    #[test]
    fn an_embedded_address_counts() {
        for (address, rule) in [
            ("169.254.169.254", "metadata"),
            ("::ffff:169.254.169.254", "metadata"),
            ("64:ff9b::a9fe:a9fe", "metadata"),
            ("2002:a9fe:a9fe::1", "metadata"),
            ("2001:0:1:2:3:4:5601:5601", "metadata"),
            ("fe80::1", "metadata"),
            ("fd00:ec2::254", "metadata"),
            ("::ffff:127.0.0.1", "loopback"),
            ("::127.0.0.1", "loopback"),
            ("0.0.0.0", "loopback"),
            ("0.1.2.3", "loopback"),
            ("::", "loopback"),
            ("::1", "loopback"),
            ("224.0.0.251", "multicast"),
            ("255.255.255.255", "multicast"),
            ("ff02::fb", "multicast"),
            ("198.18.0.7", "names"),
            ("64:ff9b::101:101", "embedded"),
            ("64:ff9b:1::1", "embedded"),
            ("2002:101:101::", "embedded"),
        ] {
            assert_eq!(protection(address.parse().unwrap()), Some(RuleId::builtin(rule)), "{address}");
        }
        for free in ["1.1.1.1", "::ffff:1.1.1.1", "10.0.0.1", "fd00::1", "2606:4700::1111", "240.0.0.1"] {
            assert_eq!(protection(free.parse().unwrap()), None, "{free}");
        }
    }
}
