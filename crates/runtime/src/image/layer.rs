//! What a layer takes away from the layers below it (OCI image specification, layer.md, "Whiteouts").

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::extract::open_made;

/// How deep a tree may be that is taken away. Each level holds two descriptors.
const DEEPEST: usize = 128;

/// An entry that stands for something that is gone.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Whiteout<'a> {
    /// One name.
    Name(&'a OsStr),
    /// All that the layers below put in this directory.
    Content,
    /// AUFS's own, which says nothing.
    Bookkeeping,
    /// Of a name that is none.
    Malformed,
}

impl<'a> Whiteout<'a> {
    /// `None` for an entry that is what it is.
    pub fn parse(name: &'a OsStr) -> Option<Self> {
        let hidden = name.as_bytes().strip_prefix(b".wh.")?;
        Some(match hidden {
            b".wh..opq" => Self::Content,
            b"" | b"." | b".." => Self::Malformed,
            _ if hidden.starts_with(b".wh.") => Self::Bookkeeping,
            _ => Self::Name(OsStr::from_bytes(hidden)),
        })
    }
}

/// What one layer made, by inode number: a whiteout hides only what is below, wherever in the layer it stands.
#[derive(Debug, Default)]
pub(super) struct LayerFiles {
    inodes: HashSet<u64>,
}

impl LayerFiles {
    /// Notes that an entry of this layer is there now.
    pub fn made(&mut self, parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
        self.inodes.insert(look(parent, name)?.st_ino);
        Ok(())
    }

    /// Removes what is there, but for what this layer made and the directories that lead to it.
    pub fn hide(&self, parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
        self.hide_at(parent, name, 0)
    }

    /// Removes what is in a directory, with the same exception.
    pub fn hide_content(&self, directory: &OwnedFd) -> Result<(), Errno> {
        self.hide_content_at(directory, 0)
    }

    fn hide_at(&self, parent: &OwnedFd, name: &OsStr, depth: usize) -> Result<(), Errno> {
        let found = match look(parent, name) {
            Err(Errno::ENOENT) => return Ok(()),
            found => found?,
        };
        let own = self.inodes.contains(&found.st_ino);
        let kind = SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits());
        if kind != SFlag::S_IFDIR {
            return if own { Ok(()) } else { unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) };
        }
        self.hide_content_at(&open_made(parent, name, OFlag::O_DIRECTORY)?, depth + 1)?;
        if own {
            return Ok(());
        }
        match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
            // Something of this layer is in it.
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => Ok(()),
            removed => removed,
        }
    }

    fn hide_content_at(&self, directory: &OwnedFd, depth: usize) -> Result<(), Errno> {
        if depth > DEEPEST {
            return Err(Errno::ENAMETOOLONG);
        }
        let mut listing =
            Dir::openat(directory, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        for entry in listing.iter() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                self.hide_at(directory, OsStr::from_bytes(name), depth)?;
            }
        }
        Ok(())
    }
}

fn look(parent: &OwnedFd, name: &OsStr) -> Result<FileStat, Errno> {
    fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whiteouts_are_told_from_files() {
        for (name, whiteout) in [
            ("file", None),
            (".wh", None),
            ("x.wh.y", None),
            (".wh.file", Some(Whiteout::Name(OsStr::new("file")))),
            (".wh..hidden", Some(Whiteout::Name(OsStr::new(".hidden")))),
            (".wh...", Some(Whiteout::Malformed)),
            (".wh..", Some(Whiteout::Malformed)),
            (".wh.", Some(Whiteout::Malformed)),
            (".wh..wh..opq", Some(Whiteout::Content)),
            (".wh..wh.plnk", Some(Whiteout::Bookkeeping)),
        ] {
            assert_eq!(Whiteout::parse(OsStr::new(name)), whiteout, "{name}");
        }
    }
}
