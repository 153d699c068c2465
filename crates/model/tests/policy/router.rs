//! What a router does with compiled rules: the lookups of the data plane, and nothing of the policy.

use std::net::IpAddr;

use warren_model::Label;
use warren_model::policy::compile::{Carrier, Default, OUTSIDE};
use warren_model::policy::{Directory, Group, NetworkRules, Protocol, is_global, protection};

pub struct Router<'a> {
    pub rules: &'a NetworkRules,
    pub directory: &'a Directory,
    pub network: &'a Label,
}

impl Router<'_> {
    /// Whether the first packet of a flow passes. The port is 0 where the protocol has none.
    pub fn passes(&self, from: IpAddr, to: IpAddr, protocol: Protocol, port: u16) -> bool {
        if protection(to).is_some() {
            return false;
        }
        let own = &self.directory.networks[self.network];
        let is_own = |address: IpAddr| match address {
            IpAddr::V4(four) => own.cidr.contains(four),
            IpAddr::V6(six) => own.cidr6.contains(&six),
        };
        let is_linked = |address: IpAddr| self.rules.links.values().flatten().any(|range| range.contains(&address));
        let group = |address: IpAddr| self.rules.groups.get(&address).copied().unwrap_or(Group(0));
        if is_own(from) && is_own(to) {
            let somebody = self.directory.at(self.network, to).is_some();
            let excepted = self.is_exception(group(from), group(to), protocol, port);
            return somebody && (self.rules.inside == Default::Accept) != excepted;
        }
        if is_linked(to) || is_linked(from) {
            return self.is_exception(group(from), group(to), protocol, port);
        }
        if !self.rules.exits {
            return false;
        }
        let class =
            self.rules.classes.iter().find(|(range, _)| range.contains(&to)).map_or(OUTSIDE, |(_, class)| *class);
        let excepted = self.is_exception(group(from), class, protocol, port);
        let may_leave = is_global(to) || self.rules.private_exits.iter().any(|range| range.contains(&to));
        may_leave && (self.rules.outside == Default::Accept) != excepted
    }

    fn is_exception(&self, from: Group, to: Group, protocol: Protocol, port: u16) -> bool {
        let carrier = match protocol {
            Protocol::Tcp => Carrier::Tcp,
            Protocol::Udp => Carrier::Udp,
            Protocol::Icmp => Carrier::Icmp,
            Protocol::Other => Carrier::Other,
        };
        self.rules.exceptions.iter().any(|exception| {
            (exception.from, exception.to, exception.carrier) == (from, to, carrier) && exception.ports.contains(port)
        })
    }
}

/// Exceptions of the same groups neither overlap nor touch, classes do not overlap, and numbers are in range.
pub fn assert_tidy(rules: &NetworkRules) {
    let exceptions: Vec<_> = rules.exceptions.iter().collect();
    for pair in exceptions.windows(2) {
        let [one, other] = pair else { continue };
        if (one.from, one.to, one.carrier) == (other.from, other.to, other.carrier) {
            assert!(u32::from(one.ports.last) + 1 < u32::from(other.ports.first), "{one:?} {other:?}");
        }
    }
    let classes: Vec<_> = rules.classes.keys().collect();
    for (index, one) in classes.iter().enumerate() {
        for other in &classes[index + 1..] {
            assert!(!one.contains(*other) && !other.contains(*one), "{one} {other}");
        }
    }
    for group in rules.groups.values().chain(rules.classes.values()) {
        assert!(group.0 > OUTSIDE.0 && group.0 < 1 << 31);
    }
    for exception in &rules.exceptions {
        assert!(rules.groups.values().any(|group| *group == exception.from), "{exception:?}");
    }
}
