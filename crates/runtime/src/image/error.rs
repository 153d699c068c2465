use std::io;
use std::path::{Path, PathBuf};

use warren_model::access::AccessError;
use warren_model::problem::chain;
use warren_model::{Code, ImageName};

use super::pull::PullError;
use crate::files::is_full;
use crate::helper::HelperError;

/// Why something could not be done with an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("there is no image {name}; see `warren image ls`")]
    NotFound { name: ImageName },
    #[error("Warren has no recipe for {name}; pull it with `warren image pull`, import it, or build one of: {known}")]
    NoRecipe { name: ImageName, known: String },
    #[error("machines have disks on the image {name}; delete them first")]
    InUse { name: ImageName },
    #[error("the archive is not a usable root file system: {reason}")]
    Invalid { reason: String },
    #[error("the image {name} could not be built")]
    Build {
        name: ImageName,
        #[source]
        source: HelperError,
    },
    #[error("{reference} was not pulled")]
    Pull {
        reference: String,
        #[source]
        source: PullError,
    },
    #[error("the host's disk is full; free some room on the file system of the pool")]
    HostDiskFull,
    #[error("the recipe of {name} cannot be read")]
    Recipe {
        name: ImageName,
        #[source]
        source: toml::de::Error,
    },
    #[error("{context} {}", path.display())]
    Io {
        context: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the build of {name} ended without a result")]
    Interrupted { name: ImageName },
}

impl ImageError {
    pub(crate) fn io(context: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| match is_full(&source) {
            true => Self::HostDiskFull,
            false => Self::Io { context, path: path.to_path_buf(), source },
        }
    }

    pub(crate) fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid { reason: reason.into() }
    }

    pub fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } | Self::NoRecipe { .. } => Code::ImageNotFound,
            Self::InUse { .. } => Code::ImageInUse,
            Self::Invalid { .. } => Code::ImageInvalid,
            Self::Build { source: HelperError::Missing { .. }, .. } => Code::ToolMissing,
            Self::Build { .. } | Self::Interrupted { .. } => Code::ImageBuildFailed,
            Self::Pull { source, .. } => source.code(),
            Self::HostDiskFull => Code::HostDiskFull,
            Self::Recipe { .. } | Self::Io { .. } => Code::Internal,
        }
    }
}

impl From<&ImageError> for AccessError {
    fn from(error: &ImageError) -> Self {
        let detail = match error {
            // What a build's program wrote is for a person, who reads it line by line.
            ImageError::Build { source: HelperError::Failed { program, status, stderr }, .. } if !stderr.is_empty() => {
                format!("{error}: `{program}` said\n{stderr}\nand failed ({status})")
            }
            _ => chain(error),
        };
        AccessError::new(error.code(), detail)
    }
}

impl From<ImageError> for AccessError {
    fn from(error: ImageError) -> Self {
        Self::from(&error)
    }
}
