//! The host name and the files that the host keeps.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use warren_guest::protocol::{Empty, GuestConfig, GuestFile, Refusal, shown};
use warren_model::Code;

use crate::files;

/// Where the host may write.
const PREFIX: &str = "/etc";

/// Brings the machine to what the host says; touches nothing that is as it should be. Blocking.
pub fn apply(config: &GuestConfig) -> Result<Empty, Refusal> {
    let files: Vec<(PathBuf, &GuestFile)> =
        config.files.iter().map(|file| Ok((allowed(&file.path)?, file))).collect::<Result<_, Refusal>>()?;
    set_host_name(&config.hostname)?;
    let name = GuestFile { path: format!("{PREFIX}/hostname"), mode: 0o644, content: format!("{}\n", config.hostname) };
    keep(Path::new(&name.path), &name)?;
    for (path, file) in files {
        keep(&path, file)?;
    }
    Ok(Empty {})
}

fn set_host_name(name: &str) -> Result<(), Refusal> {
    let valid =
        !name.is_empty() && name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b));
    if !valid {
        return Err(Refusal::new(Code::InvalidName, format!("{:?} is not a host name", shown(name))));
    }
    if nix::unistd::gethostname().is_ok_and(|current| current == *name) {
        return Ok(());
    }
    match nix::unistd::sethostname(name) {
        // A container may not set it. Its files say the new name at once; the kernel's follows at the next start.
        Ok(()) | Err(Errno::EPERM) => Ok(()),
        Err(errno) => Err(Refusal::new(Code::Internal, format!("the host name was not set: {}", errno.desc()))),
    }
}

fn allowed(path: &str) -> Result<PathBuf, Refusal> {
    let parsed = files::absolute(path)?;
    let below = parsed.starts_with(PREFIX) && parsed.components().count() > 2;
    let plain = parsed.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if below && plain && !path.ends_with('/') {
        Ok(parsed)
    } else {
        Err(Refusal::new(Code::PathInvalid, format!("{} is not a file below {PREFIX}", shown(path))))
    }
}

/// Replaces a file in one step, so that a reader sees the old one or the new one; and not at all where they are equal.
fn keep(path: &Path, file: &GuestFile) -> Result<(), Refusal> {
    let mode = file.mode & 0o7777;
    let same = fs::symlink_metadata(path).is_ok_and(|meta| {
        meta.is_file() && meta.permissions().mode() & 0o7777 == mode && meta.len() == file.content.len() as u64
    });
    if same && fs::read(path).is_ok_and(|content| content == file.content.as_bytes()) {
        return Ok(());
    }
    let failed = |error: std::io::Error| files::refusal(&file.path, &error);
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    let temporary = files::Temporary::beside(path).map_err(failed)?;
    temporary.file().write_all(file.content.as_bytes()).map_err(failed)?;
    temporary.file().set_permissions(fs::Permissions::from_mode(mode)).map_err(failed)?;
    match temporary.replace(path) {
        Ok(()) => Ok(()),
        // Something is mounted there: it can be written, but not replaced.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            let open = fs::OpenOptions::new()
                .write(true)
                .truncate(true)
                .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
                .open(path);
            open.and_then(|mut mounted| mounted.write_all(file.content.as_bytes())).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_below_etc_are_kept() {
        assert!(allowed("/etc/hosts").is_ok() && allowed("/etc/warren/facts.md").is_ok());
        for bad in
            ["/etc", "/etc/", "/etc/../root/x", "/root/x", "etc/hosts", "/etc/warren/", "/etcetera/x", "/etc/a\0b"]
        {
            assert!(allowed(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_file_that_is_as_it_should_be_is_not_touched() {
        use std::os::unix::fs::MetadataExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/facts.md");
        let mut file = GuestFile { path: path.display().to_string(), mode: 0o640, content: "one".into() };
        let inode = || fs::metadata(&path).unwrap().ino();
        keep(&path, &file).unwrap();
        let first = inode();
        keep(&path, &file).unwrap();
        assert_eq!(inode(), first);
        file.content = "two".into();
        keep(&path, &file).unwrap();
        assert_ne!(inode(), first);
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
    }

    #[test]
    fn a_symlink_is_replaced_and_what_it_points_at_stays() {
        let directory = tempfile::tempdir().unwrap();
        let (link, target) = (directory.path().join("resolv.conf"), directory.path().join("target"));
        fs::write(&target, "theirs").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        keep(&link, &GuestFile { path: link.display().to_string(), mode: 0o644, content: "ours".into() }).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_file());
        assert_eq!(fs::read_to_string(&target).unwrap(), "theirs");
    }
}
