//! The main job, for real, in a network namespace of its own.
//!
//! Every step is the command that a person would type, and every claim is checked; the first one that does not hold
//! ends the demo with an error. What it makes it removes, also after an error.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

use crate::cli::host::DemoArgs;

/// Bytes that travel while the daemon is killed.
const TRANSFER: u64 = 96 << 20;
/// How fast they travel, so that the daemon's death falls into the middle.
const RATE: &str = "24M";
/// How long the whole transfer may take.
const TRANSFER_WITHIN: Duration = Duration::from_secs(30);

pub fn demo(args: DemoArgs) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the demo starts a server, which has to run as root: run it with sudo");
    }
    let temporary = tempfile::Builder::new().prefix("warren-demo-").tempdir()?;
    let data_dir = args.data_dir.clone().unwrap_or_else(|| temporary.path().join("data"));
    let pool_dir = args.pool_dir.clone().unwrap_or_else(|| data_dir.join("pool"));
    let mut stage = Stage {
        program: std::env::current_exe()?,
        data_dir,
        pool_dir,
        log: temporary.path().join("server.log"),
        key: None,
        server: None,
    };
    let outcome = play(&mut stage);
    let removed = stage.leave_nothing();
    outcome?;
    removed?;
    println!("\nEverything that was claimed was seen.");
    Ok(())
}

fn play(stage: &mut Stage) -> anyhow::Result<()> {
    title("An image and a server");
    let pool = stage.pool_dir.clone();
    // The only step that needs the host's network: packages are downloaded.
    stage.say_and_run(&["image", "build", "debian", "--pool-dir", path_text(&pool)?])?;
    // From here on nothing can touch the host's own network.
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    run_tool("ip", &["link", "set", "lo", "up"])?;
    stage.start_server()?;

    title("A network and two machines");
    stage.act_as("acme")?;
    stage.say_and_run(&["network", "create", "agents", "--cidr", "192.168.10.0/24"])?;
    stage.create_machine("agent", "agents", "192.168.10.10", None)?;
    stage.create_machine("worker", "agents", "192.168.10.11", Some("web=8080/http"))?;
    stage.serve_page("worker", "the worker of acme")?;
    stage.expect_page("agent", "http://192.168.10.11:8080/", "the worker of acme")?;
    stage.expect_page("agent", "http://worker.vm.internal:8080/", "the worker of acme")?;
    claim("the page was fetched by private address and by .internal name");

    title("Another account, with the same addresses");
    let acme = stage.key.clone();
    stage.act_as("globex")?;
    stage.say_and_run(&["network", "create", "agents", "--cidr", "192.168.10.0/24"])?;
    stage.create_machine("other", "agents", "192.168.10.11", None)?;
    stage.create_machine("client", "agents", "192.168.10.12", None)?;
    stage.serve_page("other", "the machine of globex")?;
    stage.expect_page("client", "http://192.168.10.11:8080/", "the machine of globex")?;
    stage.expect_silence("client", "http://192.168.10.10:8080/")?;
    let globex = std::mem::replace(&mut stage.key, acme);
    stage.expect_page("agent", "http://192.168.10.11:8080/", "the worker of acme")?;
    stage.expect_silence("agent", "http://192.168.10.12:8080/")?;
    claim("192.168.10.11 exists twice, and neither account ever meets the other's");

    title("The daemon is killed while bytes travel");
    survive_the_daemon(stage)?;

    title("The topology");
    stage.say_and_run(&["topology"])?;
    stage.key = globex;
    stage.say_and_run(&["topology"])?;
    Ok(())
}

