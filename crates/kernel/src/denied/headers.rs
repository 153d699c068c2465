//! The headers of an IP packet, of which only the beginning may be there. Everything in it is an attacker's choice.

use std::net::IpAddr;

const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
/// The IPv6 extension headers (the IANA registry of them) that have one after them to read: hop-by-hop options, routing,
/// fragment, authentication, destination options, mobility, host identity, shim6.
const EXTENSIONS: [u8; 8] = [0, 43, FRAGMENT, AUTHENTICATION, 60, 135, 139, 140];
/// No sender needs more, and each costs a step.
const MOST_EXTENSIONS: usize = 16;

/// TCP, UDP, DCCP, SCTP and UDP-Lite begin with their source and destination ports.
const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];

/// Who sent a packet to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headers {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// By the IANA registry of protocol numbers; of IPv6, what follows the extension headers. An extension header's own
    /// number when the packet ends there.
    pub protocol: u8,
    pub source_port: Option<u16>,
    pub destination_port: Option<u16>,
}

/// Reads the headers of an IPv4 or IPv6 packet; `None` when the bytes do not hold a whole IP header.
pub fn parse(packet: &[u8]) -> Option<Headers> {
    match packet.first()? >> 4 {
        4 => parse4(packet),
        6 => parse6(packet),
        _ => None,
    }
}

/// RFC 791 §3.1.
fn parse4(packet: &[u8]) -> Option<Headers> {
    let length = usize::from(packet.first()? & 0xf) * 4;
    let fixed = packet.get(..20)?;
    if length < 20 {
        return None;
    }
    let protocol = fixed[9];
    let first = half(fixed, 6)? & 0x1fff == 0;
    let transport = if first { packet.get(length..).unwrap_or(&[]) } else { &[] };
    let address = |at: usize| <[u8; 4]>::try_from(fixed.get(at..at + 4)?).ok().map(IpAddr::from);
    Some(headers(address(12)?, address(16)?, protocol, transport))
}

/// RFC 8200 §3 and §4.
fn parse6(packet: &[u8]) -> Option<Headers> {
    let fixed = packet.get(..40)?;
    let mut protocol = fixed[6];
    let mut rest = packet.get(40..).unwrap_or(&[]);
    let mut first = true;
    for _ in 0..MOST_EXTENSIONS {
        if !EXTENSIONS.contains(&protocol) {
            break;
        }
        let (Some(next), Some(length)) = (rest.first(), rest.get(1)) else { break };
        let length = match protocol {
            FRAGMENT => 8,
            // RFC 4302 §2.2: in words of four bytes, minus two.
            AUTHENTICATION => (usize::from(*length) + 2) * 4,
            _ => (usize::from(*length) + 1) * 8,
        };
        if protocol == FRAGMENT {
            let Some(offset) = half(rest, 2) else { break };
            first = offset >> 3 == 0;
        }
        protocol = *next;
        rest = rest.get(length..).unwrap_or(&[]);
        if !first {
            // What follows is the middle of something.
            rest = &[];
            break;
        }
    }
    let address = |at: usize| <[u8; 16]>::try_from(fixed.get(at..at + 16)?).ok().map(IpAddr::from);
    Some(headers(address(8)?, address(24)?, protocol, rest))
}

