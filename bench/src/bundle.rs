//! The container of a machine, without Warren: the same bundle, started by `runc` alone.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use tempfile::TempDir;
use warren_model::wire;

use crate::server::Server;
use crate::stats::Samples;

/// How far below the server's directory a bundle is looked for.
const DEPTH: usize = 4;

pub struct Bundle {
    directory: TempDir,
    config: Value,
    /// What all containers of this value are called, before their number.
    prefix: String,
    count: usize,
    /// Milliseconds of every `create` and every `start`.
    create: Vec<f64>,
    start: Vec<f64>,
    /// The container that is there, to be removed also when something fails.
    present: Option<String>,
}

impl Bundle {
    /// A bundle like that of a machine, with the same root, limits and namespaces.
    pub fn like(server: &Server, machine: &wire::Machine) -> anyhow::Result<Self> {
        let bare = machine.id.rsplit('_').next().unwrap_or(&machine.id);
        let found = find(&server.run_directory(), bare, DEPTH).with_context(|| {
            format!("there is no bundle of {} below {}", machine.id, server.run_directory().display())
        })?;
        let mut config: Value = serde_json::from_slice(&std::fs::read(&found)?)?;
        // The mapped mount of a running machine is the machine's own by now; its disk is the same tree.
        let disk = server.pool.join("fs/disks").join(&server.installation).join(bare);
        let directory = tempfile::Builder::new().prefix("warren-bench-bundle-").tempdir_in("/run")?;
        // The container's root is another user, who has to get as far as its mounts.
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o711))?;
        let root = directory.path().join("root");
        std::fs::create_dir(&root)?;
        let bound = Command::new("mount").arg("--bind").args([&disk, &root]).status()?;
        anyhow::ensure!(bound.success(), "cannot bind {} for the bare runtime", disk.display());
        config["root"]["path"] = json!(root);
        share_nothing(&mut config, &directory.path().join("agent"))?;
        let prefix = format!("warren-bench-{}", server.installation);
        Ok(Self { directory, config, prefix, count: 0, create: Vec::new(), start: Vec::new(), present: None })
    }

    /// Milliseconds of `create` and `start`.
    pub fn sample(&mut self) -> anyhow::Result<f64> {
        let id = format!("{}-{}", self.prefix, self.count);
        self.count += 1;
        self.write(&id)?;
        let bundle = self.directory.path().join("bundle");
        self.present = Some(id.clone());
        let began = Instant::now();
        self.runc(&[Path::new("create"), Path::new("--bundle"), &bundle, Path::new(&id)])?;
        let created = began.elapsed().as_secs_f64() * 1e3;
        self.runc(&[Path::new("start"), Path::new(&id)])?;
        let taken = began.elapsed().as_secs_f64() * 1e3;
        self.create.push(created);
        self.start.push(taken - created);
        self.remove()?;
        Ok(taken)
    }

    /// What the two parts took, for the report.
    pub fn line(&self) -> anyhow::Result<String> {
        let (create, start) = (Samples::new(self.create.clone())?, Samples::new(self.start.clone())?);
        Ok(format!("bare runc: create {:.1} ms, start {:.1} ms (medians)", create.median(), start.median()))
    }

    fn write(&mut self, id: &str) -> anyhow::Result<()> {
        let cgroup = self.config["linux"]["cgroupsPath"].as_str().unwrap_or_default();
        let parent = cgroup.rsplit_once('/').map(|(parent, _)| format!("{parent}/")).unwrap_or_default();
        self.config["linux"]["cgroupsPath"] = json!(format!("{parent}{id}"));
        let bundle = self.directory.path().join("bundle");
        std::fs::create_dir_all(&bundle)?;
        std::fs::write(bundle.join("config.json"), serde_json::to_vec(&self.config)?)?;
        Ok(())
    }

    fn remove(&mut self) -> anyhow::Result<()> {
        let Some(id) = self.present.take() else { return Ok(()) };
        self.runc(&[Path::new("delete"), Path::new("--force"), Path::new(&id)])
    }

    fn runc(&self, arguments: &[&Path]) -> anyhow::Result<()> {
        let log = self.directory.path().join("runc.log");
        // A container inherits its standard streams, so what runc has to say goes to a file.
        let status = Command::new("runc")
            .arg("--root")
            .arg(self.directory.path().join("state"))
            .arg("--log")
            .arg(&log)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .context("cannot run runc")?;
        if !status.success() {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            bail!("runc {} failed: {}", arguments[0].display(), said.lines().last().unwrap_or_default());
        }
        Ok(())
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("the benchmark's container could not be removed: {error:#}");
        }
        // Before the directory goes, and with it whatever would still be bound there.
        let _ = Command::new("umount").args(["--lazy"]).arg(self.directory.path().join("root")).status();
    }
}

/// The same agent, but not the machine's own socket: the server has to hear from its own machines only.
fn share_nothing(config: &mut Value, directory: &Path) -> anyhow::Result<()> {
    let mounts = config["mounts"].as_array_mut().context("the bundle has no mounts")?;
    let agent = mounts.iter_mut().find(|mount| mount["type"] == "bind").context("the bundle shares no directory")?;
    let source = agent["source"].as_str().context("a mount has no source")?;
    std::fs::create_dir(directory)?;
    std::fs::copy(Path::new(source).join("init"), directory.join("init")).context("the bundle has no agent")?;
    agent["source"] = json!(directory);
    Ok(())
}

/// The `config.json` below a directory whose path names the machine.
fn find(directory: &Path, machine: &str, depth: usize) -> Option<PathBuf> {
    let entries = std::fs::read_dir(directory).ok()?;
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.file_name().is_some_and(|name| name == "config.json") && path.to_string_lossy().contains(machine) {
            return Some(path);
        }
        let is_directory = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
        if is_directory
            && depth > 0
            && let Some(found) = find(&path, machine, depth - 1)
        {
            return Some(found);
        }
    }
    None
}
