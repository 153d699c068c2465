//! Operations, their requests and answers, and limits.
//!
//! Every operation is a `POST` to a path of [`operation`]. A plain operation carries one JSON document each way. A
//! streaming one carries frames ([`crate::frame`]), the first of which, [`Kind::Head`](crate::frame::Kind::Head), is
//! the JSON document. A refusal is status 422 with a [`Refusal`].

use serde::{Deserialize, Serialize};
use warren_model::Code;
use warren_model::access::{FileInfo, FileKind, ListeningPort, WriteOptions};

/// The version of this protocol. Both ends must have the same one.
pub const PROTOCOL: u32 = 1;

/// Where the host mounts the machine's agent directory.
pub const DIRECTORY: &str = "/run/warren";
/// The host's socket, as the machine sees it.
pub const SOCKET: &str = "/run/warren/agent.sock";
/// The agent itself, as the machine sees it.
pub const INIT: &str = "/run/warren/init";

/// The longest path in bytes: the kernel's `PATH_MAX`, less its NUL.
pub const LONGEST_PATH: usize = 4095;
/// The most entries of a directory that one listing holds.
pub const MOST_ENTRIES: usize = 10_000;
/// The most listening ports that one listing holds.
pub const MOST_PORTS: usize = 4_096;
/// The longest JSON document that asks for something, in bytes.
pub const LONGEST_REQUEST: usize = 4 << 20;
/// The longest JSON document that answers, in bytes.
pub const LONGEST_ANSWER: usize = 8 << 20;
/// The longest JSON document inside a frame of an answer, in bytes.
pub const LONGEST_FRAME_JSON: usize = 64 << 10;
/// The longest detail of a refusal, in characters. As JSON it fits into a frame, however it is written.
const LONGEST_DETAIL: usize = 2000;
/// The most that a refusal shows of one name, in characters.
const LONGEST_SHOWN: usize = 200;
/// Requests that may be under way on one connection.
pub const MOST_STREAMS: u32 = 128;
/// The largest HTTP/2 frame, in bytes.
pub const LARGEST_HTTP2_FRAME: u32 = 128 << 10;
/// Bytes of file content or output that one frame carries at most when the agent sends.
pub const CHUNK: usize = 128 << 10;

/// The environment variable that marks what a command started, so that its background children are told from
/// another command's.
pub const EXEC_MARKER: &str = "WARREN_EXEC";

/// The paths of the operations.
pub mod operation {
    pub const HELLO: &str = "/hello";
    pub const CONFIGURE: &str = "/configure";
    pub const EXEC: &str = "/exec";
    pub const READ: &str = "/files/read";
    pub const WRITE: &str = "/files/write";
    pub const LIST: &str = "/files/list";
    pub const STAT: &str = "/files/stat";
    pub const MAKE_DIRECTORY: &str = "/files/mkdir";
    pub const REMOVE: &str = "/files/remove";
    pub const PORTS: &str = "/ports";
    pub const LOGS: &str = "/logs";
    pub const SHUTDOWN: &str = "/shutdown";
}

/// Nothing to say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Equal to [`PROTOCOL`], or the host cannot talk to it.
    pub protocol: u32,
    /// The release of the agent.
    pub version: String,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub code: Code,
    pub detail: String,
}

impl Refusal {
    /// A detail that is too long loses its end.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        cut(&mut detail, LONGEST_DETAIL);
        Self { code, detail }
    }
}

/// A name, a path or whatever else a caller chose, as a refusal shows it: at most 200 characters, and `…` for the rest.
pub fn shown(name: &str) -> String {
    let mut shown = name.chars().take(LONGEST_SHOWN + 1).collect();
    cut(&mut shown, LONGEST_SHOWN);
    shown
}

fn cut(text: &mut String, longest: usize) {
    if let Some((end, _)) = text.char_indices().nth(longest) {
        text.truncate(end);
        text.push('…');
    }
}

/// What a machine is to know about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestConfig {
    /// Also written to `/etc/hostname`.
    pub hostname: String,
    /// Written atomically, and only where something differs.
    pub files: Vec<GuestFile>,
}

/// A file that the host keeps in a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestFile {
    /// Below `/etc`, without `.` and `..`.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    pub content: String,
}

/// Something about one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathRequest {
    /// Absolute.
    pub path: String,
    /// Make the directories above it, or remove what is below it.
    #[serde(default)]
    pub deep: bool,
}

/// The head of a [`operation::WRITE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriteRequest {
    /// Absolute.
    pub path: String,
    pub options: WriteOptions,
}

/// What is at a path; the path itself is known to who asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    pub kind: FileKind,
    pub size: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub modified: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

impl Attributes {
    /// The same with its name and path.
    pub fn into_info(self, name: String, path: String) -> FileInfo {
        let Self { kind, size, mode, uid, gid, modified, target } = self;
        FileInfo { name, path, kind, size, mode, uid, gid, modified, target }
    }
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub name: String,
    pub attributes: Attributes,
}

/// The answer to [`operation::LIST`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    pub entries: Vec<Entry>,
}

/// The answer to [`operation::PORTS`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    pub ports: Vec<ListeningPort>,
}

/// The request of [`operation::LOGS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogsRequest {
    /// Bytes from the end.
    pub tail: u64,
    /// Go on with whatever comes.
    pub follow: bool,
}

/// The request of [`operation::SHUTDOWN`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShutdownRequest {
    /// Milliseconds from SIGTERM to SIGKILL.
    pub grace_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_fits_into_a_frame_whatever_it_is_about() {
        assert_eq!(shown("/etc/passwd"), "/etc/passwd");
        for long in ["\u{1}", "\"", "é", "\u{10ffff}"] {
            let long = long.repeat(200_000);
            assert_eq!(shown(&long).chars().count(), LONGEST_SHOWN + 1);
            let json = serde_json::to_vec(&Refusal::new(Code::CommandNotFound, long)).unwrap();
            assert!(json.len() < LONGEST_FRAME_JSON, "{} bytes", json.len());
        }
    }
}
