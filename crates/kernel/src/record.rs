//! What Warren itself loaded last, below `/run`: so that also a restarted daemon can tell whether somebody else
//! changed the rules. It goes with the host's restart, as the rules do.

use std::fs;
use std::io;
use std::path::Path;

use crate::error::KernelError;
use crate::firewall::digest::Digest;
use crate::firewall::shape::Shape;
use crate::namespace::file;

/// What the network's rules were when they were loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// A hash of what was asked for, without members and policy.
    base: String,
    /// A hash of the fixed rules.
    text: String,
    /// What the kernel made of it.
    kernel: Digest,
    pub(crate) shape: Shape,
}

impl Record {
    pub(crate) fn new(base: &str, text: &str, kernel: Digest, shape: Shape) -> Self {
        Self { base: hash(base), text: hash(text), kernel, shape }
    }

    /// Whether this network was asked for, of this version of Warren, whatever its policy.
    pub(crate) fn is_based_on(&self, base: &str) -> bool {
        self.base == hash(base)
    }

    pub(crate) fn is_of(&self, text: &str) -> bool {
        self.text == hash(text)
    }

    /// Whether the kernel has what was loaded, elements of members and policy aside.
    pub(crate) fn is_in(&self, found: &Digest) -> bool {
        self.kernel == *found
    }

    /// Whether tables, chains and sets are still those that were made.
    pub(crate) fn has_skeleton(&self, found: &Digest) -> bool {
        self.kernel.skeleton == found.skeleton
    }

    /// `None` when there is none, or none that can be read: then the rules are loaded again, which harms nobody.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        let content = fs::read_to_string(path).ok()?;
        let [base, text, skeleton, whole, shape] = content.lines().collect::<Vec<_>>()[..] else { return None };
        let kernel = Digest { skeleton: skeleton.to_owned(), whole: whole.to_owned() };
        Some(Self { base: base.to_owned(), text: text.to_owned(), kernel, shape: shape.parse().ok()? })
    }

    pub(crate) fn write(&self, path: &Path) -> Result<(), KernelError> {
        let Self { base, text, kernel: Digest { skeleton, whole }, shape } = self;
        write_file(path, &format!("{base}\n{text}\n{skeleton}\n{whole}\n{shape}\n"))
    }

    /// Fine if absent.
    pub(crate) fn remove(path: &Path) -> Result<(), KernelError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(file("remove", path)(error)),
            _ => {}
        }
        // The directory goes with the last file in it.
        if let Some(directory) = path.parent() {
            let _ = fs::remove_dir(directory);
        }
        Ok(())
    }
}

/// Replaces a file at once, so that a reader never sees half of it.
pub(crate) fn write_file(path: &Path, content: &str) -> Result<(), KernelError> {
    let new = path.with_extension("new");
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(file("create", directory))?;
    }
    fs::write(&new, content).map_err(file("write", &new))?;
    fs::rename(&new, path).map_err(file("replace", path))
}

fn hash(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}
