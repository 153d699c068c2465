//! The body of `warren edge`.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, umask};

use crate::confine::{self, ConfineError};
use crate::control::server;
use crate::names::{Ledger, LedgerError};
use crate::network::{Shared, Workers};
use crate::public::Public;

/// What the edge is told on its command line.
#[derive(Debug, Clone)]
pub struct EdgeConfig {
    /// Where the control socket is made; its directory is only written by the daemon.
    pub control: PathBuf,
    /// The user and group that the edge becomes; not 0. 65534 is `nobody`.
    pub uid: u32,
    pub gid: u32,
}

/// Why the edge did not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Confine(#[from] ConfineError),
    #[error("another edge answers at {0}")]
    Occupied(PathBuf),
    #[error("the control socket {path} could not be made")]
    Control {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Names(#[from] LedgerError),
    #[error("the runtime could not be started")]
    Runtime(#[source] io::Error),
    #[error("the public side could not be started")]
    Public(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Runs the edge until a client asks it to shut down.
///
/// Has to be called by root, first thing in a process, while it has one thread: privileges belong to threads, and
/// every descriptor but the standard ones is closed. Logs go to standard error through `tracing`; without a
/// subscriber, one is installed.
pub fn run(config: EdgeConfig) -> Result<(), RunError> {
    // A subscriber that the caller installed stays. A log that cannot be written must not end an edge that outlives
    // the reader of its log.
    let _ = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_target(false)
        .log_internal_errors(false)
        .try_init();
    confine::detach(config.uid, config.gid)?;
    let daemon_uid = nix::unistd::Uid::effective().as_raw();
    let failed = |source| RunError::Control { path: config.control.clone(), source };
    let listener =
        listen(&config.control).map_err(failed)?.ok_or_else(|| RunError::Occupied(config.control.clone()))?;
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    let directory = config.control.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Open before the edge can open nothing any more.
    let stem = config.control.file_stem().unwrap_or_default().to_string_lossy();
    let shared = Shared::new(Ledger::open(directory, &format!("{stem}-names"))?);
    confine::confine(config.uid, config.gid, directory)?;

    let public = Public::start(workers).map_err(|error| RunError::Public(error.into()))?;
    let workers = Workers::start(workers).map_err(RunError::Runtime)?;
    // Control has a thread of its own: a large snapshot takes no time from those that answer.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RunError::Runtime)?;
    let served = runtime.block_on(async {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        tracing::info!(uid = config.uid, gid = config.gid, "the edge is ready");
        server::serve(listener, daemon_uid, workers, public, shared).await;
        Ok(())
    });
    tracing::info!("the edge ends");
    served.map_err(RunError::Runtime)
}

/// The control socket, for its owner only; `None` when another process answers there.
fn listen(path: &Path) -> io::Result<Option<UnixListener>> {
    match UnixStream::connect(path) {
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // What an edge before this one left behind.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
        Err(error) => return Err(error),
    }
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    umask(before);
    listener.map(Some)
}
