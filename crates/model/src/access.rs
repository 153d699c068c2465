//! What may be done inside a running machine.
//!
//! The API calls this trait and the runtime implements it, so that neither knows the other. Everything that comes
//! out of a machine is untrusted: an implementation bounds it before it gets here.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::id::MachineId;
use crate::problem::{Code, Problem};

/// A stream of bytes in either direction.
pub type ByteStream = BoxStream<'static, std::io::Result<Bytes>>;

/// The signals that a caller may send to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Signal {
    Hup,
    Int,
    Quit,
    Kill,
    Usr1,
    Usr2,
    Term,
    Stop,
    Cont,
    Winch,
}

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    pub rows: u16,
    pub cols: u16,
}

/// A command to run in a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecCommand {
    /// The program and its arguments; never empty.
    pub argv: Vec<String>,
    /// Added to the machine's own environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Where it starts; the user's home when absent.
    #[serde(default)]
    pub cwd: Option<String>,
    /// A user's name or number in the machine; `root` when absent.
    #[serde(default)]
    pub user: Option<String>,
    /// After this the whole process group is ended.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// A terminal of this size for stdin, stdout and stderr.
    #[serde(default)]
    pub terminal: Option<TerminalSize>,
    /// Wait until background children listen, die, or a second has passed.
    #[serde(default)]
    pub settle: bool,
}

/// What a caller sends to a running command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecInput {
    Stdin(Bytes),
    StdinClosed,
    Resize(TerminalSize),
    Signal(Signal),
}

/// What a running command sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecOutput {
    Stdout(Bytes),
    Stderr(Bytes),
    /// The last item of every exec that started.
    Exit(ExecExit),
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecExit {
    /// The exit status; 128 and the signal's number when a signal ended it; 124 when its time was over.
    pub status: i32,
    /// The signal that ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    #[serde(default)]
    pub timed_out: bool,
}

/// A command under way. Dropping it ends the command.
#[derive(Debug)]
pub struct ExecSession {
    pub input: mpsc::Sender<ExecInput>,
    pub output: mpsc::Receiver<ExecOutput>,
}

/// What is at a path in a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct FileInfo {
    pub name: String,
    pub path: String,
    pub kind: FileKind,
    /// In bytes.
    pub size: u64,
    /// The permission bits, as in `chmod`.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970.
    pub modified: i64,
    /// Where a symbolic link points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    File,
    Directory,
    Symlink,
    Other,
}

/// How a file is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriteOptions {
    /// Permission bits; 0644 for a new file, unchanged for an old one, when absent.
    #[serde(default)]
    pub mode: Option<u32>,
    /// Make the directories above it.
    #[serde(default)]
    pub parents: bool,
}

/// A port on which something in the machine listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ListeningPort {
    pub protocol: crate::record::Protocol,
    /// The address it is bound to; `0.0.0.0` or `::` for every address.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub address: std::net::IpAddr,
    pub port: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

/// Why something inside a machine was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail} ({code})")]
pub struct AccessError {
    pub code: Code,
    pub detail: String,
}

impl AccessError {
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into() }
    }
}

impl From<AccessError> for Problem {
    fn from(error: AccessError) -> Self {
        Problem::new(error.code, error.detail)
    }
}

/// Exec, files, ports and logs of running machines.
#[async_trait]
pub trait MachineAccess: Send + Sync + 'static {
    async fn exec(&self, machine: MachineId, command: ExecCommand) -> Result<ExecSession, AccessError>;
    async fn read_file(&self, machine: MachineId, path: &str) -> Result<(FileInfo, ByteStream), AccessError>;
    async fn write_file(
        &self,
        machine: MachineId,
        path: &str,
        options: WriteOptions,
        content: ByteStream,
    ) -> Result<FileInfo, AccessError>;
    async fn list_directory(&self, machine: MachineId, path: &str) -> Result<Vec<FileInfo>, AccessError>;
    async fn stat(&self, machine: MachineId, path: &str) -> Result<FileInfo, AccessError>;
    async fn make_directory(&self, machine: MachineId, path: &str, parents: bool) -> Result<FileInfo, AccessError>;
    async fn remove(&self, machine: MachineId, path: &str, recursive: bool) -> Result<(), AccessError>;
    async fn listening_ports(&self, machine: MachineId) -> Result<Vec<ListeningPort>, AccessError>;
    /// What the machine's agent and its orphans wrote to the console; the last `tail` bytes, then, when `follow`,
    /// whatever comes.
    async fn logs(&self, machine: MachineId, tail: u64, follow: bool) -> Result<ByteStream, AccessError>;
}

/// How far a long image operation has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ImageProgress {
    /// What is happening, for a person: `installing packages`.
    pub stage: String,
    /// From 0.0 to 1.0, where it can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<f32>,
}

/// An image that machines can be made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ImageInfo {
    pub name: String,
    /// blake3 of the archive or of the recipe it was made from; for one that was pulled, the digest of its manifest.
    pub digest: String,
    /// Unpacked, in bytes.
    pub size: u64,
    /// `build`, `import`, or the reference that it was pulled from.
    pub source: String,
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub created_at: jiff::Timestamp,
}

/// The images of a host.
#[async_trait]
pub trait Images: Send + Sync + 'static {
    async fn list(&self) -> Result<Vec<ImageInfo>, AccessError>;
    /// `None` when there is no such image.
    async fn get(&self, name: &crate::ImageName) -> Result<Option<ImageInfo>, AccessError>;
    /// Whether [`Images::build`] knows how to make it.
    fn can_build(&self, name: &crate::ImageName) -> bool;
    /// Builds it; joins a build that is under way; answers at once when it is there.
    async fn build(
        &self,
        name: &crate::ImageName,
        progress: mpsc::Sender<ImageProgress>,
    ) -> Result<ImageInfo, AccessError>;
    /// Takes a root file system archive (tar, plain or compressed with gzip, zstd or xz).
    async fn import(
        &self,
        name: &crate::ImageName,
        archive: ByteStream,
        progress: mpsc::Sender<ImageProgress>,
    ) -> Result<ImageInfo, AccessError>;
    /// Takes an image from a registry. Answers at once when the image of this name is that one.
    async fn pull(
        &self,
        name: &crate::ImageName,
        reference: &crate::ImageReference,
        progress: mpsc::Sender<ImageProgress>,
    ) -> Result<ImageInfo, AccessError>;
    async fn remove(&self, name: &crate::ImageName) -> Result<(), AccessError>;
    /// What this host can give a machine.
    async fn capacity(&self) -> HostCapacity;
}

/// The most that one machine can be given on this host.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HostCapacity {
    pub cpus: f64,
    pub memory_mib: u64,
    /// `None` where the disks cannot be limited.
    pub disk_gib: Option<u64>,
}

/// How long a command may run at most.
pub const LONGEST_EXEC: Duration = Duration::from_secs(24 * 3600);

/// Whether a text can be the name of an environment variable: `[A-Za-z_][A-Za-z0-9_]*`, which every shell can name
/// (POSIX.1-2017, XBD 3.235).
pub fn is_variable_name(text: &str) -> bool {
    !text.starts_with(|c: char| c.is_ascii_digit())
        && !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
