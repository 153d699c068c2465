//! Files of the machine.
//!
//! Paths mean what they mean inside the machine: the agent lives in its root, so nothing leads out of it. What lies at
//! a path may be anything: only regular files are opened for their content, and nothing is opened in a way that waits.

mod content;
mod remove;
mod temporary;

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use warren_guest::protocol::{
    Attributes, Empty, Entry, LONGEST_PATH, Listing, MOST_ENTRIES, PathRequest, Refusal, shown,
};
use warren_model::Code;
use warren_model::access::FileKind;

pub use content::{read, write};
pub use remove::remove;
pub use temporary::Temporary;

/// The longest listing, in bytes of names and link targets.
const LONGEST_LISTING: usize = 3 << 20;

/// An absolute path as the kernel takes it.
pub fn absolute(path: &str) -> Result<PathBuf, Refusal> {
    let why = if !path.starts_with('/') {
        "is not absolute: begin it with /"
    } else if path.contains('\0') {
        "holds a NUL"
    } else if path.len() > LONGEST_PATH {
        "is longer than 4095 bytes"
    } else {
        return Ok(PathBuf::from(path));
    };
    Err(Refusal::new(Code::PathInvalid, format!("{} {why}", shown(path))))
}

/// What is at a path itself, without following a symbolic link at its end. Blocking.
pub fn stat(request: &PathRequest) -> Result<Attributes, Refusal> {
    let path = absolute(&request.path)?;
    let meta = fs::symlink_metadata(&path).map_err(|error| refusal(&request.path, &error))?;
    Ok(attributes(&path, &meta))
}

/// The entries of a directory by name. Blocking.
pub fn list(request: &PathRequest) -> Result<Listing, Refusal> {
    let path = absolute(&request.path)?;
    let failed = |error: io::Error| refusal(&request.path, &error);
    let mut entries = Vec::new();
    let mut length = 0;
    for entry in fs::read_dir(&path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // What was removed meanwhile is not there.
        let Ok(meta) = entry.metadata() else { continue };
        let name = entry.file_name().to_string_lossy().into_owned();
        let attributes = attributes(&entry.path(), &meta);
        length += name.len() + attributes.target.as_ref().map_or(0, String::len);
        if entries.len() == MOST_ENTRIES || length > LONGEST_LISTING {
            let detail = format!(
                "{} has more entries than one listing holds ({MOST_ENTRIES}): run `find` in the machine",
                shown(&request.path)
            );
            return Err(Refusal::new(Code::LimitOutOfRange, detail));
        }
        entries.push(Entry { name, attributes });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Listing { entries })
}

/// Makes a directory. Blocking.
pub fn make_directory(request: &PathRequest) -> Result<Attributes, Refusal> {
    let path = absolute(&request.path)?;
    let made = fs::DirBuilder::new().recursive(request.deep).mode(0o755).create(&path);
    made.map_err(|error| refusal(&request.path, &error))?;
    stat(request)
}

/// Opens a regular file for reading and refuses anything else, without waiting for anybody. Blocking.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let meta = file.metadata()?;
    if meta.is_file() {
        Ok(file)
    } else if meta.is_dir() {
        Err(io::ErrorKind::IsADirectory.into())
    } else {
        Err(io::Error::other(NotRegular))
    }
}

/// What lies at a path is a device, a pipe or a socket.
#[derive(Debug, thiserror::Error)]
#[error("it is not a regular file")]
pub struct NotRegular;

