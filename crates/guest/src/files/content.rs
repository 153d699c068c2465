//! The content of files, streamed.

use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use http::StatusCode;
use warren_guest::frame::{HEADER, Kind, encode, header};
use warren_guest::protocol::{Attributes, CHUNK, PathRequest, Refusal, WriteRequest, shown};
use warren_guest::stream::{FrameReader, send};
use warren_model::Code;

use super::{Temporary, absolute, attributes, open_regular, refusal};
use crate::{Agent, serve};

/// Links that are followed to the file that is written, as many as the kernel follows.
const MOST_LINKS: usize = 40;

/// Content that is written at once, in bytes.
const BATCH: usize = 512 << 10;

/// Permission bits of a new file.
const NEW_FILE: u32 = 0o644;

/// Answers with a file: its attributes, its content, its end.
pub async fn read(agent: &Agent, request: PathRequest, mut respond: SendResponse<Bytes>) {
    let path = request.path.clone();
    let opened = blocking(agent, &path, move || {
        let path = absolute(&request.path)?;
        let file = open_regular(&path).map_err(|error| refusal(&request.path, &error))?;
        let meta = file.metadata().map_err(|error| refusal(&request.path, &error))?;
        let head = serde_json::to_vec(&attributes(&path, &meta));
        Ok((file, head.map_err(|error| Refusal::new(Code::Internal, error.to_string()))?))
    });
    let (mut file, head) = match opened.await {
        Ok(opened) => opened,
        Err(refusal) => return serve::refuse(respond, &refusal).await,
    };
    // From here on an error while sending means that the reader is gone.
    let Ok(mut stream) = respond.send_response(serve::response(StatusCode::OK), false) else { return };
    if send(&mut stream, encode(Kind::Head, &head), false).await.is_err() {
        return;
    }
    loop {
        let named = path.clone();
        let chunk = blocking(agent, &path, move || match read_chunk(&mut file) {
            Ok(chunk) => Ok((file, chunk)),
            Err(error) => Err(refusal(&named, &error)),
        });
        let last = match chunk.await {
            Ok((rest, Some(chunk))) => {
                file = rest;
                if send(&mut stream, chunk, false).await.is_err() {
                    return;
                }
                continue;
            }
            Ok((_, None)) => encode(Kind::End, b""),
            Err(refusal) => encode(Kind::Refused, &serde_json::to_vec(&refusal).unwrap_or_default()),
        };
        let _ = send(&mut stream, last, true).await;
        return;
    }
}

/// Takes a file: it is there as a whole after the last frame, or not at all.
pub async fn write(agent: &Arc<Agent>, mut input: FrameReader) -> Result<Attributes, Refusal> {
    let request: WriteRequest = serve::head(&mut input).await?;
    let path = request.path.clone();
    let mut target = blocking(agent, &path, move || Target::open(request)).await?;
    loop {
        let (chunks, ended) = next_chunks(&mut input).await?;
        target = blocking(agent, &path, move || {
            chunks.iter().try_for_each(|chunk| target.write(chunk))?;
            Ok(target)
        })
        .await?;
        if ended {
            return blocking(agent, &path, move || target.finish()).await;
        }
    }
}

/// Content that is there, at least a piece of it, and whether that was all.
async fn next_chunks(input: &mut FrameReader) -> Result<(Vec<Bytes>, bool), Refusal> {
    let (mut chunks, mut length) = (Vec::new(), 0);
    while length < BATCH {
        let frame = tokio::select! {
            biased;
            frame = input.next() => frame,
            () = std::future::ready(()), if length > 0 => break,
        };
        match frame.ok().flatten().map(|frame| (frame.kind, frame.payload)) {
            Some((Kind::Data, chunk)) => {
                length += chunk.len();
                chunks.push(chunk);
            }
            Some((Kind::End, _)) => return Ok((chunks, true)),
            // The sender gave up; what came so far goes with the temporary file.
            _ => return Err(Refusal::new(Code::InvalidRequest, "the content did not come to its end")),
        }
    }
    Ok((chunks, false))
}

async fn blocking<T: Send + 'static>(
    agent: &Agent,
    path: &str,
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    agent.blocking(work).await.unwrap_or_else(|error| Err(refusal(path, &error)))
}

