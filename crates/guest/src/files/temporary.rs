//! A file that takes another's place as a whole, or leaves no trace.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Removed when dropped, unless it took its place.
#[derive(Debug)]
pub struct Temporary {
    path: PathBuf,
    file: File,
    placed: bool,
}

impl Temporary {
    /// Makes one in the directory of `path`, readable by its owner only.
    pub fn beside(path: &Path) -> io::Result<Self> {
        let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        loop {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = directory.join(format!(".warren-{now:x}-{number}"));
            let open =
                OpenOptions::new().write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(&path);
            match open {
                Ok(file) => return Ok(Self { path, file, placed: false }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Takes the place of whatever is at `path`, in one step. Not synced: after a power failure, the file system
    /// decides whether the old or the new content is there.
    pub fn replace(mut self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)?;
        self.placed = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.placed {
            // Nothing more can be done about a file system that does not let go of it.
            let _ = fs::remove_file(&self.path);
        }
    }
}
