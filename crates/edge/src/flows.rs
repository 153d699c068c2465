//! The proxied connections of one network that are open, so that they end when policy no longer allows them.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use warren_model::policy::{Application, HostName, RuleId};
use warren_model::{MemberId, NetworkNumber};

use crate::outside::Outside;

/// What a connection is, for policy.
#[derive(Debug, Clone)]
pub(crate) struct FlowKey {
    pub member: MemberId,
    /// The member's address that the connection comes from.
    pub source: IpAddr,
    pub host: HostName,
    pub port: u16,
    /// The rule that allowed it: bytes are counted under it.
    pub rule: RuleId,
    /// What it was checked for when it began.
    pub application: Application,
}

/// Bytes of one member under one rule since the edge started.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// From the member to the outside.
    pub sent: AtomicU64,
    /// From the outside to the member.
    pub received: AtomicU64,
    opened: AtomicU64,
    open: AtomicU64,
}

impl Traffic {
    pub fn add_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Relaxed);
    }

    pub fn add_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Relaxed);
    }
}

/// What one member did under one rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowCounters {
    pub network: NetworkNumber,
    pub member: MemberId,
    pub rule: RuleId,
    /// Connections that are open now.
    pub open: u64,
    /// Connections since the edge started.
    pub opened: u64,
    /// Bytes from the member to the outside since the edge started.
    pub sent: u64,
    /// Bytes from the outside to the member since the edge started.
    pub received: u64,
}

/// A connection that is open now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFlow {
    pub network: NetworkNumber,
    pub member: MemberId,
    pub host: HostName,
    pub port: u16,
    /// The rule that allowed it.
    pub rule: RuleId,
}

/// The connections of one network.
#[derive(Debug, Default)]
pub(crate) struct Flows(Mutex<Registry>);

#[derive(Debug, Default)]
struct Registry {
    next: u64,
    open: HashMap<u64, (FlowKey, CancellationToken)>,
    traffic: BTreeMap<(MemberId, RuleId), Arc<Traffic>>,
}

/// One open connection; it counts as closed when this is dropped.
#[derive(Debug)]
pub(crate) struct Flow {
    flows: Arc<Flows>,
    number: u64,
    /// Cancelled as soon as policy no longer allows the connection: both ends have to be reset then.
    pub revoked: CancellationToken,
    pub traffic: Arc<Traffic>,
}

impl Flows {
    /// Registers a connection that was just allowed. It comes back already revoked when policy has changed since.
    pub fn open(self: &Arc<Self>, key: FlowKey, outside: &ArcSwap<Outside>) -> Flow {
        let revoked = CancellationToken::new();
        let mut registry = self.registry();
        let number = registry.next;
        registry.next += 1;
        let traffic = registry.traffic.entry((key.member, key.rule.clone())).or_default().clone();
        registry.open.insert(number, (key.clone(), revoked.clone()));
        drop(registry);
        traffic.opened.fetch_add(1, Relaxed);
        traffic.open.fetch_add(1, Relaxed);
        // Who replaced the snapshot before this line may have looked at the connections before this one was there.
        if !still_allowed(&key, &outside.load()) {
            revoked.cancel();
        }
        Flow { flows: Arc::clone(self), number, revoked, traffic }
    }

    /// Ends every connection that this snapshot does not allow; returns how many. The snapshot is in force already.
    pub fn recheck(&self, outside: &Outside) -> usize {
        let registry = self.registry();
        let ended = registry.open.values().filter(|(key, revoked)| {
            let ends = !revoked.is_cancelled() && !still_allowed(key, outside);
            if ends {
                revoked.cancel();
            }
            ends
        });
        ended.count()
    }

    pub fn counters(&self, network: NetworkNumber) -> Vec<FlowCounters> {
        let counters = |((member, rule), traffic): (&(MemberId, RuleId), &Arc<Traffic>)| FlowCounters {
            network,
            member: *member,
            rule: rule.clone(),
            open: traffic.open.load(Relaxed),
            opened: traffic.opened.load(Relaxed),
            sent: traffic.sent.load(Relaxed),
            received: traffic.received.load(Relaxed),
        };
        self.registry().traffic.iter().map(counters).collect()
    }

    /// The connections that are open now, in no order.
    pub fn list(&self, network: NetworkNumber) -> Vec<OpenFlow> {
        let flow = |(key, _): &(FlowKey, CancellationToken)| OpenFlow {
            network,
            member: key.member,
            host: key.host.clone(),
            port: key.port,
            rule: key.rule.clone(),
        };
        self.registry().open.values().map(flow).collect()
    }

