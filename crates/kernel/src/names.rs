//! What the kernel shows by name. A link name holds at most 15 bytes (`IFNAMSIZ`, with its zero byte).

use std::path::PathBuf;

use warren_model::{InstallationId, MemberNumber, NetworkNumber};

/// Where namespaces are pinned, as iproute2 does it.
pub const NAMESPACES: &str = "/run/netns";
/// The table in a router namespace.
pub const TABLE: &str = "warren";
/// The link inside a machine.
pub const MACHINE_LINK: &str = "eth0";

/// `warren-{installation}-n{number}`: the router namespace of a network.
pub fn namespace(installation: &InstallationId, network: NetworkNumber) -> String {
    format!("warren-{installation}-n{network}")
}

/// The number in the name of a router namespace of this installation.
pub fn parse_namespace(installation: &InstallationId, name: &str) -> Option<NetworkNumber> {
    let number = name.strip_prefix("warren-")?.strip_prefix(installation.as_str())?.strip_prefix("-n")?;
    decimal(number)
}

/// Where the router namespace of a network is pinned.
pub fn namespace_path(installation: &InstallationId, network: NetworkNumber) -> PathBuf {
    PathBuf::from(NAMESPACES).join(namespace(installation, network))
}

/// `w{installation}m{member in 8 hex digits}`: the router's end of a member's link.
pub fn member_link(installation: &InstallationId, member: MemberNumber) -> String {
    format!("w{installation}m{:08x}", member.get())
}

/// The member whose link has this name.
pub fn parse_member_link(installation: &InstallationId, name: &str) -> Option<MemberNumber> {
    let hex = name.strip_prefix('w')?.strip_prefix(installation.as_str())?.strip_prefix('m')?;
    let lower = hex.len() == 8 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let number = lower.then(|| u32::from_str_radix(hex, 16).ok()).flatten()?;
    MemberNumber::new(number).ok()
}

/// `w{installation}o`: the router's device for the packets of all operators.
pub fn tunnel_link(installation: &InstallationId) -> String {
    format!("w{installation}o")
}

/// `w{installation}u{number}`: both ends of the link between a network's router and the host.
pub fn uplink(installation: &InstallationId, network: NetworkNumber) -> String {
    format!("{}{network}", uplink_prefix(installation))
}

/// The network whose uplink has this name.
pub fn parse_uplink(installation: &InstallationId, name: &str) -> Option<NetworkNumber> {
    decimal(name.strip_prefix(uplink_prefix(installation).as_str())?)
}

/// What every uplink's name starts with.
pub fn uplink_prefix(installation: &InstallationId) -> String {
    format!("w{installation}u")
}

/// `w{installation}p{number}`: a router's end of its link to the router of that other network.
pub fn peer_link(installation: &InstallationId, other: NetworkNumber) -> String {
    format!("w{installation}p{other}")
}

/// The other network, whose link has this name in a router namespace.
pub fn parse_peer_link(installation: &InstallationId, name: &str) -> Option<NetworkNumber> {
    decimal(name.strip_prefix('w')?.strip_prefix(installation.as_str())?.strip_prefix('p')?)
}

/// `warren_{installation}`: the table in the host's namespace.
pub fn host_table(installation: &InstallationId) -> String {
    format!("warren_{installation}")
}

fn decimal(text: &str) -> Option<NetworkNumber> {
    let plain = !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit());
    NetworkNumber::new(plain.then(|| text.parse().ok()).flatten()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_read_back() {
        let installation: InstallationId = "abcde".parse().unwrap();
        for number in [1, 77, u16::MAX] {
            let network = NetworkNumber::new(number).unwrap();
            assert_eq!(parse_namespace(&installation, &namespace(&installation, network)), Some(network));
            assert_eq!(parse_uplink(&installation, &uplink(&installation, network)), Some(network));
            assert!(uplink(&installation, network).len() <= 15);
            let peer = peer_link(&installation, network);
            assert!(peer.len() <= 15);
            assert_eq!(parse_peer_link(&installation, &peer), Some(network));
            assert_eq!(parse_uplink(&installation, &peer), None);
        }
        for number in [2, 0xabcd, u32::MAX] {
            let member = MemberNumber::new(number).unwrap();
            let link = member_link(&installation, member);
            assert_eq!(link.len(), 15);
            assert_eq!(parse_member_link(&installation, &link), Some(member));
        }
    }

    #[test]
    fn other_names_are_not_ours() {
        let installation: InstallationId = "abcde".parse().unwrap();
        for name in ["warren-abcde-n", "warren-abcde-n0", "warren-abcde-n01", "warren-abcdf-n1", "abcde-n1"] {
            assert_eq!(parse_namespace(&installation, name), None, "{name}");
        }
        for name in ["eth0", "wabcdem0000000", "wabcdem0000000G", "wabcdem00000000", "wabcdem+0000001"] {
            assert_eq!(parse_member_link(&installation, name), None, "{name}");
        }
        for name in ["eth0", "wabcdep", "wabcdep0", "wabcdep01", "wabcdep65536", "wabcdfp1", "wabcdeu1", "wabcdep+1"] {
            assert_eq!(parse_peer_link(&installation, name), None, "{name}");
        }
    }
}
