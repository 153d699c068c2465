//! The addresses between a router and the host.
//!
//! Both ends of an uplink have fixed neighbours, so a network needs one address per family, on the router's end: what
//! leaves is masqueraded to it there, and masqueraded again by the host. They never show outside the host.
//!
//! IPv4: 240.0.0.0/4 (RFC 1112 §4, reserved, routed by Linux, used by no host's network), 12 bits that follow from the
//! installation, 16 bits of the network's number. Link-local addresses would meet the metadata services of clouds, and
//! private or shared ones the networks of the host. IPv6: subnet 0 of the installation's ULA prefix, which no network
//! has, and the network's number.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use warren_model::{InstallationId, MacAddress, NetworkNumber, UlaPrefix};

/// The host as the router sees it; on no other link.
pub(crate) const HOST_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 2);
pub(crate) const HOST_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

pub(crate) fn range4(installation: &InstallationId) -> Ipv4Net {
    let hash = blake3::hash(installation.as_str().as_bytes());
    let [a, b, ..] = *hash.as_bytes();
    // One less than 2^12, so that 255.255.255.255 is in no range.
    let slot = u32::from(u16::from_le_bytes([a, b]) % 4095);
    Ipv4Net::new_assert(Ipv4Addr::from(0xf000_0000 | slot << 16), 16)
}

pub(crate) fn range6(ula: &UlaPrefix) -> Ipv6Net {
    Ipv6Net::new_assert(ula.range().network(), 80)
}

pub(crate) fn address4(installation: &InstallationId, network: NetworkNumber) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(range4(installation).network()) | u32::from(network.get()))
}

pub(crate) fn address6(ula: &UlaPrefix, network: NetworkNumber) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(range6(ula).network()) | u128::from(network.get()))
}

/// The MAC addresses of the router's and of the host's end.
pub(crate) fn macs(network: NetworkNumber) -> (MacAddress, MacAddress) {
    let [high, low] = network.get().to_be_bytes();
    (MacAddress::from_octets([0x02, 0x77, 0, 1, high, low]), MacAddress::from_octets([0x02, 0x77, 0, 2, high, low]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transit_addresses_are_inside_their_range_and_not_global() {
        let ula = UlaPrefix::from_random([1, 2, 3, 4, 5]);
        for (bits, number) in [(0, 1), (77, 300), (u32::MAX, u16::MAX)] {
            let installation = InstallationId::from_random(bits);
            let network = NetworkNumber::new(number).unwrap();
            let four = address4(&installation, network);
            assert!(range4(&installation).contains(&four) && four != Ipv4Addr::BROADCAST);
            assert!(range6(&ula).contains(&address6(&ula, network)));
            assert!(!warren_model::policy::is_global(four.into()));
            assert!(!warren_model::policy::is_global(address6(&ula, network).into()));
        }
    }
}
