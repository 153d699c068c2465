//! Files in a machine, over the API.

use std::path::{Component, Path};

use futures::StreamExt;
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use warren_model::access::{FileInfo, FileKind};
use warren_model::wire::{MakeDirectory, Page};

use super::place::{Chunks, Entry, Kind};
use crate::cli::failure::Failure;
use crate::cli::output::read as shape;
use crate::client::error::ClientError;
use crate::client::route::Route;
use crate::client::{Client, Payload, streamed};

pub async fn kind(client: &Client, machine: &str, path: &str) -> Result<Option<Kind>, Failure> {
    match stat(client, machine, path).await {
        Ok(info) if info.kind == FileKind::Symlink => Ok(Some(follow(client, machine, path).await?)),
        Ok(info) => Ok(Some(kind_of(info.kind))),
        Err(failure) if failure.code() == Some("path_not_found") => Ok(None),
        Err(failure) => Err(failure),
    }
}

pub async fn size(client: &Client, machine: &str, path: &str) -> Result<Option<u64>, Failure> {
    let info = stat(client, machine, path).await?;
    Ok((info.kind == FileKind::File).then_some(info.size))
}

/// Whether there is content behind the path.
pub async fn opens(client: &Client, machine: &str, path: &str) -> Result<bool, Failure> {
    match client.send(Method::GET, &files(machine, path), Payload::Nothing).await {
        Ok(_) => Ok(true),
        Err(ClientError::Refused(refusal)) if refusal.code().starts_with("path_") => Ok(false),
        Err(error) => Err(error.into()),
    }
}

pub async fn entries(client: &Client, machine: &str, path: &str) -> Result<Vec<Entry>, Failure> {
    let route = Route::new(&["machines", machine, "files", "list"]).query("path", path);
    let page: Page<FileInfo> = shape(client.get(&route).await?)?;
    page.items.into_iter().map(|info| Ok(Entry { kind: kind_of(info.kind), name: one_step(info.name)? })).collect()
}

pub async fn read(client: &Client, machine: &str, path: &str) -> Result<(Option<u32>, Chunks), Failure> {
    let response = client.send(Method::GET, &files(machine, path), Payload::Nothing).await?;
    let mode = response.headers().get("x-file-mode").and_then(|mode| mode.to_str().ok());
    let mode = mode.and_then(|mode| u32::from_str_radix(mode, 8).ok()).map(|mode| mode & 0o777);
    Ok((mode, chunks(response.into_body())))
}

pub async fn write(
    client: &Client,
    machine: &str,
    path: &str,
    mode: Option<u32>,
    chunks: Chunks,
) -> Result<(), Failure> {
    let route = files(machine, path).maybe("mode", mode.map(|mode| format!("{mode:04o}")));
    client.send(Method::PUT, &route, Payload::Bytes(streamed(chunks))).await?;
    Ok(())
}

pub async fn make_directory(client: &Client, machine: &str, path: &str) -> Result<(), Failure> {
    let route = Route::new(&["machines", machine, "files", "directories"]);
    client.post(&route, &MakeDirectory { path: path.to_owned(), parents: true }).await?;
    Ok(())
}

async fn stat(client: &Client, machine: &str, path: &str) -> Result<FileInfo, Failure> {
    shape(client.get(&Route::new(&["machines", machine, "files", "stat"]).query("path", path)).await?)
}

/// What a link leads to, found by using it.
async fn follow(client: &Client, machine: &str, path: &str) -> Result<Kind, Failure> {
    match entries(client, machine, path).await {
        Ok(_) => Ok(Kind::Directory),
        Err(Failure::Client(ClientError::Refused(_))) if opens(client, machine, path).await? => Ok(Kind::File),
        Err(Failure::Client(ClientError::Refused(_))) => Ok(Kind::Other),
        Err(failure) => Err(failure),
    }
}

fn files(machine: &str, path: &str) -> Route {
    Route::new(&["machines", machine, "files"]).query("path", path)
}

fn chunks(body: Incoming) -> Chunks {
    let data = body.into_data_stream();
    data.map(|chunk| chunk.map_err(|error| std::io::Error::other(ClientError::BrokenOff(error.into())))).boxed()
}

fn kind_of(kind: FileKind) -> Kind {
    match kind {
        FileKind::File => Kind::File,
        FileKind::Directory => Kind::Directory,
        FileKind::Symlink => Kind::Link,
        FileKind::Other => Kind::Other,
    }
}

/// A machine is not trusted to name only what is in its directory: `../x` would be written outside the copy.
fn one_step(name: String) -> Result<String, Failure> {
    let mut steps = Path::new(&name).components();
    let is_one =
        matches!((steps.next(), steps.next()), (Some(Component::Normal(step)), None) if step.to_str() == Some(&name));
    if is_one && !name.contains(['/', '\0']) {
        Ok(name)
    } else {
        Err(Failure::Said(format!(
            "the machine names a file {name:?}, which is no name; nothing more is copied from it"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_cannot_name_a_file_outside_the_directory() {
        assert_eq!(one_step("a b.txt".into()).unwrap(), "a b.txt");
        for bad in ["", ".", "..", "../x", "a/b", "/etc/passwd", "a/", "./a", "a\0"] {
            assert!(one_step(bad.into()).is_err(), "{bad:?}");
        }
    }
}