fn survive_the_daemon(stage: &mut Stage) -> anyhow::Result<()> {
    let prepare = format!("head -c {TRANSFER} /dev/urandom > /srv/www/big && sha256sum < /srv/www/big");
    let expected = stage.exec("worker", &prepare)?;
    let transfer = format!(
        "nohup sh -c 'curl -sS --limit-rate {RATE} -o /root/copy http://worker.vm.internal:8080/big; \
         echo $? > /root/finished' >/dev/null 2>&1 & \
         nohup sh -c 'while [ ! -e /root/finished ]; do getent hosts worker.vm.internal >/dev/null \
         && echo answered >> /root/names || echo failed >> /root/names; sleep 0.2; done' >/dev/null 2>&1 &"
    );
    stage.exec("agent", &transfer)?;
    std::thread::sleep(Duration::from_millis(800));
    let before: u64 = stage.exec("agent", "stat -c %s /root/copy")?.trim().parse()?;
    ensure!(before > 0 && before < TRANSFER, "the transfer is not in its middle: {before} of {TRANSFER} bytes");
    stage.kill_server()?;
    println!("    the daemon is dead; {before} of {TRANSFER} bytes had arrived");
    // Long enough for the rest of the transfer to happen without a daemon.
    std::thread::sleep(Duration::from_secs(5));
    stage.start_server()?;

    let deadline = Instant::now() + TRANSFER_WITHIN;
    while stage.exec("agent", "cat /root/finished 2>/dev/null || echo running")?.trim() != "0" {
        ensure!(Instant::now() < deadline, "the transfer did not end");
        std::thread::sleep(Duration::from_millis(200));
    }
    let arrived = stage.exec("agent", "sha256sum < /root/copy")?;
    ensure!(arrived == expected, "the bytes differ: {arrived} and {expected}");
    println!("    sha256 at the sender   {expected}    sha256 at the receiver {arrived}");
    let names = stage.exec("agent", "sort /root/names | uniq -c")?;
    ensure!(!names.contains("failed"), "names were not answered while the daemon was dead:\n{names}");
    claim("not a byte was lost, and every name was answered, while there was no daemon");
    Ok(())
}

/// The demo's installation, and who acts.
struct Stage {
    program: PathBuf,
    data_dir: PathBuf,
    pool_dir: PathBuf,
    /// What the server logs; beside its data, so that nothing of the data directory has to stay.
    log: PathBuf,
    key: Option<String>,
    server: Option<Child>,
}