/// The next frame of content, or `None` at the end.
fn read_chunk(file: &mut fs::File) -> io::Result<Option<Bytes>> {
    let mut frame = BytesMut::zeroed(HEADER + CHUNK);
    let length = loop {
        match file.read(&mut frame[HEADER..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => break read?,
        }
    };
    if length == 0 {
        return Ok(None);
    }
    frame.truncate(HEADER + length);
    frame[..HEADER].copy_from_slice(&header(Kind::Data, length));
    Ok(Some(frame.freeze()))
}

/// A file that is being written.
struct Target {
    named: String,
    path: PathBuf,
    temporary: Temporary,
    mode: u32,
    owner: Option<(u32, u32)>,
}

impl Target {
    fn open(request: WriteRequest) -> Result<Self, Refusal> {
        let failed = |error: io::Error| refusal(&request.path, &error);
        let named = absolute(&request.path)?;
        if request.path.ends_with('/') || named.file_name().is_none() {
            return Err(Refusal::new(Code::PathInvalid, format!("{} names no file", shown(&request.path))));
        }
        if request.options.parents
            && let Some(directory) = named.parent()
        {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(failed)?;
        }
        let path = behind_links(named).map_err(failed)?;
        let before = match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_file() => Some(meta),
            Ok(meta) if meta.is_dir() => return Err(failed(io::ErrorKind::IsADirectory.into())),
            Ok(_) => return Err(failed(io::Error::other(super::NotRegular))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        let temporary = Temporary::beside(&path).map_err(failed)?;
        let mode = request.options.mode.or(before.as_ref().map(MetadataExt::mode)).unwrap_or(NEW_FILE) & 0o7777;
        let owner = before.map(|meta| (meta.uid(), meta.gid()));
        Ok(Self { named: request.path, path, temporary, mode, owner })
    }

    fn write(&mut self, chunk: &[u8]) -> Result<(), Refusal> {
        self.temporary.file().write_all(chunk).map_err(|error| refusal(&self.named, &error))
    }

    fn finish(self) -> Result<Attributes, Refusal> {
        let Self { named, path, temporary, mode, owner } = self;
        let failed = |error: io::Error| refusal(&named, &error);
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::fchown(temporary.file(), Some(uid), Some(gid)).map_err(failed)?;
        }
        temporary.file().set_permissions(Permissions::from_mode(mode)).map_err(failed)?;
        temporary.replace(&path).map_err(failed)?;
        let meta = fs::symlink_metadata(&path).map_err(failed)?;
        Ok(attributes(&path, &meta))
    }
}

/// The file that is meant: a link stays, and what it points at is written, even where that is not there yet.
fn behind_links(mut path: PathBuf) -> io::Result<PathBuf> {
    for _ in 0..MOST_LINKS {
        match fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("/")).join(target),
            // EINVAL: it is no link.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(path),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_model::access::WriteOptions;

    fn write_all(path: &Path, options: WriteOptions, content: &[u8]) -> Result<Attributes, Refusal> {
        let mut target = Target::open(WriteRequest { path: path.to_str().unwrap().to_owned(), options })?;
        target.write(content)?;
        target.finish()
    }

    #[test]
    fn an_existing_file_keeps_its_mode_and_a_new_one_gets_the_one_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/file");
        let parents = WriteOptions { mode: Some(0o600), parents: true };
        assert_eq!(write_all(&path, WriteOptions::default(), b"x").unwrap_err().code, Code::PathNotFound);
        assert_eq!(write_all(&path, parents, b"one").unwrap().mode, 0o600);
        let again = write_all(&path, WriteOptions::default(), b"three").unwrap();
        assert_eq!((again.mode, again.size), (0o600, 5));
        assert_eq!(write_all(&directory.path().join("new"), WriteOptions::default(), b"").unwrap().mode, 0o644);
    }

    #[test]
    fn what_is_not_finished_leaves_no_trace() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "old").unwrap();
        let request = WriteRequest { path: path.to_str().unwrap().to_owned(), options: WriteOptions::default() };
        let mut target = Target::open(request).unwrap();
        target.write(b"new").unwrap();
        drop(target);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_stays_and_its_target_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let (link, target) = (directory.path().join("link"), directory.path().join("target"));
        std::os::unix::fs::symlink("target", &link).unwrap();
        write_all(&link, WriteOptions::default(), b"through").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"through");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        fs::remove_file(&target).unwrap();
        std::os::unix::fs::symlink("link", &target).unwrap();
        assert_eq!(write_all(&link, WriteOptions::default(), b"x").unwrap_err().code, Code::PathInvalid);
    }

    #[test]
    fn what_is_no_file_is_not_written() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [fifo.as_path(), directory.path(), Path::new("/dev/null")] {
            assert_eq!(write_all(path, WriteOptions::default(), b"x").unwrap_err().code, Code::PathConflict);
        }
    }
}
