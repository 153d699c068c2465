//! Taking a pool down: one installation's part of it, or all of it.

use std::path::Path;

use warren_model::InstallationId;

use super::error::PoolError;
use super::layout::{Layout, Storage, remove_tree};
use super::pool::remove_disk_at;
use super::roots;
use crate::files;

/// Removes what an installation has in the pool, and the pool when that is asked for and nobody else is in it.
/// Returns what could not be removed.
pub(super) fn close_installation(layout: &Layout, installation: &InstallationId, remove_pool: bool) -> Vec<String> {
    let mut failures = roots::unmount_all(installation);
    let mut note = |what: &str, path: &Path, result: std::io::Result<()>| {
        if let Err(error) = files::absent_is_fine(result) {
            failures.push(format!("cannot {what} {}: {error}", path.display()));
        }
    };
    let disks = layout.disks(installation);
    match roots::machines_in(&disks) {
        Err(error) => note("list", &disks, Err(error)),
        Ok(machines) => {
            for (_, disk) in machines {
                note("remove", &disk, remove_disk_at(layout, &disk));
            }
        }
    }
    note("remove", &disks, std::fs::remove_dir(&disks));
    let lock_path = Layout::lock_file(&layout.directory);
    let _shape = match files::lock(&lock_path, true) {
        Ok(lock) => lock,
        Err(error) => {
            note("lock", &lock_path, Err(error));
            return failures;
        }
    };
    let registration = Layout::installations(&layout.directory).join(installation.as_str());
    note("remove", &registration, std::fs::remove_file(&registration));
    match others(layout) {
        Err(error) => note("list", &Layout::installations(&layout.directory), Err(error)),
        Ok(0) if remove_pool => remove_everything(layout, &mut note),
        Ok(0) if layout.storage == Storage::Loop => {
            let data = Layout::data(&layout.directory);
            note("unmount", &data, roots::unmount_all_at(&data));
        }
        Ok(_) => {}
    }
    failures
}

/// Unmounts a pool that nobody is registered in.
pub(super) fn release(layout: &Layout) -> Result<(), PoolError> {
    let failed = |context| PoolError::io(context, &layout.directory);
    let _shape = files::lock(&Layout::lock_file(&layout.directory), true).map_err(failed("cannot lock the pool in"))?;
    if layout.storage == Storage::Loop && others(layout).map_err(failed("cannot list who uses the pool in"))? == 0 {
        let data = Layout::data(&layout.directory);
        roots::unmount_all_at(&data).map_err(failed("cannot unmount the pool in"))?;
    }
    Ok(())
}

fn others(layout: &Layout) -> std::io::Result<usize> {
    Ok(std::fs::read_dir(Layout::installations(&layout.directory))?.count())
}

fn remove_everything(layout: &Layout, note: &mut impl FnMut(&str, &Path, std::io::Result<()>)) {
    let directory = &layout.directory;
    let data = Layout::data(directory);
    if layout.storage == Storage::Loop {
        note("unmount", &data, roots::unmount_all_at(&data));
        let file = Layout::loop_file(directory);
        note("remove", &file, std::fs::remove_file(&file));
    } else {
        for parent in [layout.images(), layout.work()] {
            let children = std::fs::read_dir(&parent).into_iter().flatten().flatten();
            for path in children.map(|entry| entry.path()) {
                let removed = if path.is_dir() { remove_tree(&path) } else { std::fs::remove_file(&path) };
                note("remove", &path, removed);
            }
        }
        note("remove", &data, std::fs::remove_dir_all(&data));
    }
    for path in [Layout::installations(directory), Layout::locks(directory)] {
        note("remove", &path, std::fs::remove_dir_all(&path));
    }
    for path in [Layout::record(directory), Layout::lock_file(directory)] {
        note("remove", &path, std::fs::remove_file(&path));
    }
    // Something that is not the pool's may lie there too; then the directory stays.
    let _ = std::fs::remove_dir(directory);
}
