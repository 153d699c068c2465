//! `exec` and `shell`: a command in a machine, with the caller's streams, signals and terminal.
//!
//! Four things run at once, and none waits for another:
//!
//! ```text
//! stdin (thread) ──▶ bounded channel ──▶ writer (task) ──▶ server
//! signals, resizes ──▶ controls ────────▶   "
//! server ──▶ pump ──▶ bounded channel ──▶ stdout, stderr (thread)
//! ```
//!
//! The channels are bounded, so whoever reads slowly slows the other end down.

mod signals;
pub mod streams;

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use tokio::sync::mpsc;
use warren_model::wire::{Denial, Exec, ExecControl, ExecResult};

use self::signals::Control;
use self::streams::{Sink, Written};
use super::failure::Failure;
use super::output::note;
use super::terminal::{self, RawMode};
use super::{Context, denials, values};
use crate::client::error::ClientError;
use crate::client::exec::{Output, Receiver, Sender};

/// The command's time was over.
const TIMED_OUT: i32 = 124;
/// Warren could not run the command, or lost it.
const OWN_FAILURE: i32 = 125;
const NOT_EXECUTABLE: i32 = 126;
const NOT_FOUND: i32 = 127;
/// What a command that wrote to a closed pipe ends with: 128 and SIGPIPE.
const BROKEN_PIPE: i32 = 141;
/// How often the hops in between are shown that the connection is in use.
const PING_EVERY: Duration = Duration::from_secs(30);
/// Bash where the machine has it.
const LOGIN_SHELL: &str = "if command -v bash >/dev/null 2>&1; then exec bash -l; fi; exec sh -l";

#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(after_help = "\
Stdin, stdout and stderr are the command's; so is the exit status, but for 124 (time limit), 125 (Warren's own failure), \
126 (not executable) and 127 (not found). Without --tty, SIGINT and SIGTERM are passed on to the command.

A command that leaves children in the background ends when one of them listens on a port, all have ended, or a second has \
passed; --no-settle ends it at once.

What follows the machine's name is the command's; `--` before it is needed only when it begins with a dash.

Examples:
  warren exec worker -- ls -l /
  warren exec worker python3 --version
  warren exec worker -- sh -c 'cd /srv && python3 -m http.server 8080 &'
  tar c src | warren exec worker -- tar x -C /srv
  warren exec --tty worker -- top
  warren exec --timeout 30s --env DEBUG=1 --user nobody worker -- ./test.sh")]
pub struct ExecArgs {
    /// Who runs it, by name or number [default: root]
    #[arg(long, short, value_name = "USER")]
    pub user: Option<String>,
    /// A variable: KEY=VALUE, or KEY for the value it has here
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = values::variable)]
    pub env: Vec<(String, String)>,
    /// Where it starts [default: the user's home]
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// End it after this time, such as 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = values::time_limit)]
    pub timeout: Option<Duration>,
    /// Give it a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// Do not wait for what it leaves in the background
    #[arg(long)]
    pub no_settle: bool,
    /// Give it an empty stdin
    #[arg(long, short = 'n')]
    pub no_stdin: bool,
    /// The machine, by name or id
    pub machine: String,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub command: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(after_help = "\
Examples:
  warren shell worker
  warren shell worker --user nobody
  warren shell worker < script.sh")]
pub struct ShellArgs {
    /// Who it is for, by name or number [default: root]
    #[arg(long, short, value_name = "USER")]
    pub user: Option<String>,
    /// A variable: KEY=VALUE, or KEY for the value it has here
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = values::variable)]
    pub env: Vec<(String, String)>,
    /// Where it starts [default: the user's home]
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// The machine, by name or id
    pub machine: String,
}

/// Runs a command and answers its exit status.
pub async fn exec(context: &Context, args: ExecArgs) -> Result<i32, Failure> {
    if args.tty && context.output.json {
        return Err(Failure::Usage("a terminal cannot be written as JSON; leave out --tty or --json".to_owned()));
    }
    let machine = args.machine.clone();
    let stdin = !args.no_stdin;
    let exec = request(args);
    if context.output.json {
        let (end, sink) = stream(context, &machine, exec, stdin, Sink::collect()).await?;
        let status = status(&end);
        context.output.json(&result(end, sink))?;
        return Ok(status);
    }
    let (end, _) = stream(context, &machine, exec, stdin, Sink::streams()).await?;
    denials::tell(&end.denials);
    if end.timed_out {
        note("warren: the command was ended: its time limit was over");
    }
    Ok(status(&end))
}

/// Opens a shell and answers its exit status.
pub async fn shell(context: &Context, args: ShellArgs) -> Result<i32, Failure> {
    let exec = ExecArgs {
        user: args.user,
        env: args.env,
        cwd: args.cwd,
        tty: terminal::is_interactive(),
        no_settle: true,
        command: ["sh", "-c", LOGIN_SHELL].map(str::to_owned).to_vec(),
        ..ExecArgs::default()
    };
    let (end, _) = stream(context, &args.machine, request(exec), true, Sink::streams()).await?;
    denials::tell(&end.denials);
    Ok(status(&end))
}

/// The exit status of an exec that failed.
pub fn exit_status(failure: &Failure) -> i32 {
    match (failure.code(), failure) {
        (Some("command_not_found"), _) => NOT_FOUND,
        (Some("command_not_executable"), _) => NOT_EXECUTABLE,
        (_, Failure::Silent(status)) => *status,
        (_, Failure::Usage(_) | Failure::Client(ClientError::Usage(_))) => super::failure::WRONG_USAGE,
        _ => OWN_FAILURE,
    }
}

