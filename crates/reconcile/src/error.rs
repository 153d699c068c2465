//! Why a step was not done.

use warren_edge::EdgeError;
use warren_kernel::KernelError;
use warren_model::problem::{self, Code};
use warren_model::record::Failure;
use warren_runtime::agent::AgentError;
use warren_runtime::disk::{DiskError, PoolError};
use warren_runtime::driver::DriverError;
use warren_store::StoreError;

#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error("the store could not be used")]
    Store(#[from] StoreError),
    #[error("the network could not be changed")]
    Kernel(#[from] KernelError),
    #[error("the disk could not be prepared")]
    Disk(#[from] DiskError),
    #[error("the pool could not be used")]
    Pool(#[from] PoolError),
    #[error("the container could not be changed")]
    Driver(#[from] DriverError),
    #[error("the machine's agent did not answer")]
    Agent(#[from] AgentError),
    #[error("the edge could not be reached")]
    Edge(#[from] EdgeError),
    #[error("{0} operators could not be let in")]
    OperatorsRefused(usize),
    #[error("network {0} is not on this host yet")]
    NetworkMissing(warren_model::NetworkId),
    #[error("the machine ended while it was starting")]
    EndedWhileStarting,
    #[error("the machine is wanted otherwise by now")]
    Superseded,
    #[error("{action} at {path} failed")]
    File {
        action: &'static str,
        path: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("a blocking task ended early")]
    Panicked(#[from] tokio::task::JoinError),
    #[error("a step panicked")]
    StepPanicked,
}

impl ReconcileError {
    /// The message with every cause behind it.
    pub fn chain(&self) -> String {
        problem::chain(self)
    }

    /// The stable code under which a machine's owner sees it.
    pub fn code(&self) -> Code {
        match self {
            Self::Disk(error) => error.code(),
            Self::Pool(error) => error.code(),
            Self::Driver(error) => error.code(),
            Self::Agent(_) => Code::AgentUnavailable,
            Self::Kernel(KernelError::ForwardingOff { .. }) => Code::ForwardingRequired,
            Self::Kernel(KernelError::NoNft(_)) => Code::ToolMissing,
            Self::Store(StoreError::DiskFull) => Code::HostDiskFull,
            Self::EndedWhileStarting => Code::MachineFailed,
            Self::File { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => Code::HostDiskFull,
            _ => Code::Internal,
        }
    }

    pub fn failure(&self) -> Failure {
        let code = self.code();
        // What went wrong inside is the operator's to know; the chain is in the log.
        let detail = match code {
            Code::Internal => {
                "something went wrong on the host: its operator finds the cause in the server's log".to_owned()
            }
            _ => self.chain(),
        };
        Failure { code, detail }
    }
}
