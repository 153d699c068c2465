//! What is known of an image, in a file beside its tree; and giving a finished tree its name.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use warren_model::ImageName;
use warren_model::access::ImageInfo;

use crate::disk::btrfs;
use crate::disk::layout::{Layout, Workspace};
use crate::files;

const RECORD: &str = "image.json";
/// The directory in a workspace that becomes the image.
const DRAFT: &str = "image";

/// What is known of an image; `None` when there is none of this name.
pub(crate) fn read_record(layout: &Layout, name: &ImageName) -> io::Result<Option<ImageInfo>> {
    read_record_at(&layout.image(name))
}

pub(super) fn read_record_at(image: &Path) -> io::Result<Option<ImageInfo>> {
    match std::fs::read(image.join(RECORD)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Ok(content) => serde_json::from_slice(&content).map(Some).map_err(io::Error::other),
        Err(error) => Err(error),
    }
}

/// An image that is being made.
pub(super) struct Draft {
    layout: Layout,
    workspace: Workspace,
}

impl Draft {
    pub fn new(layout: &Layout) -> io::Result<Self> {
        let draft = Self { layout: layout.clone(), workspace: Workspace::new(layout)? };
        files::make_directories(&draft.workspace.path().join(DRAFT), 0o700)?;
        draft.layout.make_tree(&draft.root())?;
        Ok(draft)
    }

    /// Where the tree is made.
    pub fn root(&self) -> std::path::PathBuf {
        self.workspace.path().join(DRAFT).join("root")
    }

    /// For files that only the making needs.
    pub fn scratch(&self) -> &Path {
        self.workspace.path()
    }

    /// Gives the tree its name, in place of the image that had it. On disk when it returns. The caller holds the
    /// image's lock.
    pub fn publish(self, info: &ImageInfo, name: &ImageName) -> io::Result<()> {
        let draft = self.workspace.path().join(DRAFT);
        let content = serde_json::to_vec_pretty(info).map_err(io::Error::other)?;
        files::write_atomically(&draft.join(RECORD), &content)?;
        if self.layout.is_btrfs() {
            btrfs::set_read_only(&self.root())?;
        }
        let images = File::open(self.layout.images())?;
        nix::unistd::syncfs(&images)?;
        let target = self.layout.image(name);
        let flags = if target.try_exists()? { RenameFlags::RENAME_EXCHANGE } else { RenameFlags::RENAME_NOREPLACE };
        renameat2(AT_FDCWD, &draft, AT_FDCWD, &target, flags)?;
        // An image that was replaced now lies in the workspace and goes with it.
        images.sync_all()
    }
}

/// Removes an image. The caller holds its lock.
pub(super) fn remove(layout: &Layout, name: &ImageName) -> io::Result<()> {
    let workspace = Workspace::new(layout)?;
    // It goes with the workspace.
    std::fs::rename(layout.image(name), workspace.path().join(DRAFT))
}
