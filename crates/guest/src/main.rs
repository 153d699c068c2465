//! The agent that is PID 1 in every machine.
//!
//! One thread runs everything that has to stay in step (dialing, HTTP/2, forking, reaping); file work and walks over
//! `/proc` go to a few helper threads, and the console log has a thread of its own, so that a file system that hangs
//! stops only who asked for it.
//!
//! | module | holds |
//! | --- | --- |
//! | [`startup`] | becoming PID 1: session, descriptors, limits |
//! | [`console`] | the console log inside the machine |
//! | [`serve`] | dialing the host and answering it |
//! | [`reaper`] | every child's end, and the machine's own end |
//! | [`account`] | users and groups of the machine |
//! | [`spawn`] | fork and exec |
//! | [`exec`] | a command under way: streams, terminal, time limit, background children |
//! | [`files`] | reading, writing and listing |
//! | [`configure`] | host name and the files that the host keeps |
//! | [`procfs`], [`ports`] | processes and sockets |
//! | [`probe`] | the same program as a command in a machine: the audit's probe |
//!
//! When the host's daemon dies, its commands cannot hand over their results any more. A command that holds a
//! terminal or whose stdin is still open is ended, since what it waits for can never come; any other command runs on
//! to its end or its time limit, and what it writes goes to the console log. A caller that gives its command up, while
//! the daemon lives, ends it.

mod account;
mod configure;
mod console;
mod exec;
mod files;
mod ports;
mod probe;
mod procfs;
mod reaper;
mod serve;
mod spawn;
mod startup;

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};
use warren_guest::protocol;

/// Time from SIGTERM to SIGKILL when the machine is told to stop by a signal.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Helper threads for blocking work.
const HELPERS: usize = 8;

/// What every request can reach.
pub struct Agent {
    console: console::Console,
    reaper: reaper::Reaper,
    limits: startup::Limits,
    helpers: Semaphore,
    stop: mpsc::Sender<Duration>,
}

impl Agent {
    /// Runs blocking work on a helper thread, at most [`HELPERS`] at a time.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> std::io::Result<T> {
        let _permit = self.helpers.acquire().await.map_err(std::io::Error::other)?;
        tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)
    }
}

fn main() -> std::process::ExitCode {
    if std::process::id() != 1 {
        if std::env::args_os().nth(1).is_some_and(|argument| argument == warren_model::probe::COMMAND) {
            return probe::run();
        }
        eprintln!("warren-guest is the first process of a machine and does nothing elsewhere");
        return std::process::ExitCode::from(2);
    }
    let socket = std::env::args_os().nth(1).unwrap_or_else(|| protocol::SOCKET.into());
    let limits = startup::become_init();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(HELPERS)
        .thread_stack_size(512 << 10)
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(run(limits, socket.into())),
        Err(error) => {
            eprintln!("warren-guest: no event loop: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

async fn run(limits: startup::Limits, socket: std::path::PathBuf) -> std::process::ExitCode {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), reaper::Reaper::start());
    let (Ok(mut terminate), Ok(mut interrupt), Ok(reaper)) = signals else {
        eprintln!("warren-guest: signals cannot be received");
        return std::process::ExitCode::FAILURE;
    };
    let (stop, mut stopped) = mpsc::channel(1);
    let agent =
        Arc::new(Agent { console: console::Console::start(), reaper, limits, helpers: Semaphore::new(HELPERS), stop });
    agent.console.say(&format!("agent {} started", env!("CARGO_PKG_VERSION")));
    let serving = tokio::spawn(serve::serve(Arc::clone(&agent), socket));
    let grace = tokio::select! {
        _ = terminate.recv() => STOP_GRACE,
        _ = interrupt.recv() => STOP_GRACE,
        grace = stopped.recv() => grace.unwrap_or(STOP_GRACE),
    };
    serving.abort();
    agent.reaper.end_everything(grace).await;
    std::process::ExitCode::SUCCESS
}
