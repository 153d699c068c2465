//! Measures how many questions a second a resolver answers.
//!
//! ```text
//! dnsload SERVER:PORT NAMES [SECONDS] [IN-FLIGHT]
//! ```
//!
//! `NAMES` is a file with one name a line, or `PATTERN:COUNT`, where `{}` in the pattern becomes a number from 0.

use std::error::Error;
use std::time::Duration;

use warren_edge::load::{Load, measure};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [server, names, rest @ ..] = arguments.as_slice() else {
        return Err("usage: dnsload SERVER:PORT FILE|PATTERN:COUNT [SECONDS] [IN-FLIGHT]".into());
    };
    let names = match names.rsplit_once(':').map(|(pattern, count)| (pattern, count.parse::<usize>())) {
        Some((pattern, Ok(count))) => (0..count).map(|n| pattern.replace("{}", &n.to_string())).collect(),
        _ => std::fs::read_to_string(names)?.lines().map(str::to_owned).collect(),
    };
    let seconds = rest.first().map_or(Ok(3.0), |text| text.parse())?;
    let in_flight = rest.get(1).map_or(Ok(64), |text| text.parse())?;
    let load = Load { server: server.parse()?, names, in_flight, duration: Duration::from_secs_f64(seconds) };
    let report = measure(&load)?;
    println!(
        "{:.0} answers/s, p50 {:?}, p99 {:?}, {} wrong, {} lost",
        report.per_second(),
        report.p50,
        report.p99,
        report.wrong,
        report.lost
    );
    Ok(())
}
