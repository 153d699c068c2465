//! Unpacking tar archives that nobody vouches for.
//!
//! Every path is resolved by the kernel inside the target (openat2(2), `RESOLVE_IN_ROOT`), so that no link in the
//! archive leads out of it; what is read, and what the archive's headers may take in memory, is bounded.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fchmod, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};
use tar::EntryType;

use super::layer::{LayerFiles, Whiteout};

/// The most that an archive may unpack to, in bytes.
pub(super) const LARGEST: u64 = 64 << 30;
/// The most entries that an archive may have.
const MOST_ENTRIES: u64 = 4_000_000;
/// What the headers of one entry may take: names and attributes are at most 64 KiB each in Linux.
const HEADER_SPACE: u64 = 1 << 20;
/// What may follow the archive's end: padding.
const TRAILER_SPACE: u64 = 1 << 26;
/// How much is unpacked between two looks at the host's free space.
const STEP: u64 = 64 << 20;
/// Directories that a machine's file systems are mounted on. They have to be real.
const MOUNT_POINTS: &[&str] = &["proc", "sys", "dev", "run", "etc"];
/// One of these says that the archive is a root file system and not, say, a directory that holds one.
const PROGRAM_DIRECTORIES: &[&str] = &["bin", "usr/bin", "sbin", "usr/sbin"];

/// Why an archive was not unpacked.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExtractError {
    #[error("it cannot be read")]
    Archive(#[source] io::Error),
    #[error("it is not a tar archive, or an empty one")]
    Empty,
    #[error("{path:?} leads out of the root")]
    Escape { path: PathBuf },
    #[error("{path:?} belongs to user {uid} and group {gid}; a machine has 0 to 65535")]
    Owner { path: PathBuf, uid: u64, gid: u64 },
    #[error("{path:?} links to {target:?}, which is not in the archive before it")]
    Link { path: PathBuf, target: PathBuf },
    #[error("{path:?} cannot be made: {reason}")]
    Refused { path: PathBuf, reason: Errno },
    #[error("it unpacks to more than {} GiB or {MOST_ENTRIES} files", LARGEST >> 30)]
    TooLarge,
    #[error("it has no directory of programs ({}); the archive has to start at the root", PROGRAM_DIRECTORIES.join(", "))]
    NotARoot,
    #[error("/{name} is not a directory")]
    MountPoint { name: &'static str },
    #[error("the target cannot be written to")]
    Target(#[source] io::Error),
}

/// Unpacks the archive of a whole root into the empty directory `root`. `say` is told how many bytes are unpacked, now
/// and then, and may stop it.
pub(super) fn extract(
    archive: impl Read,
    root: &Path,
    say: impl Fn(u64) -> io::Result<()>,
) -> Result<(), ExtractError> {
    let mut tree = Unpacking::new(root, say)?;
    tree.archive(archive)?;
    if tree.entries == 0 {
        return Err(ExtractError::Empty);
    }
    if !PROGRAM_DIRECTORIES.iter().any(|path| tree.open_directory(Path::new(path)).is_ok()) {
        return Err(ExtractError::NotARoot);
    }
    tree.finish()
}

/// A reader that gives no more than it is allowed to.
struct Allowed<R> {
    inner: R,
    allowance: Rc<Cell<u64>>,
}

impl<R: Read> Read for Allowed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        let left = self.allowance.get().checked_sub(read as u64);
        self.allowance.set(left.ok_or_else(|| io::Error::other("a header is larger than any may be"))?);
        Ok(read)
    }
}

/// Who owns an entry, and what it allows.
struct Attributes {
    uid: u32,
    gid: u32,
    mode: u32,
    modified: i64,
}

/// A tree that one archive or several layers are unpacked into. The bounds are those of all of them together.
pub(super) struct Unpacking<S> {
    root: OwnedFd,
    /// Their times are set last, because what is unpacked into them changes those.
    directories: Vec<(PathBuf, i64)>,
    entries: u64,
    unpacked: u64,
    told: u64,
    say: S,
    /// What the layer at hand made; `None` where there are no layers.
    layer: Option<LayerFiles>,
}

impl<S: Fn(u64) -> io::Result<()>> Unpacking<S> {
    /// Starts in the empty directory `root`. `say` is told how many bytes are unpacked, now and then, and may stop it.
    pub fn new(root: &Path, say: S) -> Result<Self, ExtractError> {
        let root = File::open(root).map_err(ExtractError::Target)?.into();
        Ok(Self { root, directories: Vec::new(), entries: 0, unpacked: 0, told: 0, say, layer: None })
    }