/// Says what the kernel answered.
pub fn refusal(path: &str, error: &io::Error) -> Refusal {
    let path = shown(path);
    if error.get_ref().is_some_and(|inner| inner.is::<NotRegular>()) {
        return Refusal::new(Code::PathConflict, format!("{path} is a device, a pipe or a socket, not a regular file"));
    }
    let code = match error.kind() {
        io::ErrorKind::NotFound => Code::PathNotFound,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Code::PathDenied,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Code::MachineDiskFull
        }
        io::ErrorKind::AlreadyExists
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory
        | io::ErrorKind::DirectoryNotEmpty
        | io::ErrorKind::ResourceBusy
        | io::ErrorKind::ExecutableFileBusy
        | io::ErrorKind::CrossesDevices
        | io::ErrorKind::WouldBlock => Code::PathConflict,
        io::ErrorKind::InvalidFilename | io::ErrorKind::InvalidInput => Code::PathInvalid,
        _ if error.raw_os_error() == Some(libc::ELOOP) => Code::PathInvalid,
        _ => Code::PathConflict,
    };
    let what =
        error.raw_os_error().map_or_else(|| error.to_string(), |n| nix::errno::Errno::from_raw(n).desc().to_owned());
    Refusal::new(code, format!("{path}: {what}"))
}

/// What the metadata say.
fn attributes(path: &Path, meta: &Metadata) -> Attributes {
    let kind = match meta.file_type() {
        kind if kind.is_file() => FileKind::File,
        kind if kind.is_dir() => FileKind::Directory,
        kind if kind.is_symlink() => FileKind::Symlink,
        kind => {
            debug_assert!(kind.is_fifo() || kind.is_socket() || kind.is_char_device() || kind.is_block_device());
            FileKind::Other
        }
    };
    let target = (kind == FileKind::Symlink).then(|| fs::read_link(path).ok()).flatten();
    Attributes {
        kind,
        size: meta.len(),
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        modified: meta.mtime(),
        target: target.map(|target| target.to_string_lossy().into_owned()),
    }
}

/// The answer of what has nothing to say.
fn done() -> Empty {
    Empty {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(path: impl AsRef<Path>, deep: bool) -> PathRequest {
        PathRequest { path: path.as_ref().to_str().unwrap().to_owned(), deep }
    }

    #[test]
    fn a_path_is_absolute_without_nul_and_not_too_long() {
        assert!(absolute("/").is_ok() && absolute("/a/../b").is_ok());
        for bad in ["", "a", "../a", "/a\0", &format!("/{}", "a".repeat(4096))] {
            assert_eq!(absolute(bad).unwrap_err().code, Code::PathInvalid);
        }
    }

    #[test]
    fn a_link_is_shown_as_what_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/nowhere", &link).unwrap();
        let seen = stat(&request(&link, false)).unwrap();
        assert_eq!((seen.kind, seen.target.as_deref()), (FileKind::Symlink, Some("/nowhere")));
    }

    #[test]
    fn a_directory_lists_by_name_and_a_file_does_not() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["b", "a", "c"] {
            fs::write(directory.path().join(name), name).unwrap();
        }
        let names: Vec<_> =
            list(&request(directory.path(), false)).unwrap().entries.into_iter().map(|e| e.name).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert_eq!(list(&request(directory.path().join("a"), false)).unwrap_err().code, Code::PathConflict);
        assert_eq!(list(&request(directory.path().join("z"), false)).unwrap_err().code, Code::PathNotFound);
    }

    #[test]
    fn a_listing_that_is_too_long_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        for n in 0..=MOST_ENTRIES {
            File::create(directory.path().join(n.to_string())).unwrap();
        }
        assert_eq!(list(&request(directory.path(), false)).unwrap_err().code, Code::LimitOutOfRange);
    }

    #[test]
    fn making_a_directory_twice_is_a_conflict_unless_parents_are_made() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("a/b");
        assert_eq!(make_directory(&request(&deep, false)).unwrap_err().code, Code::PathNotFound);
        assert_eq!(make_directory(&request(&deep, true)).unwrap().kind, FileKind::Directory);
        assert!(make_directory(&request(&deep, true)).is_ok());
        assert_eq!(make_directory(&request(&deep, false)).unwrap_err().code, Code::PathConflict);
    }

    #[test]
    fn what_is_no_regular_file_is_not_opened_and_does_not_block() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [fifo.as_path(), Path::new("/dev/zero"), Path::new("/dev/tty"), directory.path()] {
            let error = open_regular(path).unwrap_err();
            assert_eq!(refusal("/x", &error).code, Code::PathConflict, "{}", path.display());
        }
    }
}
