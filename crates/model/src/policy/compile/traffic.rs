//! Arithmetic with ports.

use super::{Carrier, PortRange};
use crate::policy::{Ports, Protocol};

const CARRIERS: [Carrier; 4] = [Carrier::Tcp, Carrier::Udp, Carrier::Icmp, Carrier::Other];

/// A set of (carrier, port). A carrier without ports has all or none. Ranges are sorted, disjoint and not adjacent,
/// except between `add` and `settle`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Traffic([Vec<PortRange>; 4]);

impl Traffic {
    pub(super) fn all() -> Self {
        Self([(); 4].map(|()| vec![PortRange::ALL]))
    }

    /// What rules with these ports are about.
    pub(super) fn of<'a>(rules: impl Iterator<Item = &'a [Ports]>) -> Self {
        let mut traffic = Self::default();
        rules.for_each(|ports| traffic.add(ports));
        traffic.settle();
        traffic
    }

    pub(super) fn ranges(&self) -> impl Iterator<Item = (Carrier, PortRange)> + '_ {
        CARRIERS.iter().zip(&self.0).flat_map(|(carrier, ranges)| ranges.iter().map(|range| (*carrier, *range)))
    }

    /// What is here and not there.
    pub(super) fn without(&self, other: &Self) -> Self {
        let mut left = Self::default();
        for ((kept, here), there) in left.0.iter_mut().zip(&self.0).zip(&other.0) {
            for range in here {
                let mut from = Some(range.first);
                for gone in there.iter().filter(|gone| gone.last >= range.first && gone.first <= range.last) {
                    if let Some(first) = from.filter(|first| *first < gone.first) {
                        kept.push(PortRange { first, last: gone.first - 1 });
                    }
                    from = gone.last.checked_add(1);
                }
                if let Some(first) = from.filter(|first| *first <= range.last) {
                    kept.push(PortRange { first, last: range.last });
                }
            }
        }
        left
    }

    /// A rule with these ports is about that, too. Ports are settled afterwards.
    fn add(&mut self, ports: &[Ports]) {
        if ports.is_empty() {
            *self = Self::all();
            return;
        }
        for ports in ports {
            let carrier = match ports.protocol {
                Protocol::Tcp => 0,
                Protocol::Udp => 1,
                Protocol::Icmp => 2,
                Protocol::Other => 3,
            };
            self.0[carrier].push(ports.range);
        }
    }

    fn settle(&mut self) {
        for ranges in &mut self.0 {
            if ranges.len() < 2 {
                continue;
            }
            ranges.sort_unstable();
            let mut settled: Vec<PortRange> = Vec::with_capacity(ranges.len());
            for range in ranges.drain(..) {
                match settled.last_mut() {
                    Some(last) if u32::from(range.first) <= u32::from(last.last) + 1 => {
                        last.last = last.last.max(range.last);
                    }
                    _ => settled.push(range),
                }
            }
            *ranges = settled;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traffic(texts: &[&str]) -> Traffic {
        let ports: Vec<Ports> = texts.iter().map(|text| text.parse().unwrap()).collect();
        Traffic::of(std::iter::once(ports.as_slice()))
    }

    #[test]
    fn ranges_join_and_subtract() {
        assert_eq!(traffic(&["tcp/1-5", "tcp/6-9", "tcp/3"]), traffic(&["tcp/1-9"]));
        assert_eq!(
            traffic(&["tcp/1-9"]).without(&traffic(&["tcp/3-4", "tcp/9", "udp"])),
            traffic(&["tcp/1-2", "tcp/5-8"])
        );
        assert_eq!(traffic(&["tcp", "icmp"]).without(&traffic(&["tcp"])), traffic(&["icmp"]));
        assert_eq!(Traffic::all().without(&Traffic::all()), Traffic::default());
        assert_eq!(traffic(&["tcp/65000-65535"]).without(&traffic(&["tcp/65535"])), traffic(&["tcp/65000-65534"]));
    }
}
