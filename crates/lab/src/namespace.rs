//! A namespace that goes with its handle.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::resume_unwind;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

/// How long a port is waited for that was let go.
const PATIENCE: Duration = Duration::from_secs(20);

/// A network namespace, pinned at `/run/netns/{name}`.
pub struct Namespace {
    name: String,
    file: File,
}

/// What a command said.
#[derive(Debug, Clone)]
pub struct Output {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

/// A command that runs until its handle goes.
pub struct Running {
    child: Child,
}

impl Namespace {
    pub(crate) fn create(name: &str) -> Self {
        let output = Command::new("ip").args(["netns", "add", name]).output().expect("iproute2 is installed");
        assert!(output.status.success(), "ip netns add {name}: {}", String::from_utf8_lossy(&output.stderr));
        let file = File::open(format!("/run/netns/{name}")).expect("the namespace was pinned");
        let namespace = Self { name: name.to_owned(), file };
        namespace.run("ip link set lo up");
        namespace
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Runs a command line (words between spaces, no quoting). Panics when it fails.
    pub fn run(&self, line: &str) -> String {
        let output = self.attempt(line);
        assert!(output.success, "{}: {line}: {}{}", self.name, output.stdout, output.stderr);
        output.stdout
    }

    /// Runs a command line and says how it went.
    pub fn attempt(&self, line: &str) -> Output {
        let output = self.enter(|| command(line).output()).unwrap_or_else(|error| panic!("{line}: {error}"));
        Output {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Starts a command line; it is killed when the handle goes.
    pub fn spawn(&self, line: &str) -> Running {
        let child = self.enter(|| command(line).stdin(Stdio::null()).stdout(Stdio::piped()).spawn());
        Running { child: child.unwrap_or_else(|error| panic!("{line}: {error}")) }
    }

    /// Runs `work` on a thread of its own inside the namespace: no other thread is ever there, also after a panic.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).expect("the namespace can be entered");
                work()
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Listens on an address of the namespace. A listener that was just closed may be there for a moment longer, as a
    /// program that another test starts has it from its fork until its exec; that is waited for.
    pub fn listen(&self, at: SocketAddr) -> io::Result<TcpListener> {
        let start = Instant::now();
        loop {
            match self.enter(|| TcpListener::bind(at)) {
                Err(error) if error.kind() == ErrorKind::AddrInUse && start.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                other => return other,
            }
        }
    }

    /// Whether one echo request is answered within a second.
    pub fn pings(&self, address: &str) -> bool {
        self.attempt(&format!("ping -n -c 1 -W 1 {address}")).success
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).output();
    }
}

impl Running {
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it and returns what it wrote.
    pub fn stop(mut self) -> String {
        let _ = self.child.kill();
        self.finish()
    }

    /// Waits until it ends by itself, and returns what it wrote.
    pub fn finish(mut self) -> String {
        let mut text = String::new();
        if let Some(mut stdout) = self.child.stdout.take() {
            let _ = stdout.read_to_string(&mut text);
        }
        text
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks again for up to half a minute until the answer is yes.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(30), "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn command(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().expect("a command line has a first word"));
    command.args(words);
    command
}