fn headers(source: IpAddr, destination: IpAddr, protocol: u8, transport: &[u8]) -> Headers {
    let port = |at| if WITH_PORTS.contains(&protocol) { half(transport, at) } else { None };
    Headers { source, destination, protocol, source_port: port(0), destination_port: port(2) }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOP_BY_HOP: u8 = 0;
    const DESTINATION_OPTIONS: u8 = 60;

    fn four(protocol: u8, options: &[u8], fragment: u16, transport: &[u8]) -> Vec<u8> {
        let mut packet = vec![0u8; 20];
        packet[0] = 0x40 | ((20 + options.len()) / 4) as u8;
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet[9] = protocol;
        packet[12..20].copy_from_slice(&[10, 0, 0, 2, 10, 0, 0, 3]);
        packet.extend_from_slice(options);
        packet.extend_from_slice(transport);
        packet
    }

    fn six(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![0u8; 40];
        packet[0] = 0x60;
        packet[6] = next;
        packet[8] = 0xfd;
        packet[23] = 2;
        packet[24] = 0xfd;
        packet[39] = 3;
        packet.extend_from_slice(rest);
        packet
    }

    fn seen(packet: &[u8]) -> (u8, Option<u16>, Option<u16>) {
        let headers = parse(packet).unwrap();
        (headers.protocol, headers.source_port, headers.destination_port)
    }

    const PORTS: [u8; 8] = [0x9c, 0x40, 0x15, 0x38, 0, 0, 0, 0];

    #[test]
    fn addresses_and_ports_are_read() {
        let headers = parse(&four(6, &[], 0, &PORTS)).unwrap();
        assert_eq!((headers.source, headers.destination), ([10, 0, 0, 2].into(), [10, 0, 0, 3].into()));
        assert_eq!((headers.source_port, headers.destination_port), (Some(40000), Some(5432)));
        let headers = parse(&six(17, &PORTS)).unwrap();
        assert_eq!((headers.source, headers.destination), ("fd00::2".parse().unwrap(), "fd00::3".parse().unwrap()));
        assert_eq!((headers.protocol, headers.destination_port), (17, Some(5432)));
    }

    #[test]
    fn options_and_extension_headers_are_passed_over() {
        assert_eq!(seen(&four(17, &[1; 12], 0, &PORTS)), (17, Some(40000), Some(5432)));
        let mut rest = vec![DESTINATION_OPTIONS, 1];
        rest.extend([0; 14]);
        rest.extend([AUTHENTICATION, 0, 0, 0, 0, 0, 0, 0]);
        rest.extend([FRAGMENT, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        rest.extend([6, 0, 0, 1, 0, 0, 0, 7]);
        rest.extend(PORTS);
        assert_eq!(seen(&six(HOP_BY_HOP, &rest)), (6, Some(40000), Some(5432)));
    }

    #[test]
    fn a_later_fragment_has_no_ports() {
        assert_eq!(seen(&four(6, &[], 0x2000, &PORTS)), (6, Some(40000), Some(5432)));
        assert_eq!(seen(&four(6, &[], 0x2001, &PORTS)), (6, None, None));
        let mut rest = vec![17, 0, 0, 0x09, 0, 0, 0, 7];
        rest.extend(PORTS);
        assert_eq!(seen(&six(FRAGMENT, &rest)), (17, None, None));
    }

    #[test]
    fn what_has_no_ports_or_is_cut_off_has_none() {
        assert_eq!(seen(&four(1, &[], 0, &PORTS)), (1, None, None));
        assert_eq!(seen(&six(58, &PORTS)), (58, None, None));
        assert_eq!(seen(&four(6, &[], 0, &PORTS[..3])), (6, Some(40000), None));
        assert_eq!(seen(&six(HOP_BY_HOP, &[6])), (HOP_BY_HOP, None, None));
        assert_eq!(seen(&six(HOP_BY_HOP, &[6, 200])), (6, None, None));
        assert_eq!(parse(&four(6, &[], 0, &[])[..19]), None);
        assert_eq!(parse(&six(6, &[])[..39]), None);
        let mut short = four(6, &[], 0, &PORTS);
        short[0] = 0x44;
        assert_eq!(parse(&short), None);
    }

    #[test]
    fn a_chain_without_end_ends() {
        let rest = [HOP_BY_HOP, 0, 0, 0, 0, 0, 0, 0].repeat(1000);
        assert_eq!(seen(&six(HOP_BY_HOP, &rest)), (HOP_BY_HOP, None, None));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn arbitrary_bytes_after_a_version_never_panic(
            version in prop_oneof![Just(4u8), Just(6)],
            next in any::<u8>(),
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = version << 4 | (*first & 0xf);
            }
            if let Some(kind) = bytes.get_mut(6) {
                *kind = next;
            }
            if let Some(headers) = parse(&bytes) {
                prop_assert_eq!(headers.source.is_ipv4(), version == 4);
                prop_assert!(headers.source_port.is_some() || headers.destination_port.is_none());
            }
        }
    }
}
