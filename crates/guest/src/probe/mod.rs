//! The audit's probe: listens, tries, and says what it saw. What it speaks is in [`warren_model::probe`].
//!
//! It needs nothing of the machine's image: no resolver, no program, no file. Everything it waits for is bounded.
//!
//! | module | holds |
//! | --- | --- |
//! | [`listen`] | sockets at which tokens arrive |
//! | [`watch`] | raw sockets that see tokens arrive at any port |
//! | [`attempt`] | one attempt over TCP, UDP or ICMP |
//! | [`refusal`] | what the kernel knows of an ICMP error |
//! | [`lookup`] | one question to a resolver |

mod attempt;
mod listen;
mod lookup;
mod refusal;
mod watch;

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};
use tokio::sync::Semaphore;
use warren_model::probe::{
    Arrival, Arrivals, Attempt, Attempts, LONGEST_LINE, MOST_ATTEMPTS, MOST_PORTS, Observations, Outcome, PATIENCE_MS,
    Setup, Token,
};

/// Attempts under way at once.
const AT_ONCE: usize = 256;
/// The longest that a probe runs, whatever it is told.
const LONGEST_LIFE: Duration = Duration::from_secs(600);
/// The most tokens that are kept: what comes in is anybody's.
const MOST_ARRIVALS: usize = 65_536;

/// How long one attempt waits.
const PATIENCE: Duration = Duration::from_millis(PATIENCE_MS);

/// Why a probe gave up.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("stdin ended before it said what to do")]
    Ended,
    #[error("a line on stdin is no request of this probe")]
    Request(#[from] serde_json::Error),
    #[error("more is asked for than one probe does")]
    TooMuch,
    #[error("stdin or stdout broke off")]
    Io(#[from] std::io::Error),
    #[error("its time is over")]
    Late,
}

/// The process body.
pub fn run() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("warren-guest: no event loop: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(probe());
    // A thread may wait on stdin for ever.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("warren-guest: the probe gives up: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn probe() -> Result<(), ProbeError> {
    let mut input = BufReader::new(tokio::io::stdin());
    let setup: Setup =
        tokio::time::timeout(LONGEST_LIFE, request(&mut input)).await.map_err(|_| ProbeError::Late)??;
    let life = Duration::from_millis(setup.lifetime_ms).min(LONGEST_LIFE);
    tokio::time::timeout(life, work(setup, input)).await.map_err(|_| ProbeError::Late)?
}

async fn work(setup: Setup, mut input: BufReader<impl AsyncRead + Unpin>) -> Result<(), ProbeError> {
    if setup.tcp.len() + setup.udp.len() > MOST_PORTS || setup.addresses.len() > 4 {
        return Err(ProbeError::TooMuch);
    }
    let seen = Seen::default();
    let mut problems = Vec::new();
    let sees_all = watch::start(&seen).map_err(|error| problems.push(format!("no raw sockets: {error}"))).is_ok();
    let mut listening = listen::start(&setup, &seen, &mut problems);
    listening.sees_all = sees_all;
    listening.problems = problems;
    say(&listening)?;

    let wanted: Attempts = request(&mut input).await?;
    if wanted.attempts.len() > MOST_ATTEMPTS {
        return Err(ProbeError::TooMuch);
    }
    say(&Observations { outcomes: try_all(wanted.attempts).await })?;

    // Whoever asked ends stdin when every other probe has made its attempts.
    let mut rest = Vec::new();
    input.take(1).read_to_end(&mut rest).await?;
    say(&seen.take())
}

/// All at about the same time, answered in their order.
async fn try_all(attempts: Vec<Attempt>) -> Vec<Outcome> {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let tasks: Vec<_> = attempts
        .into_iter()
        .map(|attempt| {
            let places = Arc::clone(&places);
            tokio::spawn(async move {
                let _place = places.acquire().await;
                try_one(attempt).await
            })
        })
        .collect();
    let mut outcomes = Vec::with_capacity(tasks.len());
    for task in tasks {
        let outcome = task.await.unwrap_or_else(|_| Outcome::NotTried { why: "the probe failed at it".to_owned() });
        outcomes.push(outcome);
    }
    outcomes
}

async fn try_one(attempt: Attempt) -> Outcome {
    let outcome = match attempt {
        Attempt::Tcp { to, token } => attempt::tcp(to, &token, PATIENCE).await,
        Attempt::Udp { to, token } => attempt::udp(to, &token, PATIENCE).await,
        Attempt::Icmp { to, token } => attempt::icmp(to, &token, PATIENCE).await,
        Attempt::Lookup { server, name } => lookup::lookup(server, &name, PATIENCE).await,
    };
    outcome.unwrap_or_else(|error| Outcome::NotTried { why: error.to_string() })
}

/// Has the event loop watch a socket.
fn registered(socket: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor is open, and stays the same one, for as long as the AsyncFd owns it.
    unsafe { AsyncFd::register(socket) }.map_err(Into::into)
}

/// The tokens that came in.
#[derive(Clone, Default)]
pub struct Seen(Arc<Mutex<Arrivals>>);

impl Seen {
    /// The first arrival of a token counts.
    fn note(&self, token: Token, arrival: Arrival) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.arrivals.len() < MOST_ARRIVALS {
            seen.arrivals.entry(token).or_insert(arrival);
        }
    }

    fn take(&self) -> Arrivals {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn request<T: DeserializeOwned>(input: &mut BufReader<impl AsyncRead + Unpin>) -> Result<T, ProbeError> {
    let mut line = Vec::new();
    input.take(LONGEST_LINE as u64).read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Err(ProbeError::Ended);
    }
    Ok(serde_json::from_slice(&line)?)
}

fn say(answer: &impl Serialize) -> Result<(), ProbeError> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&line)?;
    stdout.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests;
