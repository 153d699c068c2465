//! Files as a user other than root sees them: read and written by commands that run as that user.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use warren_model::access::{ByteStream, ExecInput, ExecOutput, ExecSession, FileKind};
use warren_model::{Code, MachineId, wire};

use super::{Entry, Found, called, too_slow};
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
/// Bytes that a list may have, and entries: as many as a list that the machine's agent makes.
const LONGEST_LIST: usize = 1024 * 1024;
const MOST_ENTRIES: usize = 10_000;
/// Bytes of a file's name on Linux.
const LONGEST_NAME: usize = 255;

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
    match feed(&mut session, content, api.config.idle_timeout).await? {
        0 => Ok(()),
        status => Err(refused(status, &user, &path)),
    }
}

/// Hands the content to the command until it ends, and says how. The time is that between two signs of life: a piece
/// that it took, or something that it wrote.
async fn feed(session: &mut ExecSession, content: Bytes, idle: Duration) -> Answer<i32> {
    let mut left = Some(content);
    loop {
        let step = async {
            tokio::select! {
                item = session.output.recv() => match item {
                    Some(ExecOutput::Exit(exit)) => Ok(Some(exit.status)),
                    Some(_) => Ok(None),
                    None => Err(exec::lost().into()),
                },
                room = session.input.reserve(), if left.is_some() => {
                    left = match (room, left.take()) {
                        (Ok(room), Some(mut content)) if !content.is_empty() => {
                            room.send(ExecInput::Stdin(content.split_to(content.len().min(exec::PIECE))));
                            Some(content)
                        }
                        (Ok(room), _) => {
                            room.send(ExecInput::StdinClosed);
                            None
                        }
                        // It takes no more: how it ended says why.
                        (Err(_), _) => None,
                    };
                    Ok(None)
                }
            }
        };
        let step: Answer<Option<i32>> = tokio::time::timeout(idle, step).await.map_err(|_| too_slow())?;
        if let Some(status) = step? {
            return Ok(status);
        }
    }
}

async fn list(api: &Api, machine: MachineId, user: &str, path: &str) -> Answer<Vec<Entry>> {
    let mut session = start(api, machine, user, LIST, path).await?;
    let mut listed = Vec::new();
    loop {
        match next(api, &mut session).await? {
            ExecOutput::Stdout(piece) if listed.len() + piece.len() <= LONGEST_LIST => listed.extend_from_slice(&piece),
            ExecOutput::Stdout(_) => return Err(too_many()),
            ExecOutput::Stderr(_) => {}
            ExecOutput::Exit(exit) if exit.status == 0 => break,
            ExecOutput::Exit(_) => return Err(refused(DENIED, user, path)),
        }
    }
    entries(&listed, path)
}

/// What a list says, if a directory can be so.
fn entries(listed: &[u8], path: &str) -> Answer<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in listed.split_inclusive(|byte| *byte == 0) {
        let (kind, name) = match entry {
            [b'd', name @ .., 0] => (FileKind::Directory, name),
            [_, name @ .., 0] => (FileKind::File, name),
            _ => return Err(no_list(path)),
        };
        if name.is_empty() || name == b"." || name == b".." || name.len() > LONGEST_NAME || name.contains(&b'/') {
            return Err(no_list(path));
        }
        if entries.len() == MOST_ENTRIES {
            return Err(too_many());
        }
        entries.push(Entry { name: String::from_utf8_lossy(name).into_owned(), kind: called(kind) });
    }
    Ok(entries)
}

fn too_many() -> ApiError {
    ApiError::invalid(format!(
        "the directory has more than {MOST_ENTRIES} entries, or too long ones: list it with exec"
    ))
}

fn no_list(path: &str) -> ApiError {
    let detail = format!("what the machine's find says of {path} is no list of a directory: read it as root");
    ApiError::new(Code::PathConflict, detail)
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;
    use warren_model::access::ExecExit;

    const CONTENT: Bytes = Bytes::from_static(&[b'x'; 5 * exec::PIECE]);

    fn exit(status: i32) -> ExecOutput {
        ExecOutput::Exit(ExecExit { status, signal: None, timed_out: false })
    }

    #[tokio::test]
    async fn a_command_that_ends_is_fed_no_longer() {
        let ((input, _unread), (send, output)) = (mpsc::channel(1), mpsc::channel(1));
        send.send(exit(5)).await.unwrap();
        let mut session = ExecSession { input, output };
        let fed = tokio::time::timeout(Duration::from_secs(10), feed(&mut session, CONTENT, Duration::MAX));
        assert_eq!(fed.await.unwrap().ok(), Some(5));
    }

    #[tokio::test]
    async fn every_piece_that_is_taken_gives_it_more_time() {
        let ((input, mut taken), (send, output)) = (mpsc::channel(1), mpsc::channel(1));
        let command = tokio::spawn(async move {
            let mut bytes = 0;
            while let Some(ExecInput::Stdin(piece)) = taken.recv().await {
                bytes += piece.len();
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            send.send(exit(0)).await.unwrap();
            bytes
        });
        let mut session = ExecSession { input, output };
        assert_eq!(feed(&mut session, CONTENT, Duration::from_secs(1)).await.ok(), Some(0));
        assert_eq!(command.await.unwrap(), CONTENT.len());

        let ((input, _unread), (_send, output)) = (mpsc::channel(1), mpsc::channel(1));
        let mut session = ExecSession { input, output };
        let error = feed(&mut session, CONTENT, Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(error.problem.code, Code::DeadlineExceeded);
    }

    #[test]
    fn a_list_has_so_many_entries_that_a_directory_can_have() {
        let names = |listed: &[u8]| {
            entries(listed, "/d").map(|entries| entries.into_iter().map(|entry| entry.name).collect::<Vec<_>>())
        };
        assert_eq!(names(b"").unwrap(), Vec::<String>::new());
        assert_eq!(names(b"fa\0dsub\0").unwrap(), ["a", "sub"]);
        for wrong in [&b"f\0"[..], b"\0", b"fa", b"d..\0", b"d.\0", b"fa/b\0"] {
            assert!(names(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(names(&b"fa\0".repeat(MOST_ENTRIES)).unwrap().len(), MOST_ENTRIES);
        assert!(names(&b"fa\0".repeat(MOST_ENTRIES + 1)).is_err());
    }
}
