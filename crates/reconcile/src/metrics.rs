//! What the reconciler counts and times.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use warren_edge::TunnelStatus;
use warren_model::MachineId;
use warren_model::record::MachineState;

use crate::world::lock;

/// Seconds; a step takes from a tenth of a millisecond to the half minute that an agent may need.
const BUCKETS: [f64; 12] = [0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5, 30.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabel {
    step: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

type Steps = Family<StepLabel, Histogram, fn() -> Histogram>;

#[derive(Debug)]
pub struct Metrics {
    machine_steps: Steps,
    network_steps: Steps,
    machines: Family<StateLabel, Gauge>,
    states: Mutex<HashMap<MachineId, MachineState>>,
    pub repairs: Counter,
    pub edge_starts: Counter,
    sessions: Gauge,
    tunnel: [(&'static str, &'static str, Counter); 4],
}

impl Default for Metrics {
    fn default() -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(BUCKETS);
        Self {
            machine_steps: Family::new_with_constructor(histogram),
            network_steps: Family::new_with_constructor(histogram),
            machines: Family::default(),
            states: Mutex::default(),
            repairs: Counter::default(),
            edge_starts: Counter::default(),
            sessions: Gauge::default(),
            tunnel: [
                ("warren_vpn_handshakes", "Handshakes with operators that gave keys"),
                ("warren_vpn_handshakes_refused", "Handshakes of unknown keys, replays and forgeries"),
                ("warren_vpn_handshakes_dropped", "Handshakes that were not looked at, as too many came"),
                ("warren_vpn_messages_foreign", "Datagrams that belong to no session"),
            ]
            .map(|(name, help)| (name, help, Counter::default())),
        }
    }
}

impl Metrics {
    /// What the edge counted since it started.
    pub fn tunnel(&self, sessions: usize, tunnel: Option<&TunnelStatus>) {
        self.sessions.set(sessions as i64);
        let Some(TunnelStatus { handshakes, refused, dropped, foreign, .. }) = tunnel else { return };
        for ((_, _, counter), value) in self.tunnel.iter().zip([handshakes, refused, dropped, foreign]) {
            counter.inner().store(*value, Ordering::Relaxed);
        }
    }

    pub fn register(&self, registry: &mut Registry) {
        registry.register("warren_vpn_sessions", "Operator sessions that are open", self.sessions.clone());
        for (name, help, counter) in &self.tunnel {
            registry.register(*name, *help, counter.clone());
        }
        registry.register("warren_machine_step_seconds", "Time of one step of a machine", self.machine_steps.clone());
        registry.register("warren_network_step_seconds", "Time of one step of a network", self.network_steps.clone());
        registry.register("warren_machines", "Machines by state", self.machines.clone());
        registry.register("warren_drift_repairs", "Changes by others that were put right", self.repairs.clone());
        registry.register("warren_edge_restarts", "Times the edge was started anew", self.edge_starts.clone());
    }

    pub(crate) fn machine_step(&self, step: &'static str, took: Duration) {
        self.machine_steps.get_or_create(&StepLabel { step }).observe(took.as_secs_f64());
    }

    pub(crate) fn network_step(&self, step: &'static str, took: Duration) {
        self.network_steps.get_or_create(&StepLabel { step }).observe(took.as_secs_f64());
    }

    /// A machine is now in this state, or gone.
    pub(crate) fn state(&self, machine: MachineId, state: Option<MachineState>) {
        let mut states = lock(&self.states);
        let before = match state {
            Some(state) => states.insert(machine, state),
            None => states.remove(&machine),
        };
        let gauge = |state: MachineState| self.machines.get_or_create(&StateLabel { state: state.as_str() }).clone();
        if let Some(before) = before {
            gauge(before).dec();
        }
        if let Some(state) = state {
            gauge(state).inc();
        }
    }
}
