//! Which routes of this machine a network's range would cover, or be covered by.

use ipnet::Ipv4Net;

/// No private range is wider; what is wider stands for everything else.
const WIDEST: u8 = 8;

/// A route of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub range: Ipv4Net,
    pub link: String,
}

/// The routes of this machine that share addresses with one of these ranges. `None` where they cannot be read.
pub fn overlapping(ranges: &[Ipv4Net]) -> Option<Vec<Route>> {
    // Linux, as proc(5) has it; other systems have no such file.
    let text = std::fs::read_to_string("/proc/net/route").ok()?;
    Some(parse(&text).filter(|route| route.overlaps(ranges)).collect())
}

impl Route {
    pub fn overlaps(&self, ranges: &[Ipv4Net]) -> bool {
        ranges.iter().any(|range| range.contains(&self.range.network()) || self.range.contains(&range.network()))
    }
}

/// Every route but the default ones, in whatever disguise.
fn parse(text: &str) -> impl Iterator<Item = Route> {
    text.lines().skip(1).filter_map(line).filter(|route| route.range.prefix_len() >= WIDEST)
}

/// `eth0 0001A8C0 00000000 0001 0 0 0 00FFFFFF 0 0 0`: link, destination, gateway, flags, three counts, mask. Addresses
/// are written as the machine has them in memory.
fn line(line: &str) -> Option<Route> {
    let mut fields = line.split_whitespace();
    let link = fields.next()?.to_owned();
    let address =
        |text: &str| u32::from_str_radix(text, 16).ok().map(|bits| std::net::Ipv4Addr::from(bits.to_ne_bytes()));
    let (destination, mask) = (address(fields.next()?)?, address(fields.nth(5)?)?);
    Some(Route { range: Ipv4Net::with_netmask(destination, mask).ok()?.trunc(), link })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(address: [u8; 4]) -> String {
        format!("{:08X}", u32::from_ne_bytes(address))
    }

    fn table() -> String {
        let mut text =
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n".to_owned();
        for (link, destination, mask) in [
            ("eth0", [0, 0, 0, 0], [0, 0, 0, 0]),
            ("tun0", [128, 0, 0, 0], [128, 0, 0, 0]),
            ("tun0", [10, 0, 0, 0], [255, 0, 0, 0]),
            ("docker0", [172, 17, 0, 0], [255, 255, 0, 0]),
            ("eth0", [192, 168, 1, 7], [255, 255, 255, 255]),
        ] {
            text += &format!("{link}\t{}\t00000000\t0001\t0\t0\t0\t{}\t0\t0\t0\n", hex(destination), hex(mask));
        }
        text + "nonsense\neth0\tZZ\t0\t0\t0\t0\t0\t00\n"
    }

    #[test]
    fn routes_are_read_without_those_to_everywhere() {
        let found: Vec<_> = parse(&table()).map(|route| format!("{} {}", route.range, route.link)).collect();
        assert_eq!(found, ["10.0.0.0/8 tun0", "172.17.0.0/16 docker0", "192.168.1.7/32 eth0"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machines_own_routes_can_be_read() {
        // 240.0.0.0/4 is nobody's.
        assert_eq!(overlapping(&["240.0.0.0/4".parse().unwrap()]), Some(vec![]));
    }
}
