//! btrfs through its own ioctls (`linux/btrfs.h`): a snapshot must not cost the start of a program.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The inode number of every subvolume's root directory (`BTRFS_FIRST_FREE_OBJECTID`).
const SUBVOLUME_ROOT_INODE: u64 = 256;
/// The longest name in `VolumeArguments` (`BTRFS_PATH_NAME_MAX`), with the terminating zero.
const NAME_SPACE: usize = 4088;
/// `BTRFS_SUBVOL_RDONLY`
const READ_ONLY: u64 = 1 << 1;
/// `BTRFS_QGROUP_LIMIT_MAX_RFER`
const LIMIT_REFERENCED: u64 = 1;
/// The value that lifts a limit (`fs/btrfs/qgroup.c`: `CLEAR_VALUE`).
const NO_LIMIT: u64 = u64::MAX;
/// `BTRFS_QUOTA_CTL_ENABLE`
const QUOTA_FULL: u64 = 1;
/// `BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA`, Linux 6.7.
const QUOTA_SIMPLE: u64 = 4;

/// `struct btrfs_ioctl_vol_args`
#[repr(C)]
pub struct VolumeArguments {
    fd: i64,
    name: [u8; NAME_SPACE],
}

/// `struct btrfs_ioctl_vol_args_v2`, without the parts that are not used.
#[repr(C)]
pub struct SnapshotArguments {
    fd: i64,
    transaction: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; 4040],
}

/// `struct btrfs_ioctl_qgroup_limit_args`
#[repr(C)]
pub struct LimitArguments {
    group: u64,
    flags: u64,
    max_referenced: u64,
    max_exclusive: u64,
    reserved_referenced: u64,
    reserved_exclusive: u64,
}

/// `struct btrfs_ioctl_quota_ctl_args`
#[repr(C)]
pub struct QuotaArguments {
    command: u64,
    status: u64,
}

/// `struct btrfs_ioctl_fs_info_args`
#[repr(C)]
pub struct FilesystemInfo {
    max_id: u64,
    devices: u64,
    id: [u8; 16],
    rest: [u8; 992],
}

const _: () = assert!(size_of::<VolumeArguments>() == 4096);
const _: () = assert!(size_of::<SnapshotArguments>() == 4096);
const _: () = assert!(size_of::<LimitArguments>() == 48);
const _: () = assert!(size_of::<FilesystemInfo>() == 1024);

mod request {
    use super::{FilesystemInfo, LimitArguments, QuotaArguments, SnapshotArguments, VolumeArguments};

    nix::ioctl_write_ptr!(subvolume_create, 0x94, 14, VolumeArguments);
    nix::ioctl_write_ptr!(subvolume_destroy, 0x94, 15, VolumeArguments);
    nix::ioctl_write_ptr!(snapshot_create, 0x94, 23, SnapshotArguments);
    nix::ioctl_write_ptr!(subvolume_set_flags, 0x94, 26, u64);
    nix::ioctl_read!(filesystem_info, 0x94, 31, FilesystemInfo);
    nix::ioctl_readwrite!(quota_control, 0x94, 40, QuotaArguments);
    nix::ioctl_read!(group_limit, 0x94, 43, LimitArguments);
}

/// How a file system counts what its subvolumes hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quota {
    Off,
    /// Every extent counts for the subvolume that wrote it; a snapshot starts at zero.
    Simple,
    /// Every extent counts for all subvolumes that refer to it; a snapshot starts at its source's size.
    Full,
}

/// Whether a path lies on btrfs.
pub fn is_btrfs(path: &Path) -> io::Result<bool> {
    Ok(nix::sys::statfs::statfs(path)?.filesystem_type() == nix::sys::statfs::BTRFS_SUPER_MAGIC)
}

/// Whether a path is the root of a subvolume, given that it lies on btrfs.
pub fn is_subvolume(path: &Path) -> io::Result<bool> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok(metadata.is_dir() && metadata.ino() == SUBVOLUME_ROOT_INODE)
}

/// Makes an empty subvolume, which belongs to root and has mode 0755.
pub fn create_subvolume(path: &Path) -> io::Result<()> {
    let (parent, name) = open_parent(path)?;
    let arguments = VolumeArguments { fd: 0, name: terminated(name)? };
    // SAFETY: the descriptor is open and the structure has the layout and size that the request expects.
    unsafe { request::subvolume_create(parent.as_raw_fd(), &arguments) }?;
    Ok(())
}

/// Makes a snapshot that can be written to. It is on disk when this returns.
pub fn snapshot(source: &Path, path: &Path) -> io::Result<()> {
    let source = File::open(source)?;
    let (parent, name) = open_parent(path)?;
    let arguments = SnapshotArguments {
        fd: i64::from(source.as_raw_fd()),
        transaction: 0,
        flags: 0,
        unused: [0; 4],
        name: terminated(name)?,
    };
    // SAFETY: both descriptors are open and the structure has the layout and size that the request expects.
    unsafe { request::snapshot_create(parent.as_raw_fd(), &arguments) }?;
    Ok(())
}

