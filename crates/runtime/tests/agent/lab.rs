//! A machine made of namespaces: the real agent as PID 1, with the programs of this host, read-only.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use tokio::time::timeout;
use warren_model::MachineId;
use warren_model::access::{
    AccessError, ByteStream, ExecCommand, ExecExit, ExecInput, ExecOutput, ExecSession, MachineAccess, WriteOptions,
};
use warren_runtime::agent::AgentHub;

const SCRIPT: &str = r#"
set -e
root=$1 agent=$2
mount -t tmpfs tmpfs "$root"
cd "$root"
mkdir -p usr proc dev/pts etc tmp run/warren root home/worker var/log small
mount --bind /usr usr
mount -o remount,bind,ro usr
for name in bin sbin lib lib64; do ln -s "usr/$name" "$name"; done
mount -t proc proc proc
for name in null zero random urandom tty; do touch "dev/$name"; mount --bind "/dev/$name" "dev/$name"; done
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd/1 dev/stdout
mount -t tmpfs -o size=1m tmpfs small
chmod 1777 tmp
printf 'root:x:0:0:root:/root:/bin/bash\nworker:x:1000:1000::/home/worker:/bin/sh\n' > etc/passwd
printf 'root:x:0:\nworker:x:1000:\nstaff:x:50:worker\n' > etc/group
chown 1000:1000 home/worker
mount --bind "$agent" run/warren
mount -o remount,bind,ro run/warren
ip link set lo up || true
hostname lab
exec chroot . /run/warren/init
"#;

/// Time in which a test's machine does anything.
pub const SOON: Duration = Duration::from_secs(20);

/// A machine that is gone when this is.
pub struct Lab {
    pub hub: AgentHub,
    pub machine: MachineId,
    pub init: i32,
    holder: Child,
    directory: tempfile::TempDir,
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub exit: ExecExit,
    pub stdout: String,
    pub stderr: String,
}

impl Lab {
    /// Starts a machine and waits for its agent.
    pub async fn start() -> Self {
        let lab = Self::start_unmet().await;
        lab.hub.accept_from(lab.machine, lab.init);
        lab.hub.connected(lab.machine, SOON).await.expect("the agent reports");
        lab
    }

    /// Starts a machine whose agent nobody has let in yet.
    pub async fn start_unmet() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let hub = AgentHub::new(directory.path().join("agents")).unwrap();
        let machine = MachineId::from_ulid(ulid::Ulid::generate());
        let agent = hub.open(machine, 0).await.unwrap();
        let holder = start_machine(&root, &agent);
        let init = only_child(holder.id()).await;
        Self { hub, machine, init, holder, directory }
    }

    /// Drops the hub, as a daemon that dies does, and makes a new one, which the agent finds.
    pub async fn restart_daemon(&mut self) {
        self.hub = AgentHub::new(self.directory.path().join("agents")).unwrap();
        self.hub.open(self.machine, 0).await.unwrap();
        self.hub.accept_from(self.machine, self.init);
        self.hub.connected(self.machine, SOON).await.expect("the agent dials again");
    }

    /// Whether PID 1 has ended, and how.
    pub async fn ended(&mut self) -> std::process::ExitStatus {
        for _ in 0..3000 {
            if let Some(status) = self.holder.try_wait().unwrap() {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the machine did not end");
    }

    pub async fn exec(&self, command: ExecCommand) -> Result<ExecSession, AccessError> {
        timeout(SOON, self.hub.exec(self.machine, command)).await.expect("exec answers")
    }

    /// Runs a command without stdin to its end.
    pub async fn run(&self, command: ExecCommand) -> Ran {
        let session = self.exec(command).await.expect("the command starts");
        // It may have ended by now.
        let _ = session.input.send(ExecInput::StdinClosed).await;
        finish(session).await
    }

    /// Runs a line of shell.
    pub async fn sh(&self, line: &str) -> Ran {
        self.run(command(&["sh", "-c", line])).await
    }

    pub async fn write(&self, path: &str, content: &[u8]) -> Result<warren_model::access::FileInfo, AccessError> {
        self.hub.write_file(self.machine, path, WriteOptions::default(), bytes_of(content)).await
    }

    pub async fn read(&self, path: &str) -> Result<Vec<u8>, AccessError> {
        let (_, content) = timeout(SOON, self.hub.read_file(self.machine, path)).await.expect("a read answers")?;
        Ok(collect(content).await)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // --kill-child takes PID 1 along, and the kernel the rest.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A command with defaults.
pub fn command(argv: &[&str]) -> ExecCommand {
    ExecCommand {
        argv: argv.iter().map(|arg| (*arg).to_owned()).collect(),
        env: Default::default(),
        cwd: None,
        user: None,
        timeout_ms: None,
        terminal: None,
        settle: false,
    }
}

/// Collects what a command writes until it ends.
pub async fn finish(mut session: ExecSession) -> Ran {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        match timeout(SOON, session.output.recv()).await.expect("the command goes on") {
            Some(ExecOutput::Stdout(bytes)) => stdout.extend_from_slice(&bytes),
            Some(ExecOutput::Stderr(bytes)) => stderr.extend_from_slice(&bytes),
            Some(ExecOutput::Exit(exit)) => {
                assert!(session.output.recv().await.is_none(), "the exit is the last item");
                let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                return Ran { exit, stdout: text(stdout), stderr: text(stderr) };
            }
            None => panic!("the output ended without an exit: {}", String::from_utf8_lossy(&stdout)),
        }
    }
}

pub fn bytes_of(content: &[u8]) -> ByteStream {
    let chunks: Vec<_> = content.chunks(100_000).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
    stream::iter(chunks).boxed()
}

pub async fn collect(mut content: ByteStream) -> Vec<u8> {
    let mut all = BytesMut::new();
    while let Some(chunk) = timeout(SOON, content.next()).await.expect("content goes on") {
        all.extend_from_slice(&chunk.unwrap());
    }
    all.to_vec()
}

/// Waits until something is so.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < SOON, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn start_machine(root: &Path, agent: &Path) -> Child {
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--net", "--propagation", "private"]);
    unshare.args(["--", "/bin/sh", "-c", SCRIPT, "sh"]).arg(root).arg(agent);
    unshare.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    unshare.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    // Whoever starts the agent may ignore signals, also those that the C library hides.
    let ignore = || {
        const IGNORE: [u64; 4] = [1, 0, 0, 0];
        for signal in [libc::SIGPIPE, 32] {
            // SAFETY: the buffer is as large as the kernel's `struct sigaction`; the call is async-signal-safe.
            unsafe {
                libc::syscall(libc::SYS_rt_sigaction, signal, IGNORE.as_ptr(), std::ptr::null_mut::<u64>(), 8);
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only.
    unsafe { std::os::unix::process::CommandExt::pre_exec(&mut unshare, ignore) };
    unshare.spawn().expect("unshare runs as root")
}

async fn only_child(pid: u32) -> i32 {
    let mut child = None;
    eventually("PID 1 of the machine", async || {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        child = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
        child.is_some()
    })
    .await;
    child.unwrap()
}
