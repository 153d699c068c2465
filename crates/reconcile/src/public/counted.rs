//! Metrics of the public side: what the edge counted, over the lives of edges and domains.

use std::collections::BTreeMap;
use std::sync::Mutex;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use warren_edge::PublicCounters;

use crate::world::lock;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: String,
}

#[derive(Debug, Default)]
pub(crate) struct PublicMetrics {
    requests: Counter,
    refused: Family<CodeLabel, Counter>,
    connections: Gauge,
    connections_refused: Counter,
    handshakes_failed: Counter,
    /// What was counted before, by what it counts.
    before: Mutex<BTreeMap<String, u64>>,
}

impl PublicMetrics {
    pub fn register(&self, registry: &mut Registry) {
        let Self { requests, refused, connections, connections_refused, handshakes_failed, before: _ } = self;
        registry.register("warren_public_requests", "Requests from outside, refused or not", requests.clone());
        registry.register(
            "warren_public_requests_refused",
            "Requests that no machine answered, by code",
            refused.clone(),
        );
        registry.register("warren_public_connections", "Connections from outside that are open", connections.clone());
        registry.register(
            "warren_public_connections_refused",
            "Connections from outside that were one too many",
            connections_refused.clone(),
        );
        registry.register(
            "warren_public_handshakes_failed",
            "TLS handshakes that failed, also for names that nobody has",
            handshakes_failed.clone(),
        );
    }

    /// Adds what happened since the last time.
    pub fn count(&self, now: &PublicCounters) {
        let mut before = lock(&self.before);
        let mut seen = BTreeMap::new();
        let mut since = |what: String, count: u64| {
            let last = before.get(&what).copied().unwrap_or(0);
            seen.insert(what, count);
            // Another edge counts from 0.
            if count < last { count } else { count - last }
        };
        for site in &now.sites {
            self.requests.inc_by(since(format!("requests/{}", site.id), site.requests));
            for (code, count) in &site.refused {
                self.refuse(code, since(format!("refused/{}/{code}", site.id), *count));
            }
        }
        for (code, count) in &now.totals.refused {
            let more = since(format!("nobody/{code}"), *count);
            self.requests.inc_by(more);
            self.refuse(code, more);
        }
        self.connections_refused.inc_by(since("connections".to_owned(), now.totals.connections_refused));
        self.handshakes_failed.inc_by(since("handshakes".to_owned(), now.totals.handshakes_failed));
        self.connections.set(now.totals.open_connections.into());
        *before = seen;
    }

    fn refuse(&self, code: &str, count: u64) {
        self.refused.get_or_create(&CodeLabel { code: code.to_owned() }).inc_by(count);
    }
}

#[cfg(test)]
mod tests {
    use warren_ingress::{SiteCounters, Totals};

    use super::*;

    fn counters(id: &str, requests: u64, limited: u64) -> PublicCounters {
        let site = SiteCounters {
            id: id.to_owned(),
            host: "a.example".parse().unwrap(),
            requests,
            refused: [("rate_limited".to_owned(), limited)].into(),
            bytes_in: 0,
            bytes_out: 0,
            open_connections: 0,
            open_requests: 0,
        };
        let totals = Totals { refused: [("host_unknown".to_owned(), 1)].into(), ..Totals::default() };
        PublicCounters { sites: vec![site], totals }
    }

    #[test]
    fn what_was_counted_is_counted_once_also_when_the_edge_or_the_domain_is_another() {
        let metrics = PublicMetrics::default();
        let refused = |code: &str| metrics.refused.get_or_create(&CodeLabel { code: code.to_owned() }).get();
        metrics.count(&counters("one", 10, 2));
        metrics.count(&counters("one", 15, 3));
        assert_eq!((metrics.requests.get(), refused("rate_limited"), refused("host_unknown")), (16, 3, 1));
        metrics.count(&counters("one", 4, 1));
        assert_eq!((metrics.requests.get(), refused("rate_limited")), (20, 4));
        metrics.count(&counters("two", 5, 0));
        assert_eq!((metrics.requests.get(), refused("rate_limited"), refused("host_unknown")), (25, 4, 1));
    }
}
