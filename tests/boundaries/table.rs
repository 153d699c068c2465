//! The catalogue: one line a case.

use std::collections::HashMap;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use serde_json::Value;
use warren_lab::outside::{Log, Mark};

use crate::world::{Driver, World, is_of};

/// What has to become of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    Denied,
    Allowed,
    /// Some of it is denied and some is allowed.
    Both,
}

pub struct Case {
    pub number: u16,
    pub text: &'static str,
    pub expected: Expected,
    pub run: fn(&mut Check),
}

/// What was seen of one case.
pub struct Check<'w> {
    pub world: &'w mut World,
    pub mark: Mark,
    before: HashMap<String, u64>,
    seen: Vec<String>,
    wrong: Vec<String>,
}

impl Check<'_> {
    pub fn log(&self) -> &Log {
        &self.world.outside.log
    }

    /// The control: something is reached, and so a canary that was not reached means something.
    pub fn must(&mut self, what: &str, holds: bool) {
        self.note(what, holds);
    }

    /// What must not have come through.
    pub fn never(&mut self, what: &str, happened: bool) {
        self.note(&format!("no {what}"), !happened);
    }

    /// No packet came to these addresses.
    pub fn nothing_to(&mut self, addresses: &[&str]) {
        let packets = self.world.packets(self.mark, addresses);
        self.note(&format!("{packets} packets outside"), packets == 0);
    }

    /// Packets came to each of these addresses.
    pub fn something_to(&mut self, addresses: &[&str]) {
        let reached = |address: &&str| self.world.packets(self.mark, &[*address]) > 0;
        let missed: Vec<_> = addresses.iter().filter(|address| !self.world.soon(|| reached(address))).collect();
        let all = missed.is_empty();
        let what = if all { "the control arrived".to_owned() } else { format!("the control did not reach {missed:?}") };
        self.note(&what, all);
    }

    /// A refusal was recorded: by this rule of the policy, or else by none or a built-in one, and with a reason.
    pub fn denial(&mut self, machine: &str, rule: Option<&str>, like: impl Fn(&Value) -> bool) -> Option<Value> {
        let found = self.world.recorded(&self.before, |item| is_of(item, machine) && like(item));
        match &found {
            Some(item) => {
                let reason = item["reason"].as_str().unwrap_or_default();
                let named = match (rule, item["rule"].as_str()) {
                    (Some(rule), said) => said == Some(rule),
                    (None, None) => !reason.is_empty(),
                    (None, Some(said)) => said.starts_with("builtin:"),
                };
                self.note(&format!("recorded as {}: {reason}", item["rule"]), named);
            }
            None => self.note("a record of it", false),
        }
        found
    }

    fn note(&mut self, what: &str, right: bool) {
        if right { self.seen.push(what.to_owned()) } else { self.wrong.push(what.to_owned()) }
    }

    /// What comes later is judged from here on.
    pub fn again(&mut self) {
        self.mark = self.world.mark();
        self.before = self.world.counts();
    }

    /// Runs Python in a machine; what it printed is shown when the case fails.
    pub fn py(&mut self, machine: &str, code: &str) -> String {
        self.world.py(machine, code)
    }
}

#[test]
fn every_way_out_of_the_catalogue() {
    let failed = run(Driver::Container);
    assert!(failed.is_empty(), "{} cases failed:\n{}", failed.len(), failed.join("\n"));
}

/// Runs the table and answers the lines of what failed.
fn run(driver: Driver) -> Vec<String> {
    let cases = [
        crate::addresses::CASES,
        crate::dns::CASES,
        crate::tls::CASES,
        crate::web::CASES,
        crate::names::CASES,
        crate::protocols::CASES,
        crate::state::CASES,
    ];
    let mut cases: Vec<&Case> = cases.into_iter().flatten().collect();
    cases.sort_by_key(|case| case.number);
    assert!((1..=53).eq(cases.iter().map(|case| case.number)), "a number is missing or there twice");
    let chosen = std::env::var("WARREN_CASES").unwrap_or_default();
    let chosen: Vec<u16> = chosen.split(',').filter_map(|number| number.parse().ok()).collect();
    let mut world = World::of_the_catalogue(driver);
    crate::tls::begin(&world);
    let mut failed = Vec::new();
    for case in cases.into_iter().filter(|case| chosen.is_empty() || chosen.contains(&case.number)) {
        let (mark, before, start) = (world.mark(), world.counts(), Instant::now());
        let mut check = Check { world: &mut world, mark, before, seen: Vec::new(), wrong: Vec::new() };
        // What went wrong in one case says nothing about the others.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (case.run)(&mut check))) {
            let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            check.wrong.push(format!("broke off: {}", said.unwrap_or_default()));
        }
        let Check { seen, wrong, .. } = check;
        let expected = match case.expected {
            Expected::Denied => "denied",
            Expected::Allowed => "allowed",
            Expected::Both => "denied and allowed",
        };
        let (outcome, what) = if wrong.is_empty() {
            (format!("{expected} as expected"), seen.join("; "))
        } else {
            (format!("NOT {expected}"), format!("{} [seen: {}]", wrong.join("; "), seen.join("; ")))
        };
        let line =
            format!("{:>2}  {}: {outcome} ({:.1} s): {what}", case.number, case.text, start.elapsed().as_secs_f64());
        // Past the capture of the test's output: the table is there to be read.
        let _ = writeln!(std::io::stderr(), "{line}");
        if !wrong.is_empty() {
            failed.push(line);
        }
    }
    failed
}
