//! A new member of a large network, until its packets pass.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use crate::interrupt;
use crate::namespace::Namespace;
use crate::options::Options;
use crate::report::{Row, Unit, Wanted};
use crate::stats::Samples;
use crate::traffic::first_reply;
use crate::wires::{Far, Network};

/// At least this many members are added.
const LEAST: usize = 15;
const GIVE_UP: Duration = Duration::from_secs(2);

pub fn measure(options: &Options, network: &mut Network) -> anyhow::Result<Row> {
    eprintln!("adding members");
    let members = network.members.len();
    let echo = {
        let (near, _, _) = network.ends()?;
        Far::serve(near, network.member(0)?.ipv4.into(), None)?
    };
    let (mut whole, mut admitted, mut attached, mut passed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let count = options.pairs().max(LEAST);
    for turn in 0..=count {
        interrupt::check()?;
        let member = network.member(network.members.len())?;
        let namespace = Namespace::bare()?;
        let began = Instant::now();
        network.kernel.admit(&network.spec, std::slice::from_ref(&member))?;
        let after_admit = Instant::now();
        network.kernel.attach(&network.spec, &member, namespace.as_fd())?;
        let after_attach = Instant::now();
        namespace.enter(|| first_reply(echo.at, GIVE_UP))?;
        let end = Instant::now();
        network.members.push((member, namespace));
        if turn > 0 {
            whole.push(milliseconds(end - began));
            admitted.push(milliseconds(after_admit - began));
            attached.push(milliseconds(after_attach - after_admit));
            passed.push(milliseconds(end - after_attach));
        }
    }
    let part = |what: &str, samples: Vec<f64>| -> anyhow::Result<String> {
        Ok(format!("{what:<22} {:.2} ms", Samples::new(samples)?.median()))
    };
    let notes = [part("rules", admitted)?, part("link, routes", attached)?, part("first reply", passed)?];
    let what = format!("adding a member to {members}, until its packets pass");
    let row = Row::alone("add-member", what, Unit::Milliseconds, Samples::new(whole)?, Wanted::AtMost(5.0));
    Ok(row.note(notes))
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
