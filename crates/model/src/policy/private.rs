//! Which private ranges the operator of a host lets rules open.

use ipnet::IpNet;

use super::NetworkRules;

/// Ranges outside that are not the public internet and that rules may open all the same. None by default: they are the
/// operator's own networks, and an account's policy is not the operator's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrivateRanges(Vec<IpNet>);

impl FromIterator<IpNet> for PrivateRanges {
    fn from_iter<T: IntoIterator<Item = IpNet>>(ranges: T) -> Self {
        let ranges: Vec<IpNet> = ranges.into_iter().map(|range| range.trunc()).collect();
        // As few as possible, so that a range that all of them together hold is in one of them.
        Self(IpNet::aggregate(&ranges))
    }
}

impl PrivateRanges {
    /// Whether rules may open all of this range.
    pub fn permit(&self, range: IpNet) -> bool {
        self.0.iter().any(|permitted| permitted.contains(&range))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = IpNet> {
        self.0.iter().copied()
    }

    /// A private range that the rules open and may not.
    pub fn exceeded_by(&self, rules: &NetworkRules) -> Option<IpNet> {
        rules.private_exits.iter().copied().find(|exit| !self.permit(*exit))
    }

    /// Keeps closed what the rules open and may not.
    pub fn limit(&self, rules: &mut NetworkRules) {
        if self.exceeded_by(rules).is_none() {
            return;
        }
        let exits = std::mem::take(&mut rules.private_exits);
        let common = |exit: IpNet| {
            self.0.iter().filter_map(move |permitted| match () {
                () if permitted.contains(&exit) => Some(exit),
                () if exit.contains(permitted) => Some(*permitted),
                () => None,
            })
        };
        rules.private_exits = exits.into_iter().flat_map(common).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Egress;

    fn ranges(texts: &[&str]) -> impl Iterator<Item = IpNet> {
        texts.iter().map(|text| text.parse().unwrap())
    }

    #[test]
    fn only_what_is_permitted_stays_open() {
        let mut rules = NetworkRules::unrestricted(Egress::Deny);
        let exits = ["10.0.0.0/8", "192.168.1.0/24", "192.168.4.0/22", "fd00::/16"];
        rules.private_exits = ranges(&exits).collect();
        let none = PrivateRanges::default();
        assert_eq!(none.exceeded_by(&rules), Some("10.0.0.0/8".parse().unwrap()));
        let some: PrivateRanges =
            ranges(&["10.7.0.0/16", "192.168.0.0/23", "192.168.4.0/23", "192.168.6.0/23"]).collect();
        assert!(some.permit("192.168.4.0/22".parse().unwrap()), "both halves are permitted");
        some.limit(&mut rules);
        assert_eq!(rules.private_exits, ranges(&["10.7.0.0/16", "192.168.1.0/24", "192.168.4.0/22"]).collect());
        assert_eq!(some.exceeded_by(&rules), None);
        none.limit(&mut rules);
        assert!(rules.private_exits.is_empty());
    }
}
