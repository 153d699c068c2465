//! Removing, without ever following a symbolic link.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use warren_guest::protocol::{Empty, PathRequest, Refusal, shown};
use warren_model::Code;

use super::{absolute, done, refusal};

/// Directories inside each other that are removed. Each one costs an open descriptor.
const DEEPEST: usize = 256;

/// Removes what is at a path; with `deep`, a directory with everything below it. Blocking.
pub fn remove(request: &PathRequest) -> Result<Empty, Refusal> {
    let path = absolute(&request.path)?;
    if path.components().count() < 2 || path.file_name().is_none() {
        return Err(Refusal::new(Code::PathInvalid, format!("{} cannot be removed", shown(&request.path))));
    }
    let failed = |errno: Errno| refusal(&request.path, &errno.into());
    let meta = fs::symlink_metadata(&path).map_err(|error| refusal(&request.path, &error))?;
    if !meta.is_dir() {
        fs::remove_file(&path).map_err(|error| refusal(&request.path, &error))?;
    } else if request.deep {
        remove_tree(&path).map_err(|error| match error {
            TreeError::TooDeep => Refusal::new(
                Code::LimitOutOfRange,
                format!("{} is deeper than {DEEPEST} directories: run `rm -r` in the machine", shown(&request.path)),
            ),
            TreeError::Kernel(errno) => failed(errno),
        })?;
    } else {
        fs::remove_dir(&path).map_err(|error| refusal(&request.path, &error))?;
    }
    Ok(done())
}

#[derive(Debug)]
enum TreeError {
    TooDeep,
    Kernel(Errno),
}

impl From<Errno> for TreeError {
    fn from(errno: Errno) -> Self {
        Self::Kernel(errno)
    }
}

/// A directory under way: its own descriptor, and its name in the one above.
struct Level {
    directory: Dir,
    name: CString,
}

/// Goes down by descriptors, never by paths, so that nobody can put a link in its way; and without recursion, since
/// the depth is not the agent's to choose.
fn remove_tree(path: &Path) -> Result<(), TreeError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::EINVAL.into()) };
    let name = CString::new(name.as_encoded_bytes()).map_err(|_| Errno::EINVAL)?;
    let above: OwnedFd =
        nix::fcntl::open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut levels = vec![open_level(&above, name)?];
    loop {
        let full = levels.len() == DEEPEST;
        let Some(level) = levels.last_mut() else { return Ok(()) };
        match next_subdirectory(&mut level.directory)? {
            Some(_) if full => return Err(TreeError::TooDeep),
            Some(name) => {
                let below = open_level(level.directory.as_fd(), name)?;
                levels.push(below);
            }
            None => {
                let Some(Level { name, .. }) = levels.pop() else { return Ok(()) };
                let above = levels.last().map_or(above.as_fd(), |level| level.directory.as_fd());
                match unlinkat(above, name.as_c_str(), UnlinkatFlags::RemoveDir) {
                    Ok(()) | Err(Errno::ENOENT) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
    }
}

fn open_level(above: impl AsFd, name: CString) -> Result<Level, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = openat(above, name.as_c_str(), flags, Mode::empty())?;
    Ok(Level { directory: Dir::from_fd(fd)?, name })
}

/// Unlinks whatever is no directory, until a directory comes.
fn next_subdirectory(directory: &mut Dir) -> Result<Option<CString>, Errno> {
    let fd =
        directory.as_fd().try_clone_to_owned().map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
    for entry in directory.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let is_directory = match entry.file_type() {
            Some(kind) => kind == Type::Directory,
            None => match fstatat(&fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(meta) => SFlag::from_bits_truncate(meta.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR,
                Err(Errno::ENOENT) => continue,
                Err(errno) => return Err(errno),
            },
        };
        if is_directory {
            return Ok(Some(name.to_owned()));
        }
        match unlinkat(&fd, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(path: &Path, deep: bool) -> PathRequest {
        PathRequest { path: path.to_str().unwrap().to_owned(), deep }
    }

    #[test]
    fn a_tree_goes_and_what_its_links_point_at_stays() {
        let directory = tempfile::tempdir().unwrap();
        let (kept, tree) = (directory.path().join("kept"), directory.path().join("tree"));
        fs::create_dir_all(kept.join("inside")).unwrap();
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        for n in 0..300 {
            fs::write(tree.join("a").join(n.to_string()), "x").unwrap();
            fs::create_dir(tree.join("a/b").join(n.to_string())).unwrap();
        }
        std::os::unix::fs::symlink(&kept, tree.join("a/link")).unwrap();
        assert_eq!(remove(&request(&tree, false)).unwrap_err().code, Code::PathConflict);
        remove(&request(&tree, true)).unwrap();
        assert!(!tree.exists() && kept.join("inside").exists());
    }

    #[test]
    fn a_link_to_a_directory_is_removed_itself() {
        let directory = tempfile::tempdir().unwrap();
        let (kept, link) = (directory.path().join("kept"), directory.path().join("link"));
        fs::create_dir_all(kept.join("inside")).unwrap();
        std::os::unix::fs::symlink(&kept, &link).unwrap();
        remove(&request(&link, true)).unwrap();
        assert!(kept.join("inside").exists() && fs::symlink_metadata(&link).is_err());
    }

    #[test]
    fn a_tree_deeper_than_the_limit_is_refused_and_not_a_crash() {
        let directory = tempfile::tempdir().unwrap();
        let mut deep = directory.path().join("top");
        for _ in 0..DEEPEST + 10 {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        let refused = remove(&request(&directory.path().join("top"), true)).unwrap_err();
        assert_eq!(refused.code, Code::LimitOutOfRange);
    }

    #[test]
    fn the_root_and_what_is_not_there_are_refused() {
        assert_eq!(remove(&request(Path::new("/"), true)).unwrap_err().code, Code::PathInvalid);
        assert_eq!(remove(&request(Path::new("/tmp/.."), true)).unwrap_err().code, Code::PathInvalid);
        assert_eq!(remove(&request(Path::new("/nowhere/at/all"), true)).unwrap_err().code, Code::PathNotFound);
    }
}
