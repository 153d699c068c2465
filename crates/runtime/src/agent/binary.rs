//! The agent's binary on the host.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};

use super::AgentError;

/// The agent: a static program for this processor.
const GUEST_BINARY: &[u8] = include_bytes!(env!("WARREN_GUEST_BINARY"));

/// Makes the agents' directory and puts the binary into it, under a name that says its content. Machines that run an
/// older one keep it: they have a link of their own.
pub fn install(directory: &Path) -> Result<PathBuf, AgentError> {
    let at = |what, path: &Path| {
        let path = path.to_owned();
        move |source| AgentError::Io { what, path, source }
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(directory)
        .map_err(at("the agents' directory was not made", directory))?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o711))
        .map_err(at("the agents' directory was not made passable", directory))?;
    let mounted = statvfs(directory).map_err(|errno| at("the file system was not asked", directory)(errno.into()))?;
    if mounted.flags().contains(FsFlags::ST_NOEXEC) {
        return Err(AgentError::NoExec { directory: directory.to_owned() });
    }
    let hash = blake3::hash(GUEST_BINARY).to_hex();
    let path = directory.join(format!("guest-{}", &hash[..16]));
    if !fs::read(&path).is_ok_and(|content| content == GUEST_BINARY) {
        write(&path).map_err(at("the agent was not written", &path))?;
    }
    remove_older(directory, &path);
    Ok(path)
}

fn write(path: &Path) -> io::Result<()> {
    let temporary = path.with_extension(format!("{}.new", std::process::id()));
    // What an earlier process of the same number left half-written is in the way.
    let _ = fs::remove_file(&temporary);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o555).open(&temporary)?;
    file.write_all(GUEST_BINARY)?;
    // The creation mask may have taken bits away.
    file.set_permissions(fs::Permissions::from_mode(0o555))?;
    drop(file);
    fs::rename(&temporary, path)
}

fn remove_older(directory: &Path, current: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let older = entry.file_name().to_str().is_some_and(|name| name.starts_with("guest-"));
        if older && entry.path() != current {
            // It costs a little space and is tried again at the next start.
            let _ = fs::remove_file(entry.path());
        }
    }
}
