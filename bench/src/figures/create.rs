//! From nothing to the answer of a machine's first command, against the same container started by `runc` alone.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::api::Client;
use crate::bundle::Bundle;
use crate::options::Options;
use crate::report::{Row, Unit, Wanted};
use crate::server::{self, Server};
use crate::stats::in_turn;

pub fn measure(options: &Options, server: &Server, client: &mut Client) -> anyhow::Result<Row> {
    eprintln!("create to first exec");
    // Its bundle is what `runc` starts; it also brings the account's network into being.
    let donor = server::create_machine(client)?;
    let mut bundle = Bundle::like(server, &donor)?;
    let mut shares = Shares::default();
    // A pair takes a quarter of a second, so more of them cost little and tell more.
    let pairs = in_turn(3 * options.pairs(), || shares.sample(client), || bundle.sample())?;
    let bare = bundle.line()?;
    drop(bundle);
    server::delete_machine(client, &donor)?;
    let what = "create to first exec answered / bare runc create + start";
    let row = Row::compared("create", what, Unit::Milliseconds, pairs, Wanted::RatioAtMost(1.8));
    Ok(row.and(Wanted::AtMost(80.0)).note(shares.lines()).note([bare]))
}

/// Where the time went, over all samples, in milliseconds.
#[derive(Default)]
struct Shares {
    steps: BTreeMap<String, f64>,
    create: f64,
    exec: f64,
    count: f64,
}

impl Shares {
    /// Milliseconds from the request for a machine to the answer of its first command.
    fn sample(&mut self, client: &mut Client) -> anyhow::Result<f64> {
        let before = server::machine_steps(client)?;
        let began = Instant::now();
        let machine = server::create_machine(client)?;
        let created = began.elapsed().as_secs_f64() * 1e3;
        server::exec_true(client, &machine)?;
        let whole = began.elapsed().as_secs_f64() * 1e3;
        for (step, seconds) in server::machine_steps(client)? {
            let spent = seconds - before.get(&step).copied().unwrap_or_default();
            *self.steps.entry(step).or_default() += spent * 1e3;
        }
        self.create += created;
        self.exec += whole - created;
        self.count += 1.0;
        server::delete_machine(client, &machine)?;
        Ok(whole)
    }

    fn lines(&self) -> Vec<String> {
        let whole = self.create + self.exec;
        let known: f64 = self.steps.values().sum();
        let mut parts: Vec<(&str, f64)> = self.steps.iter().map(|(step, spent)| (step.as_str(), *spent)).collect();
        parts.retain(|(_, spent)| *spent > 0.0);
        parts.push(("the rest of create: requests, store, waking", self.create - known));
        parts.push(("first exec", self.exec));
        parts.sort_by(|one, other| other.1.total_cmp(&one.1));
        let share = |(part, spent): (&str, f64)| {
            format!("{part:<44} {:>6.2} ms {:>4.0} %", spent / self.count, spent / whole * 100.0)
        };
        let head = format!("means of {} machines, parts by size", self.count);
        std::iter::once(head).chain(parts.into_iter().map(share)).collect()
    }
}
