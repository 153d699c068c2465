//! Opening, sharing and closing a pool, and the disks in it.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use warren_model::{ImageName, InstallationId, MachineId};

use super::btrfs::{self, Quota};
use super::error::{DiskError, PoolError};
use super::layout::{DiskRecord, Layout, PoolRecord, Storage, Workspace, remove_tree, sweep};
use super::{loopback, roots};
use crate::files::{self, blocking};

/// What the host's own file system must still have free before anything is added to the pool. A btrfs in a file that
/// cannot grow fails writes that it has already accepted.
const HOST_RESERVE: u64 = 256 << 20;

/// How a pool keeps its disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolKind {
    Btrfs { limits: bool },
    Overlay,
}

/// What a new pool is to be; an existing one stays what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PoolPreference {
    /// btrfs where that is possible, else overlay.
    #[default]
    Best,
    Overlay,
}

/// The images and machine disks of a host. Several servers may share one, each with an installation id of its own.
#[derive(Debug)]
pub struct Pool {
    layout: Layout,
    installation: InstallationId,
    quota: Quota,
    limits: bool,
    /// Two mounts of one root would lie on each other.
    mounting: Mutex<()>,
}

impl Pool {
    /// Whether a pool was made in this directory.
    pub fn is_in(directory: &Path) -> io::Result<bool> {
        Layout::record(directory).try_exists()
    }

    /// Opens a pool, making it if it is not there, and registers the installation in it.
    pub async fn open(directory: &Path, installation: &InstallationId) -> Result<Arc<Pool>, PoolError> {
        Self::open_with(directory, installation, PoolPreference::Best).await
    }

    /// The same, with a say in what a new pool is.
    pub async fn open_with(
        directory: &Path,
        installation: &InstallationId,
        preference: PoolPreference,
    ) -> Result<Arc<Pool>, PoolError> {
        Self::open_any(directory, installation, preference, true).await
    }

    /// Opens a pool for work on images only, as `warren image build` does without a server.
    pub async fn open_for_images(directory: &Path) -> Result<Arc<Pool>, PoolError> {
        Self::open_any(directory, &InstallationId::from_random(0), PoolPreference::Best, false).await
    }

    async fn open_any(
        directory: &Path,
        installation: &InstallationId,
        preference: PoolPreference,
        register: bool,
    ) -> Result<Arc<Pool>, PoolError> {
        let made = files::make_directories(directory, 0o700);
        made.map_err(PoolError::io("cannot make", directory))?;
        // Mounts and loop devices are found by absolute path, whatever the working directory is later.
        let directory = std::fs::canonicalize(directory).map_err(PoolError::io("cannot find", directory))?;
        let lock_path = Layout::lock_file(&directory);
        let path = lock_path.clone();
        let locked = blocking(move || files::lock(&path, true)).await;
        let _shape = locked.map_err(PoolError::io("cannot lock", &lock_path))?;
        let layout = Layout { storage: prepare_storage(&directory, preference).await?, directory };
        let installation = installation.clone();
        blocking(move || Self::open_prepared(layout, installation, register)).await
    }

    fn open_prepared(layout: Layout, installation: InstallationId, register: bool) -> Result<Arc<Pool>, PoolError> {
        let directory = layout.directory.clone();
        let failed = |context| PoolError::io(context, &directory);
        let fixed = [Layout::installations(&directory), Layout::locks(&directory)];
        let data = [layout.images(), layout.all_disks(), layout.work()];
        for path in fixed.iter().chain(&data) {
            files::make_directories(path, 0o700).map_err(failed("cannot make the directories of the pool in"))?;
        }
        if register {
            files::write_atomically(&Layout::installations(&directory).join(installation.as_str()), b"")
                .map_err(failed("cannot register in the pool in"))?;
            files::make_directories(&layout.disks(&installation), 0o700).map_err(failed("cannot make disks in"))?;
        }
        sweep(&layout).map_err(failed("cannot sweep the pool in"))?;
        let data = Layout::data(&directory);
        let (mut quota, mut limits) = (Quota::Off, false);
        if layout.is_btrfs() {
            quota = btrfs::quota(&data).map_err(failed("cannot read quotas of"))?;
            // Only on a file system of the pool's own: it cannot be undone, and old kernels then refuse to mount it.
            if layout.storage == Storage::Loop
                && quota == Quota::Off
                && let Err(error) = btrfs::enable_quota(&data)
            {
                tracing::warn!(pool = %directory.display(), %error, "disks cannot be limited: no btrfs quotas");
            }
            quota = btrfs::quota(&data).map_err(failed("cannot read quotas of"))?;
            limits =
                quota != Quota::Off && btrfs::probe_limit(&layout.work()).map_err(failed("cannot try a limit in"))?;
        }
        Ok(Arc::new(Self { layout, installation, quota, limits, mounting: Mutex::new(()) }))
    }

