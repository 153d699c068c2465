//! Files as a user other than root sees them: read and written by commands that run as that user.

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;
use warren_model::access::{ByteStream, ExecInput, ExecOutput, ExecSession, FileKind};
use warren_model::{Code, MachineId, wire};

use super::{Found, too_slow};
use crate::error::{Answer, ApiError};
use crate::routes::exec;
use crate::state::Api;

/// How the commands say what they found.
const DIRECTORY: i32 = 3;
const MISSING: i32 = 4;
const DENIED: i32 = 5;
const READ: &str = "[ -e \"$1\" ] || exit 4; [ -r \"$1\" ] || exit 5; [ -d \"$1\" ] && exit 3; exec cat -- \"$1\"";
/// Each entry is its kind, `d` for a directory, and its name, with a zero at the end.
const LIST: &str = "exec find \"$1\" -mindepth 1 -maxdepth 1 -printf '%y%f\\0'";
/// Whether it may be written is tried in a shell of its own: a redirection that fails ends the shell.
const WRITE: &str = "mkdir -p -- \"$(dirname -- \"$1\")\" 2>/dev/null || exit 5; [ -d \"$1\" ] && exit 3; \
                     ( : >>\"$1\" ) 2>/dev/null || exit 5; exec cat >\"$1\"";
/// Bytes that a list may have.
const LONGEST_LIST: usize = 16 * 1024 * 1024;

/// What the user finds at a path.
pub(super) async fn read(api: &Api, machine: MachineId, user: String, path: String) -> Answer<Found> {
    let mut session = start(api, machine, &user, READ, &path).await?;
    let first = loop {
        match next(api, &mut session).await? {
            ExecOutput::Stderr(_) => {}
            other => break other,
        }
    };
    match first {
        ExecOutput::Stdout(piece) => {
            let first = futures::stream::iter([Ok(piece)]);
            Ok(Found::File(first.chain(rest(session)).boxed()))
        }
        ExecOutput::Exit(exit) => match exit.status {
            0 => Ok(Found::File(futures::stream::empty().boxed())),
            DIRECTORY => Ok(Found::Directory(list(api, machine, &user, &path).await?)),
            status => Err(refused(status, &user, &path)),
        },
        ExecOutput::Stderr(_) => Err(ApiError::internal()),
    }
}

/// Writes a file as the user.
pub(super) async fn write(api: &Api, machine: MachineId, user: String, path: String, content: Bytes) -> Answer<()> {
    let mut session = start(api, machine, &user, WRITE, &path).await?;
    let feeding = feed(session.input.clone(), content);
    let (_, status) = tokio::join!(feeding, end(api, &mut session));
    match status? {
        0 => Ok(()),
        status => Err(refused(status, &user, &path)),
    }
}

/// How the command ends.
async fn end(api: &Api, session: &mut ExecSession) -> Answer<i32> {
    loop {
        if let ExecOutput::Exit(exit) = next(api, session).await? {
            return Ok(exit.status);
        }
    }
}

async fn list(api: &Api, machine: MachineId, user: &str, path: &str) -> Answer<Vec<(String, FileKind)>> {
    let mut session = start(api, machine, user, LIST, path).await?;
    let mut listed = Vec::new();
    loop {
        match next(api, &mut session).await? {
            ExecOutput::Stdout(piece) if listed.len() + piece.len() <= LONGEST_LIST => listed.extend_from_slice(&piece),
            ExecOutput::Stdout(_) => return Err(ApiError::invalid("the directory has too many entries to list")),
            ExecOutput::Stderr(_) => {}
            ExecOutput::Exit(exit) if exit.status == 0 => break,
            ExecOutput::Exit(_) => return Err(refused(DENIED, user, path)),
        }
    }
    let entries = listed.split(|byte| *byte == 0).filter_map(|entry| entry.split_first());
    Ok(entries
        .map(|(kind, name)| {
            let kind = if *kind == b'd' { FileKind::Directory } else { FileKind::File };
            (String::from_utf8_lossy(name).into_owned(), kind)
        })
        .collect())
}

async fn start(api: &Api, machine: MachineId, user: &str, script: &str, path: &str) -> Answer<ExecSession> {
    let command = ["/bin/sh", "-c", script, "sh", path].map(str::to_owned).to_vec();
    let timeout_ms = u64::try_from(api.config.exec_limit.as_millis()).ok();
    let asked = wire::Exec {
        command,
        user: Some(user.to_owned()),
        timeout_ms,
        stdin: None,
        env: Default::default(),
        cwd: Some("/".to_owned()),
        terminal: None,
        settle: Some(false),
    };
    Ok(api.access.exec(machine, exec::command(asked)?).await?)
}

async fn next(api: &Api, session: &mut ExecSession) -> Answer<ExecOutput> {
    let next = tokio::time::timeout(api.config.idle_timeout, session.output.recv()).await;
    next.map_err(|_| too_slow())?.ok_or_else(|| exec::lost().into())
}

/// What is still to be read; it breaks off with an error unless the command ends well.
fn rest(session: ExecSession) -> ByteStream {
    let broken = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
    futures::stream::unfold(Some(session), move |session| async move {
        let mut session = session?;
        loop {
            return match session.output.recv().await {
                Some(ExecOutput::Stdout(piece)) => Some((Ok(piece), Some(session))),
                Some(ExecOutput::Stderr(_)) => continue,
                Some(ExecOutput::Exit(exit)) if exit.status == 0 => None,
                Some(ExecOutput::Exit(_)) | None => Some((Err(broken()), None)),
            };
        }
    })
    .boxed()
}

async fn feed(input: mpsc::Sender<ExecInput>, mut content: Bytes) {
    while !content.is_empty() {
        let piece = content.split_to(content.len().min(exec::PIECE));
        if input.send(ExecInput::Stdin(piece)).await.is_err() {
            return;
        }
    }
    let _ = input.send(ExecInput::StdinClosed).await;
}

fn refused(status: i32, user: &str, path: &str) -> ApiError {
    match status {
        MISSING => ApiError::new(Code::PathNotFound, format!("user {user:?} finds nothing at {path}")),
        DIRECTORY => ApiError::new(Code::PathConflict, format!("{path} is a directory")),
        DENIED => ApiError::new(Code::PathDenied, format!("user {user:?} may not do that at {path}")),
        other => {
            ApiError::new(Code::PathConflict, format!("the command that was to do it at {path} ended with {other}"))
        }
    }
}
