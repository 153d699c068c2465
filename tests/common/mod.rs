//! A Warren server in a network namespace of its own, driven as a person would: through the command line.
//!
//! Every server has its own data directory and is uninstalled when it is dropped, also when a test fails. Images are
//! shared through the pool that `WARREN_TEST_POOL` names, so that they are built once.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod npm;
pub mod policy;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use warren_lab::{Lab, Namespace};

/// The program under test.
pub const WARREN: &str = env!("CARGO_BIN_EXE_warren");

/// How a server is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// In the namespace, with the mount namespace of the test.
    Plain,
    /// With `ip netns exec`, which makes a mount namespace that dies with the server.
    NetnsExec,
}

/// Settings of a server that differ from the usual.
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub netns_exec: bool,
    /// A command that starts the server, given the server's command line.
    pub wrapper: Vec<String>,
    /// Where images and disks are, if not in the pool that tests share.
    pub pool: Option<PathBuf>,
}

pub struct Server {
    lab: Lab,
    pub host: Namespace,
    directory: TempDir,
    child: Option<Child>,
    options: Options,
    url: String,
    pub key: Option<String>,
}

impl Server {
    /// A server of the usual kind.
    pub fn start() -> Self {
        Self::start_with(Options::default())
    }

    pub fn start_with(options: Options) -> Self {
        let lab = Lab::new();
        let host = lab.namespace("host");
        Self::start_in(lab, host, options)
    }

    pub fn start_in(lab: Lab, host: Namespace, options: Options) -> Self {
        Self::start_at(&std::env::temp_dir(), lab, host, options)
    }

    /// A server whose data directory is below this one.
    pub fn start_below(parent: &Path, options: Options) -> Self {
        let lab = Lab::new();
        let host = lab.namespace("host");
        Self::start_at(parent, lab, host, options)
    }

    fn start_at(parent: &Path, lab: Lab, host: Namespace, options: Options) -> Self {
        let directory = tempfile::Builder::new().prefix("warren-test-").tempdir_in(parent).unwrap();
        let mut server = Self { lab, host, directory, child: None, options, url: String::new(), key: None };
        server.up().unwrap_or_else(|log| panic!("the server did not start:\n{log}"));
        server
    }

    /// Starts the server process; the error is its log.
    pub fn up(&mut self) -> Result<(), String> {
        let log_path = self.data_dir().join("daemon.log");
        std::fs::create_dir_all(self.data_dir()).unwrap();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&log_path).unwrap();
        let mut command = if self.options.netns_exec {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", self.host.name()]);
            command
        } else {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net=/run/netns/{}", self.host.name()));
            command
        };
        let mut child = command
            .args(&self.options.wrapper)
            .arg(WARREN)
            .args(["up", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(self.data_dir())
            .arg("--pool-dir")
            .arg(self.options.pool.clone().unwrap_or_else(pool))
            .args(&self.options.arguments)
            .envs(self.options.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        match line.trim().strip_prefix("ready ") {
            Some(url) => {
                self.url = url.to_owned();
                self.child = Some(child);
                Ok(())
            }
            None => {
                child.wait().unwrap();
                Err(std::fs::read_to_string(log_path).unwrap_or_default())
            }
        }
    }

    pub fn options(&self) -> Options {
        self.options.clone()
    }

    pub fn set_options(&mut self, options: Options) {
        self.options = options;
    }

    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.data_dir().join("daemon.log")).unwrap_or_default()
    }

