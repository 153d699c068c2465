use std::io;
use std::path::{Path, PathBuf};

use warren_model::{Code, ImageName, MachineId};

use crate::files::is_full;
use crate::helper::HelperError;

/// Why a pool could not be opened or closed.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    #[error("the file system of {} has too little room left for a pool; free some, or choose another --pool-dir", directory.display())]
    HostDiskFull { directory: PathBuf },
    #[error("{context} {}", path.display())]
    Io {
        context: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} says that it was made by another version of Warren: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: String },
    #[error(transparent)]
    Helper(#[from] HelperError),
    #[error("not everything of the pool could be removed: {}", failures.join("; "))]
    Incomplete { failures: Vec<String> },
}

impl PoolError {
    pub(crate) fn io(context: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| match is_full(&source) {
            true => Self::HostDiskFull { directory: path.to_path_buf() },
            false => Self::Io { context, path: path.to_path_buf(), source },
        }
    }

    pub fn code(&self) -> Code {
        match self {
            Self::HostDiskFull { .. } => Code::HostDiskFull,
            Self::Helper(HelperError::Missing { .. }) => Code::ToolMissing,
            Self::Io { .. } | Self::Unreadable { .. } | Self::Helper(_) | Self::Incomplete { .. } => Code::Internal,
        }
    }
}

/// Why something could not be done with a machine's disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("there is no image {image}; build or import it first")]
    ImageMissing { image: ImageName },
    #[error(
        "this host cannot limit disks: its pool is not btrfs with quotas; leave --disk out, or see `warren doctor`"
    )]
    LimitUnavailable,
    #[error("the image takes {image_mib} MiB, so a disk of {limit_gib} GiB cannot hold it; ask for more")]
    LimitTooSmall { limit_gib: u64, image_mib: u64 },
    #[error("the host's disk is full; free some room on the file system of the pool")]
    HostDiskFull,
    #[error("machine {machine} has no disk")]
    Absent { machine: MachineId },
    #[error("the disk of machine {machine} belongs to the uid range from {expected}, not from {asked}")]
    OtherRange { machine: MachineId, expected: u32, asked: u32 },
    #[error("the kernel cannot mount a machine's root: {what}; it needs idmapped mounts (Linux 5.15 or later)")]
    MountUnsupported {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{context} {}", path.display())]
    Io {
        context: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl DiskError {
    pub(crate) fn io(context: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| match is_full(&source) {
            true => Self::HostDiskFull,
            false => Self::Io { context, path: path.to_path_buf(), source },
        }
    }

    pub fn code(&self) -> Code {
        match self {
            Self::ImageMissing { .. } => Code::ImageNotFound,
            Self::LimitUnavailable => Code::LimitUnavailable,
            Self::LimitTooSmall { .. } => Code::LimitOutOfRange,
            Self::HostDiskFull => Code::HostDiskFull,
            Self::MountUnsupported { .. } => Code::KernelFeatureMissing,
            Self::Absent { .. } | Self::OtherRange { .. } | Self::Io { .. } => Code::Internal,
        }
    }
}
