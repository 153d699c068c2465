//! Requests over TLS, on connections that are kept alive, through Warren's ingress and through another one.
//!
//! The ingress has one thread and one processor for itself; who asks and who answers share the other one, and have far
//! less to do. Both ingresses have the same certificate and the same server behind them, and run all the time; only
//! one of them is asked.

use crate::ingresses::{Ingress, Kind, Protocol, Seen, World};
use crate::options::Options;
use crate::report::{Row, Unit, Wanted};
use crate::stats::{Pairs, Samples, in_turn};

/// Requests a second, and the slowest of a hundred of the same requests.
pub fn measure(options: &Options, world: &World, kind: Kind, protocol: Protocol) -> anyhow::Result<[Row; 2]> {
    let (against, least) = match kind {
        Kind::Haproxy => ("HAProxy", 0.7),
        _ => ("Caddy", 1.0),
    };
    let ([rate, slowest], spoken) = match (kind, protocol) {
        (Kind::Haproxy, Protocol::Http1) => (["ingress-haproxy", "ingress-haproxy-p99"], "HTTP/1.1"),
        (Kind::Haproxy, Protocol::Http2) => (["ingress-h2-haproxy", "ingress-h2-haproxy-p99"], "HTTP/2"),
        (_, Protocol::Http1) => (["ingress-caddy", "ingress-caddy-p99"], "HTTP/1.1"),
        (_, Protocol::Http2) => (["ingress-h2-caddy", "ingress-h2-caddy-p99"], "HTTP/2"),
    };
    eprintln!("requests through the ingress by {spoken}, against {against}");
    let (ours, theirs) = (world.ingress(options, Kind::Warren)?, world.ingress(options, kind)?);
    let (mut seen, mut seen_there) = (Vec::new(), Vec::new());
    let pairs = in_turn(
        options.pairs(),
        || sample(options, &ours, protocol, &mut seen),
        || sample(options, &theirs, protocol, &mut seen_there),
    )?;
    let slow = Pairs { warren: p99(&seen)?, baseline: p99(&seen_there)? };
    let notes = [
        format!("the processors of the ingress and of both ends were busy: with Warren {}", busy(&seen)?),
        format!("with {against} {}", busy(&seen_there)?),
        "Warren's dials the server directly here, and not through the namespace of a network".to_owned(),
    ];
    let what = format!("{spoken} over TLS, requests / {against}");
    let rate = Row::compared(rate, what, Unit::PerSecond, pairs, Wanted::RatioAtLeast(least)).note(notes);
    let what = format!("{spoken} over TLS, p99 of these / {against}");
    Ok([rate, Row::compared(slowest, what, Unit::Milliseconds, slow, Wanted::RatioAtMost(1.0 / least))])
}

fn sample(options: &Options, ingress: &Ingress<'_>, protocol: Protocol, seen: &mut Vec<Seen>) -> anyhow::Result<f64> {
    let saw = ingress.ask(protocol, options.sample())?;
    seen.push(saw);
    Ok(saw.per_second)
}

/// Without the turn that does not count.
fn p99(seen: &[Seen]) -> anyhow::Result<Samples> {
    Samples::new(seen.iter().skip(1).map(|seen| seen.p99).collect())
}

/// Medians.
fn busy(seen: &[Seen]) -> anyhow::Result<String> {
    let share = |which: usize| Samples::new(seen.iter().skip(1).map(|seen| seen.busy[which] * 100.0).collect());
    Ok(format!("{:.0} % and {:.0} %", share(0)?.median(), share(1)?.median()))
}
