//! Removes every trace of one installation, whether its server runs, has ended or was killed.
//!
//! The store is not needed: what an installation leaves outside its data directory is written down in
//! `installation.json` when the server starts, and everything that the kernel shows carries the installation's id.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use warren_edge::EdgeClient;
use warren_kernel::Kernel;
use warren_runtime::disk::Pool;
use warren_runtime::driver::{ContainerConfig, ContainerDriver, Driver as _};

use super::layout::{self, Layout, Traces};
use super::mounts;
use crate::cli::host::UninstallArgs;

/// How long the server may take to end when it is asked to.
const SERVER_GRACE: Duration = Duration::from_secs(15);

pub fn uninstall(args: UninstallArgs) -> anyhow::Result<()> {
    let directory = args
        .data_dir
        .canonicalize()
        .with_context(|| format!("there is no installation at {}", args.data_dir.display()))?;
    let layout = Layout::new(directory);
    if !layout.store().exists() && layout.read_traces()?.is_none() {
        bail!("{} is not the data directory of an installation; nothing was touched", layout.directory().display());
    }
    mounts::enter_lasting_namespace(&[layout.directory()])?;
    let traces = layout.read_traces()?;
    // Found while the server still leads to its namespace.
    let kernel =
        traces.as_ref().map(|traces| Kernel::of_installation(traces.installation.clone(), traces.ula)).transpose()?;
    end_server(&layout)?;
    let _lock = layout.lock()?;
    if let (Some(traces), Some(kernel)) = (traces, kernel) {
        let removal = remove_traces(&layout, &traces, kernel);
        tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(removal)?;
    }
    layout.remove_files()?;
    match std::fs::remove_dir(layout.directory()) {
        Ok(()) => println!("removed {}", layout.directory().display()),
        // Somebody else's files are nobody's to remove.
        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
            println!("removed the installation; {} holds other files and stays", layout.directory().display());
        }
        Err(error) => return Err(error).with_context(|| format!("cannot remove {}", layout.directory().display())),
    }
    Ok(())
}

/// Ends the server that holds the lock, if one does.
fn end_server(layout: &Layout) -> anyhow::Result<()> {
    if layout.lock().is_ok() {
        return Ok(());
    }
    let Some(holder) = layout.lock_holder() else { bail!("the data directory is locked by an unknown process") };
    let pid = Pid::from_raw(holder);
    for (signal, grace) in [(Signal::SIGTERM, SERVER_GRACE), (Signal::SIGKILL, SERVER_GRACE)] {
        // It may have ended in the meantime.
        let _ = kill(pid, signal);
        let deadline = Instant::now() + grace;
        while Instant::now() < deadline {
            if layout.lock().is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    bail!("the server (process {holder}) does not end")
}

/// Goes on after an error, and reports them all.
async fn remove_traces(layout: &Layout, traces: &Traces, kernel: Kernel) -> anyhow::Result<()> {
    let mut errors: Vec<String> = Vec::new();
    let mut note = |what: &str, outcome: anyhow::Result<()>| {
        if let Err(error) = outcome {
            errors.push(format!("{what}: {error:#}"));
        }
    };
    let installation = &traces.installation;
    let run_directory = installation.run_directory();

    note("machines", remove_machines(traces, &run_directory).await);
    note("edge", end_edge(&layout::edge_control(installation)).await);
    note("networks", remove_networks(kernel).await);
    note("disks", remove_disks(layout, traces).await);
    note("run directory", mounts::remove_volatile_directory(&run_directory));
    if !errors.is_empty() {
        bail!("not everything could be removed; run it again when this is mended:\n  {}", errors.join("\n  "));
    }
    Ok(())
}

async fn remove_machines(traces: &Traces, run_directory: &Path) -> anyhow::Result<()> {
    let driver = ContainerDriver::new(ContainerConfig {
        installation: traces.installation.clone(),
        runtime: traces.runtime.clone(),
        run_dir: run_directory.to_owned(),
        cgroup_parent: traces.cgroup_parent.clone(),
    })?;
    let machines = driver.observe().await?;
    let removals = machines.keys().map(|id| driver.remove(*id));
    all_done(futures::future::join_all(removals).await)
}

async fn end_edge(control: &Path) -> anyhow::Result<()> {
    if let Some(edge) = EdgeClient::connect(control).await? {
        edge.shutdown().await?;
    }
    Ok(())
}

async fn remove_networks(kernel: Kernel) -> anyhow::Result<()> {
    tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
        let networks = kernel.networks()?.into_iter().map(|number| kernel.remove_network(number));
        all_done(networks.chain([kernel.forwarding().restore()]))
    })
    .await?
}

async fn remove_disks(layout: &Layout, traces: &Traces) -> anyhow::Result<()> {
    // The server may have ended before it could make one.
    if !Pool::is_in(&traces.pool_dir)? {
        return Ok(());
    }
    let pool = Pool::open(&traces.pool_dir, &traces.installation).await?;
    // A pool of the installation's own goes with it; a shared one stays, with its images.
    pool.close_installation(traces.pool_dir.starts_with(layout.directory())).await?;
    Ok(())
}

fn all_done<E: Into<anyhow::Error>>(outcomes: impl IntoIterator<Item = Result<(), E>>) -> anyhow::Result<()> {
    let failed = outcomes.into_iter().filter_map(|outcome| outcome.err().map(|error| format!("{:#}", error.into())));
    match failed.collect::<Vec<_>>() {
        failed if failed.is_empty() => Ok(()),
        failed => bail!(failed.join("; ")),
    }
}
