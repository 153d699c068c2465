//! The database file: who may open it, how it is opened, and the connections to it.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};

use super::error::{failed, file_failed, locked};
use super::migration;
use crate::StoreError;

/// Only the owner may read or write: the store holds hashes of keys, and everybody's state.
const MODE: u32 = 0o600;
/// How long a connection waits for a lock. Nobody but an operator's `sqlite3` ever holds one for long.
const BUSY: Duration = Duration::from_secs(5);
/// How long an opener waits for the lock of another process. The lock of one that was killed lasts until the children
/// it was starting have come to their exec.
const HANDOVER: Duration = Duration::from_secs(1);
/// To what size, in bytes, the log is cut back after it had to grow.
const LOG_SIZE: i64 = 64 << 20;
const STATEMENTS: usize = 64;
/// How much of the file each connection keeps in memory, in KiB; the kernel has it too. SQLite's own default is 2,000
/// (`PRAGMA cache_size`).
const CACHE_KIB: i64 = 256;

/// The path of the file, with the lock that makes this process its only user until it is dropped.
pub(super) struct Claim {
    pub path: PathBuf,
    lock: File,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Closing is not enough: a child that this process is about to start may hold the same descriptor until exec.
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(%error, path = %self.path.display(), "the store's lock could not be given up");
        }
    }
}

/// Makes the file if it does not exist, and claims it.
pub(super) fn claim(path: &Path) -> Result<Claim, StoreError> {
    let path = canonical(path).map_err(file_failed("find the directory of the store"))?;
    let action = "lock the store";
    // The lock is a file of its own: SQLite's locks on the database file vanish when any descriptor of it is closed.
    let mut lock_path = path.clone().into_os_string();
    lock_path.push(".lock");
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(MODE)
        .open(&lock_path)
        .map_err(file_failed(action))?;
    let deadline = Instant::now() + HANDOVER;
    loop {
        match lock.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
            Err(TryLockError::WouldBlock) => return Err(StoreError::Locked { path: path.display().to_string() }),
            Err(TryLockError::Error(error)) => return Err(file_failed(action)(error)),
        }
    }
    let claim = Claim { path, lock };
    make_private(&claim.path).map_err(file_failed("make the file of the store"))?;
    Ok(claim)
}

/// The connection that writes, on the newest schema. SQLite gives its log and index the mode of the database file.
pub(super) fn open_writer(path: &Path) -> Result<Connection, StoreError> {
    open_writer_with(path, migration::MIGRATIONS).map_err(locked(path))
}

pub(super) fn open_writer_with(path: &Path, migrations: &[&str]) -> Result<Connection, StoreError> {
    let action = "open the store";
    let mut connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed(action))?;
    // Before anything is written, so that the file of a newer Warren, or of another program, stays as it is.
    migration::recognize(&connection, migrations)?;
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0)).map_err(failed(action))?;
    if mode != "wal" {
        return Err(StoreError::Backend { action, source: format!("its journal stays in mode {mode}").into() });
    }
    // FULL syncs the log at every commit; with NORMAL a power loss undoes answered writes.
    connection.pragma_update(None, "synchronous", "FULL").map_err(failed(action))?;
    connection.pragma_update(None, "foreign_keys", true).map_err(failed(action))?;
    connection.pragma_update_and_check(None, "journal_size_limit", LOG_SIZE, |_| Ok(())).map_err(failed(action))?;
    migration::migrate(&mut connection, migrations)?;
    Ok(connection)
}

/// A connection that can only read.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed("open the store for reading"))
}

fn connect(path: &Path, access: OpenFlags) -> rusqlite::Result<Connection> {
    // Each connection is used by one thread at a time, so SQLite's own mutex is of no use.
    let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

/// One spelling for one file, however it is reached, so that all of them meet at one lock.
fn canonical(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            Ok(directory.canonicalize()?.join(name))
        }
        found => found,
    }
}

fn make_private(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(MODE).open(path) {
        Ok(file) => {
            file.sync_all()?;
            let directory = path.parent().unwrap_or(Path::new("/"));
            File::open(directory)?.sync_all()
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            for suffix in ["", "-wal", "-shm"] {
                let mut file = path.as_os_str().to_owned();
                file.push(suffix);
                match fs::set_permissions(file, Permissions::from_mode(MODE)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            Ok(())
        }
        Err(error) => Err(error),
    }
}
