//! What a host runs: the server, the edge, and the commands that need the host itself.

use std::path::PathBuf;

use anyhow::Context as _;
use warren_edge::{EdgeConfig, EdgeLog, SpawnConfig};
use warren_model::InstallationId;

use crate::cli::host::EdgeArgs;

mod boundaries;
mod demo;
mod doctor;
mod host;
mod image;
mod layout;
mod listen;
mod logging;
mod mounts;
mod publisher;
mod resolvers;
mod tunnels;
mod uninstall;
mod up;

pub use demo::demo;
pub use doctor::doctor;
pub use image::image_build;
pub use uninstall::uninstall;
pub use up::up;

/// The user and group that the edge becomes: Debian's `nobody` and `nogroup`, which own nothing.
const UNPRIVILEGED: u32 = 65_534;

/// The process body of `warren edge`.
pub fn edge(args: EdgeArgs) -> anyhow::Result<()> {
    warren_edge::run(EdgeConfig { control: args.control, uid: args.uid, gid: args.gid })?;
    Ok(())
}

/// How the daemon starts its edge.
fn edge_config(installation: &InstallationId, log: PathBuf) -> anyhow::Result<SpawnConfig> {
    let executable = std::env::current_exe().context("cannot find the own program")?;
    Ok(SpawnConfig {
        executable,
        arguments: Vec::new(),
        control: layout::edge_control(installation),
        uid: UNPRIVILEGED,
        gid: UNPRIVILEGED,
        log: EdgeLog::File(log),
    })
}
