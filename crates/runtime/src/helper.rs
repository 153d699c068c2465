//! Running the programs that Warren does not reimplement (`mmdebstrap`, `mkfs.btrfs`, the OCI runtime's rare calls).
//!
//! Every one runs with an environment of its own, under a time limit, in a process group that is ended as a whole, and
//! dies with the daemon. What it says on stderr is kept, bounded, for the error.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

/// Where programs are looked for, whatever the daemon's own `PATH` says.
pub const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How much of a program's output an error repeats, in bytes.
const KEPT_OUTPUT: usize = 4096;

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    #[error("the program `{program}` is not installed")]
    Missing { program: String },
    #[error("`{program}` could not be run")]
    Run {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("`{program}` was still not done after {} s and was ended", limit.as_secs())]
    TimedOut { program: String, limit: Duration },
    #[error("`{program}` failed ({status}): {}", stderr.replace('\n', "; "))]
    Failed {
        program: String,
        status: ExitStatus,
        /// The last lines that it wrote.
        stderr: String,
    },
}

/// A program about to be run.
pub struct Helper {
    program: String,
    arguments: Vec<OsString>,
    environment: Vec<(&'static str, OsString)>,
    limit: Duration,
}

impl Helper {
    pub fn new(program: impl Into<String>, limit: Duration) -> Self {
        let environment =
            vec![("PATH", SEARCH_PATH.into()), ("LC_ALL", "C.UTF-8".into()), ("HOME", "/nonexistent".into())];
        Self { program: program.into(), arguments: Vec::new(), environment, limit }
    }

    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, arguments: I) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    pub fn env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    /// Runs it and answers with what it wrote to stdout, at most a mebibyte.
    pub async fn run(self) -> Result<Vec<u8>, HelperError> {
        self.run_with(|_| ()).await
    }

    /// The same, and shows each line of stderr as it comes.
    pub async fn run_with(self, mut on_line: impl FnMut(&str)) -> Result<Vec<u8>, HelperError> {
        let Self { program, arguments, environment, limit } = self;
        let executable = find_program(&program).ok_or_else(|| HelperError::Missing { program: program.clone() })?;
        let failed = |source| HelperError::Run { program: program.clone(), source };
        let mut command = tokio::process::Command::new(executable);
        command
            .args(arguments)
            .env_clear()
            .envs(environment)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let (mut child, _tether) = spawn_tethered(command).await.map_err(failed)?;
        let group = ProcessGroup(child.id());
        let mut stdout = child.stdout.take().expect("stdout was asked for");
        let stderr = child.stderr.take().expect("stderr was asked for");
        let work = async {
            let mut answer = Vec::new();
            let mut kept = Tail::default();
            let reading_out = async {
                (&mut stdout).take(1 << 20).read_to_end(&mut answer).await?;
                tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await.map(drop)
            };
            let reading_err = async {
                let mut lines = BufReader::new(stderr);
                let mut line = Vec::new();
                loop {
                    line.clear();
                    if (&mut lines).take(KEPT_OUTPUT as u64).read_until(b'\n', &mut line).await? == 0 {
                        return Ok::<_, io::Error>(());
                    }
                    let text = String::from_utf8_lossy(&line);
                    on_line(text.trim_end());
                    kept.push(&text);
                }
            };
            tokio::try_join!(reading_out, reading_err)?;
            let status = child.wait().await?;
            Ok::<_, io::Error>((status, answer, kept))
        };
        let outcome = tokio::time::timeout(limit, work).await;
        match outcome {
            Err(_) => {
                drop(group);
                Err(HelperError::TimedOut { program, limit })
            }
            Ok(Err(source)) => Err(HelperError::Run { program, source }),
            Ok(Ok((status, answer, kept))) => {
                group.forget();
                if status.success() {
                    Ok(answer)
                } else {
                    Err(HelperError::Failed { program, status, stderr: kept.text() })
                }
            }
        }
    }
}

/// Where a program is; a name with a slash stands for itself.
pub fn find_program(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Path::new(name).is_file().then(|| PathBuf::from(name));
    }
    SEARCH_PATH.split(':').map(|directory| Path::new(directory).join(name)).find(|path| path.is_file())
}

/// Starts a program that the kernel ends when this process dies.
///
/// The kernel ties it to the *thread* that started it (prctl(2), `PR_SET_PDEATHSIG`), so that is one of its own, which
/// stays until the returned sender is dropped.
async fn spawn_tethered(
    mut command: tokio::process::Command,
) -> io::Result<(tokio::process::Child, std::sync::mpsc::Sender<()>)> {
    // SAFETY: between fork and exec this makes one system call and nothing else.
    unsafe {
        command.pre_exec(|| {
            let signal = libc::SIGKILL as libc::c_ulong;
            if libc::prctl(libc::PR_SET_PDEATHSIG, signal) == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        });
    }
    let runtime = tokio::runtime::Handle::current();
    let (tether, released) = std::sync::mpsc::channel();
    let (answer, started) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("helper".to_owned()).spawn(move || {
        let entered = runtime.enter();
        let child = command.spawn();
        drop(entered);
        if answer.send(child).is_ok() {
            let _ = released.recv();
        }
    })?;
    match started.await {
        Ok(child) => Ok((child?, tether)),
        Err(_) => Err(io::Error::other("the thread that starts programs ended")),
    }
}

/// Ends the whole group when it is dropped, so that a cancelled call leaves no grandchildren.
struct ProcessGroup(Option<u32>);

impl ProcessGroup {
    fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(pid) = self.0.and_then(|pid| i32::try_from(pid).ok()) {
            let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// The last part of what was said.
#[derive(Default)]
struct Tail(std::collections::VecDeque<u8>);

impl Tail {
    fn push(&mut self, text: &str) {
        self.0.extend(text.bytes());
        let excess = self.0.len().saturating_sub(KEPT_OUTPUT);
        self.0.drain(..excess);
    }

    fn text(mut self) -> String {
        String::from_utf8_lossy(self.0.make_contiguous()).trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn the_environment_is_not_passed_on() {
        let output = Helper::new("env", SOON).env("A", "b").run().await.unwrap();
        let text = String::from_utf8(output).unwrap();
        assert!(text.contains("A=b\n"));
        assert!(!text.contains("CARGO"));
    }

    #[tokio::test]
    async fn a_failure_repeats_the_end_of_what_was_said() {
        let error = Helper::new("sh", SOON)
            .args(["-c", "head -c 100000 /dev/zero | tr '\\0' x >&2; echo >&2; echo the reason >&2; exit 3"])
            .run()
            .await
            .unwrap_err();
        let text = error.to_string();
        assert!(text.ends_with("the reason"), "{text}");
        assert!(text.len() < KEPT_OUTPUT + 200);
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_ended_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let pid = directory.path().join("pid");
        let script = format!("sleep 100 & echo $! > {}; wait", pid.display());
        let error = Helper::new("sh", Duration::from_secs(3)).args(["-c", &script]).run().await.unwrap_err();
        assert!(matches!(error, HelperError::TimedOut { .. }));
        let child = std::fs::read_to_string(&pid).unwrap().trim().to_owned();
        let gone = || match std::fs::read_to_string(format!("/proc/{child}/stat")) {
            Ok(stat) => stat.contains(") Z"),
            Err(_) => true,
        };
        for _ in 0..1000 {
            if gone() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the child is still there");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_said_to_be_missing() {
        let error = Helper::new("no-such-program", SOON).run().await.unwrap_err();
        assert!(matches!(error, HelperError::Missing { .. }));
    }
}
