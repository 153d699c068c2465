//! A command under way.
//!
//! | task | does |
//! | --- | --- |
//! | [`run`] | starts the command, waits for its end, its time limit or its caller's, says how it ended |
//! | two [`streams::Pump`]s (one on a terminal) | stdout and stderr, as frames to the sender |
//! | [`send_frames`] | the only one that writes to the HTTP/2 stream; sees the caller go |
//! | [`take_input`] | stdin, terminal sizes and signals |

mod prepare;
mod settle;
mod streams;
mod terminal;

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use h2::server::SendResponse;
use nix::errno::Errno;
use nix::sys::signal::Signal as Kernel;
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use warren_guest::frame::{Frame, Kind, encode};
use warren_guest::protocol::{Refusal, shown};
use warren_guest::stream::{FrameReader, send};
use warren_model::Code;
use warren_model::access::{ExecCommand, ExecExit, Signal};

use crate::reaper::End;
use crate::{Agent, account, serve, spawn};
use streams::{Pump, Sink, Source};

/// Time from SIGTERM to SIGKILL for a command whose time is over or whose caller is gone.
const GRACE: Duration = Duration::from_secs(2);

/// Frames that wait for the HTTP/2 stream.
const WAITING: usize = 4;

/// Bytes of stdin that wait for the command; more stays with the host.
const STDIN_WAITING: usize = 256 << 10;

/// The status of a command whose time was over, as timeout(1) has it.
const TIMED_OUT: i32 = 124;

static SERIAL: AtomicU64 = AtomicU64::new(1);

/// Runs one command from its request to the last frame of its answer.
pub async fn run(agent: Arc<Agent>, mut input: FrameReader, mut respond: SendResponse<Bytes>) {
    let started = match serve::head::<ExecCommand>(&mut input).await {
        Ok(command) => start(&agent, &command).await.map(|started| (command, started)),
        Err(refusal) => Err(refusal),
    };
    let (command, started) = match started {
        Ok(started) => started,
        Err(refusal) => return serve::refuse(respond, &refusal).await,
    };
    let (frames, queue) = mpsc::channel(WAITING);
    let finish = CancellationToken::new();
    let pumps: Vec<_> = started
        .outputs
        .into_iter()
        .map(|(kind, source)| {
            let (frames, finish, console) = (frames.clone(), finish.clone(), agent.console.clone());
            Pump { source, kind, frames, finish, console }.start()
        })
        .collect();
    let sending = match respond.send_response(http::Response::new(()), false) {
        Ok(stream) => tokio::spawn(send_frames(stream, queue)),
        // The caller went before its command had begun.
        Err(_) => tokio::spawn(async { Link::GivenUp }),
    };
    let awaits_input = Arc::new(AtomicBool::new(true));
    let taking = TakeInput {
        input,
        sink: started.sink,
        agent: Arc::clone(&agent),
        pid: started.pid,
        awaits_input: Arc::clone(&awaits_input),
    };
    let mut taking = tokio::spawn(take_input(taking));

    let limit = command.timeout_ms.map(Duration::from_millis);
    let mut life = Life { agent: &agent, pid: started.pid, terminal: command.terminal.is_some(), kill_at: None };
    let (end, timed_out, sending) = life.wait(started.end, sending, limit, &awaits_input).await;
    if command.settle && !timed_out && sending.is_some() {
        settle::settle(&agent, started.pid, started.serial).await;
    }
    finish.cancel();
    for handed_on in pumps {
        // An error means that the pump came to its end, which is as good.
        let _ = handed_on.await;
    }
    if let Ok(json) = serde_json::to_vec(&exit_of(end, timed_out)) {
        // Nobody may be there any more to be told.
        let _ = frames.send(encode(Kind::Exit, &json)).await;
    }
    drop(frames);
    if let Some(sending) = sending {
        let _ = sending.await;
        // The host answers the end with its own; a stream that is reset instead would be work for both.
        let _ = tokio::time::timeout(GRACE, &mut taking).await;
    }
    taking.abort();
}

/// A command that executes.
struct Started {
    pid: Pid,
    serial: u64,
    end: oneshot::Receiver<End>,
    outputs: Vec<(Kind, Source)>,
    sink: Sink,
}

