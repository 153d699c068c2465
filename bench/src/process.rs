//! Processes that end with this one.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};

use anyhow::Context as _;
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, setns};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::{getpriority_process, setpriority_process};

use crate::options::Confined;

/// A process that is ended when this value is dropped.
#[derive(Debug)]
pub struct Owned {
    child: Child,
}

impl Owned {
    pub fn spawn(command: &mut Command) -> anyhow::Result<Self> {
        let child = command.spawn().with_context(|| format!("cannot run {}", command.get_program().display()))?;
        Ok(Self { child })
    }

    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Asks it to end, and waits for that.
    pub fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        if self.child.try_wait()?.is_none() {
            kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM)?;
        }
        Ok(self.child.wait()?)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// This program, told to enter a network namespace and to become another one.
pub fn confine(netns: &Path, program: &OsStr) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("cannot find the own program")?);
    // Ctrl-C is for the benchmark, which then ends everything in the right order.
    command.process_group(0);
    command.arg("confined").arg("--netns").arg(netns).arg("--").arg(program);
    Ok(command)
}

/// The other end of [`confine`]: does not return when all goes well.
pub fn confined(arguments: Confined) -> anyhow::Result<Infallible> {
    let netns = File::open(&arguments.netns).context("the namespace is gone")?;
    setns(netns, CloneFlags::CLONE_NEWNET).context("cannot enter the namespace")?;
    // Tied to the thread that started it, which is why only the main thread starts processes.
    prctl::set_pdeathsig(Signal::SIGTERM).context("cannot bind the own life to the parent's")?;
    let [program, rest @ ..] = arguments.command.as_slice() else { unreachable!("clap requires a command") };
    let error = Command::new(program).args(rest).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

/// Where the priority of a session stands that shares processors with others as a whole (sched(7), autogroups).
const SESSION: &str = "/proc/self/autogroup";
/// The highest priority of ordinary processes.
const HIGHEST: i32 = -20;

/// What the main thread starts goes before everything else on the machine, until this is dropped.
#[derive(Debug)]
pub struct Precedence {
    before: i32,
    /// That of the session, where there is such a thing.
    session_before: Option<String>,
}

impl Precedence {
    pub fn take() -> anyhow::Result<Self> {
        let before = getpriority_process(None).context("cannot read the own priority")?;
        // "/autogroup-25 nice 0"
        let session = std::fs::read_to_string(SESSION).unwrap_or_default();
        let session_before = session.split_whitespace().nth(2).map(str::to_owned);
        let taken = Self { before, session_before };
        setpriority_process(None, HIGHEST).context("cannot take precedence over others")?;
        if taken.session_before.is_some() {
            std::fs::write(SESSION, HIGHEST.to_string()).context("cannot take precedence over other sessions")?;
        }
        Ok(taken)
    }
}

impl Drop for Precedence {
    fn drop(&mut self) {
        // Both were possible before, and to go down again nobody needs a right.
        let _ = setpriority_process(None, self.before);
        if let Some(nice) = &self.session_before {
            let _ = std::fs::write(SESSION, nice);
        }
    }
}

/// The processors that this process may use, lowest first.
pub fn processors() -> anyhow::Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0)).context("cannot read which processors there are")?;
    Ok((0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect())
}

/// Does `work`, and starts what it starts, on one processor.
pub fn on_processor<T>(cpu: Option<usize>, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let Some(cpu) = cpu else { return work() };
    let before = sched_getaffinity(Pid::from_raw(0)).context("cannot read which processors there are")?;
    pin(cpu)?;
    let done = work();
    sched_setaffinity(Pid::from_raw(0), &before).context("cannot leave a processor")?;
    done
}

/// Keeps the calling thread, and what it starts from now on, on one processor.
pub fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("cannot stay on processor {cpu}"))
}
