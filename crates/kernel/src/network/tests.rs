//! What is asked of the kernel, and what is known without asking.

use std::sync::Arc;
use std::time::Duration;

use warren_lab::{Lab, Namespace, eventually};
use warren_model::policy::NetworkRules;
use warren_model::record::Egress;
use warren_model::{Access, InstallationId, MemberNumber, NetworkCidr, NetworkNumber, UlaPrefix};

use crate::{Kernel, MemberSpec, NetworkSpec, names};

/// A network with operators only.
struct Operators {
    kernel: Kernel,
    installation: InstallationId,
    spec: NetworkSpec,
    members: Vec<MemberSpec>,
    host: Namespace,
    _lab: Lab,
}

impl Operators {
    fn new(count: u32) -> Self {
        let lab = Lab::new();
        let host = lab.namespace("host");
        // The lab's prefix ends in random digits.
        let random = u32::from_str_radix(&lab.prefix()[lab.prefix().len() - 6..], 16).unwrap();
        let installation = InstallationId::from_random(random);
        let ula = UlaPrefix::from_random([8, 0, random.to_be_bytes()[2], random.to_be_bytes()[3], 1]);
        let kernel = host.enter(|| Kernel::new(installation.clone(), ula)).unwrap();
        let (number, cidr) = (NetworkNumber::FIRST, "10.0.0.0/16".parse::<NetworkCidr>().unwrap());
        let spec = NetworkSpec {
            number,
            gateway4: cidr.gateway(),
            gateway6: ula.gateway(number),
            cidr,
            cidr6: ula.network(number),
            egress: Egress::Deny,
            rules: Arc::new(NetworkRules::unrestricted(Egress::Deny)),
            names6: ula.names(number),
        };
        let mut operators = Self { kernel, installation, spec, members: Vec::new(), host, _lab: lab };
        operators.kernel.create_network(&operators.spec, &[]).unwrap();
        operators.members = (2..2 + count).map(|number| operators.member(number, ula)).collect();
        operators.kernel.admit(&operators.spec, &operators.members).unwrap();
        operators.kernel.fit_tunnel(&operators.spec, &operators.members).unwrap();
        operators.settle();
        operators
    }

    /// Waits until the kernel has told everything about the new device: that nobody has it open it tells up to a second
    /// later (`net/core/link_watch.c`).
    fn settle(&self) {
        let mut before = usize::MAX;
        eventually("that nothing more is told", || {
            std::thread::sleep(Duration::from_millis(1_200));
            self.observe();
            let now = self.asked().1;
            std::mem::replace(&mut before, now) == now
        });
    }

    fn member(&self, number: u32, ula: UlaPrefix) -> MemberSpec {
        let member = MemberNumber::new(number).unwrap();
        let ipv4 = (u32::from(self.spec.cidr.network()) + number).into();
        MemberSpec { number: member, access: Access::Tunnel, ipv4, ipv6: ula.member(self.spec.number, member) }
    }

    /// What is seen of the device.
    fn observe(&self) -> Option<bool> {
        self.kernel.observe(&self.spec).unwrap().unwrap().tunnel
    }

    /// The last one leaves; what was asked of the kernel until that was seen: requests, and lists among them.
    fn leave(&mut self) -> (usize, usize) {
        let before = self.asked();
        let gone = self.members.pop().unwrap();
        self.kernel.expel(self.spec.number, &[gone]).unwrap();
        self.fit_since(before)
    }

    /// As before, of one who joins.
    fn join(&mut self, member: MemberSpec) -> (usize, usize) {
        let before = self.asked();
        self.kernel.admit(&self.spec, std::slice::from_ref(&member)).unwrap();
        self.members.push(member);
        self.fit_since(before)
    }

    fn fit_since(&self, before: (usize, usize)) -> (usize, usize) {
        self.kernel.fit_tunnel(&self.spec, &self.members).unwrap();
        assert_eq!(self.observe(), Some(true));
        let after = self.asked();
        (after.0 - before.0, after.1 - before.1)
    }

    fn asked(&self) -> (usize, usize) {
        self.kernel.network(self.spec.number).unwrap().state.lock().unwrap().route.asked
    }

    fn in_router(&self, line: &str) {
        let router = names::namespace(&self.installation, self.spec.number);
        self.host.run(&format!("ip netns exec {router} {line}"));
    }
}

impl Drop for Operators {
    fn drop(&mut self) {
        let _ = self.kernel.remove_network(self.spec.number);
    }
}

#[test]
fn what_an_operator_costs_who_joins_or_leaves_does_not_depend_on_how_many_there_are() {
    let costs = [2, 200].map(|count| {
        let mut operators = Operators::new(count);
        let mut once = || {
            let last = operators.members[operators.members.len() - 1].clone();
            (operators.leave(), operators.join(last))
        };
        // What the kernel still has to tell of the device makes it listed anew, once.
        let least = (0..3).map(|_| once()).min_by_key(|(left, joined)| left.1 + joined.1).unwrap();
        assert_eq!((least.0.1, least.1.1), (0, 0), "nothing is listed again");
        least
    });
    assert_eq!(costs[0], costs[1]);
}

#[test]
fn what_others_change_is_seen_after_a_change_of_our_own() {
    let mut operators = Operators::new(3);
    let link = names::tunnel_link(&operators.installation);
    let first = operators.members[0].ipv4;
    operators.leave();
    for change in [
        format!("ip route del {first}"),
        format!("ip neigh del {first} dev {link}"),
        format!("ip neigh add 10.9.9.9 lladdr 02:6d:00:00:00:77 dev {link} nud permanent"),
        format!("ip addr del fe80::1/64 dev {link}"),
        format!("ip link set {link} down"),
    ] {
        operators.in_router(&change);
        assert_eq!(operators.observe(), Some(false), "{change}");
        let (_, lists) = operators.fit_since(operators.asked());
        assert!(lists <= 8, "{change}");
    }
}

#[test]
fn what_others_change_during_an_operation_is_not_taken_for_our_own() {
    let operators = Operators::new(2);
    let first = operators.members[0].ipv4;
    let network = operators.kernel.network(operators.spec.number).unwrap();
    let mut operation = network.operate();
    operation.fit_tunnel(&operators.members[..1]).unwrap();
    operators.in_router(&format!("ip route del {first}"));
    drop(operation);
    assert_eq!(operators.observe(), Some(false));
}
