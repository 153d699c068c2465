//! A Warren server of the benchmark's own, in a network namespace of its own; nothing of it stays.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use warren_model::wire;

use crate::api::Client;
use crate::namespace::Namespace;
use crate::options::Options;
use crate::process::Owned;

const STEP_SUM: &str = "warren_machine_step_seconds_sum{step=\"";

pub struct Server {
    program: PathBuf,
    pub namespace: Namespace,
    directory: TempDir,
    process: Option<Owned>,
    pub installation: String,
    /// Where images and disks are.
    pub pool: PathBuf,
}

impl Server {
    pub fn start(options: &Options) -> anyhow::Result<Self> {
        Self::start_with(options, &[])
    }

    /// With these arguments of `warren up`, too.
    pub fn start_with(options: &Options, arguments: &[&str]) -> anyhow::Result<Self> {
        let program = options
            .warren
            .canonicalize()
            .with_context(|| format!("there is no program at {}: build it first", options.warren.display()))?;
        let pool = options.pool_dir.canonicalize().with_context(|| {
            format!("there is no image at {0}: warren image build debian --pool-dir {0}", options.pool_dir.display())
        })?;
        // Not the temporary directory, which may be in memory: a commit has to reach a disk, as it does for everybody.
        let directory = tempfile::Builder::new().prefix("warren-bench-").tempdir_in("/var/tmp")?;
        let namespace = Namespace::new()?;
        let mut server =
            Self { program, namespace, directory, process: None, installation: String::new(), pool: pool.clone() };
        server.run(&pool, arguments)?;
        Ok(server)
    }

    fn run(&mut self, pool: &Path, arguments: &[&str]) -> anyhow::Result<()> {
        let mut command = self.namespace.command(&self.program)?;
        command
            .args(["up", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(self.data())
            .arg("--pool-dir")
            .arg(pool)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(self.log())?);
        let process = self.process.insert(Owned::spawn(&mut command)?);
        let stdout = process.child().stdout.take().context("the server has no stdout")?;
        let mut ready = String::new();
        BufReader::new(stdout).read_line(&mut ready)?;
        if !ready.starts_with("ready ") {
            bail!("the server did not start:\n{}", std::fs::read_to_string(self.log()).unwrap_or_default());
        }
        let traces: Value = serde_json::from_slice(&std::fs::read(self.data().join("installation.json"))?)?;
        traces["installation"].as_str().context("the installation has no id")?.clone_into(&mut self.installation);
        Ok(())
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("server.log")
    }

    /// What does not survive a reboot: bundles and the runtime's own state.
    pub fn run_directory(&self) -> PathBuf {
        PathBuf::from(format!("/run/warren-{}", self.installation))
    }

    pub fn client(&self) -> anyhow::Result<Client> {
        let key = std::fs::read_to_string(self.data().join("root.key")).context("the root key cannot be read")?;
        self.client_with(key.trim())
    }

    /// One that sends this secret.
    pub fn client_with(&self, secret: &str) -> anyhow::Result<Client> {
        Client::connect(&self.data().join("api.sock"), secret)
    }

    /// Bytes of its processes that are in memory, by what they were started as (`up`, `edge`). What several processes
    /// share is divided among them (`Pss` in proc_pid_smaps(5)).
    pub fn memory(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        let inside = std::fs::metadata(self.namespace.path())?.ino();
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir("/proc")? {
            let process = entry?.path();
            // What is no process has no namespace, and neither has one that just ended.
            if !std::fs::metadata(process.join("ns/net")).is_ok_and(|namespace| namespace.ino() == inside) {
                continue;
            }
            let command = std::fs::read_to_string(process.join("cmdline")).unwrap_or_default();
            let (Some(word), Ok(rollup)) =
                (command.split('\0').nth(1), std::fs::read_to_string(process.join("smaps_rollup")))
            else {
                continue;
            };
            let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("a process has no size")?;
            let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
            *found.entry(word.to_owned()).or_default() += kibibytes * 1024;
        }
        Ok(found)
    }

    fn uninstall(&mut self) -> anyhow::Result<()> {
        if let Some(mut process) = self.process.take() {
            process.terminate()?;
        }
        if !self.data().join("installation.json").exists() {
            return Ok(());
        }
        let output = self
            .namespace
            .command(&self.program)?
            .args(["uninstall", "--yes", "--data-dir"])
            .arg(self.data())
            .stdin(Stdio::null())
            .output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.uninstall() {
            eprintln!(
                "the benchmark's server could not be removed: {error:#}\nonce that is mended: warren uninstall --yes \
                 --data-dir {}",
                self.data().display()
            );
            self.directory.disable_cleanup(true);
        }
    }
}

/// A machine with default settings; it is deleted by the caller.
pub fn create_machine(client: &mut Client) -> anyhow::Result<wire::Machine> {
    client.post("/v1/machines", &json!({}))
}

/// Runs `true` in it.
pub fn exec_true(client: &mut Client, machine: &wire::Machine) -> anyhow::Result<()> {
    let result: wire::ExecResult =
        client.post(&format!("/v1/machines/{}/exec", machine.id), &json!({ "command": ["true"] }))?;
    ensure!(result.status == 0, "`true` ended with {}: {}", result.status, result.stderr);
    Ok(())
}

pub fn delete_machine(client: &mut Client, machine: &wire::Machine) -> anyhow::Result<()> {
    client.delete(&format!("/v1/machines/{}", machine.id))
}

/// The seconds that the server has spent on each step of machines.
pub fn machine_steps(client: &mut Client) -> anyhow::Result<BTreeMap<String, f64>> {
    parse_steps(&client.get_text("/metrics")?)
}

fn parse_steps(text: &str) -> anyhow::Result<BTreeMap<String, f64>> {
    let steps = text.lines().filter_map(|line| line.strip_prefix(STEP_SUM)?.split_once("\"} "));
    steps.map(|(step, seconds)| Ok((step.to_owned(), seconds.parse()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_are_read_out_of_the_metrics() {
        let text = "# HELP warren_machine_step_seconds Time of one step of a machine.\n\
                    # TYPE warren_machine_step_seconds histogram\n\
                    warren_machine_step_seconds_sum{step=\"create_disk\"} 0.0125\n\
                    warren_machine_step_seconds_count{step=\"create_disk\"} 2\n\
                    warren_network_step_seconds_sum{step=\"admit\"} 1.0\n# EOF\n";
        assert_eq!(parse_steps(text).unwrap(), BTreeMap::from([("create_disk".to_owned(), 0.0125)]));
    }
}
