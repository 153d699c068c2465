//! A shell that somebody types a page's blocks into.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use warren_lab::Namespace;

/// A block that has not ended by then hangs.
const LIMIT: Duration = Duration::from_secs(180);

pub struct Shell {
    child: Child,
    script: ChildStdin,
    output: Receiver<Vec<u8>>,
    blocks: usize,
}

/// A block that failed, with what it said until then.
#[derive(Debug)]
pub struct Failed(pub String);

impl Shell {
    /// `bash -euo pipefail` in a network namespace and a mount namespace of its own, in which `mounts` was run before.
    /// Nothing of the caller's environment is in it.
    pub fn start(namespace: &Namespace, home: &Path, environment: &[(&str, &str)], mounts: &str) -> Self {
        // Bash reads the script from descriptor 3 as it comes, so that no command can read it away.
        let bash = format!("{mounts}\nexec bash -euo pipefail /dev/fd/3 3<&0 0</dev/null 2>&1");
        let mut child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", namespace.name()))
            .args(["unshare", "--mount", "sh", "-euc", &bash])
            .env_clear()
            .envs(environment.iter().copied())
            .env("HOME", home)
            .current_dir(home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, output) = channel();
        let mut stdout = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            let mut chunk = vec![0; 4096];
            while let Ok(length @ 1..) = stdout.read(&mut chunk) {
                if sender.send(chunk[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        let script = child.stdin.take().unwrap();
        Self { child, script, output, blocks: 0 }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs a block; answers what a terminal would have shown.
    pub fn run(&mut self, commands: &str) -> Result<String, Failed> {
        self.blocks += 1;
        let mark = format!("-- block {} of {} has ended --\n", self.blocks, self.child.id());
        // A shell that has ended does not read; that is seen below.
        let _ = self.script.write_all(format!("{commands}printf '\\n%s\\n' '{}'\n", mark.trim_end()).as_bytes());
        let (mut said, until) = (Vec::new(), Instant::now() + LIMIT);
        loop {
            let text = String::from_utf8_lossy(&said);
            if let Some(said) = text.strip_suffix(&mark) {
                return Ok(said.strip_suffix('\n').unwrap_or(said).to_owned());
            }
            match self.output.recv_timeout(Duration::from_millis(50)) {
                Ok(chunk) => said.extend(chunk),
                Err(RecvTimeoutError::Timeout) if Instant::now() > until => {
                    return Err(Failed(format!("it takes longer than {LIMIT:?}, and said:\n{text}")));
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    // Its last words may come after its end.
                    if let Some(status) = self.child.try_wait().unwrap() {
                        let last: Vec<u8> = self.output.try_iter().flatten().collect();
                        return Err(Failed(format!("{status}: {text}{}", String::from_utf8_lossy(&last))));
                    }
                }
            }
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
