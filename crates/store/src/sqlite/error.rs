//! What SQLite and the file system report, as [`StoreError`].

use std::io;
use std::path::Path;

use rusqlite::{ErrorCode, ffi};

use crate::StoreError;

/// For `map_err`: the error of an attempt to `action`.
pub(super) fn failed(action: &'static str) -> impl FnOnce(rusqlite::Error) -> StoreError {
    move |error| {
        if is_full(&error) { StoreError::DiskFull } else { StoreError::Backend { action, source: error.into() } }
    }
}

/// For `map_err`: the error of an attempt to `action` on a file.
pub(super) fn file_failed(action: &'static str) -> impl FnOnce(io::Error) -> StoreError {
    move |error| match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::DiskFull,
        _ => StoreError::Backend { action, source: error.into() },
    }
}

/// For `map_err` while the store is opened: a lock that somebody else holds on the file is [`StoreError::Locked`].
pub(super) fn locked(path: &Path) -> impl FnOnce(StoreError) -> StoreError {
    move |error| match &error {
        StoreError::Backend { source, .. } if source.downcast_ref().is_some_and(is_busy) => {
            StoreError::Locked { path: path.display().to_string() }
        }
        _ => error,
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

fn is_full(error: &rusqlite::Error) -> bool {
    // The shared-memory index next to the log is grown by writing to it, so its failure to grow is a full disk too.
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
        || error.sqlite_error().is_some_and(|error| error.extended_code == ffi::SQLITE_IOERR_SHMSIZE)
}
