//! In which namespace an installation has its uplinks and the host's rules.
//!
//! It is written down before the first of them is made, so that whoever removes them later finds them, also from
//! another namespace: the server may have been started with `ip netns exec`.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::stat::fstat;
use warren_model::InstallationId;

use crate::error::KernelError;
use crate::names;
use crate::namespace::{self, file};
use crate::record::write_file;

/// What tells namespaces apart: the device and inode of their file (namespaces(7)). An inode is used again when its
/// namespace is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    device: u64,
    inode: u64,
}

impl Place {
    pub(super) fn of(namespace: BorrowedFd<'_>) -> Result<Self, KernelError> {
        let status =
            fstat(namespace).map_err(|errno| file("look at", Path::new("the host's namespace"))(errno.into()))?;
        Ok(Self { device: status.st_dev, inode: status.st_ino })
    }

    /// `None` when nothing was made yet.
    pub(super) fn recorded(installation: &InstallationId) -> Result<Option<Self>, KernelError> {
        let path = path(installation);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(file("read", &path)(error)),
        }
    }

    pub(super) fn record(self, installation: &InstallationId) -> Result<(), KernelError> {
        write_file(&path(installation), &format!("{}:{}\n", self.device, self.inode))
    }

    /// Fine if absent. The directory goes with the last file in it.
    pub(super) fn forget(installation: &InstallationId) -> Result<(), KernelError> {
        crate::record::Record::remove(&path(installation))
    }

    /// The namespace, through whatever leads to it: its own process, a pin, any process.
    pub(super) fn open(self) -> Option<OwnedFd> {
        let pins =
            namespace::pinned().unwrap_or_default().into_iter().map(|name| Path::new(names::NAMESPACES).join(name));
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path().join("ns/net"));
        pins.chain(processes).find_map(|path| {
            let opened = OwnedFd::from(fs::File::open(path).ok()?);
            (Self::of(opened.as_fd()).ok()? == self).then_some(opened)
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let (device, inode) = text.trim().split_once(':')?;
        Some(Self { device: device.parse().ok()?, inode: inode.parse().ok()? })
    }
}

fn path(installation: &InstallationId) -> PathBuf {
    installation.run_directory().join("host")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_reads_back() {
        assert_eq!(Place::parse("4:4026531840\n"), Some(Place { device: 4, inode: 4_026_531_840 }));
        for broken in ["", "4", "4:", ":1", "4:x", "4:1:2"] {
            assert_eq!(Place::parse(broken), None, "{broken}");
        }
    }
}
