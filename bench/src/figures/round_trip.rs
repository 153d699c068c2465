//! One byte there and back, TCP without delay: against a raw veth pair, and in a large network against a small one.
//!
//! Both ends are on one processor. On two, most of a round trip is spent on waking an idle processor (in a virtual
//! machine tens of microseconds), which is the same on every wire and would hide what the path costs.

use crate::options::Options;
use crate::report::{Row, Unit, Wanted};
use crate::stats::{Pairs, in_turn};
use crate::wires::{Network, Placement, RawPair, Wire};

/// Round trips per sample, of which the median counts.
const TRIPS: usize = 20_000;

pub fn measure(options: &Options, raw: &RawPair, network: &Network) -> anyhow::Result<Row> {
    eprintln!("1-byte round trip");
    let under = |placement| -> anyhow::Result<Pairs> {
        let theirs = Wire::new(&raw.near, &raw.far, RawPair::FAR, placement)?;
        compare(options, &over(network, placement)?, &theirs)
    };
    let (pairs, apart) = (under(Placement::Together)?, under(Placement::Apart)?);
    let note = format!(
        "with the ends on two processors: {:.1} us / {:.1} us, ratio {:.2}",
        apart.warren.median(),
        apart.baseline.median(),
        apart.ratios().median()
    );
    let what = "1-byte round trip / raw veth";
    Ok(Row::compared("round-trip", what, Unit::Microseconds, pairs, Wanted::RatioAtMost(1.4)).note([note]))
}

pub fn measure_sizes(options: &Options, large: &Network, small: &Network) -> anyhow::Result<Row> {
    eprintln!("1-byte round trip in a large and a small network");
    let pairs = compare(options, &over(large, Placement::Together)?, &over(small, Placement::Together)?)?;
    let what = format!("1-byte round trip, {} members / {}", large.members.len(), small.members.len());
    Ok(Row::compared("round-trip-1000", what, Unit::Microseconds, pairs, Wanted::RatioAtMost(1.05)))
}

fn over(network: &Network, placement: Placement) -> anyhow::Result<Wire<'_>> {
    let (near, far, address) = network.ends()?;
    Wire::new(near, far, address, placement)
}

fn compare(options: &Options, ours: &Wire<'_>, theirs: &Wire<'_>) -> anyhow::Result<Pairs> {
    let trips = options.many(TRIPS);
    // A sample takes a fraction of a second, so more of them cost little and tell more.
    in_turn(2 * options.pairs(), || Ok(ours.round_trips(trips)?.p50), || Ok(theirs.round_trips(trips)?.p50))
}