async fn start(agent: &Arc<Agent>, command: &ExecCommand) -> Result<Started, Refusal> {
    let user = command.user.clone().unwrap_or_else(|| "root".to_owned());
    let account = account::find(&user)
        .ok_or_else(|| Refusal::new(Code::UserNotFound, format!("this machine has no user {:?}", shown(&user))))?;
    let no_streams = |error: std::io::Error| Refusal::new(Code::Internal, format!("no streams for a command: {error}"));
    let (uid, gid) = (account.uid, account.gid);
    let (outputs, sink, stdio) = match command.terminal {
        Some(size) => {
            let (ours, theirs) = terminal::open_for(uid, size)
                .map_err(|error| Refusal::new(Code::Internal, format!("no terminal for a command: {error}")))?;
            let copy = |fd: &std::os::fd::OwnedFd| fd.try_clone().map_err(no_streams);
            let stdio = [copy(&theirs)?, copy(&theirs)?, theirs];
            (vec![(Kind::Data, Source::Terminal(ours.clone()))], Sink::Terminal(ours), stdio)
        }
        None => {
            let (stdin, their_stdin) = streams::pipe_to(uid, gid).map_err(no_streams)?;
            let (stdout, their_stdout) = streams::pipe_from(uid, gid).map_err(no_streams)?;
            let (stderr, their_stderr) = streams::pipe_from(uid, gid).map_err(no_streams)?;
            let outputs = vec![(Kind::Data, Source::Pipe(stdout)), (Kind::Errors, Source::Pipe(stderr))];
            (outputs, Sink::Pipe(stdin), [their_stdin, their_stdout, their_stderr])
        }
    };
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let plan = prepare::plan(command, account, serial, stdio, agent.limits, std::env::vars_os())?;
    let forked = spawn::fork(&plan).map_err(|errno| match errno {
        Errno::EAGAIN | Errno::ENOMEM => Refusal::new(
            Code::CommandNotExecutable,
            format!("the machine has no room for another process: {}", errno.desc()),
        ),
        errno => Refusal::new(Code::Internal, format!("no process for a command: {}", errno.desc())),
    })?;
    let end = agent.reaper.enter(forked.pid, serial);
    // Closes the agent's copies of the command's ends, so that their end can be seen.
    drop(plan);
    let mut failure = Vec::with_capacity(spawn::FAILURE);
    let told = pipe::Receiver::from_owned_fd(forked.failure).map_err(no_streams)?;
    // An error reads like nothing told, and the command's own end will say the rest.
    let _ = told.take(spawn::FAILURE as u64).read_to_end(&mut failure).await;
    if let Ok(failure) = failure.try_into() {
        let (stage, errno) = spawn::parse_failure(failure);
        return Err(prepare::refusal(command, stage, errno));
    }
    Ok(Started { pid: forked.pid, serial, end, outputs, sink })
}

/// How the way to the caller ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    /// Everything was sent.
    Done,
    /// The caller gave the command up.
    GivenUp,
    /// The connection is gone, and with it every caller.
    Lost,
}

type Sending = tokio::task::JoinHandle<Link>;

struct Life<'a> {
    agent: &'a Agent,
    pid: Pid,
    terminal: bool,
    kill_at: Option<Instant>,
}

