//! Measures what Warren promises.
//!
//! Every comparison measures both sides in one run, in turn, so that what else happens on the machine meets both. All
//! of it happens in network namespaces that belong to this process and end with it; the namespace it was started in is
//! never touched.
//!
//! | module | holds |
//! | --- | --- |
//! | [`figures`] | one file per figure: what is measured, against what, and what is wanted |
//! | [`wires`] | two namespaces, joined by a raw veth pair or by Warren's data plane |
//! | [`traffic`], [`hello`] | the sender, receiver and echo that run on both kinds of wire; how TLS begins |
//! | [`load`] | questions to a resolver, as many as it answers |
//! | [`edge`] | `warren edge`, started as the daemon starts it |
//! | [`outside`] | an internet of one server, and the way there without Warren |
//! | [`proxies`] | the proxies that Warren's is compared with |
//! | [`tunnels`] | two ends of a WireGuard tunnel, Warren's or another one's |
//! | [`sessions`] | an operator's machine, and operators that join a network of a server |
//! | [`ingresses`] | Warren's ingress and those that it is compared with, and what asks them |
//! | [`server`], [`api`] | a Warren server of the benchmark's own, and a client of it |
//! | [`bundle`] | the same container without Warren: bare `runc` |
//! | [`namespace`], [`process`] | network namespaces without a name, and processes in them |
//! | [`stats`], [`report`] | samples taken in turn, and the table |

#![forbid(unsafe_code)]

mod api;
mod bundle;
mod edge;
mod figures;
mod hello;
mod ingresses;
mod interrupt;
mod load;
mod namespace;
mod options;
mod outside;
mod process;
mod proxies;
mod report;
mod server;
mod sessions;
mod stats;
mod traffic;
mod tunnels;
mod wires;

use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::Parser as _;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use options::{Cli, Hidden, Options};
use report::Report;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.hidden {
        Some(Hidden::Confined(arguments)) => process::confined(arguments).map(|never| match never {}),
        Some(Hidden::Traffic(role)) => traffic::run(role).map(|()| ExitCode::SUCCESS),
        Some(Hidden::Tunnel(end)) => tunnels::run(&end).map(|()| ExitCode::SUCCESS),
        None => measure(cli.options),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("warren-bench: {error:#}");
        ExitCode::FAILURE
    })
}

/// Success also when a figure misses: it was measured. Failure when one could not be measured.
fn measure(options: Options) -> anyhow::Result<ExitCode> {
    ensure!(nix::unistd::geteuid().is_root(), "namespaces are made, so this has to run as root: run it with sudo");
    // Before there is a second thread: from here on nothing can touch the host's own network.
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    // A network of 1,000 members holds as many namespaces open.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    interrupt::listen()?;

    let mut report = Report::new();
    figures::measure(&options, &mut report);
    print!("{}", report.table());
    if let Some(path) = &options.json {
        std::fs::write(path, report.json()?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(if report.is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
