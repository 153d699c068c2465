//! Plans of networks and of the host: golden scenarios, and one at scale.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use warren_model::{Access, MachineId, MemberNumber, NetworkNumber, UlaPrefix};
use warren_plan::host::{self, DesiredHost, ObservedHost};
use warren_plan::network::{DesiredNetwork, Member, ObservedNetwork, ObservedRouter, Rules, plan};

fn member(n: u32) -> Member {
    let number = MemberNumber::new(n).unwrap();
    Member {
        number,
        access: Access::Link,
        ipv4: Ipv4Addr::from(0x0a00_0000 + n),
        ipv6: UlaPrefix::from_random([0; 5]).member(NetworkNumber::FIRST, number),
    }
}

fn members(numbers: &[u32]) -> BTreeSet<Member> {
    numbers.iter().map(|n| member(*n)).collect()
}

fn desired(numbers: &[u32]) -> DesiredNetwork {
    DesiredNetwork {
        deleting: false,
        members: members(numbers),
        leaving: BTreeSet::new(),
        exits: false,
        peers: BTreeSet::new(),
    }
}

fn observed(numbers: &[u32]) -> ObservedNetwork {
    ObservedNetwork {
        router: Some(ObservedRouter {
            gateway: true,
            rules: Rules::Intact,
            admitted: members(numbers),
            links: numbers.iter().map(|n| (MemberNumber::new(*n).unwrap(), true)).collect(),
            uplink: false,
            tunnel: None,
            policy: true,
            peers: BTreeMap::new(),
        }),
        published: true,
        at_edge: true,
    }
}

fn operators(numbers: &[u32]) -> impl Iterator<Item = Member> {
    numbers.iter().map(|n| Member { access: Access::Tunnel, ..member(*n) })
}

fn operated(machines: &[u32], sessions: &[u32]) -> DesiredNetwork {
    DesiredNetwork { members: members(machines).into_iter().chain(operators(sessions)).collect(), ..desired(&[]) }
}

fn tunneled(machines: &[u32], sessions: &[u32], tunnel: Option<bool>) -> ObservedNetwork {
    let mut network = observed(machines);
    let router = network.router.as_mut().unwrap();
    router.admitted.extend(operators(sessions));
    router.tunnel = tunnel;
    network
}

fn router(change: impl FnOnce(&mut ObservedRouter)) -> ObservedNetwork {
    let mut network = observed(&[2, 3]);
    change(network.router.as_mut().unwrap());
    network
}

fn scenario(title: &str, desired: &DesiredNetwork, observed: &ObservedNetwork) -> String {
    let steps: Vec<String> = plan(desired, observed).iter().map(ToString::to_string).collect();
    format!("{title}\n    {}\n", if steps.is_empty() { "nothing".to_owned() } else { steps.join(" → ") })
}