/// How the command ended.
#[derive(Debug, Clone, PartialEq)]
struct End {
    status: i32,
    signal: Option<i32>,
    timed_out: bool,
    /// What was refused to the machine while it ran.
    denials: Vec<Denial>,
}

fn request(args: ExecArgs) -> Exec {
    let mut env: BTreeMap<String, String> = args.env.into_iter().collect();
    if args.tty
        && let Ok(term) = std::env::var("TERM")
    {
        env.entry("TERM".to_owned()).or_insert(term);
    }
    Exec {
        command: args.command,
        stdin: None,
        env,
        cwd: args.cwd,
        user: args.user,
        timeout_ms: args.timeout.map(|limit| limit.as_millis() as u64),
        terminal: args.tty.then(terminal::size),
        settle: args.no_settle.then_some(false),
    }
}

fn status(end: &End) -> i32 {
    if end.timed_out { TIMED_OUT } else { end.status }
}

fn result(end: End, written: Written) -> ExecResult {
    ExecResult {
        stdout: String::from_utf8_lossy(&written.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&written.stderr).into_owned(),
        status: end.status,
        signal: end.signal,
        timed_out: end.timed_out,
        truncated: written.truncated,
        denials: end.denials,
    }
}

async fn stream(
    context: &Context,
    machine: &str,
    exec: Exec,
    stdin: bool,
    sink: Sink,
) -> Result<(End, Written), Failure> {
    let on_terminal = exec.terminal.is_some();
    let (sender, receiver) = context.client.exec(machine, exec).await?;
    let raw = if on_terminal {
        RawMode::enter().map_err(|error| Failure::local("cannot use the terminal", error))?
    } else {
        None
    };
    let (controls, control_queue) = mpsc::channel(4);
    let input = if stdin { streams::stdin() } else { streams::nothing() };
    let writer = tokio::spawn(write(sender, input, control_queue));
    let result = tokio::select! {
        result = pump(receiver, sink, || writer.abort()) => result,
        status = signals::forward(on_terminal, controls) => Err(Failure::Silent(status)),
    };
    writer.abort();
    drop(raw);
    result
}

/// Passes on what the command writes, until it has ended and all of it is out.
async fn pump(mut receiver: Receiver, mut sink: Sink, ended: impl FnOnce()) -> Result<(End, Written), Failure> {
    let mut refused = Vec::new();
    let end = loop {
        let open = match receiver.next().await? {
            Output::Stdout(bytes) => sink.stdout(bytes).await,
            Output::Stderr(bytes) => sink.stderr(bytes).await,
            Output::Denials(denials) => {
                refused.extend(denials);
                true
            }
            Output::Exit { status, signal, timed_out } => {
                break Some(End { status, signal, timed_out, denials: refused });
            }
        };
        if !open {
            break None;
        }
    };
    ended();
    match (sink.finish().await, end) {
        (Ok(written), Some(end)) => Ok((end, written)),
        (Err(error), _) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::Silent(BROKEN_PIPE)),
        (Err(error), _) => Err(Failure::local("cannot write to stdout", error)),
        (Ok(_), None) => Err(Failure::Silent(BROKEN_PIPE)),
    }
}

/// Passes on stdin and controls, controls first.
async fn write(
    mut sender: Sender,
    mut input: mpsc::Receiver<std::io::Result<bytes::Bytes>>,
    mut controls: mpsc::Receiver<Control>,
) -> Result<(), ClientError> {
    let mut ping = tokio::time::interval_at(tokio::time::Instant::now() + PING_EVERY, PING_EVERY);
    let mut open = true;
    loop {
        tokio::select! {
            biased;
            Some(Control { control, sent }) = controls.recv() => {
                sender.control(&control).await?;
                // Whoever asked may have gone.
                let _ = sent.send(());
            }
            chunk = input.recv(), if open => match chunk {
                Some(Ok(bytes)) => sender.stdin(bytes).await?,
                // A stdin that cannot be read, such as a background process's terminal, is an empty one.
                Some(Err(_)) | None => {
                    open = false;
                    sender.control(&ExecControl::StdinClosed).await?;
                }
            },
            _ = ping.tick() => sender.ping().await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_model::{Code, Problem};

    fn refused(code: Code) -> i32 {
        exit_status(&ClientError::from(Problem::new(code, "")).into())
    }

    #[test]
    fn the_statuses_are_those_of_a_shell() {
        assert_eq!(refused(Code::CommandNotFound), 127);
        assert_eq!(refused(Code::CommandNotExecutable), 126);
        assert_eq!(refused(Code::MachineNotRunning), 125);
        assert_eq!(exit_status(&ClientError::BrokenOff("x".into()).into()), 125);
        assert_eq!(exit_status(&Failure::Silent(141)), 141);
        assert_eq!(status(&End { status: 137, signal: Some(9), timed_out: true, denials: vec![] }), 124);
        assert_eq!(status(&End { status: 137, signal: Some(9), timed_out: false, denials: vec![] }), 137);
    }

    #[test]
    fn a_request_says_only_what_was_asked() {
        let args = ExecArgs { machine: "m".into(), command: vec!["true".into()], ..ExecArgs::default() };
        let plain = serde_json::to_value(request(args.clone())).unwrap();
        assert_eq!(plain, serde_json::json!({"command": ["true"]}));
        let limited = ExecArgs { timeout: Some(Duration::from_secs(30)), no_settle: true, ..args };
        let limited = request(limited);
        assert_eq!((limited.timeout_ms, limited.settle, limited.terminal), (Some(30_000), Some(false), None));
    }
}