/// Makes a subvolume read-only.
pub fn set_read_only(path: &Path) -> io::Result<()> {
    let subvolume = File::open(path)?;
    // SAFETY: the descriptor is open; the request reads one u64.
    unsafe { request::subvolume_set_flags(subvolume.as_raw_fd(), &READ_ONLY) }?;
    Ok(())
}

/// Deletes a subvolume and every subvolume in it. The space comes back in the background.
pub fn delete_subvolume(path: &Path) -> io::Result<()> {
    match destroy(path) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            delete_nested(path)?;
            destroy(path)
        }
        other => other,
    }
}

fn destroy(path: &Path) -> io::Result<()> {
    let (parent, name) = open_parent(path)?;
    let arguments = VolumeArguments { fd: 0, name: terminated(name)? };
    // SAFETY: the descriptor is open and the structure has the layout and size that the request expects.
    unsafe { request::subvolume_destroy(parent.as_raw_fd(), &arguments) }?;
    Ok(())
}

/// Deletes the subvolumes below a directory. The tree is a machine's own, so links are never followed.
fn delete_nested(path: &Path) -> io::Result<()> {
    let mut pending = vec![path.to_path_buf()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                continue;
            }
            if is_subvolume(&entry.path())? {
                delete_subvolume(&entry.path())?;
            } else {
                pending.push(entry.path());
            }
        }
    }
    Ok(())
}

/// Switches accounting on: simple where the kernel has it, else full.
pub fn enable_quota(root: &Path) -> io::Result<()> {
    let root = File::open(root)?;
    let enable = |command| {
        let mut arguments = QuotaArguments { command, status: 0 };
        // SAFETY: the descriptor is open and the structure has the layout and size that the request expects.
        unsafe { request::quota_control(root.as_raw_fd(), &mut arguments) }
    };
    match enable(QUOTA_SIMPLE) {
        Ok(_) => Ok(()),
        Err(nix::errno::Errno::EINVAL | nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::ENOTTY) => {
            enable(QUOTA_FULL)?;
            Ok(())
        }
        Err(errno) => Err(errno.into()),
    }
}

/// How the file system that `root` lies on counts, from sysfs.
pub fn quota(root: &Path) -> io::Result<Quota> {
    let file = File::open(root)?;
    let mut info = FilesystemInfo { max_id: 0, devices: 0, id: [0; 16], rest: [0; 992] };
    // SAFETY: the descriptor is open and the structure has the layout and size that the request expects.
    unsafe { request::filesystem_info(file.as_raw_fd(), &mut info) }?;
    let hex: String = info.id.iter().map(|byte| format!("{byte:02x}")).collect();
    let id = format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    let groups = Path::new("/sys/fs/btrfs").join(id).join("qgroups");
    if !groups.is_dir() {
        return Ok(Quota::Off);
    }
    match std::fs::read_to_string(groups.join("mode")) {
        Ok(mode) if mode.trim() == "squota" => Ok(Quota::Simple),
        _ => Ok(Quota::Full),
    }
}

/// Limits what a subvolume may hold, in bytes; `None` lifts the limit.
pub fn set_limit(path: &Path, bytes: Option<u64>) -> io::Result<()> {
    let subvolume = File::open(path)?;
    let mut arguments = LimitArguments {
        // Zero stands for the subvolume that the descriptor is in.
        group: 0,
        flags: LIMIT_REFERENCED,
        max_referenced: bytes.unwrap_or(NO_LIMIT),
        max_exclusive: 0,
        reserved_referenced: 0,
        reserved_exclusive: 0,
    };
    // SAFETY: the descriptor is open and the structure has the layout and size that the request expects.
    unsafe { request::group_limit(subvolume.as_raw_fd(), &mut arguments) }?;
    Ok(())
}

/// Whether a limit is really kept: writes past one in a subvolume that is made for it in `directory`.
pub fn probe_limit(directory: &Path) -> io::Result<bool> {
    let path = directory.join(format!("probe-{}", ulid::Ulid::generate()));
    create_subvolume(&path)?;
    let held =
        set_limit(&path, Some(1 << 20)).and_then(|()| match std::fs::write(path.join("too-much"), vec![0; 4 << 20]) {
            Err(error) if error.kind() == io::ErrorKind::QuotaExceeded => Ok(true),
            other => other.map(|()| false),
        });
    delete_subvolume(&path)?;
    match held {
        // What the kernel answers where accounting is off.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::EINVAL | libc::ENOENT)) => Ok(false),
        other => other,
    }
}

fn open_parent(path: &Path) -> io::Result<(File, &OsStr)> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    Ok((File::open(path.parent().ok_or_else(invalid)?)?, path.file_name().ok_or_else(invalid)?))
}

fn terminated<const SPACE: usize>(name: &OsStr) -> io::Result<[u8; SPACE]> {
    let mut space = [0; SPACE];
    let bytes = name.as_bytes();
    if bytes.len() >= SPACE {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    space[..bytes.len()].copy_from_slice(bytes);
    Ok(space)
}
