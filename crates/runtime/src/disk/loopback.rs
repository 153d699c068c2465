//! A sparse file that holds a btrfs file system, for hosts whose own is another one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MsFlags, mount};

use super::error::PoolError;
use crate::files;
use crate::helper::Helper;

/// What the file may grow to at least; a smaller btrfs is mostly metadata.
const SMALLEST: u64 = 2 << 30;
/// The part of the host's free space that the file may grow into, in percent.
const SHARE: u64 = 90;

const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
/// The device goes when nothing uses it any more.
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// The file's pages are cached once, by btrfs, and not again by the host's file system.
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `struct loop_info64`
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    real_device: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encryption: [u32; 2],
    flags: u32,
    file_name: [u8; 64],
    unused: [u8; 96],
    init: [u64; 2],
}

/// `struct loop_config`, Linux 5.8
#[repr(C)]
struct LoopConfig {
    file: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232);
const _: () = assert!(size_of::<LoopConfig>() == 304);

const EMPTY: LoopInfo = LoopInfo {
    device: 0,
    inode: 0,
    real_device: 0,
    offset: 0,
    size_limit: 0,
    number: 0,
    encryption: [0; 2],
    flags: 0,
    file_name: [0; 64],
    unused: [0; 96],
    init: [0; 2],
};

/// Makes the file, formatted. A crash leaves only a temporary name, which the next call replaces.
pub async fn create(file: &Path) -> Result<(), PoolError> {
    let temporary = file.with_extension("new");
    let directory = file.parent().unwrap_or(Path::new("/"));
    let (free, _) = files::free_and_total(directory).map_err(PoolError::io("cannot measure", directory))?;
    let size = free / 100 * SHARE;
    if size < SMALLEST {
        return Err(PoolError::HostDiskFull { directory: directory.to_path_buf() });
    }
    let sparse = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary);
    sparse.and_then(|sparse| sparse.set_len(size)).map_err(PoolError::io("cannot make", &temporary))?;
    Helper::new("mkfs.btrfs", Duration::from_secs(60))
        .args(["--quiet", "--force", "--nodiscard", "--metadata", "single", "--label", "warren"])
        .arg(&temporary)
        .run()
        .await?;
    std::fs::rename(&temporary, file).map_err(PoolError::io("cannot rename", &temporary))
}

/// Mounts the file at a directory, on the device that already holds it if there is one.
pub fn mount_file(file: &Path, target: &Path) -> Result<(), PoolError> {
    let (device, _held) = attach(file).map_err(PoolError::io("no loop device could be set up for", file))?;
    let flags = MsFlags::MS_NOATIME | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    // Freed blocks are punched out of the file, so that it shrinks again.
    let mounted = mount(Some(&device), target, Some("btrfs"), flags, Some("discard=async"));
    mounted.map_err(|errno| PoolError::io("cannot mount", file)(errno.into()))
}

/// The device for a file; it lasts for as long as the returned descriptor or a mount.
fn attach(file: &Path) -> io::Result<(PathBuf, File)> {
    let backing = OpenOptions::new().read(true).write(true).open(file)?;
    // A device that is being let go of may vanish between being found and being opened.
    for _ in 0..16 {
        if let Some(found) = find_attached(&backing)? {
            return Ok(found);
        }
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        // SAFETY: the request takes no argument and the descriptor is open.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = OpenOptions::new().read(true).write(true).open(&path)?;
        match configure(&device, &backing, LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => continue,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                configure(&device, &backing, LO_FLAGS_AUTOCLEAR)?;
            }
            other => other?,
        }
        return Ok((path, device));
    }
    Err(io::Error::from(io::ErrorKind::ResourceBusy))
}

fn configure(device: &File, backing: &File, flags: u32) -> io::Result<()> {
    let file = u32::try_from(backing.as_raw_fd()).map_err(io::Error::other)?;
    let config = LoopConfig { file, block_size: 4096, info: LoopInfo { flags, ..EMPTY }, reserved: [0; 8] };
    // SAFETY: both descriptors are open and the structure has the layout and size that the request expects.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &config) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The loop device that a file already backs, also when another server or mount namespace set it up.
fn find_attached(backing: &File) -> io::Result<Option<(PathBuf, File)>> {
    let wanted = backing.metadata()?;
    for entry in std::fs::read_dir("/sys/block")? {
        let entry = entry?;
        if !entry.path().join("loop").is_dir() {
            continue;
        }
        let path = Path::new("/dev").join(entry.file_name());
        let Ok(device) = OpenOptions::new().read(true).write(true).open(&path) else { continue };
        let mut info = EMPTY;
        // SAFETY: the descriptor is open and the structure has the layout and size that the request expects.
        let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &mut info) };
        if result == 0 && info.device == wanted.dev() && info.inode == wanted.ino() {
            return Ok(Some((path, device)));
        }
    }
    Ok(None)
}