impl Stage {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).env("WARREN_DATA_DIR", &self.data_dir).env_remove("WARREN_URL").stdin(Stdio::null());
        match &self.key {
            Some(key) => command.env("WARREN_API_KEY", key),
            None => command.env_remove("WARREN_API_KEY"),
        };
        command
    }

    fn say_and_run(&self, arguments: &[&str]) -> anyhow::Result<()> {
        println!("$ warren {}", arguments.join(" "));
        std::io::stdout().flush()?;
        let status = self.command(arguments).status()?;
        ensure!(status.success(), "warren {} failed", arguments.join(" "));
        Ok(())
    }

    fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let output = self.command(arguments).arg("--json").stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success(), "warren {} failed", arguments.join(" "));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn start_server(&mut self) -> anyhow::Result<()> {
        println!("$ warren up --data-dir {} --listen 127.0.0.1:0", self.data_dir.display());
        std::fs::create_dir_all(&self.data_dir)?;
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut child = Command::new(&self.program)
            .args(["up", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(&self.data_dir)
            .arg("--pool-dir")
            .arg(&self.pool_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let stdout = child.stdout.take().context("the server has no stdout")?;
        let mut ready = String::new();
        BufReader::new(stdout).read_line(&mut ready)?;
        self.server = Some(child);
        if !ready.starts_with("ready ") {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            bail!("the server did not start:\n{log}");
        }
        print!("{ready}");
        Ok(())
    }

    fn kill_server(&mut self) -> anyhow::Result<()> {
        let mut server = self.server.take().context("no server runs")?;
        println!("$ kill -9 {}", server.id());
        server.kill()?;
        server.wait()?;
        Ok(())
    }

    /// Makes an account and acts in it from now on.
    fn act_as(&mut self, account: &str) -> anyhow::Result<()> {
        self.key = None;
        println!("$ warren account create {account}");
        let made = self.json(&["account", "create", account])?;
        self.key = Some(made["key"].as_str().context("the account came without a key")?.to_owned());
        Ok(())
    }

    fn create_machine(&self, name: &str, network: &str, ip: &str, port: Option<&str>) -> anyhow::Result<()> {
        let mut arguments = vec!["machine", "create", name, "--network", network, "--ip", ip];
        if let Some(port) = port {
            arguments.extend(["--port", port]);
        }
        self.say_and_run(&arguments)
    }

    fn exec(&self, machine: &str, script: &str) -> anyhow::Result<String> {
        let output = self.command(&["exec", machine, "--", "sh", "-c", script]).output()?;
        ensure!(
            output.status.success(),
            "in {machine}, {script:?} ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    fn serve_page(&self, machine: &str, text: &str) -> anyhow::Result<()> {
        let script = format!(
            "mkdir -p /srv/www && echo {text} > /srv/www/index.html && cd /srv/www && \
             nohup python3 -m http.server 8080 >/dev/null 2>&1 &"
        );
        println!("$ warren exec {machine} -- sh -c 'python3 -m http.server 8080 &'");
        // The answer comes when the server listens.
        self.exec(machine, &script).map(drop)
    }

    fn expect_page(&self, machine: &str, url: &str, text: &str) -> anyhow::Result<()> {
        println!("$ warren exec {machine} -- curl -sS {url}");
        let page = self.exec(machine, &format!("curl -sS --max-time 10 {url}"))?;
        print!("    {page}");
        ensure!(page.trim() == text, "expected {text:?} at {url}");
        Ok(())
    }

    fn expect_silence(&self, machine: &str, url: &str) -> anyhow::Result<()> {
        println!("$ warren exec {machine} -- curl -sS {url}");
        let script = format!("curl -sS --max-time 5 {url} 2>&1 && echo REACHED || true");
        let answer = self.exec(machine, &script)?;
        print!("    {answer}");
        ensure!(!answer.contains("REACHED"), "{url} was reached from {machine}");
        Ok(())
    }

    /// Removes the installation and looks for anything that stayed.
    fn leave_nothing(&mut self) -> anyhow::Result<()> {
        title("Nothing stays behind");
        let installation = installation_of(&self.data_dir);
        if self.data_dir.exists() {
            self.key = None;
            let data_dir = self.data_dir.clone();
            self.say_and_run(&["uninstall", "--data-dir", path_text(&data_dir)?, "--yes"])?;
        }
        if let Some(mut server) = self.server.take() {
            server.wait()?;
        }
        let Some(installation) = installation else { return Ok(()) };
        let left = traces_of(&installation)?;
        ensure!(left.is_empty(), "something of {installation} stayed behind:\n{}", left.join("\n"));
        claim("no namespace, link, mount, cgroup or process of the demo is left");
        Ok(())
    }
}

fn installation_of(data_dir: &Path) -> Option<String> {
    let text = std::fs::read_to_string(data_dir.join("installation.json")).ok()?;
    let traces: Value = serde_json::from_str(&text).ok()?;
    Some(traces["installation"].as_str()?.to_owned())
}

/// Everything that the kernel shows under the installation's name.
fn traces_of(installation: &str) -> anyhow::Result<Vec<String>> {
    let mark = format!("warren-{installation}");
    let mut left = Vec::new();
    let mut look = |what: &str, lines: String, mark: &str| {
        left.extend(lines.lines().filter(|line| line.contains(mark)).map(|line| format!("{what}: {line}")));
    };
    look("namespace", run_tool("ip", &["netns", "list"])?, &mark);
    look("link", run_tool("ip", &["-o", "link"])?, &format!("w{installation}"));
    look("mount", std::fs::read_to_string("/proc/1/mounts")?, &mark);
    look("cgroup", run_tool("find", &["/sys/fs/cgroup", "-type", "d", "-name", &format!("*{mark}*")])?, &mark);
    look("process", run_tool("ps", &["-eo", "pid,args"])?, &format!("{mark}/"));
    Ok(left)
}

fn run_tool(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("cannot run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {} failed: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn path_text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{} is not text", path.display()))
}

fn title(text: &str) {
    println!("\n== {text}");
}

fn claim(text: &str) {
    println!("  ✓ {text}");
}