    /// Unpacks a layer over the ones before it (OCI image specification, layer.md).
    pub fn layer(&mut self, archive: impl Read) -> Result<(), ExtractError> {
        self.layer = Some(LayerFiles::default());
        self.archive(archive)
    }

    fn archive(&mut self, archive: impl Read) -> Result<(), ExtractError> {
        let allowance = Rc::new(Cell::new(0));
        let mut archive = tar::Archive::new(Allowed { inner: archive, allowance: allowance.clone() });
        let mut entries = archive.entries().map_err(ExtractError::Archive)?;
        loop {
            allowance.set(HEADER_SPACE);
            let Some(entry) = entries.next() else { break };
            let mut entry = entry.map_err(ExtractError::Archive)?;
            allowance.set(u64::MAX);
            self.entries += 1;
            if self.entries > MOST_ENTRIES {
                return Err(ExtractError::TooLarge);
            }
            self.entry(&mut entry)?;
            // Also what is skipped is read here, where the headers' allowance does not count.
            io::copy(&mut entry, &mut io::sink()).map_err(ExtractError::Archive)?;
        }
        // The checksums of compressed archives come last.
        allowance.set(TRAILER_SPACE);
        io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(ExtractError::Archive)?;
        Ok(())
    }

    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<(), ExtractError> {
        let kind = entry.header().entry_type();
        let path = inside(&entry.path_bytes())?;
        let attributes = attributes(entry, &path)?;
        let extended = extended_attributes(entry)?;
        let Some(name) = path.file_name() else {
            // The root itself: its owner and mode count, its name does not.
            return if kind == EntryType::Directory {
                apply(self.root.as_fd(), &attributes, &extended).map_err(ExtractError::Target)
            } else {
                Ok(())
            };
        };
        if let Some(layer) = &self.layer
            && let Some(whiteout) = Whiteout::parse(name)
        {
            return self.white_out(layer, whiteout, &path);
        }
        let parent = self.parent(&path)?;
        let refused = |reason: Errno| made_by(&path, reason);
        match kind {
            EntryType::Directory => {
                match mkdirat(&parent, name, Mode::S_IRWXU) {
                    Ok(()) => {}
                    Err(Errno::EEXIST) if self.is_directory(&parent, name) => {}
                    Err(Errno::EEXIST) => {
                        self.clear(&parent, name)
                            .and_then(|()| mkdirat(&parent, name, Mode::S_IRWXU))
                            .map_err(refused)?;
                    }
                    Err(reason) => return Err(refused(reason)),
                }
                let made = open_made(&parent, name, OFlag::O_DIRECTORY).map_err(refused)?;
                apply(made.as_fd(), &attributes, &extended).map_err(ExtractError::Target)?;
                self.directories.push((path.clone(), attributes.modified));
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.clear(&parent, name).map_err(refused)?;
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let made = openat(&parent, name, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(refused)?;
                let mut file = File::from(made);
                self.content(entry, &mut file)?;
                apply(file.as_fd(), &attributes, &extended).map_err(ExtractError::Target)?;
                set_time(&parent, name, attributes.modified).map_err(refused)?;
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default();
                self.clear(&parent, name).map_err(refused)?;
                symlinkat(OsStr::from_bytes(&target), &parent, name).map_err(refused)?;
                let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
                fchownat(&parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(refused)?;
                set_time(&parent, name, attributes.modified).map_err(refused)?;
            }
            EntryType::Link => {
                let target = inside(&entry.link_name_bytes().unwrap_or_default())?;
                let missing = || ExtractError::Link { path: path.clone(), target: target.clone() };
                let target_name = target.file_name().ok_or_else(missing)?;
                let target_parent =
                    self.open_directory(target.parent().unwrap_or(Path::new(""))).map_err(|_| missing())?;
                if target == path {
                    return Ok(());
                }
                self.clear(&parent, name).map_err(refused)?;
                linkat(&target_parent, target_name, &parent, name, LinkatFlags::empty()).map_err(
                    |errno| match errno {
                        Errno::ENOENT | Errno::EPERM => missing(),
                        other => refused(other),
                    },
                )?;
            }
            EntryType::Fifo => {
                self.clear(&parent, name).map_err(refused)?;
                mknodat(&parent, name, SFlag::S_IFIFO, Mode::from_bits_truncate(attributes.mode), 0)
                    .map_err(refused)?;
                let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
                fchownat(&parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(refused)?;
            }
            // Devices, which a machine gets from its own /dev, and formats' own bookkeeping.
            _ => return Ok(()),
        }
        if let Some(layer) = &mut self.layer {
            layer.made(&parent, name).map_err(refused)?;
        }
        Ok(())
    }

    /// Hides what the layers below this one put in a place.
    fn white_out(&self, layer: &LayerFiles, whiteout: Whiteout<'_>, path: &Path) -> Result<(), ExtractError> {
        let refused = |reason: Errno| made_by(path, reason);
        let parent = match self.open_directory(path.parent().unwrap_or(Path::new(""))) {
            Ok(parent) => parent,
            // Nothing can be there.
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            Err(reason) => return Err(refused(reason)),
        };
        match whiteout {
            Whiteout::Name(name) => layer.hide(&parent, name).map_err(refused),
            Whiteout::Content => layer.hide_content(&parent).map_err(refused),
            Whiteout::Bookkeeping => Ok(()),
            Whiteout::Malformed => Err(ExtractError::Escape { path: path.to_path_buf() }),
        }
    }

    /// Makes room for an entry; a directory has to be empty, or of the layers below.
    fn clear(&self, parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
        match (remove(parent, name), &self.layer) {
            (Err(Errno::ENOTEMPTY | Errno::EEXIST), Some(layer)) => {
                layer.hide(parent, name)?;
                remove(parent, name)
            }
            (removed, _) => removed,
        }
    }

    /// Copies a file's bytes; runs of zeroes become holes.
    fn content<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, file: &mut File) -> Result<(), ExtractError> {
        let mut buffer = vec![0; 1 << 16];
        let mut length = 0;
        loop {
            let read = match entry.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(ExtractError::Archive(error)),
            };
            length += read as u64;
            self.unpacked += read as u64;
            if self.unpacked > LARGEST {
                return Err(ExtractError::TooLarge);
            }
            let piece = &buffer[..read];
            let wrote = if read == buffer.len() && piece.iter().all(|byte| *byte == 0) {
                file.seek(SeekFrom::Current(read as i64)).map(drop)
            } else {
                file.write_all(piece)
            };
            wrote.map_err(ExtractError::Target)?;
            if self.unpacked - self.told >= STEP {
                self.told = self.unpacked;
                (self.say)(self.unpacked).map_err(ExtractError::Target)?;
            }
        }
        file.set_len(length).map_err(ExtractError::Target)
    }

    /// The directory that an entry goes into, made where the archive left it out.
    fn parent(&self, path: &Path) -> Result<OwnedFd, ExtractError> {
        let parent = path.parent().unwrap_or(Path::new(""));
        match self.open_directory(parent) {
            Ok(found) => return Ok(found),
            Err(Errno::ENOENT) => {}
            Err(reason) => return Err(made_by(path, reason)),
        }
        let mut reached = PathBuf::new();
        let mut directory = self.open_directory(&reached).map_err(|reason| made_by(path, reason))?;
        for component in parent.components() {
            reached.push(component);
            directory = match self.open_directory(&reached) {
                Err(Errno::ENOENT) => mkdirat(&directory, component.as_os_str(), Mode::from_bits_truncate(0o755))
                    .and_then(|()| self.open_directory(&reached))
                    .map_err(|reason| made_by(path, reason))?,
                other => other.map_err(|reason| made_by(path, reason))?,
            };
        }
        Ok(directory)
    }

    /// Opens a directory as a process with this root would, links included.
    fn open_directory(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS | ResolveFlag::RESOLVE_NO_XDEV);
        openat2(&self.root, path, how)
    }

