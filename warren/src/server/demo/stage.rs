//! The demo's installation, and the commands that a person would type.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use warren_lab::laptop::SERVER;
use warren_lab::outside::RESOLVERS;

use super::preview::SUFFIX;
use super::{claim, title};

/// The demo's installation, and who acts.
pub(super) struct Stage {
    pub program: PathBuf,
    pub data_dir: PathBuf,
    pub pool_dir: PathBuf,
    /// What the server logs; beside its data, so that nothing of the data directory has to stay.
    pub log: PathBuf,
    pub key: Option<String>,
    pub server: Option<Child>,
    /// Where the server answers.
    pub url: String,
}

impl Stage {
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).env("WARREN_DATA_DIR", &self.data_dir).env_remove("WARREN_URL").stdin(Stdio::null());
        match &self.key {
            Some(key) => command.env("WARREN_API_KEY", key),
            None => command.env_remove("WARREN_API_KEY"),
        };
        command
    }

    pub fn say_and_run(&self, arguments: &[&str]) -> anyhow::Result<()> {
        println!("$ warren {}", arguments.join(" "));
        std::io::stdout().flush()?;
        let status = self.command(arguments).status()?;
        ensure!(status.success(), "warren {} failed", arguments.join(" "));
        Ok(())
    }

    pub fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let output = self.command(arguments).arg("--json").stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success(), "warren {} failed", arguments.join(" "));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    pub fn start_server(&mut self) -> anyhow::Result<()> {
        let data_dir = self.data_dir.display();
        let endpoint = format!("{SERVER}:51820");
        let options = ["--listen", "127.0.0.1:0", "--resolver", RESOLVERS[0], "--vpn-endpoint", &endpoint];
        let public = ["--https-listen", "0.0.0.0:443", "--http-listen", "0.0.0.0:80", "--preview-suffix", SUFFIX];
        println!("$ warren up --data-dir {data_dir} {} \\\n      {}", options.join(" "), public.join(" "));
        std::fs::create_dir_all(&self.data_dir)?;
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut child = Command::new(&self.program)
            .arg("up")
            .args(options)
            .args(public)
            .arg("--data-dir")
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
        let Some(url) = ready.trim().strip_prefix("ready ") else {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            bail!("the server did not start:\n{log}");
        };
        self.url = url.to_owned();
        print!("{ready}");
        Ok(())
    }

    pub fn kill_server(&mut self) -> anyhow::Result<()> {
        let mut server = self.server.take().context("no server runs")?;
        println!("$ kill -9 {}", server.id());
        server.kill()?;
        server.wait()?;
        Ok(())
    }

    /// Makes an account and acts in it from now on.
    pub fn act_as(&mut self, account: &str) -> anyhow::Result<()> {
        self.key = None;
        println!("$ warren account create {account}");
        let made = self.json(&["account", "create", account])?;
        self.key = Some(made["key"].as_str().context("the account came without a key")?.to_owned());
        Ok(())
    }

    pub fn create_machine(&self, name: &str, network: &str, ip: &str, port: Option<&str>) -> anyhow::Result<()> {
        let mut arguments = vec!["machine", "create", name, "--network", network, "--ip", ip];
        if let Some(port) = port {
            arguments.extend(["--port", port]);
        }
        self.say_and_run(&arguments)
    }

    /// Runs a script in a machine, however it ends.
    pub fn attempt(&self, machine: &str, script: &str) -> anyhow::Result<Output> {
        Ok(self.command(&["exec", machine, "--", "sh", "-c", script]).output()?)
    }

    pub fn exec(&self, machine: &str, script: &str) -> anyhow::Result<String> {
        let output = self.attempt(machine, script)?;
        ensure!(
            output.status.success(),
            "in {machine}, {script:?} ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    pub fn serve_page(&self, machine: &str, text: &str) -> anyhow::Result<()> {
        let script = format!(
            "mkdir -p /srv/www && echo {text} > /srv/www/index.html && cd /srv/www && \
             nohup python3 -m http.server 8080 >/dev/null 2>&1 &"
        );
        println!("$ warren exec {machine} -- sh -c 'python3 -m http.server 8080 &'");
        // The answer comes when the server listens.
        self.exec(machine, &script).map(drop)
    }

    pub fn expect_page(&self, machine: &str, url: &str, text: &str) -> anyhow::Result<()> {
        println!("$ warren exec {machine} -- curl -sS {url}");
        let page = self.exec(machine, &format!("curl -sS --max-time 10 {url}"))?;
        print!("    {page}");
        ensure!(page.trim() == text, "expected {text:?} at {url}");
        Ok(())
    }

    pub fn expect_silence(&self, machine: &str, url: &str) -> anyhow::Result<()> {
        println!("$ warren exec {machine} -- curl -sS {url}");
        let script = format!("curl -sS --max-time 5 {url} 2>&1 && echo REACHED || true");
        let answer = self.exec(machine, &script)?;
        print!("    {answer}");
        ensure!(!answer.contains("REACHED"), "{url} was reached from {machine}");
        Ok(())
    }

    /// Removes the installation and looks for anything that stayed.
    pub fn leave_nothing(&mut self) -> anyhow::Result<()> {
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

pub(super) fn run_tool(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("cannot run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {} failed: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub(super) fn path_text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{} is not text", path.display()))
}
