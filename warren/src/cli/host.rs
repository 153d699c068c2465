//! The commands that need the host itself: starting a server, examining it, removing it.

use std::path::PathBuf;

use clap::Args;

use super::config::{self, UpFlags};
use super::failure::Failure;
use crate::server;

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct EdgeArgs {
    /// The socket on which the daemon hands over sockets and snapshots
    #[arg(long, value_name = "PATH")]
    pub control: PathBuf,
    /// The user to become
    #[arg(long, value_name = "N")]
    pub uid: u32,
    /// The group to become
    #[arg(long, value_name = "N")]
    pub gid: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct UninstallArgs {
    /// The installation to remove
    #[arg(long, value_name = "DIR", env = "WARREN_DATA_DIR", default_value = crate::client::target::DEFAULT_DATA_DIR)]
    pub data_dir: PathBuf,
    /// Yes, end its machines and remove everything of it, data included
    #[arg(long, required = true)]
    pub yes: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct DemoArgs {
    /// Where the demo's own server keeps its data; a temporary directory when absent
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where images are kept, so that a second run need not build one
    #[arg(long, value_name = "DIR", env = "WARREN_POOL_DIR")]
    pub pool_dir: Option<PathBuf>,
    /// The npm client for the chapter that is about it, as scripts/install-client.sh installs it; left out when absent
    #[arg(long, value_name = "DIR")]
    pub client: Option<PathBuf>,
}

pub fn up(flags: UpFlags) -> Result<(), Failure> {
    let args = config::settle(flags).map_err(|error| Failure::Usage(error.to_string()))?;
    server::up(args).map_err(Failure::Host)
}

pub fn edge(args: EdgeArgs) -> Result<(), Failure> {
    server::edge(args).map_err(Failure::Host)
}

pub fn uninstall(args: UninstallArgs) -> Result<(), Failure> {
    server::uninstall(args).map_err(Failure::Host)
}

pub fn doctor(json: bool) -> Result<(), Failure> {
    server::doctor(json).map_err(Failure::Host)
}

pub fn demo(args: DemoArgs) -> Result<(), Failure> {
    server::demo(args).map_err(Failure::Host)
}