    pub fn kind(&self) -> PoolKind {
        if self.layout.is_btrfs() { PoolKind::Btrfs { limits: self.limits } } else { PoolKind::Overlay }
    }

    /// The size of the file system that holds the disks, in bytes.
    pub fn size(&self) -> io::Result<u64> {
        files::free_and_total(&Layout::data(&self.layout.directory)).map(|(_, total)| total)
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Whether there is room to add something, on the host's file system and in the pool.
    pub(crate) fn has_room(&self) -> io::Result<bool> {
        let (free, _) = files::free_and_total(&Layout::data(&self.layout.directory))?;
        if self.layout.storage != Storage::Loop {
            return Ok(free > 0);
        }
        let (host_free, _) = files::free_and_total(&self.layout.directory)?;
        Ok(free > 0 && host_free >= HOST_RESERVE)
    }

    /// Makes a machine's disk from an image. Does nothing but set the limit when it is there.
    ///
    /// `limit_gib` counts the image's own files too. Nothing is made when the limit cannot be given.
    pub async fn create_disk(
        self: &Arc<Self>,
        machine: MachineId,
        image: &ImageName,
        uid_base: u32,
        limit_gib: Option<u64>,
    ) -> Result<(), DiskError> {
        let (pool, image) = (self.clone(), image.clone());
        blocking(move || pool.create_disk_now(machine, image, uid_base, limit_gib)).await
    }

    fn create_disk_now(
        &self,
        machine: MachineId,
        image: ImageName,
        uid_base: u32,
        limit_gib: Option<u64>,
    ) -> Result<(), DiskError> {
        if limit_gib.is_some() && !self.limits {
            return Err(DiskError::LimitUnavailable);
        }
        let disk = self.layout.disk(&self.installation, machine);
        let failed = |context| DiskError::io(context, &disk);
        let exists = disk.try_exists().map_err(failed("cannot look at"))?;
        if !exists && !self.has_room().map_err(failed("cannot measure"))? {
            return Err(DiskError::HostDiskFull);
        }
        if !self.layout.is_btrfs() {
            return if exists { Ok(()) } else { self.create_overlay(&disk, image, uid_base) };
        }
        let limit = limit_gib.map(|gib| self.limit_in_bytes(&image, gib)).transpose()?;
        if !exists {
            match btrfs::snapshot(&self.layout.image_root(&image), &disk) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(DiskError::ImageMissing { image });
                }
                // Another call for the same machine was faster.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other.map_err(failed("cannot make the snapshot"))?,
            }
        }
        if self.limits
            && let Err(error) = btrfs::set_limit(&disk, limit)
        {
            if !exists {
                let _ = btrfs::delete_subvolume(&disk);
            }
            return Err(DiskError::io("cannot limit", &disk)(error));
        }
        Ok(())
    }

    /// Simple quotas count only what the machine itself wrote, so the image's share is taken off beforehand.
    fn limit_in_bytes(&self, image: &ImageName, gib: u64) -> Result<u64, DiskError> {
        let asked = gib.saturating_mul(1 << 30);
        let image_size = match crate::image::read_record(&self.layout, image) {
            Ok(Some(info)) => info.size,
            Ok(None) => return Err(DiskError::ImageMissing { image: image.clone() }),
            Err(error) => return Err(DiskError::io("cannot read the record of", &self.layout.image(image))(error)),
        };
        let own = asked.saturating_sub(image_size);
        if own < 16 << 20 {
            return Err(DiskError::LimitTooSmall { limit_gib: gib, image_mib: image_size >> 20 });
        }
        Ok(if self.quota == Quota::Simple { own } else { asked })
    }

    fn create_overlay(&self, disk: &Path, image: ImageName, uid_base: u32) -> Result<(), DiskError> {
        let failed = |context| DiskError::io(context, disk);
        let _image = self.layout.lock_image(&image, false).map_err(failed("cannot lock the image for"))?;
        let root = match std::fs::metadata(self.layout.image_root(&image)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(DiskError::ImageMissing { image }),
            other => other.map_err(failed("cannot look at the image for"))?,
        };
        let workspace = Workspace::new(&self.layout).map_err(failed("cannot start"))?;
        let make = || {
            let draft = workspace.path().join("disk");
            let upper = draft.join("upper");
            files::make_directories(&upper, 0o700)?;
            files::make_directories(&draft.join("work"), 0o700)?;
            std::os::unix::fs::chown(&upper, Some(uid_base + root.uid()), Some(uid_base + root.gid()))?;
            std::fs::set_permissions(&upper, std::fs::Permissions::from_mode(root.mode() & 0o7777))?;
            let record = serde_json::to_vec(&DiskRecord { image, uid_base }).map_err(io::Error::other)?;
            files::write_atomically(&draft.join("disk.json"), &record)?;
            match std::fs::rename(&draft, disk) {
                // Another call for the same machine was faster.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
                other => other,
            }
        };
        make().map_err(failed("cannot make"))
    }

    /// Mounts a machine's disk with its owners shifted to the range from `uid_base`. Does nothing when it is mounted.
    pub async fn mount_root(self: &Arc<Self>, machine: MachineId, uid_base: u32) -> Result<PathBuf, DiskError> {
        let pool = self.clone();
        blocking(move || {
            let _alone = pool.mounting.lock().unwrap_or_else(PoisonError::into_inner);
            roots::mount_root(&pool.layout, &pool.installation, machine, uid_base)
        })
        .await
    }

    /// Unmounts a machine's root; fine when it is not mounted.
    pub async fn unmount_root(self: &Arc<Self>, machine: MachineId) -> Result<(), DiskError> {
        let pool = self.clone();
        blocking(move || pool.unmount_now(machine)).await
    }

    fn unmount_now(&self, machine: MachineId) -> Result<(), DiskError> {
        let _alone = self.mounting.lock().unwrap_or_else(PoisonError::into_inner);
        roots::unmount_root(&self.installation, machine)
            .map_err(DiskError::io("cannot unmount", &roots::root(&self.installation, machine)))
    }

    /// Removes a machine's disk, unmounting it if it is mounted; fine when there is none.
    pub async fn remove_disk(self: &Arc<Self>, machine: MachineId) -> Result<(), DiskError> {
        let pool = self.clone();
        blocking(move || {
            pool.unmount_now(machine)?;
            let disk = pool.layout.disk(&pool.installation, machine);
            remove_disk_at(&pool.layout, &disk).map_err(DiskError::io("cannot remove", &disk))
        })
        .await
    }

    /// The machines of this installation that have a disk.
    pub async fn disks(self: &Arc<Self>) -> Result<BTreeSet<MachineId>, DiskError> {
        let pool = self.clone();
        blocking(move || {
            let directory = pool.layout.disks(&pool.installation);
            let found = roots::machines_in(&directory).map_err(DiskError::io("cannot list", &directory))?;
            Ok(found.into_iter().map(|(machine, _)| machine).collect())
        })
        .await
    }

    /// The machines of this installation whose root is mounted.
    pub async fn mounted(self: &Arc<Self>) -> Result<BTreeSet<MachineId>, DiskError> {
        let pool = self.clone();
        blocking(move || {
            roots::mounted(&pool.installation)
                .map_err(DiskError::io("cannot list the roots in", &pool.installation.run_directory()))
        })
        .await
    }

    /// Removes this installation's disks and its registration. With `remove_pool`, and when no other installation is
    /// registered, the images and the pool itself go too. Goes on after a failure and reports all.
    pub async fn close_installation(self: &Arc<Self>, remove_pool: bool) -> Result<(), PoolError> {
        let pool = self.clone();
        blocking(move || {
            let failures = super::close::close_installation(&pool.layout, &pool.installation, remove_pool);
            if failures.is_empty() { Ok(()) } else { Err(PoolError::Incomplete { failures }) }
        })
        .await
    }

    /// Unmounts a pool that no installation is registered in; for work on images without a server.
    pub async fn release(self: &Arc<Self>) -> Result<(), PoolError> {
        let pool = self.clone();
        blocking(move || super::close::release(&pool.layout)).await
    }
}

