//! A network as the proxies see it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;
use warren_model::policy::{Application, HostName, RuleId, is_global};

use crate::dns::limit::Slot;
use crate::flows::{Flow, FlowKey};
use crate::network::Network;
use crate::proxy::gate::{Decision, Denied, Gate, LookUpError, Passage, Refusal};

/// Connections by name that a member may have open, and a whole network.
pub(crate) const PROXIED: (usize, usize) = (1024, 8192);
/// The same for all networks together: bounded by descriptors, of which each takes two.
static ALL_PROXIED: Semaphore = Semaphore::const_new(32_768);

/// A place among the member's connections, and among all.
pub(crate) struct Place {
    _slot: Slot,
    _permit: SemaphorePermit<'static>,
}

impl Gate for Network {
    type Place = Place;

    fn name_of(&self, source: IpAddr, address: IpAddr) -> Option<HostName> {
        let machine = self.outside.load().member(source)?.id;
        self.names.name_of(machine, address)
    }

    fn judge(&self, source: IpAddr, host: &HostName, port: u16) -> Decision {
        self.outside.load().decide(source, host, Some(port))
    }

    fn admit(&self, source: IpAddr, host: &HostName, port: u16) -> Decision {
        Network::decide(self, source, host, port)
    }

    fn refuse(&self, refusal: Refusal) -> Denied {
        let denial = self.denials.refuse(refusal);
        Denied { id: denial.id, rule: denial.rule, reason: denial.reason, suggested_rule: denial.suggested_rule }
    }

    async fn look_up(&self, host: &HostName) -> Result<Vec<IpAddr>, LookUpError> {
        self.resolver.look_up(host).await.map_err(|error| match error.is_refusal() {
            true => LookUpError::Refused(error.to_string()),
            false => LookUpError::Failed(error.to_string()),
        })
    }

    fn may_dial(&self, address: IpAddr) -> bool {
        is_global(address) && !is_own(address)
    }

    fn place(&self, source: IpAddr) -> Option<Place> {
        Some(Place { _slot: self.proxied.take(source)?, _permit: ALL_PROXIED.try_acquire().ok()? })
    }

    fn open(
        &self,
        source: IpAddr,
        host: &HostName,
        port: u16,
        rule: &RuleId,
        application: Application,
    ) -> Option<Arc<dyn Passage>> {
        let member = self.outside.load().member(source)?.id;
        let key = FlowKey { member, source, host: host.clone(), port, rule: rule.clone(), application };
        Some(Arc::new(self.flows.open(key, &self.outside)))
    }
}

/// Whether the host has this address itself: then, and only then, a socket can be bound to it.
fn is_own(address: IpAddr) -> bool {
    // Of documentation (RFC 5737, RFC 3849): bound only where `ip_nonlocal_bind` lets everything be.
    let (any, nobodys): (IpAddr, IpAddr) = match address {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into()),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()),
    };
    let can_bind = |address: IpAddr| UdpSocket::bind((address, 0)).is_ok();
    if !can_bind(nobodys) {
        return can_bind(address);
    }
    // What goes to an own address comes from it, unless it is one of several of a link. Connecting UDP sends nothing.
    let source = UdpSocket::bind((any, 0)).and_then(|socket| socket.connect((address, 9)).and(socket.local_addr()));
    source.is_ok_and(|source| source.ip() == address)
}

impl Passage for Flow {
    fn revoked(&self) -> &CancellationToken {
        &self.revoked
    }

    fn add_sent(&self, bytes: u64) {
        self.traffic.add_sent(bytes);
    }

    fn add_received(&self, bytes: u64) {
        self.traffic.add_received(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Ledger;
    use crate::network::Shared;
    use crate::view::tests::{rule, view_with};

    #[test]
    fn only_a_connection_that_is_asked_for_takes_a_name_of_a_wildcard() {
        let directory = tempfile::tempdir().unwrap();
        let view = view_with(vec![rule("all", "*.example.com", &[])]);
        let source = IpAddr::V4(view.members[0].ipv4);
        let shared = Shared::new(Ledger::open(directory.path(), "names").unwrap());
        let network = Network::new(&view, shared).unwrap();
        let host = "a.example.com".parse().unwrap();
        assert!(network.judge(source, &host, 443).allowed);
        assert_eq!(network.names.count(), 0);
        assert!(network.admit(source, &host, 443).allowed);
        assert_eq!(network.names.count(), 1);
    }

    #[test]
    fn the_hosts_own_addresses_are_known_as_such() {
        for own in ["127.0.0.1", "127.1.2.3", "::1"] {
            assert!(is_own(own.parse().unwrap()), "{own}");
        }
        for other in ["93.184.216.34", "2606:2800:220::1"] {
            assert!(!is_own(other.parse().unwrap()), "{other}");
        }
    }
}
