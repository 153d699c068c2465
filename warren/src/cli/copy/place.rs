//! One file or directory, here or in a machine, and what can be done with it.

use std::fmt;
use std::path::PathBuf;

use bytes::Bytes;
use futures::stream::BoxStream;

use super::end::End;
use super::{local, remote};
use crate::cli::failure::Failure;
use crate::client::Client;

pub type Chunks = BoxStream<'static, std::io::Result<Bytes>>;

#[derive(Debug, Clone)]
pub enum Place {
    Stream,
    Local(PathBuf),
    Remote { client: Box<Client>, machine: String, path: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Link,
    /// A device, a socket or a pipe.
    Other,
}

/// Something in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// One step, never more.
    pub name: String,
    pub kind: Kind,
}

impl Place {
    pub fn new(end: End, client: &Client) -> Self {
        match end {
            End::Stream => Self::Stream,
            End::Local(path) => Self::Local(path),
            End::Remote { machine, path } => Self::Remote { client: Box::new(client.clone()), machine, path },
        }
    }

    pub fn join(&self, name: &str) -> Self {
        match self {
            Self::Stream => Self::Stream,
            Self::Local(path) => Self::Local(path.join(name)),
            Self::Remote { client, machine, path } => {
                let path = format!("{}/{name}", path.trim_end_matches('/'));
                Self::Remote { client: client.clone(), machine: machine.clone(), path }
            }
        }
    }

    /// What it is, links followed where they can be; `None` when it is not there.
    pub async fn kind(&self) -> Result<Option<Kind>, Failure> {
        match self {
            Self::Stream => Ok(Some(Kind::File)),
            Self::Local(path) => local::kind(path).await,
            Self::Remote { client, machine, path } => remote::kind(client, machine, path).await,
        }
    }

    pub async fn is_directory(&self) -> Result<bool, Failure> {
        match self {
            Self::Stream => Ok(false),
            place => Ok(place.kind().await? == Some(Kind::Directory)),
        }
    }

    /// In bytes, for a file that has a size.
    pub async fn size(&self) -> Result<Option<u64>, Failure> {
        match self {
            Self::Stream => Ok(None),
            Self::Local(path) => local::size(path).await,
            Self::Remote { client, machine, path } => remote::size(client, machine, path).await,
        }
    }

    /// Whether a link can be copied as the file that it leads to.
    pub async fn leads_to_file(&self) -> Result<bool, Failure> {
        match self {
            Self::Local(path) => Ok(matches!(local::kind(path).await, Ok(Some(Kind::File)))),
            Self::Remote { client, machine, path } => remote::opens(client, machine, path).await,
            Self::Stream => Ok(false),
        }
    }

    /// What is in the directory, sorted by name.
    pub async fn entries(&self) -> Result<Vec<Entry>, Failure> {
        let mut entries = match self {
            Self::Stream => Vec::new(),
            Self::Local(path) => local::entries(path).await?,
            Self::Remote { client, machine, path } => remote::entries(client, machine, path).await?,
        };
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// The content, and the permission bits where there are any.
    pub async fn read(&self) -> Result<(Option<u32>, Chunks), Failure> {
        match self {
            Self::Stream => Ok((None, local::stdin())),
            Self::Local(path) => local::read(path).await,
            Self::Remote { client, machine, path } => remote::read(client, machine, path).await,
        }
    }

    /// Writes a file, in place of one that is there.
    pub async fn write(&self, mode: Option<u32>, chunks: Chunks) -> Result<(), Failure> {
        match self {
            Self::Stream => local::stdout(chunks).await,
            Self::Local(path) => local::write(path, mode, chunks).await,
            Self::Remote { client, machine, path } => remote::write(client, machine, path, mode, chunks).await,
        }
    }

    /// Makes the directory; one that is there is as good.
    pub async fn make_directory(&self) -> Result<(), Failure> {
        match self {
            Self::Stream => Ok(()),
            Self::Local(path) => local::make_directory(path).await,
            Self::Remote { client, machine, path } => remote::make_directory(client, machine, path).await,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream => f.write_str("-"),
            Self::Local(path) => write!(f, "{}", path.display()),
            Self::Remote { machine, path, .. } => write!(f, "{machine}:{path}"),
        }
    }
}
