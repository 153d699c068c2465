//! Ranges that are not the public internet and that a network may reach all the same, because a rule of its policy says
//! so: by its own uplink only, and never what no rule can allow.
//!
//! They are written down, so that a daemon that starts anew does not close them until it has looked at every network.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use warren_model::policy::protected_ranges;
use warren_model::{InstallationId, NetworkNumber};

use crate::error::KernelError;
use crate::names;
use crate::namespace::file;
use crate::record::{Record, write_file};

/// By network; a network without any is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Exits(BTreeMap<NetworkNumber, BTreeSet<IpNet>>);

impl Exits {
    pub(super) fn read(installation: &InstallationId) -> Result<Self, KernelError> {
        let path = path(installation);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(file("read", &path)(error)),
        }
    }

    pub(super) fn write(&self, installation: &InstallationId) -> Result<(), KernelError> {
        if self.0.is_empty() {
            return Record::remove(&path(installation));
        }
        write_file(&path(installation), &self.to_text())
    }

    /// Whether the network has just these.
    pub(super) fn are(&self, network: NetworkNumber, ranges: &BTreeSet<IpNet>) -> bool {
        self.0.get(&network).map_or(ranges.is_empty(), |there| there == ranges)
    }

    pub(super) fn set(&mut self, network: NetworkNumber, ranges: &BTreeSet<IpNet>) {
        if ranges.is_empty() {
            self.0.remove(&network);
        } else {
            self.0.insert(network, ranges.clone());
        }
    }

    /// The sets of the host's table.
    pub(crate) fn sets(&self, installation: &InstallationId) -> String {
        let (mut four, mut six) = (Vec::new(), Vec::new());
        for (network, ranges) in &self.0 {
            let link = names::uplink(installation, *network);
            let [ranges4, ranges6] = apart(ranges.iter());
            four.extend(ranges4.iter().map(|range| format!("\"{link}\" . {range}")));
            six.extend(ranges6.iter().map(|range| format!("\"{link}\" . {range}")));
        }
        let [never4, never6] = apart(protected_ranges().iter().map(|(range, _)| range));
        let elements = |all: &[String]| match all {
            [] => String::new(),
            all => format!("elements = {{ {} }} ", all.join(", ")),
        };
        format!(
            "	# what no rule opens
	set never4 {{ type ipv4_addr; flags interval; {}}}
	set never6 {{ type ipv6_addr; flags interval; {}}}
	# by which uplink something that is not the public internet may be reached
	set private4 {{ type ifname . ipv4_addr; flags interval; {}}}
	set private6 {{ type ifname . ipv6_addr; flags interval; {}}}
",
            elements(&never4),
            elements(&never6),
            elements(&four),
            elements(&six),
        )
    }

    fn to_text(&self) -> String {
        let lines = self.0.iter().flat_map(|(network, ranges)| ranges.iter().map(move |range| (network, range)));
        lines.map(|(network, range)| format!("{network} {range}\n")).collect()
    }

    fn parse(text: &str) -> Self {
        let mut exits: BTreeMap<NetworkNumber, BTreeSet<IpNet>> = BTreeMap::new();
        for line in text.lines() {
            let Some((number, range)) = line.split_once(' ') else { continue };
            let number = number.parse().ok().and_then(|number| NetworkNumber::new(number).ok());
            if let (Some(number), Ok(range)) = (number, range.parse()) {
                exits.entry(number).or_default().insert(range);
            }
        }
        Self(exits)
    }
}

/// The ranges of IPv4 and of IPv6, without overlaps: the elements of an interval set must not have any.
fn apart<'a>(ranges: impl Iterator<Item = &'a IpNet>) -> [Vec<String>; 2] {
    let (mut four, mut six) = (Vec::<Ipv4Net>::new(), Vec::<Ipv6Net>::new());
    for range in ranges {
        match range.trunc() {
            IpNet::V4(range) => four.push(range),
            IpNet::V6(range) => six.push(range),
        }
    }
    [
        Ipv4Net::aggregate(&four).iter().map(Ipv4Net::to_string).collect(),
        Ipv6Net::aggregate(&six).iter().map(Ipv6Net::to_string).collect(),
    ]
}

fn path(installation: &InstallationId) -> PathBuf {
    installation.run_directory().join("private-exits")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exits() -> Exits {
        let mut exits = Exits::default();
        let ranges = |all: &[&str]| all.iter().map(|range| range.parse().unwrap()).collect::<BTreeSet<IpNet>>();
        exits.set(NetworkNumber::new(7).unwrap(), &ranges(&["10.99.0.0/24", "10.99.0.128/25", "fd01::/64"]));
        exits.set(NetworkNumber::new(300).unwrap(), &ranges(&["10.0.0.0/8"]));
        exits
    }

    #[test]
    fn what_was_opened_reads_back() {
        let exits = exits();
        assert_eq!(Exits::parse(&exits.to_text()), exits);
        assert_eq!(Exits::parse("nonsense\n0 10.0.0.0/8\n7 10.0.0.0/99\n"), Exits::default());
    }

    #[test]
    fn each_network_has_its_own_ranges_without_overlaps() {
        let sets = exits().sets(&"abcde".parse().unwrap());
        assert!(sets.contains("elements = { \"wabcdeu7\" . 10.99.0.0/24, \"wabcdeu300\" . 10.0.0.0/8 } }"), "{sets}");
        assert!(sets.contains("elements = { \"wabcdeu7\" . fd01::/64 } }"), "{sets}");
    }

    #[test]
    fn what_no_rule_opens_is_there_without_any_rule() {
        let sets = Exits::default().sets(&"abcde".parse().unwrap());
        for range in ["169.254.0.0/16", "127.0.0.0/8", "224.0.0.0/4", "100.100.100.200/32", "fd00:ec2::254/128"] {
            assert!(sets.contains(range), "{range} is not in {sets}");
        }
        assert!(!sets.contains("::1/128"), "it is in a range that is there");
    }
}
