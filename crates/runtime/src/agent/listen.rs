//! Letting in PID 1 of a machine, and nobody else.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use nix::sys::socket::Backlog;
use tokio::net::{UnixListener, UnixStream};

use super::link::Link;
use super::{AgentError, Machine};

/// The names inside a machine's directory.
const SOCKET: &str = "agent.sock";
const INIT: &str = "init";

/// Time between two connections of one machine: a machine that dials without end costs this little.
const PAUSE: Duration = Duration::from_millis(5);

/// Connections of one machine that wait to be looked at. Whoever finds no room dials again.
const BACKLOG: i32 = 8;

/// Makes the directory of one machine and listens in it.
pub fn prepare(directory: &Path, binary: &Path, root_uid: u32) -> Result<UnixListener, AgentError> {
    let at = |what| {
        let path = directory.to_owned();
        move |source| AgentError::Io { what, path, source }
    };
    let made = DirBuilder::new().recursive(true).mode(0o755).create(directory);
    made.and_then(|()| fs::set_permissions(directory, fs::Permissions::from_mode(0o755)))
        .map_err(at("a machine's agent directory was not made"))?;
    link_binary(binary, &directory.join(INIT)).map_err(at("the agent was not linked"))?;
    listen(directory, root_uid).map_err(at("the agent's socket was not made"))
}

/// Accepts until the machine is closed or the hub is gone.
pub fn start(listener: UnixListener, machine: &Arc<Machine>) {
    let (closed, init) = (machine.closed.clone(), machine.init.subscribe());
    let machine = Arc::downgrade(machine);
    tokio::spawn(async move {
        tokio::select! {
            () = closed.cancelled() => {}
            () = accept(listener, machine, init) => {}
        }
    });
}

async fn accept(listener: UnixListener, machine: Weak<Machine>, mut init: tokio::sync::watch::Receiver<Option<i32>>) {
    loop {
        // Who may connect is not known before; until then, whoever dials waits in the backlog.
        if init.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(20 * PAUSE).await;
            continue;
        };
        let Some(machine) = machine.upgrade() else { return };
        if is_init(&machine, &stream) {
            meet(machine, stream).await;
        } else {
            let before = machine.refused.fetch_add(1, Ordering::Relaxed);
            if before == 0 {
                tracing::warn!(machine = %machine.id, "a process that is not the agent dialed the agent's socket");
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The kernel says who connected (SO_PEERCRED, unix(7)): the credentials are those of the connect, and numbers are as
/// this process sees them.
fn is_init(machine: &Machine, stream: &UnixStream) -> bool {
    let init = *machine.init.borrow();
    match (stream.peer_cred(), init) {
        (Ok(peer), Some(init)) => peer.pid() == Some(init) && peer.uid() == machine.root_uid,
        _ => false,
    }
}

async fn meet(machine: Arc<Machine>, stream: UnixStream) {
    let meeting = Link::open(machine.id, stream);
    let opened = tokio::select! {
        opened = meeting => opened,
        () = machine.closed.cancelled() => return,
    };
    let (link, connection) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            tracing::warn!(machine = %machine.id, %error, "an agent's connection was dropped");
            return;
        }
    };
    if let Some(before) = machine.link.send_replace(Some(Arc::clone(&link))) {
        before.give_up();
    }
    tracing::debug!(machine = %machine.id, version = link.version(), "agent connected");
    let closed = machine.closed.clone();
    // Not held by its own connection: when the hub is dropped, so is the connection.
    let machine = Arc::downgrade(&machine);
    tokio::spawn(async move {
        tokio::select! {
            () = connection => {}
            () = closed.cancelled() => return,
        }
        let Some(machine) = machine.upgrade() else { return };
        let was_current = machine.link.send_if_modified(|current| {
            let ours = current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &link));
            if ours {
                *current = None;
            }
            ours
        });
        if was_current {
            // Nobody listens: that is no failure.
            let _ = machine.disconnects.send(machine.id);
        }
    });
}

fn link_binary(binary: &Path, init: &Path) -> io::Result<()> {
    if let (Ok(there), Ok(wanted)) = (fs::symlink_metadata(init), fs::symlink_metadata(binary))
        && (there.dev(), there.ino()) == (wanted.dev(), wanted.ino())
    {
        return Ok(());
    }
    let temporary = init.with_extension("new");
    let _ = fs::remove_file(&temporary);
    fs::hard_link(binary, &temporary)?;
    fs::rename(&temporary, init)?;
    // Renaming over a link to the same file leaves both names.
    let _ = fs::remove_file(&temporary);
    Ok(())
}

/// Binds under another name and renames, so that the socket is never there with wrong rights, and one that an earlier
/// daemon left is replaced in one step. Binds by descriptor, since a socket's path is limited to 107 bytes.
fn listen(directory: &Path, root_uid: u32) -> io::Result<UnixListener> {
    let (temporary, socket) = (directory.join("agent.sock.new"), directory.join(SOCKET));
    let _ = fs::remove_file(&temporary);
    let opened = File::open(directory)?;
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/agent.sock.new", opened.as_raw_fd()))?;
    nix::sys::socket::listen(&listener, Backlog::new(BACKLOG)?)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
    std::os::unix::fs::lchown(&temporary, Some(root_uid), Some(root_uid))?;
    fs::rename(&temporary, &socket)?;
    Ok(listener)
}
