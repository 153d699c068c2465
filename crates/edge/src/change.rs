//! What is sent when somebody joins or leaves a network, so that it costs what changed and not what there is.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use warren_model::policy::{Group, Member};
use warren_model::{MemberId, NetworkNumber, SessionId};

use crate::view::{NetworkView, Operator};

/// What makes one view of a network into the next one, where they differ in nothing but who is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkChange {
    pub number: NetworkNumber,
    /// The generation of the view that it begins with.
    pub from: u64,
    /// The generation of the view that comes of it.
    pub generation: u64,
    /// Those who were not in it.
    pub(crate) joined: Vec<Member>,
    pub(crate) left: Vec<Left>,
    /// The groups of addresses that have others now, or none.
    pub(crate) groups: BTreeMap<IpAddr, Option<Group>>,
    /// Those who are new, or other than they were.
    pub(crate) operators: Vec<Operator>,
    /// Those who may not come in any more.
    pub(crate) ended: Vec<SessionId>,
}

/// Who is in the network no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Left {
    pub id: MemberId,
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
}

impl NetworkChange {
    /// `None` where something else differs, and all of `after` has to be sent.
    pub fn between(before: &NetworkView, after: &NetworkView) -> Option<Self> {
        // Everything that is not looked at below has to be the same. A field that is new has to be put in one of the two.
        let NetworkView {
            account,
            network,
            name,
            number,
            generation,
            gateway4,
            gateway6,
            cidr,
            cidr6,
            names,
            sight,
            forward,
            names6,
            members,
            groups,
            rules,
            resolvers,
            operators,
            policy,
        } = after;
        let is_same = (account, network, number, gateway4, gateway6, cidr, cidr6, names6)
            == (
                &before.account,
                &before.network,
                &before.number,
                &before.gateway4,
                &before.gateway6,
                &before.cidr,
                &before.cidr6,
                &before.names6,
            )
            && (name, names, sight, forward, rules, resolvers, policy)
                == (
                    &before.name,
                    &before.names,
                    &before.sight,
                    &before.forward,
                    &before.rules,
                    &before.resolvers,
                    &before.policy,
                );
        if !is_same {
            return None;
        }
        let mut were: HashMap<MemberId, &Member> = before.members.iter().map(|member| (member.id, member)).collect();
        let mut joined = Vec::new();
        for member in members {
            match were.remove(&member.id) {
                None => joined.push(member.clone()),
                Some(was) if was == member => {}
                Some(_) => return None,
            }
        }
        let mut left: Vec<Left> =
            were.into_values().map(|member| Left { id: member.id, ipv4: member.ipv4, ipv6: member.ipv6 }).collect();
        left.sort_unstable_by_key(|left| left.id);
        let regrouped = groups.iter().filter(|(address, group)| before.groups.get(address) != Some(group));
        let ungrouped = before.groups.keys().filter(|address| !groups.contains_key(address));
        let mut ended: HashMap<SessionId, &Operator> =
            before.operators.iter().map(|operator| (operator.session, operator)).collect();
        let new = operators.iter().filter(|operator| ended.remove(&operator.session) != Some(*operator));
        let operators = new.cloned().collect();
        let mut ended: Vec<SessionId> = ended.into_keys().collect();
        ended.sort_unstable();
        Some(Self {
            number: *number,
            from: before.generation,
            generation: *generation,
            joined,
            left,
            groups: regrouped
                .map(|(address, group)| (*address, Some(*group)))
                .chain(ungrouped.map(|address| (*address, None)))
                .collect(),
            operators,
            ended,
        })
    }

