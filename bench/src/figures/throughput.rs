//! TCP from machine to machine, against a raw veth pair.

use crate::options::Options;
use crate::report::{Row, Unit, Wanted};
use crate::stats::in_turn;
use crate::wires::{Network, Placement, RawPair, Wire};

pub fn measure(options: &Options, streams: usize, raw: &RawPair, network: &Network) -> anyhow::Result<Row> {
    eprintln!("throughput of {streams} TCP streams");
    let (near, far, address) = network.ends()?;
    // One stream has one processor for each end; several are spread by the kernel, as it would do for machines.
    let placement = if streams == 1 { Placement::Apart } else { Placement::Free };
    let ours = Wire::new(near, far, address, placement)?;
    let theirs = Wire::new(&raw.near, &raw.far, RawPair::FAR, placement)?;
    let sample = options.sample();
    let pairs = in_turn(options.pairs(), || ours.throughput(streams, sample), || theirs.throughput(streams, sample))?;
    let (name, what) = match streams {
        1 => ("throughput-1", "machine to machine, 1 TCP stream / raw veth".to_owned()),
        _ => ("throughput-4", format!("machine to machine, {streams} TCP streams / raw veth")),
    };
    Ok(Row::compared(name, what, Unit::GigabitsPerSecond, pairs, Wanted::RatioAtLeast(0.90)))
}
