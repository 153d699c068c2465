//! Network namespaces without a name: they go when this process goes, however it ends.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use nix::sched::{CloneFlags, setns, unshare};

use crate::process;

#[derive(Debug)]
pub struct Namespace {
    file: OwnedFd,
}

impl Namespace {
    /// A namespace in which nothing is set up yet, not even the loopback.
    pub fn bare() -> anyhow::Result<Self> {
        let made = std::thread::scope(|scope| {
            let inside = scope.spawn(|| -> anyhow::Result<File> {
                unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
                File::open("/proc/thread-self/ns/net").context("cannot open a network namespace")
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        });
        Ok(Self { file: made?.into() })
    }

    pub fn new() -> anyhow::Result<Self> {
        let made = Self::bare()?;
        made.ip(&["link", "set", "lo", "up"])?;
        Ok(made)
    }

    /// The one that the calling thread is in.
    pub fn own() -> anyhow::Result<Self> {
        let file = File::open("/proc/thread-self/ns/net").context("cannot open the own network namespace")?;
        Ok(Self { file: file.into() })
    }

    /// Where other processes of this host find it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()))
    }

    /// Runs `work` on a thread inside, which ends afterwards.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        let file = self.file.as_fd();
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(file, CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")?;
                work()
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// A program that will run inside and end with this process. Has to be started by the main thread.
    pub fn command(&self, program: impl AsRef<OsStr>) -> anyhow::Result<Command> {
        process::confine(&self.path(), program.as_ref())
    }

    /// Runs `ip` inside.
    pub fn ip(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let output = self.command("ip")?.args(arguments).stdin(Stdio::null()).output().context("cannot run ip")?;
        ensure!(
            output.status.success(),
            "ip {} failed: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