impl Life<'_> {
    /// Waits for the command's end, and brings it about where that is due. Hands `sending` back while there is a caller.
    async fn wait(
        &mut self,
        mut end: oneshot::Receiver<End>,
        sending: Sending,
        limit: Option<Duration>,
        awaits_input: &AtomicBool,
    ) -> (End, bool, Option<Sending>) {
        let mut sending = Some(sending);
        let mut timed_out = false;
        // A limit beyond the clock is no limit.
        let mut limit_at = limit.and_then(|limit| Instant::now().checked_add(limit));
        loop {
            let link_ended = async {
                match &mut sending {
                    Some(sending) => sending.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                ended = &mut end => return (ended.unwrap_or(End::Signal(libc::SIGKILL)), timed_out, sending),
                link = link_ended => {
                    sending = None;
                    let waits_in_vain = awaits_input.load(Ordering::Relaxed);
                    if waits_in_vain || !matches!(link, Ok(Link::Lost)) {
                        self.terminate();
                    }
                }
                () = at(limit_at) => {
                    limit_at = None;
                    timed_out = true;
                    self.terminate();
                }
                () = at(self.kill_at) => {
                    // Again after a while: a process that is being traced or sits in the kernel may take its time.
                    self.kill_at = Some(Instant::now() + GRACE);
                    self.agent.reaper.signal_group(self.pid, Kernel::SIGKILL);
                }
            }
        }
    }

    fn terminate(&mut self) {
        // An interactive shell ignores SIGTERM and heeds SIGHUP; a stopped process heeds neither before SIGCONT.
        let hang_up = self.terminal.then_some(Kernel::SIGHUP);
        for signal in [Kernel::SIGTERM, Kernel::SIGCONT].into_iter().chain(hang_up) {
            self.agent.reaper.signal_group(self.pid, signal);
        }
        self.kill_at.get_or_insert(Instant::now() + GRACE);
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

fn exit_of(end: End, timed_out: bool) -> ExecExit {
    let (status, signal) = match end {
        End::Status(status) => (status, None),
        End::Signal(signal) => (128 + signal, Some(signal)),
    };
    ExecExit { status: if timed_out { TIMED_OUT } else { status }, signal, timed_out }
}

async fn send_frames(mut stream: SendStream<Bytes>, mut queue: mpsc::Receiver<Bytes>) -> Link {
    loop {
        let frame = tokio::select! {
            biased;
            reset = poll_fn(|cx| stream.poll_reset(cx)) => return gone(reset),
            frame = queue.recv() => frame,
        };
        let sent = match frame {
            Some(frame) => send(&mut stream, frame, false).await,
            None => return if send(&mut stream, Bytes::new(), true).await.is_ok() { Link::Done } else { Link::Lost },
        };
        if sent.is_err() {
            // A stream that cannot be sent on was reset, or its connection is gone; both are known by now.
            let reset = tokio::time::timeout(GRACE, poll_fn(|cx| stream.poll_reset(cx))).await;
            return reset.map_or(Link::Lost, gone);
        }
    }
}

fn gone(reset: Result<h2::Reason, h2::Error>) -> Link {
    if reset.is_ok() { Link::GivenUp } else { Link::Lost }
}

struct TakeInput {
    input: FrameReader,
    sink: Sink,
    agent: Arc<Agent>,
    pid: Pid,
    /// Whether the command still waits for something that only its caller can send.
    awaits_input: Arc<AtomicBool>,
}

async fn take_input(mut task: TakeInput) {
    let mut waiting = std::collections::VecDeque::<Bytes>::new();
    let mut waiting_bytes = 0;
    let mut open = true;
    let terminal = match &task.sink {
        Sink::Terminal(terminal) => Some(terminal.clone()),
        _ => None,
    };
    loop {
        if waiting.is_empty() && !open && terminal.is_none() {
            task.sink = Sink::Closed;
        }
        let first = waiting.front().cloned();
        tokio::select! {
            frame = task.input.next(), if waiting_bytes < STDIN_WAITING => match frame {
                Ok(Some(Frame { kind: Kind::Data, payload })) if open => {
                    waiting_bytes += payload.len();
                    waiting.push_back(payload);
                }
                Ok(Some(Frame { kind: Kind::StdinClosed, .. })) if open => {
                    open = false;
                    waiting.extend(farewell(&task.sink));
                    task.awaits_input.store(terminal.is_some(), Ordering::Relaxed);
                }
                Ok(Some(Frame { kind: Kind::Resize, payload })) => {
                    if let (Some(terminal), Ok(size)) = (&terminal, serde_json::from_slice(&payload)) {
                        // A terminal that was hung up has no size.
                        let _ = terminal.resize(size);
                    }
                }
                Ok(Some(Frame { kind: Kind::Signal, payload })) => {
                    if let Ok(signal) = serde_json::from_slice(&payload) {
                        task.agent.reaper.signal_group(task.pid, kernel_signal(signal));
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => {
                    if open {
                        waiting.extend(farewell(&task.sink));
                        task.awaits_input.store(terminal.is_some(), Ordering::Relaxed);
                    }
                    break;
                }
                // The caller or the connection is gone. An end of input would pass for the whole, so there is none.
                Err(_) if open => return std::future::pending().await,
                Err(_) => break,
            },
            written = task.sink.write(first.as_deref().unwrap_or_default()), if first.is_some() => {
                written_some(&mut waiting, &mut waiting_bytes, &mut task.sink, written);
            }
        }
    }
    while let Some(first) = waiting.front().cloned() {
        let written = task.sink.write(&first).await;
        written_some(&mut waiting, &mut waiting_bytes, &mut task.sink, written);
    }
}

fn farewell(sink: &Sink) -> Option<Bytes> {
    let bytes = sink.farewell();
    (!bytes.is_empty()).then(|| Bytes::from_static(bytes))
}

fn written_some(
    waiting: &mut std::collections::VecDeque<Bytes>,
    waiting_bytes: &mut usize,
    sink: &mut Sink,
    written: std::io::Result<usize>,
) {
    let Some(first) = waiting.front_mut() else { return };
    let length = match written {
        Ok(length) => length.min(first.len()),
        Err(_) => {
            // The command closed its stdin; whatever still comes is not wanted.
            *sink = Sink::Closed;
            first.len()
        }
    };
    let _ = first.split_to(length);
    *waiting_bytes = waiting_bytes.saturating_sub(length);
    if first.is_empty() {
        waiting.pop_front();
    }
}

fn kernel_signal(signal: Signal) -> Kernel {
    match signal {
        Signal::Hup => Kernel::SIGHUP,
        Signal::Int => Kernel::SIGINT,
        Signal::Quit => Kernel::SIGQUIT,
        Signal::Kill => Kernel::SIGKILL,
        Signal::Usr1 => Kernel::SIGUSR1,
        Signal::Usr2 => Kernel::SIGUSR2,
        Signal::Term => Kernel::SIGTERM,
        Signal::Stop => Kernel::SIGSTOP,
        Signal::Cont => Kernel::SIGCONT,
        Signal::Winch => Kernel::SIGWINCH,
    }
}