    /// `http://127.0.0.1:PORT`, reachable from inside the server's namespace only.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the server runs").id()
    }

    /// The installation's id.
    pub fn installation(&self) -> String {
        let text = std::fs::read_to_string(self.data_dir().join("installation.json")).unwrap();
        let traces: Value = serde_json::from_str(&text).unwrap();
        traces["installation"].as_str().unwrap().to_owned()
    }

    /// SIGKILL, and nothing else.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the server runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Waits for a server that is expected to end by itself.
    pub fn wait_for_end(&mut self, within: Duration) -> bool {
        let child = self.child.as_mut().expect("the server runs");
        let ended = eventually(within, || child.try_wait().unwrap().is_some());
        if ended {
            self.child = None;
        }
        ended
    }

    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    pub fn restart(&mut self) {
        self.kill();
        self.up().unwrap_or_else(|log| panic!("the server did not start again:\n{log}"));
    }

    /// SIGTERM, and waits.
    pub fn stop(&mut self) {
        let mut child = self.child.take().expect("the server runs");
        let status = Command::new("kill").arg(child.id().to_string()).status().unwrap();
        assert!(status.success());
        child.wait().unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(WARREN);
        command
            .args(arguments)
            .env("WARREN_DATA_DIR", self.data_dir())
            .env_remove("WARREN_URL")
            .env_remove("WARREN_API_KEY")
            .stdin(Stdio::null());
        if let Some(key) = &self.key {
            command.env("WARREN_API_KEY", key);
        }
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || {
            // The command may end before it has read everything.
            let _ = stdin.write_all(&input);
        });
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output
    }

    pub fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Runs a command that has to succeed and answers its stdout.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(
            output.status.success(),
            "warren {} ended with {}\nstdout: {}\nstderr: {}\nlog: {}",
            arguments.join(" "),
            output.status,
            text(&output.stdout),
            text(&output.stderr),
            self.log()
        );
        text(&output.stdout)
    }

    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let arguments = [arguments, &["--json"]].concat();
        serde_json::from_str(&self.ok(&arguments)).unwrap()
    }

    /// Runs a command that has to be refused: exit status 1, nothing on stdout, a problem document on stderr. Answers
    /// the problem.
    #[track_caller]
    pub fn refused(&self, arguments: &[&str]) -> Value {
        let arguments = [arguments, &["--json"]].concat();
        let output = self.run(&arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
        assert!(output.stdout.is_empty(), "{arguments:?} wrote {}", text(&output.stdout));
        let problem: Value = serde_json::from_slice(&output.stderr)
            .unwrap_or_else(|_| panic!("{arguments:?} said {}", text(&output.stderr)));
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{problem}");
        problem
    }

    #[track_caller]
    pub fn refused_as(&self, code: &str, arguments: &[&str]) {
        let problem = self.refused(arguments);
        assert_eq!(problem["code"], code, "{arguments:?}: {problem}");
    }

    /// Runs a script in a machine and answers its stdout; it has to succeed.
    #[track_caller]
    pub fn exec(&self, machine: &str, script: &str) -> String {
        self.ok(&["exec", machine, "--", "sh", "-c", script])
    }

    /// The same, for a script that may fail: exit status, stdout and stderr.
    pub fn try_exec(&self, machine: &str, script: &str) -> (i32, String, String) {
        let output = self.run(&["exec", machine, "--", "sh", "-c", script]);
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }

    /// One request over the Unix socket, as the root key's holder unless a header names another key: status and body.
    /// `headers` are lines such as `X-API-Key: wk_...`.
    #[track_caller]
    pub fn http(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> (u16, Value) {
        let root = std::fs::read_to_string(self.data_dir().join("root.key")).unwrap();
        let mut command = Command::new("curl");
        command.args(["-sS", "--max-time", "60", "--globoff", "--path-as-is", "-X", method, "-w", "\n%{http_code}"]);
        command.args(["-H", "Expect:", "--data-binary", "@-", "--unix-socket"]).arg(self.data_dir().join("api.sock"));
        let names = |name: &str| headers.iter().any(|line| line.to_ascii_lowercase().starts_with(name));
        if !names("content-type") {
            command.args(["-H", "Content-Type: application/json"]);
        }
        if !names("x-api-key") && !names("authorization") {
            command.args(["-H", &format!("X-API-Key: {}", root.trim())]);
        }
        for line in headers {
            command.args(["-H", line]);
        }
        command.arg(format!("http://warren{path}")).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // It may be refused before it was read to its end.
        let _ = child.stdin.take().unwrap().write_all(body);
        let output = child.wait_with_output().unwrap();
        let answer = text(&output.stdout);
        let (body, status) = answer.rsplit_once('\n').unwrap_or_default();
        let status = status.parse().unwrap_or_default();
        assert_ne!(status, 0, "{method} {path}: {}", text(&output.stderr));
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    /// Makes an account and acts in it from now on.
    pub fn act_as_new(&mut self, account: &str) {
        self.key = None;
        let made = self.json(&["account", "create", account]);
        self.key = Some(made["key"].as_str().unwrap().to_owned());
    }

    /// Serves a page from a machine on port 8080; answers when it listens.
    pub fn serve(&self, machine: &str, page: &str) {
        self.exec(
            machine,
            &format!(
                "mkdir -p /srv/www && cd /srv/www && echo {page} > index.html && \
                 nohup python3 -m http.server 8080 --bind :: >/dev/null 2>&1 &"
            ),
        );
    }

    #[track_caller]
    pub fn fetch(&self, machine: &str, url: &str) -> String {
        self.exec(machine, &format!("curl -sS --max-time 10 {url}")).trim().to_owned()
    }

    /// Whether a TCP connection from the machine is made.
    pub fn reaches(&self, machine: &str, host: &str, port: u16) -> bool {
        let script = format!("import socket,sys\ns=socket.create_connection(({host:?},{port}),3)\ns.close()");
        self.run(&["exec", machine, "--", "python3", "-c", &script]).status.success()
    }

    /// Runs a program in the router namespace of a network.
    pub fn in_router(&self, network: u16, command: &[&str]) -> Output {
        let namespace = format!("warren-{}-n{network}", self.installation());
        Command::new("ip").args(["netns", "exec", &namespace]).args(command).output().unwrap()
    }

    /// Waits until an event of this kind was told.
    pub fn waits_for_event(&self, kind: &str, within: Duration) -> bool {
        eventually(within, || {
            let events = self.json(&["events"]);
            events["items"].as_array().unwrap().iter().any(|event| event["kind"] == kind)
        })
    }

    /// Everything that the kernel shows under this installation's name.
    pub fn traces(installation: &str) -> Vec<String> {
        let mark = format!("warren-{installation}");
        let mut left = Vec::new();
        let mut look = |what: &str, lines: &str, mark: &str| {
            left.extend(lines.lines().filter(|line| line.contains(mark)).map(|line| format!("{what}: {line}")));
        };
        let output =
            |program: &str, arguments: &[&str]| text(&Command::new(program).args(arguments).output().unwrap().stdout);
        look("namespace", &output("ip", &["netns", "list"]), &mark);
        look("mount", &std::fs::read_to_string("/proc/1/mounts").unwrap(), &mark);
        look("cgroup", &output("find", &["/sys/fs/cgroup", "-type", "d", "-name", &format!("*{mark}*")]), &mark);
        look("process", &output("ps", &["-eo", "pid,args"]), &format!("{mark}/"));
        look("run directory", &output("ls", &["/run"]), &mark);
        look(
            "pool",
            &output("find", &[pool().to_str().unwrap(), "-maxdepth", "2"]),
            &format!("/installations/{installation}"),
        );
        left
    }

    /// Uninstalls and answers what stayed.
    pub fn uninstall(&mut self) -> Vec<String> {
        let host = self.host.name().to_owned();
        self.uninstall_in(&host)
    }

    /// Uninstalls from a namespace that is not the server's, and answers what stayed.
    pub fn uninstall_from(&mut self, elsewhere: &Namespace) -> Vec<String> {
        self.uninstall_in(elsewhere.name())
    }

    fn uninstall_in(&mut self, namespace: &str) -> Vec<String> {
        let installation = self.installation();
        let outcome = uninstall(namespace, &self.data_dir());
        assert!(outcome.status.success(), "uninstall failed: {}\n{}", text(&outcome.stderr), self.log());
        if let Some(mut child) = self.child.take() {
            child.wait().unwrap();
        }
        let mut left = Self::traces(&installation);
        let links = self.host.run("ip -o link show");
        let uplinks = format!("w{installation}");
        left.extend(links.lines().filter(|line| line.contains(&uplinks)).map(|line| format!("link: {line}")));
        left.extend(self.host.run("nft list tables").lines().map(|line| format!("rules: {line}")));
        left
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.data_dir().join("installation.json").exists() {
            let outcome = uninstall(self.host.name(), &self.data_dir());
            if !outcome.status.success() {
                eprintln!("uninstall failed: {}\n{}", text(&outcome.stderr), self.log());
            }
        }
        if let Some(mut child) = self.child.take() {
            // It has ended already, unless uninstall failed.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Uninstalls what is in a data directory, from inside a namespace.
pub fn uninstall(namespace: &str, data_dir: &Path) -> Output {
    Command::new("nsenter")
        .arg(format!("--net=/run/netns/{namespace}"))
        .args([WARREN, "uninstall", "--yes", "--data-dir"])
        .arg(data_dir)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Where tests keep images; built by `make test` before.
pub fn pool() -> PathBuf {
    match std::env::var_os("WARREN_TEST_POOL") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/pool"),
    }
}

/// Looks again and again until it holds or the time is over.
pub fn eventually(within: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + within;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
