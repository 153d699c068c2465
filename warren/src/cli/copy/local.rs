//! Files and streams of this machine.

use std::io::{self, ErrorKind, Write};
use std::path::Path;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::place::{Chunks, Entry, Kind};
use crate::cli::exec::streams;
use crate::cli::failure::Failure;
use crate::cli::output::note;
use crate::cli::render::printable;

/// How much is read at once, in bytes.
const CHUNK: usize = 128 << 10;

pub async fn kind(path: &Path) -> Result<Option<Kind>, Failure> {
    match tokio::fs::metadata(path).await {
        Ok(data) => Ok(Some(kind_of(data.file_type()))),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(failed("read", path, error)),
    }
}

pub async fn size(path: &Path) -> Result<Option<u64>, Failure> {
    let data = tokio::fs::metadata(path).await.map_err(|error| failed("read", path, error))?;
    Ok(data.is_file().then_some(data.len()))
}

pub async fn entries(path: &Path) -> Result<Vec<Entry>, Failure> {
    let mut directory = tokio::fs::read_dir(path).await.map_err(|error| failed("read", path, error))?;
    let mut entries = Vec::new();
    while let Some(entry) = directory.next_entry().await.map_err(|error| failed("read", path, error))? {
        let kind = entry.file_type().await.map_err(|error| failed("read", &entry.path(), error))?;
        match entry.file_name().into_string() {
            Ok(name) => entries.push(Entry { name, kind: kind_of(kind) }),
            Err(name) => note(&format!("left out {}: its name is not UTF-8", printable(&name.to_string_lossy()))),
        }
    }
    Ok(entries)
}

pub async fn read(path: &Path) -> Result<(Option<u32>, Chunks), Failure> {
    let file = tokio::fs::File::open(path).await.map_err(|error| failed("read", path, error))?;
    let data = file.metadata().await.map_err(|error| failed("read", path, error))?;
    Ok((mode_of(&data), chunks(file)))
}

/// A file, or stdin for `-`, with its size where that is known.
pub async fn read_stream(path: &Path) -> Result<(Chunks, Option<u64>), Failure> {
    if path == Path::new("-") {
        return Ok((stdin(), None));
    }
    let size = size(path).await?;
    let (_, chunks) = read(path).await?;
    Ok((chunks, size))
}

/// Writes in place, so that a file that is there keeps its owner and its links. A new one that could not be finished
/// is removed.
pub async fn write(path: &Path, mode: Option<u32>, mut chunks: Chunks) -> Result<(), Failure> {
    let (mut file, is_new) = open(path, mode).await.map_err(|error| failed("write", path, error))?;
    let written: io::Result<()> = async {
        while let Some(chunk) = chunks.try_next().await? {
            file.write_all(&chunk).await?;
        }
        file.flush().await
    }
    .await;
    if let Err(error) = written {
        if is_new {
            // The first error is the one to report.
            let _ = tokio::fs::remove_file(path).await;
        }
        return Err(failed("write", path, error));
    }
    Ok(())
}

pub async fn make_directory(path: &Path) -> Result<(), Failure> {
    match tokio::fs::create_dir(path).await {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        result => result.map_err(|error| failed("make the directory", path, error)),
    }
}

/// This process's stdin.
pub fn stdin() -> Chunks {
    let receiver = streams::stdin();
    futures::stream::unfold(receiver, |mut receiver| async { receiver.recv().await.map(|chunk| (chunk, receiver)) })
        .boxed()
}

/// To this process's stdout.
pub async fn stdout(mut chunks: Chunks) -> Result<(), Failure> {
    while let Some(chunk) = chunks.try_next().await.map_err(|error| Failure::local("cannot copy", error))? {
        let mut stdout = io::stdout().lock();
        stdout.write_all(&chunk).and_then(|()| stdout.flush()).map_err(Failure::stdout)?;
    }
    Ok(())
}

async fn open(path: &Path, mode: Option<u32>) -> io::Result<(tokio::fs::File, bool)> {
    let mut options = tokio::fs::OpenOptions::new();
    options.write(true);
    let mut fresh = options.clone();
    fresh.create_new(true);
    #[cfg(unix)]
    if let Some(mode) = mode {
        fresh.mode(mode & 0o777);
    }
    #[cfg(not(unix))]
    let _ = mode;
    match fresh.open(path).await {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok((options.truncate(true).open(path).await?, false)),
        result => Ok((result?, true)),
    }
}

fn chunks(file: tokio::fs::File) -> Chunks {
    let step = |mut file: tokio::fs::File| async {
        let mut buffer = BytesMut::with_capacity(CHUNK);
        match file.read_buf(&mut buffer).await {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some((Bytes::from(buffer), file))),
            Err(error) => Err(error),
        }
    };
    futures::stream::try_unfold(file, step).boxed()
}

fn kind_of(kind: std::fs::FileType) -> Kind {
    if kind.is_file() {
        Kind::File
    } else if kind.is_dir() {
        Kind::Directory
    } else if kind.is_symlink() {
        Kind::Link
    } else {
        Kind::Other
    }
}

#[cfg(unix)]
fn mode_of(data: &std::fs::Metadata) -> Option<u32> {
    use std::os::unix::fs::PermissionsExt;
    Some(data.permissions().mode() & 0o777)
}

#[cfg(not(unix))]
fn mode_of(_: &std::fs::Metadata) -> Option<u32> {
    None
}

fn failed(verb: &str, path: &Path, error: io::Error) -> Failure {
    Failure::local(format!("cannot {verb} {}", path.display()), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(chunks: Vec<io::Result<Bytes>>) -> Chunks {
        futures::stream::iter(chunks).boxed()
    }

    #[tokio::test]
    async fn a_file_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let content = vec![7; CHUNK * 2 + 5];
        write(&path, Some(0o640), stream(vec![Ok(content.clone().into())])).await.unwrap();
        let (mode, chunks) = read(&path).await.unwrap();
        let read: Vec<Bytes> = chunks.try_collect().await.unwrap();
        assert_eq!(read.concat(), content);
        assert_eq!(mode.unwrap_or(0o640), 0o640);
    }

    #[tokio::test]
    async fn a_new_file_that_could_not_be_finished_is_removed_and_an_old_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let broken = || stream(vec![Ok(Bytes::from_static(b"a")), Err(io::ErrorKind::UnexpectedEof.into())]);
        let new = dir.path().join("new");
        assert!(write(&new, None, broken()).await.is_err());
        assert!(!new.exists());
        let old = dir.path().join("old");
        std::fs::write(&old, "content").unwrap();
        assert!(write(&old, None, broken()).await.is_err());
        assert!(old.exists());
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_directory_lists_links_as_links() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/nonexistent", dir.path().join("l")).unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        let mut found = entries(dir.path()).await.unwrap();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        let expected = [("d", Kind::Directory), ("l", Kind::Link)];
        assert_eq!(found, expected.map(|(name, kind)| Entry { name: name.into(), kind }));
        assert_eq!(kind(&dir.path().join("l")).await.unwrap(), None);
    }
}
