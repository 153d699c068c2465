//! Refused packets that nobody was told about. What the rules count for each member lacks none of them.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use warren_kernel::DeniedLosses;

/// How often they are looked at: an operator is told no more often.
pub(super) const LOOKED_AT_EVERY: Duration = Duration::from_secs(60);

#[derive(Debug, Default, Clone)]
pub(super) struct Losses {
    counted: Family<CauseLabel, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabel {
    cause: &'static str,
}

impl Losses {
    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Refused packets that were counted and not told one by one, by the cause";
        registry.register("warren_denials_lost", help, self.counted.clone());
    }

    /// Counts and tells what is new since the last time.
    pub(super) fn take(&self, before: &DeniedLosses, now: &DeniedLosses) {
        let causes = [
            ("overrun", before.overrun, now.overrun),
            ("dropped", before.dropped, now.dropped),
            ("malformed", before.malformed, now.malformed),
        ];
        for (cause, before, now) in causes {
            let lost = now.saturating_sub(before);
            if lost > 0 {
                self.counted.get_or_create(&CauseLabel { cause }).inc_by(lost);
                tracing::warn!(cause, packets = lost, "refused packets are counted, but were not told one by one");
            }
        }
        for (network, why) in now.unread.iter().filter(|(network, _)| !before.unread.contains_key(network)) {
            tracing::warn!(%network, why, "refused packets of this network are counted, but not told");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_loss_is_counted_once_by_its_cause() {
        let (losses, mut registry) = (Losses::default(), Registry::default());
        losses.register(&mut registry);
        let first = DeniedLosses { overrun: 3, malformed: 1, ..DeniedLosses::default() };
        let second = DeniedLosses { overrun: 5, malformed: 1, ..DeniedLosses::default() };
        losses.take(&DeniedLosses::default(), &first);
        losses.take(&first, &second);
        losses.take(&second, &second);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("warren_denials_lost_total{cause=\"overrun\"} 5\n"), "{text}");
        assert!(text.contains("warren_denials_lost_total{cause=\"malformed\"} 1\n"), "{text}");
        assert!(!text.contains("dropped"), "{text}");
    }
}