    /// Whether anybody may do less than before.
    pub(crate) fn takes_away(&self) -> bool {
        let addresses = self.joined.iter().flat_map(|member| [IpAddr::V4(member.ipv4), IpAddr::V6(member.ipv6)]);
        let new: HashSet<IpAddr> = addresses.collect();
        !self.left.is_empty() || self.groups.keys().any(|address| !new.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use jiff::Timestamp;
    use proptest::prelude::*;
    use ulid::Ulid;
    use warren_model::MemberNumber;
    use warren_model::session::WireGuardKey;

    use super::*;
    use crate::dns::zone::Zone;
    use crate::outside::Outside;
    use crate::view::NameRecord;
    use crate::view::tests::{member, rule, view_with};

    fn operator(place: u32, idle_seconds: u64) -> Operator {
        let member = member(place, "operator");
        Operator {
            session: SessionId::from_ulid(Ulid::from_parts(1, place.into())),
            number: MemberNumber::new(place).unwrap(),
            public_key: WireGuardKey::from_bytes([place as u8; 32]),
            ipv4: member.ipv4,
            ipv6: member.ipv6,
            only: None,
            reachable: false,
            expires_at: Timestamp::UNIX_EPOCH,
            idle_seconds,
        }
    }

    /// A view with these members, each in a group or in none, and these operators.
    fn view(generation: u64, members: &[(u32, u32)], operators: &[(u32, u64)]) -> NetworkView {
        let mut view = view_with(vec![rule("gh", "*.github.com", &["tcp/443"])]);
        view.generation = generation;
        let known = |place| member(place, &format!("m{place}"));
        // Some see of each other only what their groups do.
        view.names = vec![NameRecord {
            name: "web.vm.internal".to_owned(),
            ipv4: Some([10, 0, 1, 2].into()),
            ipv6: member(2, "web").ipv6,
            scope: Some(Group(7)),
        }];
        view.sight = BTreeMap::from([(Group(1), BTreeSet::from([Group(7)]))]);
        view.members = members.iter().map(|(place, _)| known(*place)).collect();
        let groups = members.iter().filter(|(_, group)| *group > 0);
        view.groups = groups
            .flat_map(|(place, group)| {
                let member = known(*place);
                [(IpAddr::V4(member.ipv4), Group(*group)), (IpAddr::V6(member.ipv6), Group(*group))]
            })
            .collect();
        view.operators = operators.iter().map(|(place, idle)| operator(*place, *idle)).collect();
        view
    }

    fn places(most: u32) -> impl Strategy<Value = Vec<(u32, u32)>> {
        let some = proptest::collection::btree_map(2u32..30, 0..=most, 0..20);
        some.prop_map(|places| places.into_iter().collect())
    }

    fn operators() -> impl Strategy<Value = Vec<(u32, u64)>> {
        places(2).prop_map(|places| places.into_iter().map(|(place, idle)| (place, idle.into())).collect())
    }

    proptest! {
        #[test]
        fn what_comes_of_a_change_is_what_comes_of_the_whole_view(
            (members, more) in (places(3), places(3)),
            (inside, others) in (operators(), operators()),
        ) {
            let (before, after) = (view(1, &members, &inside), view(2, &more, &others));
            let change = NetworkChange::between(&before, &after).unwrap();
            prop_assert_eq!((change.number, change.from, change.generation), (after.number, 1, 2));
            let text = serde_json::to_vec(&change).unwrap();
            prop_assert_eq!(&serde_json::from_slice::<NetworkChange>(&text).unwrap(), &change);

            prop_assert_eq!(Outside::build(&before).changed(&change), Outside::build(&after));
            let zone = Zone::build(&before).unwrap();
            let changed = zone.changed(&change).unwrap_or_else(|| zone.clone());
            let mut whole = Zone::build(&after).unwrap();
            whole.generation = changed.generation;
            prop_assert_eq!(changed, whole);
            let mut operators: BTreeMap<SessionId, &Operator> =
                before.operators.iter().map(|operator| (operator.session, operator)).collect();
            operators.retain(|session, _| !change.ended.contains(session));
            operators.extend(change.operators.iter().map(|operator| (operator.session, operator)));
            prop_assert_eq!(operators.into_values().cloned().collect::<Vec<_>>(), after.operators.clone());

            let group = |view: &NetworkView, address: IpAddr| view.groups.get(&address).copied();
            let loses = before.members.iter().any(|was| {
                let regrouped = |address| group(&before, address) != group(&after, address);
                !after.members.contains(was) || regrouped(was.ipv4.into()) || regrouped(was.ipv6.into())
            });
            prop_assert_eq!(change.takes_away(), loses);
        }
    }

    #[test]
    fn what_is_not_about_who_is_there_needs_the_whole_view() {
        let before = view(1, &[(2, 7), (3, 0)], &[(9, 1)]);
        let is_change = |change: fn(&mut NetworkView)| {
            let mut after = before.clone();
            change(&mut after);
            NetworkChange::between(&before, &after).is_some()
        };
        assert!(is_change(|after| after.generation = 2));
        assert!(is_change(|after| after.operators.clear()));
        assert!(is_change(|after| after.members.clear()));
        assert!(is_change(|after| after.groups.clear()));
        let changes: [fn(&mut NetworkView); 12] = [
            |after| after.name = "other".parse().unwrap(),
            |after| after.names.clear(),
            |after| after.sight.clear(),
            |after| after.forward.push("192.0.2.53:53".parse().unwrap()),
            |after| after.resolvers.push("192.0.2.53:53".parse().unwrap()),
            |after| after.rules.clear(),
            |after| after.policy = "1".repeat(64),
            |after| after.gateway4 = [10, 0, 0, 9].into(),
            |after| after.cidr = "10.1.0.0/16".parse().unwrap(),
            |after| after.names6 = "fd12:3456:789a:1:fffe::/80".parse().unwrap(),
            |after| after.members[0].ipv4 = [10, 0, 9, 9].into(),
            |after| after.members[0].tags = ["a".parse().unwrap()].into(),
        ];
        for (place, change) in changes.into_iter().enumerate() {
            assert!(!is_change(change), "{place}");
        }
    }
}