#[test]
fn plans_are_as_written_down() {
    let two = desired(&[2, 3]);
    let none = ObservedNetwork { router: None, published: false, at_edge: false };
    let number = |n| NetworkNumber::new(n).unwrap();
    let linked =
        |peers: &[u16]| DesiredNetwork { peers: peers.iter().map(|n| number(*n)).collect(), ..desired(&[2, 3]) };
    let deleting = |numbers: &[u32]| DesiredNetwork { deleting: true, ..desired(numbers) };
    let text = [
        scenario("a new network", &two, &none),
        scenario("all is as wanted", &two, &observed(&[2, 3])),
        scenario("a member joined", &desired(&[2, 3, 4]), &observed(&[2, 3])),
        scenario(
            "a member is leaving by its own plan",
            &DesiredNetwork { leaving: members(&[3]), ..desired(&[2]) },
            &observed(&[2, 3]),
        ),
        scenario("somebody nobody knows is admitted", &desired(&[2]), &observed(&[2, 3])),
        scenario(
            "the rules were flushed",
            &two,
            &router(|r| {
                r.rules = Rules::Missing;
                r.admitted.clear()
            }),
        ),
        scenario("a rule was changed", &two, &router(|r| r.rules = Rules::Altered)),
        scenario("the gateway lost its address", &two, &router(|r| r.gateway = false)),
        scenario("the namespace was deleted under the edge", &two, &ObservedNetwork { router: None, ..observed(&[]) }),
        scenario(
            "the edge was restarted",
            &two,
            &ObservedNetwork { published: false, at_edge: false, ..observed(&[2, 3]) },
        ),
        scenario("egress is to be open", &DesiredNetwork { exits: true, ..two.clone() }, &observed(&[2, 3])),
        scenario(
            "the policy lets something out",
            &DesiredNetwork { exits: true, ..two.clone() },
            &ObservedNetwork { published: false, ..router(|r| r.policy = false) },
        ),
        scenario(
            "the gateway was half made when the daemon died",
            &two,
            &ObservedNetwork { published: false, at_edge: false, ..router(|r| r.gateway = false) },
        ),
        scenario("the policy changed", &two, &router(|r| r.policy = false)),
        scenario("a member joined and the policy changed", &desired(&[2, 3, 4]), &router(|r| r.policy = false)),
        scenario("the policy links it to another network", &linked(&[5]), &observed(&[2, 3])),
        scenario("a link is broken", &linked(&[5]), &router(|r| r.peers = [(number(5), false)].into())),
        scenario(
            "the policy links it to another network than before",
            &linked(&[6]),
            &router(|r| {
                r.peers = [(number(5), true)].into();
                r.policy = false
            }),
        ),
        scenario("an operator joins", &operated(&[2, 3], &[4]), &observed(&[2, 3])),
        scenario("another operator joins", &operated(&[2, 3], &[4, 5]), &tunneled(&[2, 3], &[4], Some(true))),
        scenario("an operator leaves", &operated(&[2, 3], &[]), &tunneled(&[2, 3], &[4], Some(true))),
        scenario("operators are as wanted", &operated(&[2, 3], &[4]), &tunneled(&[2, 3], &[4], Some(true))),
        scenario("the operators' device was deleted", &operated(&[2], &[4]), &tunneled(&[2], &[4], None)),
        scenario("a route to an operator is gone", &operated(&[2], &[4]), &tunneled(&[2], &[4], Some(false))),
        scenario("nobody needs the operators' device", &desired(&[2]), &tunneled(&[2], &[], Some(true))),
        scenario(
            "the rules were flushed under an operator",
            &operated(&[2], &[4]),
            &ObservedNetwork {
                router: tunneled(&[2], &[], Some(true)).router.map(|r| ObservedRouter { rules: Rules::Missing, ..r }),
                ..observed(&[])
            },
        ),
        scenario("it is to go and has members", &deleting(&[2]), &observed(&[2])),
        scenario("it is to go", &deleting(&[]), &observed(&[])),
        scenario("it is half removed", &deleting(&[]), &none),
    ]
    .concat();
    insta::assert_snapshot!(text);
}

#[test]
fn leftovers_are_removed_from_the_top_down() {
    let id = |n: u128| MachineId::from_ulid(ulid::Ulid::from_parts(n as u64, n));
    let desired = DesiredHost { machines: [id(1)].into(), networks: [NetworkNumber::FIRST].into() };
    let both = BTreeSet::from([id(1), id(2)]);
    let second = NetworkNumber::new(2).unwrap();
    let observed = ObservedHost {
        containers: both.clone(),
        roots: both.clone(),
        disks: both.clone(),
        agents: both,
        networks: [NetworkNumber::FIRST, second].into(),
        edge: [second].into(),
    };
    let steps: Vec<String> = host::plan(&desired, &observed).iter().map(|step| format!("{step:?}")).collect();
    insta::assert_snapshot!(steps.join("\n"));
}

#[test]
fn a_hundred_thousand_members_are_planned() {
    let numbers: Vec<u32> = (2..100_002).collect();
    let mut wanted = desired(&numbers);
    let there = observed(&numbers);
    assert!(plan(&wanted, &there).is_empty());
    wanted.members.insert(member(200_000));
    assert_eq!(plan(&wanted, &there).len(), 1);
    let empty = ObservedNetwork {
        router: Some(ObservedRouter {
            gateway: true,
            rules: Rules::Intact,
            admitted: BTreeSet::new(),
            links: BTreeMap::new(),
            uplink: false,
            tunnel: None,
            policy: true,
            peers: BTreeMap::new(),
        }),
        published: true,
        at_edge: true,
    };
    assert_eq!(plan(&wanted, &empty).len(), 1);
}
