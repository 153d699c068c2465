//! Running machines: the contract that a driver keeps, and the container driver.
//!
//! A driver owns nothing that outlives it in memory: whatever it needs to find a machine again is on the host (process,
//! cgroup, state directory), so that a daemon that was killed takes its machines over.
//!
//! | file | holds |
//! | --- | --- |
//! | [`container`] | the driver over an OCI runtime: bundle, seccomp, cgroups, processes |
//! | [`doctor`](doctor()) | what the host lacks |
//! | [`capacity`](host_capacity()) | what the host can give |

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;
use warren_guest::protocol;
use warren_model::record::Limits;
use warren_model::{Code, MachineId};

mod capacity;
pub mod container;
mod doctor;

pub use capacity::host_capacity;
pub use container::{CgroupParent, ContainerConfig, ContainerDriver};
pub use doctor::{Finding, doctor};

use crate::helper::HelperError;
pub use crate::helper::find_program;

/// Where a machine sees the directory that it shares with the host.
pub const GUEST_DIRECTORY: &str = protocol::DIRECTORY;
/// The agent, and the socket that it dials.
pub const GUEST_COMMAND: [&str; 2] = [protocol::INIT, protocol::SOCKET];

/// What a machine is made of.
#[derive(Debug, Clone)]
pub struct MachineSpec {
    pub id: MachineId,
    pub hostname: String,
    /// The host's uid and gid that root in the machine has; the machine has 65,536 from there on.
    pub uid_base: u32,
    pub limits: Limits,
    /// Its disk, mounted with shifted owners.
    pub root: PathBuf,
    /// Shown read-only at [`GUEST_DIRECTORY`]; holds the agent (`init`) and its socket (`agent.sock`).
    pub agent_directory: PathBuf,
}

/// A machine that exists and in which nothing of its image runs yet.
#[derive(Debug)]
pub struct Created {
    /// Its first process, as the host sees it.
    pub pid: i32,
    pub netns: OwnedFd,
}

/// What a driver sees of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverState {
    Created {
        pid: i32,
    },
    Running {
        pid: i32,
    },
    /// Its first process has ended, or never was; something of it is left to be removed.
    Dead,
}

/// What runs machines.
#[async_trait]
pub trait Driver: Send + Sync {
    /// Whether machines can be run at all.
    async fn check(&self) -> Result<(), DriverError>;

    /// Makes a machine with a network namespace of its own, in which nothing of the image runs yet. Whatever an
    /// earlier attempt left is removed first.
    async fn create(&self, spec: &MachineSpec) -> Result<Created, DriverError>;

    /// Starts what was created; does nothing when it runs.
    async fn start(&self, machine: MachineId) -> Result<(), DriverError>;

    /// Asks the machine to end, and ends it when `grace` is over. Nothing of it runs, and the runtime knows it no
    /// more, when this answers. Fine when it is not there.
    async fn stop(&self, machine: MachineId, grace: Duration) -> Result<(), DriverError>;

    /// Ends a machine at once and removes everything of it but its disk. Goes on after a failure and reports all.
    /// Fine when it is not there.
    async fn remove(&self, machine: MachineId) -> Result<(), DriverError>;

    /// Every machine of this installation that there is something of.
    async fn observe(&self) -> Result<BTreeMap<MachineId, DriverState>, DriverError>;

    /// The network namespace of a machine that exists.
    fn network_namespace(&self, machine: MachineId) -> Result<OwnedFd, DriverError>;

    /// Machines whose first process ends from now on, also ones that were taken over. Those that [`Driver::stop`] and
    /// [`Driver::remove`] end are among them.
    fn exits(&self) -> mpsc::UnboundedReceiver<MachineId>;
}

/// Why a driver did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    #[error("the OCI runtime `{runtime}` is not installed; install it (`apt-get install runc`) or set `runtime`")]
    RuntimeMissing { runtime: String },
    #[error("the OCI runtime cannot be used")]
    RuntimeUnusable(#[source] HelperError),
    #[error("machine {machine} could not be {action}: {detail}")]
    Runtime { machine: MachineId, action: &'static str, detail: String },
    #[error("there is no machine {machine}")]
    NoSuchMachine { machine: MachineId },
    #[error("machine {machine} ended before it was started")]
    Ended { machine: MachineId },
    #[error("{what}; {remedy}")]
    KernelFeatureMissing { what: String, remedy: String },
    #[error("the host's disk or memory file system is full")]
    HostDiskFull,
    #[error("{context} {}", path.display())]
    Io {
        context: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("not everything of machine {machine} could be removed: {}", failures.join("; "))]
    Incomplete { machine: MachineId, failures: Vec<String> },
}

impl DriverError {
    pub(crate) fn io(context: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        move |source| match crate::files::is_full(&source) {
            true => Self::HostDiskFull,
            false => Self::Io { context, path: path.to_path_buf(), source },
        }
    }

    pub fn code(&self) -> Code {
        match self {
            Self::RuntimeMissing { .. } => Code::RuntimeMissing,
            Self::KernelFeatureMissing { .. } => Code::KernelFeatureMissing,
            Self::HostDiskFull => Code::HostDiskFull,
            Self::RuntimeUnusable(_) | Self::Runtime { .. } | Self::Ended { .. } | Self::Incomplete { .. } => {
                Code::MachineFailed
            }
            Self::NoSuchMachine { .. } => Code::MachineNotRunning,
            Self::Io { .. } => Code::Internal,
        }
    }
}
