//! Which destinations `open` egress never reaches.
//!
//! `open` means the public internet. Everything that the IANA special-purpose address registries (RFC 6890) do not
//! call globally reachable stays closed: private, shared, loopback, link-local (the metadata services live there),
//! documentation, benchmarking, multicast and reserved ranges.

use std::net::IpAddr;
use std::sync::LazyLock;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// IPv4 ranges that are not the public internet.
pub const NOT_GLOBAL_V4: [&str; 16] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

/// The only IPv6 range from which global unicast addresses are assigned.
pub const GLOBAL_V6: &str = "2000::/3";

/// IPv6 ranges inside [`GLOBAL_V6`] that are not the public internet, or that embed an IPv4 address.
pub const NOT_GLOBAL_V6: [&str; 4] = ["2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"];

/// Whether `open` egress may reach this address.
pub fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !ranges::<Ipv4Net>(&NOT_GLOBAL_V4).any(|range| range.contains(&v4)),
        IpAddr::V6(v6) => {
            ranges::<Ipv6Net>(&[GLOBAL_V6]).any(|range| range.contains(&v6))
                && !ranges::<Ipv6Net>(&NOT_GLOBAL_V6).any(|range| range.contains(&v6))
        }
    }
}

/// Every range that is not the public internet, in both families.
pub(super) fn not_global() -> &'static [IpNet] {
    // IPv6 outside 2000::/3 is these three.
    const NOT_UNICAST: [&str; 3] = ["::/3", "4000::/2", "8000::/1"];
    static RANGES: LazyLock<Vec<IpNet>> = LazyLock::new(|| {
        let texts = NOT_GLOBAL_V4.iter().chain(&NOT_GLOBAL_V6).chain(&NOT_UNICAST);
        texts.filter_map(|text| text.parse().ok()).collect()
    });
    &RANGES
}

fn ranges<'a, N: std::str::FromStr>(texts: &'a [&'a str]) -> impl Iterator<Item = N> + 'a {
    texts.iter().filter_map(|text| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_range_parses() {
        assert_eq!(ranges::<Ipv4Net>(&NOT_GLOBAL_V4).count(), NOT_GLOBAL_V4.len());
        assert_eq!(ranges::<Ipv6Net>(&NOT_GLOBAL_V6).count(), NOT_GLOBAL_V6.len());
    }

    #[test]
    fn only_the_public_internet_is_global() {
        for yes in ["1.1.1.1", "93.184.216.34", "2606:4700::1111"] {
            assert!(is_global(yes.parse().unwrap()), "{yes}");
        }
        for no in [
            "10.1.2.3",
            "169.254.169.254",
            "100.100.100.200",
            "127.0.0.1",
            "0.0.0.0",
            "255.255.255.255",
            "fd00:ec2::254",
            "fe80::1",
            "::1",
            "::ffff:10.0.0.1",
            "2002:a00:1::",
            "64:ff9b::a00:1",
            "ff02::1",
        ] {
            assert!(!is_global(no.parse().unwrap()), "{no}");
        }
    }
}