    fn is_directory(&self, parent: &OwnedFd, name: &OsStr) -> bool {
        open_made(parent, name, OFlag::O_DIRECTORY).is_ok()
    }

    /// Makes what every machine's root needs.
    pub fn finish(self) -> Result<(), ExtractError> {
        for name in MOUNT_POINTS {
            self.make_plain(name, 0o755)?;
        }
        match self.make_plain("tmp", 0o1777) {
            // Some distributions make it a link; that is theirs to say.
            Ok(()) | Err(ExtractError::MountPoint { .. }) => {}
            Err(error) => return Err(error),
        }
        for (path, modified) in &self.directories {
            // A later entry may have put something else in its place.
            if let Ok(directory) = self.open_directory(path) {
                let _ = nix::sys::stat::futimens(&directory, &omit(), &seconds(*modified));
            }
        }
        Ok(())
    }

    fn make_plain(&self, name: &'static str, mode: u32) -> Result<(), ExtractError> {
        match mkdirat(&self.root, name, Mode::S_IRWXU) {
            Ok(()) => {
                let made = open_made(&self.root, OsStr::new(name), OFlag::O_DIRECTORY);
                let set = made.and_then(|made| fchmod(&made, Mode::from_bits_truncate(mode)));
                set.map_err(|errno| ExtractError::Target(errno.into()))
            }
            Err(Errno::EEXIST) if self.is_directory(&self.root, OsStr::new(name)) => Ok(()),
            Err(Errno::EEXIST) => Err(ExtractError::MountPoint { name }),
            Err(errno) => Err(ExtractError::Target(errno.into())),
        }
    }
}

