//! The mounted roots of an installation's machines, in `/run/warren-{installation}/roots`.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use warren_model::{InstallationId, MachineId};

use super::error::DiskError;
use super::idmap;
use super::layout::{Layout, read_disk_record};
use crate::files;

/// Below a directory that others may pass through but not list, because a container's first process resolves its root
/// with the machine's own uid.
fn roots(installation: &InstallationId) -> PathBuf {
    installation.run_directory().join("roots")
}

pub(crate) fn root(installation: &InstallationId, machine: MachineId) -> PathBuf {
    roots(installation).join(machine.bare())
}

/// Mounts a disk with its owners shifted; does nothing when it is mounted.
pub(crate) fn mount_root(
    layout: &Layout,
    installation: &InstallationId,
    machine: MachineId,
    uid_base: u32,
) -> Result<PathBuf, DiskError> {
    let target = root(installation, machine);
    let failed = |context| DiskError::io(context, &target);
    if files::is_mount_point(&target).map_err(failed("cannot look at"))? {
        return Ok(target);
    }
    let disk = layout.disk(installation, machine);
    if !disk.is_dir() {
        return Err(DiskError::Absent { machine });
    }
    files::make_directories(&target, 0o711).map_err(failed("cannot make"))?;
    let namespace = idmap::user_namespace(uid_base)
        .map_err(|source| DiskError::MountUnsupported { what: "no user namespace can be made", source })?;
    let shift = |source: &Path, target: &Path| {
        idmap::shifted_mount(source, &namespace)
            .and_then(|tree| idmap::attach(&tree, target))
            .map_err(|source| DiskError::MountUnsupported { what: "shifted owners are refused", source })
    };
    if layout.is_btrfs() {
        shift(&disk, &target)?;
    } else {
        mount_overlay(layout, machine, &disk, uid_base, &target, shift)?;
    }
    Ok(target)
}

/// The image below, shifted; the machine's own files above, which carry shifted owners on disk. The kernel does not
/// shift a whole overlay.
fn mount_overlay(
    layout: &Layout,
    machine: MachineId,
    disk: &Path,
    uid_base: u32,
    target: &Path,
    shift: impl Fn(&Path, &Path) -> Result<(), DiskError>,
) -> Result<(), DiskError> {
    let record = read_disk_record(disk).map_err(DiskError::io("cannot read the record of", disk))?;
    if record.uid_base != uid_base {
        return Err(DiskError::OtherRange { machine, expected: record.uid_base, asked: uid_base });
    }
    // The overlay keeps a private copy of the lower mount, so the target can hold both, one after the other.
    shift(&layout.image_root(&record.image), target)?;
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        escaped(target),
        escaped(&disk.join("upper")),
        escaped(&disk.join("work"))
    );
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    let mounted = mount(Some("warren"), target, Some("overlay"), flags, Some(options.as_str()));
    if let Err(errno) = mounted {
        let _ = umount2(target, MntFlags::MNT_DETACH);
        return Err(DiskError::MountUnsupported { what: "an overlay is refused", source: errno.into() });
    }
    Ok(())
}

/// Overlay separates its options with commas and its layers with colons.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace('\\', "\\\\").replace(',', "\\,").replace(':', "\\:")
}

/// Unmounts a root, whoever still uses it, and removes the directory. Fine when it is not there.
pub(crate) fn unmount_root(installation: &InstallationId, machine: MachineId) -> io::Result<()> {
    unmount_all_at(&root(installation, machine))
}

/// Unmounts everything that lies on a directory, and removes the directory.
pub(crate) fn unmount_all_at(target: &Path) -> io::Result<()> {
    loop {
        match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            // Nothing is mounted there, or nothing is there.
            Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    files::absent_is_fine(std::fs::remove_dir(target))
}

/// The machines whose roots are mounted as this process sees it.
pub(crate) fn mounted(installation: &InstallationId) -> io::Result<BTreeSet<MachineId>> {
    let mut found = BTreeSet::new();
    for (machine, path) in machines_in(&roots(installation))? {
        if files::is_mount_point(&path)? {
            found.insert(machine);
        }
    }
    Ok(found)
}

/// Unmounts all roots of an installation; goes on after a failure.
pub(crate) fn unmount_all(installation: &InstallationId) -> Vec<String> {
    let mut failures = Vec::new();
    match machines_in(&roots(installation)) {
        Err(error) => failures.push(format!("cannot list the mounted roots: {error}")),
        Ok(machines) => {
            for (machine, path) in machines {
                if let Err(error) = unmount_all_at(&path) {
                    failures.push(format!("cannot unmount the root of {machine}: {error}"));
                }
            }
        }
    }
    let _ = std::fs::remove_dir(roots(installation));
    failures
}

/// The entries of a directory that are named like machines; none when the directory is absent.
pub(crate) fn machines_in(directory: &Path) -> io::Result<Vec<(MachineId, PathBuf)>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut machines = Vec::new();
    for entry in entries {
        let entry = entry?;
        if let Some(machine) = entry.file_name().to_str().and_then(|name| MachineId::from_bare(name).ok()) {
            machines.push((machine, entry.path()));
        }
    }
    Ok(machines)
}
