//! Pools for tests: on the real kernel, in a temporary directory, gone afterwards.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;
use ulid::Ulid;
use warren_model::access::{AccessError, ImageInfo, Images};
use warren_model::{ImageName, InstallationId, MachineId};

use super::layout::Layout;
use super::{Pool, PoolPreference, roots};
use crate::image::ImageStore;

pub const UID_BASE: u32 = 7 << 16;

/// A pool that is unmounted and removed, with what its installations mounted, when this is dropped.
pub struct TestPool {
    pub directory: tempfile::TempDir,
    installations: std::sync::Mutex<Vec<InstallationId>>,
}

impl TestPool {
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("warren-pool-").tempdir().unwrap();
        Self { directory, installations: std::sync::Mutex::default() }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("pool")
    }

    /// An id that nothing else on the host has.
    pub fn installation(&self) -> InstallationId {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let bits = std::process::id().wrapping_mul(40_503).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let installation = InstallationId::from_random(bits);
        self.installations.lock().unwrap().push(installation.clone());
        installation
    }

    pub async fn open(&self, preference: PoolPreference) -> (Arc<Pool>, InstallationId) {
        let installation = self.installation();
        (Pool::open_with(&self.path(), &installation, preference).await.unwrap(), installation)
    }
}

impl Drop for TestPool {
    fn drop(&mut self) {
        for installation in self.installations.lock().unwrap().iter() {
            let _ = roots::unmount_all(installation);
            let _ = std::fs::remove_dir_all(installation.run_directory());
        }
        let _ = roots::unmount_all_at(&Layout::data(&self.path()));
    }
}

pub fn machine() -> MachineId {
    MachineId::from_ulid(Ulid::generate())
}

/// What an entry of a test archive is.
pub enum Entry<'a> {
    Directory,
    File(&'a [u8]),
    Symlink(&'a str),
    Hardlink(&'a str),
    Device,
}

/// A tar archive, written without any of the care that the reader has to take.
pub fn archive(entries: &[(&str, Entry<'_>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (path, entry) in entries {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        let (kind, link, content): (_, &str, &[u8]) = match entry {
            Entry::Directory => (tar::EntryType::Directory, "", b""),
            Entry::File(content) => (tar::EntryType::Regular, "", content),
            Entry::Symlink(target) => (tar::EntryType::Symlink, target, b""),
            Entry::Hardlink(target) => (tar::EntryType::Link, target, b""),
            Entry::Device => (tar::EntryType::Char, "", b""),
        };
        header.set_entry_type(kind);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_size(content.len() as u64);
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.extend_from_slice(&[0; 1024]);
    bytes
}

/// The smallest thing that is taken for a root file system.
pub fn small_archive() -> Vec<u8> {
    archive(&[
        ("bin/", Entry::Directory),
        ("bin/tool", Entry::File(b"#!/bin/nothing\n")),
        ("etc/", Entry::Directory),
        ("etc/issue", Entry::File(b"a test\n")),
    ])
}

pub async fn import(store: &ImageStore, name: &str, archive: Vec<u8>) -> Result<ImageInfo, AccessError> {
    let (sender, _receiver) = mpsc::channel(1);
    let pieces: Vec<_> = archive.chunks(10_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    store.import(&name.parse().unwrap(), futures::stream::iter(pieces).boxed(), sender).await
}

/// A pool with the image `small` in it.
pub async fn pool_with_image(test: &TestPool, preference: PoolPreference) -> (Arc<Pool>, InstallationId, ImageName) {
    let (pool, installation) = test.open(preference).await;
    let store = ImageStore::open(pool.clone()).unwrap();
    import(&store, "small", small_archive()).await.unwrap();
    (pool, installation, "small".parse().unwrap())
}

/// What lies in the pool's work directory.
pub fn unfinished(directory: &Path) -> Vec<PathBuf> {
    let work = Layout::data(directory).join("work");
    std::fs::read_dir(work).unwrap().map(|entry| entry.unwrap().path()).collect()
}
