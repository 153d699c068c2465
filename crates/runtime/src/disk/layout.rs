//! Where things lie in a pool.
//!
//! ```text
//! {pool}/pool.json              how it is stored
//! {pool}/pool.lock              held while its shape changes
//! {pool}/pool.btrfs             the file system, where the host's own is not btrfs; mounted at {pool}/fs
//! {pool}/installations/{id}     who uses it
//! {pool}/locks/{image}          held while an image is built, replaced or (overlay) given to a disk
//! {pool}/fs                     and in it:
//!     images/{name}             image.json and the tree `root`
//!     disks/{id}/{machine}      a subvolume; or, with overlay, disk.json, upper and work
//!     work/{ulid}               half-made things, each with a lock {ulid}.lock while somebody is at it
//! ```

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use warren_model::{ImageName, InstallationId, MachineId};

use super::btrfs;
use crate::files::{self, FileLock};

/// How a pool is stored; never changes once it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Storage {
    /// In a file that holds a btrfs file system.
    Loop,
    /// Directly on the host's btrfs.
    Native,
    /// In directories of any other file system.
    Overlay,
}

/// The content of `pool.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PoolRecord {
    pub version: u32,
    pub storage: Storage,
}

impl PoolRecord {
    pub const VERSION: u32 = 1;
}

/// The content of an overlay disk's `disk.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DiskRecord {
    pub image: ImageName,
    pub uid_base: u32,
}

#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub directory: PathBuf,
    pub storage: Storage,
}

impl Layout {
    pub fn is_btrfs(&self) -> bool {
        self.storage != Storage::Overlay
    }

    pub fn record(directory: &Path) -> PathBuf {
        directory.join("pool.json")
    }

    pub fn lock_file(directory: &Path) -> PathBuf {
        directory.join("pool.lock")
    }

    pub fn loop_file(directory: &Path) -> PathBuf {
        directory.join("pool.btrfs")
    }

    pub fn data(directory: &Path) -> PathBuf {
        directory.join("fs")
    }

    pub fn installations(directory: &Path) -> PathBuf {
        directory.join("installations")
    }

    pub fn locks(directory: &Path) -> PathBuf {
        directory.join("locks")
    }

    pub fn images(&self) -> PathBuf {
        Self::data(&self.directory).join("images")
    }

    pub fn image(&self, name: &ImageName) -> PathBuf {
        self.images().join(name.as_str())
    }

    pub fn image_root(&self, name: &ImageName) -> PathBuf {
        self.image(name).join("root")
    }

    pub fn all_disks(&self) -> PathBuf {
        Self::data(&self.directory).join("disks")
    }

    pub fn disks(&self, installation: &InstallationId) -> PathBuf {
        self.all_disks().join(installation.as_str())
    }

    pub fn disk(&self, installation: &InstallationId, machine: MachineId) -> PathBuf {
        self.disks(installation).join(machine.bare())
    }

    pub fn work(&self) -> PathBuf {
        Self::data(&self.directory).join("work")
    }

    /// Excludes others, in this process and outside, from changing an image.
    pub fn lock_image(&self, name: &ImageName, exclusive: bool) -> io::Result<FileLock> {
        files::lock(&Self::locks(&self.directory).join(name.as_str()), exclusive)
    }

    /// Whether an overlay disk of any installation lies on an image.
    pub fn image_is_in_use(&self, name: &ImageName) -> io::Result<bool> {
        if self.is_btrfs() {
            return Ok(false);
        }
        for installation in std::fs::read_dir(self.all_disks())? {
            for disk in std::fs::read_dir(installation?.path())? {
                if read_disk_record(&disk?.path()).is_ok_and(|record| record.image == *name) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Makes the tree that an image or disk lives in: a subvolume, or a directory.
    pub fn make_tree(&self, path: &Path) -> io::Result<()> {
        if self.is_btrfs() { btrfs::create_subvolume(path) } else { files::make_directories(path, 0o755) }
    }
}

pub(crate) fn read_disk_record(disk: &Path) -> io::Result<DiskRecord> {
    serde_json::from_slice(&std::fs::read(disk.join("disk.json"))?).map_err(io::Error::other)
}

/// A place for something half-made. What is still in it when it is dropped, or after a crash at the next sweep, goes.
#[derive(Debug)]
pub(crate) struct Workspace {
    path: PathBuf,
    lock_path: PathBuf,
    /// Never taken before the workspace is dropped, but by tests of crashes.
    _lock: Option<FileLock>,
}

impl Workspace {
    /// Blocks the thread while the pool changes shape.
    pub fn new(layout: &Layout) -> io::Result<Self> {
        let _shape = files::lock(&Layout::lock_file(&layout.directory), true)?;
        let name = ulid::Ulid::generate().to_string().to_ascii_lowercase();
        let lock_path = layout.work().join(format!("{name}.lock"));
        let lock = files::lock(&lock_path, true)?;
        let path = layout.work().join(name);
        files::make_directories(&path, 0o700)?;
        Ok(Self { path, lock_path, _lock: Some(lock) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What a crash leaves: the directory, without anybody who holds its lock.
    #[cfg(test)]
    pub fn crash(self) -> PathBuf {
        let mut workspace = std::mem::ManuallyDrop::new(self);
        drop(workspace._lock.take());
        workspace.path.clone()
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if let Err(error) = files::absent_is_fine(remove_tree(&self.path)) {
            tracing::warn!(path = %self.path.display(), %error, "unfinished work could not be removed; the next start does");
            return;
        }
        let _ = std::fs::remove_file(&self.lock_path);
    }
}

/// Removes what crashes left in the work directory. The caller holds the pool's lock.
pub(crate) fn sweep(layout: &Layout) -> io::Result<()> {
    for entry in std::fs::read_dir(layout.work())? {
        let path = entry?.path();
        let (tree, lock_path) = match path.extension() {
            Some(_) => (path.with_extension(""), path.clone()),
            None => (path.clone(), path.with_extension("lock")),
        };
        let Some(_lock) = files::try_lock(&lock_path)? else { continue };
        files::absent_is_fine(remove_tree(&tree))?;
        files::absent_is_fine(std::fs::remove_file(&lock_path))?;
    }
    Ok(())
}

/// Removes a directory and everything in it, subvolumes too, which no `rmdir` would take. Those are looked for as deep
/// as a half-made image has them, not inside the trees of machines.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    if btrfs::is_btrfs(path)? {
        remove_subvolumes(path, 2)?;
        if !path.try_exists()? {
            return Ok(());
        }
    }
    std::fs::remove_dir_all(path)
}

fn remove_subvolumes(path: &Path, depth: u32) -> io::Result<()> {
    if btrfs::is_subvolume(path)? {
        return btrfs::delete_subvolume(path);
    }
    if depth > 0 {
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                remove_subvolumes(&entry.path(), depth - 1)?;
            }
        }
    }
    Ok(())
}
