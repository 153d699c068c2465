//! What Warren itself loaded last, below `/run`: so that also a restarted daemon can tell whether somebody else
//! changed the rules. It goes with the host's restart, as the rules do.

use std::fs;
use std::io;
use std::path::Path;

use warren_model::record::Egress;

use crate::error::KernelError;
use crate::firewall::digest::Digest;
use crate::namespace::file;

const OPEN: &str = "open";
const SEALED: &str = "sealed";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// A hash of the text without members: what was asked for.
    text: String,
    /// What the kernel made of it.
    kernel: Digest,
    pub(crate) egress: Egress,
}

impl Record {
    pub(crate) fn new(text: &str, kernel: Digest, egress: Egress) -> Self {
        Self { text: blake3::hash(text.as_bytes()).to_hex().to_string(), kernel, egress }
    }

    pub(crate) fn is_of(&self, text: &str) -> bool {
        self.text == blake3::hash(text.as_bytes()).to_hex().to_string()
    }

    /// Whether tables, chains and sets are still those that were made.
    pub(crate) fn has_skeleton(&self, found: &Digest) -> bool {
        self.kernel.skeleton == found.skeleton
    }

    /// `None` when there is none, or none that can be read: then the rules are loaded again, which harms nobody.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        let content = fs::read_to_string(path).ok()?;
        let [text, skeleton, whole, egress] = content.lines().collect::<Vec<_>>()[..] else { return None };
        let egress = match egress {
            OPEN => Egress::Open,
            SEALED => Egress::Deny,
            _ => return None,
        };
        let kernel = Digest { skeleton: skeleton.to_owned(), whole: whole.to_owned() };
        Some(Self { text: text.to_owned(), kernel, egress })
    }

    pub(crate) fn write(&self, path: &Path) -> Result<(), KernelError> {
        let egress = if self.egress == Egress::Open { OPEN } else { SEALED };
        let Digest { skeleton, whole } = &self.kernel;
        write_file(path, &format!("{}\n{skeleton}\n{whole}\n{egress}\n", self.text))
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
