//! `true` in a running machine, through the API, on one connection.

use std::time::Instant;

use crate::api::Client;
use crate::interrupt;
use crate::options::Options;
use crate::report::{Row, Unit, Wanted};
use crate::server;
use crate::stats::Samples;

const CALLS: usize = 500;
/// Calls before those that count.
const WARM_UP: usize = 20;

pub fn measure(options: &Options, client: &mut Client) -> anyhow::Result<Row> {
    eprintln!("exec of true");
    let machine = server::create_machine(client)?;
    let mut taken = Vec::new();
    for call in 0..WARM_UP + options.many(CALLS) {
        interrupt::check()?;
        let began = Instant::now();
        server::exec_true(client, &machine)?;
        if call >= WARM_UP {
            taken.push(began.elapsed().as_secs_f64() * 1e3);
        }
    }
    server::delete_machine(client, &machine)?;
    let samples = Samples::new(taken)?;
    let note = format!("p99 {:.2} ms of {} calls", samples.percentile(99.0), samples.len());
    Ok(Row::alone("exec", "exec of true through the API", Unit::Milliseconds, samples, Wanted::AtMost(3.0))
        .note([note]))
}
