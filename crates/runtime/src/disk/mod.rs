//! Machine disks, and the pool that holds them and the images they are made from.
//!
//! A disk is a btrfs snapshot of its image: it is made in milliseconds, takes no room until it is written to, and can
//! be limited. The pool makes a btrfs file system in a sparse file where the host has none; where that is not possible
//! either, disks are overlay directories, which cannot be limited.
//!
//! | file | holds |
//! | --- | --- |
//! | [`pool`] | opening, sharing and closing a pool; disks |
//! | `layout` | where things lie, and what becomes of half-made ones |
//! | `roots` | mounting a disk for a machine's uid range |
//! | `btrfs`, `loopback`, `idmap` | the kernel's interfaces |

pub(crate) mod btrfs;
mod close;
mod error;
mod idmap;
pub(crate) mod layout;
mod loopback;
pub mod pool;
pub(crate) mod roots;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use error::{DiskError, PoolError};
pub use idmap::RANGE as UID_RANGE;
pub(crate) use idmap::user_namespace;
pub use pool::{Pool, PoolKind, PoolPreference};

/// Whether this kernel makes mounts with shifted owners, tried on a directory.
pub(crate) fn probe_shifted_mount(directory: &std::path::Path) -> std::io::Result<()> {
    let namespace = idmap::user_namespace(1 << 16)?;
    idmap::shifted_mount(directory, &namespace).map(drop)
}
