//! One byte there and back, TCP without delay: against a raw veth pair, and in a large network against a small one.

use crate::options::Options;
use crate::report::{Row, Unit, Wanted};
use crate::stats::{Pairs, in_turn};
use crate::wires::{Network, Placement, RawPair, Wire};

/// Round trips per sample, of which the median counts.
const TRIPS: usize = 20_000;

pub fn measure(options: &Options, raw: &RawPair, network: &Network) -> anyhow::Result<Row> {
    eprintln!("1-byte round trip");
    let ours = over(network)?;
    let theirs = Wire::new(&raw.near, &raw.far, RawPair::FAR, Placement::Apart)?;
    let pairs = compare(options, &ours, &theirs)?;
    Ok(Row::compared("round-trip", "1-byte round trip / raw veth", Unit::Microseconds, pairs, Wanted::RatioAtMost(1.4)))
}

pub fn measure_sizes(options: &Options, large: &Network, small: &Network) -> anyhow::Result<Row> {
    eprintln!("1-byte round trip in a large and a small network");
    let pairs = compare(options, &over(large)?, &over(small)?)?;
    let what = format!("1-byte round trip, {} members / {}", large.members.len(), small.members.len());
    Ok(Row::compared("round-trip-1000", what, Unit::Microseconds, pairs, Wanted::RatioAtMost(1.05)))
}

fn over(network: &Network) -> anyhow::Result<Wire<'_>> {
    let (near, far, address) = network.ends()?;
    Wire::new(near, far, address, Placement::Apart)
}

fn compare(options: &Options, ours: &Wire<'_>, theirs: &Wire<'_>) -> anyhow::Result<Pairs> {
    let trips = options.many(TRIPS);
    // A sample takes a fraction of a second, so more of them cost little and tell more.
    in_turn(2 * options.pairs(), || Ok(ours.round_trips(trips)?.p50), || Ok(theirs.round_trips(trips)?.p50))
}