/// A path of the archive without its leading slash and dots. One that climbs is refused.
fn inside(bytes: &[u8]) -> Result<PathBuf, ExtractError> {
    let path = Path::new(OsStr::from_bytes(bytes));
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => clean.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(ExtractError::Escape { path: path.to_path_buf() });
            }
        }
    }
    Ok(clean)
}

fn made_by(path: &Path, reason: Errno) -> ExtractError {
    match reason {
        Errno::ENOSPC | Errno::EDQUOT | Errno::EIO | Errno::EROFS => ExtractError::Target(reason.into()),
        Errno::EXDEV => ExtractError::Escape { path: path.to_path_buf() },
        reason => ExtractError::Refused { path: path.to_path_buf(), reason },
    }
}

fn attributes<R: Read>(entry: &tar::Entry<'_, R>, path: &Path) -> Result<Attributes, ExtractError> {
    let header = entry.header();
    let uid = header.uid().map_err(ExtractError::Archive)?;
    let gid = header.gid().map_err(ExtractError::Archive)?;
    match (u16::try_from(uid), u16::try_from(gid)) {
        (Ok(uid), Ok(gid)) => Ok(Attributes {
            uid: uid.into(),
            gid: gid.into(),
            mode: header.mode().map_err(ExtractError::Archive)? & 0o7777,
            modified: header.mtime().ok().and_then(|time| i64::try_from(time).ok()).unwrap_or_default(),
        }),
        _ => Err(ExtractError::Owner { path: path.to_path_buf(), uid, gid }),
    }
}

/// The attributes that mean something in a machine: users' own, and the capabilities of programs. Others say things to
/// the host (`trusted.overlay.*`) or to a security module.
fn extended_attributes<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Vec<(String, Vec<u8>)>, ExtractError> {
    let mut kept = Vec::new();
    for extension in entry.pax_extensions().map_err(ExtractError::Archive)?.into_iter().flatten() {
        let extension = extension.map_err(ExtractError::Archive)?;
        let Some(name) = extension.key().ok().and_then(|key| key.strip_prefix("SCHILY.xattr.")) else { continue };
        if name.starts_with("user.") || name == "security.capability" {
            kept.push((name.to_owned(), extension.value_bytes().to_vec()));
        }
    }
    Ok(kept)
}

pub(super) fn open_made(parent: &OwnedFd, name: &OsStr, extra: OFlag) -> Result<OwnedFd, Errno> {
    openat(parent, name, OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | extra, Mode::empty())
}

/// Removes what an earlier entry put there; a directory only when it is empty.
fn remove(parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR) => unlinkat(parent, name, UnlinkatFlags::RemoveDir),
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

/// The owner first: a change of it takes the set-user-id bit and the capabilities away.
fn apply(made: BorrowedFd<'_>, attributes: &Attributes, extended: &[(String, Vec<u8>)]) -> io::Result<()> {
    nix::unistd::fchown(made, Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)))?;
    fchmod(made, Mode::from_bits_truncate(attributes.mode))?;
    for (name, value) in extended {
        let name = std::ffi::CString::new(name.as_str()).map_err(io::Error::other)?;
        // SAFETY: the descriptor is open, the name is terminated, and the value's length is passed with it.
        let result = unsafe { libc::fsetxattr(made.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
        let error = io::Error::last_os_error();
        // Attributes that this file system does not keep, or that are malformed, are left out.
        if result != 0 && crate::files::is_full(&error) {
            return Err(error);
        }
    }
    Ok(())
}

fn set_time(parent: &OwnedFd, name: &OsStr, modified: i64) -> Result<(), Errno> {
    utimensat(parent, name, &omit(), &seconds(modified), UtimensatFlags::NoFollowSymlink)
}

fn omit() -> TimeSpec {
    TimeSpec::new(0, libc::UTIME_OMIT)
}

fn seconds(seconds: i64) -> TimeSpec {
    TimeSpec::new(seconds, 0)
}