/// Removes a disk so that a crash half way leaves either all of it or something that the next sweep takes.
pub(super) fn remove_disk_at(layout: &Layout, disk: &Path) -> io::Result<()> {
    if layout.is_btrfs() {
        return files::absent_is_fine(btrfs::delete_subvolume(disk));
    }
    if !disk.try_exists()? {
        return Ok(());
    }
    let workspace = Workspace::new(layout)?;
    files::absent_is_fine(std::fs::rename(disk, workspace.path().join("disk")))?;
    remove_tree(workspace.path())
}

/// Makes the pool's file system ready: the one it has, or the best that the host can give.
async fn prepare_storage(directory: &Path, preference: PoolPreference) -> Result<Storage, PoolError> {
    let path = Layout::record(directory);
    match std::fs::read(&path) {
        Ok(content) => {
            let unreadable = |reason: String| PoolError::Unreadable { path: path.clone(), reason };
            let record: PoolRecord = serde_json::from_slice(&content).map_err(|error| unreadable(error.to_string()))?;
            if record.version != PoolRecord::VERSION {
                return Err(unreadable(format!("its version is {}", record.version)));
            }
            if record.storage == Storage::Loop {
                mount_loop(directory).await?;
            }
            return Ok(record.storage);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(PoolError::io("cannot read", &path)(error)),
    }
    let storage = choose_storage(directory, preference).await?;
    let record = serde_json::to_vec(&PoolRecord { version: PoolRecord::VERSION, storage })
        .map_err(|error| PoolError::io("cannot write", &path)(error.into()))?;
    files::write_atomically(&path, &record).map_err(PoolError::io("cannot write", &path))?;
    Ok(storage)
}

async fn choose_storage(directory: &Path, preference: PoolPreference) -> Result<Storage, PoolError> {
    if preference == PoolPreference::Overlay {
        return Ok(Storage::Overlay);
    }
    if btrfs::is_btrfs(directory).map_err(PoolError::io("cannot look at", directory))? {
        return Ok(Storage::Native);
    }
    match mount_loop(directory).await {
        Ok(()) => Ok(Storage::Loop),
        Err(error @ PoolError::HostDiskFull { .. }) => Err(error),
        Err(error) => {
            let reason = warren_model::problem::chain(&error);
            tracing::warn!(pool = %directory.display(), reason, "no btrfs can be had: disks are overlays without limits");
            for leftover in [Layout::loop_file(directory), Layout::loop_file(directory).with_extension("new")] {
                files::absent_is_fine(std::fs::remove_file(&leftover))
                    .map_err(PoolError::io("cannot remove", &leftover))?;
            }
            Ok(Storage::Overlay)
        }
    }
}

async fn mount_loop(directory: &Path) -> Result<(), PoolError> {
    let (file, target) = (Layout::loop_file(directory), Layout::data(directory));
    if files::is_mount_point(&target).map_err(PoolError::io("cannot look at", &target))? {
        return Ok(());
    }
    if !file.try_exists().map_err(PoolError::io("cannot look at", &file))? {
        loopback::create(&file).await?;
    }
    files::make_directories(&target, 0o700).map_err(PoolError::io("cannot make", &target))?;
    blocking(move || loopback::mount_file(&file, &target)).await
}
