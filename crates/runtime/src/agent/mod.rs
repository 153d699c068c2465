//! The connections of the agents in running machines, and what can be asked of them.
//!
//! Each machine has a directory on the host with a socket and the agent's binary; the driver mounts it into the machine
//! at `/run/warren`. The agent dials the socket, so the host never opens a path that a machine controls. Whatever comes
//! from there is untrusted: it is bounded in length, number and time, and one wrong answer costs the connection.
//!
//! ```text
//! AgentHub ─ Machine ─ listen: accepts PID 1 of the machine and nobody else
//!                    └ link:   one HTTP/2 connection ─ call:  one JSON document each way
//!                                                    ├ exec:  a command's streams
//!                                                    └ files: content as it comes
//! ```
//!
//! One task for each machine accepts; one for each connection moves its bytes; two for each command move its input and
//! its output. Dropping an [`ExecSession`](warren_model::access::ExecSession) ends the command; dropping the hub drops
//! every connection, and the machines run on.

mod access;
mod binary;
mod call;
mod exec;
mod files;
mod flood;
mod link;
mod listen;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use warren_guest::protocol::{Empty, ShutdownRequest, operation};
use warren_model::MachineId;
use warren_model::access::AccessError;

pub use warren_guest::protocol::{GuestConfig, GuestFile};

use crate::disk::roots::machines_in;
use link::Link;

/// Machines whose loss a slow receiver may be behind.
const DISCONNECTS: usize = 1024;

/// Why the host's end of an agent could not be made, or an agent could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("{what} at {path}")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The agent is executed from there.
    #[error("{directory} lies on a file system that is mounted noexec: choose another directory for the agents")]
    NoExec { directory: PathBuf },
    #[error("machine {0} was not opened")]
    NotOpen(MachineId),
    #[error("the agent of machine {machine} did not report within {within:?}")]
    NotConnected { machine: MachineId, within: Duration },
    #[error("the agent of machine {machine} refused: {source}")]
    Refused {
        machine: MachineId,
        #[source]
        source: AccessError,
    },
}

/// Every machine's agent. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AgentHub {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    binary: PathBuf,
    machines: Mutex<HashMap<MachineId, Arc<Machine>>>,
    disconnects: broadcast::Sender<MachineId>,
}

/// The host's end of one machine's agent.
#[derive(Debug)]
struct Machine {
    id: MachineId,
    directory: PathBuf,
    /// Who root in the machine is on the host.
    root_uid: u32,
    /// PID 1 of the machine in the daemon's PID namespace.
    init: watch::Sender<Option<i32>>,
    link: watch::Sender<Option<Arc<Link>>>,
    refused: AtomicU64,
    disconnects: broadcast::Sender<MachineId>,
    closed: CancellationToken,
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

impl AgentHub {
    /// Prepares `directory` (mode 0711), with the agent's binary in it. Its file system must allow execution.
    pub fn new(directory: PathBuf) -> Result<Self, AgentError> {
        let binary = binary::install(&directory)?;
        let (disconnects, _) = broadcast::channel(DISCONNECTS);
        Ok(Self { inner: Arc::new(Inner { directory, binary, machines: Mutex::default(), disconnects }) })
    }

    /// Makes the directory that the driver mounts read-only at [`DIRECTORY`](warren_guest::protocol::DIRECTORY), with a socket that only
    /// `root_uid` can connect to, and listens. Listens anew on a socket that an earlier daemon left. Does nothing when
    /// the machine is open for the same user.
    pub async fn open(&self, machine: MachineId, root_uid: u32) -> Result<PathBuf, AgentError> {
        if let Some(open) = self.inner.lock().get(&machine)
            && open.root_uid == root_uid
        {
            return Ok(open.directory.clone());
        }
        let directory = self.inner.directory.join(machine.bare());
        let listener = listen::prepare(&directory, &self.inner.binary, root_uid)?;
        let opened = Arc::new(Machine {
            id: machine,
            directory: directory.clone(),
            root_uid,
            init: watch::Sender::new(None),
            link: watch::Sender::new(None),
            refused: AtomicU64::new(0),
            disconnects: self.inner.disconnects.clone(),
            closed: CancellationToken::new(),
        });
        listen::start(listener, &opened);
        if let Some(before) = self.inner.lock().insert(machine, opened) {
            before.closed.cancel();
        }
        Ok(directory)
    }

