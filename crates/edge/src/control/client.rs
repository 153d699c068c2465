//! The daemon's end: starts an edge or finds one, and tells it what to answer.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::Deserialize;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use warren_ingress::{Kind, Snapshot};
use warren_model::policy::HostName;
use warren_model::session::TunnelKey;
use warren_model::{NetworkNumber, SessionId};

use crate::change::NetworkChange;
use crate::control::frame::{Channel, MAX_DESCRIPTORS, MAX_MESSAGE};
use crate::control::message::{EdgeStatus, PROTOCOL, Refusal, Reply, Request};
use crate::denials::TakenDenials;
use crate::flows::{FlowCounters, OpenFlow};
use crate::operators::{SessionStatus, TunnelReport};
use crate::public::{PublicCounters, PublicGeneration, PublicStatus};
use crate::view::{NetworkView, Sockets};

/// How long the edge may take over one request.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a new edge may take until it answers.
const START: Duration = Duration::from_secs(10);
/// How long an edge may take to say how it is, when it has nothing else to do.
const STATUS: Duration = Duration::from_secs(3);
/// The pause between two questions whether the edge still answers.
const PULSE: Duration = Duration::from_secs(1);
/// How long a process may take to end once it was killed.
const DEATH: u16 = 5000;

/// Why the edge did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    #[error("the edge cannot be reached at {path}")]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the edge could not be started from {executable}")]
    Spawn {
        executable: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the log {path} of the edge could not be opened")]
    Log {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the edge ended while it started: {0}")]
    Ended(ExitStatus),
    #[error("process {found} answers at {path}, not the edge that was started")]
    Occupied { path: PathBuf, found: i32 },
    /// It may hang: it can be asked again, or killed.
    #[error("the edge did not answer in time")]
    TimedOut,
    #[error("the edge, process {pid}, could not be killed")]
    Kill {
        pid: i32,
        #[source]
        source: io::Error,
    },
    #[error("the edge refused")]
    Refused(#[from] Refusal),
    /// Nothing was sent.
    #[error("the edge takes messages of at most {MAX_MESSAGE} bytes, and this one has {length}")]
    TooLong { length: usize },
    #[error("the edge is gone")]
    Closed,
    #[error("the edge said something that cannot be understood: {0}")]
    Unintelligible(String),
}

impl EdgeError {
    /// Whether there is no edge to talk to through this connection, so that another one is needed. Where not, the edge
    /// is well, and what it was asked is what cannot be: asking again for the same is of no use.
    pub fn is_broken(&self) -> bool {
        match self {
            Self::Refused(_) | Self::TooLong { .. } => false,
            Self::Connect { .. }
            | Self::Spawn { .. }
            | Self::Log { .. }
            | Self::Ended(_)
            | Self::Occupied { .. }
            | Self::TimedOut
            | Self::Kill { .. }
            | Self::Closed
            | Self::Unintelligible(_) => true,
        }
    }
}

/// Where the edge's log goes.
///
/// The edge outlives the daemon: a pipe whose reader ends with the daemon loses what is written later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EdgeLog {
    /// The daemon's standard error.
    Inherit,
    /// Appended to a file, which is made readable by its owner only.
    File(PathBuf),
    Discard,
}

/// How to start an edge.
#[derive(Debug, Clone)]
pub struct SpawnConfig {
    pub executable: PathBuf,
    /// What comes before `edge --control PATH --uid N --gid N` on its command line.
    pub arguments: Vec<OsString>,
    /// The path of the control socket, in a directory that only the daemon may write.
    pub control: PathBuf,
    /// Who the edge is once it has started; not 0.
    pub uid: u32,
    pub gid: u32,
    pub log: EdgeLog,
}

/// A connection to a running edge. Ends with the value; the edge goes on.
#[derive(Debug)]
pub struct EdgeClient {
    jobs: mpsc::Sender<Job>,
    closed: watch::Receiver<bool>,
    /// How many requests were answered.
    answered: Arc<AtomicU64>,
    pid: i32,
    /// The process that listens, whatever its id is given to later.
    process: Option<OwnedFd>,
}

#[derive(Debug)]
struct Job {
    body: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    answer: oneshot::Sender<Result<Reply, EdgeError>>,
}

impl EdgeClient {
    /// Connects to the edge at this path; `None` when nothing answers there.
    ///
    /// An edge that speaks another version of the protocol is asked to end, and counts as nothing. So does one that takes
    /// the connection and then says nothing for ten seconds; it is killed.
    pub async fn connect(control: &Path) -> Result<Option<Self>, EdgeError> {
        let failed = |source| EdgeError::Connect { path: control.to_owned(), source };
        let stream = match UnixStream::connect(control).await {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(error) => return Err(failed(error)),
        };
        // What the kernel says of the process that listens, not what it says itself.
        let listener = stream.peer_cred().map_err(failed)?.pid();
        let process = listener.and_then(open_process);
        let (jobs, queue) = mpsc::channel(64);
        let (ended, closed) = watch::channel(false);
        let answered = Arc::new(AtomicU64::new(0));
        tokio::spawn(carry(Channel::new(stream), queue, answered.clone(), ended));
        let mut client = Self { jobs, closed, answered, pid: listener.unwrap_or(0), process };
        let hello = match client.request(&Request::Hello { protocol: PROTOCOL }, Vec::new()).await {
            // An edge that is just ending takes connections for a moment longer than it answers.
            Err(EdgeError::Closed) => return Ok(None),
            Err(EdgeError::TimedOut) => {
                tracing::error!(pid = client.pid, "the running edge does not answer and is killed");
                client.kill().await?;
                return Ok(None);
            }
            hello => hello?,
        };
        match hello {
            Reply::Hello { protocol: PROTOCOL, pid } => {
                client.pid = listener.unwrap_or(pid);
                Ok(Some(client))
            }
            Reply::Hello { protocol, .. } => {
                tracing::warn!(protocol, expected = PROTOCOL, "the running edge is of another version and is ended");
                client.shutdown().await?;
                Ok(None)
            }
            other => Err(EdgeError::Unintelligible(format!("{other:?}"))),
        }
    }

    /// Starts an edge and connects to it.
    ///
    /// The edge is in a session of its own and goes on when the calling process ends; as long as that process runs,
    /// it reaps the edge.
    pub async fn spawn(config: &SpawnConfig) -> Result<Self, EdgeError> {
        let mut child = start(config)?;
        let client = match Self::meet(config, &mut child).await {
            Ok(client) => client,
            Err(error) => {
                // Already gone is as good.
                let _ = child.kill().await;
                return Err(error);
            }
        };
        let pid = client.pid;
        tokio::spawn(async move {
            match child.wait().await {
                Ok(status) if status.success() => tracing::info!(pid, "the edge ended"),
                Ok(status) => tracing::error!(pid, %status, "the edge ended"),
                Err(error) => tracing::error!(pid, %error, "the edge could not be waited for"),
            }
        });
        Ok(client)
    }

    /// Connects to an edge that has just been started, once it answers.
    async fn meet(config: &SpawnConfig, child: &mut Child) -> Result<Self, EdgeError> {
        let pid = child.id().map_or(0, |pid| pid as i32);
        let deadline = Instant::now() + START;
        while Instant::now() < deadline {
            match child.try_wait() {
                Ok(Some(status)) => return Err(EdgeError::Ended(status)),
                Ok(None) => {}
                Err(source) => return Err(EdgeError::Spawn { executable: config.executable.clone(), source }),
            }
            match Self::connect(&config.control).await? {
                Some(client) if client.pid == pid => return Ok(client),
                Some(other) => return Err(EdgeError::Occupied { path: config.control.clone(), found: other.pid }),
                None => sleep(Duration::from_millis(2)).await,
            }
        }
        Err(EdgeError::TimedOut)
    }

    /// What the edge has. [`EdgeError::TimedOut`] after three seconds: it hangs, or is very busy with what it was asked
    /// before.
    pub async fn status(&self) -> Result<EdgeStatus, EdgeError> {
        match timeout(STATUS, self.request(&Request::Status, Vec::new())).await.map_err(|_| EdgeError::TimedOut)?? {
            Reply::Status(status) => Ok(*status),
            other => Err(EdgeError::Unintelligible(format!("{other:?}"))),
        }
    }

    /// The refusals after this number, which is [`TakenDenials::last`] of the answer before, or 0. What came before it
    /// is known to be safe and is forgotten by the edge; the rest stays until it is.
    pub async fn take_denials(&self, after: u64) -> Result<TakenDenials, EdgeError> {
        match self.request(&Request::TakeDenials { after }, Vec::new()).await? {
            Reply::Denials(denials) => Ok(denials),
            other => Err(EdgeError::Unintelligible(format!("{other:?}"))),
        }
    }

    /// The proxied connections of a network that are open, at most 10,000 of them; none when the edge does not know it.
    pub async fn open_flows(&self, network: NetworkNumber) -> Result<Vec<OpenFlow>, EdgeError> {
        match self.request(&Request::OpenFlows { network }, Vec::new()).await? {
            Reply::OpenFlows(flows) => Ok(flows),
            other => Err(EdgeError::Unintelligible(format!("{other:?}"))),
        }
    }

    /// What machines of a network did by name, each under the rule that allowed it; nothing when the edge does not know it.
    pub async fn flow_counters(&self, network: NetworkNumber) -> Result<Vec<FlowCounters>, EdgeError> {
        match self.request(&Request::FlowCounters { network }, Vec::new()).await? {
            Reply::FlowCounters(counters) => Ok(counters),
            other => Err(EdgeError::Unintelligible(format!("{other:?}"))),
        }
    }

    /// Replaces what the edge answers for a network, as a whole.
    ///
    /// `sockets` are needed the first time ([`RefusalCode::SocketsMissing`](crate::RefusalCode::SocketsMissing)
    /// otherwise); given later, they take the place of the ones before. An error that is not
    /// [broken](EdgeError::is_broken) is about this view alone: the edge goes on with the one before, or with this one and
    /// without its operators.
    /// So it is with `device`, by which operators come in; without one none of the view's operators do.
    ///
    /// Returns the operators who could not be let in, such as one whose key is another network's still. They are tried
    /// again with every call.
    pub async fn put_network(
        &self,
        view: &NetworkView,
        sockets: Option<Sockets>,
        device: Option<OwnedFd>,
    ) -> Result<Vec<SessionId>, EdgeError> {
        let (announced, has_device) = (sockets.is_some(), device.is_some());
        let request =
            Request::PutNetwork { view: Box::new(Cow::Borrowed(view)), sockets: announced, device: has_device };
        let mut descriptors = sockets.map_or_else(Vec::new, |sockets| Vec::from(sockets.into_descriptors()));
        descriptors.extend(device);
        match self.request(&request, descriptors).await? {
            Reply::Put(refused) => Ok(refused),
            other => Err(EdgeError::Unintelligible(format!("{other:?}"))),
        }
    }

    /// Does the same as [`put_network`](Self::put_network) with the view that comes of the change, where the edge has the one
    /// that it begins with; else it refuses ([`RefusalCode::Outdated`](crate::RefusalCode::Outdated)).
    pub async fn change_network(&self, change: &NetworkChange) -> Result<Vec<SessionId>, EdgeError> {
        match self.request(&Request::ChangeNetwork { change: Box::new(Cow::Borrowed(change)) }, Vec::new()).await? {
            Reply::Put(refused) => Ok(refused),
            other => Err(EdgeError::Unintelligible(format!("{other:?}"))),
        }
    }

    /// Serves operators of all networks on these sockets, at most one of each family, instead of those before.
    pub async fn listen(&self, sockets: Vec<UdpSocket>, key: &TunnelKey) -> Result<(), EdgeError> {
        let descriptors = sockets.into_iter().map(OwnedFd::from).collect();
        self.done(&Request::Listen { key: key.clone() }, descriptors).await
    }

    /// How the tunnel stands, and which sessions ended by themselves; `None` while nothing listens.
    pub async fn tunnel(&self) -> Result<Option<TunnelReport>, EdgeError> {
        match self.request(&Request::Tunnel, Vec::new()).await? {
            Reply::Tunnel(report) => Ok(report),
            other => Err(EdgeError::Unintelligible(format!("{other:?}"))),
        }
    }

    /// How the sessions of a network stand.
    pub async fn sessions(&self, network: NetworkNumber) -> Result<Vec<SessionStatus>, EdgeError> {
        match self.request(&Request::Sessions { network }, Vec::new()).await? {
            Reply::Sessions(sessions) => Ok(sessions),
            other => Err(EdgeError::Unintelligible(format!("{other:?}"))),
        }
    }

    /// What the public side has. [`EdgeError::TimedOut`] after three seconds, as with [`status`](Self::status).
    pub async fn public(&self) -> Result<PublicStatus, EdgeError> {
        match timeout(STATUS, self.request(&Request::Public, Vec::new())).await.map_err(|_| EdgeError::TimedOut)?? {
            Reply::Public(status) => Ok(status),
            other => Err(EdgeError::Unintelligible(format!("{other:?}"))),
        }
    }

    /// Serves the public on these listeners instead of those of the kind before, which are closed when this returns; none to
    /// serve none.
    pub async fn listen_public(&self, kind: Kind, listeners: Vec<TcpListener>) -> Result<(), EdgeError> {
        let descriptors = listeners.into_iter().map(OwnedFd::from).collect();
        self.done(&Request::ListenPublic { kind }, descriptors).await
    }

    /// Adds sockets by which the public side connects to the machines of a network: of TCP over IPv4, unconnected, made
    /// in the network's namespace; at most as many as [`PublicStatus::room`] says.
    pub async fn add_dialers(&self, network: NetworkNumber, sockets: Vec<OwnedFd>) -> Result<(), EdgeError> {
        let mut sockets = sockets.into_iter();
        loop {
            let some: Vec<OwnedFd> = sockets.by_ref().take(MAX_DESCRIPTORS).collect();
            if some.is_empty() {
                return Ok(());
            }
            self.done(&Request::AddDialers { network }, some).await?;
        }
    }

    /// The public side reaches nothing of the network any more; what was open to it is cut.
    pub async fn remove_dialers(&self, network: NetworkNumber) -> Result<(), EdgeError> {
        self.done(&Request::RemoveDialers { network }, Vec::new()).await
    }

    /// Publishes this and nothing else. When this returns, no request reaches what is not published any more, and nothing
    /// more comes from there.
    pub async fn put_public(&self, generation: PublicGeneration, snapshot: Snapshot) -> Result<(), EdgeError> {
        self.done(&Request::PutPublic { generation, snapshot: Box::new(snapshot) }, Vec::new()).await
    }

    /// Answers these challenges of ACME, by token, and no others; what is published stays as it is.
    pub async fn put_challenges(&self, generation: u64, challenges: BTreeMap<String, String>) -> Result<(), EdgeError> {
        self.done(&Request::PutChallenges { generation, challenges }, Vec::new()).await
    }

    /// What happened to requests from outside since the edge started: to those of these hosts' sites that are published, or
    /// to those of all, and to those for no site.
    pub async fn public_counters(&self, hosts: Option<&[HostName]>) -> Result<PublicCounters, EdgeError> {
        let hosts = hosts.map(<[HostName]>::to_vec);
        match self.request(&Request::PublicCounters { hosts }, Vec::new()).await? {
            Reply::PublicCounters(counters) => Ok(counters),
            other => Err(EdgeError::Unintelligible(format!("{other:?}"))),
        }
    }

    /// Ends the answers for a network and closes its sockets. A network that is not there is no error.
    pub async fn remove_network(&self, number: NetworkNumber) -> Result<(), EdgeError> {
        self.done(&Request::RemoveNetwork { number }, Vec::new()).await
    }

    /// Ends the edge; resolves when it has let go of everything.
    pub async fn shutdown(&self) -> Result<(), EdgeError> {
        self.done(&Request::Shutdown, Vec::new()).await?;
        timeout(ANSWER, self.closed()).await.map_err(|_| EdgeError::TimedOut)
    }

    /// Ends an edge that does not answer any more; resolves when the process is gone. One that is gone already is no
    /// error.
    pub async fn kill(&self) -> Result<(), EdgeError> {
        match &self.process {
            Some(process) => kill(self.pid, process).await,
            // It was gone before it could be looked at.
            None => Ok(()),
        }
    }

    /// Resolves when the edge has ended. One that twice in a row answers nothing for three seconds, although it is asked,
    /// hangs, and is killed.
    pub async fn ended(&self) {
        let mut silent = 0;
        loop {
            tokio::select! {
                () = self.closed() => return,
                () = sleep(PULSE) => {}
            }
            let before = self.answered.load(Relaxed);
            let greeting = self.request(&Request::Hello { protocol: PROTOCOL }, Vec::new());
            let late = matches!(timeout(STATUS, greeting).await, Err(_) | Ok(Err(EdgeError::TimedOut)));
            // A greeting may wait behind requests that take their time.
            silent = if late && self.answered.load(Relaxed) == before { silent + 1 } else { 0 };
            if silent == 2 {
                tracing::error!(pid = self.pid, "the edge does not answer and is killed");
                if let Err(error) = self.kill().await {
                    tracing::error!(pid = self.pid, %error, "the edge that does not answer could not be killed");
                }
            }
        }
    }

    /// The edge's process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Resolves when the connection has ended, which it does when the edge dies.
    pub async fn closed(&self) {
        // An error means that the task that holds the other end is gone, and with it the connection.
        let _ = self.closed.clone().wait_for(|closed| *closed).await;
    }

    async fn done(&self, request: &Request<'_>, descriptors: Vec<OwnedFd>) -> Result<(), EdgeError> {
        match self.request(request, descriptors).await? {
            Reply::Done => Ok(()),
            other => Err(EdgeError::Unintelligible(format!("{other:?}"))),
        }
    }

    async fn request(&self, request: &Request<'_>, descriptors: Vec<OwnedFd>) -> Result<Reply, EdgeError> {
        let body = serde_json::to_vec(request).map_err(|error| EdgeError::Unintelligible(error.to_string()))?;
        if body.len() > MAX_MESSAGE {
            return Err(EdgeError::TooLong { length: body.len() });
        }
        let (answer, answered) = oneshot::channel();
        self.jobs.send(Job { body, descriptors, answer }).await.map_err(|_| EdgeError::Closed)?;
        match answered.await.map_err(|_| EdgeError::Closed)?? {
            Reply::Refused(refusal) => Err(EdgeError::Refused(refusal)),
            reply => Ok(reply),
        }
    }
}

/// A process that cannot be mistaken for another one later; `None` when it is gone.
fn open_process(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

async fn kill(pid: i32, process: &OwnedFd) -> Result<(), EdgeError> {
    let failed = |source: io::Error| EdgeError::Kill { pid, source };
    match pidfd_send_signal(process, Signal::KILL) {
        Ok(()) => {}
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(failed(error.into())),
    }
    // A process descriptor can be read from once the process has ended (pidfd_open(2)).
    let process = process.try_clone().map_err(failed)?;
    let ended = tokio::task::spawn_blocking(move || {
        let mut ended = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        poll(&mut ended, DEATH)
    });
    match ended.await.map_err(|error| failed(error.into()))?.map_err(|error| failed(error.into()))? {
        0 => Err(EdgeError::TimedOut),
        _ => Ok(()),
    }
}

/// Owns the connection: one request after the other, so that a caller who gives up leaves no half of one behind.
async fn carry(
    mut channel: Channel,
    mut queue: mpsc::Receiver<Job>,
    answered: Arc<AtomicU64>,
    ended: watch::Sender<bool>,
) {
    loop {
        let job = tokio::select! {
            job = queue.recv() => job,
            // The edge speaks only when it is spoken to: this is its end.
            _ = channel.receive() => None,
        };
        let Some(job) = job else { break };
        let result = match timeout(ANSWER, exchange(&mut channel, &job)).await {
            Ok(result) => result,
            Err(_) => Err(EdgeError::TimedOut),
        };
        let broken = result.is_err();
        answered.fetch_add(u64::from(!broken), Relaxed);
        let _ = job.answer.send(result);
        if broken {
            break;
        }
    }
    drop(channel);
    let _ = ended.send(true);
}

async fn exchange(channel: &mut Channel, job: &Job) -> Result<Reply, EdgeError> {
    let descriptors: Vec<_> = job.descriptors.iter().map(AsFd::as_fd).collect();
    channel.send(&job.body, &descriptors).await.map_err(|_| EdgeError::Closed)?;
    let message = channel.receive().await.map_err(|_| EdgeError::Closed)?.ok_or(EdgeError::Closed)?;
    Reply::deserialize(&mut serde_json::Deserializer::from_slice(&message))
        .map_err(|error| EdgeError::Unintelligible(error.to_string()))
}

fn start(config: &SpawnConfig) -> Result<Child, EdgeError> {
    let log = match &config.log {
        EdgeLog::Inherit => Stdio::inherit(),
        EdgeLog::Discard => Stdio::null(),
        EdgeLog::File(path) => open_log(path).map_err(|source| EdgeError::Log { path: path.clone(), source })?.into(),
    };
    let mut command = Command::new(&config.executable);
    command
        .args(&config.arguments)
        .arg("edge")
        .arg("--control")
        .arg(&config.control)
        .arg("--uid")
        .arg(config.uid.to_string())
        .arg("--gid")
        .arg(config.gid.to_string())
        // The daemon's environment may hold secrets.
        .env_clear()
        .envs(["RUST_LOG", "RUST_BACKTRACE"].iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(false);
    command.spawn().map_err(|source| EdgeError::Spawn { executable: config.executable.clone(), source })
}

fn open_log(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().append(true).create(true).mode(0o600).open(path)
}