    /// Drops the counters of members that are gone and have no connection left.
    pub fn keep(&self, is_member: impl Fn(MemberId) -> bool) {
        self.registry().traffic.retain(|(member, _), traffic| is_member(*member) || traffic.open.load(Relaxed) > 0);
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The address may be another member's by now, and what may be spoken may have become less.
fn still_allowed(key: &FlowKey, outside: &Outside) -> bool {
    let decision = outside.decide(key.source, &key.host, Some(key.port));
    // Where anything may be spoken, what was held to TLS or HTTP goes on.
    let as_it_was = [key.application, Application::Tcp].contains(&decision.application);
    outside.member(key.source).is_some_and(|member| member.id == key.member) && decision.allowed && as_it_was
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.traffic.open.fetch_sub(1, Relaxed);
        self.flows.registry().open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::NetworkView;
    use crate::view::tests::{member, rule, view_with};

    fn view(patterns: &[&str]) -> NetworkView {
        view_with(patterns.iter().map(|pattern| rule("all", pattern, &["tcp/443"])).collect())
    }

    fn key(host: &str, port: u16) -> FlowKey {
        let member = member(2, "web");
        let (host, rule) = (host.parse().unwrap(), "all".parse().unwrap());
        let application = Application::by_port(port);
        FlowKey { member: member.id, source: member.ipv4.into(), host, port, rule, application }
    }

    #[test]
    fn connections_that_a_snapshot_does_not_allow_end_and_the_others_do_not() {
        let outside = ArcSwap::from_pointee(Outside::build(&view(&["a.example.com", "b.example.com"])));
        let flows = Arc::new(Flows::default());
        let (a, b) = (flows.open(key("a.example.com", 443), &outside), flows.open(key("b.example.com", 443), &outside));
        assert_eq!(flows.recheck(&outside.load()), 0);
        let fewer = Outside::build(&view(&["a.example.com"]));
        assert_eq!(flows.recheck(&fewer), 1);
        assert!(b.revoked.is_cancelled() && !a.revoked.is_cancelled());
        assert_eq!(flows.recheck(&fewer), 0, "it has ended already");
        assert_eq!(flows.recheck(&fewer.emptied()), 1);
        assert!(a.revoked.is_cancelled());
    }

    #[test]
    fn an_address_that_went_to_another_member_takes_no_connection_along() {
        let outside = ArcSwap::from_pointee(Outside::build(&view(&["a.example.com"])));
        let flows = Arc::new(Flows::default());
        let flow = flows.open(key("a.example.com", 443), &outside);
        let mut later = view(&["a.example.com"]);
        later.members[0].id = member(9, "web").id;
        flows.recheck(&Outside::build(&later));
        assert!(flow.revoked.is_cancelled());
    }

    #[test]
    fn a_connection_ends_when_less_may_be_spoken_on_it_and_goes_on_when_more_may() {
        let speaking = |application| {
            let mut view = view(&["a.example.com"]);
            view.rules.values_mut().flatten().for_each(|rule| rule.application = Some(application));
            Outside::build(&view)
        };
        use Application::{Http, Tcp, Tls};
        for (before, after, ends) in [(Tcp, Tls, 1), (Tcp, Http, 1), (Tls, Http, 1), (Tls, Tls, 0), (Tls, Tcp, 0)] {
            let outside = ArcSwap::from_pointee(speaking(before));
            let flows = Arc::new(Flows::default());
            let flow = flows.open(FlowKey { application: before, ..key("a.example.com", 443) }, &outside);
            assert_eq!(flows.recheck(&speaking(after)), ends, "{before:?} became {after:?}");
            assert_eq!(flow.revoked.is_cancelled(), ends == 1);
        }
    }

    #[test]
    fn a_connection_that_comes_after_the_snapshot_that_forbids_it_is_revoked_at_once() {
        let outside = ArcSwap::from_pointee(Outside::build(&view(&[])));
        let flows = Arc::new(Flows::default());
        assert!(flows.open(key("a.example.com", 443), &outside).revoked.is_cancelled());
    }

    #[test]
    fn bytes_and_connections_are_counted_for_each_member_and_rule() {
        let outside = ArcSwap::from_pointee(Outside::build(&view(&["a.example.com"])));
        let flows = Arc::new(Flows::default());
        let (one, two) =
            (flows.open(key("a.example.com", 443), &outside), flows.open(key("a.example.com", 443), &outside));
        one.traffic.add_sent(10);
        two.traffic.add_sent(5);
        two.traffic.add_received(7);
        drop(one);
        let [counters] = flows.counters(NetworkNumber::FIRST).try_into().unwrap();
        let [open] = flows.list(NetworkNumber::FIRST).try_into().unwrap();
        assert_eq!((open.host.as_str(), open.port, open.rule.as_str()), ("a.example.com", 443, "all"));
        assert_eq!((counters.open, counters.opened, counters.sent, counters.received), (1, 2, 15, 7));
        flows.keep(|_| false);
        assert_eq!(flows.counters(NetworkNumber::FIRST).len(), 1, "one is still open");
        drop(two);
        flows.keep(|_| false);
        assert!(flows.counters(NetworkNumber::FIRST).is_empty());
    }
}