    /// From now on, only the process `init_pid` (PID 1 of the machine, in the daemon's PID namespace), running as the
    /// machine's root, may connect. Until then nobody is let in. A connection of another process is dropped.
    pub fn accept_from(&self, machine: MachineId, init_pid: i32) {
        let Some(open) = self.inner.lock().get(&machine).cloned() else { return };
        let changed = open.init.send_if_modified(|current| {
            let changed = *current != Some(init_pid);
            *current = Some(init_pid);
            changed
        });
        if changed && let Some(link) = open.link.borrow().as_ref() {
            link.give_up();
        }
    }

    /// Forgets the machine, drops its connection and removes its directory.
    pub async fn close(&self, machine: MachineId) {
        let open = self.inner.lock().remove(&machine);
        if let Some(open) = open {
            open.closed.cancel();
        }
        let directory = self.inner.directory.join(machine.bare());
        if let Err(error) = tokio::fs::remove_dir_all(&directory).await
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%machine, directory = %directory.display(), %error, "an agent's directory was not removed");
        }
    }

    /// Waits until the agent has reported.
    pub async fn connected(&self, machine: MachineId, within: Duration) -> Result<(), AgentError> {
        let open = self.machine(machine).ok_or(AgentError::NotOpen(machine))?;
        match open.wait_for_link(within).await {
            Some(_) => Ok(()),
            None => Err(AgentError::NotConnected { machine, within }),
        }
    }

    /// Whether the agent is connected right now.
    pub fn is_connected(&self, machine: MachineId) -> bool {
        self.machine(machine).is_some_and(|open| open.link.borrow().is_some())
    }

    /// Sets the machine's host name and the files that the host keeps in it. Writes only what differs.
    pub async fn configure(&self, machine: MachineId, config: &GuestConfig) -> Result<(), AgentError> {
        let refused = |source| AgentError::Refused { machine, source };
        let link = self.link(machine).await.map_err(refused)?;
        let Empty {} = call::call(&link, operation::CONFIGURE, config, call::CALL).await.map_err(refused)?;
        Ok(())
    }

    /// Asks the agent to end every process of the machine: SIGTERM, then SIGKILL after `grace`. Answers at once.
    pub async fn shutdown(&self, machine: MachineId, grace: Duration) -> Result<(), AgentError> {
        let refused = |source| AgentError::Refused { machine, source };
        let link = self.link(machine).await.map_err(refused)?;
        let request = ShutdownRequest { grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX) };
        let Empty {} = call::call(&link, operation::SHUTDOWN, &request, call::CALL).await.map_err(refused)?;
        Ok(())
    }

    /// Every machine whose agent's connection ended. Closing a machine does not count.
    pub fn disconnects(&self) -> broadcast::Receiver<MachineId> {
        self.inner.disconnects.subscribe()
    }

    /// How many connections were dropped because they did not come from PID 1 of the machine.
    pub fn refused(&self, machine: MachineId) -> u64 {
        self.machine(machine).map_or(0, |open| open.refused.load(Ordering::Relaxed))
    }

    /// The release of the agent that is connected. An agent outlives the daemon that started it.
    pub fn version(&self, machine: MachineId) -> Option<String> {
        self.machine(machine)?.link.borrow().as_ref().map(|link| link.version().to_owned())
    }

    /// The machines that have a directory, also one that an earlier daemon left.
    pub fn directories(&self) -> Result<BTreeSet<MachineId>, AgentError> {
        let directory = &self.inner.directory;
        let found = machines_in(directory).map_err(|source| AgentError::Io {
            what: "cannot list the agents",
            path: directory.clone(),
            source,
        })?;
        Ok(found.into_iter().map(|(machine, _)| machine).collect())
    }

    /// Where the machines' directories are.
    pub fn directory(&self) -> &Path {
        &self.inner.directory
    }

    fn machine(&self, machine: MachineId) -> Option<Arc<Machine>> {
        self.inner.lock().get(&machine).cloned()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, HashMap<MachineId, Arc<Machine>>> {
        // No holder of this lock can leave the map half-changed.
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Machine {
    async fn wait_for_link(&self, within: Duration) -> Option<Arc<Link>> {
        let mut link = self.link.subscribe();
        let waiting = async {
            tokio::select! {
                there = link.wait_for(Option::is_some) => there.ok().and_then(|link| link.clone()),
                () = self.closed.cancelled() => None,
            }
        };
        tokio::time::timeout(within, waiting).await.ok().flatten()
    }
}
