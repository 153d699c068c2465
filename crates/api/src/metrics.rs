//! What the API counts about itself.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Seconds; from an exec of `true` to a create that builds its image.
const BUCKETS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 10.0, 120.0];

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Answered {
    method: &'static str,
    route: Arc<str>,
    status: u16,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Taken {
    method: &'static str,
    route: Arc<str>,
}

type Durations = Family<Taken, Histogram, fn() -> Histogram>;

pub(crate) struct Metrics {
    registry: Registry,
    answered: Family<Answered, Counter>,
    taken: Durations,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("warren_api");
        let answered = Family::<Answered, Counter>::default();
        let taken: Durations = Family::new_with_constructor(|| Histogram::new(BUCKETS));
        registry.register("requests", "Requests that were answered", answered.clone());
        registry.register("request_duration_seconds", "Time until the answer began", taken.clone());
        Self { registry, answered, taken }
    }
}

impl Metrics {
    pub fn observe(&self, method: &Method, route: &Arc<str>, status: u16, took: Duration) {
        let method = known(method);
        self.answered.get_or_create(&Answered { method, route: route.clone(), status }).inc();
        self.taken.get_or_create(&Taken { method, route: route.clone() }).observe(took.as_secs_f64());
    }

    /// OpenMetrics text of the API, then that of the rest of the server.
    pub fn text(&self, rest: &str) -> Result<String, std::fmt::Error> {
        let mut own = String::new();
        text::encode_registry(&mut own, &self.registry)?;
        own.push_str(rest.strip_suffix("# EOF\n").unwrap_or(rest));
        if !own.ends_with('\n') {
            own.push('\n');
        }
        text::encode_eof(&mut own)?;
        Ok(own)
    }
}

/// A client may make methods up; they must not become label values.
fn known(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        _ => "other",
    }
}
